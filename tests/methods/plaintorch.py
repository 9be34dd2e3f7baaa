"""The networks of methodsamples.py in plain torch, from weights by name, for a second computation of a step."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

Weights = dict[str, Tensor]


def copied_weights(method: nn.Module) -> Weights:
    """Return a leaf tensor for every parameter of a method, by its name."""
    return {
        name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
        for name, parameter in method.named_parameters()
    }


def batch_norm(rows: Tensor, weights: Weights, at: str) -> Tensor:
    """Return rows (N, D), less their mean, over their biased deviation, scaled and shifted."""
    centered = rows - rows.mean(dim=0)
    deviation = (centered.square().mean(dim=0) + 1e-5).sqrt()
    return centered / deviation * weights[f"{at}.weight"] + weights[f"{at}.bias"]


def linear(rows: Tensor, weights: Weights, at: str) -> Tensor:
    """Return the rows of a linear layer, whose bias may be missing."""
    return rows @ weights[f"{at}.weight"].T + weights.get(f"{at}.bias", torch.zeros((), dtype=rows.dtype))


def backbone(images: Tensor, weights: Weights, at: str) -> Tensor:
    """Return what the small backbone makes of images: convolution, batch normalization, ReLU, one row per image."""
    maps = conv2d(images, weights[f"{at}.0.weight"], weights[f"{at}.0.bias"], stride=2)  # (B, 4, 3, 3)
    pixels = batch_norm(maps.permute(0, 2, 3, 1).reshape(-1, 4), weights, f"{at}.1")
    return pixels.clamp(min=0).reshape(-1, 3, 3, 4).permute(0, 3, 1, 2).reshape(len(images), 36)


def head(rows: Tensor, weights: Weights, at: str) -> Tensor:
    """Return linear, batch normalization, ReLU, linear."""
    hidden = batch_norm(linear(rows, weights, f"{at}.0"), weights, f"{at}.1")
    return linear(hidden.clamp(min=0), weights, f"{at}.3")


def head_without_norm(rows: Tensor, weights: Weights, at: str) -> Tensor:
    """Return linear, ReLU, linear."""
    return linear(linear(rows, weights, f"{at}.0").clamp(min=0), weights, f"{at}.2")


def unit(row: Tensor) -> Tensor:
    """Return a vector over its length."""
    return row / row.square().sum().sqrt()


def plain_contrast(vectors: list[Tensor], temperature: float) -> Tensor:
    """NT-Xent, anchor by anchor: the positive of a vector lies half of the list away, all others are negatives."""
    half = len(vectors) // 2
    losses = []
    for i, anchor in enumerate(vectors):
        scores = [(unit(anchor) @ unit(vector) / temperature).exp() for vector in vectors]
        losses.append(-(scores[(i + half) % (2 * half)] / sum(scores[:i] + scores[i + 1 :])).log())
    return torch.stack(losses).mean()


def assert_same_gradients(method: nn.Module, weights: Weights) -> None:
    """Require the gradient of every parameter to be the copy's: to 1e-5 of its norm, and none where that has none."""
    total = sum(float(copy.grad.square().sum()) for copy in weights.values() if copy.grad is not None) ** 0.5
    for name, parameter in method.named_parameters():
        expected = weights[name].grad
        expected = torch.zeros_like(parameter) if expected is None else expected
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        error = float((got - expected).norm())
        # A bias in front of a batch normalization has no gradient but rounding.
        assert error <= 1e-5 * float(expected.norm()) + 1e-13 * total, f"{name}: gradient is off by {error:.3g}"


def layer_norm(tokens: Tensor, weights: Weights, at: str) -> Tensor:
    """Return tokens (..., W), each less its mean, over its biased deviation, scaled and shifted."""
    centered = tokens - tokens.mean(dim=-1, keepdim=True)
    deviation = (centered.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centered / deviation * weights[f"{at}.weight"] + weights[f"{at}.bias"]


def transformer(tokens: Tensor, weights: Weights, at: str, depth: int, heads: int) -> Tensor:
    """Return what blocks of attention and perceptron, and a last norm, make of tokens (B, N, W)."""
    for block in (f"{at}.blocks.{place}" for place in range(depth)):
        parts = linear(layer_norm(tokens, weights, f"{block}.attention_norm"), weights, f"{block}.attention.qkv")
        query, key, value = parts.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, W / heads)
        powers = (query @ key.transpose(2, 3) / key.shape[3] ** 0.5).exp()
        taken = (powers / powers.sum(dim=3, keepdim=True)) @ value
        tokens = tokens + linear(taken.transpose(1, 2).flatten(2), weights, f"{block}.attention.out")
        hidden = linear(layer_norm(tokens, weights, f"{block}.mlp_norm"), weights, f"{block}.mlp.0")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        tokens = tokens + linear(hidden, weights, f"{block}.mlp.2")
    return layer_norm(tokens, weights, f"{at}.norm")
