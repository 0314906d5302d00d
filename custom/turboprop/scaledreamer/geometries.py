"""The three generators under ScaleDreamer's names, with its keys beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.utils.errors import UserError
from threestudio.utils.weight_names import renaming_hook

from ..amortized.conv_geometry import ConvNetGeometry
from ..amortized.hyper_geometry import HyperGeometry
from ..amortized.triplane_geometry import TriplaneGeometry
from . import weights
from .keys import hidden_layers_of, nested, network_keys, only, set_given

# Widths of the 3DConv-net at 4^3, 8^3, 16^3, and at 32^3, 64^3, ... times channel_multiplier
FIXED_WIDTHS, MULTIPLIED_WIDTHS = (512, 512, 512), (256, 128, 64, 32)


@dataclass
class FieldKeys:
    """What ScaleDreamer's generators have in common."""

    n_input_dims: int = 3
    normal_type: str = "finite_difference"  # the only one
    finite_difference_normal_eps: float | None = None  # our finite_difference_eps
    sdf_bias: str | float | None = None  # sphere, the only one
    sdf_bias_params: float | None = None  # our sphere_radius
    shape_init: str | None = None  # not read, as there with initialize_shape false
    shape_init_params: Any = None  # likewise
    mlp_network_config: dict[str, Any] | None = None  # n_neurons is our hidden_dim


def read_field_keys(cfg: Any) -> None:
    only("geometry.n_input_dims", cfg.n_input_dims, 3)
    only("geometry.normal_type", cfg.normal_type, "finite_difference")
    only("geometry.sdf_bias", cfg.sdf_bias, None, "sphere")
    set_given(cfg, {"finite_difference_eps": cfg.finite_difference_normal_eps, "sphere_radius": cfg.sdf_bias_params})


@threestudio.register("3DConv-net")
class ScaleDreamerConvNetGeometry(ConvNetGeometry):
    @dataclass
    class Config(ConvNetGeometry.Config, FieldKeys):
        constant_bias: str = "between"
        align_corners: bool = True
        backbone: str = "3dconv_net"
        activation: str = "none"  # of the voxels
        truncation_psi: float = 1.0
        # z_dim, w_dim, c_dim, num_layers, img_resolution, img_channels, channel_multiplier, bias_resolution
        space_generator_config: dict[str, Any] | None = None

    cfg: Config

    def configure(self) -> None:
        cfg, where = self.cfg, "geometry.space_generator_config"
        read_field_keys(cfg)
        only("geometry.backbone", cfg.backbone, "3dconv_net")
        only("geometry.activation", cfg.activation, "none")
        only("geometry.truncation_psi", cfg.truncation_psi, 1.0)
        width, layers = network_keys("geometry.mlp_network_config", cfg.mlp_network_config)
        only("geometry.mlp_network_config.n_hidden_layers", layers, None, 1)
        keys = nested(
            where,
            cfg.space_generator_config,
            ("z_dim", "w_dim", "c_dim", "num_layers", "img_resolution", "img_channels", "channel_multiplier",
             "bias_resolution"),
        )  # fmt: skip
        only(f"{where}.num_layers", keys["num_layers"], None, 2)
        set_given(
            cfg,
            {
                "hidden_dim": width,
                "noise_dim": keys["z_dim"],
                "style_dim": keys["w_dim"],
                "text_dim": keys["c_dim"],
                "feature_dim": keys["img_channels"],
                "constant_bias_up_to": keys["bias_resolution"],
            },
        )
        if keys["img_resolution"] is not None or keys["channel_multiplier"] is not None:
            cfg.channels = synthesis_widths(keys["img_resolution"] or 128, keys["channel_multiplier"] or 1)
        super().configure()
        self.register_load_state_dict_pre_hook(renaming_hook(weights.CONV_NET))
        self.register_load_state_dict_pre_hook(weights.noise_strengths_are_numbers)


def synthesis_widths(resolution: int, multiplier: int) -> list[int]:
    """Widths of the 3DConv-net at 4^3, 8^3, ... `resolution`^3. Raises UserError for another than 4, 8, ... 256."""
    widths = [*FIXED_WIDTHS, *(width * multiplier for width in MULTIPLIED_WIDTHS)]
    resolutions = [4 * 2**level for level in range(len(widths))]
    only("geometry.space_generator_config.img_resolution", resolution, *resolutions)
    return widths[: resolutions.index(resolution) + 1]


@threestudio.register("Hyper-iNGP")
class ScaleDreamerHyperGeometry(HyperGeometry):
    @dataclass
    class Config(HyperGeometry.Config, FieldKeys):
        backbone: str = "linear_hypernetwork"
        # c_dim, out_dims, spectral_norm, n_neurons, n_hidden_layers, output_activation
        hypernet_config: dict[str, Any] | None = None

    cfg: Config

    def configure(self) -> None:
        cfg, where = self.cfg, "geometry.hypernet_config.out_dims"
        read_field_keys(cfg)
        only("geometry.backbone", cfg.backbone, "linear_hypernetwork")
        if cfg.mlp_network_config is not None:
            raise UserError("geometry.mlp_network_config: no network here has one; expected hypernet_config")
        keys, out_dims = hypernet_keys("geometry.hypernet_config", cfg.hypernet_config)
        if out_dims is not None:
            dims = nested(where, out_dims, ("sdf_weights", "feature_weights"))
            for name, value in dims.items():
                if value is None:
                    raise UserError(f"{where}.{name}: a value is required")
            *sdf, _ = hidden_layers_of(f"{where}.sdf_weights", dims["sdf_weights"], 1)
            *color, channels = hidden_layers_of(f"{where}.feature_weights", dims["feature_weights"])
            if sdf != color:
                raise UserError(f"{where}: expected equal hidden layers of both networks, got {out_dims}")
            keys |= {"hidden_dim": sdf[0], "hidden_layers": sdf[1], "n_feature_dims": channels}
        set_given(cfg, keys)
        super().configure()
        self.register_load_state_dict_pre_hook(renaming_hook(weights.HYPER))


def hypernet_keys(where: str, given: Any) -> tuple[dict[str, Any], Any]:
    """Our keys of a hyper-network of a hypernet_config, and its out_dims."""
    names = ("c_dim", "out_dims", "spectral_norm", "n_neurons", "n_hidden_layers", "output_activation")
    keys = nested(where, given, names)
    only(f"{where}.output_activation", keys["output_activation"], None)
    ours = {
        "text_dim": keys["c_dim"],
        "spectral_norm": keys["spectral_norm"],
        "hyper_dim": keys["n_neurons"],
        "hyper_layers": keys["n_hidden_layers"],
    }
    return ours, keys["out_dims"]


@threestudio.register("Triplane-transformer-sdf")
class ScaleDreamerTriplaneGeometry(TriplaneGeometry):
    @dataclass
    class Config(TriplaneGeometry.Config, FieldKeys):
        backbone: str = "triplane_transformer"
        # inner_dim, condition_dim, triplane_low_res, triplane_high_res, triplane_dim, num_layers, num_heads, mlp_ratio,
        # local_text, flash_attention (not read)
        space_generator_config: dict[str, Any] | None = None

    cfg: Config

    def configure(self) -> None:
        cfg, where = self.cfg, "geometry.space_generator_config"
        read_field_keys(cfg)
        only("geometry.backbone", cfg.backbone, "triplane_transformer")
        same = ("inner_dim", "triplane_low_res", "triplane_dim", "num_layers", "num_heads", "mlp_ratio", "local_text")
        other = ("condition_dim", "triplane_high_res", "flash_attention")
        keys = nested(where, cfg.space_generator_config, (*same, *other))
        width, layers = network_keys("geometry.mlp_network_config", cfg.mlp_network_config)
        ours = {key: keys[key] for key in same}
        set_given(cfg, {**ours, "text_dim": keys["condition_dim"], "hidden_dim": width, "hidden_layers": layers})
        only(f"{where}.triplane_high_res", keys["triplane_high_res"], None, 2 * cfg.triplane_low_res)
        super().configure()
        self.register_load_state_dict_pre_hook(renaming_hook(weights.TRIPLANE))
        self.register_load_state_dict_pre_hook(weights.planes_without_bias)
