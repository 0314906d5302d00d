"""PLY files as tables: elements of rows, with columns of numbers or of lists, in text or in bytes of either order."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from threestudio.utils.errors import UserError

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
LONGEST_HEADER = 2**20  # bytes


class PlyProperty(NamedTuple):
    name: str
    kind: str  # numpy's name of the type, e.g. f4
    count_kind: str | None  # of the number before a list; None: no list


@dataclass
class PlyElement:
    name: str
    count: int  # rows
    properties: list[PlyProperty]

    @property
    def names(self) -> list[str]:
        return [prop.name for prop in self.properties]


@dataclass
class PlyHeader:
    form: str  # a key of _ORDERS
    elements: list[PlyElement]
    comments: list[str]
    start: int  # bytes before the first row

    def rows(self, element: str) -> int:
        return sum(each.count for each in self.elements if each.name == element)

    def names(self, element: str) -> list[str]:
        return [name for each in self.elements if each.name == element for name in each.names]


class Lists(NamedTuple):
    """A column of lists."""

    counts: np.ndarray  # [N] length of each
    values: np.ndarray  # [sum of counts] all of them, one after another


Column = np.ndarray | Lists
Table = dict[str, Column]


def read_ply_header(path: str) -> PlyHeader:
    """Raises UserError for what is no PLY file or has a header that is broken."""
    with open(path, "rb") as file:
        content = file.read(LONGEST_HEADER)
    lines, start = _header_lines(content)
    if not lines or lines[-1] != "end_header":
        raise UserError(f"{path} is not a PLY file, or is cut short in its header")
    form, elements, comments = "", [], []
    for line in lines[:-1]:
        try:
            form = _parse_line(line, form, elements, comments)
        except (IndexError, KeyError, ValueError) as error:
            raise UserError(f"{path}: broken PLY header at {line!r}") from error
    if form not in _ORDERS:
        raise UserError(f"{path}: unknown PLY format {form!r}, expected one of {', '.join(_ORDERS)}")
    return PlyHeader(form, elements, comments, start)


def _header_lines(content: bytes) -> tuple[list[str], int]:
    """The lines behind the first, up to end_header, and where the next begins. They end as the first line does."""
    first = re.match(rb"(\xef\xbb\xbf)?ply[ \t]*(\r\n|\r|\n)", content)
    lines: list[str] = []
    if first is None:
        return lines, 0
    end_of_line, start = (b"\r" if first.group(2) == b"\r" else b"\n"), first.end()
    while lines[-1:] != ["end_header"] and (end := content.find(end_of_line, start)) >= 0:
        lines.append(content[start:end].decode("utf-8", "replace").strip())
        start = end + 1
    return lines, start


def _parse_line(line: str, form: str, elements: list[PlyElement], comments: list[str]) -> str:
    words = line.split()
    if words[:1] == ["format"]:
        return words[1]
    if words[:1] == ["comment"]:
        comments.append(line.partition(" ")[2].strip())
    elif words[:1] == ["element"]:
        count = int(words[2])
        if count < 0:
            raise ValueError("fewer than no rows")
        elements.append(PlyElement(words[1], count, []))
    elif words[:2] == ["property", "list"]:
        elements[-1].properties.append(PlyProperty(words[4], _TYPES[words[3]], _TYPES[words[2]]))
    elif words[:1] == ["property"]:
        elements[-1].properties.append(PlyProperty(words[2], _TYPES[words[1]], None))
    if elements and len(set(elements[-1].names)) < len(elements[-1].names):
        raise ValueError("two properties of one name")
    return form


def read_ply_tables(path: str, header: PlyHeader, wanted: Iterable[str]) -> dict[str, Table]:
    """The wanted elements that the file has, whatever stands before and between them. Of two elements of one name the
    last counts. Raises UserError for a file that is cut short or broken."""
    with open(path, "rb") as file:
        file.seek(header.start)
        body = file.read()
    wanted = set(wanted)
    last = max((i for i, element in enumerate(header.elements) if element.name in wanted), default=-1)
    tables: dict[str, Table] = {}
    lines = [line for line in body.decode("latin-1").splitlines() if line.strip()] if header.form == "ascii" else []
    at = 0
    for element in header.elements[: last + 1]:
        if header.form == "ascii":
            table = _text_table(path, element, lines[at : at + element.count]) if element.name in wanted else {}
            at += element.count
        else:
            table, at = _binary_table(path, element, body, at, _ORDERS[header.form])
        if element.name in wanted:
            tables[element.name] = table
    return tables


def _text_table(path: str, element: PlyElement, lines: list[str]) -> Table:
    broken = f"{path}: cut short or broken, expected {element.count} lines of"
    if len(lines) < element.count:
        raise UserError(f"{broken} {element.name}, {len(lines)} are there")
    rows = [line.split() for line in lines]
    try:
        if not any(prop.count_kind for prop in element.properties):
            if any(len(row) < len(element.properties) for row in rows):
                raise UserError(f"{broken} {len(element.properties)} numbers")
            table = np.array([row[: len(element.properties)] for row in rows], np.float64)
            table = table.reshape(element.count, len(element.properties))
            return {prop.name: _typed(table[:, i], prop.kind) for i, prop in enumerate(element.properties)}
        return _text_lists(element, rows)
    except UserError:
        raise
    except (IndexError, ValueError, OverflowError) as error:
        raise UserError(f"{broken} {element.name} ({error})") from error


def _typed(values: np.ndarray, kind: str) -> np.ndarray:
    if kind[0] == "f":
        with np.errstate(over="ignore"):
            return values.astype(kind)
    info = np.iinfo(kind)
    if not bool(((values >= info.min) & (values <= info.max)).all()):
        raise ValueError(f"a number that does not fit its type {np.dtype(kind).name}")
    return values.astype(kind)


def _text_lists(element: PlyElement, rows: list[list[str]]) -> Table:
    """Rows with lists, whose lengths differ."""
    counts: dict[str, list[int]] = {prop.name: [] for prop in element.properties}
    values: dict[str, list[str]] = {prop.name: [] for prop in element.properties}
    for row in rows:
        at = 0
        for prop in element.properties:
            length = 1
            if prop.count_kind:
                length = int(row[at])
                at += 1
            if length < 0 or at + length > len(row):
                raise IndexError(f"a row ends before its {prop.name}")
            counts[prop.name].append(length)
            values[prop.name] += row[at : at + length]
            at += length
    typed = {prop.name: _typed(np.array(values[prop.name], np.float64), prop.kind) for prop in element.properties}
    lists = {
        prop.name: Lists(np.array(counts[prop.name], np.int64), typed[prop.name])
        for prop in element.properties
        if prop.count_kind
    }
    return {**typed, **lists}


def _binary_table(path: str, element: PlyElement, body: bytes, start: int, order: str) -> tuple[Table, int]:
    """The table, and where it ends."""
    lists = [prop for prop in element.properties if prop.count_kind]
    if element.count == 0:
        empty = {prop.name: np.zeros(0, prop.kind) for prop in element.properties}
        return {**empty, **{prop.name: Lists(np.zeros(0, np.int64), empty[prop.name]) for prop in lists}}, start
    lengths = _row_lengths(path, element, body, start, order)
    dtype = _row_type(element, lengths, order)
    needed = element.count * dtype.itemsize
    if start + needed <= len(body):
        rows = np.frombuffer(body, dtype, element.count, start)
        if all(bool((rows[f"{prop.name} count"] == lengths[prop.name]).all()) for prop in lists):
            return _columns_of(rows, element, lengths), start + needed
    elif not lists:
        there = max(0, len(body) - start)
        name = "vertices" if element.name == "vertex" else f"rows of {element.name}"
        raise UserError(f"{path}: cut short, {element.count} {name} need {needed} bytes, the file has {there}")
    return _uneven_rows(path, element, body, start, order)


def _row_type(element: PlyElement, lengths: dict[str, int], order: str) -> np.dtype:
    """The layout of rows whose lists have these lengths."""
    fields: list[tuple] = []
    for prop in element.properties:
        if prop.count_kind:
            fields.append((f"{prop.name} count", order + prop.count_kind))
            fields.append((prop.name, order + prop.kind, (lengths[prop.name],)))
        else:
            fields.append((prop.name, order + prop.kind))
    return np.dtype(fields)


def _row_lengths(path: str, element: PlyElement, body: bytes, start: int, order: str) -> dict[str, int]:
    """Lengths of the lists in the row that begins at `start`."""
    lengths = {}
    for prop in element.properties:
        if prop.count_kind:
            count_type = np.dtype(order + prop.count_kind)
            if start + count_type.itemsize > len(body):
                raise UserError(f"{path}: cut short, its rows of {element.name} end in the middle")
            lengths[prop.name] = int(np.frombuffer(body, count_type, 1, start)[0])
            start += count_type.itemsize
            if lengths[prop.name] < 0 or lengths[prop.name] > len(body):
                raise UserError(f"{path} is broken: a list of {lengths[prop.name]} {prop.name}")
        start += np.dtype(prop.kind).itemsize * lengths.get(prop.name, 1)
    return lengths


def _columns_of(rows: np.ndarray, element: PlyElement, lengths: dict[str, int]) -> Table:
    table: Table = {}
    for prop in element.properties:
        values = rows[prop.name].reshape(-1).astype(prop.kind)
        table[prop.name] = values
        if prop.count_kind:
            table[prop.name] = Lists(np.full(len(rows), lengths[prop.name], np.int64), values)
    return table


def _uneven_rows(path: str, element: PlyElement, body: bytes, start: int, order: str) -> tuple[Table, int]:
    """Rows one after another, whose lists have lengths of their own."""
    runs: dict[tuple[int, ...], tuple[dict[str, int], np.dtype]] = {}
    codes = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I"}
    lists = [prop for prop in element.properties if prop.count_kind]
    only_list = len(lists) == 1 and element.properties[0] is lists[0] and lists[0].count_kind in codes
    first_count = struct.Struct(order + codes[lists[0].count_kind]) if only_list else None
    spans: list[tuple[tuple[int, ...], int]] = []
    for _ in range(element.count):
        if first_count is not None and start + first_count.size <= len(body):
            key = first_count.unpack_from(body, start)
            lengths = {lists[0].name: key[0]}
        else:
            lengths = _row_lengths(path, element, body, start, order)
            key = tuple(lengths.values())
        if key not in runs:
            if min(key) < 0 or max(key) > len(body):
                raise UserError(f"{path} is broken: a list of {max(key)} numbers in its rows of {element.name}")
            runs[key] = (lengths, _row_type(element, lengths, order))
        spans.append((key, start))
        start += runs[key][1].itemsize
    if start > len(body):
        raise UserError(f"{path}: cut short, its rows of {element.name} end in the middle")
    return _gathered(element, body, runs, spans), start


def _gathered(element: PlyElement, body: bytes, runs: dict, spans: list[tuple[tuple[int, ...], int]]) -> Table:
    """Columns of uneven rows, taken together by the lengths of their lists."""
    n = len(spans)
    counts = {prop.name: np.ones(n, np.int64) for prop in element.properties}
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (key, _) in enumerate(spans):
        groups.setdefault(key, []).append(index)
    for key, members in groups.items():
        for name, length in runs[key][0].items():
            counts[name][members] = length
    first = {name: np.cumsum(count) - count for name, count in counts.items()}
    values = {prop.name: np.zeros(int(counts[prop.name].sum()), prop.kind) for prop in element.properties}
    content = np.frombuffer(body, np.uint8)
    for key, members in groups.items():
        lengths, dtype = runs[key]
        begin = np.array([spans[index][1] for index in members], np.int64)
        rows = content[begin[:, None] + np.arange(dtype.itemsize)].copy().view(dtype)[:, 0]
        for prop in element.properties:
            length = lengths.get(prop.name, 1)
            at = first[prop.name][members][:, None] + np.arange(length)
            values[prop.name][at] = rows[prop.name].reshape(len(members), length)
    return {
        prop.name: Lists(counts[prop.name], values[prop.name]) if prop.count_kind else values[prop.name]
        for prop in element.properties
    }
