"""Collects the figures of finished runs of the main job into one table.

    python benchmarks/main_job.py outputs/asd-3dconv/*/ [--write]

Each trial directory gives its seed and guidance (configs/parsed.yaml) and the judge's figures
(save/it*-evaluation/evaluation.json). Means are over the seeds of one guidance. ``--write`` puts the
table into docs/benchmarks/main_job.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from reporting import machine, spread, table, write_report

FIGURES = {
    "r_at_1": "R@1",
    "iou": "IoU",
    "chamfer": "Chamfer",
    "front_back": "front/back",
    "color_error": "colour error",
    "sim": "Sim",
}


def read_trial(folder: Path) -> dict:
    """Seed, guidance, steps and mean figures of a trial. Raises FileNotFoundError for an unfinished one."""
    import yaml

    config = yaml.safe_load((folder / "configs" / "parsed.yaml").read_text())
    evaluations = sorted(folder.glob("save/it*-evaluation/evaluation.json"))
    if not evaluations:
        raise FileNotFoundError(f"{folder}: no save/it*-evaluation/evaluation.json; the run has not ended")
    content = json.loads(evaluations[-1].read_text())
    return {
        "guidance": config["system"]["guidance_type"],
        "guidance_scale": config["system"]["guidance"]["guidance_scale"],
        "seed": config["seed"],
        "steps": config["trainer"]["max_steps"],
        "prompts": len(content["prompts"]),
        "empty_meshes": content["empty_meshes"],
        **{name: content["mean"][name] for name in FIGURES},
    }


def mean_row(trials: list[dict]) -> list[str]:
    seeds = ", ".join(str(trial["seed"]) for trial in trials)
    cells = [spread([trial[name] for trial in trials]) for name in FIGURES]
    empty = sum(trial["empty_meshes"] for trial in trials)
    return [f"{trials[0]['guidance']}, scale {trials[0]['guidance_scale']:g}", seeds, *cells, str(empty)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="+", type=Path, help="trial directories")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/main_job.{md,json}")
    args = parser.parse_args()
    trials = sorted((read_trial(folder) for folder in args.trials), key=lambda t: (t["guidance"], t["seed"]))
    by_guidance: dict[str, list[dict]] = {}
    for trial in trials:
        by_guidance.setdefault(trial["guidance"], []).append(trial)
    head = ["guidance", "seeds", *FIGURES.values(), "empty meshes"]
    text = "\n".join(table(head, [mean_row(group) for group in by_guidance.values()], text_columns=2))
    print(text)
    if args.write:
        command = "python launch.py --config configs/asd-3dconv.yaml --train seed=S [system.guidance_type=G]"
        where = machine(torch.device("cpu"))
        about = f"{trials[0]['prompts']} prompts, {trials[0]['steps']} steps; mean over seeds, their range in brackets."
        page = f"# The main job by method\n\n`{command}` on {where}. {about}\n\n{text}\n"
        write_report("main_job", page, {"command": command, "machine": where, "trials": trials})
    return 0


if __name__ == "__main__":
    sys.exit(main())
