"""Sample inputs of every op, on which tests/ops/test_all_ops.py runs its suite."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sample:
    """One call: tensors that may require gradients, and keyword arguments."""

    name: str
    tensors: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        """Return the sample with every tensor changed."""
        return Sample(self.name, tuple(change(tensor) for tensor in self.tensors), self.options)


def feature_pairs(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield named teacher and student batches: random, clustered, offset, at sizes that leave ragged tiles."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = {f"random {n}x{d}": (normal(n, d), normal(n, d)) for n, d in ((1, 3), (2, 5), (37, 16), (131, 67))}
    centers = normal(6, 24)[torch.randint(6, (150,), generator=generator)]
    for name, spread, step in (("aligned", 0.3, 0.1), ("overlapping", 1.0, 1.0)):
        teacher = centers + spread * normal(150, 24)
        pairs[f"{name} clusters"] = (teacher, teacher + step * normal(150, 24))
    pairs["offset"] = (normal(65, 9) + 20, normal(65, 9) + 20)
    for name, (teacher, student) in pairs.items():
        yield name, teacher.to(dtype).to(device), student.to(dtype).to(device)


def batch_hard_mining_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Every batch, with and without normalization."""
    return [
        Sample(f"{name}, normalize={normalize}", (teacher, student), {"normalize": normalize})
        for name, teacher, student in feature_pairs(dtype, device)
        for normalize in (True, False)
    ]


def fused_hsd_loss_samples(dtype: torch.dtype, device: str) -> list[Sample]:
    """Every batch, and every option on one of them."""
    samples = [Sample(name, (teacher, student), {}) for name, teacher, student in feature_pairs(dtype, device)]
    teacher, student = samples[2].tensors
    variants: list[dict[str, Any]] = [
        {"reduction": "none"},
        {"reduction": "sum", "temperature": 0.05},
        {"normalize": False, "temperature": 5.0},
    ]
    return samples + [Sample(str(options), (teacher, student), options) for options in variants]


SAMPLE_INPUTS: dict[str, Callable[[torch.dtype, str], list[Sample]]] = {
    "batch_hard_mining": batch_hard_mining_samples,
    "fused_hsd_loss": fused_hsd_loss_samples,
}
