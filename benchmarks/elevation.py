"""How well the elevation of a picture is estimated: held-out objects of the world, each from a place drawn at random.

    python benchmarks/elevation.py --write

Each picture is estimated twice: from views that the novel-view model draws around it, as `default_elevation_deg=auto`
does it, and from exact views at the same places, which says what the method itself can do. Two constants are compared
with it. A finished object in --outputs is not measured again. With --write the page goes to
docs/benchmarks/elevation.md and .json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from reporting import ROOT, machine, write_report
from torch import Tensor

sys.path.insert(0, str(ROOT))

from threestudio.utils.extensions import load_extensions

load_extensions()

from turboprop.fitting.posed_views import world_views  # noqa: E402
from turboprop.novelview.elevation_estimate import (  # noqa: E402
    ElevationEstimate,
    RelativeViews,
    estimate_elevation,
)
from turboprop.novelview.framing import FramingConfig, framed  # noqa: E402
from turboprop.novelview.relative_views import OFFSETS, SILHOUETTE_SIZE, drawn_relative_views  # noqa: E402
from turboprop.novelview.render_world import chosen_specs  # noqa: E402
from turboprop.novelview.teacher import NovelViewTeacher  # noqa: E402
from turboprop.world.cameras import orbit_c2w  # noqa: E402
from turboprop.world.captions import ObjectSpec, caption  # noqa: E402

MODEL = "assets/novelview/mini-novelview"
DISTANCE, FOVY_DEG = 2.7, 40.0  # as the configs have them
RANGE = (0.0, 45.0)  # degrees, of the pictures' elevations
PICTURE_SIZE = 128  # pixels
CONSTANTS = {"always 15 degrees": 15.0, "always the middle of the range": sum(RANGE) / 2}
METHODS = {"drawn": "estimated from drawn views", "exact": "estimated from exact views"}


def orbit(raised: Tensor, turned: Tensor) -> Tensor:  # [V], [V] degrees -> [V, 4, 4]
    return orbit_c2w(raised, turned, torch.full_like(raised, DISTANCE))


def picture_from(spec: ObjectSpec, elevation: float, azimuth: float) -> Tensor:
    """The object from a place in degrees, framed as `data.framing` does it: [S, S, 4]."""
    camera = orbit(torch.tensor([elevation]), torch.tensor([azimuth]))
    views = world_views(spec, camera, math.radians(FOVY_DEG), PICTURE_SIZE)
    straight = (views.rgb[0] / views.coverage[0].clamp_min(1e-6)).clamp(0, 1)
    return framed(torch.cat([straight, views.coverage[0]], dim=-1), FramingConfig())


def exact_relative_views(spec: ObjectSpec, elevation: float, azimuth: float) -> RelativeViews:
    """True silhouettes at the places that the model is asked for."""
    raised, turned = torch.tensor([(0.0, 0.0), *OFFSETS]).unbind(-1)
    views = world_views(spec, orbit(raised + elevation, turned + azimuth), math.radians(FOVY_DEG), SILHOUETTE_SIZE)
    return RelativeViews(views.coverage[..., 0], raised, turned, DISTANCE, math.radians(FOVY_DEG))


def measured(teacher: NovelViewTeacher, spec: ObjectSpec, elevation: float, azimuth: float) -> dict:
    """Both estimates of one picture."""
    rgba = picture_from(spec, elevation, azimuth)
    begun = time.process_time()
    views, _ = drawn_relative_views(teacher, rgba, DISTANCE, FOVY_DEG)
    drawn = estimate_elevation(views)
    seconds = time.process_time() - begun
    exact = estimate_elevation(exact_relative_views(spec, elevation, azimuth))

    def figures(estimate: ElevationEstimate) -> dict:
        return {"elevation": estimate.elevation, "contrast": estimate.contrast, "scores": list(estimate.scores)}

    place = {"elevation": elevation, "azimuth": azimuth}
    return {**place, "drawn": figures(drawn), "exact": figures(exact), "cpu_seconds": seconds}


def error_figures(errors: list[float]) -> list[float]:  # degrees, estimate less truth
    """Mean and median of the absolute errors, the largest, and the mean error."""
    sizes = [abs(error) for error in errors]
    return [statistics.mean(sizes), statistics.median(sizes), max(sizes), statistics.mean(errors)]


def page(records: dict[str, dict], seed: int) -> str:
    truths = [record["elevation"] for record in records.values()]
    rows = {
        title: [record[key]["elevation"] - truth for record, truth in zip(records.values(), truths)]
        for key, title in METHODS.items()
    }
    rows |= {title: [constant - truth for truth in truths] for title, constant in CONSTANTS.items()}
    seconds = statistics.mean(record["cpu_seconds"] for record in records.values())
    lines = [
        "# The elevation of a picture, estimated",
        "",
        f"{len(records)} held-out objects of the world (seed {seed}), one picture each, taken from an elevation drawn "
        f"evenly from {RANGE[0]:g} to {RANGE[1]:g} degrees and from any azimuth. Errors in degrees. Views are drawn by "
        f"`{MODEL}`, which has never seen these pairs of kind and main colour. An estimate took {seconds:.1f} s of "
        f"processor time ({machine(torch.device('cpu'))}; other work ran beside it). "
        "Command: `python benchmarks/elevation.py --write`.",
        "",
        "| | mean absolute error | median | largest | mean error |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {title} | " + " | ".join(f"{value:.1f}" for value in error_figures(errors)) + " |"
            for title, errors in rows.items()
        ),
        "",
        "Contrast is how much better the views agree at the best elevation than at the worst.",
        "",
        "| object | true | from drawn views | contrast | from exact views | contrast |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, record in records.items():
        pairs = (f"{record[key]['elevation']:.1f} | {record[key]['contrast']:.2f}" for key in METHODS)
        lines.append(f"| {name} | {record['elevation']:.1f} | {' | '.join(pairs)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=20, help="how many held-out objects (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the objects and of their places (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-elevation"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/elevation.md and .json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.outputs.mkdir(parents=True, exist_ok=True)
    teacher = NovelViewTeacher.from_pretrained(str(ROOT / MODEL))
    generator = torch.Generator().manual_seed(args.seed)
    records: dict[str, dict] = {}
    for number, spec in enumerate(chosen_specs("only", args.objects, args.seed)):
        share, turn = torch.rand(2, generator=generator).tolist()
        elevation, azimuth = RANGE[0] + share * (RANGE[1] - RANGE[0]), 360.0 * turn - 180.0
        kept = args.outputs / f"seed-{args.seed}-{number:03d}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measured(teacher, spec, elevation, azimuth), indent=1) + "\n")
        record = records[caption(spec)] = json.loads(kept.read_text())
        estimates = ", ".join(f"{title} {record[key]['elevation']:.1f}" for key, title in METHODS.items())
        print(f"{caption(spec)}: true {elevation:.1f}, {estimates}", flush=True)
    text = page(records, args.seed)
    print(text)
    if args.write:
        write_report("elevation", text, {"command": " ".join(sys.argv), "range": RANGE, "objects": records})


if __name__ == "__main__":
    main()
