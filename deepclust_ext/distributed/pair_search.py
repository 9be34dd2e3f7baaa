"""The rows among which hardest pairs are, found by anchors that go from rank to rank."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepclust_ext import ops
from deepclust_ext.distributed.group import Shards
from deepclust_ext.distributed.ring import Ring, Turn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.no_grad()
def places_of_pairs(
    teacher: Tensor,  # (n, D)
    student: Tensor,  # (n, D)
    normalize: bool,
    shards: Shards,
    group: "ProcessGroup",
) -> tuple[Tensor, bool]:
    """Return rows of other ranks, (M,), among which the pairs of this rank's anchors are, and if any is not finite.

    Anchors go all the way round in blocks. A rank mines the anchors of others among its own rows, and answers each with
    a distance and an index. Of the answers for an anchor the best stay. The op compares squares, and two squares may
    have the same root. So all answers whose distance equals the best one stay, and the op decides among them.
    """
    wide = torch.promote_types(teacher.dtype, torch.float32)
    best = teacher.new_full((2, len(teacher)), -torch.inf, dtype=wide)  # of positives, of negatives
    slots = torch.arange(best.numel(), device=best.device).view(best.shape)
    answers: list[tuple[Tensor, Tensor, Tensor]] = []
    ring = Ring([[teacher, student]], shards, group, for_guests=True)
    for turn, (guests,) in ring:
        scores, places = ring.answer(turn, _mined_for(guests, teacher, student, normalize, turn, shards))
        so_far = best[:, turn.sent]
        is_open = (places >= 0) & (scores >= so_far)
        answers.append((slots[:, turn.sent][is_open], scores[is_open], places[is_open]))
        best[:, turn.sent] = torch.maximum(so_far, scores)
    if not answers:
        return slots.new_empty(0), False
    slot, score, place = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return place[score == best.view(-1)[slot]].unique(), bool(best.isnan().any())


def _mined_for(
    guests: Tensor,  # (2, m, D) anchors of another rank, of teacher and student
    teacher: Tensor,  # (n, D)
    student: Tensor,  # (n, D)
    normalize: bool,
    turn: Turn,
    shards: Shards,
) -> list[Tensor]:
    """Return scores (2, m), the greater the harder, and places (2, m) of pairs, -1 where there is none among own rows.

    Guests are columns too, which changes nothing: they are rows of the batch, and their owner knows them. They come
    last, so if an own row and a guest are equally hard, the own row is found.
    """
    own = [x[turn.own] for x in (teacher, student)]
    first = len(own[0])
    # In half precision distances would be rounded, and more rows than needed would seem to be the best.
    wide = torch.promote_types(teacher.dtype, torch.float32)
    rows = [torch.cat(parts).to(wide) for parts in zip(own, guests, strict=True)]
    pairs = ops.batch_hard_mining(*rows, normalize=normalize, first_row=first, num_rows=turn.guests)
    nearest = torch.where(pairs.negative_index < 0, torch.inf, pairs.negative_distance)
    places = torch.stack([pairs.positive_index, pairs.negative_index])
    is_own = (places >= 0) & (places < first)
    return [torch.stack([pairs.positive_distance, -nearest]), torch.where(is_own, places + shards.start, -1)]
