"""The guide's example runs as printed; what third-party plugins import is there."""

import importlib
import json
import re

import pytest

from tests.host.launches import ROOT


def code_block(language: str) -> str:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return block


def test_the_guides_example_runs(launch_here, tmp_path):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom/example_distance.py").write_text(code_block("python"))
    (tmp_path / "example.yaml").write_text(code_block("yaml"))
    assert launch_here("--train", config="example.yaml") == 0
    trial = tmp_path / "outputs/example/distance"
    distances = json.loads((trial / "save/it200-test.json").read_text())["distances"]
    assert distances == pytest.approx([1.0] * 3, abs=0.15)
    assert (trial / "ckpts/last.ckpt").is_file()


SURFACE = {
    "threestudio": "register find info warn debug __version__",
    "threestudio.data.uncond": "RandomCameraDataModuleConfig RandomCameraDataset RandomCameraIterableDataset",
    "threestudio.models.background.base": "BaseBackground",
    "threestudio.models.estimators": "ImportanceEstimator",
    "threestudio.models.exporters.base": "Exporter ExporterOutput",
    "threestudio.models.geometry.base": "BaseGeometry BaseImplicitGeometry BaseExplicitGeometry contract_to_unisphere",
    "threestudio.models.materials.base": "BaseMaterial",
    "threestudio.models.mesh": "Mesh",
    "threestudio.models.networks": "get_encoding get_mlp create_network_with_input_encoding",
    "threestudio.models.prompt_processors.base": "PromptProcessor PromptProcessorOutput hash_prompt",
    "threestudio.models.renderers.base": "Renderer VolumeRenderer Rasterizer",
    "threestudio.systems.base": "BaseSystem BaseLift3DSystem",
    "threestudio.systems.utils": "parse_optimizer parse_scheduler parse_scheduler_to_instance",
    "threestudio.utils.base": "BaseModule BaseObject Updateable update_if_possible",
    "threestudio.utils.config": "parse_structured load_config",
    "threestudio.utils.loss": "tv_loss",
    "threestudio.utils.misc": "C cleanup parse_version get_device get_rank load_module_weights broadcast barrier",
    "threestudio.utils.ops": "dot binary_cross_entropy get_activation get_mvp_matrix "
    "get_projection_matrix get_ray_directions get_rays get_cam_info_gaussian chunk_batch "
    "validate_empty_rays perpendicular_component scale_tensor",
    "threestudio.utils.saving": "SaverMixin",
}


@pytest.mark.parametrize("module", SURFACE)
def test_what_plugins_import_is_there(module):
    found = importlib.import_module(module)
    assert [name for name in SURFACE[module].split() if not hasattr(found, name)] == []


def test_type_names_come_with_a_star():
    names: dict = {}
    exec("from threestudio.utils.typing import *", names)
    wanted = (
        "Any Callable Dict Iterable List Literal NamedTuple NewType Optional Sized Tuple Type "
        "TypeVar Union Bool Complex Float Inexact Int Integer Num Shaped UInt DictConfig Tensor "
        "typechecker"
    )
    assert set(wanted.split()) <= set(names)
