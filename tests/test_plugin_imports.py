"""What the plugin imports: of the host only what upstream threestudio has, and nothing heavy until it is used."""

import ast
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[1] / "custom" / "turboprop"
FILES = sorted(PLUGIN.rglob("*.py"))
NAMES = [str(path.relative_to(PLUGIN)) for path in FILES]

# The import surface that extensions of upstream threestudio use, so that upstream keeps it.
HOST = {
    "threestudio": {"register", "find", "info", "warn", "debug", "__version__", "__modules__"},
    "threestudio.data.uncond": {"RandomCameraDataModuleConfig", "RandomCameraDataset", "RandomCameraIterableDataset"},
    "threestudio.models.background.base": {"BaseBackground"},
    "threestudio.models.estimators": {"ImportanceEstimator"},
    "threestudio.models.exporters.base": {"Exporter", "ExporterOutput"},
    "threestudio.models.geometry.base": {
        "BaseGeometry", "BaseImplicitGeometry", "BaseExplicitGeometry", "contract_to_unisphere",
    },
    "threestudio.models.guidance.stable_zero123_guidance": {"StableZero123Guidance"},
    "threestudio.models.materials.base": {"BaseMaterial"},
    "threestudio.models.mesh": {"Mesh"},
    "threestudio.models.networks": {"get_encoding", "get_mlp", "create_network_with_input_encoding"},
    "threestudio.models.prompt_processors.base": {"PromptProcessor", "PromptProcessorOutput", "hash_prompt"},
    "threestudio.models.renderers.base": {"Renderer", "VolumeRenderer", "Rasterizer"},
    "threestudio.systems.base": {"BaseSystem", "BaseLift3DSystem"},
    "threestudio.systems.utils": {"parse_optimizer", "parse_scheduler", "parse_scheduler_to_instance"},
    "threestudio.utils.base": {"BaseModule", "BaseObject", "Updateable", "update_if_possible"},
    "threestudio.utils.config": {"parse_structured", "load_config"},
    "threestudio.utils.loss": {"tv_loss"},
    "threestudio.utils.misc": {
        "C", "cleanup", "parse_version", "get_device", "get_rank", "load_module_weights", "broadcast", "barrier",
    },
    "threestudio.utils.ops": {
        "dot", "binary_cross_entropy", "get_activation", "get_mvp_matrix", "get_projection_matrix",
        "get_ray_directions", "get_rays", "get_cam_info_gaussian", "chunk_batch", "validate_empty_rays",
        "perpendicular_component", "scale_tensor",
    },
    "threestudio.utils.perceptual": {"PerceptualLoss"},
    "threestudio.utils.rasterize": {"NVDiffRasterizerContext"},
    "threestudio.utils.saving": {"SaverMixin"},
    "threestudio.utils.typing": None,  # any name
}  # fmt: skip

HEAVY = {"diffusers", "transformers", "trimesh", "skimage", "matplotlib", "imageio", "warp", "xatlas", "scipy"}


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def host_violations(tree: ast.Module) -> list[str]:
    """Imports of the host, and attributes of its package, that are not in HOST."""
    wrong = []
    for node in imports(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] == "threestudio"]
            wrong += [name for name in found if name != "threestudio"]
        elif node.level == 0 and (node.module or "").split(".")[0] == "threestudio":
            allowed = HOST.get(node.module, set())
            for alias in node.names:
                if allowed is not None and alias.name not in allowed:
                    wrong.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "threestudio":
            if node.attr not in HOST["threestudio"]:
                wrong.append(f"threestudio.{node.attr}")
    return wrong


def leaving_imports(tree: ast.Module, depth: int) -> list[str]:
    """Imports that reach outside of the plugin's folder; `depth` folders lie between it and the file."""
    wrong = []
    for node in imports(tree):
        if isinstance(node, ast.ImportFrom) and node.level > depth + 1:
            wrong.append("." * node.level + (node.module or ""))
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        absolute = isinstance(node, ast.Import) or node.level == 0
        wrong += [name for name in names if absolute and name.split(".")[0] in ("custom", "turboprop")]
    return wrong


def imported_at_once(body: list[ast.stmt]) -> set[str]:
    """Top-level packages that importing the module imports: not those in functions or under TYPE_CHECKING."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found |= imported_at_once(node.orelse)
        else:
            for block in ("body", "orelse", "finalbody"):
                found |= imported_at_once(getattr(node, block, None) or [])
            for handler in getattr(node, "handlers", []):
                found |= imported_at_once(handler.body)
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_host_is_used_by_its_extension_api_alone(path):
    assert host_violations(tree_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_import_leaves_the_plugin(path):
    depth = len(path.relative_to(PLUGIN).parts) - 1
    assert leaving_imports(tree_of(path), depth) == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_packages_are_imported_where_they_are_used(path):
    assert imported_at_once(tree_of(path).body) & HEAVY == set()


def test_the_plugin_was_walked():
    assert len(FILES) > 30 and "__init__.py" in NAMES
    assert any("threestudio" in imported_at_once(tree_of(path).body) for path in FILES)


def test_the_host_offers_all_that_the_plugin_takes():
    import importlib

    for path in FILES:
        for node in imports(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("threestudio"):
                module = importlib.import_module(node.module)
                assert all(getattr(module, alias.name, None) is not None for alias in node.names), node.module


@pytest.mark.parametrize(
    "source, caught",
    [
        ("from threestudio.utils.errors import UserError", True),
        ("import threestudio.utils.base", True),
        ("import threestudio\nthreestudio.systems", True),
        ("def f():\n    from threestudio.ops import x", True),
        ("from threestudio.utils.base import BaseObject\nimport threestudio\nthreestudio.warn('x')", False),
    ],
)
def test_the_walk_finds_what_it_is_for(source, caught):
    assert bool(host_violations(ast.parse(source))) is caught


def test_the_walk_tells_heavy_imports_from_late_ones():
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trimesh\ndef f():\n    import scipy\n"
    assert imported_at_once(ast.parse(late).body) & HEAVY == set()
    early = "try:\n    import warp\nexcept ImportError:\n    import scipy\nclass A:\n    import trimesh\n"
    assert imported_at_once(ast.parse(early).body) & HEAVY == {"warp", "scipy", "trimesh"}
    assert leaving_imports(ast.parse("from ..x import y"), 0) == ["..x"]
    assert leaving_imports(ast.parse("from ..x import y\nfrom . import z"), 1) == []
    assert leaving_imports(ast.parse("import turboprop.world\nfrom custom.turboprop import x"), 3) != []
