"""HaDis: the formulas of its step, its teacher, its optimiser and its messages."""

import math

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext import reference
from deepclust_ext.losses import PrototypeLoss
from deepclust_ext.methods import HaDis
from tests.methods.methodsamples import collapsed, make_views, small_hadis


def test_defaults_are_the_paper_s() -> None:
    method = HaDis(nn.Flatten(), 64, 10)
    assert [tuple(p.shape) for p in method.predictor.parameters()][:1] == [(4096, 256)]
    assert (method.momentum, method.noise_std, method.prototype_weight, method.hsd.temperature) == (
        0.996,
        0.001,
        0.1,
        0.5,
    )
    optimizer = method.optimizer(batch_size=128)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.25]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}


def test_step_is_the_formula() -> None:
    method, views = small_hadis(noise_std=0.0), make_views(2)
    labels = torch.arange(12) % 3
    loss, _ = method.training_step(views, labels)
    queries = [method.predictor(method.student(view)) for view in views]
    keys = [method.teacher(view) for view in views]
    expected = torch.zeros(())
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        alignment = -2 * (query * key).sum(1) / (query.norm(dim=1) * key.norm(dim=1))
        hsd = reference.fused_hsd_loss(key, query)
        assert isinstance(hsd, Tensor)
        expected = expected + (alignment.mean() + hsd + 0.1 * PrototypeLoss()(query, key, labels, 4)) / 2
    torch.testing.assert_close(loss, expected)


def test_warm_up_has_neither_prototypes_nor_noise() -> None:
    views = make_views(2)
    results = []
    for seed in (0, 1):
        method = small_hadis(noise_std=10.0)
        torch.manual_seed(seed)
        loss, terms = method.training_step(views)
        assert "prototype" not in terms
        results.append(loss)
    assert torch.equal(results[0], results[1])


def test_noise_is_drawn_after_warm_up() -> None:
    views, labels = make_views(2), torch.zeros(12, dtype=torch.int64)
    quiet, _ = small_hadis(noise_std=0.0).training_step(views, labels)
    noisy, _ = small_hadis(noise_std=1.0).training_step(views, labels)
    assert not torch.equal(quiet, noisy)


def test_predictor_runs_once_per_view() -> None:
    method, calls = small_hadis(), []
    method.predictor.register_forward_hook(lambda *_: calls.append(1))
    method.training_step(make_views(2))
    assert len(calls) == 2


def test_teacher_gets_no_gradient_and_the_student_does() -> None:
    method = small_hadis()
    loss, _ = method.training_step(make_views(2), torch.arange(12) % 3)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in [*method.student.parameters(), *method.predictor.parameters()])


def test_teacher_update_is_the_moving_average() -> None:
    method = small_hadis(momentum=0.75)
    assert all(map(torch.equal, method.teacher.parameters(), method.student.parameters()))
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step()
    for old, new, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=0, atol=1e-6)


def test_embed_is_the_teacher() -> None:
    method = small_hadis()
    images = make_views(1)[0]
    rows = method.embed(images)
    with torch.no_grad():
        for parameter in [*method.student.parameters(), *method.predictor.parameters()]:
            parameter.zero_()
    assert torch.equal(method.embed(images), rows)


def test_collapse_is_named() -> None:
    method = collapsed(small_hadis())
    _, terms = method.training_step(make_views(2))
    message = method.collapse_warning({name: float(term) for name, term in terms.items()})
    assert message is not None
    assert "which is ln 2" in message
    assert "collapsed to a point" in message


def test_a_training_batch_is_no_collapse_and_a_converged_one_is_told_apart() -> None:
    method = small_hadis()
    _, terms = method.training_step(make_views(2))
    means = {name: float(term) for name, term in terms.items()}
    assert method.collapse_warning(means) is None
    means |= {"hsd": math.log(2), "zero_negative_weight": 1.0, "zero_positive_weight": 1.0, "feature_spread": 0.9}
    assert "converged" in (method.collapse_warning(means) or "")


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got 1.5"):
        small_hadis(momentum=1.5)
