"""The material of metal, roughness and light: furnaces, what pictures say of it, and what an export keeps."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh

import threestudio
from tests.host.models.mesh_pictures import shaded_points, texels_at
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.ops import environment_light as environment
from threestudio.utils.errors import UserError
from threestudio.utils.ops import linear_to_srgb, srgb_to_linear
from threestudio.utils.saving import SaverMixin


def material(**config):
    return threestudio.find("pbr-material")(config)


def constant_light(folder, value: float) -> str:
    """A Radiance file of one colour: value = mantissa / 256 * 2^1."""
    pixel = bytes((round(value * 128), round(value * 128), round(value * 128), 129))
    (folder / "furnace.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 4 +X 6\n" + pixel * 24)
    return str(folder / "furnace.hdr")


def seen_sphere(count: int = 400):
    """Unit normals, and unit directions of view that see them, from the camera."""
    generator = torch.Generator().manual_seed(0)
    normal = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    towards = F.normalize(normal + 0.7 * torch.randn(count, 3, generator=generator), dim=-1)
    towards = torch.where((towards * normal).sum(-1, keepdim=True) > 0.1, towards, normal)
    return normal, -towards


def features(albedo=(0.5, 0.5, 0.5), metallic=0.0, roughness=0.5, bend=(0.0, 0.0, 0.0), count=400):
    """Features whose activation `none` gives these shares of the ranges."""
    row = torch.tensor([*albedo, metallic, roughness, *(0.5 + 0.5 * b for b in bend)])
    return row.expand(count, 8)


PLAIN = {"material_activation": "none", "max_metallic": 1.0, "min_roughness": 0.0, "max_roughness": 1.0}


def test_under_light_from_all_sides_a_surface_shows_its_own_reflectance(tmp_path):
    lit = material(**PLAIN, environment_texture=constant_light(tmp_path, 0.5), environment_scale=1.6)  # of 0.8
    normal, view = seen_sphere()
    for metallic, roughness in ((0.0, 0.6), (1.0, 0.2), (0.5, 0.9)):
        asked = features((0.3, 0.5, 0.7), metallic, roughness)
        color = lit(features=asked, viewdirs=view, shading_normal=normal)
        cosine = -(normal * view).sum(-1)
        scale, bias = environment.reflectance(lit.table, cosine, torch.full_like(cosine, roughness))
        albedo = torch.tensor([0.3, 0.5, 0.7])
        at_right_angle = 0.04 * (1 - metallic) + metallic * albedo
        mirrored = at_right_angle * scale[:, None] + bias[:, None]
        torch.testing.assert_close(color, 0.8 * (albedo * (1 - metallic) + mirrored), atol=2e-4, rtol=0)
    mirror = material(**PLAIN, environment_texture=constant_light(tmp_path, 0.5), environment_scale=2.0)
    white = mirror(features=features((1.0, 1.0, 1.0), 1.0, 0.0), viewdirs=view, shading_normal=normal)
    torch.testing.assert_close(white, torch.ones_like(white), atol=0.02, rtol=0)


def test_a_mirror_shows_what_lies_in_the_mirrored_direction():
    lit = material(**PLAIN, environment_scale=0.3)
    normal, view = seen_sphere()
    color = lit(features=features((1.0, 1.0, 1.0), 1.0, 0.0), viewdirs=view, shading_normal=normal)
    mirrored = view - 2 * (view * normal).sum(-1, keepdim=True) * normal
    expected = environment.light_towards(lit.reflected, mirrored, torch.zeros(400)).clamp(max=1)
    torch.testing.assert_close(color, expected, atol=0.02, rtol=0)


def test_pictures_of_a_ball_say_its_colour_metal_and_roughness():
    """Seen from everywhere, what pictures were made with is found again from the middle of all ranges."""
    lit = material(use_bump=False, min_roughness=0.1)
    normal, view = seen_sphere(3000)
    for albedo, metallic, roughness in (((0.8, 0.4, 0.2), 0.8, 0.25), ((0.2, 0.5, 0.6), 0.1, 0.4)):
        shares = torch.tensor([*albedo, metallic / 0.9, (roughness - 0.1) / 0.8])
        truth = lit(features=shares.logit().expand(3000, 5), viewdirs=view, shading_normal=normal).detach()
        learned = torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.Adam([learned], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            F.mse_loss(lit(features=learned.expand(3000, 5), viewdirs=view, shading_normal=normal), truth).backward()
            optimizer.step()
        found = lit.export(features=learned.detach()[None])
        torch.testing.assert_close(found["albedo"][0], torch.tensor(albedo), atol=0.02, rtol=0)
        assert found["metallic"].item() == pytest.approx(metallic, abs=0.03)
        assert found["roughness"].item() == pytest.approx(roughness, abs=0.02)


def test_srgb_is_shaded_in_linear_light(tmp_path):
    normal, view = seen_sphere()
    light = {"environment_texture": constant_light(tmp_path, 0.5), "environment_scale": 1.0}
    asked = {"viewdirs": view, "shading_normal": normal}
    picture = material(**PLAIN, **light, srgb=True)(features=features((0.6, 0.6, 0.6)), **asked)
    linear = srgb_to_linear(torch.tensor(0.6)).item()
    raw = material(**PLAIN, **light)(features=features((linear,) * 3), **asked)
    torch.testing.assert_close(picture, linear_to_srgb(raw), atol=1e-5, rtol=0)
    values = torch.linspace(0, 1, 50)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6, rtol=0)


def test_the_bend_leans_the_normal_and_never_over_the_edge():
    lit = material(**PLAIN)
    normal, view = seen_sphere()
    straight = lit.export(features=features(), shading_normal=normal)["shading_normal"]
    torch.testing.assert_close(straight, normal)
    bend = torch.tensor([0.4, -0.2, 0.9])
    bent = lit.export(features=features(bend=bend.tolist()), shading_normal=normal)["shading_normal"]
    assert ((bent * normal).sum(-1) > 0).all() and (bent @ bend > normal @ bend - 1e-6).all()
    torch.testing.assert_close(bent.norm(dim=-1), torch.ones(400))
    seen = lit(features=features(bend=bend.tolist()), viewdirs=view, shading_normal=normal)
    torch.testing.assert_close(seen, lit(features=features(), viewdirs=view, shading_normal=bent))
    assert "shading_normal" not in material(use_bump=False).export(features=features(), shading_normal=normal)


def test_an_export_may_have_any_shape():
    lit = material(**PLAIN)
    normal, asked = seen_sphere(20)[0], torch.rand(20, 9, generator=torch.Generator().manual_seed(0))
    flat = lit.export(features=asked, shading_normal=normal)
    image = lit.export(features=asked.view(4, 5, 9), shading_normal=normal.view(4, 5, 3))
    for name, values in image.items():
        torch.testing.assert_close(values, flat[name].view(4, 5, -1))


def test_the_light_turns_while_it_trains_and_stands_otherwise():
    lit = material(**PLAIN, random_rotation=True)
    normal, view = seen_sphere()
    asked = {"features": features(metallic=1.0, roughness=0.3), "viewdirs": view, "shading_normal": normal}
    torch.manual_seed(0)
    first, second = lit(**asked), lit(**asked)
    assert (first - second).abs().max() > 0.05
    torch.manual_seed(0)
    assert torch.equal(lit(**asked), first)
    lit.eval()
    still = material(**PLAIN)
    assert torch.equal(lit(**asked), still(**asked))
    # what looks straight up or down sees the same light from whichever side
    pole = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    up = {"features": features(count=2), "viewdirs": -pole, "shading_normal": pole}
    torch.testing.assert_close(lit.train()(**up), still(**up), atol=5e-3, rtol=0)


def test_gradients_are_finite_and_weights_are_none_of_a_checkpoint():
    lit = material()
    normal, view = seen_sphere()
    normal = torch.cat([normal, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])]).requires_grad_(True)
    view = torch.cat([view, torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])])
    asked = torch.zeros(402, 8, requires_grad=True)
    color = lit(features=asked.view(2, 201, 8), viewdirs=view.view(2, 201, 3), shading_normal=normal.view(2, 201, 3))
    assert color.shape == (2, 201, 3) and (color >= 0).all() and (color <= 1).all()
    color.square().sum().backward()
    assert asked.grad.isfinite().all() and normal.grad.isfinite().all() and (asked.grad.abs().sum(0) > 0).all()
    assert not lit.state_dict() and not list(lit.parameters())


def test_under_autocast_it_computes_as_without():
    """threestudio's texture stage trains in 16-mixed, and what looks straight up is seen by every camera from above."""
    lit = material()
    normal, view = seen_sphere()
    normal = torch.cat([normal, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1e-5, 0.0, 1.0]])])
    view = torch.cat([view, -normal[-3:]])
    asked = torch.zeros(403, 8, requires_grad=True)
    plain = lit(features=asked, viewdirs=view, shading_normal=normal)
    with torch.autocast("cpu", torch.float16):
        color = lit(features=asked, viewdirs=view, shading_normal=normal)
    assert torch.equal(color, plain)
    color.sum().backward()
    assert asked.grad.isfinite().all()


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"environment_texture": "nowhere.hdr"},
            "material.environment_texture: no file nowhere.hdr; expected a panorama",
        ),
        ({"min_metallic": 0.5, "max_metallic": 0.2}, "material.min_metallic: expected 0 <= min <= max <= 1, got 0.5"),
        ({"max_roughness": 1.5}, "material.min_roughness: expected 0 <= min <= max <= 1, got 0.08 and 1.5"),
        ({"environment_scale": 0.0}, "material.environment_scale: expected more than 0, got 0"),
        ({"environment_scale": math.inf}, "material.environment_scale: expected more than 0, got inf"),
        ({"material_activation": "sigmoidal"}, "material.material_activation"),
    ],
)
def test_what_is_wrong_names_its_key(config, message):
    with pytest.raises(UserError, match=message):
        material(**config)


def test_too_few_features_name_the_geometrys_key():
    normal, view = seen_sphere(5)
    for use_bump, needed in ((True, 8), (False, 5)):
        with pytest.raises(UserError, match=f"geometry.n_feature_dims: pbr-material .* takes {needed}, got 3"):
            material(use_bump=use_bump)(features=torch.zeros(5, 3), viewdirs=view, shading_normal=normal)


def test_a_field_without_normals_names_its_key():
    _, view = seen_sphere(5)
    with pytest.raises(UserError, match="system.geometry.normal_type: pbr-material needs normals; expected one"):
        material()(features=torch.zeros(5, 8), viewdirs=view)


# ------------------------------------------------------------------------------------- export

BEND = torch.tensor([0.5, -0.4, 0.3])


class Ball(BaseImplicitGeometry):
    """Metal in front and none behind, rough above and smooth below, its normals bent to one side."""

    def forward_field(self, points):
        return 0.5 - points.norm(dim=-1, keepdim=True), None

    def forward_level(self, field, threshold):
        return threshold - field

    def export(self, points):
        side, height = (points[:, :1] > 0).float(), (points[:, 2:] > 0).float()
        bend = (0.5 + 0.5 * BEND).expand(len(points), 3)
        shares = torch.cat([torch.full((len(points), 3), 0.6), 0.9 * side, 0.2 + 0.6 * height, bend], -1)
        return {"features": shares}

    def forward(self, points, output_normal=False):
        normal = {"normal": F.normalize(points, dim=-1)} if output_normal else {}
        return {**self.export(points), **normal}


class Saver(SaverMixin):
    pass


@pytest.fixture(params=[0, 400], ids=["all faces", "simplified"])
def exported(tmp_path, request):
    parts = {
        "geometry": Ball({"isosurface_resolution": 40, "isosurface_method": "mc-cpu"}),
        "material": material(**PLAIN),
        "background": threestudio.find("solid-color-background")({}),
    }
    config = {"fmt": "glb", "texture_size": 256, "simplify_to": request.param}
    (output,) = threestudio.find("mesh-exporter")(config, **parts)()
    saver = Saver()
    saver.set_save_dir(str(tmp_path))
    return Path(saver.save_glb(output.save_name, **output.params)[0])


def test_a_glb_has_metal_and_roughness_where_gltf_has_them(exported):
    (mesh,) = trimesh.load_scene(exported, process=False).geometry.values()
    point, _, _, uv = shaded_points(exported)
    image = np.asarray(mesh.visual.material.metallicRoughnessTexture.convert("RGB")) / 255.0
    world, texel = point[:, [2, 0, 1]], texels_at(image, uv)
    clear = (np.abs(world[:, 0]) > 0.05) & (np.abs(world[:, 2]) > 0.05)
    np.testing.assert_allclose(texel[clear, 2], np.where(world[clear, 0] > 0, 0.9, 0.0), atol=0.01)
    np.testing.assert_allclose(texel[clear, 1], np.where(world[clear, 2] > 0, 0.8, 0.2), atol=0.01)
    assert mesh.visual.material.metallicFactor == 1 and mesh.visual.material.roughnessFactor == 1


def test_a_glbs_normal_map_has_the_normals_that_were_shaded(exported):
    point, normal, bent, _ = shaded_points(exported)
    world = F.normalize(torch.from_numpy(point[:, [2, 0, 1]]), dim=-1)
    expected = F.normalize(world + BEND - (world @ BEND.double())[:, None] * world, dim=-1)
    shown = F.normalize(torch.from_numpy(bent[:, [2, 0, 1]]), dim=-1)
    angle = torch.rad2deg(torch.acos((expected * shown).sum(-1).clamp(-1, 1)))
    unbent = torch.rad2deg(torch.acos((expected * world).sum(-1).clamp(-1, 1)))
    assert angle.median() < 2 and angle.mean() < 3 < unbent.mean()
