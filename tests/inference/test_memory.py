"""Blocks of the CPU's memory that serve one tensor after the other."""

import ctypes
import gc
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from deepclust_ext import _extension
from deepclust_ext.inference import map_images, reused_memory
from tests.training.runs import make_trainer

MIB = 2**20
LARGE = 64  # MiB: the C library gives blocks of this size back to the system, and fresh ones are of zeros

pytestmark = pytest.mark.skipif(not _extension.NATIVE_DEVICES, reason="without the native library nothing is reused")


class Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [("before", 3 * ctypes.c_size_t), ("hblks", ctypes.c_size_t), ("after", 6 * ctypes.c_size_t)]


def block(mebibytes: float) -> Tensor:
    return torch.empty(int(mebibytes * MIB), dtype=torch.uint8)


def mapped_blocks() -> int:
    """Return how many blocks the C library has mapped one by one; those go back to the system when they are freed."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    return int(mallinfo().hblks)


@pytest.fixture(autouse=True)
def full_heap() -> list[Tensor]:
    """Take what earlier tests have left free in the heap: the C library would serve large blocks from there too."""
    held = list[Tensor]()
    if hasattr(ctypes.CDLL(None), "mallinfo2"):  # since glibc 2.33
        gc.collect()
        mapped = mapped_blocks()
        while mapped_blocks() == mapped and len(held) < 64:
            held.append(block(33))
        held.pop()  # the one that was mapped
    return held  # which the fixture keeps until the test ends


def is_used(memory: Tensor) -> bool:
    """Return whether a block holds what a tensor before has left in it."""
    return bool(memory[MIB // 2] == 7)


def is_reused(mebibytes: float = LARGE) -> bool:
    """Return whether a tensor that is freed leaves its memory to one of another size."""
    block(LARGE).fill_(7)
    return is_used(block(mebibytes))


def resident_mebibytes() -> float:
    """Return what is in use: what others have freed may still be resident, and a block could lie there unseen."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


@pytest.mark.parametrize(("mebibytes", "expected"), [(LARGE, True), (57, True), (55, False), (65, False)])
def test_a_freed_block_serves_a_tensor_that_needs_nearly_all_of_it(mebibytes: int, expected: bool) -> None:
    with reused_memory():
        assert is_reused(mebibytes) == expected


def test_nothing_is_reused_outside() -> None:
    assert not is_reused()
    with reused_memory():
        with reused_memory():
            pass
        assert is_reused()
    assert not is_reused()
    with pytest.raises(ZeroDivisionError), reused_memory():
        print(1 / 0)
    assert not is_reused()


def test_no_more_is_resident_than_was_in_use_at_once() -> None:
    start = resident_mebibytes()
    with reused_memory():
        first, second = block(64).fill_(1), block(48).fill_(1)
        del first  # is kept: 112 MiB were in use
        grown = resident_mebibytes() - start
        assert 104 < grown < 120
        third = block(60).fill_(1)  # in the place of the first
        fourth = block(100).fill_(1)  # 208 are in use
        assert resident_mebibytes() - start < 48 + 64 + 100 + 8
        del second, third, fourth
        assert resident_mebibytes() - start > 200  # all are kept
        large = block(150).fill_(1)  # goes before all but the last 58 at most
        assert resident_mebibytes() - start < 212 + 8
        del large
    assert resident_mebibytes() - start < 8


def test_memory_that_the_c_library_holds_back_is_not_counted() -> None:
    block(31)  # the C library from now on keeps up to twice as much at the end of its heap
    parts = [block(1 / 4).fill_(1) for _ in range(240)]
    del parts
    start = resident_mebibytes()
    first = block(48).fill_(1)
    assert resident_mebibytes() - start > 40
    del first


def test_a_tensor_outlives_the_context() -> None:
    start = resident_mebibytes()
    with reused_memory():
        kept = block(LARGE).fill_(7)
    assert is_used(kept)
    assert resident_mebibytes() - start > LARGE - 8
    del kept
    assert resident_mebibytes() - start < 8


def test_storages_grow_and_are_shared_as_before() -> None:
    with reused_memory():
        memory = block(2).fill_(7)
        memory.resize_(8 * MIB)
        assert is_used(memory)
        array = memory.numpy()
        del memory
        assert not is_used(block(8)) or array[0] == 7
        assert (array[: 2 * MIB] == 7).all()
        shared = torch.from_numpy(array).clone().share_memory_()
        assert is_used(shared)


def test_threads_never_get_the_same_block() -> None:
    wrong = []

    def work(number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        held: list[Tensor] = []
        for size in torch.randint(MIB, 3 * MIB, (300,), generator=generator).tolist():
            held.append(torch.full((size,), number, dtype=torch.uint8))
            if len(held) > 4:
                first = held.pop(0)
                if not (first == number).all():
                    wrong.append(number)

    with reused_memory():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_fork_beside_busy_threads_can_allocate() -> None:
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            block(2)

    with reused_memory():
        thread = threading.Thread(target=work)
        thread.start()
        try:
            children = []
            for _ in range(30):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)  # ends a child that waits for ever
                    block(2)
                    os._exit(0)
                children.append(child)
            assert [os.waitpid(child, 0)[1] for child in children] == [0] * 30
        finally:
            done.set()
            thread.join()


def test_the_profiler_counts_what_is_reused() -> None:
    with reused_memory():
        block(LARGE)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            memory = block(LARGE)
            del memory
    sizes = [event.self_cpu_memory_usage for event in seen.key_averages()]
    assert max(sizes) == LARGE * MIB
    assert min(sizes) == -LARGE * MIB


def test_too_much_is_torchs_error_and_nothing_is_lost() -> None:
    with reused_memory():
        memory = block(LARGE).fill_(7)
        with pytest.raises(RuntimeError, match="allocate"):
            block(2**40)
        assert is_used(memory)
        del memory
        assert is_reused()


def test_images_are_embedded_and_methods_trained_with_it(tmp_path: Path) -> None:
    seen = []

    def look(images: Tensor) -> tuple[Tensor, ...]:
        seen.append(is_reused())
        return (images,)

    def look_after_epoch(record: dict[str, float]) -> dict[str, float]:
        seen.append(is_reused())
        return {}

    map_images(look, TensorDataset(torch.rand(4, 1, 2, 2)), batch_size=2)
    make_trainer(tmp_path).fit(after_epoch=look_after_epoch)
    assert seen == [True] * len(seen)
    assert len(seen) > 2
    assert not is_reused()
