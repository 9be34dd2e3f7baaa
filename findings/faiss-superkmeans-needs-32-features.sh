#!/usr/bin/env bash
# faiss-cpu 1.15.1: faiss.SuperKmeans takes the arguments of faiss.Kmeans, but no rows of fewer than 32 features, such as
# codes of a small network or what PCA leaves. The parameter that its message names cannot be lowered for them either.
# Seen: 3,000 normal rows, 10 clusters: with 16 features faiss.Kmeans trains, faiss.SuperKmeans raises RuntimeError
# ("d >= 2 * cp.d_prime_min"), with d_prime_min=8 too; with 32 features both train.
# Exits 0 while that is so, and 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import faiss
import numpy as np


def trains(kind: type, features: int, **settings: int) -> bool:
    rows = np.random.default_rng(0).normal(size=(3000, features)).astype(np.float32)
    try:
        kind(features, 10, niter=3, **settings).train(rows)
    except RuntimeError as error:
        print(f"{kind.__name__}, {features} features, {settings}: {str(error)[-120:]}")
        return False
    return True


found = [
    trains(faiss.Kmeans, 16),
    trains(faiss.SuperKmeans, 16),
    trains(faiss.SuperKmeans, 16, d_prime_min=8),
    trains(faiss.SuperKmeans, 32),
]
print("faiss", faiss.__version__, "| trains:", found)
sys.exit(0 if found == [True, False, False, True] else 1)
PYTHON
