"""Figures of held-out views: how well renders repeat pictures that were not fitted to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from threestudio.utils.mesh_files import write_text
from threestudio.utils.staged_files import staged

from .picture_metrics import psnr, silhouette_iou
from .surface_metrics import Chamfer


@dataclass(frozen=True)
class HeldOutScores:
    """Means over held-out views."""

    psnr: float  # dB, mean of the views' own
    psnr_object: float  # dB, over the pixels that the object covers
    iou: float  # of silhouettes
    views: int

    @staticmethod
    def mean(scores: Sequence[HeldOutScores]) -> HeldOutScores:
        total = sum(s.views for s in scores)

        def of(name: str) -> float:
            return sum(getattr(s, name) * s.views for s in scores) / total

        return HeldOutScores(of("psnr"), of("psnr_object"), of("iou"), total)

    def save(self, folder: Path, chamfer: Chamfer | None, kind: str = "held-out") -> str:
        """Write held_out.json, or that of another kind of views; returns the figures in one line.

        `chamfer`: of the mesh to the exact surface, if known.
        """
        figures = asdict(self)
        line = (
            f"{kind} views ({self.views}): PSNR {self.psnr:.2f} dB, on the object {self.psnr_object:.2f} dB, "
            f"IoU {self.iou:.3f}"
        )
        if chamfer is not None:
            figures |= {"chamfer": chamfer.distance, "chamfer_share": chamfer.share}
            line += f", Chamfer {chamfer.share:.4f} of the size"
        shown = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in figures.items()}
        with staged(str(folder / f"{kind.replace('-', '_')}.json")) as scratch:
            write_text(scratch, json.dumps(shown, indent=2, allow_nan=False) + "\n")
        return line


def held_out_scores(
    rgb: Tensor,  # [B, H, W, 3] in [0, 1]
    opacity: Tensor,  # [B, H, W, 1]
    target_rgb: Tensor,  # [B, H, W, 3], on the same background
    target_coverage: Tensor,  # [B, H, W, 1]
) -> HeldOutScores:
    rgb, opacity = rgb.detach(), opacity.detach()
    count = len(rgb)
    whole = [psnr(a, b) for a, b in zip(rgb, target_rgb)]
    covered = [m > 0.0 for m in target_coverage[..., 0]]
    on_object = [
        psnr(a[m], b[m]) if bool(m.any()) else whole[i] for i, (a, b, m) in enumerate(zip(rgb, target_rgb, covered))
    ]
    iou = silhouette_iou(opacity[..., 0], target_coverage[..., 0])
    return HeldOutScores(sum(whole) / count, sum(on_object) / count, float(torch.mean(iou)), count)
