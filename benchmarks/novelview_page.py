"""The tables, the plot and the words of the novel-view benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from novelview_variants import BASELINE, CLAIM, LEFT_OUT, SAMPLERS, TENTH, WHOLE, Size
from reporting import spread, table


@dataclass(frozen=True)
class Figure:
    title: str
    higher_is_better: bool
    digits: int

    def better(self, one: float, other: float) -> bool:
        """Whether one value is at least as good as the other."""
        return one >= other if self.higher_is_better else one <= other


FIGURES = {  # by their names in a run's history
    "psnr_held_out": Figure("PSNR, dB", True, 2),
    "iou_held_out": Figure("silhouette IoU", True, 3),
    "loss": Figure("denoising loss", False, 4),
}
PAPERS_TIMES = 14  # Efficient-3DiM (arXiv 2310.03015): from 10 days on 8 A100 to less than one
TARGET_TIMES = 10


@dataclass(frozen=True)
class Reached:
    """When a curve first was as good as asked."""

    minutes: float
    at_most: bool  # it was so at the first measurement already


def time_to(history: Sequence[dict[str, float]], name: str, quality: float) -> Reached | None:
    """Minutes of training until a figure first is as good as `quality`; between measurements linear. None: never."""
    figure, before = FIGURES[name], None
    for entry in history:
        if figure.better(entry[name], quality):
            if before is None:
                return Reached(entry["minutes"], at_most=True)
            share = (quality - before[name]) / (entry[name] - before[name])
            return Reached(before["minutes"] + share * (entry["minutes"] - before["minutes"]), at_most=False)
        before = entry
    return None


@dataclass(frozen=True)
class Times:
    """How many times faster than the baseline a variant is, by seed."""

    factors: list[float]
    at_least: bool  # the first measurement was good enough already in one of them
    missed: int  # seeds in which the baseline's quality was never reached

    def shown(self) -> str:
        if not self.factors:
            return "not reached"
        low, high = min(self.factors), max(self.factors)
        text = f"{'at least ' if self.at_least else ''}{mean(self.factors):.1f}"
        text += f" ({low:.1f} to {high:.1f})" if len(self.factors) > 1 else ""
        return text + (f", not reached in {self.missed} of {self.missed + len(self.factors)}" if self.missed else "")

    @property
    def known(self) -> bool:
        return bool(self.factors) and not self.missed


def times_faster(variants: dict[str, dict[int, dict]], name: str, figure: str) -> Times:
    """The baseline's own time to its final quality over a variant's time to it, by seed: on the same held-out pairs.

    A curve may pass its last value earlier; so the baseline's time is measured as the variants' are.
    """
    factors, missed, at_least = [], 0, False
    for seed, record in variants[name].items():
        baseline = variants[BASELINE].get(seed)
        if baseline is None:
            continue
        quality = baseline["history"][-1][figure]
        own, other = (time_to(r["history"], figure, quality) for r in (baseline, record))
        if other is None:
            missed += 1
        else:
            factors.append(own.minutes / other.minutes)
            at_least |= other.at_most
    return Times(factors, at_least, missed)


def by_variant(records: Sequence[dict], table: str, names: Sequence[str]) -> dict[str, dict[int, dict]]:
    """Records of a table by variant and seed, in the table's order."""
    chosen = [record for record in records if record["table"] == table]
    found = {name: {r["seed"]: r for r in chosen if r["variant"] == name} for name in names}
    return {name: seeds for name, seeds in found.items() if seeds}


def _finals(seeds: dict[int, dict], figure: str) -> list[float]:
    return [record["history"][-1][figure] for record in seeds.values()]


def claim_table(variants: dict[str, dict[int, dict]]) -> list[str]:
    """What each variant reached in its time, and how many times faster than the baseline it was there."""
    head = ["trained for the same time", "seeds", "precision", "minutes", "steps"]
    head += [figure.title for figure in FIGURES.values()]
    head += [f"times faster, by {figure.title.split(',')[0]}" for figure in FIGURES.values()]
    rows = []
    for name, seeds in variants.items():
        first = next(iter(seeds.values()))
        row = [CLAIM[name].title, ", ".join(map(str, seeds)), first["precision"]]
        row += [f"{mean(r['minutes'] for r in seeds.values()):.2f}", f"{mean(r['steps'] for r in seeds.values()):.0f}"]
        row += [spread(_finals(seeds, key), figure.digits) for key, figure in FIGURES.items()]
        compared = name not in (BASELINE, TENTH) and BASELINE in variants
        row += [times_faster(variants, name, key).shown() if compared else "-" for key in FIGURES]
        rows.append(row)
    return table(head, rows)


def bins_table(variants: dict[str, dict[int, dict]], titles: Callable[[str], str]) -> list[str]:
    """The final losses of held-out pairs in the middle of equal ranges of timesteps."""
    last = next(iter(next(iter(variants.values())).values()))["history"][-1]
    bins = sorted(key for key in last if key.startswith("loss_"))
    head = ["loss at timestep", *(f"{(place + 0.5) * 1000 / len(bins):.0f}" for place in range(len(bins)))]
    rows = [[titles(name), *(f"{mean(_finals(seeds, key)):.3f}" for key in bins)] for name, seeds in variants.items()]
    return table(head, rows)


def samplers_table(variants: dict[str, dict[int, dict]]) -> list[str]:
    """What each sampler reached in the same steps. A shifted schedule's timesteps are others, so it shows no loss."""
    head = ["trained for the same steps", "seeds", "steps", *(figure.title for figure in FIGURES.values())]
    rows = []
    for name, seeds in variants.items():
        row = [SAMPLERS[name].title, ", ".join(map(str, seeds)), str(next(iter(seeds.values()))["steps"])]
        for key, figure in FIGURES.items():
            comparable = key != "loss" or SAMPLERS[name].noise_shift == 1.0
            row.append(spread(_finals(seeds, key), figure.digits) if comparable else "-")
        rows.append(row)
    return table(head, rows)


def claim_words(variants: dict[str, dict[int, dict]]) -> list[str]:
    """Whether the target is reached, and which idea gives what."""
    if BASELINE not in variants or WHOLE not in variants:
        return []
    lines = [_target(variants)] if TENTH in variants else []
    for key, figure in FIGURES.items():
        whole = times_faster(variants, WHOLE, key)
        parts = []
        for name, idea in LEFT_OUT.items():
            if name in variants:
                without = times_faster(variants, name, key)
                parts.append(f"without {idea} {without.shown()}{_given(whole, without)}")
        rest = f"; {'; '.join(parts)}" if parts else ""
        lines.append(f"- By {figure.title.split(',')[0]}, times faster than the baseline: whole {whole.shown()}{rest}.")
    return lines


def _given(whole: Times, without: Times) -> str:
    """By how much an idea changes the time, where both are known."""
    if not (whole.known and without.known):
        return ""
    return f", so it gives {mean(whole.factors) / mean(without.factors):.2f} times"


def _target(variants: dict[str, dict[int, dict]]) -> str:
    """A run of a tenth of the time, with a schedule of its own, against the baseline's end."""
    verdicts = []
    for key, figure in FIGURES.items():
        pairs = [
            (record["history"][-1][key], variants[BASELINE][seed]["history"][-1][key])
            for seed, record in variants[TENTH].items()
            if seed in variants[BASELINE]
        ]
        if pairs:
            ours, theirs = (mean(side) for side in zip(*pairs))
            reached = sum(figure.better(a, b) for a, b in pairs)
            verdicts.append(
                f"{figure.title.split(',')[0]} {ours:.{figure.digits}f} against {theirs:.{figure.digits}f}, as good in "
                f"{reached} of {len(pairs)} seeds"
            )
    return (
        f"- The target is the baseline's quality in 1/{TARGET_TIMES} of its time; the paper claims {PAPERS_TIMES} "
        f"times. A run of a tenth of the time, whose rate falls within it: {'; '.join(verdicts)}."
    )


def tables(records: Sequence[dict]) -> list[str]:
    """All tables with their words, as lines of markdown."""
    claim, samplers = by_variant(records, "claim", list(CLAIM)), by_variant(records, "samplers", list(SAMPLERS))
    lines: list[str] = []
    if claim:
        lines += ["## Time to equal quality", "", *claim_table(claim), "", *claim_words(claim), ""]
        lines += [*bins_table(claim, lambda name: CLAIM[name].title), ""]
    if samplers:
        same = {name: seeds for name, seeds in samplers.items() if SAMPLERS[name].noise_shift == 1.0}
        lines += ["## All samplers of timesteps", "", *samplers_table(samplers), ""]
        lines += [*bins_table(same, lambda name: SAMPLERS[name].title), ""] if same else []
    return lines or ["No run is finished."]


def draw_curves(records: Sequence[dict], picture: Path) -> None:
    """Held-out quality over minutes of training: a line for the mean of a variant's seeds, a band for their spread."""
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import LogLocator, NullFormatter

    drawing = Drawing(figsize=(12, 4), layout="constrained")
    claim = by_variant(records, "claim", list(CLAIM))
    for axes, (key, figure) in zip(drawing.subplots(1, len(FIGURES)), FIGURES.items()):
        for name, seeds in claim.items():
            color = f"C{list(CLAIM).index(name)}"
            curves = list(zip(*(record["history"] for record in seeds.values())))  # measurements, each of all seeds
            minutes = [mean(entry["minutes"] for entry in entries) for entries in curves]
            values = [[entry[key] for entry in entries] for entries in curves]
            line = "*" if len(minutes) == 1 else ".-"
            axes.plot(minutes, [mean(v) for v in values], line, color=color, label=CLAIM[name].title)
            axes.fill_between(minutes, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15)
            if name == BASELINE:
                axes.axhline(mean(values[-1]), color=color, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("minutes of training")
        axes.set_ylabel(f"{figure.title}, held out")
    drawing.axes[0].legend(fontsize="x-small")
    drawing.savefig(picture, dpi=120)


def page(records: Sequence[dict], command: str, size: Size, picture: str | None) -> str:
    """The page of results; `picture`: the plot, seen from the page."""
    machines = sorted({f"{r['machine']}, threads of torch: {r['threads']}" for r in records})
    on_cpu = any(r["fingerprint"]["device"] == "cpu" for r in records)
    clock = "Minutes are the processor's" if on_cpu else "Minutes are the clock's"
    lines = ["# Efficient-3DiM's claim, tested in the world", ""]
    lines += [f"`{command}` on {'; '.join(machines)}. In brackets: the least and the largest of the seeds.", ""]
    lines += [
        "**What is compared.** zero-1-to-3's recipe against Efficient-3DiM's three ideas, together and with each left "
        "out: the Gaussian over timesteps (mean 1000, std 200) in place of uniform ones; mini-dino's patches in "
        "cross-attention and its layers in the down path in place of one pooled CLIP token; 16 bits and a rate that "
        "falls over the last fifth in place of 32 bits and a constant rate. The single token is that of mini-clip's "
        "vision tower, the world's judge: like CLIP it was trained on captions, and it has seen the pairs of kind and "
        "colour that are held out here, which mini-dino has not.",
        "",
        "**What is the same.** mini-novelview's UNet with the same first weights, its autoencoder, noise schedule and "
        f"v-prediction; AdamW at {size.learning_rate:g} after {size.warmup} steps of warm-up; the same pairs "
        f"({size.batch} a step, from {size.pool} objects seen from four cameras each) in the same order; the same null "
        "condition and dropout of conditions; averaged weights. No variant changes the look of what the encoder sees. "
        "The layer normalisation of DINO's features goes with the features.",
        "",
        f"**What is measured.** {size.measured_objects} objects of held-out pairs of kind and colour, "
        f"{size.measured_views} views each, drawn from one picture in {size.sampling_steps} DDIM steps at guidance "
        f"scale 2; and the loss in the middle of {size.bins} equal ranges of timesteps. {clock}; neither measuring nor "
        "encoding the pool, which is done once before, is counted. \"Times faster\" is the baseline's time to its own "
        "final quality over the variant's time to it, on the same pairs, linear between measurements. A rate that "
        "falls helps most at the end, so a curve says less of a shorter run than the run of a tenth of the time does.",
        "",
        "**Beside the paper.** It claims 14 times less time than zero-1-to-3 (arXiv 2310.03015): from 10 days on 8 "
        "A100 to under one. There Stable Diffusion is fine-tuned; here it is mini-sd, of six million parameters, whose "
        "first convolution takes the input view's latent too. The Gaussian leaves low noise to what the model knew "
        "before. The third idea saves time where 16 bits are faster: the steps in the table tell whether they are on "
        "this machine.",
        "",
    ]  # fmt: skip
    lines += [f"![Held-out quality over the minutes of training]({picture})", ""] if picture else []
    return "\n".join([*lines, *tables(records)])
