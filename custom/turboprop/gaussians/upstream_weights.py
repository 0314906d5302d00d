"""Gaussians under the names that threestudio-3dgs's checkpoints give their numbers; they mean the same."""

from __future__ import annotations

from torch import Tensor

from .densification import Statistics

NAMES = {
    "_xyz": "means",
    "_scaling": "log_scales",
    "_rotation": "quaternions",
    "_opacity": "opacity_logits",
    "_features_dc": "sh_dc",
    "_features_rest": "sh_rest",
    "_normal": "normals",
}


def take_upstream_names(state_dict: dict[str, Tensor], prefix: str = "") -> None:
    """Renames Gaussians of such a checkpoint in place; their statistics, which it leaves out, begin at zero."""
    points = state_dict.get(f"{prefix}_xyz")
    if points is None:
        return
    for old, new in NAMES.items():
        if prefix + old in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)
    logits = state_dict.get(f"{prefix}opacity_logits")
    if logits is not None and logits.ndim == 2:  # [N, 1] there
        state_dict[f"{prefix}opacity_logits"] = logits[:, 0]
    rest = state_dict.get(f"{prefix}sh_rest")
    if rest is not None and not rest.shape[1]:  # of degree 0
        del state_dict[f"{prefix}sh_rest"]
    for name, value in Statistics.zeros(points)._asdict().items():
        state_dict.setdefault(prefix + name, value)
