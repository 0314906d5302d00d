"""Contact sheets and plots of a run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LABEL_HEIGHT = 14  # pixels


def contact_sheet(prompts: Sequence[str], views: Sequence[Tensor], columns: int = 2) -> np.ndarray:
    """Each prompt's views in a row under its name, the prompts in `columns` columns.

    views: for each prompt [V, H, W, 3] in [0, 1] -> [height, width, 3] uint8.
    """
    from PIL import Image, ImageDraw

    strips = [np.concatenate(list(_bytes(v)), 1) for v in views]
    height, width = strips[0].shape[0] + LABEL_HEIGHT, strips[0].shape[1]
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (prompt, strip) in enumerate(zip(prompts, strips)):
        left, top = index // rows * width, index % rows * height
        draw.text((left + 3, top + 1), _fitting(draw, prompt, width - 6), fill="black")
        sheet.paste(Image.fromarray(strip), (left, top + LABEL_HEIGHT))
    return np.asarray(sheet)


def _fitting(draw, text: str, width: int) -> str:
    """The text, cut to `width` pixels."""
    while draw.textlength(text) > width:
        text = text[:-2].rstrip(".") + "."
    return text


def _bytes(pictures: Tensor) -> np.ndarray:
    return (pictures.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def plot_curves(metrics_csv: Path, names: Sequence[str], path: str) -> bool:
    """Draw columns of Lightning's metrics.csv against the step, one panel each; false if none of them is there."""
    from matplotlib.figure import Figure

    with open(metrics_csv, newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]
        for name in names
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return False
    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    for axis, (name, points) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items()):
        axis.plot(*zip(*points), linewidth=0.8)
        axis.set_title(name)
        axis.set_xlabel("step")
    figure.savefig(path, dpi=100)
    return True
