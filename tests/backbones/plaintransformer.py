"""The formulas of the vision transformer and its decoder, one token at a time, and small networks for them."""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deepclust_ext.backbones.masked_autoencoder import MaskedDecoder, VisionTransformer

Network = TypeVar("Network", bound=nn.Module)

SIZE, PATCH, CHANNELS, WIDTH, HEADS, PATCHES = 12, 4, 2, 8, 2, 9
DECODER_WIDTH = 12


def small_encoder(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return move(VisionTransformer(SIZE, PATCH, WIDTH, 2, HEADS, 3, CHANNELS, **options))


def small_decoder(**options: Any) -> MaskedDecoder:
    torch.manual_seed(1)
    return move(MaskedDecoder(SIZE, PATCH, WIDTH, DECODER_WIDTH, 2, 3, 2, CHANNELS, **options))


def move(network: Network) -> Network:
    """Move every number from where it begins, so that biases and norms count, and take float64."""
    for parameter in network.double().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


def images(count: int = 3) -> Tensor:
    return torch.randn(count, CHANNELS, SIZE, SIZE, dtype=torch.float64)


def plain_norm(token: Tensor, norm: Any) -> Tensor:
    centered = token - token.mean()
    normed: Tensor = centered / (centered.square().mean() + 1e-6).sqrt() * norm.weight + norm.bias
    return normed


def plain_linear(token: Tensor, layer: Any) -> Tensor:
    row: Tensor = layer.weight @ token + layer.bias
    return row


def plain_attention(tokens: list[Tensor], attention: Any, heads: int) -> list[Tensor]:
    parts = [plain_linear(token, attention.qkv).view(3, heads, -1) for token in tokens]
    results = []
    for query, _, _ in parts:
        taken = []
        for head in range(heads):
            scores = [query[head] @ key[head] / math.sqrt(len(key[head])) for _, key, _ in parts]
            powers = [score.exp() for score in scores]
            taken.append(sum(p * value[head] for p, (_, _, value) in zip(powers, parts, strict=True)) / sum(powers))
        results.append(plain_linear(torch.cat(taken), attention.out))
    return results


def plain_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def plain_transformer(tokens: list[Tensor], transformer: Any, heads: int) -> list[Tensor]:
    for block in transformer.blocks:
        taken = plain_attention([plain_norm(token, block.attention_norm) for token in tokens], block.attention, heads)
        tokens = [token + more for token, more in zip(tokens, taken, strict=True)]
        hidden = [plain_gelu(plain_linear(plain_norm(token, block.mlp_norm), block.mlp[0])) for token in tokens]
        tokens = [token + plain_linear(more, block.mlp[2]) for token, more in zip(tokens, hidden, strict=True)]
    return [plain_norm(token, transformer.norm) for token in tokens]


def plain_patch(image: Tensor, place: int) -> Tensor:
    row, column = place // (SIZE // PATCH), place % (SIZE // PATCH)
    pixels = [image[:, PATCH * row + y, PATCH * column + x] for y in range(PATCH) for x in range(PATCH)]
    return torch.cat(pixels)


def plain_position(place: int, side: int, width: int) -> list[float]:
    waves = []
    for coordinate in (place % side, place // side):
        angles = [coordinate / 10000 ** (i / (width / 4)) for i in range(width // 4)]
        waves += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return waves


def plain_encoder(network: VisionTransformer, image: Tensor, keep: list[int]) -> Tensor:
    tokens: list[Tensor] = [network.class_token]
    tokens += [
        plain_linear(plain_patch(image, place), network.embedding) + network.positions[1 + place] for place in keep
    ]
    return torch.stack(plain_transformer(tokens, network.transformer, HEADS))


def plain_decoder(network: MaskedDecoder, tokens: Tensor, keep: list[int]) -> Tensor:
    own = [plain_linear(token, network.embedding) for token in tokens]
    all_tokens = [own[0]]
    for place in range(PATCHES):
        token = own[1 + keep.index(place)] if place in keep else network.mask_token
        all_tokens.append(token + network.positions[1 + place])
    rows = plain_transformer(all_tokens, network.transformer, 3)
    return torch.stack([plain_linear(row, network.prediction) for row in rows[1:]])


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
