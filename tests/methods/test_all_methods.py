"""What every method keeps to, by its sample in tests/methods/methodsamples.py."""

from collections.abc import Callable
from functools import partial
from inspect import isabstract, signature

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext import methods
from deepclust_ext.methods import TURTLE, ClusteringMethod, NeighborHead, OptimizerSettings
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS, MethodSample, collapsed, make_views

BATCH = 4 * NUM_CLUSTERS  # below, SACC warns
LABELS = torch.arange(BATCH) % NUM_CLUSTERS


def batch(sample: MethodSample) -> list[Tensor]:
    return make_views(sample.num_views, BATCH)


@pytest.fixture(params=METHODS.values(), ids=list(METHODS))
def sample(request: pytest.FixtureRequest) -> MethodSample:
    chosen: MethodSample = request.param
    return chosen


def test_every_method_has_a_sample() -> None:
    exported = [getattr(methods, name) for name in methods.__all__]
    concrete = {
        item.__name__.lower() for item in exported if issubclass(item, ClusteringMethod) and not isabstract(item)
    }
    assert set(METHODS) == concrete


def test_arguments_are_all_of_the_constructor_s_but_the_backbone_and_the_ranks(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    expected = set(signature(type(method)).parameters) - {"backbone", "gather_distributed", "process_group"}
    missing = {name for name in expected if not hasattr(method, name)}
    assert not missing, f"{type(method).__name__} keeps no attribute {', '.join(sorted(missing))}"
    arguments = method.arguments()
    assert set(arguments) == expected
    # A second method from them is the same, in everything that the first was built with.
    again = type(method)(sample.backbone(), **arguments)
    assert again.arguments() == arguments
    shapes = {name: tensor.shape for name, tensor in method.named_parameters()}
    assert {name: tensor.shape for name, tensor in again.named_parameters()} == shapes


def test_arguments_come_back_changed(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    for name, value in method.arguments().items():
        if isinstance(value, float):
            changed = type(method)(sample.backbone(), **method.arguments() | {name: value / 2})
            assert changed.arguments()[name] == value / 2, name


def test_every_statistic_stands_in_one_axis(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    placed = [name for axis in method.axes.values() for name in axis]
    assert len(set(placed)) == len(placed)
    logged = {name for terms in method.terms for name in method.training_step(batch(sample), LABELS, terms=terms)[1]}
    assert logged == set(placed)


def test_terms_are_checked(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    views = batch(sample)
    with pytest.raises(ValueError, match=f"terms: expected one of {', '.join(method.terms)}, got 'nothing'"):
        method.training_step(views, LABELS, terms="nothing")
    whole, first = (sample.method().training_step(views, LABELS, terms=terms)[0] for terms in (None, method.terms[0]))
    assert method.labelled_terms <= set(method.terms)
    for terms in method.labelled_terms:
        with pytest.raises(ValueError, match=f"pseudo_labels: expected a label for each image, .* {terms!r} need"):
            method.training_step(views, terms=terms)
        with pytest.raises(
            ValueError, match=rf"pseudo_labels: expected shape \({len(LABELS)},\), one for each image, got"
        ):
            method.training_step(views, LABELS[:-1], terms=terms)
        with pytest.raises(TypeError, match="pseudo_labels: expected an integer tensor, got torch.float32"):
            method.training_step(views, LABELS.float(), terms=terms)
    for terms in set(method.terms) - method.labelled_terms:
        assert method.training_step(views, terms=terms)[0].isfinite()
    if "noise_std" not in method.arguments():
        assert torch.equal(whole, first)


def test_an_unknown_optimizer_is_named(sample: MethodSample) -> None:
    with pytest.raises(ValueError, match="optimizer.name: expected 'sgd' or 'adam', got 'adamw'"):
        sample.method().make_optimizer(32, OptimizerSettings("adamw"))


def test_settings_of_an_optimizer() -> None:
    method = METHODS["sacc"].method()
    adam = method.make_optimizer(128, OptimizerSettings("adam", lr=0.3, weight_decay=0.1))
    assert isinstance(adam, torch.optim.Adam)
    assert [(group["lr"], group["weight_decay"]) for group in adam.param_groups] == [(0.3, 0.1)]
    sgd = method.make_optimizer(128, OptimizerSettings("sgd", lr=0.3, lr_batch_size=512, momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert [(group["lr"], group["momentum"]) for group in sgd.param_groups] == [(pytest.approx(0.075), 0.8)]


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
    loss, terms = sample.method().training_step(batch(sample), LABELS)
    assert loss.requires_grad
    assert torch.equal(terms["loss"], loss.detach())
    assert not any(term.requires_grad or term.dim() for term in terms.values())


def test_optimizer_moves_every_weight_that_learns(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    # With decay, for a bias in front of a batch normalization has no gradient but rounding.
    optimizer = method.make_optimizer(32, OptimizerSettings("sgd", lr=1.0, weight_decay=0.1))
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for _ in range(2):  # CLC has no negatives in its first step
        loss, _ = method.training_step(batch(sample), LABELS)
        loss.backward()
        optimizer.step()
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_embed_gives_unit_rows_in_evaluation_mode(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    images = make_views(1, BATCH)[0]
    method.training_step(batch(sample), LABELS)  # moves the batch statistics
    rows = method.embed(images)
    assert all(module.training for module in method.modules())
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(BATCH))
    # In evaluation mode a row does not depend on its batch.
    torch.testing.assert_close(method.embed(images[:1]), rows[:1])
    method.eval()
    method.embed(images)
    assert not any(module.training for module in method.modules())


def test_a_collapse_is_named_and_a_training_batch_is_none(sample: MethodSample) -> None:
    def warning(method: ClusteringMethod) -> str | None:
        _, terms = method.training_step(batch(sample), LABELS)
        return method.collapse_warning({name: float(term) for name, term in terms.items()})

    assert warning(sample.method()) is None
    assert "collapsed to a point" in (warning(collapsed(sample.method())) or "")


@pytest.mark.parametrize("surplus", [-1, 1])
def test_number_of_views_is_checked(sample: MethodSample, surplus: int) -> None:
    views: list[Tensor] = make_views(sample.num_views + surplus)
    message = f"views: expected {sample.num_views} tensors?, got {len(views)}"
    with pytest.raises(ValueError, match=message):
        sample.method().training_step(views)


@pytest.mark.parametrize("make", [partial(NeighborHead, hidden_dim=0), TURTLE])
def test_features_of_any_length_are_learned_from_alike(make: Callable[..., ClusteringMethod]) -> None:
    """A power of two changes no bit of a direction, though squares of such features are beyond float32."""
    results = []
    for scale in (1.0, 2.0**100):
        torch.manual_seed(0)
        method = make(nn.Flatten(), 6, 3)
        views = [scale * view for view in torch.randn(method.num_views, 8, 6, 1, 1)]
        with torch.no_grad():
            _, logged = method.training_step(views)
            rows, shares = method.inference_network()(views[0])
        results.append([*logged.values(), rows, shares])
    for small, large in zip(*results, strict=True):
        assert torch.equal(small, large)
