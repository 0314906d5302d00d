"""Novel-view models from and to files.

Four layouts are read:

- our own: diffusers' folder with unet/, vae/, scheduler/, image_encoder/, perhaps feature_encoder/, and conditioning/,
  which holds the settings and the trained layers between encoder and UNet;
- zero123 as kxic/zero123-xl has it: the projection is in cc_projection/;
- zero123 as bennyguo/zero123-diffusers and ashawkey/*-diffusers have it: it is in clip_camera_projection/;
- the original checkpoints, `105000.ckpt`, `zero123-xl.ckpt`, `stable_zero123.ckpt` or `.safetensors`: see
  `original_checkpoint`.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio.utils.errors import UserError, first_line

from ..teachers.loading import load_part
from ..teachers.weights import is_weight_file, model_folder, part_classes, part_folder, weight_files, weight_variant
from .eight_bits import from_eight_bits, has_eight_bits, to_eight_bits
from .image_encoders import quiet_transformers, read_encoder
from .model import NovelViewModel, NovelViewSettings, cast_module

PIPELINE_CLASS = "TurbopropNovelView"
# zero123's projection in diffusers' layouts: the part, and the prefix of its two tensors.
FOREIGN_PROJECTIONS = {"cc_projection": "projection.", "clip_camera_projection": "proj."}


@contextmanager
def model_is_named(key: str) -> Iterator[None]:
    """What is wrong with a model's files in the block is named by the key, or option, that a user gave."""
    try:
        yield
    except UserError as error:
        reason = str(error).removeprefix("pretrained_model_name_or_path: ")
        raise type(error)(f"{key}: {reason}") from error


def fourth_number_of(name: str) -> str:
    """The fourth pose number of foreign files, by their published names: only stable-zero123 differs."""
    plain = Path(name).name.lower().replace("_", "-")
    return "input_polar_angle" if plain.startswith("stable-zero123") else "distance_difference"


def load_novel_view_model(
    pretrained_model_name_or_path: str,  # a folder, a hub id, or an original checkpoint
    fourth_number: str | None = None,  # of foreign files; None: by their name
) -> NovelViewModel:
    """The model in one of the layouts above, float32, on the CPU, in evaluation mode. Raises as `weights.model_folder`,
    and ValueError for a part that is missing, broken or does not fit."""
    name = pretrained_model_name_or_path
    if is_weight_file(name):
        from .original_checkpoint import load_original_checkpoint

        return load_original_checkpoint(Path(name).expanduser(), fourth_number or fourth_number_of(name)).eval()
    parts = part_classes(name)
    if "conditioning" in parts:
        return _load_own(name, parts, fourth_number)
    for projection in FOREIGN_PROJECTIONS:
        if projection in parts:
            return _load_foreign(name, projection, fourth_number or fourth_number_of(name))
    raise UserError(
        f"pretrained_model_name_or_path: {name} is no novel-view model: its model_index.json has neither conditioning "
        f"(ours) nor {' nor '.join(FOREIGN_PROJECTIONS)} (zero123), but {', '.join(sorted(parts))}"
    )


def _load_own(name: str, parts: dict[str, str], fourth_number: str | None) -> NovelViewModel:
    encoders = [part for part in ("image_encoder", "feature_encoder") if part in parts]
    folder = model_folder(name, ("unet", "vae", "scheduler", "conditioning", *encoders))
    settings = read_settings(folder / "conditioning" / "config.json")
    if fourth_number is not None and fourth_number != settings.fourth_number:
        raise UserError(
            f"fourth_number: {folder} was trained with {settings.fourth_number}, got {fourth_number}; "
            "stable-zero123-guidance gives input_polar_angle, the other guidances what the model was trained with"
        )
    model = _assembled(folder, settings, "feature_encoder" in parts)
    trained = {key: part for key, part in model.trained_parts().items() if key != "unet"}
    tensors = read_weights(folder, "conditioning")
    for prefix, part in trained.items():
        own = {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
        _load_exactly(part, own, f"{folder / 'conditioning'}: {prefix}")
    extra = [key for key in tensors if key.split(".")[0] not in trained]
    if extra:
        raise UserError(f"{folder / 'conditioning'}: unknown weights {extra[0]}")
    return model.eval()


def _load_foreign(name: str, projection: str, fourth_number: str) -> NovelViewModel:
    """zero123: one CLIP token, no layer normalisation, the input latent unscaled, upstream's null condition."""
    folder = model_folder(name, ("unet", "vae", "scheduler", "image_encoder", projection))
    settings = NovelViewSettings(fourth_number=fourth_number, null_condition="zero123")
    model = _assembled(folder, settings, has_feature_encoder=False)
    prefix = FOREIGN_PROJECTIONS[projection]
    given = read_weights(folder, projection)
    tensors = {f"projection.{key.removeprefix(prefix)}": value for key, value in given.items()}
    _load_exactly(model.tokens, tensors, str(folder / projection))
    return model.eval()


def _assembled(folder: Path, settings: NovelViewSettings, has_feature_encoder: bool) -> NovelViewModel:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    scheduler = load_part(DDPMScheduler, folder, "scheduler")
    features = None
    if has_feature_encoder:
        features = read_encoder(
            part_folder(folder, "feature_encoder"), settings.feature_encoder_size, "feature_encoder"
        )
    return NovelViewModel(
        load_whole_part(UNet2DConditionModel, folder, "unet"),
        load_whole_part(AutoencoderKL, folder, "vae"),
        read_encoder(part_folder(folder, "image_encoder"), settings.image_encoder_size),
        settings,
        scheduler.alphas_cumprod,
        scheduler.config.prediction_type,
        features,
    )


def load_whole_part(part_class: Any, folder: Path, part: str) -> Any:
    """A part in float32; missing weights are an error, where diffusers would draw them at random."""
    if any(map(has_eight_bits, weight_files(folder, part))):
        where = part_folder(folder, part)
        model = part_class.from_config(part_class.load_config(where))
        _load_exactly(model, read_weights(folder, part), str(where))
        return model.eval()
    variant = weight_variant(folder, part)
    model, loaded = load_part(
        part_class, folder, part, torch_dtype=torch.float32, variant=variant, output_loading_info=True
    )
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise UserError(f"{folder / part} lacks {len(missing)} weights of {part_class.__name__}, first {missing[0]}")
    return model


def read_weights(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part's files, float32, without running any code that a file may hold. Raises ValueError for a
    file that does not load, or eight bits without their scales."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder, part):
        try:
            pickled = path.suffix == ".bin"
            tensors |= torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
        except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError) as error:
            reason = first_line(error)
            raise UserError(f"cannot load {path}: {reason}") from error
    return from_eight_bits(tensors, str(part_folder(folder, part)))


def _load_exactly(part: torch.nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Raises ValueError that names the first weight that is missing, unknown or of another shape."""
    known = part.state_dict()
    for kind, keys in (("lacks", known.keys() - tensors.keys()), ("has unknown", tensors.keys() - known.keys())):
        if keys:
            raise UserError(f"{where} {kind} weights: {min(keys)}")
    for key, value in tensors.items():
        if value.shape != known[key].shape:
            raise UserError(
                f"{where}: {key} has shape {list(value.shape)}, expected {list(known[key].shape)}: "
                "the encoder's width or the UNet's cross-attention does not fit these weights"
            )
    part.load_state_dict(tensors)


def read_settings(path: Path) -> NovelViewSettings:
    """The settings in a model's conditioning/config.json. Raises ValueError for an unknown key, a missing file, or an
    impossible value."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    values = {key: value for key, value in content.items() if not key.startswith("_")}
    known = {entry.name for entry in fields(NovelViewSettings)}
    if unknown := values.keys() - known:
        raise UserError(f"{path}: unknown key {min(unknown)!r}; known: {', '.join(sorted(known))}")
    settings = NovelViewSettings(**values)
    try:
        settings.check()
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return settings


def save_novel_view_model(
    model: NovelViewModel,
    folder: Path,
    dtype: torch.dtype = torch.float32,  # of the saved weights
    shared: dict[str, str] | None = None,  # parts that are elsewhere, and where, as `weights.part_folder` has it
    eight_bits: bool = False,  # of the UNet's weights, see `eight_bits`
) -> None:
    """Writes our own layout; what was there under the same names is overwritten."""
    shared = shared or {}
    from diffusers import DDIMScheduler, __version__
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if eight_bits:
        model.unet.save_config(folder / "unet")
        stored = {key: value.cpu().contiguous() for key, value in to_eight_bits(model.unet.state_dict()).items()}
        save_file(stored, folder / "unet" / "diffusion_pytorch_model.safetensors")
    else:
        _in_dtype(model.unet, dtype).save_pretrained(folder / "unet")
    if "vae" not in shared:
        _in_dtype(model.vae, dtype).save_pretrained(folder / "vae")
    index: dict[str, Any] = {"_class_name": PIPELINE_CLASS, "_diffusers_version": __version__}
    if shared:
        index["_shared_parts"] = shared
    for part, encoder in (("image_encoder", model.image_encoder), ("feature_encoder", model.feature_encoder)):
        if encoder is not None:
            if part not in shared:
                with quiet_transformers():
                    _in_dtype(encoder.model, dtype).save_pretrained(folder / part)
            index[part] = ["transformers", encoder.kind.model_class]
    # a schedule of any shape is written as its betas
    alphas = model.alphas_cumprod.double().cpu()
    betas = 1.0 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
    DDIMScheduler(
        num_train_timesteps=len(betas),
        trained_betas=betas.tolist(),
        prediction_type=model.prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    conditioning = folder / "conditioning"
    conditioning.mkdir(exist_ok=True)
    (conditioning / "config.json").write_text(json.dumps(asdict(model.settings), indent=2) + "\n", encoding="utf-8")
    tensors = {
        f"{prefix}.{key}": value.detach().to("cpu", dtype).contiguous()
        for prefix, part in model.trained_parts().items()
        if prefix != "unet"
        for key, value in part.state_dict().items()
    }
    save_file(tensors, conditioning / "diffusion_pytorch_model.safetensors")
    index |= {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "conditioning": ["turboprop", "Conditioning"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _in_dtype(part: Any, dtype: torch.dtype) -> Any:
    """The part itself, or a copy of it in another precision."""
    return part if part.dtype == dtype else cast_module(copy.deepcopy(part), dtype)
