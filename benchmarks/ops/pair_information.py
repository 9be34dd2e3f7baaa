"""pair_information against its plain-PyTorch form."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.floors import CUDA_SIZES, Work
from benchmarks.harness import Case, Provider, Yardstick
from deepclust_ext import pair_information, reference

MODES = ("forward", "backward", "both")
TRUTH = reference.pair_information
FOLLOWS_PRECISION = False

PROVIDERS = {
    "ours": Provider(lambda: pair_information),
    "reference": Provider(lambda: reference.pair_information),
    "compiled reference": Provider(lambda: torch.compile(reference.pair_information, dynamic=False), compiled=True),
}

YARDSTICK = Yardstick("one copy", lambda features: features.detach().clone(), lambda features: int(features.numel()))


def random_rows(rows: int, dims: int) -> tuple[Tensor]:
    """Return normal rows that require their gradient."""
    return (torch.randn(rows, dims, generator=torch.Generator().manual_seed(0)).requires_grad_(),)


def work_of(elements: int, rows: int, dims: int, dtype: str) -> Work:
    """Return the work of a pass that reads and writes so many for each element of the features."""
    return Work({}, elements * rows * dims * (4 if dtype.startswith("float32") else 2))


WORK = {"forward": partial(work_of, 2), "backward": partial(work_of, 3)}

CASES = [Case("random", rows, dims, random_rows) for rows, dims in ((256, 128), (4096, 256), (65536, 256))]
SERIES = [Case("random", rows, 256, random_rows) for rows in (4096, 16384, 65536)]
CUDA_CASES = [Case("random", rows, dims, random_rows) for rows, dims in CUDA_SIZES]
