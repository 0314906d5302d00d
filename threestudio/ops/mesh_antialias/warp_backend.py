"""Finding a mesh's outlines between pixels as Warp kernels, CPU and CUDA, float32; see reference.py.

A thread handles one edge in one view. The outermost edge of a pair wins by an atomic minimum of its key, which has the
same outcome in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio.ops.mesh_antialias.edges import Edges
from threestudio.ops.mesh_antialias.reference import EDGE_BITS, LEAST_W, LEAST_WEIGHT, NO_EDGE
from threestudio.ops.mesh_rasterization.warp_backend import pixel_centre
from threestudio.ops.warp_runtime import launch, wp

CAMERA_W = wp.constant(wp.float32(LEAST_W))
SMALL_WEIGHT = wp.constant(wp.float32(LEAST_WEIGHT))
DISTANCE_SHIFT = wp.constant(wp.int64(EDGE_BITS))


@wp.func
def screen(c: wp.vec4):
    return wp.vec3(c[0], c[1], c[3])


@wp.kernel(enable_backward=False)
def turn_kernel(
    v_clip: wp.array2d(dtype=wp.vec4),
    t_idx: wp.array2d(dtype=wp.int64),
    turn: wp.array2d(dtype=wp.int8),  # [B, F]: the side of corners 0 and 1 on which corner 2 lies
):
    view, f = wp.tid()
    p = screen(v_clip[view, wp.int32(t_idx[f, 0])])
    q = screen(v_clip[view, wp.int32(t_idx[f, 1])])
    r = screen(v_clip[view, wp.int32(t_idx[f, 2])])
    volume = wp.dot(p, wp.cross(q - p, r - p))
    sign = wp.int8(0)
    if volume > 0.0:
        sign = wp.int8(1)
    if volume < 0.0:
        sign = wp.int8(-1)
    turn[view, f] = sign


@wp.func
def outline_side(
    view: int,
    e: int,
    first: wp.array(dtype=wp.int64),
    faces: wp.array(dtype=wp.int64),
    turned: wp.array(dtype=wp.bool),
    turn: wp.array2d(dtype=wp.int8),
):
    """The side of the edge on which all its faces lie, 1 or -1; 0 where there are faces on both or on none."""
    left = int(0)
    right = int(0)
    for h in range(wp.int32(first[e]), wp.int32(first[e + 1])):
        side = wp.int32(turn[view, wp.int32(faces[h])])
        if turned[h]:
            side = -side
        if side > 0:
            left = 1
        if side < 0:
            right = 1
    return left - right


@wp.func
def line_range(c: wp.vec4, d: wp.vec4, coordinate: int, n_lines: int):
    """First and last line of pixels' centres that the edge from c to d may cross."""
    a = c[coordinate]
    b = d[coordinate]
    wa = c[3]
    wb = d[3]
    if wa < CAMERA_W and wb < CAMERA_W:
        return wp.vec2i(0, -1)
    if wa < CAMERA_W or wb < CAMERA_W:
        cut = a + (CAMERA_W - wa) / (wb - wa) * (b - a)
        if wa < CAMERA_W:
            a = cut
            wa = CAMERA_W
        else:
            b = cut
            wb = CAMERA_W
    n = wp.float32(n_lines)
    a = wp.clamp((a / wa + 1.0) * 0.5 * n - 0.5, -1.0, n)
    b = wp.clamp((b / wb + 1.0) * 0.5 * n - 0.5, -1.0, n)
    low = wp.max(wp.int32(wp.ceil(wp.min(a, b) - 0.01)), 0)
    high = wp.min(wp.int32(wp.floor(wp.max(a, b) + 0.01)), n_lines - 1)
    return wp.vec2i(low, high)


@wp.kernel(enable_backward=False)
def outline_kernel(
    v_clip: wp.array2d(dtype=wp.vec4),
    vertices: wp.array2d(dtype=wp.int64),  # [E, 2]
    first: wp.array(dtype=wp.int64),
    faces: wp.array(dtype=wp.int64),
    turned: wp.array(dtype=wp.bool),
    turn: wp.array2d(dtype=wp.int8),
    face: wp.array3d(dtype=wp.int64),
    depth: wp.array3d(dtype=wp.float32),
    winner: wp.array4d(dtype=wp.int64),  # [2, B, H, W]
):
    view, e = wp.tid()
    side = outline_side(view, e, first, faces, turned, turn)
    if side == 0:
        return
    c = v_clip[view, wp.int32(vertices[e, 0])]
    d = v_clip[view, wp.int32(vertices[e, 1])]
    height = face.shape[1]
    width = face.shape[2]
    line = wp.cross(screen(c), screen(d) - screen(c))
    a = line[0] * line[0]
    b = line[1] * wp.float32(width) / wp.float32(height)
    b = b * b
    for axis in range(2):
        weight = a / wp.max(a + b, 1.0e-37)
        n_lines = height
        n_along = width
        if axis == 1:
            weight = 1.0 - weight
            n_lines = width
            n_along = height
        lines = line_range(c, d, 1 - axis, n_lines)
        last = lines[1]
        if weight <= SMALL_WEIGHT:
            last = -1
        for index in range(lines[0], last + 1):
            centre = pixel_centre(index, n_lines)
            off_c = c[1 - axis] - centre * c[3]
            off_d = d[1 - axis] - centre * d[3]
            if (off_c < 0.0) != (off_d < 0.0):
                share = off_c / (off_c - off_d)
                point = c + share * (d - c)
                if point[3] > 0.0 and wp.abs(point[2]) <= point[3]:
                    place = (point[axis] / point[3] + 1.0) * 0.5 * wp.float32(n_along) - 0.5
                    # Compared as numbers: far off the screen, place is beyond the integers.
                    if place >= 0.0 and place < wp.float32(n_along - 1):
                        k = wp.int32(wp.floor(place))
                        next_sees = line[axis] * wp.float32(side) > 0.0
                        near_step = wp.where(next_sees, 1, 0)
                        far_step = 1 - near_step
                        row = index
                        column = k
                        down = 0
                        if axis == 1:
                            row = k
                            column = index
                            down = 1
                        right = 1 - down
                        near = face[view, row + near_step * down, column + near_step * right]
                        far = face[view, row + far_step * down, column + far_step * right]
                        far_depth = depth[view, row + far_step * down, column + far_step * right]
                        hides = far < wp.int64(0) or far_depth > point[2] / point[3]
                        if near >= wp.int64(0) and hides and near != far:
                            distance = wp.clamp(place - wp.float32(k), 0.0, 1.0)
                            if not next_sees:
                                distance = 1.0 - distance
                            key = wp.int64(wp.cast(distance, wp.int32)) << DISTANCE_SHIFT
                            key = key | (wp.int64(e) << wp.int64(1)) | wp.int64(near_step)
                            wp.atomic_min(winner, axis, view, row, column, key)


def outline_pairs_warp(v_clip: Tensor, t_pos_idx: Tensor, edges: Edges, face: Tensor, depth: Tensor) -> Tensor:
    """As reference.outline_pairs_torch."""
    batch = face.shape[0]
    turn = torch.empty(batch, t_pos_idx.shape[0], dtype=torch.int8, device=face.device)
    winner = face.new_full((2, *face.shape), NO_EDGE)
    launch(turn_kernel, turn.shape, [v_clip, t_pos_idx.long(), turn], face.device)
    arguments = [v_clip, *edges, turn, face, depth, winner]
    launch(outline_kernel, (batch, edges.vertices.shape[0]), arguments, face.device)
    return winner
