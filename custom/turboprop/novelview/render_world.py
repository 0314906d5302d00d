"""Renders the world into zero-1-to-3's layout: python -m custom.turboprop.novelview.render_world --output renders

Each object is a kind with two colours, seen from a few of its kind's views, which are traced once and shared. One in
eight pairs of kind and main colour is held out from training; `--held-out only` renders these.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threestudio.utils.commands import exit_code_of
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_at_least

from ..world.cameras import orbit_c2w
from ..world.captions import ObjectSpec, all_specs, caption, held_out
from ..world.dataset import FOVY_DEG, ViewBank, build_view_bank, load_view_bank, save_view_bank
from ..world.objects import KINDS
from ..world.render import composite, role_colors
from .camera_pose import world_to_camera_matrices
from .renders import VALID_PATHS

CHOICES = ("none", "only", "both")


def chosen_specs(held_out_choice: str, count: int, seed: int) -> list[ObjectSpec]:
    """Objects of the world in a random order, the first `count` of them (0: all)."""
    specs = all_specs(include_held_out=True)
    if held_out_choice != "both":
        specs = [spec for spec in specs if held_out(spec.kind, spec.main) == (held_out_choice == "only")]
    order = torch.randperm(len(specs), generator=torch.Generator().manual_seed(seed)).tolist()
    return [specs[place] for place in (order[:count] if count else order)]


def straight_rgba(layers: Tensor, spec: ObjectSpec) -> np.ndarray:
    """Pictures with straight alpha from traced layers [V, 4, S, S] in [0, 1]: [V, S, S, 4] uint8."""
    colors = role_colors(spec.main, spec.accent).expand(len(layers), -1, -1)
    premultiplied = composite(layers, colors, torch.zeros(len(layers), 3))
    alpha = layers[:, 3:]
    rgb = (premultiplied / alpha.clamp_min(1e-6)).clamp(0, 1) * (alpha > 0)
    return (torch.cat([rgb, alpha], 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def write_object(folder: Path, spec: ObjectSpec, bank: ViewBank, views: Sequence[int]) -> None:
    """Writes the pictures and cameras of one object."""
    from PIL import Image

    kind, chosen = list(KINDS).index(spec.kind), list(views)
    orbit = (values[kind, chosen].double() for values in (bank.elevation, bank.azimuth, bank.distance))
    cameras = world_to_camera_matrices(orbit_c2w(*orbit)).numpy()  # [V, 3, 4]
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(straight_rgba(bank.layers[kind, chosen].float() / 255, spec)):
        Image.fromarray(picture, "RGBA").save(folder / f"{number:03d}.png")
        np.save(folder / f"{number:03d}.npy", cameras[number])


def render_world(output: Path, specs: Sequence[ObjectSpec], bank: ViewBank, views: int, seed: int) -> None:
    """Writes a root: one folder for each object, then the list of them. Raises ValueError for fewer traced views than
    an object is to have."""
    if not 1 <= views <= bank.views:
        raise UserError(f"--views: expected 1 to {bank.views}, the traced views of each kind; got {views}")
    generator = torch.Generator().manual_seed(seed)
    names = []
    for spec in specs:
        name = f"{spec.main}-{spec.kind}-{spec.accent}"
        write_object(output / name, spec, bank, torch.randperm(bank.views, generator=generator)[:views].tolist())
        names.append(name)
    about = {"fovy_deg": FOVY_DEG, "captions": {name: caption(spec) for name, spec in zip(names, specs)}}
    (output / "world.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (output / VALID_PATHS).write_text(json.dumps(names) + "\n", encoding="utf-8")  # last: the root is whole


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="render_world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the root to write")
    parser.add_argument("--objects", type=int, default=0, help="how many; default: all that are chosen")
    parser.add_argument("--held-out", choices=CHOICES, default="none", help="objects held out from training")
    parser.add_argument("--views", type=int, default=12, help="of each object (default 12, as in Objaverse's renders)")
    parser.add_argument("--traced-views", type=int, default=96, help="of each kind, shared by its objects (default 96)")
    parser.add_argument("--bank", type=Path, help="a saved view bank; one that is not there is traced and saved")
    parser.add_argument("--workers", type=int, default=1, help="processes that trace")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _report_traced(kind: str) -> None:
    print(f"traced {kind}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return exit_code_of(lambda: _render(options))


def _render(options: argparse.Namespace) -> None:
    check_at_least("--objects", options.objects, 0)
    if options.bank is not None and options.bank.is_file():
        bank = load_view_bank(options.bank)
    else:
        bank = build_view_bank(options.traced_views, options.seed, _report_traced, workers=options.workers)
        if options.bank is not None:
            save_view_bank(bank, options.bank)
    specs = chosen_specs(options.held_out, options.objects, options.seed)
    render_world(options.output, specs, bank, options.views, options.seed)
    print(f"{options.output}: {len(specs)} objects of {options.views} views")


if __name__ == "__main__":
    sys.exit(main())
