"""The figures of docs/picard.md and docs/notes/picard.md, drawn from runs of benchmarks/picard.py.

python benchmarks/picard_figures.py --outputs outputs/benchmark-picard --write
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STYLES = {  # job: label, color, line; longer runs of a representation have its color
    f"{job}-{label.lower()}": (f"{label}{longer}", f"C{place}", line)
    for job, longer, line in (("asd", "", "o-"), ("longer", ", longer run", "s--"))
    for place, label in enumerate(("NeRF", "SDF", "DMTet", "Gaussians"))
}


def draw_rounds(table: Path, picture: Path, rounds: int = 24) -> None:
    """The first rounds of a run, one above the other: which steps' gradients were computed, and which accepted."""
    from matplotlib.figure import Figure

    with table.open() as file:
        every = [{name: int(row[name]) for name in ("step", "window", "stride")} for row in csv.DictReader(file)]
    rows = every[:rounds]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    kinds = (
        ("window", "0.8", "computed at a guess, not accepted"),
        ("stride", "tab:blue", "accepted"),
        ("base", "tab:orange", "computed at the state itself"),
    )
    starts, places = [row["step"] for row in rows], list(range(len(rows)))
    for name, color, label in kinds:  # each over the one before
        axes.barh(places, [row.get(name, 1) for row in rows], left=starts, height=0.8, color=color, label=label)
    axes.invert_yaxis()
    axes.set_xlabel("training step")
    axes.set_ylabel("round")
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(picture, dpi=120)


def draw_distances(rows: list[dict], picture: Path) -> None:
    """For each representation: mean stride by window, and how much nearer to step by step than another seed is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for job, (label, color, line) in STYLES.items():
        fixed = [row for row in rows if row["job"] == job and row["rule"] == "fixed"]
        windows = sorted({row["window"] for row in fixed})
        seeds = [row["psnr_to_sequential"] for row in rows if row["job"] == job and row["rule"] == "another seed"]
        if not windows or not seeds:
            continue
        of = {window: [row for row in fixed if row["window"] == window] for window in windows}
        strides = [sum(row["stride"] for row in of[window]) / len(of[window]) for window in windows]
        nearer = [
            sum(row["psnr_to_sequential"] for row in of[window]) / len(of[window]) - sum(seeds) / len(seeds)
            for window in windows
        ]
        left.plot(windows, strides, line, color=color, label=label)
        right.plot(windows, nearer, line, color=color, label=label)
    left.plot([1, 32], [1, 32], color="0.7", linestyle=":", label="all accepted")
    left.set_ylabel("mean stride")
    right.axhline(10, color="0.7", linestyle=":")
    right.set_ylabel("nearer than another seed (dB)")
    for axes in (left, right):
        axes.set_xlabel("window")
    left.legend(fontsize="small")
    figure.savefig(picture, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-picard"))
    parser.add_argument("--run", default="asd-nerf/seed0/window7-fixed-3", help="whose rounds are drawn")
    parser.add_argument("--write", action="store_true", help="into docs/images, else beside the runs")
    args = parser.parse_args()
    folder = ROOT / "docs" / "images" if args.write else args.outputs
    (table,) = (args.outputs / args.run).glob("*/*/save/picard.csv")
    draw_rounds(table, folder / "picard_rounds.png")
    report = ROOT / "docs" / "benchmarks" / "picard.json"
    draw_distances(json.loads(report.read_text())["rows"], folder / "picard_windows.png")


if __name__ == "__main__":
    main()
