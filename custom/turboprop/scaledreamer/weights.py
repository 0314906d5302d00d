"""Names of weights in ScaleDreamer's checkpoints, and ours for them.

Its modules take its checkpoints by these rules: `system.weights=DF415_3dconv_net.pth` with its own config takes such a
file. Left out is what has no part in a generator's answer: the box of the scene, which is the config's,
noise that is the same for every object, and a mean style that no truncation asks for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from threestudio.utils.weight_names import Rule

NOT_OF_GENERATORS: tuple[Rule, ...] = (("bbox", None),)
HEADS: tuple[Rule, ...] = (
    (r"sdf_network\.layers\.(.+)", r"heads.sdf.\1"),
    (r"feature_network\.layers\.(.+)", r"heads.color.\1"),
)

_SYNTHESIS = r"space_generator\.synthesis\."
CONV_NET: tuple[Rule, ...] = (
    *NOT_OF_GENERATORS,
    *HEADS,
    (r"space_generator\.mapping\.layers\.(.+)", r"generator.mapping.noise_layers.\1"),
    (r"space_generator\.mapping\.embed\.(.+)", r"generator.mapping.output.\1"),
    (r"space_generator\.mapping\.w_avg", None),
    (r"space_generator\..+\.noise_const", None),
    (_SYNTHESIS + r"first_block\.const", "generator.blocks.0.constant"),
    (_SYNTHESIS + r"first_block\.torgb\.(.+)", r"generator.blocks.0.to_features.\1"),
    (_SYNTHESIS + r"first_block\.(.+)", r"generator.blocks.0.\1"),
    # Our first block is counted with the others.
    (_SYNTHESIS + r"blocks\.(\d+)\.const_bias", lambda match: f"generator.blocks.{int(match[1]) + 1}.between"),
    (
        _SYNTHESIS + r"blocks\.(\d+)\.torgb\.(.+)",
        lambda match: f"generator.blocks.{int(match[1]) + 1}.to_features.{match[2]}",
    ),
    (_SYNTHESIS + r"blocks\.(\d+)\.(.+)", lambda match: f"generator.blocks.{int(match[1]) + 1}.{match[2]}"),
)

HYPER_NETWORK: tuple[Rule, ...] = (
    (r"hypernet\.(.+)\.weight_orig", r"hyper_network.\1.parametrizations.weight.original"),
    (r"hypernet\.(.+)\.weight_([uv])", r"hyper_network.\1.parametrizations.weight.0._\2"),
    (r"hypernet\.(.+)", r"hyper_network.\1"),
)
HYPER: tuple[Rule, ...] = (*NOT_OF_GENERATORS, *HYPER_NETWORK)

_LAYER, _BLOCK = r"space_generator\.layers\.(\d+)\.", r"generator.blocks.\1."
_NORMS = {"norm1": "text_norm", "norm2": "token_norm", "norm3": "mlp_norm"}
_ATTENTIONS = {"cross_attn": "text_attention", "self_attn": "token_attention"}
_PROJECTIONS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "output"}
TRIPLANE: tuple[Rule, ...] = (
    *NOT_OF_GENERATORS,
    *HEADS,
    (r"space_generator\.pos_embed", "generator.tokens"),
    (r"space_generator\.deconv\.(.+)", r"generator.up.\1"),
    (r"space_generator\.norm\.(.+)", r"generator.norm.\1"),
    *((_LAYER + rf"{theirs}\.(.+)", _BLOCK + rf"{ours}.\2") for theirs, ours in _NORMS.items()),
    *(
        (_LAYER + rf"{attention}\.{projection}\.(.+)", _BLOCK + rf"{_ATTENTIONS[attention]}.{ours}.\2")
        for attention in _ATTENTIONS
        for projection, ours in _PROJECTIONS.items()
    ),
    (_LAYER + r"mlp\.0\.(.+)", _BLOCK + r"mlp.0.\2"),
    (_LAYER + r"mlp\.3\.(.+)", _BLOCK + r"mlp.2.\2"),  # behind the dropout
)

RENDERER: tuple[Rule, ...] = ((r"variance\._inv_std", None),)  # the config's, for it does not learn


def noise_strengths_are_numbers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """A hook behind CONV_NET: a row of one number is a number."""
    for key, value in state_dict.items():
        if key.startswith(prefix) and key.endswith(".noise_strength") and value.shape == (1,):
            state_dict[key] = value.reshape(())


def planes_without_bias(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """A hook behind TRIPLANE: the last layer has a bias here and none there."""
    weight = state_dict.get(prefix + "generator.up.weight")  # [D, C, 2, 2]
    if weight is not None:
        state_dict.setdefault(prefix + "generator.up.bias", torch.zeros_like(weight[0, :, 0, 0]))
