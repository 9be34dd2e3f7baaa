#!/usr/bin/env bash
# torch 2.14.1 on a processor with AVX-512: torch.compile keeps generated code on disk, and what finds it again does not
# know the instruction set. ATEN_CPU_CAPABILITY=avx2, with which kernels are compared on one machine, then gets loops
# that were written for vectors of 16 floats, compiled for vectors of 8, and reads half of the rows. Nothing is said.
# Seen: row sums of 64 x 128 normal numbers, each in a process of its own with one TORCHINDUCTOR_CACHE_DIR: with AVX-512
# right to 1e-5, then with avx2 off by 10 and more; with a folder of its own avx2 is right to 1e-5.
# Exits 0 while that is so, and 1 when it changes; 2 on a processor without AVX-512.
set -euo pipefail
grep -q avx512f /proc/cpuinfo || { echo "needs a processor with AVX-512"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cat >"$folder/sums.py" <<'PYTHON'
import torch

rows = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
sums = torch.compile(lambda x: x.sum(dim=1))(rows)
error = float((sums.double() - rows.double().sum(dim=1)).abs().max())
print(torch.__version__, torch.backends.cpu.get_cpu_capability(), f"off by {error:.1e}")
raise SystemExit(error > 1e-3)
PYTHON
sums() { TORCHINDUCTOR_CACHE_DIR="$folder/$1" ATEN_CPU_CAPABILITY=$2 "$folder/venv/bin/python" "$folder/sums.py"; }
sums shared avx512
if sums shared avx2; then exit 1; fi
sums own avx2
