"""Which ranks work together, and how the rows of a batch are spread over them."""

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from deepclust_ext.ops._checks import check_bool

if dist.is_available():
    # Its functions take the group of all ranks that there is when it is imported as a default, as torch._dynamo does.
    # Imported later, it would keep gloo's threads alive after destroy_process_group(), and a process that ends while
    # one of them frees a tensor is aborted.
    import torch.distributed.nn

if TYPE_CHECKING:  # builds of torch without torch.distributed have neither
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    Group: TypeAlias = ProcessGroup | DeviceMesh | None


def resolve_group(process_group: "Group" = None) -> "ProcessGroup | None":
    """Return the process group of an argument: a mesh's own group, or for None that of all ranks.

    Without ``torch.distributed``, or before it is initialized, None stays None and means this rank alone.

    Raises:
        TypeError: It is neither a group, a mesh nor None.
        ValueError: The mesh has more than one dimension, or this rank is no member of the group.
    """
    if process_group is None:
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    if dist.is_available():
        from torch.distributed.device_mesh import DeviceMesh

        if process_group == dist.GroupMember.NON_GROUP_MEMBER:  # a number
            raise ValueError("process_group: expected a group that this rank is a member of")
        if isinstance(process_group, DeviceMesh):
            if process_group.ndim != 1:
                raise ValueError(f"process_group: expected a mesh of one dimension, got one of {process_group.ndim}")
            return process_group.get_group()
        if isinstance(process_group, dist.ProcessGroup):
            return process_group
    raise TypeError(f"process_group: expected a ProcessGroup, a DeviceMesh or None, got {type(process_group).__name__}")


def check_ranks(gather_distributed: object, process_group: "Group") -> bool:
    """Return ``gather_distributed``, checked; a group may be given only if it is True.

    Raises:
        TypeError: It is neither True nor False.
        ValueError: There is a group, but nothing is gathered.
    """
    gathers = check_bool(gather_distributed, "gather_distributed")
    if process_group is not None and not gathers:
        raise ValueError("process_group: expected None, because gather_distributed is False, got a group")
    return gathers


def num_ranks(group: "Group" = None) -> int:
    """Return how many ranks work together."""
    group = resolve_group(group)
    return 1 if group is None else group.size()


def rank_of(group: "Group" = None) -> int:
    """Return the place of this rank in its group, from 0."""
    group = resolve_group(group)
    return 0 if group is None else group.rank()


class Shards(NamedTuple):
    """How many rows each rank has; all rows are counted in the order of the ranks."""

    sizes: tuple[int, ...]
    rank: int

    @property
    def start(self) -> int:
        """Index of this rank's first row among all rows."""
        return sum(self.sizes[: self.rank])

    @property
    def stop(self) -> int:
        """Index after this rank's last row among all rows."""
        return self.start + self.sizes[self.rank]

    @property
    def total(self) -> int:
        """The number of all rows."""
        return sum(self.sizes)

    @property
    def weight(self) -> float:
        """Factor for the mean over this rank's rows, so that the mean over the ranks is the mean over all rows."""
        return self.sizes[self.rank] * len(self.sizes) / max(self.total, 1)


def shards_of(
    rows: Tensor,  # (n, ...)
    group: "Group" = None,
) -> Shards:
    """Return how many rows each rank has; waits for the device once."""
    group = resolve_group(group)
    if group is None or group.size() == 1:
        return Shards((len(rows),), 0)
    own = torch.tensor([len(rows)], device=rows.device)
    sizes = own.new_empty(group.size())
    all_gather(sizes, own, group)
    return Shards(tuple(sizes.tolist()), group.rank())


def all_gather(
    everyone: Tensor,  # (P n, ...), for the result
    own: Tensor,  # (n, ...)
    group: "ProcessGroup",
) -> None:
    """Write the tensors of all ranks one after the other."""
    # One function, whose name torch has changed; the old one warns, and the new one is not in torch 2.11.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(everyone, own, group=group)
