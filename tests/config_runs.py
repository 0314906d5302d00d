"""Every config that ships with tiny real models in the big ones' place, at the smallest sizes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trimesh
from omegaconf import OmegaConf

from launch import main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

# What is set where a config has the key.
SMALL = {
    "data.height": 8,
    "data.width": 8,
    "data.eval_height": 8,
    "data.eval_width": 8,
    "data.size": 8,
    "data.n_train_views": 2,
    "data.n_test_views": 2,
    "data.random_camera.height": 8,
    "data.random_camera.width": 8,
    "data.random_camera.eval_height": 8,
    "data.random_camera.eval_width": 8,
    "system.geometry.text_dim": 16,
    "system.geometry.isosurface_resolution": 8,
    "system.geometry.pos_encoding_config.log2_hashmap_size": 8,
    "system.judge": "null",
    "system.evaluation.judge": "''",
}
# What is set by the registered name under a key; the default is large.
SMALL_CAMERAS = ("data.eval_height=8", "data.eval_width=8", "data.n_test_views=2")
SMALL_OF_TYPE = {
    ("system.geometry_type", "gaussian-splatting"): ("system.geometry.isosurface_resolution=32",),
    ("system.exporter_type", "mesh-exporter"): ("system.exporter.texture_size=32",),
    ("data_type", "random-camera-datamodule"): SMALL_CAMERAS,
    ("data_type", "mvdream-random-multiview-camera-datamodule"): SMALL_CAMERAS,
}
PROMPT = "system.prompt_processor.prompt"
REQUIRED = {  # where it is missing, or auto: tiny models find nothing out
    PROMPT: "a red car",
    "data.default_elevation_deg": "15",
    "data.default_azimuth_deg": "0",
}

# threestudio's methods, and the config whose run each of them goes on from.
METHODS = {
    "dreamfusion-sd": None,
    "dreamfusion-if": None,
    "magic3d-coarse-sd": None,
    "magic3d-refine-sd": "magic3d-coarse-sd",
    "textmesh-if": None,
    "prolificdreamer": None,
    "prolificdreamer-geometry": "prolificdreamer",
    "prolificdreamer-texture": "prolificdreamer-geometry",
    "hifa": None,
    "fantasia3d": None,
    "fantasia3d-texture": "fantasia3d",
    "latentnerf": None,
    "sjc": None,
    "sdi": None,
    "mvdream-sd21": None,
    "zero123": None,
    "stable-zero123": None,
    "zero123-geometry": "zero123",
    "magic123-coarse-sd": None,
    "magic123-refine-sd": "magic123-coarse-sd",
}
TINY_HASH_GRID = (
    "{otype: HashGrid, n_levels: 2, n_features_per_level: 2, log2_hashmap_size: 8, base_resolution: 4, "
    "per_level_scale: 2.0}"
)
TINY = [
    "data.height=8",
    "data.width=8",
    "trainer.max_steps=2",
    "use_timestamp=false",
    "tag=trial",
    "system.exporter.texture_size=32",
]
TINY_EVALUATION = ["eval_height=8", "eval_width=8", "n_test_views=2"]  # of the cameras
TINY_RANDOM_CAMERAS = ["height=8", "width=8", "batch_size=1", "n_val_views=1"]  # beside a picture
TINY_GEOMETRY = {
    "implicit-volume": ["isosurface_resolution=8", "isosurface_threshold=auto"],
    "implicit-sdf": ["isosurface_resolution=8"],
    "tetrahedra-sdf-grid": ["isosurface_resolution=8"],
    "volume-grid": ["isosurface_resolution=8", "grid_size=[8,8,8]"],
}


@pytest.fixture(scope="session")
def models(
    tiny_sd_folder: Path, tiny_sd_v_folder: Path, tiny_if_folder: Path, tiny_mv_folder: Path, tiny_renders: Path,
    tiny_zero123_folder: Path, ball_picture: Path, tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[OmegaConf], list[str]]:  # fmt: skip
    """The overrides that put tiny models in the place of those that a config names, and renders, a picture and a mesh
    where it wants some."""

    def folder(kind: str) -> Path:
        if "zero123" in kind:
            return tiny_zero123_folder
        return tiny_if_folder if kind.startswith("deep-floyd") else tiny_sd_folder

    def given(config: OmegaConf) -> list[str]:
        data = config.get("data") or {}
        overrides = [f"data.image_path={ball_picture}"] if "image_path" in list(data) else []
        if OmegaConf.is_missing(data, "root"):
            overrides.append(f"data.root={tiny_renders}")
        if OmegaConf.is_missing(config.system.get("geometry") or OmegaConf.create(), "shape_init"):
            mesh = tmp_path_factory.mktemp("mesh") / "box.obj"
            trimesh.creation.box((0.8, 0.6, 1.0)).export(mesh)
            overrides.append(f"system.geometry.shape_init=mesh:{mesh}")
        for part in ("prompt_processor", "guidance", "guidance_3d"):
            node = config.system.get(part) or {}
            kind = config.system.get(f"{part}_type", "")
            key = f"system.{part}.pretrained_model_name_or_path"
            names_a_model = "pretrained_model_name_or_path" in node or (part == "guidance_3d" and node)
            if names_a_model and kind != "dummy-prompt-processor":
                overrides.append(f"{key}={folder(kind)}")
            if "ckpt_path" in node:
                overrides.append(f"system.{part}.ckpt_path={tiny_mv_folder}")
            if "pretrained_model_name_or_path_lora" in node:
                overrides.append(f"{key}_lora={tiny_sd_v_folder}")
        return overrides

    return given


def small_overrides(config: OmegaConf) -> list[str]:
    given = []
    for key, value in SMALL.items():
        present = OmegaConf.select(config, key, throw_on_missing=False)
        if present is not None and not (isinstance(value, int) and OmegaConf.is_config(present)):
            given.append(f"{key}={value}")
    for (key, name), overrides in SMALL_OF_TYPE.items():
        if OmegaConf.select(config, key) == name:
            given += overrides
    for key, value in REQUIRED.items():
        part, name = key.rsplit(".", 1)
        node = OmegaConf.select(config, part)
        if node is not None and (OmegaConf.is_missing(node, name) or node.get(name) == "auto"):
            given.append(f"{key}={value}")
    return given


def tiny_overrides(config: OmegaConf) -> list[str]:
    system = config.system
    cameras = "data.random_camera." if "random_camera" in config.data else "data."
    given = [*TINY, *(f"{cameras}{value}" for value in TINY_EVALUATION)]
    if "random_camera" in config.data:
        given += [f"data.random_camera.{value}" for value in TINY_RANDOM_CAMERAS]
    given.append(f"system.geometry.pos_encoding_config={TINY_HASH_GRID}")
    band = OmegaConf.select(config, "system.geometry.pos_encoding_config.start_level") is not None
    if band:  # finer levels open while training
        banded = TINY_HASH_GRID.replace("HashGrid", "ProgressiveBandHashGrid").replace(
            "}", ", start_level: 1, start_step: 1, update_steps: 1}"
        )
        given[-1] = f"system.geometry.pos_encoding_config={banded}"
    if system.geometry_type == "volume-grid":
        given.pop()
    if system.geometry.get("shape_init"):  # a bias in place of a fit of 1000 steps
        shape, params = system.geometry.shape_init, system.geometry.shape_init_params
        given += [
            "system.geometry.shape_init=null",
            f"system.geometry.sdf_bias={shape}",
            f"system.geometry.sdf_bias_params={params}",
        ]
    given += [f"system.geometry.{override}" for override in TINY_GEOMETRY[system.geometry_type]]
    if "num_samples_per_ray" in system.get("renderer", {}):
        given.append("system.renderer.num_samples_per_ray=16")
    for part in ("data", "data.random_camera"):
        node = OmegaConf.select(config, part) or {}
        if node.get("resolution_milestones"):  # pictures grow while training
            given += [f"{part}.width=[4,8]", f"{part}.height=[4,8]", f"{part}.resolution_milestones=[1]"]
    return [*given, f"{PROMPT}={REQUIRED[PROMPT]}"]  # no other required key is one of every method's config


class Runs:
    """Trains each method's config once, after the stage before it; `trial(name)` is its folder."""

    def __init__(self, root: Path, models: Callable[[OmegaConf], list[str]]) -> None:
        self.root, self.models = root, models
        self.done: dict[str, Path] = {}

    def arguments(self, name: str) -> list[str]:
        config = OmegaConf.load(ROOT / "configs" / f"{name}.yaml")
        given = [f"exp_root_dir={self.root}", *self.models(config), *tiny_overrides(config)]
        return given + self.start(name)

    def start(self, name: str) -> list[str]:
        """Where a later stage starts from, by the newest trial of the stage before."""
        before = METHODS.get(name)
        if before is None:
            return []
        start = [f"system.geometry_convert_from={self.trial(before).parent}/LAST/ckpts/last.ckpt"]
        # after two steps a field has no surface at density 25
        return start + (["system.geometry_convert_override.isosurface_threshold=auto"] if "123" in name else [])

    def launch(self, name: str, mode: str, *more: str) -> int:
        return main(["--config", str(ROOT / "configs" / f"{name}.yaml"), mode, *self.arguments(name), *more])

    def trial(self, name: str) -> Path:
        if name not in self.done:
            assert self.launch(name, "--train") == 0, name
            self.done[name] = self.root / OmegaConf.load(ROOT / "configs" / f"{name}.yaml").name / "trial"
        return self.done[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, models) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # paths in configs are relative to the project
        patch.setenv("TURBOPROP_CACHE", str(root / "cache"))
        yield Runs(root / "outputs", models)
