"""Blocks of rows that go round: which meet, and what comes back."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext.distributed import Shards, ring, shards_of
from deepclust_ext.distributed.ring import Ring, turns_of
from tests.distributed.pool import PerRank, Pool

SIZES = [(1,), (5, 5), (1, 8), (4, 0, 7), (3, 1, 6, 2), (0, 0), (2, 3, 0, 1, 9), (1, 1, 1, 1, 1, 1), (2500, 30)]
all_sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)


def meetings_of(sizes: tuple[int, ...], for_guests: bool = False) -> list[list[tuple[range, range]]]:
    """Return for each turn the samples, counted over all ranks, that meet at each rank, as the two ranks tell them."""
    turns = [turns_of(Shards(sizes, rank), for_guests) for rank in range(len(sizes))]
    assert len({len(of_rank) for of_rank in turns}) == 1
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    found = []
    for in_turn in zip(*turns, strict=True):
        met = []
        for rank, turn in enumerate(in_turn):
            guest = in_turn[turn.guest]
            assert guest.host == rank
            assert guest.sent.stop - guest.sent.start == turn.guests <= ring.BLOCK
            own, theirs = (
                range(start + span.start, start + span.stop)
                for start, span in ((starts[rank], turn.own), (starts[turn.guest], guest.sent))
            )
            met.append((own, theirs))
        found.append(met)
    return found


@all_sizes
def test_samples_of_two_ranks_meet_once(sizes: tuple[int, ...]) -> None:
    total = sum(sizes)
    met = torch.zeros(total, total, dtype=torch.int64)
    for in_turn in meetings_of(sizes):
        for own, theirs in in_turn:
            met[own.start : own.stop, theirs.start : theirs.stop] += 1
    expected = torch.ones_like(met) - torch.block_diag(*(torch.ones(size, size, dtype=torch.int64) for size in sizes))
    assert torch.equal(met + met.T, expected)


@all_sizes
def test_samples_meet_all_of_each_other_rank_where_hosts_work_for_guests(sizes: tuple[int, ...]) -> None:
    total = sum(sizes)
    met = torch.zeros(total, total, dtype=torch.int64)
    for in_turn in meetings_of(sizes, for_guests=True):
        for own, theirs in in_turn:
            met[own.start : own.stop, theirs.start : theirs.stop] += 1
    within = torch.block_diag(*(torch.ones(size, size, dtype=torch.int64) for size in sizes))
    assert torch.equal(met, 1 - within)


@pytest.mark.parametrize("ranks", range(2, 8))
def test_ranks_of_one_size_have_as_many_pairs_each(ranks: int) -> None:
    counts = [0] * ranks
    for in_turn in meetings_of((1024,) * ranks):
        for rank, (own, theirs) in enumerate(in_turn):
            counts[rank] += len(own) * len(theirs)
    assert set(counts) == {1024 * 1024 * (ranks - 1) // 2}


def test_blocks_of_one_turn_are_of_one_size() -> None:
    """Where two ranks share their pairs, the half of one meets the whole of the other, in as many turns."""
    turns = meetings_of((4096, 4096))
    assert [[(len(own), len(theirs)) for own, theirs in turn] for turn in turns] == [[(4096, 512), (2048, 1024)]] * 4
    assert all(first[0][1].stop == second[0][1].start for first, second in pairwise(turns))


def sent_round(group: Any, rows: Tensor, block: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return what came, and the sums over what hosts answered, for the row itself and for twice the row."""
    ring.BLOCK = block
    try:
        once, twice = torch.zeros_like(rows), torch.zeros_like(rows)
        came = []
        for turn, (guests,) in (round_trip := Ring([[rows, -rows]], shards_of(rows, group), group)):
            assert torch.equal(guests[0], -guests[1])
            came.append(guests[0].clone())
            first, second = round_trip.answer(turn, [guests, 2 * guests])
            once[turn.sent] += first[0]
            twice[turn.sent] -= second[1]
    finally:
        ring.BLOCK = 1024
    return came, once, twice


@pytest.mark.parametrize("block", [2, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "sizes"), [(2, (5, 5)), (3, (4, 0, 7)), ("odd", (1, 8)), (4, (3, 1, 6, 2))], ids=str)
def test_blocks_come_and_answers_return(
    pool: Pool,
    ranks: int | str,
    sizes: tuple[int, ...],
    block: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring, "BLOCK", block)
    rows = torch.randn(sum(sizes), 3).to(dtype)
    own = PerRank(rows.split(sizes))
    answers = pool.run(sent_round, own, block, ranks=ranks)
    for rank, (came, once, twice) in enumerate(answers):
        turns = turns_of(Shards(sizes, rank))
        for index, (x, turn) in enumerate(zip(came, turns, strict=True)):
            theirs = turns_of(Shards(sizes, turn.guest))[index]
            assert torch.equal(x, own[turn.guest][theirs.sent])
        sent = torch.zeros(sizes[rank], 1)
        for turn in turns:
            sent[turn.sent] += 1
        torch.testing.assert_close(once, (own[rank] * sent).to(dtype))
        torch.testing.assert_close(twice, (2 * own[rank] * sent).to(dtype))
