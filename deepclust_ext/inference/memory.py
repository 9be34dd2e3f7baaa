"""Reuse of the CPU's memory from one batch to the next."""

from collections.abc import Iterator
from contextlib import contextmanager

from deepclust_ext import _extension


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep what tensors on the CPU free, for the next ones, as long as the context lasts.

    Without it the C library returns the large activations of a network to the system, which hands them out again page
    by page. This takes up to a fifth of a training step of a ResNet. Trainer and the loop over all images enter the
    context by themselves; a loop of your own gains by it too. All results are the same.

    Used and kept memory together never exceed what tensors used at once since the context began. At its end all kept
    memory goes back. Only blocks of at least 1 MiB are kept, those of all threads. Contexts may be nested. Without the
    native library it does nothing.

    Example:
        >>> import torch
        >>> with reused_memory():
        ...     total = sum(float(torch.ones(2**20).sum()) for _ in range(3))
        >>> total
        3145728.0
    """
    if not _extension.NATIVE_DEVICES:
        yield
        return
    import deepclust_ext._C

    deepclust_ext._C.reuse_memory(True)
    try:
        yield
    finally:
        deepclust_ext._C.reuse_memory(False)
