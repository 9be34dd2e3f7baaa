"""What the ranks of a run do together: gradients, decisions, state, and work that one rank does for all."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from deepclust_ext.distributed import gather_rows, num_ranks, rank_of, resolve_group
from deepclust_ext.training.checkpoint import random_state, restore_random_state, seed_everything

if TYPE_CHECKING:
    from deepclust_ext.distributed.group import Group

Resource = TypeVar("Resource", bound=AbstractContextManager[Any])


class LostRankError(RuntimeError):
    """A rank cannot continue because another one has failed; that one reports the reason."""


class Ranks:
    """The ranks of a run, or this process alone.

    Gradients are averaged by one sum after the backward pass, and what a step logs travels with it. Why not
    ``DistributedDataParallel``? It works only through its own forward, but a method is trained by ``training_step``. At
    each step it would give all ranks the buffers of rank 0, including banks and queues. And it has to be told which
    parameters a phase leaves out.

    Args:
        gather_distributed: Whether there may be other ranks.
        process_group: The ranks; None for all.

    Attributes:
        group: Their process group; None for this process alone.
        count: Number of ranks.
        rank: Index of this rank.
        first: Whether this is the rank that writes and prints.
    """

    def __init__(self, gather_distributed: bool = True, process_group: "Group" = None) -> None:
        self.group = resolve_group(process_group) if gather_distributed else None
        self.count, self.rank = (1, 0) if self.group is None else (num_ranks(self.group), rank_of(self.group))
        self.first = self.rank == 0

    def inference(self) -> dict[str, Any]:
        """Return the arguments that let functions of inference and ``KMeans`` share their work among the ranks."""
        return {"gather_distributed": self.count > 1, "process_group": self.group}

    def part(self, total: int) -> slice:
        """Return which images of a batch are this rank's; the parts of two ranks differ by one image at most."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, in their order."""
        return rows if self.group is None else gather_rows(rows, self.group, with_gradient=False)

    def average(self, optimizer: Optimizer, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace gradients by their means over the ranks, and return the means of what a step logs.

        A parameter without a gradient has none on any rank: all go through the same terms.
        """
        if self.count == 1:
            return dict(terms)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        tensors = [*gradients, *terms.values()]
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        buffer = torch.cat([tensor.detach().reshape(-1).to(wide) for tensor in tensors])
        dist.all_reduce(buffer, group=self.group)
        parts = (buffer / self.count).split([tensor.numel() for tensor in tensors])
        for gradient, mean in zip(gradients, parts, strict=False):
            gradient.copy_(mean.view_as(gradient))
        return {name: mean.view(()) for name, mean in zip(terms, parts[len(gradients) :], strict=True)}

    def any(self, asked: bool) -> bool:
        """Return whether ``asked`` is true on some rank; all ranks get the same answer."""
        if self.count == 1:
            return asked
        answer = torch.tensor([asked], dtype=torch.uint8, device=self._device)
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self.group)
        return bool(answer)

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the tensors of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), group=self.group, group_src=0)

    def on_first(self, act: Callable[[], Any]) -> None:
        """Let rank 0 do something while the others wait.

        Raises:
            LostRankError: On the others, if it fails there.
        """
        if self.count == 1:
            act()
            return
        failed = True
        try:
            if self.first:
                act()
            failed = False
        finally:
            failed = self.any(failed)
        if failed and not self.first:
            raise LostRankError("rank 0 has failed, and says why")

    @contextmanager
    def held_by_first(self, resource: Resource) -> Iterator[Resource]:
        """Let rank 0 hold a resource for a while; the others continue once it has it."""
        with ExitStack() as stack:
            self.on_first(lambda: stack.enter_context(resource))
            yield resource

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let this rank draw its own random numbers for a while; afterwards generators are equal on all ranks again.

        The global generator advances by one number.
        """
        if self.count == 1:
            yield
            return
        number = int(torch.randint(2**32, (), device="cpu"))
        state = random_state()
        seed_everything((number + self.rank) % 2**32)
        try:
            yield
        finally:
            restore_random_state(state)

    @property
    def _device(self) -> torch.device:
        """Device by which host numbers travel: the CPU if the group has a backend for it."""
        kinds = [] if self.group is None else [device.type for device in self.group._device_types]
        return torch.device("cpu" if "cpu" in kinds else "cuda")


def tensors_of(method: nn.Module) -> list[Tensor]:
    """Return what a method computes with: parameters and buffers."""
    return list(itertools.chain(method.parameters(), method.buffers()))
