"""Readers of other formats are added by name; their meshes are meshes like all others."""

import numpy as np
import pytest
import torch

from tests.host.mesh_reading.shapes import HALF, box_triangles
from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading import MeshPart, MeshReader, load_mesh_file, register_mesh_reader


@pytest.fixture(scope="module")
def cube_files():
    """Files ending in .cube hold the size of a red box, and those that begin with "half" of one half as large."""

    def read(path, colors):
        vertices, faces, _ = box_triangles()
        corners = vertices[faces] * float(open(path).read().split()[-1])
        return [MeshPart(corners, np.full(corners.shape, (1.0, 0.0, 0.0)) if colors else None)]

    def read_half(path, colors):
        return [MeshPart(part.corners / 2, part.rgb) for part in read(path, colors)]

    def is_half(path):
        return open(path).read().startswith("half")

    register_mesh_reader(MeshReader("test-half-cube", (".cube",), read_half, is_half))
    register_mesh_reader(MeshReader("test-cube", (".cube",), read, lambda path: not is_half(path), up="+y", front="+z"))


def test_a_reader_of_a_new_ending(tmp_path, cube_files):
    (tmp_path / "a.cube").write_text("2")
    (tmp_path / "b.CUBE").write_text("half 2")
    mesh = load_mesh_file(str(tmp_path / "a.cube"))
    assert torch.allclose(mesh.v_pos.amax(0), torch.from_numpy(2 * HALF[[2, 0, 1]]).float())  # by the reader's axes
    assert mesh.extras["has_colors"] and torch.allclose(mesh.v_rgb, torch.tensor([1.0, 0, 0]).expand(8, 3))
    half = load_mesh_file(str(tmp_path / "b.CUBE"), colors=False)
    assert torch.allclose(half.v_pos.amax(0), torch.from_numpy(HALF).float()) and half.v_rgb is None


def test_a_name_is_taken_once(cube_files):
    with pytest.raises(UserError, match="a mesh reader named 'test-cube' exists already"):
        register_mesh_reader(MeshReader("test-cube", (".other",), lambda path, colors: []))
