"""Writes MVDream's original file of weights as a model folder.

    python -m custom.turboprop.teachers.multi_view.convert sd-v2.1-base-4view.pt --output mvdream

The folder has unet/ (ours), vae/, scheduler/ and text_encoder/ in diffusers' layout. A tokenizer is not in the file;
--tokenizer copies one, without which a prompt processor needs another model of the same text encoder
(stabilityai/stable-diffusion-2-1-base).
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from threestudio.utils.commands import exit_code_of
from threestudio.utils.staged_files import staged_folder


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m custom.turboprop.teachers.multi_view.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="sd-v2.1-base-4view.pt")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; it must be empty or not there")
    parser.add_argument("--half", action="store_true", help="write float16, half as large")
    parser.add_argument("--tokenizer", help="a model folder or hub id whose tokenizer/ is copied")
    return parser.parse_args(arguments)


def convert(file: Path, output: Path, half: bool = False, tokenizer: str | None = None) -> list[str]:
    """Writes the folder and returns the names of its parts. Raises FileExistsError where `output` holds something, and
    as `published.read_original` and `published.network_of`, before anything is written."""
    from ..weights import model_folder, part_folder
    from .published import autoencoder_of, network_of, read_original, schedule_of, text_encoder_of

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"--output: {output} is there already and not an empty folder")
    source = read_original(file)
    parts: dict[str, Any] = {"unet": network_of(source.unet), "vae": autoencoder_of(source.vae)}
    if source.text:
        parts["text_encoder"] = text_encoder_of(source.text)
    for part in parts.values():
        part.to(torch.float16 if half else torch.float32)
    parts["scheduler"] = schedule_of(source.schedule)
    tokens = part_folder(model_folder(tokenizer, ("tokenizer",)), "tokenizer") if tokenizer else None
    index = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()}
    index["unet"] = ["turboprop", "MultiViewUNet"]
    with staged_folder(output) as folder:
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        if tokens is not None:
            shutil.copytree(tokens, folder / "tokenizer")
            index["tokenizer"] = ["transformers", "CLIPTokenizer"]
        content = {"_class_name": "MultiViewPipeline", **index}
        (folder / "model_index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return list(index)


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    return exit_code_of(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    written = convert(options.file, options.output, options.half, options.tokenizer)
    print(f"wrote {', '.join(written)} to {options.output}")
    if "text_encoder" not in written:
        print("the file has no OpenCLIP text model: take the text encoder from Stable Diffusion")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
