"""What only a GPU can show: that ops run on the current stream and on their tensors' device, and never wait."""

import pytest
import torch

from tests.helpers import same_bits
from tests.ops.opsamples import SAMPLE_INPUTS
from tests.ops.test_all_ops import call, gradients, native

OPS = sorted(SAMPLE_INPUTS)
CYCLES = 100_000_000  # tens of milliseconds, much longer than the copies and kernels that must wait for them


@pytest.mark.parametrize("op", OPS)
def test_work_goes_to_the_current_stream(op: str) -> None:
    sample = SAMPLE_INPUTS[op](torch.float32, "cuda")[3]
    expected = call(native(op), sample) + gradients(native(op), sample)
    late = sample.map(torch.zeros_like)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(CYCLES)
        for target, source in zip(late.tensors, sample.tensors, strict=True):
            target.copy_(source)
        results = call(native(op), late) + gradients(native(op), late)
    torch.cuda.synchronize()
    assert all(map(same_bits, results, expected))


@pytest.mark.parametrize("op", OPS)
def test_no_op_waits_for_the_device(op: str) -> None:
    sample = SAMPLE_INPUTS[op](torch.float32, "cuda")[3]
    leaves = sample.map(lambda tensor: tensor.clone().requires_grad_())

    def run() -> None:
        results = [result for result in call(native(op), leaves) if result.is_floating_point()]
        torch.autograd.grad(results, leaves.tensors, [torch.ones_like(result) for result in results])

    run()  # the first time the driver loads kernels and torch takes memory from it, which may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(CYCLES)
        asleep = torch.cuda.Event()
        asleep.record()
        run()
        assert not asleep.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", OPS)
def test_an_op_can_be_captured_in_a_graph(op: str) -> None:
    sample = SAMPLE_INPUTS[op](torch.float32, "cuda")[3]
    expected = call(native(op), sample)
    static = sample.map(torch.zeros_like)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(native(op), static)
    for target, source in zip(static.tensors, sample.tensors, strict=True):
        target.copy_(source)
    for _ in range(2):  # an op that leaves state behind shows in the second run
        graph.replay()
        assert all(map(same_bits, results, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("op", OPS)
def test_work_goes_to_the_device_of_the_tensors(op: str) -> None:
    first, second = (SAMPLE_INPUTS[op](torch.float32, f"cuda:{index}")[3] for index in range(2))
    expected = call(native(op), first) + gradients(native(op), first)
    with torch.cuda.device(0):
        results = call(native(op), second) + gradients(native(op), second)
        assert torch.cuda.current_device() == 0
    assert {str(result.device) for result in results} == {"cuda:1"}
    assert all(same_bits(result.cpu(), one.cpu()) for result, one in zip(results, expected, strict=True))
