"""MVDream's denoiser and its text model, computed plainly from the original file's tensors: what loading is held to."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD_WIDTH = 64


class Reference:
    """Functions over tensors by their names in the file, without a prefix."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.pair(name))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.pair(name)
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)

    def group_norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.group_norm(x, 32, *self.pair(name), eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.pair(name))

    def has(self, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.") for name in self.tensors)


class UNet(Reference):
    def __call__(self, x: Tensor, timesteps: Tensor, text: Tensor, cameras: Tensor, views: int) -> Tensor:
        embedding = self.embedding(timesteps, cameras)
        skips, number = [], 0
        while self.has(f"input_blocks.{number}"):
            x = self.block(f"input_blocks.{number}", x, embedding, text, views)
            skips.append(x)
            number += 1
        x = self.residual("middle_block.0", x, embedding)
        x = self.transformer("middle_block.1", x, text, views)
        x = self.residual("middle_block.2", x, embedding)
        number = 0
        while self.has(f"output_blocks.{number}"):
            x = torch.cat([x, skips.pop()], 1)
            x = self.block(f"output_blocks.{number}", x, embedding, text, views)
            number += 1
        return self.conv("out.2", F.silu(self.group_norm("out.0", x)))

    def embedding(self, timesteps: Tensor, cameras: Tensor) -> Tensor:
        half = self.tensors["time_embed.0.weight"].shape[1] // 2
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        time = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", waves)))
        return time + self.linear("camera_embed.2", F.silu(self.linear("camera_embed.0", cameras)))

    def block(self, name: str, x: Tensor, embedding: Tensor, text: Tensor, views: int) -> Tensor:
        if f"{name}.0.weight" in self.tensors:
            return self.conv(f"{name}.0", x)
        if self.has(f"{name}.0.op"):
            return self.conv(f"{name}.0.op", x, stride=2)
        x = self.residual(f"{name}.0", x, embedding)
        if self.has(f"{name}.1.norm"):
            x = self.transformer(f"{name}.1", x, text, views)
        for place in (1, 2):
            if self.has(f"{name}.{place}.conv"):
                x = self.conv(f"{name}.{place}.conv", F.interpolate(x, scale_factor=2, mode="nearest"))
        return x

    def residual(self, name: str, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv(f"{name}.in_layers.2", F.silu(self.group_norm(f"{name}.in_layers.0", x)))
        h = h + self.linear(f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", F.silu(self.group_norm(f"{name}.out_layers.0", h)))
        return h + (self.conv(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection") else x)

    def transformer(self, name: str, x: Tensor, text: Tensor, views: int) -> Tensor:
        count, width, height, _ = x.shape
        block = f"{name}.transformer_blocks.0"
        h = self.linear(f"{name}.proj_in", self.group_norm(f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2))
        h = h.reshape(count // views, -1, width)  # all views of a set as one sequence
        normed = self.layer_norm(f"{block}.norm1", h)
        h = h + self.attention(f"{block}.attn1", normed, normed)
        h = h.reshape(count, -1, width)
        h = h + self.attention(f"{block}.attn2", self.layer_norm(f"{block}.norm2", h), text)
        gated, gate = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h)).chunk(2, -1)
        h = h + self.linear(f"{block}.ff.net.2", gated * F.gelu(gate))
        return x + self.linear(f"{name}.proj_out", h).transpose(1, 2).reshape(count, width, height, -1)

    def attention(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        def heads(part: str, values: Tensor) -> Tensor:
            return (values @ self.tensors[f"{name}.{part}.weight"].T).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)

        query, key, value = heads("to_q", x), heads("to_k", context), heads("to_v", context)
        weights = (query @ key.transpose(-1, -2) / HEAD_WIDTH**0.5).softmax(-1)
        return self.linear(f"{name}.to_out.0", (weights @ value).transpose(1, 2).flatten(2))


class TextModel(Reference):
    """OpenCLIP's text model up to its penultimate block, then its last normalisation."""

    def __call__(self, tokens: Tensor) -> Tensor:  # [B, N] -> [B, N, W]
        x = self.tensors["token_embedding.weight"][tokens] + self.tensors["positional_embedding"]
        blocks = sum(name.endswith("ln_1.weight") for name in self.tensors)
        for index in range(blocks - 1):
            name = f"transformer.resblocks.{index}"
            x = x + self.attention(f"{name}.attn", self.layer_norm(f"{name}.ln_1", x))
            hidden = F.gelu(self.linear(f"{name}.mlp.c_fc", self.layer_norm(f"{name}.ln_2", x)))
            x = x + self.linear(f"{name}.mlp.c_proj", hidden)
        return self.layer_norm("ln_final", x)

    def attention(self, name: str, x: Tensor) -> Tensor:  # one head, each token sees those before it
        width = x.shape[-1]
        projected = F.linear(x, self.tensors[f"{name}.in_proj_weight"], self.tensors[f"{name}.in_proj_bias"])
        query, key, value = projected.split(width, -1)
        hidden = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        return self.linear(f"{name}.out_proj", (query @ key.transpose(1, 2) / width**0.5 + hidden).softmax(-1) @ value)
