"""The contrastive loss on two ranks against one process, and against gathering and the dense form, as lightly does it.

    python -m benchmarks.ranks

Ranks are processes on this machine, connected by gloo, with one thread each; the one process has as many threads as
there are ranks, and the same rows in all. Every provider is first checked: the mean over the ranks of its loss, and of
the gradients of their rows, has to be that of one process with the whole batch. A time is the median over rounds of the
slowest rank's, forward and backward, from a barrier on. Memory is by how much the peak of a rank rises above what was
resident before the call, inputs not counted; in processes of their own, since memory that is counted is handed out page
by page, which takes time.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.memory import peak_resident_bytes, reset_peak, start_server
from deepclust_ext import distributed, fused_contrastive_loss

TEMPERATURE = 0.5
ROUNDS = 9
TOLERANCE = 1e-4  # of gradients, relative to the largest
SMALL_ROWS = 64  # of a warm-up

Loss = Callable[[Tensor, Tensor], Tensor]


def ours(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return our loss over all ranks."""
    loss: Tensor = distributed.fused_contrastive_loss(z_a, z_b, temperature=TEMPERATURE)
    return loss


def gathered_and_dense(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return lightly's loss over all ranks."""
    from lightly.loss.ntx_ent_loss import NTXentLoss

    loss: Tensor = NTXentLoss(temperature=TEMPERATURE, gather_distributed=True)(z_a, z_b)
    return loss


PROVIDERS: dict[str, Loss] = {"ours": ours, "lightly": gathered_and_dense}


@dataclass(frozen=True)
class Measured:
    """What a provider took, on its slowest or largest rank; no time where memory is measured, and the reverse."""

    seconds: float
    megabytes: float


def measure(provider: str, ranks: int, rows: int, dims: int, rounds: int = ROUNDS) -> Measured:
    """Check a provider for so many rows of each view, shared out over ranks, and time it, or without rounds its memory.

    Raises:
        RuntimeError: A rank ended without a result, or the results are wrong.
    """
    context = multiprocessing.get_context("spawn") if rounds else start_server()
    store = Path(tempfile.mkdtemp(), "store")
    pipes, processes = [], []
    for rank in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (sender, str(store), rank, ranks, provider, rows, dims, rounds)
        process = context.Process(target=work, args=arguments)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        answers = [pipe.recv() for pipe in pipes]
    except EOFError:
        raise RuntimeError(f"{provider}: a rank ended without a result") from None
    finally:
        for process in processes:
            process.join()
    for answer in answers:
        if isinstance(answer, str):
            raise RuntimeError(f"{provider}: {answer}")
    times = [max(of_ranks) for of_ranks in zip(*(times for times, _ in answers), strict=True)]
    return Measured(statistics.median(times) if times else 0.0, max(peak for _, peak in answers) / 1e6)


def work(
    sender: Connection, store: str, rank: int, ranks: int, provider: str, rows: int, dims: int, rounds: int
) -> None:
    """Be one rank: send the seconds of all rounds and the bytes of one call, or what is wrong."""
    threads = 2 if ranks == 1 else 1
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)  # type: ignore[attr-defined]
    loss = PROVIDERS[provider]
    run(loss, *inputs_of(SMALL_ROWS, dims, rank, ranks))
    fault = fault_of(loss, min(rows, 512), dims, rank, ranks)
    if fault:
        sender.send(fault)
        return
    views = inputs_of(rows, dims, rank, ranks)
    before = reset_peak()
    run(loss, *views)
    grown = peak_resident_bytes() - before
    times = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        run(loss, *views)
        times.append(time.perf_counter() - start)
    dist.barrier()
    dist.destroy_process_group()
    sender.send((times, grown))


def inputs_of(rows: int, dims: int, rank: int, ranks: int) -> list[Tensor]:
    """Return a rank's part of both views."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(rows, dims, generator=generator)
    second = first + torch.randn(rows, dims, generator=generator)
    return [view.tensor_split(ranks)[rank].clone().requires_grad_() for view in (first, second)]


def run(loss: Loss, z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return the loss, forward and backward."""
    z_a.grad = z_b.grad = None
    value = loss(z_a, z_b)
    value.backward()
    return value.detach()


def fault_of(loss: Loss, rows: int, dims: int, rank: int, ranks: int) -> str:
    """Return what is wrong with a provider's loss and gradients, empty if nothing is; the same on all ranks."""
    own, whole = inputs_of(rows, dims, rank, ranks), inputs_of(rows, dims, 0, 1)
    value = distributed.sum_over_ranks(run(loss, *own)) / ranks
    expected = run(lambda a, b: fused_contrastive_loss(a, b, temperature=TEMPERATURE), *whole)
    error = torch.zeros(2, dtype=torch.float64)
    error[0] = (value - expected).abs() / expected
    for mine, all_rows in zip(own, whole, strict=True):
        assert mine.grad is not None
        assert all_rows.grad is not None
        wanted = all_rows.grad.tensor_split(ranks)[rank]
        error[1] = max(float(error[1]), float((mine.grad / ranks - wanted).abs().max() / all_rows.grad.abs().max()))
    loss_error, gradient_error = distributed.sum_over_ranks(error).tolist()
    if loss_error < TOLERANCE and gradient_error < TOLERANCE:
        return ""
    return f"loss off by {loss_error:.2g}, gradients by {gradient_error:.2g} of what one process has"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048, help="of each view, of all ranks (default: 2048)")
    parser.add_argument("--memory-rows", type=int, default=16384, help="the same for memory (default: 16384)")
    parser.add_argument("--dims", type=int, default=128)
    options = parser.parse_args(arguments)
    rows, dims = options.rows, options.dims
    one, two = measure("ours", 1, rows, dims), measure("ours", 2, rows, dims)
    print(f"{rows} rows of each view, {dims} features, forward and backward")
    print(f"  one process, 2 threads   {one.seconds * 1e3:8.1f} ms")
    print(f"  2 ranks, 1 thread each   {two.seconds * 1e3:8.1f} ms   {two.seconds / one.seconds:.2f} times")
    mine, dense = (measure(provider, 2, 2 * rows, dims) for provider in ("ours", "lightly"))
    mine_memory, dense_memory = (measure(provider, 2, 2 * rows, dims, rounds=0) for provider in ("ours", "lightly"))
    print(f"{rows} rows of each view on each of 2 ranks")
    print(f"  ours                     {mine.seconds * 1e3:8.1f} ms   {mine_memory.megabytes:8.1f} MB a rank")
    print(f"  lightly, gathered        {dense.seconds * 1e3:8.1f} ms   {dense_memory.megabytes:8.1f} MB a rank")
    print(f"                           {dense.seconds / mine.seconds:8.1f} times")
    many = options.memory_rows
    one, two = measure("ours", 1, many, dims, rounds=0), measure("ours", 2, many, dims, rounds=0)
    print(f"{many} rows of each view: peak memory of a process")
    print(f"  one process              {one.megabytes:8.1f} MB")
    print(f"  2 ranks                  {two.megabytes:8.1f} MB   {two.megabytes / one.megabytes:.2f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
