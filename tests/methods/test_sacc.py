"""SACC: the formula of its step, its heads, its optimizer and its warnings."""

import math
import warnings

import pytest
import torch
from torch import nn

from deepclust_ext.methods import SACC
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_sacc
from tests.methods.plaintorch import assert_same_gradients, backbone, copied_weights, head_without_norm, plain_contrast

BATCH = 4 * NUM_CLUSTERS  # below, SACC warns


def test_defaults_are_the_paper_s() -> None:
    method = SACC(nn.Flatten(), 64, 10)
    assert [tuple(p.shape) for p in method.instance_head.parameters()] == [(64, 64), (64,), (128, 64), (128,)]
    assert [tuple(p.shape) for p in method.cluster_head.parameters()] == [(64, 64), (64,), (10, 64), (10,)]
    assert (method.instance_loss.temperature, method.cluster_loss.temperature) == (0.5, 1.0)
    assert (method.cluster_weight, method.entropy_weight) == (1, 1)
    assert method.instance_loss.hardness == 0
    (group,) = method.make_optimizer(128).param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-4, 0)


@pytest.mark.parametrize("terms", ["all", "instance", "labels"])
def test_step_is_the_formula(terms: str) -> None:
    options = {"instance_temperature": 0.3, "cluster_temperature": 0.8, "cluster_weight": 0.6, "entropy_weight": 1.7}
    method, views = small_sacc(**options).double(), [view.double() for view in make_views(3, BATCH)]
    with torch.no_grad():
        for parameter in method.cluster_head.parameters():  # clusters of unequal size
            parameter.add_(torch.randn_like(parameter))
    weights = copied_weights(method)
    labels = torch.arange(BATCH) % NUM_CLUSTERS
    loss, logged = method.training_step(views, labels, terms=terms)
    loss.backward()

    features = [backbone(view, weights, "backbone") for view in views]
    z_1, z_2, z_s = (list(head_without_norm(rows, weights, "instance_head")) for rows in features)
    powers = [head_without_norm(rows, weights, "cluster_head").exp() for rows in features]
    c_1, c_2, c_s = (list((power / power.sum(dim=1, keepdim=True)).T) for power in powers)  # columns
    expected = {"instance": plain_contrast(z_1 + z_2, 0.3) + plain_contrast(z_2 + z_s, 0.3)}
    expected["loss"] = expected["instance"]
    if terms == "all":
        pairs = [(c_1, c_2), (c_1, c_s), (c_2, c_s)]
        contrast = torch.stack([plain_contrast(a + b, 0.8) for a, b in pairs]).sum()
        entropy = torch.zeros((), dtype=torch.float64)
        for columns in (*pairs[0], *pairs[1], *pairs[2]):
            shares = [column.mean() for column in columns]
            entropy = entropy + math.log(NUM_CLUSTERS) + torch.stack([share * share.log() for share in shares]).sum()
        assert entropy.item() > 0.1
        expected["cluster"] = contrast + 1.7 * entropy
        expected["loss"] = expected["instance"] + 0.6 * expected["cluster"]
    if terms == "labels":
        own = [columns[int(label)][row] for columns in (c_1, c_2, c_s) for row, label in enumerate(labels)]
        expected["cluster"] = -torch.stack(own).log().mean()
        expected["loss"] = expected["instance"] + 0.6 * expected["cluster"]
    expected["loss"].backward()

    assert ("cluster" in logged) == (terms != "instance")
    for name, value in expected.items():
        assert logged[name].item() == pytest.approx(value.item(), rel=1e-6), name
    assert_same_gradients(method, weights)


def test_a_batch_below_four_images_a_cluster_is_named_once_per_method() -> None:
    method, views = small_sacc(), make_views(3, batch=15)
    method.training_step(views, terms="instance")  # compares no clusters
    with pytest.warns(RuntimeWarning, match="a batch of 15 tells little about 4 clusters"):
        method.training_step(views)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.training_step(views)


def test_the_strong_view_is_the_last() -> None:
    method, views = small_sacc(), make_views(3, BATCH)
    loss, _ = method.training_step(views)
    # Only w1 and s change places: inst(w1, w2) + inst(w2, s) is the same, and so are the three pairs of clusters.
    swapped, _ = method.training_step(views[::-1])
    torch.testing.assert_close(loss, swapped)
    other, _ = method.training_step([views[0], views[2], views[1]])
    assert not torch.isclose(loss, other)


def test_assign_is_the_cluster_head_in_evaluation_mode() -> None:
    method = small_sacc()
    images = make_views(1, BATCH)[0]
    method.training_step(make_views(3, BATCH))  # moves the batch statistics
    assignments = method.assign(images)
    assert method.training
    assert assignments.shape == (BATCH, NUM_CLUSTERS)
    assert not assignments.requires_grad
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(BATCH))
    torch.testing.assert_close(method.assign(images[:1]), assignments[:1])


@pytest.mark.parametrize("bias", [(50.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)])
def test_a_cluster_that_takes_everything_is_named(bias: tuple[float, ...]) -> None:
    method = small_sacc()
    final = method.cluster_head[-2]
    assert isinstance(final, nn.Linear)
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(torch.tensor(bias))
    _, terms = method.training_step(make_views(3, BATCH))
    means = {name: float(term) for name, term in terms.items()}
    message = method.collapse_warning(means)
    if any(bias):
        assert means["effective_clusters"] == pytest.approx(1)
        assert means["confidence"] == pytest.approx(1)
        assert "uses as much as 1.0 of 4 clusters" in (message or "")
    else:
        assert means["effective_clusters"] == pytest.approx(4)
        assert means["confidence"] == pytest.approx(1 / 4)
        assert message is None
