"""Whether the novel-view loader's start and each sample are constant in the number of folders.

    python benchmarks/novelview_data.py --write

Writes a few real folders of renders (512 pixels, 12 views, names of 32 letters, as Objaverse's), and lists of 1,000 to
800,000 names that repeat them. Measured are the first opening of a root (which writes the index file), a later one,
and the time of a pair. What a file system takes to find one folder among 800,000 is not in it. All is removed in the
end. With --write, the table goes to docs/benchmarks/novelview_data.md and .json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reporting import conditions, given_command, table, where, write_report

from threestudio.utils.extensions import load_extensions

load_extensions()

from turboprop.novelview.camera_pose import world_to_camera_matrices  # noqa: E402
from turboprop.novelview.data import ViewPairs  # noqa: E402
from turboprop.novelview.renders import VALID_PATHS, open_index, split_of  # noqa: E402
from turboprop.world.cameras import orbit_c2w  # noqa: E402


def write_folders(root: Path, count: int, views: int, side: int) -> None:
    """Folders of renders with smooth random pictures."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"{number:032x}"
        folder.mkdir(parents=True)
        for view in range(views):
            small = Image.fromarray(generator.integers(0, 256, (8, 8, 4), np.uint8), "RGBA")
            small.resize((side, side), Image.BICUBIC).save(folder / f"{view:03d}.png")
            orbit = (torch.tensor([generator.uniform(*ends)]) for ends in ((-30, 80), (-180, 180), (1.5, 2.2)))
            np.save(folder / f"{view:03d}.npy", world_to_camera_matrices(orbit_c2w(*orbit))[0].numpy())


def measured(root: Path, entries: int, folders: int, samples: int, image_size: int) -> dict[str, float]:
    """Seconds of the first and of a later opening, and milliseconds of a pair, over an index of `entries` entries."""
    names = [f"{entry % folders:032x}" for entry in range(entries)]
    (root / VALID_PATHS).write_text(json.dumps(names))
    start = time.perf_counter()
    open_index(root)
    first = time.perf_counter() - start
    openings = []
    for _ in range(5):
        start = time.perf_counter()
        index = open_index(root)
        training, _ = split_of(len(index), 0.01)
        pairs = ViewPairs(index, training, image_size)
        openings.append(time.perf_counter() - start)
    times = []
    for key in range(samples):
        start = time.perf_counter()
        pairs[key]
        times.append(time.perf_counter() - start)
    return {
        "entries": entries,
        "first opening, s": round(first, 3),
        "later opening, ms": round(1e3 * statistics.median(openings), 3),
        "a pair, ms (median)": round(1e3 * statistics.median(times), 2),
    }


def page(rows: list[dict[str, float]], result: dict) -> str:
    lines = [
        "# The novel-view loader and the number of folders",
        "",
        where(result),
        "",
        "An entry of the index is the name of a folder of renders; the names repeat a few real folders. The first "
        "opening of a root writes its index file. A later opening and a pair do not depend on the number of entries. "
        "What a file system takes to find one folder among many is not in it.",
        "",
        *table(list(rows[0]), [[f"{value:,}" for value in row.values()] for row in rows], 0),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000, 800_000])
    parser.add_argument("--folders", type=int, default=32, help="real folders")
    parser.add_argument("--samples", type=int, default=100, help="pairs of each size of index")
    parser.add_argument("--image-size", type=int, default=256, help="pixels that pictures are resized to")
    parser.add_argument("--side", type=int, default=512, help="pixels of the pictures in files")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/novelview_data.*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        root = Path(scratch) / "renders"
        write_folders(root, options.folders, 12, options.side)
        for entries in options.entries:
            rows.append(measured(root, entries, options.folders, options.samples, options.image_size))
            print("  ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    result = {"command": given_command(), **conditions(torch.device("cpu")), "rows": rows}
    if options.write:
        write_report("novelview_data", page(rows, result), result)


if __name__ == "__main__":
    main()
