#!/usr/bin/env bash
# torch 2.13.0, torch.nn.functional.interpolate(antialias=True), bilinear and bicubic, CPU: an image resized to a width of
# one pixel and a smaller height gives every row the first row's value. The transposed image, resized to a height of
# one, is right. torchvision's resize and resized_crop of tensors call it, so a thin crop becomes one color.
# Seen: [[3.142857], [3.142857]] where the transposed image gives [3.142857, 7.857142].
# Exits 0 while that is so, 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import interpolate

image = torch.arange(12.0).reshape(1, 1, 4, 3)
tall = interpolate(image, (2, 1), mode="bilinear", antialias=True).flatten()
flat = interpolate(image.transpose(2, 3), (1, 2), mode="bilinear", antialias=True).flatten()
print("torch", torch.__version__, "| 4 x 3 to 2 x 1:", tall.tolist(), "| the transposed one to 1 x 2:", flat.tolist())
as_seen = bool(tall[0] == tall[1]) and bool((flat - torch.tensor([22 / 7, 55 / 7])).abs().max() < 1e-5)
sys.exit(0 if as_seen else 1)
PYTHON
