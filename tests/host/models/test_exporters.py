"""Meshes in files: closed, in place, with the right colours where the surface has them."""

import math

import numpy as np
import pytest
import torch
import trimesh

import threestudio
from threestudio.models.geometry.base import BaseImplicitGeometry
from threestudio.models.isosurface import EmptyFieldError
from threestudio.utils.errors import UserError
from threestudio.utils.saving import SaverMixin

RADIUS = 0.6


class ColoredBall(BaseImplicitGeometry):
    """A ball whose colour at a point x on it is (x + 1) / 2."""

    level = 0.0

    def forward_field(self, points):
        return points.norm(dim=-1, keepdim=True) - RADIUS + self.level, None

    def forward_level(self, field, threshold):
        return field - threshold

    def forward(self, points, output_normal=False):
        return {"normal": points / points.norm(dim=-1, keepdim=True)}

    def export(self, points):
        color = (points + 1) / 2
        return {"features": torch.logit(color)}


class Saver(SaverMixin):
    pass


def export(folder, level=0.0, **config):
    geometry = ColoredBall({"isosurface_resolution": 20})
    geometry.level = level
    exporter = threestudio.find("mesh-exporter")(
        {"texture_size": 128, **config},
        geometry=geometry,
        material=threestudio.find("no-material")({}),
        background=threestudio.find("solid-color-background")({}),
    )
    saver = Saver()
    saver.set_save_dir(str(folder))
    (output,) = exporter()
    getattr(saver, f"save_{output.save_type}")(output.save_name, **output.params)
    return output, read(folder / output.save_name)


def read(path):
    """The file's one mesh, as trimesh reads it; by way of a scene, as its way to a single mesh drops colours."""
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    return mesh


def check_ball(mesh):
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices()
    assert merged.is_watertight
    assert merged.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.02)


def to_world(points, fmt):
    """GLB files are y up, front +z; the world is z up, front +x."""
    return points[:, [2, 0, 1]] if fmt == "glb" else points


@pytest.mark.parametrize("fmt", ["obj-mtl", "glb"])
def test_baked_textures_have_the_surfaces_colours(tmp_path, fmt):
    pytest.importorskip("xatlas")
    output, mesh = export(tmp_path, fmt=fmt, texture_format="png")
    check_ball(mesh)
    assert output.save_name == ("model.glb" if fmt == "glb" else "model.obj") and not output.params.get(
        "save_vertex_color"
    )
    # Look the texture up at random points of the surface as a viewer does, v upwards.
    points, faces = trimesh.sample.sample_surface(mesh, 2000, seed=0)
    barycentric = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uv = (mesh.visual.uv[mesh.faces[faces]] * barycentric[..., None]).sum(1)
    material = mesh.visual.material
    image = np.asarray(material.baseColorTexture if fmt == "glb" else material.image)[..., :3] / 255
    x = np.clip((uv[:, 0] * 128).astype(int), 0, 127)
    y = np.clip(((1 - uv[:, 1]) * 128).astype(int), 0, 127)
    expected = (to_world(points, fmt) + 1) / 2
    error = np.abs(image[y, x] - expected)
    assert error.mean() < 0.01 and error.max() < 0.05
    assert (image.reshape(-1, 3) != 0).any(-1).all()  # gaps between charts are filled


@pytest.mark.parametrize(
    "config", [{"fmt": "obj"}, {"fmt": "glb", "save_uv": False}, {"fmt": "obj-mtl", "save_texture": False}]
)
def test_vertex_colours(tmp_path, config):
    output, mesh = export(tmp_path, **config)
    check_ball(mesh)
    expected = (to_world(np.asarray(mesh.vertices), config["fmt"]) + 1) / 2
    if config["fmt"] != "glb":
        color = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    else:  # glTF's vertex colours are linear light, and trimesh keeps those beside a material as an attribute
        color = np.asarray(mesh.visual.vertex_attributes["color"])[:, :3]
        expected = np.where(expected <= 0.04045, expected / 12.92, ((expected + 0.055) / 1.055) ** 2.4)
    assert np.abs(color - expected).max() < 0.01
    assert not list(tmp_path.glob("*.mtl"))


def test_an_empty_field_says_so(tmp_path):
    with pytest.raises(EmptyFieldError, match="isosurface_threshold=0, .*\\["):
        export(tmp_path, level=5.0)


def test_dummy_exporter_writes_nothing():
    assert threestudio.find("dummy-exporter")({}, geometry=None, material=None, background=None)() == []


@pytest.mark.parametrize(
    "config, message",
    [({"fmt": "usd"}, "fmt.*glb"), ({"context_type": "vulkan"}, "context_type"), ({"texture_size": 0}, "texture_size")],
)
def test_wrong_configs_are_refused(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        export(tmp_path, **config)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"texture_format": "jpgg"}, "exporter.texture_format: expected one of jpg, .*, got 'jpgg'.*jpg"),
        ({"xatlas_chart_options": {"max_iteration": 2}}, "xatlas_chart_options: unknown option 'max_iteration'"),
        ({"xatlas_pack_options": {"padding": "wide"}}, "xatlas_pack_options.padding: .*'wide'"),
    ],
)
def test_what_only_writing_would_find_is_refused_when_the_exporter_is_built(config, message):
    with pytest.raises(UserError, match=message):
        threestudio.find("mesh-exporter")(config, geometry=None, material=None, background=None)


def test_charts_that_fill_several_textures_are_refused(tmp_path):
    """They would lie over one another in the one texture that is written."""
    with pytest.raises(UserError, match="xatlas_pack_options: .* charts fill [0-9]+ textures of 128"):
        export(tmp_path, fmt="glb", xatlas_pack_options={"texels_per_unit": 300.0})
    assert not list(tmp_path.iterdir())
    export(tmp_path, fmt="glb", xatlas_pack_options={"texels_per_unit": 20.0})
