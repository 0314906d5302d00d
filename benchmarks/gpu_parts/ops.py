"""Every op by backend: Warp, and gsplat, nerfacc, tinycudann where they can be imported, beside the torch reference.

Times are of a forward and a backward pass (of the forward pass alone where there is no gradient). Differences are in
values and gradients: the largest, in units of a tensor's largest value, and the share of all numbers that differ by
more than 1e-4 in these units. Of a torch row they are from torch in float64, of the others from torch in float32: what
one rounding more or less does is seen beside what the backends differ by. The finest cells of the hash grid are
numbered to four thousand, so a rounding moves a point by 5e-4 of a cell, and the kernels on CUDA round once (a fused
multiply-add) where torch rounds twice. A Gaussian ends where its alpha falls below 1/255, and a pixel at that limit
has it or not by its last bit: then a few numbers jump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts.shared import Row, Setting, guarded
from benchmarks.timing import median_seconds

NOTABLE = 1e-4  # of a tensor's largest value
Work = tuple[Sequence[str], Callable[[str], list[Tensor]]]  # backends beside torch, and what one of them gives


def with_gradients(out: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, and the gradients of a fixed weighting of them."""
    weights = [torch.sin(torch.arange(x.numel(), device=x.device, dtype=x.dtype)).view_as(x) for x in out]
    total = sum((x * w).sum() for x, w in zip(out, weights))
    return [*(x.detach() for x in out), *torch.autograd.grad(total, list(inputs))]


def drawn(setting: Setting, *shape: int) -> Tensor:
    """Uniform in [0, 1], the same numbers on every device and in every type."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(*shape, generator=generator).to(setting.device, setting.dtype)


def hash_grid_work(setting: Setting) -> Work:
    from threestudio.ops.hash_grid import HashGridLayout, available_backends, hash_grid

    layout = HashGridLayout(n_levels=4, log2_hashmap_size=10) if setting.tiny else HashGridLayout(per_level_scale=1.45)
    x = drawn(setting, 100 if setting.tiny else 2**18, 3).requires_grad_()
    table = (drawn(setting, layout.n_entries, layout.n_features) - 0.5).requires_grad_()
    run = lambda backend: with_gradients([hash_grid(x, table, layout, backend=backend)], [x, table])  # noqa: E731
    return available_backends(setting.device), run


def packed_samples(setting: Setting) -> tuple[Tensor, Tensor, int]:
    n_rays, per_ray = (16, 8) if setting.tiny else (2**14, 64)
    ray = torch.arange(n_rays, device=setting.device).repeat_interleave(per_ray)
    return drawn(setting, n_rays * per_ray), ray, n_rays


def volume_rendering_work(setting: Setting) -> Work:
    from threestudio.ops.volume_rendering import accumulate_along_rays, available_backends, weights_of_depth

    depth, ray, n_rays = packed_samples(setting)
    depth, colors = (0.1 * depth).requires_grad_(), drawn(setting, depth.shape[0], 3).requires_grad_()

    def run(backend: str) -> list[Tensor]:
        weights = weights_of_depth(depth, ray, backend)[0]
        return with_gradients([accumulate_along_rays(weights, colors, ray, n_rays, backend)], [depth, colors])

    return available_backends(setting.device), run


def ray_marching_work(setting: Setting) -> Work:
    from threestudio.ops.ray_marching import march_occupied

    n_rays, resolution, step = (32, 8, 0.1) if setting.tiny else (2**14, 64, 0.01)
    kind: dict[str, Any] = {"device": setting.device, "dtype": setting.dtype}
    bbox = torch.tensor([[-1.0] * 3, [1.0] * 3], **kind)
    binaries = drawn(setting, resolution, resolution, resolution) > 0.9
    target = drawn(setting, n_rays, 3) - 0.5
    origin = torch.tensor([3.0, 0.0, 0.0], **kind).expand(n_rays, 3).contiguous()
    direction = torch.nn.functional.normalize(target - origin, dim=-1)
    near, far = torch.full((n_rays,), 1.5, **kind), torch.full((n_rays,), 4.5, **kind)

    def run(backend: str) -> list[Tensor]:
        samples = march_occupied(origin, direction, near, far, step, binaries, bbox, backend)
        return [samples.t_starts, samples.ray_indices.float()]

    return ["warp"], run


def mesh_work(setting: Setting) -> Work:
    import trimesh

    from threestudio.ops.mesh_rasterization import available_backends, interpolate, rasterize

    ball = trimesh.creation.icosphere(subdivisions=1 if setting.tiny else 4, radius=0.7)
    v_pos = torch.tensor(ball.vertices, dtype=torch.float32, device=setting.device).to(setting.dtype).requires_grad_()
    faces, size = torch.tensor(ball.faces, device=setting.device), 16 if setting.tiny else 256
    colors = drawn(setting, v_pos.shape[0], 3).requires_grad_()
    mvp = torch.eye(4, device=setting.device, dtype=setting.dtype).repeat(1 if setting.tiny else 4, 1, 1)

    def run(backend: str) -> list[Tensor]:
        fragments = rasterize(v_pos, faces, mvp, size, size, backend=backend)
        return with_gradients([interpolate(colors, faces, fragments, backend)], [v_pos, colors])

    return available_backends(setting.device), run


def gaussians_work(setting: Setting) -> Work:
    from threestudio.ops.gaussian_rasterization import available_backends, rasterize_gaussians_batch
    from threestudio.ops.gaussian_rasterization.projection import intrinsics_from_fov

    n, size = (30, 16) if setting.tiny else (20_000, 256)
    means = (drawn(setting, n, 3) - 0.5).requires_grad_()
    quaternions, scales = drawn(setting, n, 4) + 0.1, 0.005 + 0.02 * drawn(setting, n, 3)
    opacities, colors = (0.9 * drawn(setting, n)).requires_grad_(), drawn(setting, n, 3).requires_grad_()
    c2w = torch.eye(4, device=setting.device, dtype=setting.dtype)[None].clone()
    c2w[:, 2, 3] = 2.0
    intrinsics = intrinsics_from_fov(torch.tensor([0.8], device=setting.device, dtype=setting.dtype), size, size)

    def run(backend: str) -> list[Tensor]:
        image = rasterize_gaussians_batch(
            means, quaternions, scales, opacities, colors, c2w, intrinsics, size, size, backend=backend
        )
        return with_gradients([image.color, image.opacity], [means, opacities, colors])

    return available_backends(setting.device), run


OPS = {
    "hash grid": hash_grid_work,
    "volume rendering": volume_rendering_work,
    "ray marching": ray_marching_work,
    "mesh rasterization": mesh_work,
    "Gaussian rasterization": gaussians_work,
}


def differences(got: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """The largest over the tensors, as columns of the table. Raises ValueError where shapes differ."""
    for x, y in zip(got, expected):
        if x.shape != y.shape:
            raise ValueError(f"shapes differ: {list(x.shape)}, the reference's {list(y.shape)}")
    pairs = [(x.double(), y.double()) for x, y in zip(got, expected)]
    largest = max(((x - y).abs().max() / y.abs().max().clamp(min=1e-12)).item() for x, y in pairs)
    beyond = sum(int(((x - y).abs() > NOTABLE * y.abs().max()).sum()) for x, y in pairs)
    return {"largest difference": largest, f"beyond {NOTABLE:.0e}": beyond / sum(x.numel() for x, _ in pairs)}


def from_float64(name: str, setting: Setting, got: Sequence[Tensor]) -> dict[str, Any]:
    """How far torch's float32 is from its float64; of marched samples there may be more or fewer: none then."""
    exact = OPS[name](replace(setting, dtype=torch.float64))[1]("torch")
    same = all(x.shape == y.shape for x, y in zip(got, exact))
    return differences(got, exact) if same else {"largest difference": "another number of samples"}


def rows(setting: Setting) -> Iterator[Row]:
    repeats = 1 if setting.tiny else 10
    for name, make in OPS.items():
        prepared: dict[str, Any] = {}

        def reference(name: str = name, make: Callable[[Setting], Work] = make) -> dict[str, Any]:
            prepared["backends"], prepared["run"] = make(setting)
            prepared["expected"] = prepared["run"]("torch")
            # The reference of the Gaussians takes long: fewer rounds of it.
            prepared["seconds"] = median_seconds(lambda: prepared["run"]("torch"), setting.device, min(repeats, 3), 1)
            return {"ms": 1e3 * prepared["seconds"], **from_float64(name, setting, prepared["expected"])}

        yield guarded(f"{name}, torch", setting, reference)
        for backend in prepared.get("backends", ()):
            if backend == "torch" or "seconds" not in prepared:
                continue

            def other(backend: str = backend) -> dict[str, Any]:
                found = differences(prepared["run"](backend), prepared["expected"])
                seconds = median_seconds(lambda: prepared["run"](backend), setting.device, repeats)
                return {"ms": 1e3 * seconds, "times faster than torch": prepared["seconds"] / seconds, **found}

            yield guarded(f"{name}, {backend}", setting, other)
