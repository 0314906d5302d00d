"""One picture of each held-out object of the world to a mesh, each run from launch to GLB, measured against the truth.

    python benchmarks/image_to_mesh.py --write

The novel-view model has never seen these pairs of kind and main colour. Runs launch.py once for each job, one after
another, and times the whole process. A finished run in --outputs is not run again. With --write, the table goes to
docs/benchmarks/image_to_mesh.md and .json, the pictures to docs/images/image_to_mesh.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import torch
from PIL import Image
from reporting import ROOT, machine, table, write_report
from representations import TITLES, run

from threestudio.utils.extensions import load_extensions

load_extensions()

from turboprop.evaluation.cameras import evaluation_cameras, exact_layers, exact_pictures, exact_surface  # noqa: E402
from turboprop.fitting.posed_views import world_views  # noqa: E402
from turboprop.novelview.render_world import chosen_specs  # noqa: E402
from turboprop.world.cameras import orbit_c2w  # noqa: E402
from turboprop.world.captions import ObjectSpec, caption  # noqa: E402

CAPTIONED = "-caption"  # ends the kinds that have a second teacher, of the caption that the judge reads
CONFIGS = {
    "nerf": "zero123-dino",
    "gaussians": "zero123-dino-gaussians",
    "dmtet": "zero123-dino-dmtet",
    f"nerf{CAPTIONED}": "magic123-mini",
    f"gaussians{CAPTIONED}": "magic123-mini-gaussians",
    f"dmtet{CAPTIONED}": "magic123-mini-dmtet",
}
PLACE = {"elevation": 15.0, "azimuth": 30.0, "distance": 2.7, "fovy": 40.0}  # of all pictures: degrees, world units
PICTURE_SIZE = 128  # pixels
COMMAND = "python benchmarks/image_to_mesh.py --write"
PLACES = ("views", "turntable")  # of a run's figures, its folders on this machine
TARGETS = {"iou": 0.85, "front_back": 0.95, "input PSNR (dB)": 25.0, "seconds": 240.0}
SHOWN_VIEWS = (0, 1, 2, 4, 6, 7)  # of the 8 of an evaluation, an eighth turn apart


def write_picture(spec: ObjectSpec, path: Path) -> None:
    """The object as RGBA from the place of all pictures."""
    place = (torch.tensor([PLACE[key]]) for key in ("elevation", "azimuth", "distance"))
    views = world_views(spec, orbit_c2w(*place), math.radians(PLACE["fovy"]), PICTURE_SIZE)
    straight = (views.rgb[0] / views.coverage[0].clamp_min(1e-6)).clamp(0, 1)
    pixels = torch.cat([straight, views.coverage[0]], dim=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(path)


def overrides_of(spec: ObjectSpec, picture: Path, kind: str, window: int, model: str) -> list[str]:
    captioned = kind.endswith(CAPTIONED)
    part = "guidance_3d" if captioned else "guidance"
    given = [
        f"data.image_path={picture}",
        f"data.default_elevation_deg={PLACE['elevation']}",
        f"data.default_azimuth_deg={PLACE['azimuth']}",
        f"system.evaluation.caption={caption(spec)}",
        *([f"system.{part}.pretrained_model_name_or_path={model}"] if model else []),
        *(["system.prompt_processor.prompt=auto"] if captioned else []),
    ]
    if window:
        base = "magic123-system" if captioned else "zero123-system"
        mixins = "turboprop-gaussian-training,turboprop-evaluated" if "gaussians" in kind else "turboprop-evaluated"
        given += [f"system_type={base}:picard,{mixins}", f"system.picard.window={window}"]
    return given


def mean_figures(results: list[dict]) -> dict[str, float]:
    """Means over the objects; nan where no run has the figure."""

    def mean(values: list) -> float:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else math.nan

    figures = {
        name: mean([r["evaluation"].get(name) for r in results])
        for name in ("iou", "front_back", "color_error", "chamfer_share")
    }
    figures["input PSNR (dB)"] = mean([r["input"]["psnr"] for r in results])
    figures["seconds"] = mean([r["seconds"] for r in results])
    figures["CPU seconds"] = mean([r["cpu_seconds"] for r in results])
    return figures


def title(kind: str) -> str:
    base = TITLES[kind.removesuffix(CAPTIONED)]
    return f"{base}, with the caption" if kind.endswith(CAPTIONED) else base


def kinds_table(results: dict[str, list[dict]]) -> list[str]:
    names = ("iou", "front_back", "input PSNR (dB)", "color_error", "chamfer_share", "seconds", "CPU seconds")
    rows = []
    for kind, runs in results.items():
        figures = mean_figures(runs)
        rows.append([title(kind), str(len(runs)), *(f"{figures[name]:.3f}" for name in names)])
    rows.append(["target", "10", *(f"{TARGETS[name]:g}" if name in TARGETS else "" for name in names)])
    return table(["", "objects", *names], rows)


def captions_read(outputs: Path, kind: str, specs: list[ObjectSpec]) -> int:
    """Of how many objects the right caption was read."""
    texts = [caption(spec) for spec in specs]
    files = [next((outputs / kind / text.replace(" ", "_")).glob("*/*/save/caption.json"), None) for text in texts]
    return sum(json.loads(f.read_text())["captions"][0] == text for f, text in zip(files, texts) if f is not None)


def words_on_captions(outputs: Path, kinds: list[str], specs: list[ObjectSpec]) -> list[str]:
    """What rows with a caption are, where there are some."""
    read = [captions_read(outputs, kind, specs) for kind in kinds if kind.endswith(CAPTIONED)]
    if not read:
        return []
    return [
        "Rows with the caption have a second teacher, mini-mv, which is told the caption and the camera; the caption "
        f"was read from the picture (`system.prompt_processor.prompt=auto`), of {min(read)} of {len(specs)} pictures "
        "the right one. All runs are told from where the picture was taken.",
        "",
    ]


def truth_row(spec: ObjectSpec, size: int) -> list[Image.Image]:
    """The exact object from the shown views."""
    cameras = evaluation_cameras()
    layers = exact_layers(exact_surface(spec.shape, cameras, size))
    pictures, _ = exact_pictures(spec, layers, cameras.background)
    return [Image.fromarray((pictures[view] * 255).round().to(torch.uint8).numpy()) for view in SHOWN_VIEWS]


def page(specs: list[ObjectSpec], pictures: list[Path], results: dict[str, dict[str, dict]], target: Path) -> None:
    """For each object its picture, then a row of six views of each result, and of the truth."""
    side = 64
    rows = len(results) + 1
    sheet = Image.new("RGB", ((1 + len(SHOWN_VIEWS)) * side, len(specs) * (rows * side + 8)), "white")
    for number, (spec, picture) in enumerate(zip(specs, pictures)):
        top = number * (rows * side + 8)
        with Image.open(picture) as image:
            small = image.resize((side, side))
            sheet.paste(small, (0, top), small)
        for row, runs in enumerate(results.values()):
            if (record := runs.get(caption(spec))) is None:
                continue
            with Image.open(record["views"]) as views:
                for place, view in enumerate(SHOWN_VIEWS, 1):
                    cell = views.crop((view * side, 0, (view + 1) * side, side))
                    sheet.paste(cell, (place * side, top + row * side))
        for place, cell in enumerate(truth_row(spec, side), 1):
            sheet.paste(cell, (place * side, top + (rows - 1) * side))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--objects", type=int, default=10, help="how many held-out objects")
    parser.add_argument("--window", type=int, default=0, help="Picard iterations in windows of so many steps; 0: none")
    parser.add_argument("--model", default="", help="another novel-view model than the configs'")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-image-to-mesh"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/image_to_mesh.* and the pictures")
    args = parser.parse_args()
    outputs = args.outputs.resolve() / (f"window-{args.window}" if args.window else "plain")
    specs = chosen_specs("only", args.objects, 0)
    pictures = [outputs / "pictures" / f"{caption(spec).replace(' ', '_')}.png" for spec in specs]
    results: dict[str, dict[str, dict]] = {kind: {} for kind in args.kinds}
    for spec, picture in zip(specs, pictures):
        write_picture(spec, picture)
        for kind in args.kinds:
            given = overrides_of(spec, picture, kind, args.window, args.model)
            record = run(CONFIGS[kind], given, outputs / kind / picture.stem, args.threads)
            print(f"{kind} {caption(spec)}: {record['seconds']:.0f} s, exit {record['returncode']}", flush=True)
            if record["returncode"] == 0:
                results[kind][caption(spec)] = record
    finished = {kind: list(runs.values()) for kind, runs in results.items() if runs}
    name = f"image_to_mesh_window_{args.window}" if args.window else "image_to_mesh"
    command = COMMAND + (f" --kinds {' '.join(args.kinds)}" if args.kinds != list(CONFIGS) else "")
    command += f" --window {args.window}" if args.window else ""
    windows = f", in Picard windows of {args.window}" if args.window else ""
    text = [
        "# One picture to a mesh",
        "",
        f"Objects whose kind and main colour the novel-view model has not seen, from one picture each{windows}; "
        f"seed 0, each run from launch to GLB on {args.threads} threads ({machine(torch.device('cpu'))}). Figures are "
        "means over objects, over 8 views around each. Seconds are the clock's, of a machine that may have had other "
        f"work; CPU seconds are the run's own. Command: `{command}`.",
        "",
        *kinds_table(finished),
        "",
        *words_on_captions(outputs, list(finished), specs),
        f"![the picture; rows of six views of each result, the last row the truth](../images/{name}.png)",
        "",
    ]
    print("\n".join(text))
    if args.write:
        records = {
            kind: {text: {k: v for k, v in r.items() if k not in PLACES} for text, r in runs.items()}
            for kind, runs in results.items()
        }
        report = {"command": command, "place": PLACE}
        write_report(name, "\n".join(text), {**report, "runs": records})
        page(specs, pictures, results, ROOT / "docs" / "images" / f"{name}.png")


if __name__ == "__main__":
    main()
