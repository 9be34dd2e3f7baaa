"""What a method leaves as it was, the dtypes that it takes, and torch's global settings around it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepclust_ext.backbones.modes import evaluation
from deepclust_ext.methods import ClusterHeadMethod, ClusteringMethod
from tests.methods.methodsamples import METHODS, NUM_CLUSTERS, MethodSample, make_views

BATCH = 4 * NUM_CLUSTERS  # below, SACC warns
LABELS = torch.arange(BATCH) % NUM_CLUSTERS


@pytest.fixture(params=METHODS.values(), ids=list(METHODS))
def sample(request: pytest.FixtureRequest) -> MethodSample:
    chosen: MethodSample = request.param
    return chosen


def batch(sample: MethodSample, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [view.to(dtype) for view in make_views(sample.num_views, BATCH)]


def results(method: ClusteringMethod, images: Tensor) -> list[Tensor]:
    """Return all that a method says of images."""
    shares = [method.assign(images)] if isinstance(method, ClusterHeadMethod) else []
    return [method.embed(images), *shares]


def test_every_part_keeps_what_a_user_set_on_it(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    images = make_views(1, BATCH)[0]
    seen: list[bool] = []
    for place, part in enumerate(method.modules()):
        part.training = place % 3 != 1
    for place, parameter in enumerate(method.parameters()):
        parameter.requires_grad_(place % 2 == 0)
    for part in method.modules():
        part.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    modes = {part: part.training for part in method.modules()}
    gradients = {name: parameter.requires_grad for name, parameter in method.named_parameters()}
    state = {name: tensor.clone() for name, tensor in method.state_dict().items() if isinstance(tensor, Tensor)}
    results(method, images)
    assert seen
    assert not any(seen)  # evaluation mode everywhere, while it lasted
    assert {part: part.training for part in method.modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in method.named_parameters()} == gradients
    assert all(part._forward_hooks for part in method.modules())
    for name, tensor in state.items():
        assert torch.equal(method.state_dict()[name], tensor), name


class Frozen(nn.BatchNorm1d):
    """A batch normalization that stays in evaluation mode."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class Merging(nn.Module):
    """A part that does more than to set a flag: what it holds depends on its mode."""

    merged = False

    def train(self, mode: bool = True) -> "Merging":
        self.merged = not mode
        return super().train(mode)


def test_modes_come_back_by_the_parts_own_methods() -> None:
    inner, outer, dropout = Merging(), Merging(), nn.Dropout()
    network = nn.Sequential(nn.Sequential(inner, dropout), Frozen(3), outer, nn.Dropout())
    network.train()
    network[0].eval()
    dropout.train()
    before = [part.training for part in network.modules()]
    with evaluation(network):
        assert not any(part.training for part in network.modules())
        assert not torch.is_grad_enabled()
        assert outer.merged
    assert [part.training for part in network.modules()] == before == [True, False, False, True, False, True, True]
    assert [inner.merged, outer.merged] == [True, False]
    with pytest.raises(KeyError), evaluation(network):
        raise KeyError
    assert [part.training for part in network.modules()] == before


@pytest.mark.parametrize(
    ("weights", "images"),
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
def test_images_of_any_floating_dtype(sample: MethodSample, weights: torch.dtype, images: torch.dtype) -> None:
    method: ClusteringMethod = sample.method().to(weights)
    views = batch(sample, images)
    for rows in results(method, views[0]):
        assert rows.dtype == weights
        assert rows.isfinite().all()
    for _ in range(2):  # CLC has no negatives in its first step
        loss, terms = method.training_step(views, LABELS)
        loss.backward()
    assert all(term.isfinite() for term in terms.values())
    assert {parameter.dtype for parameter in method.parameters()} == {weights}


def test_integers_are_named(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    views = [(255 * view.sigmoid()).to(torch.uint8) for view in batch(sample)]
    message = r"images: expected a floating dtype, got torch.uint8; .* make_view\('resize', size=...\)"
    with pytest.raises(TypeError, match=message):
        method.embed(views[0])
    with pytest.raises(TypeError, match=message):
        method.training_step(views, LABELS)


def test_views_of_different_images_are_named(sample: MethodSample) -> None:
    first, *others = batch(sample)
    if not others:
        pytest.skip("a single view differs from none")
    with pytest.raises(ValueError, match=f"views: expected the same images in each, got {BATCH - 1}, {BATCH}"):
        sample.method().training_step([first[1:], *others], LABELS)


def test_no_images_are_named_and_change_nothing(sample: MethodSample) -> None:
    """The mean of none is NaN, which an average that a method keeps would never lose again."""
    method: ClusteringMethod = sample.method()
    views = batch(sample)
    with pytest.raises(ValueError, match="^views: expected at least one image, got none$"):
        method.training_step([view[:0] for view in views], LABELS[:0])
    assert method.training_step(views, LABELS)[0].isfinite()
    with pytest.raises(TypeError, match=r"^images: expected a tensor \(B, C, H, W\), got list$"):
        method.embed(list(views[0]))  # type: ignore[arg-type]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND: dict[str, Callable[[], Any]] = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    # Stands for a GPU: what a method makes without naming a device could not be used beside its weights.
    "another device by default": lambda: torch.device("meta"),
    "deterministic": deterministic,
}


@pytest.mark.parametrize("around", AROUND)
def test_global_settings_change_nothing(sample: MethodSample, around: str) -> None:
    def outcome(around: Callable[[], Any]) -> list[Tensor]:
        options = {"bank_size": BATCH, "num_neighbors": 3} if sample is METHODS["hadis"] else {}
        method: ClusteringMethod = sample.method(**options)
        optimizer = method.make_optimizer(BATCH)
        views, index = batch(sample), torch.arange(BATCH)
        torch.manual_seed(2)
        with around():
            for _ in range(3):
                loss, terms = method.training_step(views, LABELS, index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                method.after_step(0.5)
            return [*terms.values(), *results(method, views[0])]

    for result, expected in zip(outcome(AROUND[around]), outcome(contextlib.nullcontext), strict=True):
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_method_made_under_another_default_dtype(sample: MethodSample, dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        method: ClusteringMethod = sample.method()
        loss, _ = method.training_step(batch(sample), LABELS)  # images stay float32
        loss.backward()
        rows = method.embed(batch(sample)[0])
    assert loss.isfinite()
    assert rows.dtype == dtype


def test_rows_are_the_same_in_inference_mode(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    images = make_views(1, BATCH)[0]
    expected = results(method, images)
    with torch.inference_mode():
        for rows, outside in zip(results(method, images), expected, strict=True):
            assert torch.equal(rows, outside)


def test_a_step_and_rows_under_autocast(sample: MethodSample) -> None:
    method: ClusteringMethod = sample.method()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            loss, terms = method.training_step(batch(sample), LABELS)
        rows = method.embed(batch(sample)[0])
    loss.backward()
    exact = sample.method()
    for _ in range(2):
        _, expected = exact.training_step(batch(sample), LABELS)
    # What shows a collapse is no coarser than the features.
    for name in ("feature_spread", "effective_rank"):
        assert float(terms[name]) == pytest.approx(float(expected[name]), rel=0.02)
    torch.testing.assert_close(rows.float(), exact.embed(batch(sample)[0]), rtol=0, atol=0.03)
