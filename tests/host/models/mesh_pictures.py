"""Pictures of mesh files by a path of its own: trimesh reads, numpy casts rays and looks colours up."""

import json
from dataclasses import dataclass

import numpy as np
import trimesh


@dataclass
class Solid:
    vertices: np.ndarray  # [V, 3] in the world's axes
    faces: np.ndarray  # [F, 3]
    uv: np.ndarray | None  # [V, 2], v up
    texture: np.ndarray | None  # [H, W, 3] sRGB
    rgb: np.ndarray | None  # [V, 3] sRGB


def read_solid(path) -> Solid:
    is_glb = str(path).endswith(".glb")
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) if is_glb else np.eye(3)  # y up and front +z, to z up and +x
    uv = texture = rgb = None
    if isinstance(mesh.visual, trimesh.visual.ColorVisuals):
        if mesh.visual.kind is not None:
            rgb = mesh.visual.vertex_colors[:, :3] / 255.0
    elif mesh.visual.uv is not None:
        image = mesh.visual.material.baseColorTexture if is_glb else mesh.visual.material.image
        uv, texture = mesh.visual.uv, np.asarray(image.convert("RGB")) / 255.0
    else:
        linear = np.clip(mesh.visual.vertex_attributes["color"][:, :3], 0, 1)
        rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Solid(np.asarray(mesh.vertices) @ turn.T, np.asarray(mesh.faces), uv, texture, rgb)


def first_hits(solid: Solid, origins: np.ndarray, directions: np.ndarray):
    """Face (-1: none) [N] and barycentric coordinates [N, 3] where rays [N, 3] first meet the solid.

    By the test of Moeller and Trumbore 1997.
    """
    a, b, c = (solid.vertices[solid.faces[:, k]] for k in range(3))
    ab, ac = b - a, c - a
    face, weights = np.full(len(origins), -1), np.zeros((len(origins), 3))
    middle = solid.vertices.mean(0)
    reach = np.linalg.norm(solid.vertices - middle, axis=1).max()
    for i, (origin, direction) in enumerate(zip(origins, directions)):
        if np.linalg.norm(np.cross(middle - origin, direction)) > reach * np.linalg.norm(direction):
            continue  # it passes by all of the solid
        p = np.cross(direction, ac)
        det = (ab * p).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            s = origin - a
            u = (s * p).sum(1) / det
            q = np.cross(s, ab)
            v, t = (q @ direction) / det, (ac * q).sum(1) / det
            hit = (np.abs(det) > 1e-14) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
        if hit.any():
            best = np.flatnonzero(hit)[t[hit].argmin()]
            face[i], weights[i] = best, (1 - u[best] - v[best], u[best], v[best])
    return face, weights


def picture(path, rays_o: np.ndarray, rays_d: np.ndarray, background: float):
    """Colours [H, W, 3] and mask [H, W] of the file's mesh along rays [H, W, 3]."""
    solid = read_solid(path)
    face, weights = first_hits(solid, rays_o.reshape(-1, 3), rays_d.reshape(-1, 3))
    hit = face >= 0
    corners = solid.faces[face[hit]]
    rgb = np.full((len(face), 3), background)
    if solid.texture is not None:
        uv = (solid.uv[corners] * weights[hit][..., None]).sum(1)
        height, width = solid.texture.shape[:2]
        x = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
        y = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
        rgb[hit] = solid.texture[y, x]
    else:
        rgb[hit] = (solid.rgb[corners] * weights[hit][..., None]).sum(1)
    shape = rays_o.shape[:-1]
    return rgb.reshape(*shape, 3), hit.reshape(shape)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def shaded_points(path, count: int = 4000):
    """Drawn points of a textured GLB's one mesh, in its own axes.

    Returns points [N, 3], the mesh's normals [N, 3], those that its normal map makes of them by glTF's rule [N, 3], of
    any length, and texture coordinates [N, 2], v down.
    """
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    image = np.asarray(mesh.visual.material.normalTexture.convert("RGB")) / 127.5 - 1
    tangents = read_attribute(path, "TANGENT", 4)
    rng = np.random.default_rng(0)
    face = rng.integers(len(mesh.faces), size=count)
    weights = rng.dirichlet([1, 1, 1], size=count)[..., None]
    corners = mesh.faces[face]
    point, normal, tangent, uv = (
        (values[corners] * weights).sum(1) for values in (mesh.vertices, mesh.vertex_normals, tangents, mesh.visual.uv)
    )
    bitangent = np.cross(normal, tangent[:, :3]) * np.sign(tangent[:, 3:])
    uv = np.stack([uv[:, 0], 1 - uv[:, 1]], -1)
    texel = texels_at(image, uv)
    return point, normal, texel[:, :1] * tangent[:, :3] + texel[:, 1:2] * bitangent + texel[:, 2:] * normal, uv


def texels_at(image: np.ndarray, uv: np.ndarray) -> np.ndarray:  # [H, W, C], [N, 2] v down -> [N, C]
    height, width = image.shape[:2]
    return image[(uv[:, 1] * height).astype(int).clip(0, height - 1), (uv[:, 0] * width).astype(int).clip(0, width - 1)]


def read_attribute(path, name, columns):
    """An attribute of floats of a GLB's one mesh, [N, columns], straight from its bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[12:16], "little")
    tree = json.loads(content[20 : 20 + length])
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"][name]]
    view = tree["bufferViews"][accessor["bufferView"]]
    start = 28 + length + view.get("byteOffset", 0)
    return np.frombuffer(content, "<f4", accessor["count"] * columns, start).reshape(-1, columns)
