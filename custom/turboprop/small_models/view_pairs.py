"""Views of the world's objects in pairs, encoded once for many steps and drawn anew as a training goes on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.keyed_random import step_key

from ..world.captions import ObjectSpec, all_specs, held_out
from ..world.dataset import ViewBank, kind_indices, object_colors
from ..world.objects import KINDS
from ..world.render import composite
from .latent_pool import CPU, encode_pictures


@dataclass(frozen=True)
class ViewedObjects:
    """Objects on white, each from V cameras that have nothing to do with each other."""

    images: Tensor  # [N, V, 3, H, W] in [-1, 1]
    coverage: Tensor  # [N, V, H, W] in [0, 1]
    cameras: Tensor  # [N, V, 3]: elevation and azimuth in degrees, distance in world units
    specs: list[ObjectSpec]  # N


def draw_objects(
    bank: ViewBank,
    count: int,
    views: int,
    generator: torch.Generator,  # on the CPU
    held_out_only: bool = False,
    device: torch.device = CPU,
) -> ViewedObjects:
    """`count` objects, from `views` of their kind's views in the bank each; kinds come in turn, colours are random.

    The pictures are on `device`. Pairs of kind and main colour that are held out never come, or with `held_out_only`
    none but those.
    """
    names = list(KINDS)
    choices: dict[str, list[ObjectSpec]] = {name: [] for name in names}
    for spec in all_specs(include_held_out=True):
        if held_out(spec.kind, spec.main) == held_out_only:
            choices[spec.kind].append(spec)
    specs = []
    for index in range(count):
        known = choices[names[index % len(names)]]
        specs.append(known[int(torch.randint(len(known), (), generator=generator))])
    kind = kind_indices(specs)[:, None]  # [N, 1]
    view = torch.rand(count, bank.views, generator=generator).argsort(1)[:, :views]  # [N, V], all different
    layers = bank.layers[kind, view].flatten(0, 1).to(device).float() / 255
    colors = object_colors(specs).repeat_interleave(views, 0)
    images = composite(layers, colors.to(device), torch.ones(count * views, 3, device=device)) * 2 - 1
    cameras = torch.stack([bank.elevation[kind, view], bank.azimuth[kind, view], bank.distance[kind, view]], -1)
    return ViewedObjects(images.unflatten(0, (count, views)), layers[:, 3].unflatten(0, (count, views)), cameras, specs)


class ViewPairPool:
    """A pool of `objects` from four cameras each; every `period` steps it is drawn anew.

    What it gives is a function of the step and the seed.
    """

    VIEWS = 4

    def __init__(self, bank: ViewBank, autoencoder: Any, objects: int, period: int, seed: int) -> None:
        self.bank, self.autoencoder, self.objects, self.period, self.seed = bank, autoencoder, objects, period, seed
        self._turn = -1

    def refresh(self, step: int) -> None:
        """Draws and encodes the pool of a step, unless it is there."""
        turn = step // self.period
        if turn == self._turn:
            return
        generator = torch.Generator().manual_seed(step_key(self.seed, turn, stream="view pairs") % 2**63)
        device = next(self.autoencoder.parameters()).device
        drawn = draw_objects(self.bank, self.objects, self.VIEWS, generator, device=device)
        with torch.autocast(next(self.autoencoder.parameters()).device.type, enabled=False):
            means, deviations = encode_pictures(self.autoencoder, drawn.images.flatten(0, 1))
        moments = torch.stack([means, deviations], 1) / self.autoencoder.config.scaling_factor
        self._moments = moments.unflatten(0, (self.objects, self.VIEWS))  # [N, V, 2, C, h, w], unscaled
        self._images = ((drawn.images + 1) * 127.5).round().to(torch.uint8)  # a quarter of the memory
        self._cameras, self._turn = drawn.cameras.to(device), turn

    def batch(self, step: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` pairs of views as `novelview.training` takes them."""
        self.refresh(step)
        chosen = torch.randint(self.objects, (count,), generator=generator)
        target, given = torch.rand(count, self.VIEWS, generator=generator).argsort(1)[:, :2].unbind(1)
        return {
            "target_moments": self._moments[chosen, target],
            "input_moments": self._moments[chosen, given],
            "input_image": self._images[chosen, given].float() / 127.5 - 1,
            "target_camera": self._cameras[chosen, target],
            "input_camera": self._cameras[chosen, given],
        }


def first_to_others(objects: ViewedObjects, device: torch.device) -> dict[str, Tensor]:
    """All views but the first, to be drawn from the first: N (V - 1) pairs as `novelview.training` takes them."""
    count = objects.images.shape[1] - 1
    return {
        "target_image": objects.images[:, 1:].flatten(0, 1).to(device),
        "input_image": objects.images[:, 0].repeat_interleave(count, 0).to(device),
        "target_camera": objects.cameras[:, 1:].flatten(0, 1).to(device),
        "input_camera": objects.cameras[:, 0].repeat_interleave(count, 0).to(device),
    }
