"""What every method keeps to, by its sample in tests/methods/methodsamples.py."""

import pytest
import torch
from torch import Tensor

from deepclust_ext import methods
from deepclust_ext.methods import ClusteringMethod
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS, MethodSample, collapsed, make_views

LABELS = torch.arange(12) % NUM_CLUSTERS


@pytest.fixture(params=METHODS.values(), ids=list(METHODS))
def sample(request: pytest.FixtureRequest) -> MethodSample:
    chosen: MethodSample = request.param
    return chosen


def test_every_method_has_a_sample() -> None:
    names = {name.lower() for name in methods.__all__ if not name.endswith("Method")}
    assert set(METHODS) == names


def test_twenty_steps_with_the_op_equal_twenty_with_the_reference(
    sample: MethodSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses() -> list[float]:
        method = sample.method()
        optimizer = method.make_optimizer(32)
        curve = []
        for _ in range(20):
            views = list(torch.randn(sample.num_views, 32, 1, 8, 8))
            loss, _ = method.training_step(views, torch.randint(NUM_CLUSTERS, (32,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step()
            curve.append(loss.item())
        return curve

    fused = losses()
    monkeypatch.setattr("deepclust_ext._extension.uses_native", lambda device_type: False)
    assert fused == pytest.approx(losses(), rel=1e-4)


def test_terms_are_numbers_without_gradient(sample: MethodSample) -> None:
    loss, terms = sample.method().training_step(make_views(sample.num_views), LABELS)
    assert loss.requires_grad
    assert torch.equal(terms["loss"], loss.detach())
    assert not any(term.requires_grad or term.dim() for term in terms.values())


def test_optimizer_moves_every_weight_that_learns(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    optimizer = method.make_optimizer(32)
    loss, _ = method.training_step(make_views(sample.num_views), LABELS)
    loss.backward()
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(p) for p in method.parameters() if p.requires_grad}
    assert all(parameter.grad is not None for parameter in held)


def test_embed_gives_unit_rows_in_evaluation_mode(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    images = make_views(1)[0]
    method.training_step(make_views(sample.num_views), LABELS)  # moves the batch statistics
    rows = method.embed(images)
    assert all(module.training for module in method.modules())
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))
    # In evaluation mode a row does not depend on its batch.
    torch.testing.assert_close(method.embed(images[:1]), rows[:1])
    method.eval()
    method.embed(images)
    assert not any(module.training for module in method.modules())


def test_a_collapse_is_named_and_a_training_batch_is_none(sample: MethodSample) -> None:
    def warning(method: ClusteringMethod) -> str | None:
        _, terms = method.training_step(make_views(sample.num_views), LABELS)
        return method.collapse_warning({name: float(term) for name, term in terms.items()})

    assert warning(sample.method()) is None
    assert "collapsed to a point" in (warning(collapsed(sample.method())) or "")


@pytest.mark.parametrize("surplus", [-1, 1])
def test_number_of_views_is_checked(sample: MethodSample, surplus: int) -> None:
    views: list[Tensor] = make_views(sample.num_views + surplus)
    message = f"views: expected {sample.num_views} tensors, got {len(views)}"
    with pytest.raises(ValueError, match=message):
        sample.method().training_step(views)
