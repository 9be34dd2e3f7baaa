"""nearest_neighbors against torch's product and topk, eager and compiled, and faiss's exact search.

Rows and dims of a case are queries and features; the bank's size stands in its name. All rows are of norm 1, as in a
bank of features, so that a provider may do without normalizing them; ours always normalizes both.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.clock import Function
from benchmarks.floors import Work, WorkOf
from benchmarks.harness import Case, Provider, Yardstick
from benchmarks.mining_floors import PRECISIONS
from deepclust_ext import nearest_neighbors, reference

MODES = ("forward",)
TRUTH = reference.nearest_neighbors
FOLLOWS_PRECISION = False
WORK: Mapping[str, WorkOf] = {}  # every case has its own


def product_and_topk(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Take the rows as they are, for they have norm 1."""
    cosines, indices = (query @ bank.T).topk(k, dim=1)
    return cosines, indices


def normalize_and_topk(
    query: Tensor,  # (B, D)
    bank: Tensor,  # (M, D)
    *,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Do all that ours does, for rows of any norm."""
    return product_and_topk(normalize(query, dim=1), normalize(bank, dim=1), k=k)


def load_faiss() -> Function:
    """Return the exact search of a flat index of inner products, which needs rows of norm 1.

    The index holds a copy of the bank, made at the first call, so that only the search is timed. faiss brings an OpenMP
    of its own, and is told to use as many threads as torch.
    """
    import faiss

    indexes: dict[int, Any] = {}

    def search(query: Tensor, bank: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
        index = indexes.get(bank.data_ptr())
        if index is None:
            index = indexes[bank.data_ptr()] = faiss.IndexFlatIP(bank.shape[1])
            index.add(bank.float().numpy())
        faiss.omp_set_num_threads(torch.get_num_threads())
        cosines, indices = index.search(query.float().numpy(), k)
        return torch.from_numpy(cosines).to(query.dtype), torch.from_numpy(indices)

    return search


PROVIDERS = {
    "ours": Provider(lambda: nearest_neighbors),
    "topk": Provider(lambda: product_and_topk),
    "normalize, topk": Provider(lambda: normalize_and_topk),
    "compiled normalize, topk": Provider(lambda: torch.compile(normalize_and_topk, dynamic=False), compiled=True),
    "reference": Provider(lambda: reference.nearest_neighbors),
    "faiss": Provider(load_faiss),
}

YARDSTICK = Yardstick(
    "one product",
    lambda query, bank, **_: query @ bank.T,
    lambda query, bank, **_: 2 * query.shape[0] * bank.shape[0] * query.shape[1],
)


def query_and_bank(candidates: int, rows: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return rows of norm 1 in random directions."""
    generator = torch.Generator().manual_seed(0)
    bank = normalize(torch.randn(candidates, dims, generator=generator), dim=1)
    return normalize(torch.randn(rows, dims, generator=generator), dim=1), bank


def search_work(rows: int, dims: int, dtype: str, *, candidates: int, k: int) -> Work:
    """Return the work of a search on CUDA: one product; inputs read, results written."""
    precision = PRECISIONS[dtype]
    moved = (rows + candidates) * dims * precision.input_bytes + rows * k * (precision.input_bytes + 8)
    return Work({precision.arithmetic: precision.arithmetic.pieces * 2 * rows * candidates * dims}, moved)


def make_case(rows: int, candidates: int, dims: int, k: int, **changes: Any) -> Case:
    """Return a case, named by the bank, k, queries and features."""
    return Case(
        f"bank{candidates}-k{k}",
        rows,
        dims,
        partial(query_and_bank, candidates),
        keywords=("bank",),
        options={"k": k},
        works={"forward": partial(search_work, candidates=candidates, k=k)},
        **changes,
    )


_NO_FAISS = {"faiss": "skipped: faiss-cpu has no kernels for CUDA"}

CASES = [
    make_case(64, 4096, 128, 10),
    make_case(16, 100_000, 128, 10),
    make_case(256, 50_000, 256, 10),
    make_case(256, 100_000, 128, 1),
    make_case(256, 100_000, 128, 50),
    make_case(256, 100_000, 128, 256),
    make_case(2048, 10_000, 128, 20),
]
CUDA_CASES = [
    make_case(256, 100_000, 128, 50, skip=_NO_FAISS),
    make_case(1024, 1_000_000, 128, 50, checked_rows=128, skip=_NO_FAISS),
    make_case(4096, 250_000, 256, 10, checked_rows=512, skip=_NO_FAISS),
    make_case(16384, 100_000, 128, 256, checked_rows=1024, skip=_NO_FAISS),
]
