"""The background that reads the text, under ScaleDreamer's name and with its keys beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.weight_names import renaming_hook

from ..amortized.text_background import TextBackground
from .geometries import hypernet_keys
from .keys import hidden_layers_of, nested, set_given
from .weights import HYPER_NETWORK


@threestudio.register("multiprompt-neural-hashgrid-environment-map-background")
class ScaleDreamerTextBackground(TextBackground):
    @dataclass
    class Config(TextBackground.Config):
        # c_dim, out_dims (bg_weights), spectral_norm, n_neurons, n_hidden_layers, output_activation
        hypernet_config: dict[str, Any] | None = None

    cfg: Config

    def configure(self) -> None:
        where = "background.hypernet_config"
        keys, out_dims = hypernet_keys(where, self.cfg.hypernet_config)
        if out_dims is not None:
            widths = nested(f"{where}.out_dims", out_dims, ("bg_weights",))["bg_weights"]
            if widths is None:
                raise UserError(f"{where}.out_dims.bg_weights: a value is required")
            width, layers, _ = hidden_layers_of(f"{where}.out_dims.bg_weights", widths, self.cfg.n_output_dims)
            keys |= {"hidden_dim": width, "hidden_layers": layers}
        set_given(self.cfg, keys)
        super().configure()
        self.register_load_state_dict_pre_hook(renaming_hook(HYPER_NETWORK))
