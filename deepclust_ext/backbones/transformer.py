"""A transformer's blocks, of torch's own layers and attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from deepclust_ext.ops._checks import check_bool, check_integer, check_size

EPS = 1e-6  # of the norms


class Transformer(nn.Module):
    """Blocks with a norm ahead of the attention and ahead of the perceptron, and a last norm; no dropout.

    Args:
        width: Of a token, divisible by ``heads``.
        depth: Number of blocks.
        heads: Of each attention.
        mlp_ratio: Hidden width of the perceptron over ``width``.
        checkpointing: Keep for the backward pass only what enters each block, and compute the rest a second time.

    Raises:
        TypeError: If an argument is no integer, or ``checkpointing`` no bool.
        ValueError: If an integer is below 1, or ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: int, checkpointing: bool) -> None:
        super().__init__()
        width, depth = check_size(width, "width"), check_integer(depth, "depth", 1)
        heads, mlp_ratio = check_integer(heads, "heads", 1), check_size(mlp_ratio, "mlp_ratio")
        if width % heads:
            raise ValueError(f"heads: expected a divisor of width, which is {width}, got {heads}")
        self.checkpointing = check_bool(checkpointing, "checkpointing")
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(
        self,
        tokens: Tensor,  # (B, N, width)
        wanted: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return all tokens, or those (B, R, width) that ``wanted`` takes of all: the last block makes no others."""
        *blocks, last = self.blocks
        for block in blocks:
            tokens = self._call(block, tokens)
        tokens = self._call(last, tokens) if wanted is None else self._call(last, tokens, wanted(tokens))
        normed: Tensor = self.norm(tokens)
        return normed

    def _call(self, block: nn.Module, *tokens: Tensor) -> Tensor:
        results: Tensor
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in a block is random.
            results = checkpoint(block, *tokens, use_reentrant=False, preserve_rng_state=False)
        else:
            results = block(*tokens)
        return results


class _Block(nn.Module):
    """Attention and a perceptron, each after a norm and added to what it was made of."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = _Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(
        self,
        tokens: Tensor,  # (B, N, width)
        wanted: Tensor | None = None,  # (B, R, width), some of the tokens
    ) -> Tensor:
        """Return what becomes of the wanted tokens (B, R, width), or of all (B, N, width)."""
        normed = self.attention_norm(tokens)
        queries = None if wanted is None else self.attention_norm(wanted)
        tokens = (tokens if wanted is None else wanted) + self.attention(normed, queries)
        more: Tensor = self.mlp(self.mlp_norm(tokens))
        return tokens + more


class _Attention(nn.Module):
    """Attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Tensor,  # (B, N, width)
        queries: Tensor | None = None,  # (B, R, width)
    ) -> Tensor:
        """Return for each query, or each token, what it takes of all tokens: (B, R, width) or (B, N, width)."""
        if queries is None:
            parts = self.qkv(tokens).chunk(3, dim=2)
        else:
            weight, bias, width = self.qkv.weight, self.qkv.bias, self.qkv.in_features
            query = linear(queries, weight[:width], bias[:width])
            parts = (query, *linear(tokens, weight[width:], bias[width:]).chunk(2, dim=2))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        taken = scaled_dot_product_attention(query, key, value)
        results: Tensor = self.out(taken.transpose(1, 2).flatten(2))
        return results
