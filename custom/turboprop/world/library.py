"""The world's prompt libraries, in the JSON form of threestudio's amortized systems.

    python -m custom.turboprop.world.library custom/turboprop/world/libraries

`world_16`: one prompt for each of sixteen kinds, the same in all splits. `world_512`: 512
prompts to train on; `val` and `test` are pairs of kind and colour that no teacher and no
generator has seen.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from .captions import ObjectSpec, all_specs, caption, held_out

SIXTEEN = (
    ObjectSpec("mushroom", "red", "white"),
    ObjectSpec("table", "brown", "black"),
    ObjectSpec("chair", "blue", "orange"),
    ObjectSpec("car", "yellow", "black"),
    ObjectSpec("snowman", "white", "purple"),
    ObjectSpec("house", "yellow", "red"),
    ObjectSpec("lamp", "orange", "blue"),
    ObjectSpec("tree", "green", "brown"),
    ObjectSpec("mug", "blue", "yellow"),
    ObjectSpec("sofa", "blue", "pink"),
    ObjectSpec("boat", "red", "yellow"),
    ObjectSpec("duck", "yellow", "orange"),
    ObjectSpec("rocket", "white", "red"),
    ObjectSpec("robot", "green", "purple"),
    ObjectSpec("cactus", "purple", "red"),
    ObjectSpec("bed", "pink", "white"),
)


def libraries() -> dict[str, dict[str, list[str]]]:
    """Every library by name. Raises ValueError if a training prompt is held out."""
    wrong = [caption(spec) for spec in SIXTEEN if held_out(spec.kind, spec.main)]
    if wrong:
        raise ValueError(f"held-out pairs among the training prompts: {wrong}")
    sixteen = [caption(spec) for spec in SIXTEEN]
    draw = random.Random(0)
    train = [caption(spec) for spec in draw.sample(all_specs(), 512)]
    unseen = [caption(spec) for spec in all_specs(include_held_out=True) if held_out(spec.kind, spec.main)]
    unseen = draw.sample(unseen, 48)
    return {
        "world_16": {"train": sixteen, "val": sixteen, "test": sixteen},
        "world_512": {"train": train, "val": unseen[:16], "test": unseen[16:]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the world's prompt libraries.")
    parser.add_argument("folder", type=Path, help="where the JSON files go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, library in libraries().items():
        (folder / f"{name}.json").write_text(json.dumps(library, indent=1) + "\n")


if __name__ == "__main__":
    main()
