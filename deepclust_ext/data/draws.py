"""Random numbers by image: a part of a batch gets the numbers that it would have in the whole batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor, nn


class Part(NamedTuple):
    """Which part of a batch this rank's images are."""

    start: int
    total: int  # images of the whole batch


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def part_of_batch(start: int, total: int) -> Iterator[None]:
    """Let views draw for a batch of ``total`` images and keep the numbers of those from ``start`` on.

    So generators advance as for the whole batch, and an image has the same view whichever rank holds the others.
    """
    token = _part.set(Part(start, total))
    try:
        yield
    finally:
        _part.reset(token)


def drawn(numbers: Callable[[int], Tensor], count: int, dim: int = 0) -> Tensor:
    """Return random numbers for ``count`` images.

    Args:
        numbers: Draws the numbers for a given number of images.
        count: Number of images.
        dim: Dimension of the images in the result of ``numbers``.

    Raises:
        ValueError: If this rank's part ends beyond the batch.
    """
    part = _part.get()
    if part is None:
        return numbers(count)
    if part.start + count > part.total:
        raise ValueError(
            f"images: expected at most {part.total - part.start} from {part.start} on in a batch of {part.total}, "
            f"got {count}"
        )
    return numbers(part.total).narrow(dim, part.start, count)


def draws_by_image(view: Any) -> bool:
    """Return whether a view draws only with :func:`drawn`, or nothing; its attribute ``draws_by_image`` says so."""
    if isinstance(view, nn.Sequential):
        return all(map(draws_by_image, view))
    return getattr(view, "draws_by_image", False) is True
