"""Where a glTF scene has its meshes: the matrices of nodes, of instances and of joints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.gltf_container import GltfFile
from threestudio.utils.mesh_reading.gltf_extensions import INSTANCING

DEPTH_LIMIT = 1000  # of nodes in nodes; a deeper one is a loop


class PlacedMesh(NamedTuple):
    mesh: int  # index of the mesh
    node: dict[str, Any]
    matrix: np.ndarray  # [4, 4] from the mesh to the scene
    joints: np.ndarray | None  # [J, 4, 4] instead of matrix, where the node has a skin

    @property
    def is_mirror(self) -> bool:
        turn = self.matrix[:3, :3]
        return bool(np.isfinite(turn).all() and np.linalg.det(turn) < 0)


def placed_meshes(file: GltfFile) -> Iterator[PlacedMesh]:
    """The meshes of the default scene; of all nodes without a parent where the file has no scene."""
    nodes = file.tree.get("nodes", [])
    children = {child for node in nodes for child in node.get("children", [])}
    if file.tree.get("scenes"):
        roots = file.item("scenes", file.tree.get("scene", 0)).get("nodes", [])
    else:
        roots = [index for index in range(len(nodes)) if index not in children]
    globals_of = _global_matrices(file)
    waiting = [(index, 0, np.eye(4)) for index in reversed(roots)]
    while waiting:
        index, depth, above = waiting.pop()
        node = file.item("nodes", index)
        if depth > DEPTH_LIMIT:
            raise UserError(f"{file.path} is broken: its node {index} is inside of itself")
        matrix = above @ _local_matrix(node)  # a node of two parents, which is not allowed, stands at both places
        waiting += [(child, depth + 1, matrix) for child in reversed(node.get("children", []))]
        if "mesh" not in node:
            continue
        joints = _joint_matrices(file, node["skin"], globals_of) if "skin" in node else None
        for instance in _instances(file, node):
            yield PlacedMesh(node["mesh"], node, matrix @ instance, joints)


def _global_matrices(file: GltfFile) -> list[np.ndarray]:  # each [4, 4]
    """From each node to the scene, its parents' matrices included."""
    nodes = file.tree.get("nodes", [])
    parents = {child: index for index, node in enumerate(nodes) for child in node.get("children", [])}
    local = [_local_matrix(node) for node in nodes]
    result = []
    for index, matrix in enumerate(local):
        above = parents.get(index)
        for _ in range(DEPTH_LIMIT):
            if above is None:
                break
            matrix = local[above] @ matrix
            above = parents.get(above)
        else:
            raise UserError(f"{file.path} is broken: its node {index} is inside of itself")
        result.append(matrix)
    return result


def _local_matrix(node: dict[str, Any]) -> np.ndarray:  # [4, 4]
    """glTF 2.0, section 3.5.3; matrices are stored by columns."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    return _composed(
        np.array(node.get("translation", (0, 0, 0)), np.float64),
        np.array(node.get("rotation", (0, 0, 0, 1)), np.float64),
        np.array(node.get("scale", (1, 1, 1)), np.float64),
    )


def _composed(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Matrix [4, 4] of a translation [3], a quaternion xyzw [4] and a scale [3], the scale first."""
    x, y, z, w = rotation / max(float(np.linalg.norm(rotation)), 1e-30)
    matrix = np.eye(4)
    matrix[:3, :3] = (
        np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        * scale
    )
    matrix[:3, 3] = translation
    return matrix


def _instances(file: GltfFile, node: dict[str, Any]) -> list[np.ndarray]:  # each [4, 4]
    """EXT_mesh_gpu_instancing: the copies of a node's mesh; one where it stands without that."""
    attributes = node.get("extensions", {}).get(INSTANCING, {}).get("attributes", {})
    given = {name: file.accessor(index) for name, index in attributes.items() if not name.startswith("_")}
    if not given:
        return [np.eye(4)]
    count = min(len(rows) for rows in given.values())
    defaults = {"TRANSLATION": (0, 0, 0), "ROTATION": (0, 0, 0, 1), "SCALE": (1, 1, 1)}
    columns = {name: given.get(name, np.tile(value, (count, 1))) for name, value in defaults.items()}
    return [_composed(*(columns[name][i].astype(np.float64) for name in defaults)) for i in range(count)]


def _joint_matrices(file: GltfFile, index: int, globals_of: list[np.ndarray]) -> np.ndarray:
    """[J, 4, 4] from a skinned mesh to the scene (section 3.7.3.1); the node's own place does not count."""
    skin = file.item("skins", index)
    joints = skin["joints"]
    for joint in joints:
        file.item("nodes", joint)
    result = np.stack([globals_of[joint] for joint in joints])
    if "inverseBindMatrices" not in skin:
        return result
    inverse = file.accessor(skin["inverseBindMatrices"]).astype(np.float64)
    if len(inverse) < len(joints):
        raise UserError(f"{file.path} is broken: a skin has {len(joints)} joints and {len(inverse)} bind matrices")
    return result @ inverse[: len(joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
