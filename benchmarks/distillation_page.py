"""The tables of the distillation benchmark, and the words under them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from distillation_runs import CAPTIONS, METHODS, NERF_KINDS, SEARCHED
from reporting import spread, table


@dataclass(frozen=True)
class Figure:
    title: str
    higher_is_better: bool


FIGURES = {  # by their names in an evaluation's means
    "iou": Figure("IoU", True),
    "chamfer_share": Figure("Chamfer / size", False),
    "color_error": Figure("colour error", False),
    "front_back": Figure("front/back", True),
    "r_at_1_world": Figure("R@1 of 1,530", True),
    "sim": Figure("Sim", True),
}
# Sim / R@1 by the paper's CLIP, as quoted in notes on it: prompt-specific iNGP on 15 prompts, 3DConv-net on 415.
PAPER = {
    "nerf": ("MG15, one iNGP a prompt", {"SDS": ".288 / 1.000", "VSD": ".276 / .932", "ASD": ".289 / 1.000"}),
    "3dconv": (
        "DF415, 3DConv-net",
        {"SDS": "collapsed", "CSD": ".176 / .062", "VSD": ".158 / .002", "ASD": ".237 / .276"},
    ),
}
FORMS = {
    "full": "full captions",
    "color": "captions without the second colour",
    "kind": "captions without colours",
}


@dataclass(frozen=True)
class Cell:
    """What is finished of one method in one table."""

    system: str
    teacher: str
    captions: str
    method: str
    scale: float
    records: dict[int, list[dict]]  # seed: its runs

    def by_seed(self, figure: str) -> list[float]:
        """A figure's mean over prompts, for each seed; without seeds that do not have it."""
        means = (_mean([record["mean"].get(figure) for record in runs]) for runs in self.records.values())
        return [value for value in means if value is not None]

    def spread(self, figure: str) -> tuple[float, float]:
        """Least and largest over the seeds."""
        return min(self.by_seed(figure)), max(self.by_seed(figure))

    def of_runs(self, value: Callable[[dict], float]) -> list[float]:
        return [value(record) for runs in self.records.values() for record in runs]

    @property
    def title(self) -> str:
        return METHODS[self.method].title


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _groups(cells: Sequence[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.system, cell.teacher, cell.captions), []).append(cell)
    return groups


def recorded_cells(runs: Sequence[dict], cells: Sequence[Cell]) -> list[Cell]:
    """The cells of a written page's runs, but for the tables that `cells` have."""
    found: dict[tuple, dict[int, list[dict]]] = {}
    for record in runs:
        run = record["run"]
        key = (run["system"], run["teacher"], run["captions"], run["method"], run["scale"])
        found.setdefault(key, {}).setdefault(run["seed"], []).append(record)
    return [Cell(*key, records) for key, records in found.items() if key[:3] not in _groups(cells)]


def _shown(cell: Cell, figure: str) -> str:
    values = cell.by_seed(figure)
    return spread(values) if values else "-"


def methods_table(cells: Sequence[Cell]) -> list[str]:
    """One table in markdown: the methods of one system, teacher and form of caption."""
    paper, quoted = PAPER[cells[0].system]
    quotes = cells[0].captions == "full"
    head = ["method", "scale", "seeds", *(figure.title for figure in FIGURES.values())]
    head += ["lowest IoU", "empty meshes", "minutes a run"]
    head += [f"paper: {paper}, Sim / R@1"] if quotes else []
    rows = []
    for cell in cells:
        lowest = min(entry["iou"] for runs in cell.records.values() for record in runs for entry in record["prompts"])
        row = [
            cell.title,
            f"{cell.scale:g}",
            ", ".join(map(str, cell.records)),
            *(_shown(cell, figure) for figure in FIGURES),
            f"{lowest:.3f}",
            str(sum(int(count) for count in cell.of_runs(lambda record: record["empty_meshes"]))),
            f"{mean(cell.of_runs(lambda record: record['seconds'])) / 60:.1f}",
        ]
        row += [quoted.get(METHODS[cell.method].paper, "-")] if quotes else []
        rows.append(row)
    return table(head, rows)


def _overlap(one: Cell, other: Cell, figure: str) -> bool:
    (a, b), (c, d) = one.spread(figure), other.spread(figure)
    return a <= d and c <= b


def words(cells: Sequence[Cell]) -> list[str]:
    """What a table says and what it does not: for each figure the best, and what is within its spread of seeds."""
    single = [cell.title for cell in cells if len(cell.records) < 2]
    lines = []
    if single:
        lines.append(
            f"- One seed says nothing of the spread, so differences to these are not to be read: {', '.join(single)}."
        )
    cells = [cell for cell in cells if len(cell.records) >= 2]
    for name, figure in FIGURES.items():
        known = [cell for cell in cells if cell.by_seed(name)]
        if len(known) < 2:
            continue
        sign = -1 if figure.higher_is_better else 1
        best = min(known, key=lambda cell: sign * mean(cell.by_seed(name)))
        near = [cell.title for cell in known if cell is not best and _overlap(cell, best, name)]
        behind = [cell.title for cell in known if cell is not best and not _overlap(cell, best, name)]
        within = f"within its seeds' spread: {', '.join(near)}" if near else "nothing is within its seeds' spread"
        beyond = f"; behind: {', '.join(behind)}" if behind else ""
        lines.append(f"- {figure.title}: best is {best.title}, {mean(best.by_seed(name)):.3f}; {within}{beyond}.")
    return lines + _shift(cells)


def _shift(cells: Sequence[Cell]) -> list[str]:
    """What ASD's shift changes, against ASD without it."""
    by_name = {cell.method: cell for cell in cells}
    plain = by_name.get("asd-0")
    lines = []
    for method, cell in by_name.items():
        if plain is None or not method.startswith("asd-") or cell is plain:
            continue
        parts = []
        for name, figure in FIGURES.items():
            if cell.by_seed(name) and plain.by_seed(name):
                change = mean(cell.by_seed(name)) - mean(plain.by_seed(name))
                better = "better" if (change > 0) == figure.higher_is_better else "worse"
                verdict = "within the spread" if _overlap(cell, plain, name) else better
                parts.append(f"{figure.title} {change:+.3f} ({verdict})")
        lines.append(f"- {cell.title} against no shift: {', '.join(parts)}.")
    return lines


def tables(cells: Sequence[Cell]) -> list[str]:
    """All tables with their words, as lines of markdown."""
    systems = {"3dconv": "3DConv-net, one generator for all prompts", "nerf": "NeRF, one a prompt"}
    lines = []
    forms = list(FORMS)
    groups = sorted(
        _groups(cells).items(), key=lambda item: (item[0][0] == "3dconv", item[0][1], forms.index(item[0][2]))
    )
    for (system, teacher, captions), group in groups:
        lines += [
            f"## {systems[system]}; {teacher}; {FORMS[captions]}",
            "",
            *methods_table(group),
            "",
            *words(group),
            "",
        ]
    return lines or ["No run of a table is finished."]


def page(cells: Sequence[Cell], commands: Sequence[str]) -> str:
    """The page of results of these commands."""
    records = [record for cell in cells for runs in cell.records.values() for record in runs]
    machines = sorted({f"{record['machine']}, {record['threads']} threads a run" for record in records})
    sought = " and ".join(CAPTIONS["full"](spec) for spec in SEARCHED)
    given = ", ".join(f"`{command}`" for command in commands)
    prompts = {
        system: len({entry["prompt"] for cell in cells if cell.system == system for runs in cell.records.values()
                     for record in runs for entry in record["prompts"]})
        for system in dict.fromkeys(cell.system for cell in cells)
    }  # fmt: skip
    return "\n".join(
        [
            "# What each distillation method buys",
            "",
            f"{given} on {'; '.join(machines)}. Means over prompts and seeds; in brackets the least and the "
            "largest mean of a seed. Different texts: "
            f"{', '.join(f'{n} on {system}' for system, n in prompts.items())} (NeRF has {', '.join(NERF_KINDS)}, as "
            "far as they were run).",
            "",
            "Where a command names several scales, each method's was sought among them, on the system of --search-on "
            "or on each of its own. Where it names one, no scale was sought. A search takes seed 0 and IoU less colour "
            f"error on two objects that no table has ({sought}); a "
            "generator learns the two with one prompt a step. A result of a caption without colours is measured "
            "against the object nearest in colour of those that the caption allows, and a view counts for R@1 if its "
            "nearest text among the world's 1,530 full captions is one of an object that the caption allows. Minutes "
            "are the clock's, of a machine that had other work; they say little.",
            "",
            "The paper's figures (ScaleDreamer, Ma et al. 2024, arXiv 2407.02040) are of Stable Diffusion 2.1, its own "
            "prompts and another CLIP, at scales of its own, as quoted in notes on the paper: their order may be "
            "compared with ours, their size may not.",
            "",
            *tables(cells),
        ]
    )
