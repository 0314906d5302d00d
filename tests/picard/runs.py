"""Small whole runs of the four representations through the command line, and what they end in."""

import csv
from pathlib import Path

import torch

from launch import main

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("nerf", "sdf", "dmtet", "gaussians")
SYSTEMS = {
    "nerf": "dreamfusion-system",
    "sdf": "textmesh-system",
    "dmtet": "magic3d-system",
    "gaussians": "turboprop-gaussian-splatting-system",
}
GRID = [f"system.geometry.pos_encoding_config.{key}" for key in ("n_levels=2", "log2_hashmap_size=8")]
GEOMETRY = {
    "nerf": [*GRID, "system.renderer.num_samples_per_ray=24", "system.scheduler.args.T_max=20"],
    "sdf": [*GRID, "system.renderer.num_samples_per_ray=16"],
    "dmtet": [*GRID, "system.geometry.isosurface_resolution=8"],
    "gaussians": [
        "system.geometry.init_num_pts=60", "system.geometry.max_num=120", "system.geometry.densification_interval=5",
        "system.geometry.densify_from_iter=5", "system.geometry.densify_grad_threshold=0.002",
        "system.geometry.prune_interval=8", "system.geometry.prune_from_iter=8", "system.geometry.min_opac_prune=0.06",
        "system.geometry.opacity_reset_interval=17",
    ],
}  # fmt: skip
DATA = ["data.size=8", "data.batch_size=1", "data.n_train_views=4", "data.n_test_views=1"]
COMMON = [
    "use_timestamp=false", "name=fit", "tag=run", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
]  # fmt: skip


def fit(kind: str, folder: Path, *extra: str, picard: tuple[str, ...] = (), steps: int = 20) -> dict:
    """The last checkpoint of a run that fits pictures; with `picard` by that mixin and its keys."""
    system = SYSTEMS[kind] + (":picard" if picard else "")
    given = [f"exp_root_dir={folder}", f"trainer.max_steps={steps}", f"system_type={system}"]
    mixin = [f"system.picard.{key}" for key in picard]
    config = small_config(kind, folder)
    arguments = ["--config", config, "--train", *COMMON, *DATA, *GEOMETRY[kind], *given, *mixin, *extra]
    assert main(arguments) == 0
    return checkpoint(folder)


def small_config(kind: str, folder: Path) -> str:
    """configs/fit-{kind}.yaml without the evaluation at its end."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(ROOT / "configs" / f"fit-{kind}.yaml")
    del config.system["evaluation"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    OmegaConf.save(config, path)
    return str(path)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "fit/run/ckpts/last.ckpt", weights_only=True)


def logged(folder: Path, name: str) -> list[float]:
    """The values of a figure that a run logged."""
    (file,) = folder.glob("fit/run/csv_logs/version_0/metrics.csv")
    with file.open() as table:
        return [float(row[name]) for row in csv.DictReader(table) if row.get(name)]


def state_of(checkpoint: dict) -> dict:
    return {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
