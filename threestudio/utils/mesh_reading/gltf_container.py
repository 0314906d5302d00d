"""The parts of a glTF 2.0 file: its JSON, its buffers, and the arrays and pictures in them."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import struct
from typing import Any
from urllib.parse import unquote

import numpy as np
from torch import Tensor

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.gltf_extensions import DRACO, MESHOPT, check_extensions, unread_extension
from threestudio.utils.mesh_reading.named_files import named_file, read_picture

# glTF 2.0, section 3.6.2.2
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_COUNTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942  # section 4.4.3


class GltfFile:
    """A .gltf or .glb file. Buffers and pictures are read at first use, so that what no mesh uses may be missing."""

    def __init__(self, path: str) -> None:
        """Raises UserError for what is no glTF 2.0, is cut short, or needs an extension that is not read."""
        self.path = path
        with open(path, "rb") as file:
            content = file.read()
        # What a file is called says little: both kinds come under both endings.
        is_text = content.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"{")
        if content.startswith(b"glTF") or path.lower().endswith(".glb") and not is_text:
            text, self._binary = _glb_chunks(path, content)
        else:
            text, self._binary = content, None
        try:
            self.tree: dict[str, Any] = json.loads(text.rstrip(b"\0").decode("utf-8-sig"))  # some pad with zeros
            version = str(self.tree["asset"]["version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is no glTF file, or is cut short") from error
        if not version.startswith("2."):
            raise UserError(f"{path} is glTF {version}; expected version 2.0, export it anew")
        check_extensions(path, self.tree)
        self._buffers: dict[int, bytes] = {}
        self._pictures: dict[int, Tensor] = {}

    def item(self, kind: str, index: int) -> dict[str, Any]:
        """Entry of one of the file's lists, e.g. "nodes"; UserError where it is not there."""
        entries = self.tree.get(kind, [])
        if not isinstance(index, int) or not 0 <= index < len(entries):
            raise UserError(f"{self.path} is broken: it names entry {index} of {kind}, which has {len(entries)}")
        return entries[index]

    def accessor(self, index: int) -> np.ndarray:
        """Its rows [count, components]: as they are stored, or floats in [-1, 1] or [0, 1] where it is normalized."""
        accessor = self.item("accessors", index)
        dtype, columns = np.dtype(_COMPONENTS[accessor["componentType"]]), _COUNTS[accessor["type"]]
        count = accessor["count"]
        if "bufferView" in accessor:
            rows = self._rows(accessor["bufferView"], accessor.get("byteOffset", 0), count, columns, dtype)
        else:
            rows = np.zeros((count, columns), dtype)
        if "sparse" in accessor:
            rows = self._with_sparse(rows, accessor["sparse"])
        if accessor.get("normalized") and dtype.kind in "iu":  # section 3.6.2.2
            return np.maximum(rows.astype(np.float64) / np.iinfo(dtype).max, -1.0)
        return rows

    def _with_sparse(self, rows: np.ndarray, sparse: dict[str, Any]) -> np.ndarray:
        """Rows of which some are replaced (section 3.6.2.3)."""
        where, values = sparse["indices"], sparse["values"]
        kind = np.dtype(_COMPONENTS[where["componentType"]])
        index = self._rows(where["bufferView"], where.get("byteOffset", 0), sparse["count"], 1, kind)[:, 0]
        if len(index) and index.max() >= len(rows):
            raise UserError(f"{self.path} is broken: a sparse accessor replaces row {index.max()} of {len(rows)}")
        rows = rows.copy()
        start = values.get("byteOffset", 0)
        rows[index] = self._rows(values["bufferView"], start, len(index), rows.shape[1], rows.dtype)
        return rows

    def _rows(self, view_index: int, offset: int, count: int, columns: int, dtype: np.dtype) -> np.ndarray:
        view = self.item("bufferViews", view_index)
        buffer = self._buffer(view["buffer"], view)
        width = columns * dtype.itemsize
        stride = view.get("byteStride") or width
        start = view.get("byteOffset", 0) + offset
        needed = offset + (stride * (count - 1) + width if count else 0)  # bytes of the view
        there = min(view["byteLength"], len(buffer) - view.get("byteOffset", 0))
        if min(offset, count, start) < 0 or needed > there:
            raise UserError(f"{self.path} is cut short or broken: {needed} bytes are named where {there} are")
        return np.ndarray((count, columns), dtype, buffer, start, (stride, dtype.itemsize))

    def _buffer(self, index: int, view: dict[str, Any]) -> bytes:
        if index not in self._buffers:
            buffer = self.item("buffers", index)
            if "uri" in buffer:
                self._buffers[index] = self._at_uri(buffer["uri"], "the buffer")
            elif index == 0 and self._binary is not None:
                self._buffers[index] = self._binary
            else:  # a buffer without content stands for what only an extension has
                named = [*view.get("extensions", {}), *buffer.get("extensions", {})]
                name = next((name for name in named if name in (*MESHOPT, DRACO)), None)
                if name is not None:
                    raise unread_extension(self.path, name)
                raise UserError(f"{self.path} is broken: its buffer {index} has no content")
        return self._buffers[index]

    def picture(self, index: int) -> Tensor:
        """Texels [H, W, 3] uint8 of an image."""
        if index not in self._pictures:
            image = self.item("images", index)
            label = f"{self.path}: its image {image.get('name') or image.get('uri', str(index))[:60]}"
            if "bufferView" in image:
                view = self.item("bufferViews", image["bufferView"])
                rows = self._rows(image["bufferView"], 0, view["byteLength"], 1, np.dtype("<u1"))
                content = rows.tobytes()
            else:
                content = self._at_uri(image["uri"], "the texture")
            self._pictures[index] = read_picture(content, label)
        return self._pictures[index]

    def _at_uri(self, uri: str, what: str) -> bytes:
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            try:
                return base64.b64decode(body) if head.endswith(";base64") else unquote(body).encode("latin-1")
            except (binascii.Error, UnicodeEncodeError) as error:
                raise UserError(f"{self.path} is broken: data in it is not in base64") from error
        with open(named_file(self.path, unquote(uri), what), "rb") as file:
            return file.read()


def _glb_chunks(path: str, content: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a GLB (section 4.4)."""
    if len(content) < 12 or content[:4] != b"glTF":
        raise UserError(f"{path} is no GLB file: it does not begin with glTF")
    version, length = struct.unpack("<II", content[4:12])
    if version != 2:
        raise UserError(f"{path} is a GLB of version {version}; expected version 2, export it anew")
    if len(content) < length:
        raise UserError(f"{path} is cut short: {len(content)} of {length} bytes are there")
    chunks: dict[int, bytes] = {}
    start = 12
    while start + 8 <= length:
        size, kind = struct.unpack("<II", content[start : start + 8])
        chunks.setdefault(kind, content[start + 8 : start + 8 + size])
        start += 8 + size
    if _JSON_CHUNK not in chunks or start > length:
        raise UserError(f"{path} is no GLB file, or is broken: its chunks do not fit its {length} bytes")
    return chunks[_JSON_CHUNK], chunks.get(_BINARY_CHUNK)
