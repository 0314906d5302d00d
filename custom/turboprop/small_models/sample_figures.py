"""How well a multi-view model's samples at known cameras agree with exact renders from the same cameras."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation.clip_metrics import ClipJudge, clip_scores
from ..evaluation.picture_metrics import color_error, silhouette_iou
from ..teachers.multi_view.network import MultiViewUNet
from ..teachers.noise_schedule import to_epsilon
from ..teachers.sampling import ddim_sample
from ..world.cameras import orbit_c2w
from ..world.captions import ObjectSpec, all_specs, caption, held_out
from ..world.dataset import FOVY_DEG, IMAGE_SIZE, object_colors
from ..world.objects import COLORS, KINDS
from ..world.render import AMBIENT, DIFFUSE, composite, role_colors, shaded_coverage, surface_view
from .latent_pool import orbit_camera_numbers
from .text_table import CaptionTable

BACKGROUND = (0.55, 0.55, 0.55)
SHADES = 9  # brightness of a matt surface in the world's light, [0.48, 1], in so many steps


def silhouettes(images: Tensor, colors: Tensor) -> Tensor:  # [N, 3, H, W] in [0, 1], [N, 3 roles, 3]
    """Silhouettes [N, H, W] (0 or 1) of objects of known colours on plain backgrounds of unknown colour.

    A pixel is the object's if it is nearer to one of its colours in some light than to the picture's border.
    """
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], -1)
    background = border.median(-1).values[:, :, None, None]
    to_background = (images - background).square().sum(1)
    shades = torch.linspace(AMBIENT - DIFFUSE, AMBIENT + DIFFUSE, SHADES)
    palette = (colors[:, :, None] * shades[:, None]).flatten(1, 2)  # [N, 3 * SHADES, 3]
    to_object = torch.full_like(to_background, torch.inf)
    for color in palette.unbind(1):
        to_object = torch.minimum(to_object, (images - color[:, :, None, None]).square().sum(1))
    return (to_object < to_background).float()


@dataclass(frozen=True)
class ExactSets:
    """Objects and their exact pictures from known cameras."""

    specs: list[ObjectSpec]  # S
    images: Tensor  # [S, V, 3, H, W] in [0, 1]
    coverage: Tensor  # [S, V, H, W] in [0, 1]
    elevation: Tensor  # [S * V] degrees
    azimuth: Tensor  # [S * V] degrees
    distance: Tensor  # [S * V] world units


def exact_sets(
    count_by_kind: int, views: int, held_out_only: bool, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> ExactSets:
    """`count_by_kind` objects of each of `kinds`, each from `views` cameras at equal steps of azimuth, traced anew."""
    generator = torch.Generator().manual_seed(seed)
    specs = []
    for kind in kinds:
        mains = [main for main in COLORS if held_out(kind, main) == held_out_only]
        for _ in range(count_by_kind):
            main = mains[int(torch.randint(len(mains), (), generator=generator))]
            accents = [color for color in COLORS if color != main]
            specs.append(ObjectSpec(kind, main, accents[int(torch.randint(len(accents), (), generator=generator))]))
    count = len(specs)
    elevation = (50 * torch.rand(count, generator=generator) - 5).repeat_interleave(views)
    start = 360 * torch.rand(count, generator=generator)
    azimuth = (start[:, None] + torch.arange(views) * (360 / views)).flatten()
    distance = (2.5 + 0.4 * torch.rand(count, generator=generator)).repeat_interleave(views)
    c2w, fovy = orbit_c2w(elevation, azimuth, distance), torch.full((count * views,), math.radians(FOVY_DEG))
    pictures, coverages = [], []
    for index, spec in enumerate(specs):
        part = slice(index * views, (index + 1) * views)
        layers = shaded_coverage(surface_view(spec.shape, c2w[part], fovy[part], 2 * IMAGE_SIZE, 2 * IMAGE_SIZE), 2)
        colors = role_colors(spec.main, spec.accent).expand(views, -1, -1)
        pictures.append(composite(layers, colors, torch.tensor(BACKGROUND).expand(views, -1)))
        coverages.append(layers[:, 3])
    return ExactSets(specs, torch.stack(pictures), torch.stack(coverages), elevation, azimuth, distance)


@torch.no_grad()
def sample_sets(
    network: MultiViewUNet,
    autoencoder: Any,
    alphas_cumprod: Tensor,  # [T]
    prediction_type: str,
    embeddings: Tensor,  # [S * V, N, D]
    unconditional: Tensor,  # [1, N, D]
    cameras: Tensor,  # [S * V, 16]
    num_views: int,
    guidance_scale: float,
    num_steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Pictures of sets by DDIM with classifier-free guidance: [S * V, 3, H, W] in [0, 1]."""
    device, count = alphas_cumprod.device, len(cameras)
    config = network.unet.config
    noisy = torch.randn(count, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    embeddings, cameras = embeddings.to(device), cameras.to(device)

    def guided_noise(x: Tensor, timesteps: Tensor) -> Tensor:
        both = network(
            torch.cat([x, x]),
            torch.cat([timesteps, timesteps]),
            torch.cat([embeddings, unconditional.to(device).expand_as(embeddings)]),
            torch.cat([cameras, cameras]),
            num_views,
        ).float()
        answer = to_epsilon(both, torch.cat([x, x]), torch.cat([timesteps] * 2), alphas_cumprod, prediction_type)
        positive, negative = answer.chunk(2)
        return negative + guidance_scale * (positive - negative)

    last = torch.full((count,), len(alphas_cumprod) - 1, device=device)
    latents = ddim_sample(noisy.to(device), last, guided_noise, alphas_cumprod, num_steps)
    pictures = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    return (pictures * 0.5 + 0.5).clamp(0, 1).cpu()


class SampleFigures:
    """Held-out figures of a multi-view model: silhouettes, colours and R@1 of its samples, seen and held-out pairs."""

    def __init__(
        self,
        autoencoder: Any,
        judge: ClipJudge,
        prediction_type: str,
        camera_encoding: str,
        num_views: int = 4,
        count_by_kind: int = 1,
        guidance_scale: float = 2.0,
        num_steps: int = 20,
        seed: int = 99,
        kinds: Sequence[str] = tuple(KINDS),
    ) -> None:
        self.autoencoder, self.judge, self.prediction_type = autoencoder, judge, prediction_type
        self.camera_encoding, self.num_views = camera_encoding, num_views
        self.guidance_scale, self.num_steps, self.seed = guidance_scale, num_steps, seed
        self.gallery = [caption(spec) for spec in all_specs(include_held_out=True)]
        self.sets = {
            name: exact_sets(count_by_kind, num_views, held_out_only, seed, kinds)
            for name, held_out_only in (("seen", False), ("held_out", True))
        }

    def __call__(
        self, network: MultiViewUNet, alphas_cumprod: Tensor, captions: CaptionTable, picture: Path
    ) -> dict[str, float]:
        """iou, color, r1 of samples, by "seen" and "held_out"; a grid of samples over exact pictures in `picture`."""
        figures, rows = {}, []
        for name, exact in self.sets.items():
            texts = [caption(spec) for spec in exact.specs]
            embeddings = captions.of(texts).repeat_interleave(self.num_views, 0)
            cameras = orbit_camera_numbers(exact.elevation, exact.azimuth, exact.distance, self.camera_encoding)
            generator = torch.Generator().manual_seed(self.seed)
            images = sample_sets(
                network,
                self.autoencoder,
                alphas_cumprod,
                self.prediction_type,
                embeddings,
                captions.of([""]),
                cameras,
                self.num_views,
                self.guidance_scale,
                self.num_steps,
                generator,
            )
            figures |= {f"{key}_{name}": value for key, value in self.compare(images, exact, texts).items()}
            rows += [images.unflatten(0, exact.images.shape[:2]), exact.images]
        save_grid(torch.cat([rows[0], rows[1], rows[2], rows[3]], 1), picture)
        return figures

    @property
    def count(self) -> int:
        """How many objects are drawn, seen and held out together."""
        return sum(len(exact.specs) for exact in self.sets.values())

    def ceilings(self) -> dict[str, float]:
        """Silhouette IoU and R@1 of the exact pictures themselves, by set."""
        figures = {}
        for name, exact in self.sets.items():
            own = self.compare(exact.images.flatten(0, 1), exact, [caption(spec) for spec in exact.specs])
            figures |= {name: own["iou"], f"r1_{name}": own["r1"]}
        return figures

    def compare(self, images: Tensor, exact: ExactSets, texts: list[str]) -> dict[str, float]:
        """Figures of samples [S * V, 3, H, W] in [0, 1] against exact pictures."""
        colors, truth = object_colors(exact.specs), exact.coverage.flatten(0, 1)
        alpha = silhouettes(images, colors.repeat_interleave(self.num_views, 0))
        rgb, exact_rgb = images.permute(0, 2, 3, 1), exact.images.flatten(0, 1).permute(0, 2, 3, 1)
        error = color_error(rgb, alpha, exact_rgb, truth)
        scores = clip_scores(self.judge, texts, images.unflatten(0, exact.images.shape[:2]), self.gallery)
        return {
            "iou": float(silhouette_iou(alpha, truth).mean()),
            "color": float(torch.nanmean(error)),
            "r1": scores.mean_r_at_1,
        }


def nearest_azimuths(images: Tensor, specs: list[ObjectSpec], count: int = 24) -> Tensor:
    """The azimuth whose exact render each picture is nearest to: [N, 3, H, W] in [0, 1] of N objects -> [N] degrees.

    Renders are from `count` azimuths, 20 degrees up, on the picture's own background; near is mean absolute
    difference.
    """
    azimuth = torch.arange(count) * (360.0 / count)
    c2w = orbit_c2w(torch.full((count,), 20.0), azimuth, torch.full((count,), 2.7))
    fovy = torch.full((count,), math.radians(FOVY_DEG))
    size = images.shape[-1]
    layers = {
        spec.kind: shaded_coverage(surface_view(spec.shape, c2w, fovy, 2 * size, 2 * size), 2)
        for spec in {s.kind: s for s in specs}.values()
    }
    nearest = []
    for image, spec in zip(images, specs):
        background = torch.cat([image[:, 0], image[:, -1]], -1).median(-1).values
        exact = composite(
            layers[spec.kind], role_colors(spec.main, spec.accent).expand(count, -1, -1), background.expand(count, -1)
        )
        nearest.append(azimuth[(exact - image).abs().mean((1, 2, 3)).argmin()])
    return torch.stack(nearest)


def save_grid(images: Tensor, path: Path, scale: int = 1) -> None:
    """Writes [R, C, 3, H, W] in [0, 1] as one PNG of R rows and C columns."""
    from PIL import Image

    rows, columns, _, height, width = images.shape
    grid = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    pixels = (grid.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((columns * width * scale, rows * height * scale), Image.NEAREST).save(path)
