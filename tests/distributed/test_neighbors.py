"""Nearest neighbors in a bank that is shared out against one process with the whole bank."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext import nearest_neighbors
from deepclust_ext.distributed import nearest_neighbors as over_ranks
from tests.distributed.pool import PerRank, Pool
from tests.helpers import same_bits

#: Queries and rows of the bank of each rank.
SHARDS = [
    (1, [3], [9]),
    (2, [3, 2], [5, 5]),
    (3, [0, 4, 1], [7, 0, 2]),
    ("odd", [2, 2], [1, 90]),
    (4, [1] * 4, [4] * 4),
]
shards = pytest.mark.parametrize(("ranks", "queries", "rows"), SHARDS, ids=str)


def found(group: Any, query: Tensor, bank: Tensor, k: int, exclude: Tensor | None, valid: Tensor | None) -> Any:
    return over_ranks(query, bank, k=k, exclude=exclude, valid=valid, process_group=group)


def run(
    pool: Pool,
    ranks: int | str,
    queries: list[int],
    rows: list[int],
    query: Tensor,
    bank: Tensor,
    k: int,
    exclude: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    of_queries = [x if x is None else PerRank(x.split(queries)) for x in (query, exclude)]
    of_rows = [x if x is None else PerRank(x.split(rows)) for x in (bank, valid)]
    answers = pool.run(found, of_queries[0], of_rows[0], k, of_queries[1], of_rows[1], ranks=ranks)
    cosines, indices = zip(*answers, strict=True)
    return torch.cat(cosines), torch.cat(indices)


@shards
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_neighbors_are_those_of_one_process_to_the_bit(
    pool: Pool, ranks: int | str, queries: list[int], rows: list[int], dtype: torch.dtype, k: int
) -> None:
    query, bank = torch.randn(sum(queries), 5).to(dtype), torch.randn(sum(rows), 5).to(dtype)
    bank[-1] = bank[0]  # a tie between ranks
    exclude = torch.randint(-1, len(bank), (len(query),))
    valid = torch.rand(len(bank)) > 0.2
    bank[~valid] = torch.nan
    for with_masks in (False, True):
        own_bank = bank if with_masks else bank.nan_to_num()
        masks = (exclude, valid) if with_masks else (None, None)
        expected = nearest_neighbors(query, own_bank, k=k, exclude=masks[0], valid=masks[1])
        got = run(pool, ranks, queries, rows, query, own_bank, k, *masks)
        assert same_bits(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("where", ["query", "bank"])
def test_what_is_not_finite_is_as_in_one_process(pool: Pool, where: str) -> None:
    query, bank = torch.randn(4, 5), torch.randn(6, 5)
    (query if where == "query" else bank)[1, 2] = torch.nan
    expected = nearest_neighbors(query, bank, k=3)
    got = run(pool, 2, [2, 2], [3, 3], query, bank, 3)
    assert same_bits(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def wrong(group: Any, query: Tensor, bank: Tensor) -> None:
    with pytest.raises(ValueError, match="k: expected 1 to 256, got 0"):
        over_ranks(query, bank, k=0, process_group=group)
    with pytest.raises(ValueError, match="bank: expected shape"):
        over_ranks(query, bank[:, 1:], k=1, process_group=group)


def test_errors_are_those_of_the_op(pool: Pool) -> None:
    pool.run(wrong, torch.randn(3, 4), torch.randn(3, 4), ranks=2)
