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
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from reporting import ROOT, machine, table, write_report
from representations import TITLES, run

from threestudio.utils.extensions import load_extensions

load_extensions()

from turboprop.evaluation.cameras import evaluation_cameras, exact_layers, exact_pictures, exact_surface  # noqa: E402
from turboprop.fitting.posed_views import world_views  # noqa: E402
from turboprop.novelview.render_world import chosen_specs  # noqa: E402
from turboprop.world.cameras import orbit_c2w  # noqa: E402
from turboprop.world.captions import ObjectSpec, caption, parse_caption  # noqa: E402

CAPTIONED = "-caption"  # ends the kinds that have a second teacher, of the caption that the judge reads
ALONE = "-alone"  # ends the kinds that have a second teacher and are given nothing but the picture
CONFIGS = {
    "nerf": "zero123-dino",
    "gaussians": "zero123-dino-gaussians",
    "dmtet": "zero123-dino-dmtet",
    f"nerf{CAPTIONED}": "magic123-mini",
    f"gaussians{CAPTIONED}": "magic123-mini-gaussians",
    f"dmtet{CAPTIONED}": "magic123-mini-dmtet",
    f"nerf{ALONE}": "magic123-mini",
    f"gaussians{ALONE}": "magic123-mini-gaussians",
    f"dmtet{ALONE}": "magic123-mini-dmtet",
}
PLACE = {"elevation": 15.0, "azimuth": 30.0, "distance": 2.7, "fovy": 40.0}  # of all pictures: degrees, world units
PICTURE_SIZE = 128  # pixels
COMMAND = "python benchmarks/image_to_mesh.py --write"
PLACES = ("views", "turntable")  # of a run's figures, its folders on this machine
TARGETS = {"iou": 0.85, "front_back": 0.95, "input PSNR (dB)": 25.0, "seconds": 240.0}
SHOWN_VIEWS = (0, 1, 2, 4, 6, 7)  # of the 8 of an evaluation, an eighth turn apart
FIGURES = ("iou", "front_back", "input PSNR (dB)", "color_error", "chamfer_share", "seconds", "CPU seconds")


def write_picture(spec: ObjectSpec, path: Path) -> None:
    """The object as RGBA from the place of all pictures."""
    place = (torch.tensor([PLACE[key]]) for key in ("elevation", "azimuth", "distance"))
    views = world_views(spec, orbit_c2w(*place), math.radians(PLACE["fovy"]), PICTURE_SIZE)
    straight = (views.rgb[0] / views.coverage[0].clamp_min(1e-6)).clamp(0, 1)
    pixels = torch.cat([straight, views.coverage[0]], dim=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(path)


def has_two_teachers(kind: str) -> bool:
    return kind.endswith((CAPTIONED, ALONE))


def overrides_of(spec: ObjectSpec, picture: Path, kind: str, seed: int, window: int, model: str) -> list[str]:
    two = has_two_teachers(kind)
    part = "guidance_3d" if two else "guidance"
    place = [f"data.default_{angle}_deg={PLACE[angle]}" for angle in ("elevation", "azimuth")]
    given = [
        f"data.image_path={picture}",
        *([] if kind.endswith(ALONE) else place),
        f"system.evaluation.caption={caption(spec)}",  # training does not see it
        f"seed={seed}",
        *([f"system.{part}.pretrained_model_name_or_path={model}"] if model else []),
    ]
    if window:
        base = "magic123-system" if two else "zero123-system"
        mixins = "turboprop-gaussian-training,turboprop-evaluated" if "gaussians" in kind else "turboprop-evaluated"
        given += [f"system_type={base}:picard,{mixins}", f"system.picard.window={window}"]
    return given


def figures_of(run_: dict) -> dict[str, float | None]:
    """A run's figures by their names in the table; None where it has not got one."""
    judged = {name: run_["evaluation"].get(name) for name in FIGURES[:2] + FIGURES[3:5]}
    spent = {"seconds": run_["seconds"], "CPU seconds": run_["cpu_seconds"]}
    return {**judged, "input PSNR (dB)": run_["input"]["psnr"], **spent}


def shown_means(runs: list[dict]) -> list[str]:
    """The mean of each figure over runs; nan where no run has it."""
    found = [figures_of(run_) for run_ in runs]
    known = [[figures[name] for figures in found if figures[name] is not None] for name in FIGURES]
    return [f"{statistics.mean(values) if values else math.nan:.3f}" for values in known]


def title(kind: str) -> str:
    base = TITLES[kind.split("-")[0]]
    more = {CAPTIONED: ", with the caption", ALONE: ", picture alone"}
    return base + next((words for ending, words in more.items() if kind.endswith(ending)), "")


def by_kind(runs: list[dict]) -> dict[str, list[dict]]:
    return {kind: found for kind in CONFIGS if (found := [run_ for run_ in runs if run_["kind"] == kind])}


def kinds_table(runs: list[dict]) -> list[str]:
    """A row for each kind of seed 0."""
    rows = [[title(kind), str(len(found)), *shown_means(found)] for kind, found in by_kind(runs).items()]
    rows.append(["target", "10", *(f"{TARGETS[name]:g}" if name in TARGETS else "" for name in FIGURES)])
    return table(["", "objects", *FIGURES], rows)


def seeds_table(runs: list[dict]) -> list[str]:
    """For kinds with more than one seed, a row for each seed, over the objects that all of the kind's seeds have."""
    rows = []
    for kind, found in by_kind(runs).items():
        texts = {seed: {r["object"] for r in found if r["seed"] == seed} for seed in sorted({r["seed"] for r in found})}
        common = set.intersection(*texts.values())
        if len(texts) > 1 and common:
            for seed in texts:
                chosen = [run_ for run_ in found if run_["seed"] == seed and run_["object"] in common]
                rows.append([title(kind), str(seed), str(len(common)), *shown_means(chosen)])
    return table(["", "seed", "objects", *FIGURES], rows, 1) if rows else []


def with_recorded(runs: list[dict], name: str) -> list[dict]:
    """The runs, and those of the written page that are none of them."""
    file = ROOT / "docs" / "benchmarks" / f"{name}.json"
    recorded = json.loads(file.read_text())["runs"] if file.is_file() else []
    known = {(run_["kind"], run_["object"], run_["seed"]) for run_ in runs}
    return [run_ for run_ in recorded if (run_["kind"], run_["object"], run_["seed"]) not in known] + runs


def caption_read(folder: Path) -> str | None:
    """The caption that a run read from its picture; None without a second teacher."""
    files = list(folder.glob("*/*/save/caption.json"))
    return json.loads(files[0].read_text())["captions"][0] if files else None


def place_found(folder: Path) -> list[float] | None:
    """The elevation and azimuth that a run found for its picture, in degrees; None where they were given."""
    files = list(folder.glob("*/*/save/place.json"))
    return [json.loads(files[0].read_text())[f"{angle}_deg"] for angle in ("elevation", "azimuth")] if files else None


def words_on_captions(runs: list[dict]) -> list[str]:
    """What rows with a caption are, where there are some."""
    read = [run_ for run_ in runs if has_two_teachers(run_["kind"])]
    if not read:
        return []
    right = sum(run_["caption_read"] == run_["object"] for run_ in read)
    words = (
        "Rows with the caption, and of the picture alone, have a second teacher, mini-mv, which is told the caption "
        "and the camera; the caption "
        f"was read from the picture (`system.prompt_processor.prompt=auto`), in {right} of {len(read)} runs the right "
        "one. "
    )
    found = [run_ for run_ in read if run_.get("place_found")]
    if not found:
        return [words + "All runs are told from where the picture was taken.", ""]
    raised = [abs(run_["place_found"][0] - PLACE["elevation"]) for run_ in found]
    turned = [
        abs((run_["place_found"][1] - PLACE["azimuth"] + 180) % 360 - 180)
        for run_ in found
        if parse_caption(run_["object"]).shape.has_front
    ]
    words += (
        f"Rows of the picture alone are given nothing else, no place either: over {len(found)} runs the elevation was "
        f"off by {statistics.mean(raised):.1f} degrees on average and by {max(raised):.1f} at most. "
    )
    if turned:
        words += (
            f"Of the {len(turned)} whose object has a front the azimuth was off by {statistics.mean(turned):.1f} "
            f"and {max(turned):.1f}. "
        )
    words += "All other runs are told from where the picture was taken."
    return [words, ""]


def truth_row(spec: ObjectSpec, size: int) -> list[Image.Image]:
    """The exact object from the shown views."""
    cameras = evaluation_cameras()
    layers = exact_layers(exact_surface(spec.shape, cameras, size))
    pictures, _ = exact_pictures(spec, layers, cameras.background)
    return [Image.fromarray((pictures[view] * 255).round().to(torch.uint8).numpy()) for view in SHOWN_VIEWS]


def sheet(specs: list[ObjectSpec], pictures: list[Path], runs: list[dict], target: Path) -> None:
    """A block for each object, two beside each other: its picture, a row of six views of each result, and the truth."""
    side, label, line, gap = 64, 204, 14, 12
    kinds = by_kind(runs)
    names = [*(title(kind) for kind in kinds), "the truth"]
    width, height = label + len(SHOWN_VIEWS) * side + gap, line + len(names) * side + gap
    image = Image.new("RGB", (2 * width, math.ceil(len(specs) / 2) * height), "white")
    draw = ImageDraw.Draw(image)
    for number, (spec, picture) in enumerate(zip(specs, pictures)):
        left, top = number % 2 * width, number // 2 * height
        draw.text((left, top), caption(spec), "black")
        top += line
        with Image.open(picture) as given:
            small = given.resize((side, side))
            image.paste(small, (left, top), small)
        strips = [{run_["object"]: run_["views"] for run_ in found}.get(caption(spec)) for found in kinds.values()]
        rows = [view_cells(strip, side) if strip else [] for strip in strips] + [truth_row(spec, side)]
        for row, (name, cells) in enumerate(zip(names, rows)):
            draw.text((left + side + 6, top + row * side + (side - line) // 2), name, "black")
            for place, cell in enumerate(cells):
                image.paste(cell, (left + label + place * side, top + row * side))
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)


def view_cells(strip: str, side: int) -> list[Image.Image]:
    """The shown ones of the eight views that a run's strip of pictures has."""
    with Image.open(strip) as views:
        return [views.crop((view * side, 0, (view + 1) * side, side)) for view in SHOWN_VIEWS]


def page_text(runs: list[dict], window: int, commands: list[str], pictures: list[str]) -> str:
    """The page of all runs; `pictures` are names in docs/images."""
    windows = f", in Picard windows of {window}" if window else ""
    more = seeds_table(runs)
    lines = [
        "# One picture to a mesh",
        "",
        f"Objects whose kind and main colour the novel-view model has not seen, from one picture each{windows}; "
        f"each run from launch to GLB on {', '.join(sorted({str(r['threads']) for r in runs}))} threads "
        f"({machine(torch.device('cpu'))}). Figures are means over objects, over 8 views around each. Seconds are the "
        "clock's, of a machine that may have had other work; CPU seconds are the run's own. "
        f"Commands: {', '.join(f'`{command}`' for command in commands)}.",
        "",
        "Seed 0:",
        "",
        *kinds_table([run_ for run_ in runs if run_["seed"] == 0]),
        "",
        *(["Seeds, over the objects that all seeds of a row's kind have:", "", *more, ""] if more else []),
        *words_on_captions(runs),
    ]
    for name in pictures:
        lines += [f"![each object's picture; rows of six views of each result, and of the truth](../images/{name})", ""]
    return "\n".join(lines)


def finished_runs(
    args: argparse.Namespace, specs: list[ObjectSpec], pictures: list[Path], outputs: Path
) -> Iterator[dict]:
    """Runs what is missing, seed by seed; what failed is left out."""
    for seed in args.seeds:
        for spec, picture in zip(specs, pictures):
            write_picture(spec, picture)
            for kind in args.kinds:
                folder = outputs / kind / picture.stem / (f"seed-{seed}" if seed else "")
                given = overrides_of(spec, picture, kind, seed, args.window, args.model)
                record = run(CONFIGS[kind], given, folder, args.threads)
                ended = f"{record['seconds']:.0f} s, exit {record['returncode']}"
                print(f"{kind} {caption(spec)}, seed {seed}: {ended}", flush=True)
                if record["returncode"] == 0:
                    found = {"caption_read": caption_read(folder), "place_found": place_found(folder)}
                    yield {"kind": kind, "object": caption(spec), "seed": seed, **found, **record}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--objects", type=int, default=10, help="how many held-out objects")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--window", type=int, default=0, help="Picard iterations in windows of so many steps; 0: none")
    parser.add_argument("--model", default="", help="another novel-view model than the configs'")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-image-to-mesh"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/image_to_mesh.* and the pictures")
    return parser.parse_args()


def command_of(args: argparse.Namespace) -> str:
    given = [COMMAND]
    given += [f"--kinds {' '.join(args.kinds)}"] if args.kinds != list(CONFIGS) else []
    given += [f"--objects {args.objects}"] if args.objects != 10 else []
    given += [f"--seeds {' '.join(map(str, args.seeds))}"] if args.seeds != [0] else []
    given += [f"--window {args.window}"] if args.window else []
    return " ".join(given)


def main() -> None:
    args = parse()
    outputs = args.outputs.resolve() / (f"window-{args.window}" if args.window else "plain")
    specs = chosen_specs("only", args.objects, 0)
    pictures = [outputs / "pictures" / f"{caption(spec).replace(' ', '_')}.png" for spec in specs]
    runs = list(finished_runs(args, specs, pictures, outputs))
    name = f"image_to_mesh_window_{args.window}" if args.window else "image_to_mesh"
    records = with_recorded([{k: v for k, v in run_.items() if k not in PLACES} for run_ in runs], name)
    file = ROOT / "docs" / "benchmarks" / f"{name}.json"
    before = json.loads(file.read_text()) if file.is_file() else {"commands": [], "pictures": []}
    commands = list(dict.fromkeys([*before["commands"], command_of(args)]))
    seen = [run_ for run_ in runs if run_["seed"] == 0]
    shown = [f"{name}{'' if args.kinds == list(CONFIGS) else '_' + '_'.join(args.kinds)}.png"] if seen else []
    text = page_text(records, args.window, commands, pictures=list(dict.fromkeys([*before["pictures"], *shown])))
    print(text)
    if args.write:
        shown_now = {"commands": commands, "pictures": list(dict.fromkeys([*before["pictures"], *shown]))}
        write_report(name, text, {**shown_now, "place": PLACE, "runs": records})
        if seen:
            sheet(specs, pictures, seen, ROOT / "docs" / "images" / shown[0])


if __name__ == "__main__":
    main()
