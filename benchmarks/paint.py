"""Exact shapes of the world, painted by asd-paint.yaml: how near the colours come, with plain and with lit material.

    python benchmarks/paint.py --threads 1 --write

Makes a mesh of each object's exact shape, without colours, and runs launch.py on it with the object's caption. A
finished run in --outputs is not run again. With --write, the table goes to docs/benchmarks/paint.md and .json, the
picture to docs/images/paint.png.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from reporting import ROOT, machine, spread, table, write_report
from representations import FIGURES, run

sys.path.insert(0, str(ROOT))

from threestudio.utils.extensions import load_extensions

load_extensions()

from turboprop.world.captions import ObjectSpec, caption  # noqa: E402
from turboprop.world.library import SIXTEEN  # noqa: E402
from turboprop.world.objects import KINDS, Kind  # noqa: E402

MATERIALS = {
    "plain": ("no-material", []),
    "lit": (
        "pbr-material, sRGB",
        [
            "system.material_type=pbr-material",
            "system.geometry.n_feature_dims=5",
            "system.material={use_bump: false, srgb: true}",
        ],
    ),
}
SHOWN = ("r_at_1_world", "iou", "color_error", "front_back", "sim")
POINTS = 96  # of the grid along an axis
CELL = 128  # pixels of a view in the picture


def write_shape(kind: Kind, path: Path) -> None:
    """The exact surface as an OBJ without colours, front +x and up +z."""
    from skimage.measure import marching_cubes

    axis = torch.linspace(-1.0, 1.0, POINTS)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    distance = kind.signed_distance(points).numpy()
    vertices, faces, _, _ = marching_cubes(distance, 0.0, gradient_direction="ascent")
    place = vertices * (2.0 / (POINTS - 1)) - 1.0
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Trimesh(place.astype(np.float32), faces, process=False).export(path)


def paint(spec: ObjectSpec, material: str, seed: int, outputs: Path, threads: int) -> dict:
    folder = outputs / material / f"{spec.kind}-{seed}"
    shape = outputs / "shapes" / f"{spec.kind}.obj"
    if not shape.is_file():
        write_shape(KINDS[spec.kind], shape)
    given = [f"system.geometry.shape_init=mesh:{shape}", f"system.prompt_processor.prompt={caption(spec)}"]
    return run("asd-paint", [*given, *MATERIALS[material][1], f"seed={seed}", "tag=paint"], folder, threads)


def paint_table(runs: list[dict]) -> list[str]:
    rows = []
    for material, (title, _) in MATERIALS.items():
        own = [r for r in runs if r["material"] == material]
        if not own:
            continue
        means = []
        for name in SHOWN:
            of_seeds = [
                [r["evaluation"][name] for r in own if r["seed"] == seed and r["evaluation"][name] is not None]
                for seed in sorted({r["seed"] for r in own})
            ]
            # A figure that no object has is of none, as of a mushroom, which has no front.
            present = [sum(values) / len(values) for values in of_seeds if values]
            means.append(spread(present) if present else "-")
        worst = max(own, key=lambda r: r["evaluation"]["color_error"])
        seconds = sum(r["cpu_seconds"] for r in own) / len(own)
        largest = f"{worst['evaluation']['color_error']:.3f} ({worst['text']})"
        rows.append([title, str(len(own)), *means, largest, f"{seconds:.0f}"])
    header = ["material", "runs", *(FIGURES[name] for name in SHOWN), "largest colour error", "CPU seconds"]
    return table(header, rows, 1)


def picture(runs: list[dict], seed: int) -> Image.Image:
    """A row for each object: four views of each material."""
    shown = [r for r in runs if r["seed"] == seed]
    kinds = list(dict.fromkeys(r["kind"] for r in shown))
    materials = [m for m in MATERIALS if any(r["material"] == m for r in shown)]
    sheet = Image.new("RGB", (4 * CELL * len(materials), CELL * len(kinds)))
    for r in shown:
        folder = Path(r["turntable"])
        frames = sorted(folder.glob("*.png"), key=lambda file: int(file.stem))
        for column, frame in enumerate(frames[:: len(frames) // 4][:4]):
            with Image.open(frame) as image:
                view = image.crop((0, 0, image.height, image.height)).resize((CELL, CELL))
            sheet.paste(view, ((4 * materials.index(r["material"]) + column) * CELL, kinds.index(r["kind"]) * CELL))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--materials", nargs="+", default=list(MATERIALS), choices=MATERIALS)
    parser.add_argument("--objects", type=int, default=10, help="how many of the main job's sixteen")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each run")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-paint"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/paint.* and the picture")
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        for material in args.materials:
            for spec in SIXTEEN[: args.objects]:
                record = paint(spec, material, seed, args.outputs.resolve(), args.threads)
                told = "failed" if record["returncode"] else f"colour error {record['evaluation']['color_error']:.3f}"
                print(f"{material}, {caption(spec)}, seed {seed}: {told}", flush=True)
                if record["returncode"] == 0:
                    runs.append(
                        {"kind": spec.kind, "text": caption(spec), "material": material, "seed": seed, **record}
                    )
    command = "python " + shlex.join(["benchmarks/paint.py", *(a for a in sys.argv[1:] if a != "--write")])
    text = [
        "# Exact shapes, painted",
        "",
        f"`{command} --write` on {machine(torch.device('cpu'))}, {args.threads} threads a run. Meshes of the world's "
        "exact shapes without colours, painted by `configs/asd-paint.yaml` with mini-mv and each object's caption. "
        "Means over the objects; of several seeds, in brackets, the extremes. The shapes are given, so the silhouettes "
        "only say that they stand where they should; colours are what is learned.",
        "",
        *paint_table(runs),
        "",
        "Rows are the objects; four views with each material.",
        "",
        "![painted](../images/paint.png)",
        "",
    ]
    print("\n".join(text))
    if args.write:
        kept = [{key: value for key, value in r.items() if key not in ("views", "turntable")} for r in runs]
        write_report("paint", "\n".join(text), {"command": command, "runs": kept})
        picture(runs, args.seeds[0]).save(ROOT / "docs" / "images" / "paint.png")


if __name__ == "__main__":
    main()
