"""Runs every op on the GPU for compute-sanitizer to watch, on its samples, forward and backward."""

import torch

from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.ops.opsamples import SAMPLE_INPUTS
from tests.ops.test_all_ops import gradients, native

for op, samples in SAMPLE_INPUTS.items():
    for dtype in SUPPORTED_DTYPES:
        for sample in samples(dtype, "cuda"):
            gradients(native(op), sample)
        torch.cuda.synchronize()
        print(op, dtype, flush=True)
