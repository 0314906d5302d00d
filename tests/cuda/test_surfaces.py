"""Every geometry gives its surface, starts from a mesh, and is exported in every format, on a CUDA device."""

import pytest
import torch
import trimesh

import threestudio
from threestudio.models.geometry.mesh_start import MeshStartConfig, read_start_mesh
from threestudio.utils.saving import SaverMixin

ENCODING = {
    "otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8, "base_resolution": 4,
    "per_level_scale": 1.5,
}  # fmt: skip
SMALL = {"pos_encoding_config": ENCODING, "isosurface_resolution": 12}
VOLUME = {**SMALL, "isosurface_threshold": 5.0, "density_bias": "blob_magic3d", "density_activation": "softplus"}
BALL = {**SMALL, "sdf_bias": "sphere", "sdf_bias_params": 0.5}
KINDS = {
    "volume, tetrahedra": ("implicit-volume", VOLUME),
    "volume, cubes": ("implicit-volume", {**VOLUME, "isosurface_method": "mc-cpu"}),
    "sdf, tetrahedra": ("implicit-sdf", BALL),
    "sdf, cubes": ("implicit-sdf", {**BALL, "isosurface_method": "mc-cpu"}),
    "sdf, coarse to fine": ("implicit-sdf", {**BALL, "isosurface_coarse_to_fine": True}),
    "sdf, without small pieces": ("implicit-sdf", {**BALL, "isosurface_remove_outliers": True}),
    "tetrahedra": ("tetrahedra-sdf-grid", {**SMALL, "shape_init": "sphere", "shape_init_params": 0.5}),
    "grid": ("volume-grid", {"grid_size": [8, 8, 8], "isosurface_resolution": 12, "isosurface_threshold": 0.5,
                             "density_bias": "blob", "isosurface_method": "mc-cpu"}),
}  # fmt: skip
FORMATS = [
    {"fmt": "obj-mtl", "save_normal": True},
    {"fmt": "glb", "simplify_to": 40, "save_normal_map": True},
    {"fmt": "glb", "save_texture": False},
    {"fmt": "obj"},
    {"fmt": "ply"},
    {"fmt": "stl"},
]


class Saver(SaverMixin):
    pass


def scene(kind: str):
    name, config = KINDS[kind]
    torch.manual_seed(0)
    plain = [threestudio.find(x)({}) for x in ("no-material", "solid-color-background")]
    return [part.to("cuda") for part in (threestudio.find(name)(config), *plain)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_surface_and_its_colours(kind, on_cuda):
    geometry, material, _ = scene(kind)
    geometry.initialize_shape()
    mesh = geometry.isosurface()
    assert mesh.v_pos.is_cuda and mesh.t_pos_idx.is_cuda and mesh.t_pos_idx.shape[0] > 20
    colors = material.export(points=mesh.v_pos, **geometry.export(points=mesh.v_pos))["albedo"]
    assert colors.is_cuda and bool(torch.isfinite(colors).all())


@pytest.mark.parametrize("config", FORMATS, ids=lambda config: " ".join(map(str, config.values())))
def test_a_file_of_each_format(config, on_cuda, tmp_path):
    geometry, material, background = scene("sdf, tetrahedra")
    parts = {"geometry": geometry, "material": material, "background": background}
    exporter = threestudio.find("mesh-exporter")({"texture_size": 32, **config}, **parts)
    saver = Saver()
    saver.set_save_dir(str(tmp_path))
    (output,) = exporter()
    getattr(saver, f"save_{output.save_type}")(output.save_name, **output.params)
    mesh = trimesh.load(tmp_path / output.save_name, force="mesh")
    assert mesh.faces.shape[0] >= 20 and abs(mesh.extents.max() - 1.0) < 0.2


@pytest.mark.parametrize("kind", ["volume, cubes", "sdf, tetrahedra", "tetrahedra"])
def test_a_mesh_to_start_from(kind, on_cuda, tmp_path):
    path = tmp_path / "ball.ply"
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.6)
    ball.visual.vertex_colors = [200, 30, 30, 255]
    ball.export(path)
    geometry, material, _ = scene(kind)
    geometry.init_from_mesh(read_start_mesh(str(path), MeshStartConfig(), 1.0), material, steps=3)
    assert all(p.is_cuda for p in geometry.parameters())


def test_fitting_a_first_shape(on_cuda):
    geometry = threestudio.find("implicit-sdf")({**SMALL, "shape_init": "sphere", "shape_init_params": 0.5}).to("cuda")
    geometry.initialize_shape()
    distance = geometry.forward_sdf(torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0]], device="cuda"))
    assert distance[0].item() < 0 < distance[1].item()
