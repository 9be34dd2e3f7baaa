"""TURTLE: its steps against plain loops, the classifiers' descent, clusters that vanish, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.methods import TURTLE
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_backbone, small_turtle
from tests.methods.plaintorch import Weights, assert_same_gradients, copied_weights, unit

BATCH = 8


def small_rows(method: TURTLE, images: Tensor, widths: list[int]) -> list[list[Tensor]]:
    """Return the unit row of each image in each space, from a copy of the backbone."""
    backbone = small_backbone().double().eval()
    backbone.load_state_dict(method.backbone.state_dict())
    features, starts = backbone(images).detach(), [sum(widths[:place]) for place in range(len(widths))]
    spans = zip(starts, widths, strict=True)
    return [[unit(row[start : start + width]) for row in features] for start, width in spans]


def softmax(scores: list[Tensor]) -> list[Tensor]:
    powers = [score.exp() for score in scores]
    return [power / sum(powers) for power in powers]


def plain_shares(rows: list[Tensor], weights: Weights, place: int, temperature: float) -> list[list[Tensor]]:
    """Return the shares of one head, row by row."""
    at = f"labeling.heads.{place}"
    prototypes, scales = weights[f"{at}.prototypes"], weights[f"{at}.scales"]
    return [
        softmax([scales[k, 0] * (unit(prototypes[k]) @ row) / temperature for k in range(len(prototypes))])
        for row in rows
    ]


def plain_descent(
    rows: list[Tensor], labeling: list[list[float]], classifier: list[Tensor], steps: int
) -> list[Tensor]:
    """Return a classifier, a vector with its bias for each cluster, after its steps."""
    extended = [torch.cat([row, torch.ones(1, dtype=row.dtype)]) for row in rows]
    clusters = range(len(classifier))
    for _ in range(steps):
        found = [softmax([vector @ row for vector in classifier]) for row in extended]
        gradients = [sum((found[i][k] - labeling[i][k]) * row for i, row in enumerate(extended)) for k in clusters]
        sizes = [max(sum(own[k].item() for own in found), sum(own[k] for own in labeling)) for k in clusters]
        classifier = [
            vector - gradient / (2 * max(sizes)) for vector, gradient in zip(classifier, gradients, strict=True)
        ]
    return classifier


@pytest.mark.parametrize("terms", ["all", "labels"])
@pytest.mark.parametrize("widths", [[36], [16, 20]])
def test_two_steps_are_the_formula(widths: list[int], terms: str) -> None:
    spaces = None if len(widths) == 1 else widths
    method = small_turtle(spaces=spaces, gamma=1.7, inner_steps=4, temperature=0.3).double()
    labels = torch.arange(BATCH) % NUM_CLUSTERS
    classifiers = [[torch.zeros(width + 1).double() for _ in range(NUM_CLUSTERS)] for width in widths]
    for step in range(2):  # in the second, classifiers go on from where they are
        with torch.no_grad():
            for parameter in method.labeling.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        images = make_views(1, BATCH)[0].double() + step
        weights = copied_weights(method)
        method.zero_grad()
        loss, logged = method.training_step([images], labels, terms=terms)
        loss.backward()

        rows = small_rows(method, images, widths)
        shares = [plain_shares(own, weights, place, 0.3) for place, own in enumerate(rows)]
        labeling = sum(torch.stack([torch.stack(row) for row in own]) for own in shares) / torch.tensor(len(shares))
        fixed = labeling.tolist()
        error = entropy = agreement = torch.zeros(()).double()
        for place, own in enumerate(rows):
            classifiers[place] = plain_descent(own, fixed, classifiers[place], 4)
            for i, row in enumerate(own):
                found = softmax([vector[:-1] @ row + vector[-1] for vector in classifiers[place]])
                for k in range(NUM_CLUSTERS):
                    error = error - labeling[i, k] * found[k].log() / BATCH
                agreement = agreement - shares[place][i][int(labels[i])].log() / BATCH
            for k in range(NUM_CLUSTERS):
                mean = torch.stack([shares[place][i][k] for i in range(BATCH)]).sum() / BATCH
                entropy = entropy - mean * mean.log()
        plain = error - 1.7 * entropy if terms == "all" else agreement
        plain.backward()

        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
        assert logged["error"].item() == pytest.approx(error.item(), rel=1e-6)
        means = [sum(own[k] for own in fixed) / BATCH for k in range(NUM_CLUSTERS)]
        used = math.exp(-sum(mean * math.log(mean) for mean in means))
        assert logged["effective_clusters"].item() == pytest.approx(used, rel=1e-5)
        assert logged["confidence"].item() == pytest.approx(sum(map(max, fixed)) / BATCH, rel=1e-5)
        for place, vectors in enumerate(classifiers):
            torch.testing.assert_close(method.get_buffer(f"classifier_{place}"), torch.stack(vectors))
        assert_same_gradients(method, weights)


def blobs(count: int = 120, shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)) -> tuple[Tensor, Tensor]:
    """Return rows (N, 6, 1, 1) around four directions, and the direction of each."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([round(share * count) for share in shares]))
    centers = 6 * torch.eye(4, 6)
    return (centers[labels] + torch.randn(count, 6, generator=generator))[:, :, None, None], labels


def flat_turtle(**options: Any) -> TURTLE:
    torch.manual_seed(0)
    return TURTLE(nn.Flatten(), 6, 4, **options)


def test_the_classifiers_errors_fall_and_margins_grow() -> None:
    method, (images, labels) = flat_turtle(), blobs()
    with torch.no_grad():  # the labeling is nearly the true one, and no optimizer moves it
        head = method.labeling.heads[0]
        head.prototypes.copy_(torch.eye(4, 6))  # type: ignore[operator]
        head.scales.fill_(3.0)  # type: ignore[operator]
    errors, margins = [], []
    rows = nn.functional.pad(nn.functional.normalize(images.flatten(1), dim=1), (0, 1), value=1.0)
    for _ in range(30):
        errors.append(float(method.training_step([images])[1]["error"]))
        scores = rows @ method.get_buffer("classifier_0").T
        true = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        others = scores.scatter(1, labels.unsqueeze(1), -math.inf).amax(dim=1)
        margins.append(float((true - others).quantile(0.05)))
    assert errors == sorted(errors, reverse=True)
    assert margins == sorted(margins)


def test_the_entropy_brings_a_small_cluster_back() -> None:
    method, (images, _) = flat_turtle(gamma=2.0), blobs()
    with torch.no_grad():
        method.labeling.heads[0].scales[3] = -3.0  # type: ignore[operator]
    optimizer = method.make_optimizer(len(images))
    optimizer.param_groups[0]["lr"] = 0.05
    used = []
    for _ in range(150):
        loss, logged = method.training_step([images])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        used.append(float(logged["effective_clusters"]))
    assert used[0] < 3.5
    assert used[-1] > 3.8
    assert len(method.assign(images).argmax(dim=1).unique()) == 4


def test_a_cluster_that_nobody_has_chosen_stays_finite() -> None:
    method, (images, _) = flat_turtle(temperature=1e-3), blobs()
    with torch.no_grad():
        head = method.labeling.heads[0]
        head.prototypes.copy_(torch.ones(4, 6))  # type: ignore[operator]
        head.scales.copy_(torch.tensor([[1.0], [1.0], [1.0], [0.5]]))  # type: ignore[operator]
    positive = images.abs()
    loss, logged = method.training_step([positive])
    loss.backward()
    assert float(method.assign(positive)[:, 3].max()) == 0
    assert loss.isfinite()
    assert logged["effective_clusters"].item() == pytest.approx(3, rel=1e-5)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in method.parameters())
    warning = method.collapse_warning(
        {name: float(term) for name, term in logged.items()} | {"effective_clusters": 1.5}
    )
    assert warning is not None
    assert "the cluster head uses as much as 1.5 of 4 clusters" in warning


def test_clusters_are_the_mean_of_the_spaces() -> None:
    method, images = small_turtle(spaces=[16, 20]), make_views(1, BATCH)[0]
    features = method.backbone.eval()(images)
    first, second = (
        (head(part) / method.temperature).softmax(dim=1)
        for head, part in zip(method.labeling.heads, features.split([16, 20], dim=1), strict=True)
    )
    torch.testing.assert_close(method.assign(images), (first + second) / 2)
    torch.testing.assert_close(method.embed(images), nn.functional.normalize(features, dim=1))


def test_defaults_and_bad_arguments() -> None:
    method = TURTLE(nn.Flatten(), 64, 10)
    assert [tuple(parameter.shape) for parameter in method.parameters()] == [(10, 64), (10, 1)]
    assert (method.gamma, method.inner_steps, method.spaces) == (10.0, 10, None)
    assert method.default_optimizer.lr == 1e-3
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"gamma": -1.0}, ValueError, "gamma: expected a finite number of at least 0, got -1"),
        ({"inner_steps": 0}, ValueError, "inner_steps: expected at least 1, got 0"),
        ({"temperature": 0}, ValueError, "temperature: expected a finite number above 0, got 0"),
        ({"spaces": [32, 33]}, ValueError, "spaces: expected widths that add up to feature_dim 64, got 65"),
        ({"spaces": [64, 0]}, ValueError, "spaces.1: expected at least 1, got 0"),
        ({"spaces": 64}, TypeError, "spaces: expected a list of widths, got int"),
    ]
    for options, kind, message in wrong:
        with pytest.raises(kind, match=message):
            TURTLE(nn.Flatten(), 64, 10, **options)
