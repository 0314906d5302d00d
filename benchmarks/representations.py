"""Every representation, fitted to exact pictures and distilled from a small teacher, each run from launch to mesh.

    python benchmarks/representations.py --write

Runs launch.py once for each job, one after another, times the whole process, and reads the figures that it leaves. A
finished run in --outputs is not run again. With --write, the table goes to docs/benchmarks/representations.md and
.json, the picture to docs/images/representations.png; of a job that --jobs leaves out, the page keeps the runs that it
has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
from pathlib import Path

from launching import keep_record, launch, record_in
from omegaconf import OmegaConf
from reporting import ROOT, table, write_report

KINDS = ("nerf", "sdf", "dmtet", "gaussians")
TITLES = {"nerf": "NeRF", "sdf": "SDF", "dmtet": "DMTet", "gaussians": "Gaussians"}
CELL = 128  # side of a view in the picture, pixels
FIGURES = {  # of a distilled object, by their names in evaluation.json
    "r_at_1_world": "R@1 of all captions",
    "iou": "IoU",
    "color_error": "colour error",
    "chamfer_share": "Chamfer / size",
    "front_back": "front/back",
    "sim": "Sim",
    "r_at_1": "R@1 of 16 texts",
}
COMMAND = "python benchmarks/representations.py --write"
LIBRARY = ROOT / "custom" / "turboprop" / "world" / "libraries" / "world_16.json"
FIT_CAPTIONS = ("a yellow car with black wheels", "a white snowman with a purple hat", "a blue chair with orange legs")


def run(config: str, overrides: list[str], outputs: Path, threads: int) -> dict:
    """One launch: its seconds by the clock and of the processor, and the figures it left."""
    if (record := record_in(outputs)) is not None:
        return record
    outputs.mkdir(parents=True, exist_ok=True)
    used = _children_seconds()
    arguments = ["--config", f"configs/{config}.yaml", "--train", f"exp_root_dir={outputs}", *overrides]
    code, seconds = launch(arguments, outputs, threads)
    spent = {"seconds": seconds, "cpu_seconds": _children_seconds() - used}
    result = {**spent, "returncode": code, "threads": threads, **_figures(outputs)}
    if code == 0:
        keep_record(outputs, result)
    return result


def _children_seconds() -> float:
    """Processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _figures(outputs: Path) -> dict:
    found: dict = {"meshes": sum(1 for _ in outputs.glob("*/*/save/*-export/*"))}
    for file in outputs.glob("*/*/save/*-evaluation/held_out.json"):
        found["held_out"] = json.loads(file.read_text())
    for file in outputs.glob("*/*/save/*-evaluation/input.json"):
        found["input"] = json.loads(file.read_text())
    for file in outputs.glob("*/*/configs/parsed.yaml"):
        teacher = OmegaConf.select(OmegaConf.load(file), "system.guidance.pretrained_model_name_or_path")
        if teacher:
            found["teacher"] = Path(teacher).name
    for file in outputs.glob("*/*/save/*-evaluation/evaluation.json"):
        found["evaluation"] = json.loads(file.read_text())["mean"]
        found["views"] = str(file.parent / "views.png")
    for folder in outputs.glob("*/*/save/*-test"):
        found["turntable"] = str(folder)
    return found


def fit_table(fits: list[dict]) -> list[str]:
    numbers = ["held-out PSNR (dB)", "on the object (dB)", "IoU", "Chamfer / size", "seconds"]
    header = ["representation", "object", *numbers]
    rows = []
    for run_ in fits:
        h = run_["held_out"]
        psnr = [f"{h['psnr']:.1f}", f"{h['psnr_object']:.1f}"]
        rest = [f"{h['iou']:.3f}", f"{h['chamfer_share']:.4f}", f"{run_['seconds']:.0f}"]
        rows.append([TITLES[run_["kind"]], run_["text"], *psnr, *rest])
    return table(header, rows, 2)


def shown(values: list[float | None], pick=statistics.mean) -> str:
    """The mean, or another statistic, of the values that there are."""
    present = [value for value in values if value is not None]
    return f"{pick(present):.3f}" if present else "-"


def asd_table(distilled: list[dict]) -> list[str]:
    header = ["representation", "prompts", *FIGURES.values(), "lowest IoU", "CPU seconds, mean", "longest"]
    rows = []
    for kind in KINDS:
        runs = [run_ for run_ in distilled if run_["kind"] == kind]
        if not runs:
            continue
        means = [shown([run_["evaluation"].get(name) for run_ in runs]) for name in FIGURES]
        worst = shown([run_["evaluation"]["iou"] for run_ in runs], min)
        seconds = [run_["cpu_seconds"] for run_ in runs]
        spent = [f"{statistics.mean(seconds):.0f}", f"{max(seconds):.0f}"]
        rows.append([TITLES[kind], str(len(runs)), *means, worst, *spent])
    return table(header, rows, 1)


def prompt_table(distilled: list[dict]) -> list[str]:
    found = {(run_["kind"], run_["text"]): run_["evaluation"] for run_ in distilled}
    rows = []
    for prompt in dict.fromkeys(run_["text"] for run_ in distilled):
        cells = [found.get((kind, prompt)) for kind in KINDS]
        rows.append([prompt, *("-" if c is None else f"{c['r_at_1_world']:.3f}, {c['iou']:.3f}" for c in cells)])
    return table(["prompt", *(f"{TITLES[kind]} R@1, IoU" for kind in KINDS)], rows, 1)


def picture(distilled: list[dict], target: Path) -> None:
    """Rows of prompts, columns of representations, four frames a quarter turn apart of each turntable."""
    from PIL import Image, ImageDraw

    results = {(run_["kind"], run_["text"]): run_ for run_ in distilled}
    prompts = list(dict.fromkeys(run_["text"] for run_ in distilled))
    width, label = 4 * CELL, 14
    sheet = Image.new("RGB", (len(KINDS) * (width + 8), label + len(prompts) * (CELL + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(KINDS):
        draw.text((column * (width + 8), 1), TITLES[kind], fill="black")
        for row, prompt in enumerate(prompts):
            top = label + row * (CELL + label)
            if column == 0:
                draw.text((0, top), prompt, fill="black")
            if (kind, prompt) not in results:
                continue
            frames = sorted(Path(results[kind, prompt]["turntable"]).glob("*.png"), key=lambda frame: int(frame.stem))
            for place in range(4):
                with Image.open(frames[place * (len(frames) - 1) // 4]) as frame:  # the last frame is the first again
                    cell = frame.crop((0, 0, frame.height, frame.height)).resize((CELL, CELL), Image.LANCZOS)
                sheet.paste(cell, (column * (width + 8) + place * CELL, top + label))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)


def page(fits: list[dict], distilled: list[dict]) -> str:
    """docs/benchmarks/representations.md."""
    teachers = sorted({run_["teacher"] for run_ in distilled})
    prompts = len({run_["text"] for run_ in distilled})
    lines = ["# Every representation: fitted and distilled", ""]
    if teachers:
        lines += [f"**Teacher of the distilled figures: {', '.join(teachers)}.**", ""]
    lines += [
        f"Each run from launch to the exported mesh, seed 0, on {os.cpu_count()} cores ({platform.machine()}, "
        f"{platform.system()}); threads of each run are in the JSON. Command: `{COMMAND}`.",
        "",
        "## Fitted to exact pictures, 64 px",
        "",
        *fit_table(fits),
        "",
        f"## Distilled by ASD, {prompts} prompts",
        "",
        "R@1 over 8 views, among all 1,530 full captions of the world, and among the 16 texts of world_16. CPU seconds "
        "are those of the whole process.",
        "",
        *asd_table(distilled),
        "",
        "R@1 of all captions and IoU by prompt:",
        "",
        *prompt_table(distilled),
        "",
        "![four views of each result](../images/representations.png)",
        "",
    ]
    return "\n".join(lines)


def kept_runs(job: str) -> list[dict]:
    """The runs of a job that the page has now."""
    runs = json.loads((ROOT / "docs" / "benchmarks" / "representations.json").read_text())["runs"]
    return [run_ for run_ in runs if run_["job"] == job]


def run_jobs(args: argparse.Namespace) -> list[dict]:
    outputs, runs = args.outputs.resolve(), []
    prompts = json.loads(LIBRARY.read_text())["train"][: args.prompts]
    texts = {"fit": FIT_CAPTIONS, "asd": prompts}
    jobs = [(job, kind, text) for job in args.jobs for text in texts[job] for kind in args.kinds]
    for number, (job, kind, text) in enumerate(jobs, 1):
        key = "data.caption" if job == "fit" else "system.prompt_processor.prompt"
        folder = outputs / f"{job}-{kind}" / text.replace(" ", "_")
        result = run(f"{job}-{kind}", [f"{key}={text}"], folder, args.threads)
        figures = result.get("held_out") or result.get("evaluation") or {}
        numbers = {name: round(value, 3) for name, value in figures.items() if isinstance(value, float)}
        spent = f"{result['seconds']:.0f} s, exit {result['returncode']}"
        print(f"[{number}/{len(jobs)}] {job}-{kind} {text}: {spent}, {numbers}", flush=True)
        if result["returncode"] == 0:
            runs.append({"job": job, "kind": kind, "text": text, **result})
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=["fit", "asd"], choices=["fit", "asd"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--prompts", type=int, default=10, help="how many of world_16's prompts are distilled")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-representations"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/representations.* and the picture")
    args = parser.parse_args()
    made = run_jobs(args)
    fits, distilled = (
        [run_ for run_ in made if run_["job"] == job] if job in args.jobs else kept_runs(job) for job in ("fit", "asd")
    )
    runs, text = [*fits, *distilled], page(fits, distilled)
    print(text)
    if args.write:
        pictures = ("views", "turntable")  # paths of this machine
        records = [{key: value for key, value in run_.items() if key not in pictures} for run_ in runs]
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        content = {"command": COMMAND, "machine": machine, "seed": 0, "runs": records}
        write_report("representations", text, content)
        if "asd" in args.jobs and distilled:
            picture(distilled, ROOT / "docs" / "images" / "representations.png")


if __name__ == "__main__":
    main()
