"""PICI's step as one writes it in plain PyTorch, on the weights of ours: a rival for `python -m benchmarks.steps`.

The network is of `nn.Conv2d`, `nn.MultiheadAttention` and `nn.Sequential`, its blocks make every token, and the decoder
predicts every patch, as in the code of MAE. Losses are of torch's functions. What a stage does not need, it leaves out
too: no decoder runs in the third. Masks are ours for the same seed, and so are the logged statistics.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss, normalize

from deepclust_ext.backbones import MaskedDecoder, VisionTransformer
from deepclust_ext.backbones.stem_transformer import StemTransformer
from deepclust_ext.methods import PICI
from deepclust_ext.methods.base import ClusteringMethod
from deepclust_ext.methods.shared import spread, usage


class Block(nn.Module):
    """Attention and a perceptron, each after a norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self,
        tokens: Tensor,  # (B, N, width)
    ) -> Tensor:
        """Return tokens (B, N, width)."""
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        results: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return results


def _blocks(ours: VisionTransformer | MaskedDecoder) -> nn.Sequential:
    """Return blocks and a last norm of the sizes of a network's, its weights still to be taken."""
    transformer: Any = ours.transformer
    width = transformer.norm.normalized_shape[0]
    blocks = [Block(width, block.attention.heads, block.mlp[0].out_features) for block in transformer.blocks]
    return nn.Sequential(*blocks, nn.LayerNorm(width, eps=1e-6))


@torch.no_grad()
def _take_weights(plain: nn.Module, ours: nn.Module) -> None:
    """Copy every weight; both networks have them in the same order."""
    for mine, other in zip(plain.parameters(), ours.parameters(), strict=True):
        if mine.dim() != other.dim():  # of a convolution: ours is linear, of pixels by row, column and channel
            channels, height, width = mine.shape[1:]
            mine.copy_(other.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2))
        else:
            mine.copy_(other)


class Encoder(nn.Module):
    """The encoder of MAE; a stem of convolutions is ours again."""

    positions: Tensor

    def __init__(self, ours: VisionTransformer) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(ours.width))
        self.transformer = _blocks(ours)
        self.embedding: nn.Module
        if isinstance(ours, StemTransformer):
            self.embedding = nn.Linear(ours.embedding.in_features, ours.width)
            self.stem = copy.deepcopy(ours.stem)
        else:
            self.embedding = nn.Conv2d(ours.channels, ours.width, ours.patch_size, ours.patch_size)
        self.register_buffer("positions", ours.positions.clone())
        _take_weights(self.to(ours.positions), ours)

    def forward(
        self,
        images: Tensor,  # (B, C, S, S)
        keep: Tensor,  # (B, kept)
    ) -> Tensor:
        """Return the tokens (B, 1 + kept, width)."""
        if isinstance(self.embedding, nn.Linear):
            patches = self.embedding(self.stem(images).flatten(2).transpose(1, 2))
        else:
            patches = self.embedding(images).flatten(2).transpose(1, 2)
        patches = patches + self.positions[1:]
        patches = patches.gather(1, keep.unsqueeze(2).expand(-1, -1, patches.shape[2]))
        first = (self.class_token + self.positions[0]).expand(len(images), 1, -1)
        tokens: Tensor = self.transformer(torch.cat([first, patches], dim=1))
        return tokens


class Decoder(nn.Module):
    """The decoder of MAE."""

    positions: Tensor

    def __init__(self, ours: MaskedDecoder) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty_like(ours.mask_token))
        self.transformer = _blocks(ours)
        self.embedding = nn.Linear(ours.embedding.in_features, ours.embedding.out_features)
        self.register_buffer("positions", ours.positions.clone())
        self.prediction = nn.Linear(ours.prediction.in_features, ours.prediction.out_features)
        _take_weights(self.to(ours.positions), ours)

    def forward(
        self,
        tokens: Tensor,  # (B, 1 + kept, width)
        order: Tensor,  # (B, L), the kept patches first
    ) -> Tensor:
        """Return predictions (B, L, P) of all patches."""
        tokens = self.embedding(tokens)
        hidden = order.shape[1] + 1 - tokens.shape[1]
        patches = torch.cat([tokens[:, 1:], self.mask_token.expand(len(tokens), hidden, -1)], dim=1)
        patches = patches.gather(1, order.argsort(dim=1).unsqueeze(2).expand(-1, -1, patches.shape[2]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.positions
        predicted: Tensor = self.prediction(self.transformer(tokens))
        return predicted[:, 1:]


def cut(
    images: Tensor,  # (B, C, S, S)
    size: int,
) -> Tensor:
    """Return all patches (B, L, size * size * C), of pixels by row, column and channel."""
    batch, channels, side = len(images), images.shape[1], images.shape[2] // size
    patches = images.reshape(batch, channels, side, size, side, size).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, side * side, size * size * channels)


def patch_loss(
    predicted: Tensor,  # (B, L, P)
    patches: Tensor,  # (B, L, P)
    is_hidden: Tensor,  # (B, L), 0 or 1
) -> Tensor:
    """Return the mean squared error of hidden patches, ()."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    target = (patches - mean) / (variance + 1e-6).sqrt()
    return ((predicted - target).square().mean(dim=2) * is_hidden).sum() / is_hidden.sum()


def contrast(
    first: Tensor,  # (B, D)
    second: Tensor,  # (B, D)
    temperature: float,
) -> Tensor:
    """Return NT-Xent, ()."""
    rows = normalize(torch.cat([first, second]), dim=1)
    scores = rows @ rows.T / temperature
    scores = scores.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -math.inf)
    return cross_entropy(scores, torch.arange(len(rows), device=rows.device).roll(len(first)))


def unevenness(
    shares: Tensor,  # (B, K)
) -> Tensor:
    """Return log K less the entropy of the mean shares, ()."""
    usage = shares.mean(dim=0)
    return math.log(len(usage)) + (usage * usage.log()).sum()


class PlainPICI(ClusteringMethod):
    """The networks and losses of a PICI again, with copies of its weights."""

    num_views, terms, labelled_terms = PICI.num_views, PICI.terms, PICI.labelled_terms
    default_optimizer, axes = PICI.default_optimizer, PICI.axes

    def __init__(self, ours: PICI) -> None:
        super().__init__()
        self.num_clusters, self.num_kept, self.patch_size = ours.num_clusters, ours.num_kept, ours.backbone.patch_size
        self.temperatures = ours.instance_temperature, ours.cluster_temperature
        self.entropy_weight = ours.entropy_weight
        self.backbone, self.decoder = Encoder(ours.backbone), Decoder(ours.decoder)
        self.instance_head, self.cluster_head = copy.deepcopy(ours.instance_head), copy.deepcopy(ours.cluster_head)

    def training_step(
        self,
        views: Sequence[Tensor],  # two of (B, C, S, S)
        pseudo_labels: Tensor | None = None,  # (B,)
        index: Tensor | None = None,  # (B,) not used
        *,
        terms: str | None = None,
        epoch: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms, all ()."""
        terms = self.chosen_terms(terms, pseudo_labels, views)
        images = torch.cat(list(views))
        num_patches = (images.shape[2] // self.patch_size) ** 2
        order = torch.rand(len(images), num_patches).to(images.device).argsort(dim=1)
        tokens = self.backbone(images, order[:, : self.num_kept])
        logged: dict[str, Tensor] = {}
        if terms != "labels":
            is_hidden = torch.ones(order.shape, device=images.device).scatter(1, order[:, : self.num_kept], 0)
            patches = cut(images, self.patch_size)
            logged["reconstruction"] = patch_loss(self.decoder(tokens, order), patches, is_hidden)
        if terms != "reconstruction":
            z_1, z_2 = self.instance_head(tokens[:, 0]).chunk(2)
            shares = self.cluster_head(tokens[:, 0])
            c_1, c_2 = shares.chunk(2)
            logged["instance"] = contrast(z_1, z_2, self.temperatures[0])
            entropy = self.entropy_weight * (unevenness(c_1) + unevenness(c_2))
            logged["cluster"] = contrast(c_1.T, c_2.T, self.temperatures[1]) + entropy
        if terms == "labels" and pseudo_labels is not None:
            logged["labels"] = nll_loss(shares.log(), pseudo_labels.repeat(2))
        loss = torch.stack(list(logged.values())).sum()
        if terms != "reconstruction":
            logged |= usage(c_1) | spread(z_1)
        return loss, {"loss": loss.detach()} | {name: term.detach() for name, term in logged.items()}

    def inference_network(self) -> nn.Module:
        """Not needed by a step."""
        raise NotImplementedError

    def collapse_warning(self, terms: dict[str, float]) -> str | None:
        """Not needed by a step."""
        raise NotImplementedError
