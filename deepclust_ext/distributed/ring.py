"""Blocks of rows that travel from rank to rank, so that each pair of rows on two ranks is computed by one of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from deepclust_ext.distributed.group import Shards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Samples of a block at most: enough that messages are few, and so few that buffers are small beside a rank's rows.
BLOCK = 1024


class Turn(NamedTuple):
    """What a rank does in a turn: it hosts samples of another rank, and a third rank hosts some of its own samples.

    A host computes all pairs between some of its samples and those of its guest.
    """

    own: slice  # of this rank's samples
    guest: int  # a rank
    guests: int  # how many of its samples come
    host: int  # another rank, or the same
    sent: slice  # of this rank's samples


def turns_of(shards: Shards, for_guests: bool = False) -> list[Turn]:
    """Return the turns of a rank, as many as all ranks have.

    The ranks are in a circle, and a rank hosts those that follow it, up to half of the circle. With an even number of
    ranks, two opposite ranks are both hosts, each with half of the samples of the later one. Hosts that work for their
    guests alone host all other ranks, each time with all samples of both.
    """
    ranks, rank, turns = len(shards.sizes), shards.rank, list[Turn]()
    for distance in range(1, ranks if for_guests else ranks // 2 + 1):
        meetings = [_meeting(shards.sizes, host, distance, for_guests) for host in range(ranks)]
        count = -(-max(theirs.stop - theirs.start for _, theirs in meetings) // BLOCK)
        guest, host = (rank + distance) % ranks, (rank - distance) % ranks
        own, theirs = meetings[rank]
        for index in range(count):
            coming, sent = _share(theirs, index, count), _share(meetings[host][1], index, count)
            turns.append(Turn(own, guest, coming.stop - coming.start, host, sent))
    return turns


def _meeting(sizes: Sequence[int], host: int, distance: int, for_guests: bool) -> tuple[slice, slice]:
    """Return which samples of a host are paired with which of its guest's; none if either has none."""
    guest = (host + distance) % len(sizes)
    own, theirs = slice(0, sizes[host]), slice(0, sizes[guest])
    half = sizes[max(host, guest)] // 2
    is_shared = 2 * distance == len(sizes) and not for_guests
    if is_shared and host < guest:
        theirs = slice(0, half)
    elif is_shared:
        own = slice(half, sizes[host])
    if own.start == own.stop or theirs.start == theirs.stop:
        return slice(0, 0), slice(0, 0)
    return own, theirs


def _share(span: slice, index: int, count: int) -> slice:
    """Return part ``index`` of ``count`` about equal parts of a span."""
    size = span.stop - span.start
    return slice(span.start + size * index // count, span.start + size * (index + 1) // count)


class Ring:
    """The turns of a rank with the blocks that arrive: the next block travels while the caller works on one.

    The first block starts to travel when the ring is made. Every block must be answered in its turn.

    Args:
        rows: What travels. In each entry, tensors (n, ...) of one shape travel as one, (count, samples, ...).
        shards: The numbers of samples.
        group: The ranks.
        for_guests: Whether what a host computes is for its guests alone, so that blocks go all the way round.
    """

    def __init__(
        self, rows: Sequence[Sequence[Tensor]], shards: Shards, group: "ProcessGroup", for_guests: bool = False
    ) -> None:
        self._rows, self._group, self._turns = rows, group, turns_of(shards, for_guests)
        self._under_way = [self._post(turn) for turn in self._turns[:1]]

    def __len__(self) -> int:
        """Return the number of turns, the same on all ranks."""
        return len(self._turns)

    def __iter__(self) -> Iterator[tuple[Turn, list[Tensor]]]:
        """Yield the turns, each with what has arrived from the guest."""
        for index, turn in enumerate(self._turns):
            messages, guests = self._under_way.pop()
            self._under_way += [self._post(following) for following in self._turns[index + 1 : index + 2]]
            messages.wait()
            yield turn, guests

    def answer(self, turn: Turn, found: Sequence[Tensor]) -> list[Tensor]:
        """Send the guest its results, (count, guests, ...) each, and return what this rank's host has found."""
        return self.begin_answer(turn, found)()

    def begin_answer(self, turn: Turn, found: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to :meth:`answer`; return a function that waits for what this rank's host has found."""
        messages, tag = _Messages(self._group), len(self._rows)
        sent = turn.sent.stop - turn.sent.start
        received = [x.new_empty(len(x), sent, *x.shape[2:]) for x in found]
        for place, (own, other) in enumerate(zip(found, received, strict=True)):
            messages.exchange(own.contiguous(), turn.guest, other, turn.host, tag + place)
        messages.begin()

        def wait() -> list[Tensor]:
            messages.wait()
            return received

        return wait

    def _post(self, turn: Turn) -> tuple["_Messages", list[Tensor]]:
        messages, guests = _Messages(self._group), list[Tensor]()
        for tag, entry in enumerate(self._rows):
            block = torch.stack([x[turn.sent] for x in entry])
            guests.append(block.new_empty(len(block), turn.guests, *block.shape[2:]))
            messages.exchange(block, turn.host, guests[-1], turn.guest, tag)
        messages.begin()
        return messages, guests


class _Messages:
    """Messages in transit, with the tensors that they read and write."""

    def __init__(self, group: "ProcessGroup") -> None:
        self._group = group
        self._messages: list[dist.P2POp] = []
        self._works: list[dist.Work] = []

    def exchange(self, sent: Tensor, to: int, received: Tensor, source: int, tag: int) -> None:
        """Add a tensor to send to one rank, and one to receive from another; empty tensors are not sent."""
        for operation, tensor, peer in ((dist.irecv, received, source), (dist.isend, sent, to)):
            if tensor.numel() > 0:
                message = dist.P2POp(operation, tensor, group=self._group, tag=tag, group_peer=peer)
                self._messages.append(message)

    def begin(self) -> None:
        """Start all messages together: NCCL would finish one before the next, and each side has another order."""
        if self._messages:
            self._works = dist.batch_isend_irecv(self._messages)

    def wait(self) -> None:
        for work in self._works:
            work.wait()
        self._works.clear()
        self._messages.clear()
