"""Seeded teacher and student batches, cases of them for CUDA, and the two products that comparisons start from."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.floors import CUDA_SIZES
from benchmarks.harness import Case, Provider

CLUSTERS = 10

#: Noise of the teacher around its cluster's center and of the student around its teacher; centers have unit variance.
CLUSTERED = {
    "clusters": (0.3, 0.1),  # late training: tight clusters, and a student close to its teacher
    "overlapping": (1.0, 1.0),  # wide clusters: the order of the distances says little about the class of a column
    "distant": (0.2, 0.5),  # student farther from its teacher than its cluster is wide: our pruning skips the least
}
DISTRIBUTIONS = ("random", *CLUSTERED)
SIZES = ((128, 128), (256, 256), (1024, 256), (4096, 256))  # rows, dims; the first is a small training batch
CUDA_CLUSTERED_ROWS = 4096  # at which CUDA has the other distributions as well

#: Rows of a check where the case itself has too many. A float64 matrix of 65536 rows takes 34 GB, and the reference
#: holds seven at a time; of 20480 rows it takes 3.4 GB, and those still fill all multiprocessors with large blocks.
CHECKED_ROWS = 20480


def teacher_and_student(distribution: str, rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return a teacher and a student batch (rows, dims) in float32, the student requiring its gradient.

    Args:
        distribution: "random" for two independent normal batches, or a key of CLUSTERED.
        rows: Number of samples; sample i lies in cluster i modulo CLUSTERS.
        dims: Number of features.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(count: int) -> Tensor:
        return torch.randn(count, dims, generator=generator)

    if distribution == "random":
        teacher, student = normal(rows), normal(rows)
    else:
        spread, offset = CLUSTERED[distribution]
        teacher = normal(CLUSTERS)[cluster_labels(rows)] + spread * normal(rows)
        student = teacher + offset * normal(rows)
    return teacher, student.requires_grad_()


@cache
def cluster_labels(rows: int, device: str = "cpu") -> Tensor:
    """Return the cluster of every row."""
    return torch.arange(rows, device=device) % CLUSTERS


def cuda_cases(rivals: Callable[[str], Mapping[str, Provider]] = lambda distribution: {}) -> list[Case]:
    """Return the cases for CUDA of an op on teacher and student, with the rivals that a distribution adds."""
    return [
        Case(
            distribution,
            rows,
            dims,
            partial(teacher_and_student, distribution),
            rivals=rivals(distribution),
            checked_rows=CHECKED_ROWS if rows > CHECKED_ROWS else None,
        )
        for rows, dims in CUDA_SIZES
        for distribution in (DISTRIBUTIONS if rows == CUDA_CLUSTERED_ROWS else ("random",))
    ]


@torch.no_grad()
def two_products(teacher: Tensor, student: Tensor) -> None:
    """Compute what every full-matrix form starts from: teacher with teacher and teacher with student."""
    torch.mm(teacher, teacher.T)
    torch.mm(teacher, student.T)


def two_products_flops(teacher: Tensor, student: Tensor) -> int:
    """Return the floating-point operations of both products."""
    return 4 * teacher.shape[0] * student.shape[0] * teacher.shape[1]
