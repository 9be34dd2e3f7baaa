"""batch_hard_mining, forward only, against its plain-PyTorch form and pytorch-metric-learning's BatchHardMiner.

BatchHardMiner takes the classes as labels, our op finds them: column j is a positive of anchor i where DT_ij <= D_ii,
which in general differs per anchor and is not even symmetric. In the distribution "distant" both mean the same:
clusters are narrower than the way from a teacher row to its student, and farther apart, so that the positives of an
anchor are exactly the rows of its cluster. Anchors come from the teacher, columns from the student (`ref_emb`). Even
there the miner does less: it is told the classes, so it needs one product of the two, and it returns indices without
distances. Its results are checked like all others before it is timed.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.floors.mining import mining_work
from benchmarks.harness import Case, Provider, Yardstick
from benchmarks.inputs import (
    DISTRIBUTIONS,
    SIZES,
    cluster_labels,
    cuda_cases,
    teacher_and_student,
    two_products,
    two_products_flops,
)
from deepclust_ext import batch_hard_mining, reference

MODES = ("forward",)
TRUTH = reference.batch_hard_mining
YARDSTICK = Yardstick("two products", two_products, two_products_flops)

PROVIDERS = {
    "ours": Provider(lambda: batch_hard_mining),
    "reference": Provider(lambda: reference.batch_hard_mining),
    "compiled reference": Provider(lambda: torch.compile(reference.batch_hard_mining, dynamic=False), compiled=True),
}


class HardIndices(NamedTuple):
    """The part of HardPairs that BatchHardMiner returns."""

    positive_index: Tensor  # (N,) int64
    negative_index: Tensor  # (N,) int64


def _load_batch_hard_miner() -> Callable[[Tensor, Tensor], HardIndices]:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.miners import BatchHardMiner

    miner = BatchHardMiner(distance=LpDistance(normalize_embeddings=True, p=2))

    def mine(teacher: Tensor, student: Tensor) -> HardIndices:
        labels = cluster_labels(len(teacher), teacher.device.type)
        # Labels that are another object: with the same one the miner takes the anchor itself out of its positives.
        _, positive, negative = miner(teacher, labels, ref_emb=student, ref_labels=labels.clone())
        return HardIndices(positive, negative)

    return mine


def miner_for(distribution: str) -> dict[str, Provider]:
    """Return the miner where it computes the same."""
    return {"pytorch-metric-learning": Provider(_load_batch_hard_miner)} if distribution == "distant" else {}


CASES = [
    Case(
        distribution,
        rows,
        dims,
        partial(teacher_and_student, distribution),
        rivals=miner_for(distribution),
    )
    for rows, dims in SIZES
    for distribution in DISTRIBUTIONS
]
SERIES = [case for case in CASES if case.distribution == "distant" and case.dims == 256]  # with the miner
CUDA_CASES = cuda_cases(miner_for)
WORK = {"forward": mining_work}
FOLLOWS_PRECISION = False
