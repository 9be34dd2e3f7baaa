"""One suite that every op passes on every device and dtype; the samples are in opsamples.py."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import deepclust_ext
from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.helpers import DEVICES, EMULATED, KERNELS_ALONE, assert_error_budget, same_bits
from tests.ops.opsamples import SAMPLE_INPUTS, Sample

OPS = sorted(SAMPLE_INPUTS)

#: What torch checks of an op; what depends on its kernels is whether they alias, mutate, and give what the fakes say.
OPCHECKS = ["test_schema", "test_faketensor"]
OPCHECKS += [] if KERNELS_ALONE else ["test_autograd_registration", "test_aot_dispatch_dynamic"]

pytestmark = [pytest.mark.parametrize("device", DEVICES), pytest.mark.parametrize("op", OPS)]


def call(function: Callable[..., Any], sample: Sample) -> list[Tensor]:
    """Return the results of one call as a flat list; what it draws at random is the same every time."""
    torch.manual_seed(0)
    result = function(*sample.args, **sample.kwargs)
    return [result] if isinstance(result, Tensor) else list(result)


def gradients(function: Callable[..., Any], sample: Sample) -> list[Tensor]:
    """Return the gradients to all tensors of a fixed weighted sum of all differentiable results, none of constants."""
    leaves = sample.map(lambda tensor: tensor.detach().clone().requires_grad_())
    if sample.constant:
        assert not any(result.requires_grad for result in call(function, leaves))
        return []
    return list(torch.autograd.grad(weighted_sum(call(function, leaves)), leaves.tensors))


def weighted_sum(results: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=results[0].dtype, device=results[0].device)
    for order, result in enumerate(results):
        if result.is_floating_point():
            weight = torch.linspace(1, 2 + order, result.numel(), dtype=torch.float32, device=result.device)
            total = total + (result * weight.view(result.shape).to(result.dtype)).sum()
    return total


def numbers_of(results: list[Tensor]) -> list[Tensor]:
    """Return the floating-point results, or, of an op that gives places alone, these in float64."""
    return [result for result in results if result.is_floating_point()] or [result.double() for result in results]


def by_reference(op: str) -> Callable[..., Any]:
    return in_a_list(op, getattr(reference, op))


def in_a_list(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function for a batch of images, where it takes a list of batches, as the public function does not."""
    return (lambda images, **options: function([images], **options)) if op == "augment_views" else function


def native(op: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(deepclust_ext.ops, op)
    return function


def schema_arguments(op: str, sample: Sample) -> dict[str, Any]:
    """Return the keyword arguments of the op itself, which takes a seed where its function takes a generator."""
    names = [argument.name for argument in getattr(torch.ops.deepclust_ext, op).default._schema.arguments]
    return sample.kwargs | ({"seed": torch.tensor(7)} if "seed" in names else {})


def in_float64(op: str, sample: Sample, run: Callable[..., list[Tensor]]) -> list[Tensor]:
    return run(by_reference(op), sample.map(lambda tensor: tensor.double()))


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
@pytest.mark.parametrize("run", [call, gradients])
def test_within_error_budget(op: str, device: str, dtype: torch.dtype, run: Callable[..., list[Tensor]]) -> None:
    for sample in SAMPLE_INPUTS[op](dtype, device):
        ours = run(native(op), sample)
        naive = run(by_reference(op), sample)
        truth = in_float64(op, sample, run)
        for position, (mine, theirs, exact) in enumerate(zip(ours, naive, truth, strict=True)):
            what = f"{sample.name}, output {position}"
            if exact.is_floating_point():
                assert_error_budget(mine, theirs, exact, what)
            else:
                assert torch.equal(mine, exact), what


def test_gradients_by_finite_differences(op: str, device: str) -> None:
    for sample in SAMPLE_INPUTS[op](torch.float64, device)[:4]:
        if sample.constant:
            pytest.skip("its results are constants")
        if sample.tensors[0].numel() > 1000:
            continue
        leaves = sample.map(lambda tensor: tensor.requires_grad_())
        if (
            op == "fused_hsd_loss"
        ):  # its weights are constants to the gradient, so differences of the loss are no oracle
            assert_error_budget_of_gradients(op, leaves)
            continue

        def differentiable(*tensors: Tensor, sample: Sample = sample) -> Sequence[Tensor]:
            return [result for result in call(native(op), sample.with_tensors(tensors)) if result.is_floating_point()]

        assert torch.autograd.gradcheck(differentiable, leaves.tensors)


def assert_error_budget_of_gradients(op: str, sample: Sample) -> None:
    for ours, truth in zip(gradients(native(op), sample), gradients(by_reference(op), sample), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck reads its own copies
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES, ids=str)
def test_opcheck(op: str, device: str, dtype: torch.dtype) -> None:
    overload = getattr(torch.ops.deepclust_ext, op).default
    for sample in SAMPLE_INPUTS[op](dtype, device)[:3]:
        leaves = sample.map(lambda tensor: tensor.requires_grad_())
        args = (list(leaves.args),) if op == "augment_views" else leaves.args
        torch.library.opcheck(overload, args, schema_arguments(op, leaves), test_utils=OPCHECKS, rtol=1e-2, atol=1e-2)


@pytest.mark.any_kernels
def test_compiles_to_one_graph(op: str, device: str) -> None:
    compiled = torch.compile(native(op), fullgraph=True)
    for sample in SAMPLE_INPUTS[op](torch.float32, device)[1:3]:
        for ours, eager in zip(call(compiled, sample), call(native(op), sample), strict=True):
            assert same_bits(ours, eager), sample.name
        for ours, eager in zip(gradients(compiled, sample), gradients(native(op), sample), strict=True):
            torch.testing.assert_close(ours, eager)


def test_layout_of_inputs_does_not_matter(op: str, device: str) -> None:
    def transposed(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor

    def every_second(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, torch.full_like(tensor, 7)], dim=-1).flatten(-2)[..., ::2]

    for sample in SAMPLE_INPUTS[op](torch.float32, device):
        expected = call(native(op), sample) + gradients(native(op), sample)
        for strided in (sample.map(transposed), sample.map(every_second)):
            results = call(native(op), strided) + gradients(native(op), strided)
            for ours, plain in zip(results, expected, strict=True):
                assert same_bits(ours, plain), sample.name
    expanded = SAMPLE_INPUTS[op](torch.float32, device)[2].map(lambda tensor: tensor[:1].expand_as(tensor))
    copied = expanded.map(lambda tensor: tensor.contiguous())
    for ours, plain in zip(call(native(op), expanded), call(native(op), copied), strict=True):
        assert same_bits(ours, plain)


def test_same_bits_on_any_thread_count_and_run(op: str, device: str) -> None:
    threads = torch.get_num_threads()
    try:
        for sample in SAMPLE_INPUTS[op](torch.float32, device):
            results = []
            for count in (1, 2) if EMULATED else (1, 2, 2, 3, 5):  # the emulated device has no threads of its own
                torch.set_num_threads(count)
                results.append(call(native(op), sample) + gradients(native(op), sample))
            for other in results[1:]:
                assert all(map(same_bits, other, results[0])), sample.name
    finally:
        torch.set_num_threads(threads)


def test_inputs_are_not_changed(op: str, device: str) -> None:
    for sample in SAMPLE_INPUTS[op](torch.float32, device):
        before = sample.map(lambda tensor: tensor.clone())
        gradients(native(op), sample)
        call(native(op), sample)
        assert all(map(torch.equal, sample.tensors, before.tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["native", "fallback", "reference"])
def test_autocast_computes_in_float32(
    op: str, device: str, backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "fallback":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    function = by_reference(op) if backend == "reference" else native(op)
    for sample in SAMPLE_INPUTS[op](dtype, device):
        wide = sample.map(lambda tensor: tensor.float())
        mixed = sample.with_tensors((sample.tensors[0].float(), *sample.tensors[1:]))
        expected, slopes = call(function, wide), gradients(function, wide)
        for inputs in (sample, mixed, wide):
            leaves = inputs.map(lambda tensor: tensor.clone())
            for leaf in leaves.tensors:
                leaf.requires_grad_(not sample.constant)
            with torch.autocast(device, dtype=dtype):
                results = call(function, leaves)
            assert all(map(same_bits, results, expected)), sample.name
            if not sample.constant:
                found = torch.autograd.grad(weighted_sum(results), leaves.tensors)
                rounded = [x.to(leaf.dtype) for x, leaf in zip(slopes, leaves.tensors, strict=True)]
                assert all(map(same_bits, found, rounded)), sample.name


def test_what_is_not_differentiable_says_so(op: str, device: str) -> None:
    leaves = SAMPLE_INPUTS[op](torch.float64, device)[1].map(lambda tensor: tensor.requires_grad_())
    result = numbers_of(call(native(op), leaves))[0]
    if leaves.constant:
        with pytest.raises(RuntimeError, match="does not require grad"):
            result.sum().backward()
    else:
        first = torch.autograd.grad(result.sum(), leaves.tensors, create_graph=True)
        with pytest.raises(RuntimeError, match=f"derivative for deepclust_ext::{op}_backward is not implemented"):
            torch.stack([gradient.sum() for gradient in first]).sum().backward()
    sample = SAMPLE_INPUTS[op](torch.float64, device)[1]
    with pytest.raises((RuntimeError, NotImplementedError)), torch.autograd.forward_ad.dual_level():
        call(
            native(op), sample.map(lambda tensor: torch.autograd.forward_ad.make_dual(tensor, torch.ones_like(tensor)))
        )


def test_gradients_under_torch_func(op: str, device: str) -> None:
    for sample in SAMPLE_INPUTS[op](torch.float64, device)[:4]:

        def loss(*tensors: Tensor, sample: Sample = sample) -> Tensor:
            results = numbers_of(call(native(op), sample.with_tensors(tensors)))
            weights = [torch.linspace(1, 2 + i, x.numel(), dtype=x.dtype).view(x.shape) for i, x in enumerate(results)]
            return torch.stack([(x * w.to(x.device)).sum() for x, w in zip(results, weights, strict=True)])

        def total(*tensors: Tensor) -> Tensor:
            return loss(*tensors).sum()

        places = tuple(range(len(sample.tensors)))
        if sample.constant:
            assert not any(x.any() for x in torch.func.grad(total, argnums=places)(*sample.tensors))
            continue
        leaves = sample.map(lambda tensor: tensor.clone().requires_grad_()).tensors
        expected = torch.autograd.grad(total(*leaves), leaves)
        assert all(map(same_bits, torch.func.grad(total, argnums=places)(*sample.tensors), expected)), sample.name
        rows = torch.func.jacrev(loss, argnums=places)(*sample.tensors)
        torch.testing.assert_close(tuple(row.sum(dim=0) for row in rows), expected)
        others = sample.map(lambda tensor: 2 * tensor + 0.1).tensors
        batch = [torch.stack(pair, dim=1) for pair in zip(sample.tensors, others, strict=True)]
        per_sample = torch.func.vmap(torch.func.grad(total, argnums=places), in_dims=1, randomness="same")(*batch)
        apart = [torch.func.grad(total, argnums=places)(*tensors) for tensors in (sample.tensors, others)]
        for both, *each in zip(per_sample, *apart, strict=True):
            assert same_bits(both, torch.stack(each)), sample.name


def test_what_torch_func_cannot_do_says_so(op: str, device: str) -> None:
    sample = SAMPLE_INPUTS[op](torch.float64, device)[1]

    def total(first: Tensor) -> Tensor:
        results = call(native(op), sample.with_tensors((first, *sample.tensors[1:])))
        return torch.stack([x.sum() for x in results if x.is_floating_point()]).sum()

    with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward-mode"):
        torch.func.jvp(total, sample.tensors[:1], sample.tensors[:1])
    if not sample.constant:
        with pytest.raises(RuntimeError, match=f"derivative for deepclust_ext::{op}_backward is not implemented"):
            torch.func.grad(lambda x: torch.func.grad(total)(x).sum())(sample.tensors[0])


def test_the_reference_drops_no_tangent(op: str, device: str) -> None:
    """Where results are constants a tangent is an error, as natively; elsewhere it is that of the gradient."""
    for sample in SAMPLE_INPUTS[op](torch.float64, device):

        def total(first: Tensor, sample: Any = sample) -> Tensor:
            results = call(by_reference(op), sample.with_tensors((first, *sample.tensors[1:])))
            return torch.stack([x.sum() for x in results if x.is_floating_point()]).sum()

        first = sample.tensors[0]
        if sample.constant:
            with pytest.raises(NotImplementedError, match=f"{op}: has no forward-mode derivative"):
                torch.func.jvp(total, (first,), (first,))
            with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
                total(forward_ad.make_dual(first, first))
        else:
            tangent = torch.func.jvp(total, (first,), (first,))[1]
            torch.testing.assert_close(tangent, (torch.func.grad(total)(first) * first).sum())


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta", "inference", "deterministic"], ids=str)
def test_defaults_of_torch(
    op: str, device: str, default: torch.dtype | str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    samples = SAMPLE_INPUTS[op](torch.float32, device)[1:4]
    expected = [call(native(op), sample) + gradients(native(op), sample) for sample in samples]
    before = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    try:
        if isinstance(default, torch.dtype):
            torch.set_default_dtype(default)
        torch.use_deterministic_algorithms(default == "deterministic")
        # A default device without memory: what does not name its own would end there.
        torch.set_default_device("meta" if default == "meta" else None)
        with torch.inference_mode(default == "inference"):
            results = [call(native(op), sample) for sample in samples]
        if default not in ("inference", "meta"):
            results = [x + gradients(native(op), sample) for x, sample in zip(results, samples, strict=True)]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before[0])
        torch.use_deterministic_algorithms(before[1])
    for ours, plain in zip(results, expected, strict=True):
        assert all(map(same_bits, ours, plain[: len(ours)]))


def test_gradient_only_where_asked(op: str, device: str) -> None:
    sample = SAMPLE_INPUTS[op](torch.float32, device)[2]
    if sample.constant:
        pytest.skip("its results are constants")
    for wanted in range(len(sample.tensors)):
        leaves = sample.map(lambda tensor: tensor.clone())
        leaves.tensors[wanted].requires_grad_()
        result = [result for result in call(native(op), leaves) if result.is_floating_point()]
        torch.stack([one.sum() for one in result]).sum().backward()
        assert [leaf.grad is not None for leaf in leaves.tensors] == [i == wanted for i in range(len(leaves.tensors))]


def test_empty_batch(op: str, device: str) -> None:
    for dtype in SUPPORTED_DTYPES:
        sample = SAMPLE_INPUTS[op](dtype, device)[0].without_rows()
        for ours, expected in zip(call(native(op), sample), call(by_reference(op), sample), strict=True):
            assert torch.equal(ours, expected)
            assert ours.dtype == expected.dtype
        assert all(gradient.shape == sample.tensors[0].shape for gradient in gradients(native(op), sample))


def test_pybind_entry_is_the_same_op(op: str, device: str) -> None:
    from deepclust_ext import _C

    sample = SAMPLE_INPUTS[op](torch.float32, device)[2]
    arguments = schema_arguments(op, sample)
    direct = in_a_list(op, getattr(_C, op))(*sample.args, **arguments)
    dispatched = in_a_list(op, getattr(torch.ops.deepclust_ext, op))(*sample.args, **arguments)
    assert all(map(same_bits, direct, dispatched))


def test_reference_runs_without_native_kernels(op: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    for sample in SAMPLE_INPUTS[op](torch.float32, device)[:3]:
        for ours, expected in zip(call(native(op), sample), call(by_reference(op), sample), strict=True):
            assert same_bits(ours, expected)
