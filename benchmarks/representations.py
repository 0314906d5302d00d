"""Every representation, fitted to exact pictures and distilled from the small teacher, each run from launch to mesh.

    python benchmarks/representations.py --write

Runs launch.py once for each job, one after another, times the whole process, and reads the figures that it leaves. A
finished run in --outputs is not run again. With --write, the table goes to docs/benchmarks/representations.md and .json,
the picture to docs/images/representations.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("nerf", "sdf", "dmtet", "gaussians")
TITLES = {"nerf": "NeRF", "sdf": "SDF", "dmtet": "DMTet", "gaussians": "Gaussians"}
LIBRARY = ROOT / "custom" / "turboprop" / "world" / "libraries" / "world_16.json"
FIT_CAPTIONS = ("a yellow car with black wheels", "a white snowman with a purple hat", "a blue chair with orange legs")


def run(config: str, overrides: list[str], outputs: Path, threads: int) -> dict:
    """One launch: its wall clock in seconds, its trial folder and the figures it left."""
    record = outputs / "run.json"
    if record.is_file():
        return json.loads(record.read_text())
    outputs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "launch.py", "--config", f"configs/{config}.yaml", "--train", f"exp_root_dir={outputs}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with open(outputs / "log.txt", "w") as log:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    result = {"seconds": time.perf_counter() - begin, "returncode": code, "threads": threads, **_figures(outputs)}
    if code == 0:
        record.write_text(json.dumps(result, indent=1))
    return result


def _figures(outputs: Path) -> dict:
    found: dict = {"meshes": sum(1 for _ in outputs.glob("*/*/save/*-export/*"))}
    for file in outputs.glob("*/*/save/*-evaluation/held_out.json"):
        found["held_out"] = json.loads(file.read_text())
    for file in outputs.glob("*/*/save/*-evaluation/input.json"):
        found["input"] = json.loads(file.read_text())
    for file in outputs.glob("*/*/save/*-evaluation/evaluation.json"):
        found["evaluation"] = json.loads(file.read_text())["mean"]
        found["views"] = str(file.parent / "views.png")
    return found


def fit_table(results: dict) -> list[str]:
    lines = ["| representation | object | held-out PSNR (dB) | on the object (dB) | IoU | Chamfer / size | seconds |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for (kind, caption), r in results.items():
        h = r["held_out"]
        lines.append(
            f"| {TITLES[kind]} | {caption} | {h['psnr']:.1f} | {h['psnr_object']:.1f} | {h['iou']:.3f} | {h['chamfer_share']:.4f} | {r['seconds']:.0f} |"
        )
    return lines


def asd_table(results: dict) -> list[str]:
    lines = ["| representation | prompts with R@1 = 1 | R@1 | Sim | IoU | Chamfer / size | colour error | seconds, mean | longest |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for kind in KINDS:
        runs = [r for (k, _), r in results.items() if k == kind]
        if not runs:
            continue

        def mean(name: str, runs: list[dict] = runs) -> str:
            values = [r["evaluation"][name] for r in runs if r["evaluation"].get(name) is not None]
            return f"{sum(values) / len(values):.3f}" if values else "-"

        whole = sum(r["evaluation"]["r_at_1"] == 1.0 for r in runs)
        seconds = [r["seconds"] for r in runs]
        lines.append(
            f"| {TITLES[kind]} | {whole} of {len(runs)} | {mean('r_at_1')} | {mean('sim')} | {mean('iou')} | {mean('chamfer_share')} "
            f"| {mean('color_error')} | {sum(seconds) / len(seconds):.0f} | {max(seconds):.0f} |"
        )
    return lines


def prompt_table(results: dict) -> list[str]:
    prompts = list(dict.fromkeys(prompt for _, prompt in results))
    lines = ["| prompt | " + " | ".join(f"{TITLES[k]} R@1, IoU" for k in KINDS) + " |", "| --- |" + " ---: |" * len(KINDS)]
    for prompt in prompts:
        cells = []
        for kind in KINDS:
            r = results.get((kind, prompt))
            cells.append("-" if r is None else f"{r['evaluation']['r_at_1']:.3f}, {r['evaluation']['iou']:.3f}")
        lines.append(f"| {prompt} | " + " | ".join(cells) + " |")
    return lines


def picture(results: dict, target: Path) -> None:
    """Rows of prompts, columns of representations, four views of each."""
    from PIL import Image, ImageDraw

    prompts = list(dict.fromkeys(prompt for _, prompt in results))
    with Image.open(next(iter(results.values()))["views"]) as first:
        side = first.height
    width, label = 4 * side, 14
    sheet = Image.new("RGB", (len(KINDS) * (width + 8), label + len(prompts) * (side + label)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(KINDS):
        draw.text((column * (width + 8), 1), TITLES[kind], fill="black")
        for row, prompt in enumerate(prompts):
            top = label + row * (side + label)
            if column == 0:
                draw.text((0, top), prompt, fill="black")
            r = results.get((kind, prompt))
            if r is None:
                continue
            with Image.open(r["views"]) as views:
                for place, view in enumerate((0, 2, 4, 6)):
                    cell = views.crop((view * side, 0, (view + 1) * side, side))
                    sheet.paste(cell, (column * (width + 8) + place * side, top + label))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", default=["fit", "asd"], choices=["fit", "asd"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--prompts", type=int, default=10, help="how many of world_16's prompts are distilled")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-representations"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/representations.* and the picture")
    args = parser.parse_args()
    outputs = args.outputs.resolve()
    fits, distilled = {}, {}
    prompts = json.loads(LIBRARY.read_text())["train"][: args.prompts]
    jobs = [("fit", kind, caption) for caption in FIT_CAPTIONS for kind in args.kinds] if "fit" in args.jobs else []
    jobs += [("asd", kind, prompt) for prompt in prompts for kind in args.kinds] if "asd" in args.jobs else []
    for number, (job, kind, text) in enumerate(jobs, 1):
        key = "data.caption" if job == "fit" else "system.prompt_processor.prompt"
        result = run(f"{job}-{kind}", [f"{key}={text}"], outputs / f"{job}-{kind}" / text.replace(" ", "_"), args.threads)
        figures = result.get("held_out") or result.get("evaluation") or {}
        shown = {name: round(value, 3) for name, value in figures.items() if isinstance(value, float)}
        print(f"[{number}/{len(jobs)}] {job}-{kind} {text}: {result['seconds']:.0f} s, exit {result['returncode']}, {shown}", flush=True)
        if result["returncode"] == 0:
            (fits if job == "fit" else distilled)[kind, text] = result
    text = [
        "# Every representation: fitted and distilled",
        "",
        f"Each run from launch to the exported mesh, seed 0, on {os.cpu_count()} cores ({platform.machine()}, {platform.system()}); "
        "threads of each run are in the JSON. Command: `python benchmarks/representations.py --write`.",
        "",
        "## Fitted to exact pictures, 64 px",
        "",
        *fit_table(fits),
        "",
        f"## Distilled by ASD from the small teacher, 32 px, {len(prompts)} prompts",
        "",
        "R@1 over 8 views among the 16 texts of world_16.",
        "",
        *asd_table(distilled),
        "",
        *prompt_table(distilled),
        "",
        "![four views of each result](../images/representations.png)",
        "",
    ]
    print("\n".join(text))
    if args.write:
        folder = ROOT / "docs" / "benchmarks"
        (folder / "representations.md").write_text("\n".join(text))
        records = [{"job": job, "kind": kind, "text": t, **{k: v for k, v in r.items() if k != "views"}} for job, rs in (("fit", fits), ("asd", distilled)) for (kind, t), r in rs.items()]
        content = {"command": "python benchmarks/representations.py --write", "machine": f"{os.cpu_count()} cores, {platform.machine()}", "seed": 0, "runs": records}
        (folder / "representations.json").write_text(json.dumps(content, indent=1) + "\n")
        if distilled:
            picture(distilled, ROOT / "docs" / "images" / "representations.png")


if __name__ == "__main__":
    main()
