"""A box whose sides lie apart, pictures, and glTF files made piece by piece: what the tests of readers share."""

import io
import json
import struct

import numpy as np
import torch
from PIL import Image

HALF = np.array([0.3, 0.2, 0.4])  # half sides of the box
COMPONENTS = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
SIDE_UV = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def box_sides():
    """Corners [6, 4, 3] of the box's sides, outward, in the order -x, +x, -y, +y, -z, +z."""
    sides = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, u], corners[:, v] = [-1, 1, 1, -1], [-1, -1, 1, 1]
            sides.append(corners[::-1] if sign < 0 else corners)
    return np.stack(sides) * HALF


def box_triangles():
    """Vertices [24, 3], faces [12, 3] and texture coordinates [24, 2]: each side has four vertices of its own."""
    start = 4 * np.arange(6)[:, None, None]
    faces = (start + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    return box_sides().reshape(-1, 3), faces, np.tile(SIDE_UV, (6, 1))


def quarters():
    """A picture [8, 8, 3]: red, green in the upper half, blue, white in the lower."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :4], picture[:4, 4:], picture[4:, :4], picture[4:, 4:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return picture


def png(picture):
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def colors_at(mesh, points):
    """Colours [N, 3] where points [N, 3] lie on the mesh's surface."""
    face, weights = [], []
    corners = mesh.v_pos[mesh.t_pos_idx].double()
    for point in torch.as_tensor(np.asarray(points)).double():
        edges = torch.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], -1)  # [F, 3, 2]
        part = torch.linalg.lstsq(edges, (point - corners[:, 0])[..., None]).solution  # [F, 2, 1]
        off = ((edges @ part)[..., 0] - (point - corners[:, 0])).norm(dim=-1)
        share = torch.cat([1 - part.sum(1), part[:, 0], part[:, 1]], -1)
        off = off + (-share.amin(1)).clamp(min=0)
        face.append(int(off.argmin()))
        assert off.min() < 1e-5, f"{point.tolist()} is not on the surface"
        weights.append(share[face[-1]].float())
    return mesh.extras["colors"].at(torch.tensor(face), torch.stack(weights))


class Glb:
    """A glTF tree and its binary chunk."""

    def __init__(self):
        self.tree = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": []}
        self.tree.update(scene=0, scenes=[{"nodes": [0]}])
        self.binary = b""

    def view(self, content, **keys):
        self.binary += b"\0" * (-len(self.binary) % 4)
        place = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(content)}
        self.tree["bufferViews"].append({**place, **keys})
        self.binary += content
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, rows, dtype, stride=None, **keys):
        rows = np.ascontiguousarray(np.asarray(rows, dtype))
        rows = rows[:, None] if rows.ndim == 1 else rows
        content, view = rows.tobytes(), {}
        if stride:
            padded = np.zeros((len(rows), stride), np.uint8)
            padded[:, : rows.itemsize * rows.shape[1]] = rows.view(np.uint8).reshape(len(rows), -1)
            content, view = padded.tobytes(), {"byteStride": stride}
        self.tree["accessors"].append({
            "bufferView": self.view(content, **view), "componentType": COMPONENTS[rows.dtype.name],
            "count": len(rows), "type": KINDS[rows.shape[1]], **keys,
        })  # fmt: skip
        return len(self.tree["accessors"]) - 1

    def picture(self, picture):
        """A texture of it, index 0."""
        self.tree["images"] = [{"bufferView": self.view(png(picture)), "mimeType": "image/png"}]
        self.tree["textures"] = [{"source": 0}]

    def mesh(self, attributes, indices=None, node=None, **keys):
        primitive = {"attributes": attributes, **({} if indices is None else {"indices": indices}), **keys}
        self.tree["meshes"] = [{"primitives": [primitive]}]
        self.tree["nodes"] = [{"mesh": 0, **(node or {})}]
        return primitive

    def box(self, node=None, **keys):
        """A box in glTF's axes; the world's HALF once it is read. Returns its primitive."""
        vertices, faces, uv = box_triangles()
        attributes = {
            "POSITION": self.accessor(vertices[:, [1, 2, 0]], "float32"), "TEXCOORD_0": self.accessor(uv, "float32"),
        }  # fmt: skip
        return self.mesh(attributes, self.accessor(faces.reshape(-1), "uint16"), node, **keys)

    def textured_box(self, info=None, picture=None):
        self.picture(quarters() if picture is None else picture)
        self.tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, **(info or {})}}}]
        return self.box(material=0)

    def bytes(self):
        tree = {**self.tree, "buffers": [{"byteLength": len(self.binary)}, *self.tree.get("buffers", [])]}
        text = json.dumps(tree).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def write(self, path):
        path.write_bytes(self.bytes())
        return str(path)
