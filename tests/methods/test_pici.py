"""PICI: the formula of its step in each stage, its masks, its heads and what it needs of a backbone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.backbones import load_backbone
from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.methods import PICI
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_backbone, small_pici, small_transformer
from tests.methods.plaintorch import (
    Weights,
    assert_same_gradients,
    copied_weights,
    head_without_norm,
    linear,
    plain_contrast,
    transformer,
)

BATCH = 4 * NUM_CLUSTERS  # below, the cluster loss warns
LABELS = torch.arange(BATCH) % NUM_CLUSTERS
PATCHES = 4


def numbers(part: nn.Module) -> int:
    """Return how many numbers a part has, the fixed positions included, as the paper's figures count them."""
    return sum(tensor.numel() for tensor in part.state_dict().values())


def test_defaults_are_the_paper_s() -> None:
    backbone, feature_dim = load_backbone("vit", 224)
    method = PICI(backbone, feature_dim, 21)
    assert [round(numbers(part) / 1e6, 2) for part in (method.backbone, method.decoder)] == [11.02, 25.91]
    heads = method.instance_head, method.cluster_head
    assert round(sum(map(numbers, heads)) / 1e6, 2) == 0.35
    assert [tuple(p.shape) for p in heads[0].parameters()] == [(384, 384), (384,), (128, 384), (128,)]
    assert [tuple(p.shape) for p in heads[1].parameters()] == [(384, 384), (384,), (21, 384), (21,)]
    for layer in (*heads[0], *heads[1]):
        if isinstance(layer, nn.Linear):
            bound = math.sqrt(6 / sum(layer.weight.shape))  # Xavier's
            assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
            assert not layer.bias.any()
    assert (method.num_kept, method.backbone.num_patches) == (98, 196)
    assert (method.instance_loss.temperature, method.cluster_loss.temperature) == (0.5, 1.0)
    (group,) = method.make_optimizer(96).param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-4, 0)


def plain_patches(images: Tensor) -> Tensor:
    """Return the four patches (B, 4, 16) of images (B, 1, 8, 8)."""
    corners = [(row, column) for row in (0, 4) for column in (0, 4)]
    return torch.stack([images[:, 0, y : y + 4, x : x + 4].flatten(1) for y, x in corners], dim=1)


def plain_masks(count: int, kept: int) -> tuple[Tensor, Tensor]:
    """Return which patches are kept and which are hidden, from the numbers that the generator gives next."""
    order = torch.rand(count, PATCHES).argsort(dim=1)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def rows_at(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the rows (B, R, W) at each image's places (B, R)."""
    return torch.stack([row[place] for row, place in zip(tokens, places, strict=True)])


def plain_tokens(images: Tensor, keep: Tensor, weights: Weights, positions: Tensor) -> Tensor:
    """Return the class token and those of the kept patches after the encoder."""
    patches = rows_at(linear(plain_patches(images), weights, "backbone.embedding") + positions[1:], keep)
    first = (weights["backbone.class_token"] + positions[0]).expand(len(images), 1, -1)
    return transformer(torch.cat([first, patches], dim=1), weights, "backbone.transformer", 2, 2)


def plain_reconstruction(
    images: Tensor, tokens: Tensor, keep: Tensor, hidden: Tensor, weights: Weights, positions: Tensor
) -> Tensor:
    """Return the mean squared error of the hidden patches, each over its own mean and deviation."""
    own = linear(tokens, weights, "decoder.embedding")
    places = []
    for row, kept in zip(own, keep.tolist(), strict=True):
        masked = weights["decoder.mask_token"]
        places.append(torch.stack([row[0], *(row[1 + kept.index(i)] if i in kept else masked for i in range(PATCHES))]))
    decoded = transformer(torch.stack(places) + positions, weights, "decoder.transformer", 1, 2)
    predicted = rows_at(linear(decoded[:, 1:], weights, "decoder.prediction"), hidden)
    patches = rows_at(plain_patches(images), hidden)
    centered = patches - patches.mean(dim=2, keepdim=True)
    target = centered / (centered.square().sum(dim=2, keepdim=True) / 15 + 1e-6).sqrt()
    return (predicted - target).square().mean()


@pytest.mark.parametrize("terms", ["all", "reconstruction", "labels"])
def test_step_is_the_formula(terms: str) -> None:
    options = {"instance_temperature": 0.3, "cluster_temperature": 0.8, "entropy_weight": 1.7, "hidden_share": 0.25}
    method = small_pici(**options).double()
    with torch.no_grad():
        for parameter in method.parameters():  # biases and norms count, and clusters are of unequal size
            parameter.add_(0.3 * torch.randn_like(parameter))
    views = [view.double() for view in make_views(2, BATCH)]
    weights = copied_weights(method)
    torch.manual_seed(3)
    loss, logged = method.training_step(views, LABELS, terms=terms)
    loss.backward()

    torch.manual_seed(3)
    images = torch.cat(views)
    keep, hidden = plain_masks(2 * BATCH, 3)
    tokens = plain_tokens(images, keep, weights, method.backbone.positions)
    rows = head_without_norm(tokens[:, 0], weights, "instance_head")
    powers = head_without_norm(tokens[:, 0], weights, "cluster_head").exp()
    shares = powers / powers.sum(dim=1, keepdim=True)
    expected: dict[str, Tensor] = {}
    if terms != "labels":
        expected["reconstruction"] = plain_reconstruction(
            images, tokens, keep, hidden, weights, method.decoder.positions
        )
    if terms != "reconstruction":
        expected["instance"] = plain_contrast(list(rows), 0.3)
        columns = [column for view in shares.chunk(2) for column in view.T]
        sizes = [column.mean() for column in columns]
        entropy = 2 * math.log(NUM_CLUSTERS) + torch.stack([size * size.log() for size in sizes]).sum()
        expected["cluster"] = plain_contrast(columns, 0.8) + 1.7 * entropy
    if terms == "labels":
        own = [view[row, label] for view in shares.chunk(2) for row, label in enumerate(LABELS)]
        expected["labels"] = -torch.stack(own).log().mean()
    expected["loss"] = torch.stack(list(expected.values())).sum()
    expected["loss"].backward()

    assert set(logged) & set(method.axes["loss"]) == set(expected)
    for name, value in expected.items():
        assert logged[name].item() == pytest.approx(value.item(), rel=1e-6), name
    assert_same_gradients(method, weights)


def test_the_decoder_runs_where_its_loss_is_asked_for() -> None:
    method, calls = small_pici(), []
    method.decoder.register_forward_hook(lambda *_: calls.append(1))
    runs = {}
    for terms in method.terms:
        method.training_step(make_views(2, BATCH), LABELS, terms=terms)
        runs[terms] = len(calls)
        calls.clear()
    assert runs == {"all": 1, "reconstruction": 1, "labels": 0}


@pytest.mark.parametrize("terms", ["all", "reconstruction", "labels"])
def test_checkpointing_keeps_less_for_the_same_gradients(terms: str) -> None:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes[-1] += tensor.numel()
        return tensor

    results = []
    for checkpointing in (False, True):
        method = small_pici(checkpointing=checkpointing)
        sizes.append(0)
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = method.training_step(make_views(2, BATCH), LABELS, terms=terms)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None)])
    assert all(map(torch.equal, *results))
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("terms", ["all", "reconstruction", "labels"])
def test_every_step_has_masks_of_its_own_from_the_global_generator(terms: str) -> None:
    method, views = small_pici(), make_views(2, BATCH)

    def loss() -> Tensor:
        return method.training_step(views, LABELS, terms=terms)[0].detach()

    torch.manual_seed(0)
    first, second = loss(), loss()
    torch.manual_seed(0)
    assert torch.equal(loss(), first)
    assert not torch.isclose(first, second)


def test_rows_and_clusters_are_of_whole_images() -> None:
    method, images = small_pici(), make_views(1, BATCH)[0]
    rows, shares = method.embed(images), method.assign(images)
    assert torch.equal(method.embed(images), rows)
    features = method.backbone.encode(images)[:, 0]
    torch.testing.assert_close(rows, nn.functional.normalize(method.instance_head(features), dim=1))
    torch.testing.assert_close(shares, method.cluster_head(features))
    # A pixel of each patch counts.
    for place in range(PATCHES):
        changed = images.clone()
        changed[:, 0, 4 * (place // 2), 4 * (place % 2)] += 1
        assert (method.embed(changed) != rows).any(dim=1).all()


def test_rows_come_from_the_encoder_alone() -> None:
    method = small_pici()
    carried = {id(parameter) for parameter in method.inference_network().parameters()}
    parts = method.backbone, method.instance_head, method.cluster_head
    assert carried == {id(parameter) for part in parts for parameter in part.parameters()}


@pytest.mark.parametrize(("share", "kept"), [(0.0, 3), (0.25, 3), (0.5, 2), (0.9, 1), (1.0, 1)])
def test_a_patch_at_least_is_seen_and_one_hidden(share: float, kept: int) -> None:
    method = small_pici(hidden_share=share)
    assert method.num_kept == kept
    assert method.training_step(make_views(2, BATCH))[0].isfinite()


def test_views_of_another_size_are_named() -> None:
    first, second = make_views(2, BATCH)
    with pytest.raises(ValueError, match=r"views: expected one shape, got \(16, 1, 8, 8\) and \(16, 1, 8, 4\)"):
        small_pici().training_step([first, second[..., :4]])
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 1, 8, 8\), got \(32, 1, 8, 4\)"):
        small_pici().training_step([first[..., :4], second[..., :4]])


def test_a_collapse_is_not_looked_for_in_the_reconstruction_alone() -> None:
    method = small_pici()
    _, terms = method.training_step(make_views(2, BATCH), terms="reconstruction")
    assert method.collapse_warning({name: float(term) for name, term in terms.items()}) is None


@pytest.mark.parametrize(
    ("backbone", "options", "error", "message"),
    [
        (small_backbone, {}, TypeError, r"backbone: expected a VisionTransformer, whose encode .*, got Sequential"),
        (
            lambda: VisionTransformer(8, 8, 8, 1, 2, channels=1),
            {},
            ValueError,
            "backbone: expected at least 2 patches, one of them to hide, got 1",
        ),
        (small_transformer, {"feature_dim": 9}, ValueError, "feature_dim: expected 8, the backbone's width, got 9"),
        (small_transformer, {"hidden_share": 1.5}, ValueError, r"hidden_share: expected a number in \[0, 1\], got 1.5"),
        (small_transformer, {"decoder_depth": 0}, ValueError, "decoder_depth: expected at least 1, got 0"),
        (
            small_transformer,
            {"decoder_heads": 3},
            ValueError,
            "decoder: heads: expected a divisor of width, .*512, got 3",
        ),
    ],
)
def test_what_does_not_fit_is_named(backbone: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PICI(backbone(), **{"feature_dim": 8, "num_clusters": 4} | options)
