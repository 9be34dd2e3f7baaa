"""nearest_neighbors: the k rows of a bank nearest to each query by cosine, without any B x M matrix."""

import torch
from torch import Tensor

from deepclust_ext import _extension, reference
from deepclust_ext.ops._checks import check_integer, check_query_and_bank, check_rows_of_bank

#: The most neighbors of a query.
MAX_NEIGHBORS = 256


def nearest_neighbors(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    k: int,
    exclude: Tensor | None = None,  # (B,) int64
    valid: Tensor | None = None,  # (M,) bool
) -> tuple[Tensor, Tensor]:
    r"""Find the k rows of a bank that are nearest to each query by cosine, without any B x M matrix.

    .. math::
        cosine(q, x) = q \cdot x / (\max(|q|, 10^{-12}) \max(|x|, 10^{-12}))

    The bank is streamed. Beyond inputs and outputs, the CPU takes memory of the order of B k and a tile for every
    thread; CUDA also takes a copy of the rows in the form that its tensor cores read. Ties go to the lowest index, and
    results do not depend on the number of threads. On CUDA up to 512 rows with nearly equal cosines are compared by
    exact cosines. If there are more, any of the rows may be taken that rounding cannot distinguish from the nearest.

    Half-precision inputs are computed in float32; under autocast inputs are cast to float32. The results are
    constants: they never require a gradient, so ``backward`` through them alone raises ``RuntimeError``.

    Args:
        query: Rows (B, D), float16, bfloat16, float32 or float64; D > 0. B may be 0.
        bank: Rows (M, D) of the same dtype and device. M may be 0.
        k: How many neighbors, 1 to 256.
        exclude: For every query the index of one row of the bank that must not be among its neighbors, such as its own
            entry, int64; -1 for none. An index that is no row of the bank is an error on the CPU. On CUDA and in
            compiled code, where checking would wait for the device, it excludes nothing.
        valid: Which rows of the bank count, bool; by default all. The others may hold anything, even NaN.

    Returns:
        The pair of cosines (B, k), in the input dtype, descending, and indices (B, k) int64 of rows of the bank. If
        there are fewer than k candidates, the remaining places have cosine -inf and index -1. A query with a NaN or Inf
        gets cosines NaN and indices -1; a NaN or Inf in a valid row of the bank does this to all queries.

    Raises:
        TypeError: An argument is of the wrong type or dtype.
        ValueError: A shape, device or number does not fit.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
        >>> cosines, indices = nearest_neighbors(bank[:2], bank, k=2, exclude=torch.tensor([0, 1]))
        >>> indices.tolist()
        [[1, 2], [2, 0]]
        >>> cosines
        tensor([[0.6000, 0.0000],
                [0.8000, 0.6000]])

    Source: the neighbors of HaDis, https://arxiv.org/abs/2401.14038.
    """
    k = check_neighbors(query, bank, k, exclude, valid)
    check_rows_of_bank(exclude, len(bank))
    if not _extension.uses_native(query.device.type):
        return reference.nearest_neighbors(query, bank, k=k, exclude=exclude, valid=valid)
    cosines, indices = torch.ops.deepclust_ext.nearest_neighbors.default(query, bank, k, exclude, valid)
    return cosines, indices


def check_neighbors(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    k: int,
    exclude: Tensor | None,  # (B,)
    valid: Tensor | None,  # (M,)
) -> int:
    """Raise the errors of the contract, except for the values of ``exclude``; return k."""
    check_query_and_bank(query, bank, exclude, valid)
    return check_integer(k, "k", 1, MAX_NEIGHBORS)


def _fake(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    k: int,
    exclude: Tensor | None = None,  # (B,)
    valid: Tensor | None = None,  # (M,)
) -> tuple[Tensor, Tensor]:
    check_neighbors(query, bank, k, exclude, valid)
    shape = (query.shape[0], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


if _extension.NATIVE_DEVICES:
    torch.library.register_fake("deepclust_ext::nearest_neighbors", _fake)
