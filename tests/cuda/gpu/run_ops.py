"""Runs every op on the GPU for compute-sanitizer to watch: all samples in float32, and the first of each other dtype.

python -m tests.cuda.gpu.run_ops [DEVICE]
"""

import sys

import torch

from deepclust_ext.ops._checks import SUPPORTED_DTYPES
from tests.ops.opsamples import SAMPLE_INPUTS
from tests.ops.test_all_ops import gradients, native

device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
for op, samples in SAMPLE_INPUTS.items():
    for dtype in SUPPORTED_DTYPES:
        of_dtype = samples(dtype, device)
        for sample in of_dtype if dtype == torch.float32 else of_dtype[:1]:
            gradients(native(op), sample)
        if device == "cuda":
            torch.cuda.synchronize()
        print(op, dtype, flush=True)
