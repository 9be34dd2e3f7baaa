"""NeighborHead's step and search as one writes them in plain PyTorch, on the weights of ours: `benchmarks.features`.

Heads one after the other, softmax, power, sum and logarithm of whole matrices of shares, as the authors' code has them;
the step can be compiled. The search multiplies blocks of rows by all rows and takes `topk`.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from deepclust_ext.methods import NeighborHead


class PlainNeighborHead(nn.Module):
    """The students and teachers of a :class:`NeighborHead` on frozen features, with the weights that it has now."""

    distribution: Tensor

    def __init__(self, ours: NeighborHead) -> None:
        super().__init__()
        self.heads, self.teachers = copy.deepcopy(ours.heads), copy.deepcopy(ours.teachers)
        self.beta, self.temperature, self.momentum = ours.beta, ours.temperature, ours.momentum
        self.kept = ours.distribution_momentum
        self.register_buffer("distribution", ours.distribution.clone())

    def forward(
        self,
        first: Tensor,  # (B, D)
        second: Tensor,  # (B, D)
    ) -> Tensor:
        """Return the loss, ()."""
        features = torch.cat([first, second])
        students = [(head(features) / self.temperature).softmax(dim=1) for head in self.heads]
        with torch.no_grad():
            teachers = [(head(features) / self.temperature).softmax(dim=1) for head in self.teachers]
            means = torch.stack([shares.mean(dim=0) for shares in teachers])
            self.distribution.copy_(self.kept * self.distribution + (1 - self.kept) * means)
            products = [torch.prod(torch.stack(shares.chunk(2)), dim=0).sum(dim=1) for shares in teachers]
            weights = torch.stack(products).mean(dim=0)
        losses = []
        for place, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
            (s_1, s_2), (t_1, t_2) = student.chunk(2), teacher.chunk(2)
            for own, other in ((s_1, t_2), (s_2, t_1)):
                joint = ((own * other) ** self.beta / self.distribution[place]).sum(dim=1)
                losses.append(-(weights * joint.log()).mean())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teachers towards their heads."""
        for old, new in zip(self.teachers.parameters(), self.heads.parameters(), strict=True):
            old.mul_(self.momentum).add_(new, alpha=1 - self.momentum)


def plain_table(
    rows: Tensor,  # (N, D)
    num_neighbors: int,
    block: int = 1024,
) -> Tensor:
    """Return the places (N, k) of the nearest other rows by cosine."""
    unit = normalize(rows, dim=1)
    found = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -2
        found.append(cosines.topk(num_neighbors, dim=1).indices)
    return torch.cat(found)
