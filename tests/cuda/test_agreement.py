"""`backend: auto` and CUDA libraries of others: stand-ins for gsplat and nerfacc that compute right, wrong, or fail."""

import importlib.machinery
import sys
from types import ModuleType

import pytest
import torch

from tests.cuda.simulated_runtime import simulated_cuda
from threestudio.ops import agreement, gaussian_rasterization
from threestudio.ops.gaussian_rasterization import gsplat_backend
from threestudio.ops.gaussian_rasterization.compositing import composite_pixels
from threestudio.ops.volume_rendering import accumulate_along_rays, choose_backend, weights_of_depth

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(agreement, "known", {})


def install(monkeypatch, name: str, **functions) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def nerfacc(scale: float = 1.0, error: str = "") -> dict:
    def render_weight_from_density(t_starts, t_ends, depth, ray_indices):
        if error:
            raise RuntimeError(error)
        weights, transmittance, alpha = weights_of_depth(depth, ray_indices, "torch")
        return scale * weights, transmittance, alpha

    def accumulate(weights, values, ray_indices, n_rays):
        return accumulate_along_rays(weights, values, ray_indices, n_rays, "torch")

    return {"render_weight_from_density": render_weight_from_density, "accumulate_along_rays": accumulate}


@pytest.mark.parametrize(
    "library, warning",
    [
        (nerfacc(), None),
        (nerfacc(scale=1.01), "nerfacc is installed and not used on cuda:0: a result of a small call is off by"),
        (nerfacc(error="no kernel image"), "a small call failed: RuntimeError: no kernel image"),
        ({}, "a small call failed: AttributeError"),
    ],
    ids=["right", "wrong", "failing", "empty"],
)
def test_nerfacc_is_taken_where_it_agrees(monkeypatch, caplog, library, warning):
    install(monkeypatch, "nerfacc", **library)
    with simulated_cuda():
        state = torch.get_rng_state()
        chosen = {choose_backend("auto", torch.ones(3, device="cuda")) for _ in range(3)}
        assert torch.equal(state, torch.get_rng_state())
    assert chosen == ({"nerfacc"} if warning is None else {"warp"})
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (warning is not None) and all(warning in text for text in warnings)


def gsplat(alpha_max: float) -> dict:
    def rasterize_to_pixels(means2d, conics, values, opacities, width, height, tile, offsets, ids):
        rows, columns = (torch.arange(n, device=means2d.device) + 0.5 for n in (height, width))
        y, x = (a.reshape(-1) for a in torch.meshgrid(rows, columns, indexing="ij"))
        sums, opacity = composite_pixels(x, y, means2d[0], conics[0], opacities[0], values[0], alpha_max)
        return sums.view(1, height, width, -1), opacity.view(1, height, width, 1)

    return {
        "isect_tiles": lambda *arguments: (None, None, None),
        "isect_offset_encode": lambda *arguments: None,
        "rasterize_to_pixels": rasterize_to_pixels,
    }


@pytest.mark.parametrize("alpha_max, taken", [(0.99, True), (0.999, True), (0.95, False)])
def test_gsplat_is_taken_at_its_bounds_of_alpha(monkeypatch, caplog, alpha_max, taken):
    install(monkeypatch, "gsplat", **gsplat(alpha_max))
    monkeypatch.setattr(gsplat_backend.importlib.metadata, "version", lambda name: "1.5.3")
    caplog.set_level("INFO")
    with simulated_cuda():
        means = torch.zeros(4, 3, device="cuda")
        assert {gaussian_rasterization.choose_backend("auto", means) for _ in range(2)} == {
            "gsplat" if taken else "warp"
        }
        assert (
            gaussian_rasterization.choose_backend("gsplat", means) == "gsplat"
        )  # asked for by name it is taken as it is
    assert caplog.text.count("bounds alpha at 0.999") == (alpha_max == 0.999)
    assert caplog.text.count("not used on") == (not taken)
