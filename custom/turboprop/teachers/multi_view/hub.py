"""Where MVDream's published models are on the hub."""

from dataclasses import dataclass

from threestudio.utils.errors import MissingFileError, first_line

from ..weights import DENOISER_PARTS, model_folder


@dataclass(frozen=True)
class PublishedModel:
    """The authors' file, and folders of the community with the same weights, best first."""

    repository: str
    file: str
    folders: tuple[str, ...]


PUBLISHED = {
    "sd-v2.1-base-4view": PublishedModel(
        "MVDream/MVDream",
        "sd-v2.1-base-4view.pt",
        ("ashawkey/mvdream-sd2.1-diffusers", "lzq49/mvdream-sd21-diffusers"),
    ),
    "sd-v1.5-4view": PublishedModel("MVDream/MVDream", "sd-v1.5-4view.pt", ("yanqinJiang/mvdream-sd1.5-diffusers",)),
}


def fetch_published(name: str) -> str:
    """A file or folder of one of PUBLISHED, from the hub or its local cache, for `load_teacher`. Raises
    FileNotFoundError where none of its places answers; the message names them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    model = PUBLISHED[name]
    try:
        return hf_hub_download(model.repository, model.file)
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        reasons = [f"{model.repository}: {first_line(error)}"]
    for folder in model.folders:
        try:
            return str(model_folder(folder, DENOISER_PARTS))
        except FileNotFoundError as error:
            reasons.append(str(error).removeprefix("pretrained_model_name_or_path: "))
    raise MissingFileError(
        f"model_name: cannot fetch {name}: {'; '.join(reasons)}. "
        f"Give {model.file} or a folder with the same weights as ckpt_path"
    )
