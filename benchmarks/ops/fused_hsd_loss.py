"""fused_hsd_loss against its published form, eager and compiled.

No public package has this loss. What pytorch-metric-learning shares with it, the mining, is compared in
batch_hard_mining.py; building the loss around its miner here would mean a second definition of the math.
"""

from functools import partial

import torch

from benchmarks.floors.mining import gradient_work, mining_work
from benchmarks.harness import Case, Provider, Yardstick
from benchmarks.inputs import (
    DISTRIBUTIONS,
    SIZES,
    cuda_cases,
    teacher_and_student,
    two_products,
    two_products_flops,
)
from deepclust_ext import fused_hsd_loss, reference

MODES = ("forward", "backward", "both")
TRUTH = reference.fused_hsd_loss
YARDSTICK = Yardstick("two products", two_products, two_products_flops)

PROVIDERS = {
    "ours": Provider(lambda: fused_hsd_loss),
    "reference": Provider(lambda: reference.fused_hsd_loss),
    "compiled reference": Provider(lambda: torch.compile(reference.fused_hsd_loss, dynamic=False), compiled=True),
}

_TOO_LARGE = "skipped: several N x N float32 matrices of 4.3 GB each"

CASES = [
    *(
        Case(distribution, rows, dims, partial(teacher_and_student, distribution))
        for rows, dims in SIZES
        for distribution in DISTRIBUTIONS
    ),
    Case(
        "random",
        32768,
        128,
        partial(teacher_and_student, "random"),
        memory_only=True,
        skip={"reference": _TOO_LARGE, "compiled reference": _TOO_LARGE},
    ),
]
SERIES = [case for case in CASES if case.distribution == "random" and case.dims == 256]
CUDA_CASES = cuda_cases()
WORK = {"forward": mining_work, "backward": gradient_work}
FOLLOWS_PRECISION = False
