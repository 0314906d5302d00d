"""The mesh renderer: contract, orientation against the volume renderer, gradients; and the patch renderer over both."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

import threestudio
from tests.ops.meshes import camera_batch, icosphere
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry
from threestudio.models.mesh import Mesh
from threestudio.models.renderers.nvdiff_rasterizer import view_directions
from threestudio.models.renderers.patch_renderer import coarse_view, patch_of_view
from threestudio.utils.errors import UserError

SIZE = 24


class MeshGeometry(BaseGeometry):
    """A mesh that counts how often it is asked for, whose features are its positions."""

    def configure(self):
        v_pos, faces = icosphere(2, 0.6)
        self.v_pos, self.faces = torch.nn.Parameter(v_pos), faces
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def isosurface(self):
        self.calls += 1
        return Mesh(self.v_pos, self.faces)

    def forward(self, points, output_normal=False):
        assert not output_normal
        return {"features": points * self.scale}


def renderer(geometry=None, material="no-material", name="nvdiff-rasterizer", **config):
    return threestudio.find(name)(
        config,
        geometry=geometry or MeshGeometry({}),
        material=threestudio.find(material)({}) if isinstance(material, str) else material,
        background=threestudio.find("solid-color-background")({"color": (0.1, 0.2, 0.3)}),
    )


def test_outputs_have_upstreams_names_shapes_and_ranges():
    made = renderer(material="diffuse-with-point-light-material")
    out = made(**camera_batch(2, SIZE, SIZE + 6), elevation=torch.zeros(2))
    assert set(out) == {"mesh", "opacity", "comp_normal", "comp_rgb", "comp_rgb_bg"} and made.geometry.calls == 1
    for key, channels in {"opacity": 1, "comp_normal": 3, "comp_rgb": 3, "comp_rgb_bg": 3}.items():
        assert out[key].shape == (2, SIZE, SIZE + 6, channels), key
        assert 0 <= out[key].min() and out[key].max() <= 1, key
    assert set(made(**camera_batch(1, SIZE, SIZE), render_rgb=False)) == {"mesh", "opacity", "comp_normal"}
    partial = (out["opacity"] > 0.02) & (out["opacity"] < 0.98)
    assert partial.sum() > 20  # antialiased
    outside = (out["opacity"] == 0)[..., 0]
    assert (out["comp_normal"][outside] == 0).all()
    torch.testing.assert_close(out["comp_rgb"][outside], torch.tensor([0.1, 0.2, 0.3]).expand(int(outside.sum()), 3))


def test_normals_of_a_sphere_point_out_and_are_world_space():
    batch = camera_batch(2, SIZE, SIZE)
    out = renderer()(**batch)
    middle = out["comp_normal"][:, SIZE // 2, SIZE // 2] * 2 - 1
    assert F.cosine_similarity(middle, batch["camera_positions"], dim=-1).min() > 0.98


class Recorder(threestudio.find("no-material")):
    def forward(self, **given):
        self.given = given
        return given["features"].sigmoid()


def test_the_material_gets_the_surface_of_covered_pixels_alone_and_the_batch():
    material = Recorder({"requires_normal": True})
    batch = camera_batch(3, SIZE, SIZE)
    out = renderer(material=material)(**batch, ambient_ratio=0.3)
    given = material.given
    n = given["positions"].shape[0]
    assert n < 0.5 * 3 * SIZE**2 and given["ambient_ratio"] == 0.3 and "c2w" in given
    assert (given["positions"].norm(dim=-1) - 0.6).abs().max() < 0.03
    assert F.cosine_similarity(given["shading_normal"], given["positions"]).min() > 0.97
    seen = (out["opacity"].detach() > 0.5)[..., 0]
    assert abs(int(seen.sum()) - n) < 0.1 * n
    # Each point is lit by its own view's light and seen from its own view's camera.
    assert (given["light_positions"].unique(dim=0).shape[0]) == 3
    camera = given["light_positions"]  # the lights are at the cameras
    torch.testing.assert_close(given["viewdirs"], F.normalize(given["positions"] - camera, dim=-1))


class Lopsided(BaseImplicitGeometry):
    """A solid with no symmetry: a ball at +x, a smaller one above at +y, and nothing else."""

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        isosurface_threshold: float = 0.0

    def forward_sdf(self, points):
        big = (points - points.new_tensor([0.3, 0.0, -0.1])).norm(dim=-1, keepdim=True) - 0.35
        small = (points - points.new_tensor([-0.1, 0.4, 0.45])).norm(dim=-1, keepdim=True) - 0.2
        return torch.minimum(big, small)

    def forward_field(self, points):
        return self.forward_sdf(points), None

    def forward_level(self, field, threshold):
        return field - threshold

    def forward_density(self, points):
        return 200.0 * (self.forward_sdf(points) < 0)

    def forward(self, points, output_normal=False):
        return {"density": self.forward_density(points), "features": points}


def test_the_picture_is_the_volume_renderers_the_right_way_round():
    batch = camera_batch(4, 32, 40, distance=2.0)
    geometry = Lopsided({"isosurface_resolution": 48})
    torch.manual_seed(0)
    with torch.no_grad():
        volume = renderer(geometry, name="nerf-volume-renderer", num_samples_per_ray=128, grid_prune=False).eval()(
            **batch
        )["opacity"]
        surface = renderer(geometry).eval()(**batch)["opacity"]
    assert (volume - surface).abs().mean() < 0.01
    for flipped in (surface.flip(1), surface.flip(2), surface.roll(1, 0)):
        assert (volume - flipped).abs().mean() > 0.05


def test_directions_from_the_matrix_are_the_rays():
    batch = camera_batch(2, 9, 14)
    torch.testing.assert_close(view_directions(batch["mvp_mtx"], 9, 14), batch["rays_d"], atol=1e-5, rtol=0)


def test_gradients_reach_vertices_features_and_repeat_bit_for_bit():
    def run():
        made = renderer()
        out = made(**camera_batch(2, SIZE, SIZE))
        (out["comp_rgb"].square().mean() + out["opacity"].mean() + out["comp_normal"].square().mean()).backward()
        return [made.geometry.v_pos.grad, made.geometry.scale.grad, out["comp_rgb"].detach()]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(x.isfinite().all() and x.abs().sum() > 0 for x in first)


def test_a_view_of_nothing_shows_the_background_and_keeps_the_graph():
    batch = camera_batch(2, SIZE, SIZE)
    made = renderer()
    made.geometry.v_pos.data += 30.0
    out = made(**batch)
    assert (out["opacity"] == 0).all()
    torch.testing.assert_close(out["comp_rgb"], out["comp_rgb_bg"])
    out["comp_rgb"].sum().backward()
    assert (made.geometry.v_pos.grad == 0).all()


def test_mixed_precision_keeps_positions_exact():
    batch = camera_batch(1, SIZE, SIZE)
    made = renderer()
    plain = made(**batch)["opacity"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = made(**batch)
    assert torch.equal(plain, mixed["opacity"]) and mixed["comp_rgb"].isfinite().all()


@pytest.mark.parametrize("name, config, message", [
    ("nvdiff-rasterizer", {"context_type": "vulkan"}, "context_type.*gl or cuda"),
    ("patch-renderer", {}, "base_renderer_type"),
    ("patch-renderer", {"base_renderer_type": "nvdiff-rasterizer", "patch_size": 0}, "patch_size"),
])  # fmt: skip
def test_wrong_configs_are_refused(name, config, message):
    with pytest.raises(UserError, match=message):
        renderer(name=name, **config)


# ---------------------------------------------------------------------------- patches


def test_a_patch_of_a_view_is_that_part_of_the_picture():
    batch = camera_batch(2, 20, 28)
    made = renderer()
    whole = made(**batch)["comp_rgb_bg"], made(**batch)["comp_normal"]
    part = made(**patch_of_view(batch, 6, 9, 10, 12))
    inner = (slice(None), slice(1, -1), slice(1, -1))  # pixels at the border lack neighbours to blend with
    torch.testing.assert_close(part["comp_normal"][inner], whole[1][:, 6:16, 9:21][inner], atol=1e-4, rtol=0)
    assert torch.equal(patch_of_view(batch, 6, 9, 10, 12)["rays_d"], batch["rays_d"][:, 6:16, 9:21])
    coarse = coarse_view(camera_batch(2, 20, 28), 10, 14)
    torch.testing.assert_close(coarse["rays_d"], camera_batch(2, 10, 14)["rays_d"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("base", ["nvdiff-rasterizer", "nerf-volume-renderer"])
@pytest.mark.parametrize("detach", [False, True])
def test_training_pictures_hold_a_sharp_patch(base, detach):
    geometry = MeshGeometry({}) if base == "nvdiff-rasterizer" else Lopsided({})
    made = renderer(
        geometry,
        name="patch-renderer",
        base_renderer_type=base,
        patch_size=8,
        global_detach=detach,
        global_downsample=4,
    )
    batch = camera_batch(2, 24, 24)
    torch.manual_seed(1)
    out = made(**batch)
    torch.manual_seed(1)
    if base == "nvdiff-rasterizer":
        top, left = int(torch.randint(17, ())), int(torch.randint(17, ()))
        exact = made.base_renderer(**batch)["opacity"]
        inside = (slice(None), slice(top + 1, top + 7), slice(left + 1, left + 7))
        torch.testing.assert_close(out["opacity"][inside], exact[inside], atol=1e-4, rtol=0)
        (grad,) = torch.autograd.grad(out["comp_rgb"].sum(), geometry.v_pos, retain_graph=True)
        (patch_grad,) = torch.autograd.grad(out["comp_rgb"][:, top : top + 8, left : left + 8].sum(), geometry.v_pos)
        assert torch.allclose(grad, patch_grad, atol=1e-4) == detach
    for key in ("opacity", "comp_rgb"):
        assert out[key].shape[1:3] == (24, 24)
    made.eval()
    assert torch.equal(made(**batch)["opacity"], made.base_renderer(**batch)["opacity"])


def test_parts_are_handed_to_the_base_renderer():
    made = renderer(name="patch-renderer", base_renderer_type="nvdiff-rasterizer")
    other = MeshGeometry({})
    made.set_geometry(other)
    assert made.geometry is other and made.base_renderer.geometry is other
