"""Batches of a data set, loaded ahead by worker processes if there are any."""

import signal
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from deepclust_ext.inference.images import IndexedImages


class _Safe(Dataset[Any]):
    """Images whose errors are returned as batches; torch would put a worker's traceback into the message."""

    def __init__(self, images: IndexedImages) -> None:
        self._images = images

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return self._images.collate(self._images.__getitems__(indices))
        except Exception as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


class Loader:
    """Batches of a data set, at each call in another order.

    Images are loaded on the CPU, whatever torch's default device is: a process that loads cannot use a GPU. Each worker
    loads two batches ahead. Their random numbers are seeded from torch's global generator, one number for each call.

    Args:
        images: The data set.
        num_workers: Processes that load images; with 0 this process loads them when they are needed.
        device: Where batches go; for CUDA they are in pinned memory.
        stay: Whether workers wait for the next call instead of ending. Use it only if images are the same at every
            reading: the random numbers of a worker that stays depend on what it has done before.
    """

    def __init__(
        self,
        images: IndexedImages,
        *,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        stay: bool = False,
    ) -> None:
        self._order: list[list[int]] = []
        self._generator = torch.Generator("cpu")
        with torch.device("cpu"):
            self._loader = DataLoader(
                _Safe(images),
                batch_sampler=self._order,
                collate_fn=_as_it_is,
                num_workers=num_workers,
                pin_memory=torch.device(device).type == "cuda",
                persistent_workers=stay and num_workers > 0,
                generator=self._generator,
            )

    def batches(self, order: Iterable[list[int]]) -> Generator[tuple[Any, Any], None, None]:
        """Yield what the data set's ``collate`` returns for each batch.

        Args:
            order: The places of the images of each batch.
        """
        self._order[:] = order
        # Torch's loader would take a number only where it starts workers: a resumed run would have others.
        self._generator.manual_seed(int(torch.empty((), dtype=torch.int64, device="cpu").random_()))
        loading = batch = None
        try:
            # A worker that is interrupted while it begins would be missed: they begin without the signal, which waits
            # here, and this process ends them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                with torch.device("cpu"):
                    loading = iter(self._loader)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            while True:
                with torch.device("cpu"):
                    batch = next(loading, None)
                if batch is None:
                    return
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except BaseException as error:
            # Else torch's frames would keep its workers alive for as long as anybody keeps the error.
            raise error.with_traceback(None) from error.__cause__
        finally:
            del loading, batch  # an error among them, whose frame is this one
