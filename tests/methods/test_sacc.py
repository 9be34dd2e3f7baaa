"""SACC: the formula of its step, its heads, its optimiser and its warnings."""

import math

import pytest
import torch
from torch import nn

from deepclust_ext import reference
from deepclust_ext.methods import SACC
from tests.methods.methodsamples import NUM_CLUSTERS, make_views, small_sacc


def test_defaults_are_the_paper_s() -> None:
    method = SACC(nn.Flatten(), 64, 10)
    assert [tuple(p.shape) for p in method.instance_head.parameters()] == [(64, 64), (64,), (128, 64), (128,)]
    assert [tuple(p.shape) for p in method.cluster_head.parameters()] == [(64, 64), (64,), (10, 64), (10,)]
    assert (method.instance_loss.temperature, method.cluster_loss.temperature) == (0.5, 1.0)
    assert method.cluster_weight == 1
    assert method.instance_loss.hardness == 0
    (group,) = method.make_optimizer(128).param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-4, 0)


def test_step_is_the_formula() -> None:
    method, views = small_sacc(cluster_weight=0.5, instance_temperature=0.3, cluster_temperature=0.8), make_views(3)
    loss, terms = method.training_step(views)
    features = [method.backbone(view) for view in views]
    z_1, z_2, z_s = map(method.instance_head, features)
    c_1, c_2, c_s = map(method.cluster_head, features)
    instance = sum(reference.fused_contrastive_loss(a, b, temperature=0.3) for a, b in ((z_1, z_2), (z_2, z_s)))
    cluster = sum(
        reference.fused_contrastive_loss(a.T, b.T, temperature=0.8)
        + sum(math.log(NUM_CLUSTERS) + (c.mean(0) * c.mean(0).log()).sum() for c in (a, b))
        for a, b in ((c_1, c_2), (c_1, c_s), (c_2, c_s))
    )
    torch.testing.assert_close(loss, instance + 0.5 * cluster)
    torch.testing.assert_close(terms["instance"] + 0.5 * terms["cluster"], terms["loss"])


def test_the_strong_view_is_the_last() -> None:
    method, views = small_sacc(), make_views(3)
    loss, _ = method.training_step(views)
    # Only w1 and s change places: inst(w1, w2) + inst(w2, s) is the same, and so are the three pairs of clusters.
    swapped, _ = method.training_step(views[::-1])
    torch.testing.assert_close(loss, swapped)
    other, _ = method.training_step([views[0], views[2], views[1]])
    assert not torch.isclose(loss, other)


def test_assign_is_the_cluster_head_in_evaluation_mode() -> None:
    method = small_sacc()
    images = make_views(1)[0]
    method.training_step(make_views(3))  # moves the batch statistics
    assignments = method.assign(images)
    assert method.training
    assert assignments.shape == (12, NUM_CLUSTERS)
    assert not assignments.requires_grad
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(method.assign(images[:1]), assignments[:1])


@pytest.mark.parametrize("bias", [(50.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)])
def test_a_cluster_that_takes_everything_is_named(bias: tuple[float, ...]) -> None:
    method = small_sacc()
    final = method.cluster_head[-2]
    assert isinstance(final, nn.Linear)
    with torch.no_grad():
        final.weight.zero_()
        final.bias.copy_(torch.tensor(bias))
    _, terms = method.training_step(make_views(3))
    means = {name: float(term) for name, term in terms.items()}
    message = method.collapse_warning(means)
    if any(bias):
        assert means["effective_clusters"] == pytest.approx(1)
        assert means["confidence"] == pytest.approx(1)
        assert "uses as much as 1.0 of 4 clusters" in (message or "")
    else:
        assert means["effective_clusters"] == pytest.approx(4)
        assert means["confidence"] == pytest.approx(0.25)
        assert message is None
