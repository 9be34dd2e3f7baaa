"""Batches of a data set: workers that stay or not, what they load ahead, and random numbers that nobody else misses."""

import os
import signal
import time
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from deepclust_ext.inference import IndexedImages, Loader
from tests.helpers import loading_processes


class Watched(Dataset[Any]):
    """Images that hold the process which loads them, a random number and their place; counts what was loaded."""

    def __init__(self) -> None:
        self.count = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        if index == 39:
            raise OSError("cut off")
        self.count += 1
        return torch.tensor([os.getpid(), float(torch.rand(())), index], dtype=torch.float64).view(3, 1, 1)


ORDER = [[place, place + 1] for place in range(0, 38, 2)]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("stay", [False, True])
def test_workers_stay_and_orders_follow_each_other(num_workers: int, stay: bool) -> None:
    loader = Loader(IndexedImages(Watched()), num_workers=num_workers, stay=stay)
    processes = []
    for order in (ORDER, ORDER[::-1], ORDER[:3]):
        batches = list(loader.batches(order))
        assert [places.tolist() for _, places in batches] == order
        assert [images[:, 2, 0, 0].tolist() for images, _ in batches] == order
        processes.append({int(images[0, 0, 0, 0]) for images, _ in batches})
    if num_workers:
        assert os.getpid() not in processes[0]
        assert len(processes[0]) == num_workers
        assert (processes[0] == processes[1] == processes[2]) == stay
    else:
        assert processes == [{os.getpid()}] * 3
    del loader
    assert not loading_processes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_ends_early(num_workers: int) -> None:
    loader = Loader(IndexedImages(Watched()), num_workers=num_workers, stay=True)
    with closing(loader.batches(ORDER)) as batches:
        next(batches)
    assert [places.tolist() for _, places in loader.batches(ORDER[::-1])] == ORDER[::-1]
    with pytest.raises(ValueError, match="^data, image 39: expected an image that can be read, got OSError: cut off$"):
        list(loader.batches([[38, 39], *ORDER]))
    assert [places.tolist() for _, places in loader.batches(ORDER)] == ORDER
    del loader
    assert not loading_processes()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_two_batches_for_each_worker_are_loaded_ahead(num_workers: int) -> None:
    data = Watched()
    with closing(Loader(IndexedImages(data), num_workers=num_workers).batches(ORDER)) as batches:
        next(batches)
        deadline = time.monotonic() + 30
        while int(data.count) < 2 * (1 + 2 * num_workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert int(data.count) == 2 * (1 + 2 * num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stay", [False, True])
def test_an_epoch_takes_one_of_torch_s_numbers(num_workers: int, stay: bool) -> None:
    torch.manual_seed(0)
    for _ in range(2):
        list(DataLoader(TensorDataset(torch.zeros(4))))  # torch's own loader makes anew at each epoch
    expected = torch.rand(())
    data = IndexedImages(TensorDataset(torch.zeros(40, 1, 2, 2)))
    loader = Loader(data, num_workers=num_workers, stay=stay)
    torch.manual_seed(0)
    for _ in range(2):
        list(loader.batches(ORDER))
    assert torch.rand(()) == expected


class Interruptible(Watched):
    """Images that say whether the process which loads them has put off its interruption."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((1, 1, 1), signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_are_ended_by_the_run_alone(num_workers: int) -> None:
    loader = Loader(IndexedImages(Interruptible()), num_workers=num_workers)
    assert all(images.all() == (num_workers > 0) for images, _ in loader.batches(ORDER))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_torch_s_seed_decides_the_numbers_of_workers() -> None:
    loader = Loader(IndexedImages(Watched()), num_workers=2)
    numbers = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        numbers.append(torch.cat([images for images, _ in loader.batches(ORDER)])[:, 1, 0, 0])
    first, again, other = numbers
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batches_for_cuda_are_pinned() -> None:
    images = IndexedImages(Watched())
    assert Loader(images, device="cuda")._loader.pin_memory
    assert Loader(images, device=torch.device("cuda", 1))._loader.pin_memory
    assert not Loader(images)._loader.pin_memory
