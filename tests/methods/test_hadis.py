"""HaDis: the formulas of its step, its teacher, its optimiser and its messages."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext import fused_hsd_loss, reference
from deepclust_ext.losses import PrototypeLoss
from deepclust_ext.methods import HaDis


def small_hadis(**options: Any) -> HaDis:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return HaDis(backbone, 36, hidden_dim=16, embedding_dim=8, **options)


def two_views(batch: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(2, batch, 1, 8, 8, generator=generator))


def test_defaults_are_the_paper_s() -> None:
    method = HaDis(nn.Flatten(), 64)
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
    assert sum(len(g["params"]) for g in optimizer.param_groups) == sum(p.requires_grad for p in method.parameters())


def test_step_is_the_formula() -> None:
    method, views = small_hadis(noise_std=0.0), two_views()
    labels = torch.arange(12) % 3
    loss, terms = method.training_step(views, labels, 4)
    queries = [method.predictor(method.student(view)) for view in views]
    keys = [method.teacher(view) for view in views]
    expected = torch.zeros(())
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        alignment = -2 * (query * key).sum(1) / (query.norm(dim=1) * key.norm(dim=1))
        hsd = reference.fused_hsd_loss(key, query)
        assert isinstance(hsd, Tensor)
        expected = expected + (alignment.mean() + hsd + 0.1 * PrototypeLoss()(query, key, labels, 4)) / 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["loss"], expected.detach())
    assert not any(term.requires_grad or term.dim() for term in terms.values())


def test_warm_up_has_neither_prototypes_nor_noise() -> None:
    views = two_views()
    results = []
    for seed in (0, 1):
        method = small_hadis(noise_std=10.0)
        torch.manual_seed(seed)
        loss, terms = method.training_step(views)
        assert "prototype" not in terms
        results.append(loss)
    assert torch.equal(results[0], results[1])


def test_noise_is_drawn_after_warm_up() -> None:
    views, labels = two_views(), torch.zeros(12, dtype=torch.int64)
    quiet, _ = small_hadis(noise_std=0.0).training_step(views, labels, 1)
    noisy, _ = small_hadis(noise_std=1.0).training_step(views, labels, 1)
    assert not torch.equal(quiet, noisy)


def test_predictor_runs_once_per_view() -> None:
    method, calls = small_hadis(), []
    method.predictor.register_forward_hook(lambda *_: calls.append(1))
    method.training_step(two_views())
    assert len(calls) == 2


def test_teacher_gets_no_gradient_and_the_student_does() -> None:
    method = small_hadis()
    loss, _ = method.training_step(two_views(), torch.arange(12) % 3, 3)
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
    method.update_teacher()
    for old, new, student in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student, rtol=0, atol=1e-6)


def test_embed_is_the_teacher_in_evaluation_mode() -> None:
    method = small_hadis()
    images = two_views()[0]
    method.training_step(two_views())  # moves the batch statistics
    rows = method.embed(images)
    assert method.teacher.training
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))
    # In evaluation mode a row does not depend on its batch.
    torch.testing.assert_close(method.embed(images[:1]), rows[:1])
    method.eval()
    method.embed(images)
    assert not method.teacher.training


def test_twenty_steps_with_the_op_equal_twenty_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(function: Any) -> list[float]:
        monkeypatch.setattr("deepclust_ext.losses.hsd.fused_hsd_loss", function)
        method = small_hadis()
        optimizer = method.optimizer(batch_size=32)
        curve = []
        for _ in range(20):
            views = list(torch.randn(2, 32, 1, 8, 8))
            loss, _ = method.training_step(views, torch.randint(5, (32,)), 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.update_teacher()
            curve.append(loss.item())
        return curve

    assert losses(fused_hsd_loss) == pytest.approx(losses(reference.fused_hsd_loss), rel=1e-4)


def test_collapse_is_named() -> None:
    method = small_hadis()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
    _, terms = method.training_step(two_views())
    message = method.collapse_warning({name: float(term) for name, term in terms.items()})
    assert message is not None
    assert "which is ln 2" in message
    assert "collapsed to a point" in message


def test_a_training_batch_is_no_collapse_and_a_converged_one_is_told_apart() -> None:
    method = small_hadis()
    _, terms = method.training_step(two_views())
    means = {name: float(term) for name, term in terms.items()}
    assert method.collapse_warning(means) is None
    means |= {"hsd": math.log(2), "zero_negative_weight": 1.0, "zero_positive_weight": 1.0, "feature_spread": 0.9}
    assert "converged" in (method.collapse_warning(means) or "")


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], got 1.5"):
        small_hadis(momentum=1.5)
    with pytest.raises(ValueError, match="views: expected 2 tensors, got 1"):
        small_hadis().training_step(two_views()[:1])
