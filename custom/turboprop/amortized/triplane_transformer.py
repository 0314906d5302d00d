"""The Triplane-Transformer of ScaleDreamer (arXiv 2407.02040, after LRM, arXiv 2311.04400): text tokens to planes.

Learned tokens, one for each cell of three coarse planes, look at the text and at one another. A transposed
convolution makes two by two cells of each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threestudio.utils.errors import UserError


class Attention(nn.Module):
    """Tokens [B, N, D] look at a context [B, M, E]: [B, N, D]."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(context_dim, dim, bias=False)
        self.value = nn.Linear(context_dim, dim, bias=False)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        return self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention to the text, attention to all planes' tokens, and a network by token, each after a LayerNorm."""

    def __init__(self, dim: int, text_dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.text_norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.text_attention = Attention(dim, text_dim, heads)
        self.token_attention = Attention(dim, dim, heads)
        hidden = round(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.text_attention(self.text_norm(x), text)
        normed = self.token_norm(x)
        x = x + self.token_attention(normed, normed)
        return x + self.mlp(self.mlp_norm(x))


class TriplaneTransformer(nn.Module):
    """Text [P, N, T] of N tokens to planes [P, 3, C, 2 R, 2 R]. With a pooled text N is 1."""

    def __init__(
        self,
        text_dim: int,
        dim: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        resolution: int,
        plane_dim: int,
        token_std: float | None = None,
    ):
        """`resolution`: R, cells of a coarse plane along an axis. `plane_dim`: C. `token_std`: null is dim^-0.5."""
        super().__init__()
        if dim % heads:
            raise UserError(f"geometry.inner_dim: expected a multiple of geometry.num_heads ({heads}), got {dim}")
        self.resolution = resolution
        spread = dim**-0.5 if token_std is None else token_std
        self.tokens = nn.Parameter(torch.randn(1, 3 * resolution**2, dim) * spread)
        self.blocks = nn.ModuleList(Block(dim, text_dim, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up = nn.ConvTranspose2d(dim, plane_dim, kernel_size=2, stride=2)

    def forward(self, text: Tensor) -> Tensor:
        prompts, side = len(text), self.resolution
        x = self.tokens.expand(prompts, -1, -1)
        for block in self.blocks:
            x = block(x, text)
        x = self.norm(x).reshape(prompts * 3, side, side, -1).permute(0, 3, 1, 2)
        return self.up(x).unflatten(0, (prompts, 3))
