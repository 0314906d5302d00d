"""How well a picture's caption and place are found: held-out objects that have a front, each from a random place.

    python benchmarks/place.py --write

Each picture is estimated three times: with the true caption and elevation, with the caption that the judge reads, and
with the elevation estimated too, which is what auto for all three keys does. A finished object in --outputs is not
measured again. With --write the page goes to docs/benchmarks/place.md and .json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from elevation import DISTANCE, FOVY_DEG, RANGE, picture_from  # its folder is on the path, as a script's
from reporting import ROOT, machine, table, write_report
from torch import Tensor
from turboprop.evaluation.clip_metrics import ClipJudge, load_judge
from turboprop.evaluation.report import world_gallery
from turboprop.novelview.automatic_caption import chosen_by, read_caption
from turboprop.novelview.place_estimate import PicturePlace, captioned_picture, estimate_place, picture_for
from turboprop.novelview.render_world import chosen_specs
from turboprop.teachers import load_teacher
from turboprop.teachers.contract import Teacher
from turboprop.teachers.text import encode_prompts
from turboprop.world.captions import ObjectSpec, caption

TEACHER, JUDGE = "assets/teachers/mini-mv", "assets/judges/mini-clip"
METHODS = {"given": "caption and elevation", "read": "elevation", "alone": "nothing"}


class Models:
    """All that looks at a picture."""

    def __init__(self) -> None:
        self.teacher: Teacher = load_teacher(str(ROOT / TEACHER), "cpu")
        self.judge: ClipJudge = load_judge(ROOT / JUDGE)
        self.gallery = world_gallery()

    def place(self, rgba: Tensor, text: str, elevation: float | None) -> dict[str, float]:  # [S, S, 4]
        """The estimate, in degrees. None: the elevation is estimated too."""
        embeddings = encode_prompts(str(ROOT / TEACHER), [text]).local_embeddings
        seen = captioned_picture(self.teacher, picture_for(self.teacher, rgba), embeddings)
        estimate = estimate_place(self.teacher, seen, PicturePlace(elevation, None, DISTANCE, FOVY_DEG))
        return {"azimuth": estimate.azimuth, "elevation": estimate.elevation}

    def measured(self, spec: ObjectSpec, elevation: float, azimuth: float) -> dict:
        """The three estimates of one picture."""
        rgba = picture_from(spec, elevation, azimuth)
        begun = time.process_time()
        reading = read_caption(self.judge, rgba, self.gallery)
        embeddings = encode_prompts(str(ROOT / TEACHER), list(reading.captions)).local_embeddings
        unknown = PicturePlace(None, None, DISTANCE, FOVY_DEG)
        read = chosen_by(self.teacher, rgba, reading, embeddings, unknown).captions[0]
        alone = self.place(rgba, read, None)
        return {
            "elevation": elevation,
            "azimuth": azimuth,
            "caption read": read,
            "the judge's first": reading.captions[0],
            "alone": alone,
            "cpu_seconds": time.process_time() - begun,
            "given": self.place(rgba, caption(spec), elevation),
            "read": self.place(rgba, read, elevation),
        }


def command_for(objects: int) -> str:
    return f"python benchmarks/place.py --objects {objects} --write"


def error_of(record: dict, method: str, angle: str) -> float:
    """How far an estimate is from the truth, degrees in [0, 180]."""
    return abs((record[method][angle] - record[angle] + 180.0) % 360.0 - 180.0)


def page(records: dict[str, dict], seed: int) -> str:
    right, first = (
        sum(record[key] == text for text, record in records.items()) for key in ("caption read", "the judge's first")
    )
    seconds = statistics.mean(record["cpu_seconds"] for record in records.values())
    rows = []
    for method, angle in [*((method, "azimuth") for method in METHODS), ("alone", "elevation")]:
        errors = [error_of(record, method, angle) for record in records.values()]
        shown = (statistics.mean(errors), statistics.median(errors), max(errors))
        rows.append([angle, METHODS[method], *(f"{x:.1f}" for x in shown), str(sum(error <= 15 for error in errors))])
    each = [
        [
            text,
            record["caption read"] if record["caption read"] != text else "rightly",
            *(f"{record['elevation']:.0f}, {record['azimuth']:.0f}",),
            *(f"{record[method]['azimuth']:.0f}" for method in ("given", "read")),
            f"{record['alone']['elevation']:.0f}, {record['alone']['azimuth']:.0f}",
        ]
        for text, record in records.items()
    ]
    return "\n".join(
        [
            "# The caption and the place of a picture, found",
            "",
            f"{len(records)} held-out objects of the world that have a front (seed {seed}), one picture each, from an "
            f"elevation drawn evenly from {RANGE[0]:g} to {RANGE[1]:g} degrees and any azimuth. `{JUDGE}` proposes six "
            f"captions; `{TEACHER}` chooses one of them, and finds elevation and azimuth, by how well it denoises the "
            f"picture, in {seconds:.0f} s of processor time for all ({machine(torch.device('cpu'))}; other work ran "
            "beside it). The teacher has "
            "not seen these pairs of kind and main colour, the judge has. Errors in degrees. "
            f"Command: `{command_for(len(records))}`.",
            "",
            f"{right} of {len(records)} captions were found; the judge's own first choice is right in {first}.",
            "",
            *table(["", "what is given", "mean error", "median", "largest", "within 15 degrees"], rows, 2),
            "",
            "Elevation and azimuth of each:",
            "",
            *table(["object", "read", "truth", "azimuth, all given", "caption read", "nothing given"], each, 2),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=20, help="how many held-out objects (default 20)")
    parser.add_argument("--seed", type=int, default=2, help="of the objects and of their places (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/benchmark-place"))
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/place.md and .json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.outputs.mkdir(parents=True, exist_ok=True)
    models, generator = Models(), torch.Generator().manual_seed(args.seed)
    with_front = [spec for spec in chosen_specs("only", 4 * args.objects, args.seed) if spec.shape.has_front]
    records: dict[str, dict] = {}
    for number, spec in enumerate(with_front[: args.objects]):
        share, turn = torch.rand(2, generator=generator).tolist()
        elevation, azimuth = RANGE[0] + share * (RANGE[1] - RANGE[0]), 360.0 * turn - 180.0
        kept = args.outputs / f"seed-{args.seed}-{number:03d}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(models.measured(spec, elevation, azimuth), indent=1) + "\n")
        record = records[caption(spec)] = json.loads(kept.read_text())
        alone = record["alone"]
        print(
            f"{caption(spec)}: true {elevation:.0f}, {azimuth:.0f}, found {alone['elevation']:.0f}, "
            f"{alone['azimuth']:.0f}; azimuth with the elevation {record['given']['azimuth']:.0f}; "
            f"read as {record['caption read']}",
            flush=True,
        )
    text = page(records, args.seed)
    print(text)
    if args.write:
        write_report("place", text, {"command": command_for(args.objects), "range": RANGE, "objects": records})


if __name__ == "__main__":
    main()
