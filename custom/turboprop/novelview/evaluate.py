"""Measures a novel-view model on folders of views.

    python -m custom.turboprop.novelview.evaluate --model MODEL --data RENDERS --output RESULTS

The first view of each object is given, the others are asked for (`--input-view`, `--views` change that). Written are
evaluation.json, evaluation.md, and pictures with index.html to look at: input, truth and prediction.
Each view is drawn once, from noise that its object and its number decide, so that the result does not depend on the
batch size or on which objects are measured besides.
"""

import argparse
import html
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.commands import exit_code_of
from threestudio.utils.errors import UserError
from threestudio.utils.keyed_random import step_key

from .loading import model_is_named
from .picture_quality import BACKBONES, QualityMeter
from .renders import BrokenFolder, evaluation_folders, read_view, view_numbers
from .sampling import sample_latents
from .teacher import NovelViewTeacher


@dataclass(frozen=True)
class SamplingOptions:
    """How views are drawn."""

    num_steps: int = 50
    guidance_scale: float = 3.0
    eta: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.num_steps} DDIM steps, guidance scale {self.guidance_scale:g}, eta {self.eta:g}, seed {self.seed}"
        )


@dataclass(frozen=True)
class EvaluatedObject:
    """An object's input view, the views that are asked for, and what the model draws. All over white, in [0, 1]."""

    name: str
    given: Tensor  # [3, S, S]
    numbers: list[int]  # of the views asked for
    truth: Tensor  # [V, 3, S, S]
    drawn: Tensor  # [V, 3, S, S]


def noise_of(name: str, views: list[int], step: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of a step for views of an object, which nothing else changes: [V, *shape], on the CPU."""
    keys = (step_key(seed, view, 0, f"evaluation of {name}, {step}") for view in views)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(key)) for key in keys])


@torch.no_grad()
def drawn_views(
    teacher: NovelViewTeacher,
    name: str,
    given: tuple[Tensor, Tensor],  # picture [3, S, S] in [-1, 1] and camera [3] of the input view
    cameras: Tensor,  # [V, 3]: elevation, azimuth (degrees), distance
    numbers: list[int],  # of the views
    options: SamplingOptions,
    batch_size: int = 16,
) -> Tensor:
    """The views of an object that the model draws: [V, 3, S, S] in [0, 1]."""
    image, own = (given[0][None] / 2 + 0.5).to(teacher.device), given[1]
    shape = (teacher.latent_channels, teacher.latent_size, teacher.latent_size)
    drawn = []
    for start in range(0, len(numbers), batch_size):
        chosen = slice(start, start + batch_size)
        condition = teacher.condition(image, *own.tolist(), *cameras[chosen].unbind(-1))

        def noise(step: int | str, views: list[int] = numbers[chosen]) -> Tensor:
            return noise_of(name, views, str(step), options.seed, shape).to(teacher.device)

        latents = sample_latents(
            teacher.predict_noise, teacher.alphas_cumprod, condition, noise("start"), options.num_steps,
            options.guidance_scale, options.eta, noise,
        )  # fmt: skip
        drawn.append(teacher.model.decode(latents).cpu())
    return torch.cat(drawn)


def evaluated_objects(
    teacher: NovelViewTeacher,
    folders: list[Path],
    input_view: int,
    views: int,  # asked for, at most; 0: all but the input view
    options: SamplingOptions,
    broken: list[str],  # what is left out is added here
) -> Iterator[EvaluatedObject]:
    """Draws the views of one object after another."""
    for folder in folders:
        name = folder.parent.parent.name if folder.name == "model" else folder.name
        try:
            numbers = view_numbers(folder)
            if input_view not in numbers or len(numbers) < 2:
                raise BrokenFolder(f"{folder}: expected view {input_view} and another one, found views {numbers}")
            wanted = [number for number in numbers if number != input_view]
            wanted = wanted[:views] if views else wanted
            given = read_view(folder, input_view, teacher.image_size)
            pictures, cameras = zip(*(read_view(folder, number, teacher.image_size) for number in wanted))
        except BrokenFolder as error:
            broken.append(str(error))
            continue
        drawn = drawn_views(teacher, name, given, torch.stack(cameras), wanted, options)
        yield EvaluatedObject(name, given[0] / 2 + 0.5, wanted, torch.stack(pictures) / 2 + 0.5, drawn)


def save_pictures(result: EvaluatedObject, folder: Path) -> None:
    """Writes <name>-input.png, and truth and prediction side by side for each view as <name>-<number>.png."""
    from PIL import Image

    def save(picture: Tensor, path: Path) -> None:
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)

    save(result.given, folder / f"{result.name}-input.png")
    for number, truth, drawn in zip(result.numbers, result.truth, result.drawn):
        save(torch.cat([truth, drawn], dim=2), folder / f"{result.name}-{number:03d}.png")


def write_page(output: Path, names: list[tuple[str, list[int]]], lines: list[str]) -> None:
    """index.html: a row an object with its input view, then truth and prediction of each view."""
    rows = []
    for name, numbers in names:
        shown, file = html.escape(name, quote=True), quote(f"pictures/{name}")
        views = "".join(f'<img src="{file}-{number:03d}.png" title="view {number}">' for number in numbers)
        rows.append(f'<tr><th>{shown}</th><td><img src="{file}-input.png"></td><td>{views}</td></tr>')
    style = "body{font-family:sans-serif}img{image-rendering:pixelated;margin:2px;min-height:96px}th{text-align:left}"
    head = "<tr><th>object</th><th>input</th><th>truth and prediction of each view</th></tr>"
    text = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    page = f"<!doctype html><meta charset=utf-8><title>Novel views</title><style>{style}</style>{text}"
    (output / "index.html").write_text(f"{page}<table>{head}{''.join(rows)}</table>\n", encoding="utf-8")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the evaluation that the command line describes; returns the report that it writes. Raises FileNotFoundError
    or ValueError for a model or data that cannot be used."""
    sampling = SamplingOptions(options.steps, options.scale, options.eta, options.seed)
    folders = evaluation_folders(options.data)
    if options.objects:
        folders = folders[: options.objects]
    with model_is_named("--model"):
        teacher = NovelViewTeacher.from_pretrained(options.model, options.device, options.half)
    meter = QualityMeter(options.lpips, torch.device(options.device))
    pictures = options.output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    broken: list[str] = []
    measured: list[tuple[str, list[int]]] = []
    for result in evaluated_objects(teacher, folders, options.input_view, options.views, sampling, broken):
        meter.add(result.drawn, result.truth)
        save_pictures(result, pictures)
        measured.append((result.name, result.numbers))
        print(f"{len(measured)} of {len(folders)}: {result.name}", flush=True)
    if not measured:
        raise UserError(f"--data: no object of {options.data} can be measured; the first: {broken[0]}")
    labels = [f"{name}/{number:03d}" for name, numbers in measured for number in numbers]
    report = meter.report()
    report["each"] = dict(zip(labels, report["each"]))
    about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    report |= {"objects": len(measured), "left_out": broken, "options": about, "image_size": teacher.image_size}
    (options.output / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = [*meter.lines(), f"{len(measured)} objects, {len(broken)} left out; {sampling}; background white"]
    (options.output / "evaluation.md").write_text("\n\n".join(["# Novel views", *lines]) + "\n", encoding="utf-8")
    write_page(options.output, measured, lines)
    for line in [*lines, f"Results: {options.output}"]:
        print(line)
    return report


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model folder, a hub id, or zero123's .ckpt")
    parser.add_argument("--data", required=True, help="folders of views in zero-1-to-3's or the GSO renders' layout")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument("--objects", type=int, default=0, help="measure the first so many (default: all)")
    parser.add_argument("--input-view", type=int, default=0, help="number of the view that is given (default 0)")
    parser.add_argument("--views", type=int, default=0, help="ask for the first so many others (default: all)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default 50)")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale (default 3)")
    parser.add_argument("--eta", type=float, default=1.0, help="noise of a step, 0 to 1 (default 1)")
    parser.add_argument("--lpips", choices=BACKBONES, default="vgg", help="backbone of LPIPS (default vgg)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--half", action="store_true", help="float16 on a GPU")
    options = parser.parse_args(arguments)
    for name, low in (("objects", 0), ("input_view", 0), ("views", 0), ("steps", 1)):
        if getattr(options, name) < low:
            parser.error(f"--{name.replace('_', '-')}: expected at least {low}, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code_of(lambda: evaluate(options))


if __name__ == "__main__":
    sys.exit(main())
