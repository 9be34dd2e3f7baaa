"""What travels: which messages ranks exchange, and how long these are."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from deepclust_ext.cluster import KMeans
from deepclust_ext.distributed import (
    batch_hard_mining,
    fused_contrastive_loss,
    mining,
    nearest_neighbors,
    ring,
    sinkhorn_knopp,
)
from tests.distributed.pool import PerRank, Pool

#: A kind of message and how many numbers a rank has in it, with how often it comes.
Messages = Counter[tuple[str, int]]


def messages_of(group: Any, function: Any, *arguments: Any) -> Messages:
    """Return the collectives of a call, and the tensors that are sent to one rank."""
    found: Messages = Counter()
    with pytest.MonkeyPatch.context() as patch:

        def note(name: str, kind: str) -> None:
            original = getattr(dist, name, None)
            if original is None:  # of another torch
                return

            def noted(received: Tensor, sent: Tensor, *rest: Any, **more: Any) -> Any:
                found[kind, sent.numel()] += 1
                return original(received, sent, *rest, **more)

            patch.setattr(dist, name, noted)

        def batch(operations: list[Any]) -> Any:
            found.update(("send", each.tensor.numel()) for each in operations if each.op is dist.isend)
            return send_all(operations)

        note("all_gather_single", "gather")
        if not hasattr(dist, "all_gather_single"):
            note("all_gather_into_tensor", "gather")
        note("all_to_all_single", "all to all")
        send_all = dist.batch_isend_irecv
        patch.setattr(dist, "batch_isend_irecv", batch)
        patch.setattr(dist, "all_reduce", None)  # whose order of sums is its own
        function(group, *arguments)
    return found


def more_of(pool: Pool, function: Any, rows: Tensor, few: int, many: int) -> list[Messages]:
    """Return what ranks exchange for more iterations, and in no other way for fewer ones."""
    own = PerRank(rows.chunk(2))
    first, second = (pool.run(messages_of, function, own, iterations, ranks=2) for iterations in (few, many))
    assert all(not one - other for one, other in zip(first, second, strict=True))
    return [other - one for one, other in zip(first, second, strict=True)]


def assigned(group: Any, scores: Tensor, iterations: int) -> None:
    sinkhorn_knopp(scores, num_iters=iterations, process_group=group)


def batched(group: Any, scores: Tensor, iterations: int) -> None:
    assigned(group, scores.view(len(scores), 3, -1).transpose(0, 1), iterations)


def test_an_iteration_of_sinkhorn_exchanges_one_number_for_each_cluster(pool: Pool) -> None:
    for messages in more_of(pool, assigned, torch.randn(20, 7), 2, 5):
        assert messages == {("gather", 7): 3}


def test_problems_of_a_batch_go_together(pool: Pool) -> None:
    for messages in more_of(pool, batched, torch.randn(20, 12), 2, 5):
        assert messages == {("gather", 12): 3}


def test_long_sums_are_made_in_parts(pool: Pool) -> None:
    """As an all-reduce is: each rank adds up a part, and gives it to all."""
    clusters = 20000  # more than 64 KB
    for messages in more_of(pool, assigned, torch.randn(4, clusters), 1, 2):
        assert messages == {("all to all", clusters): 1, ("gather", clusters // 2): 1}


def fitted(group: Any, rows: Tensor, iterations: int) -> None:
    kmeans = KMeans(5, init="random", n_init=1, max_iter=iterations, tol=0, random_state=0, process_group=group).fit(
        rows
    )
    assert kmeans.n_iter_ == iterations


def test_an_iteration_of_kmeans_exchanges_sums_and_counts_at_once(pool: Pool) -> None:
    for messages in more_of(pool, fitted, torch.randn(600, 4), 1, 4):
        assert messages == {("gather", 5 * (4 + 1)): 3}


def searched(group: Any, query: Tensor, bank: Tensor) -> None:
    nearest_neighbors(query, bank, k=4, process_group=group)


def test_neighbors_are_found_in_own_rows_and_exchanged_at_once(pool: Pool) -> None:
    query, bank = torch.randn(6, 5).split(3), torch.randn(50, 5).split(25)
    for messages in pool.run(messages_of, searched, PerRank(query), PerRank(bank), ranks=2):
        sizes, queries, results = ("gather", 1), ("gather", 3 * 5), ("all to all", 6 * 2 * 4)
        assert messages == {sizes: 2, queries: 1, results: 1}


def mined(group: Any, rows: Tensor, most_gathered: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "MOST_GATHERED_BYTES", most_gathered)
        patch.setattr(ring, "BLOCK", block)
        batch_hard_mining(rows, rows + 0.5, process_group=group)


def test_up_to_the_limit_rows_are_gathered_once(pool: Pool) -> None:
    rows = torch.randn(3 * 8, 4)
    own, limit = PerRank(rows.split(8)), 2 * rows.nbytes
    for messages in pool.run(messages_of, mined, own, limit, 4, ranks=3):
        assert messages == {("gather", 1): 1, ("gather", 8 * 4): 2}


def test_above_it_blocks_go_round(pool: Pool) -> None:
    rows = torch.randn(3 * 8, 4)
    own, limit = PerRank(rows.split(8)), 2 * rows.nbytes - 1
    for messages in pool.run(messages_of, mined, own, limit, 4, ranks=3):
        assert messages["gather", 1] == 1
        assert not any(kind == "gather" and count > 1 for kind, count in messages)
        # To two ranks two blocks of four rows each, of teacher and student; back two numbers and two indices a row.
        assert messages["send", 2 * 4 * 4] == 4
        assert messages["send", 2 * 4] == 8
        assert sum(count for (kind, _), count in messages.items() if kind == "send") == 12


def contrasted(group: Any, z_a: Tensor, z_b: Tensor, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "BLOCK", block)
        fused_contrastive_loss(z_a.requires_grad_(), z_b.requires_grad_(), process_group=group).backward()


@pytest.mark.parametrize(("block", "turns"), [(8, 1), (4, 2)])
def test_one_block_of_rows_travels_once_more_blocks_in_backward_too(pool: Pool, block: int, turns: int) -> None:
    dims, views = 5, [PerRank(torch.randn(16, 5).split(8)) for _ in range(2)]
    all_messages = pool.run(messages_of, contrasted, *views, block, ranks=2)
    # The second rank pairs one half of its samples with those of the first, which pairs its own with the other half.
    for messages, sent, hosted in zip(all_messages, (8, 4), (4, 8), strict=True):
        rows, values = ("send", 2 * sent // turns * dims), ("send", 8 * sent // turns)
        sums, gradients = ("send", 2 * hosted // turns), ("send", 2 * hosted // turns * dims)
        backward = 0 if turns == 1 else turns
        assert messages == {
            ("gather", 1): 1,
            rows: turns + backward,
            sums: turns,
            values: turns,
            gradients: turns,
        }
