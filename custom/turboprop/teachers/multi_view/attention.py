"""Self-attention across the views of a set (MVDream, Shi et al. 2023, arXiv 2308.16512, section 3.1)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


class CrossViewAttentionProcessor:
    """A diffusers attention processor: the tokens of all views of a set attend to one another.

    Cross-attention to a text stays by view. `num_views` comes with each call, through `cross_attention_kwargs`, so
    one network serves any number of views; with 1 it is plain attention.
    """

    def __call__(
        self,
        attn: Any,  # diffusers' Attention
        hidden_states: Tensor,  # [S * V, N, C], set by set
        encoder_hidden_states: Tensor | None = None,  # [S * V, M, D]; None: self-attention
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        num_views: int = 1,  # V
    ) -> Tensor:  # [S * V, N, C]
        if attention_mask is not None:
            raise ValueError("attention across views takes no attention_mask")
        count, tokens, width = hidden_states.shape
        context = encoder_hidden_states
        if context is None:
            if num_views > 1:
                hidden_states = hidden_states.reshape(count // num_views, num_views * tokens, width)
            context = hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        attended = attended.transpose(1, 2).flatten(2).to(query.dtype)
        projection, dropout = attn.to_out
        return dropout(projection(attended)).reshape(count, tokens, width)
