"""How near drawn views are to the true ones: PSNR, SSIM, and LPIPS where a package for it is there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import first_line
from threestudio.utils.value_checks import check_choice

from ..evaluation.picture_metrics import psnr_of_each, structural_similarity_of_each

BACKBONES = ("vgg", "alex", "squeeze")
Perceptual = Callable[[Tensor, Tensor], Tensor]  # two of [B, 3, S, S] in [0, 1] -> [B]


def perceptual_distance(backbone: str, device: torch.device) -> tuple[Perceptual | None, str]:
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924) with one backbone, and how it was computed; or None, and why.

    Of the package `lpips`, else of torchmetrics; both need torchvision, and the backbone's weights, which they fetch.
    Raises ValueError for an unknown backbone.
    """
    check_choice("lpips", backbone, BACKBONES)
    reasons, to_install = [], ""
    for load in (_lpips_package, _torchmetrics):
        try:
            return load(backbone, device)
        except (ImportError, OSError, RuntimeError) as error:  # OSError: its weights cannot be fetched
            reasons.append(first_line(error))
            if isinstance(error, ImportError):
                to_install = "; pip install lpips torchvision"
    return None, f"not computed: {'; '.join(reasons)}{to_install}"


def _lpips_package(backbone: str, device: torch.device) -> tuple[Perceptual, str]:
    from importlib.metadata import version

    import lpips

    network = lpips.LPIPS(net=backbone, verbose=False).to(device).eval()
    # lpips 0.1.4 has no __version__
    return (lambda one, other: network(one * 2 - 1, other * 2 - 1).flatten()), f"lpips {version('lpips')}, {backbone}"


def _torchmetrics(backbone: str, device: torch.device) -> tuple[Perceptual, str]:
    import torchmetrics
    import torchvision  # noqa: F401  its backbones; torchmetrics says so only later
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    # Loads its weights here: the functional form does so at each call.
    network = LearnedPerceptualImagePatchSimilarity(net_type=backbone, normalize=True).to(device)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack([network(a, b) for a, b in zip(one.split(1), other.split(1))])

    return distance, f"torchmetrics {torchmetrics.__version__}, {backbone}"


class QualityMeter:
    """Collects the quality of views, one row a view.

    Args:
        backbone: of LPIPS.
        device: where LPIPS runs.
    """

    def __init__(self, backbone: str, device: torch.device) -> None:
        self._distance, self._how = perceptual_distance(backbone, device)
        self.rows: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def add(self, drawn: Tensor, truth: Tensor) -> None:  # each [B, 3, S, S] in [0, 1]
        columns = {"psnr": psnr_of_each(drawn, truth), "ssim": structural_similarity_of_each(drawn, truth)}
        if self._distance is not None:
            columns["lpips"] = self._distance(drawn.float(), truth.float()).cpu()
        for values in zip(*(column.tolist() for column in columns.values())):
            self.rows.append(dict(zip(columns, values)))

    def means(self) -> dict[str, float]:
        return {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}

    def report(self) -> dict[str, Any]:
        """The means, how each was computed, and the rows."""
        how = {"psnr": "mean over views of -10 log10 MSE, colours in [0, 1], over white", "lpips": self._how}
        how["ssim"] = "skimage, Gaussian window of standard deviation 1.5, data range 1"
        return {"views": len(self), "mean": self.means(), "how": how, "each": self.rows}

    def lines(self) -> list[str]:
        """The result in words."""
        means = self.means()
        text = f"{len(self)} views: PSNR {means['psnr']:.2f} dB, SSIM {means['ssim']:.4f}"
        if "lpips" not in means:
            return [f"{text}; LPIPS {self._how}"]
        return [f"{text}, LPIPS {means['lpips']:.4f} ({self._how})"]
