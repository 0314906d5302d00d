"""The three prompt-amortized generators on the same sixteen prompts, each run from launch to its meshes.

    python benchmarks/generators.py --seeds 0 1 2 --write

Runs launch.py once for each generator and seed, one after another. A finished run in --outputs is not run again. With
--write, the table goes to docs/benchmarks/generators.md and .json, contact sheets of the first seed to docs/images.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import torch
from PIL import Image
from reporting import ROOT, machine, spread, table, write_report
from representations import FIGURES, run

GENERATORS = {
    "3dconv": ("3DConv-net", "asd-3dconv"),
    "hyper-ingp": ("Hyper-iNGP", "asd-hyper-ingp"),
    "triplane": ("Triplane-Transformer", "asd-triplane"),
}
SHOWN = [name for name in FIGURES if name != "r_at_1"]


def trained(folder: Path) -> dict[str, int]:
    """Parameters of the generator, and steps of its training."""
    (checkpoint,) = folder.glob("*/*/ckpts/last.ckpt")
    content = torch.load(checkpoint, weights_only=True, map_location="cpu")
    sizes = (value.numel() for key, value in content["state_dict"].items() if key.startswith("geometry."))
    return {"parameters": sum(sizes), "steps": content["global_step"]}


def generators_table(results: dict[str, dict[int, dict]]) -> list[str]:
    rows = []
    for name, seeds in results.items():
        runs = list(seeds.values())
        figures = [spread([r["evaluation"][figure] for r in runs]) for figure in SHOWN]
        millions = f"{runs[0]['parameters'] / 1e6:.2f}"
        seconds = f"{sum(r['cpu_seconds'] for r in runs) / len(runs):.0f}"
        seeds_ = ", ".join(map(str, seeds))
        rows.append([GENERATORS[name][0], seeds_, millions, str(runs[0]["steps"]), *figures, seconds])
    names = (FIGURES[figure] for figure in SHOWN)
    return table(["generator", "seeds", "parameters, millions", "steps", *names, "CPU seconds"], rows, 2)


def sheet_of(folder: Path) -> Path:
    """The run's own contact sheet."""
    (sheet,) = folder.glob("*/*/save/it*-test.png")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS), choices=GENERATORS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-generators"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/generators.* and the pictures")
    args = parser.parse_args()
    results: dict[str, dict[int, dict]] = {}
    for seed in args.seeds:
        for name in args.generators:
            folder = args.outputs.resolve() / f"{name}-{seed}"
            record = run(GENERATORS[name][1], [f"seed={seed}"], folder, args.threads)
            print(f"{name}, seed {seed}: {record['cpu_seconds']:.0f} CPU s, exit {record['returncode']}", flush=True)
            if record["returncode"] == 0:
                record = {**record, **trained(folder)}
                results.setdefault(name, {})[seed] = record
    where = f"{machine(torch.device('cpu'))}, {args.threads} threads a run"
    command = "python " + shlex.join(["benchmarks/generators.py", *(a for a in sys.argv[1:] if a != "--write")])
    images = {name: f"generators_{name}.png" for name in results}
    text = [
        "# The three generators",
        "",
        f"`{command} --write` on {where}. Sixteen prompts, mini-mv, asynchronous score distillation. Means "
        "over the prompts; of several seeds, in brackets, the extremes.",
        "",
        *generators_table(results),
        "",
        *(f"![{GENERATORS[name][0]}](../images/{image})" for name, image in images.items()),
        "",
    ]
    print("\n".join(text))
    if args.write:
        places = ("views", "turntable")  # on this machine
        kept = {
            name: {
                seed: {key: value for key, value in record.items() if key not in places} for seed, record in of.items()
            }
            for name, of in results.items()
        }
        write_report("generators", "\n".join(text), {"command": command, "runs": kept})
        for name, image in images.items():
            with Image.open(sheet_of(args.outputs.resolve() / f"{name}-{min(results[name])}")) as sheet:
                sheet.resize((sheet.width // 2, sheet.height // 2)).save(ROOT / "docs" / "images" / image)


if __name__ == "__main__":
    main()
