"""nearest_neighbors against torch's product and topk, eager and compiled, and exact search of faiss and two more.

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
from benchmarks.floors import WorkOf
from benchmarks.floors.neighbors import CUDA_SEARCHES, search_work
from benchmarks.harness import Case, Provider, Yardstick
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


def load_faiss_gpu(k: int) -> Function:
    """Return the same on a GPU, on torch's tensors and stream; it computes in float32."""
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("faiss with GPU support")
    import faiss.contrib.torch_utils  # lets an index take tensors

    resources = faiss.StandardGpuResources()
    indexes: dict[int, Any] = {}

    def search(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        index = indexes.get(bank.data_ptr())
        if index is None:
            index = indexes[bank.data_ptr()] = faiss.GpuIndexFlatIP(resources, bank.shape[1])
            index.add(bank.float())
        cosines, indices = index.search(query.float(), k)
        return cosines.to(query.dtype), indices

    return search


def load_cuvs(k: int) -> Function:
    """Return cuVS' search of inner products, on an index made at the first call; bfloat16 it takes as float32."""
    from cuvs.common import Resources
    from cuvs.neighbors import brute_force

    resources = Resources()  # else every call would make its own
    indexes: dict[int, Any] = {}

    def convert(x: Tensor) -> Tensor:
        return x.float() if x.dtype == torch.bfloat16 else x

    def search(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        if bank.data_ptr() not in indexes:
            rows = convert(bank)  # which the index does not copy
            index = brute_force.build(rows, metric="inner_product", resources=resources)
            indexes[bank.data_ptr()] = index, rows
        index, _ = indexes[bank.data_ptr()]
        cosines = query.new_empty(len(query), k, dtype=torch.float32)
        indices = query.new_empty(len(query), k, dtype=torch.int64)
        brute_force.search(index, convert(query), k, neighbors=indices, distances=cosines, resources=resources)
        resources.sync()
        return cosines.to(query.dtype), indices

    return search


def load_flashlib(k: int) -> Function:
    """Return flashlib's search by squared Euclidean distance, which orders rows of norm 1 alike."""
    from flashlib import flash_knn

    def search(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = flash_knn(query, bank, k)
        return (1 - distances / 2).to(query.dtype), indices.long()

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


CASES = [
    make_case(64, 4096, 128, 10),
    make_case(16, 100_000, 128, 10),
    make_case(256, 50_000, 256, 10),
    make_case(256, 100_000, 128, 1),
    make_case(256, 100_000, 128, 50),
    make_case(256, 100_000, 128, 256),
    make_case(2048, 10_000, 128, 20),
]
SERIES = [make_case(rows, 10_000, 128, 20) for rows in (64, 256, 1024)]
CUDA_RIVALS = {"faiss-gpu": load_faiss_gpu, "cuVS": load_cuvs, "flashlib": load_flashlib}
CHECKED_PAIRS = 1 << 27  # a float64 matrix of 1 GB, which the reference holds several times and sorts


def cuda_case(rows: int, candidates: int, dims: int, k: int) -> Case:
    """Return a case for CUDA, with the rivals that search there."""
    checked = CHECKED_PAIRS // candidates
    return make_case(
        rows,
        candidates,
        dims,
        k,
        checked_rows=checked if checked < rows else None,
        rivals={name: Provider(partial(load, k)) for name, load in CUDA_RIVALS.items()},
        skip={"faiss": "skipped: on the CPU"},
    )


CUDA_CASES = [cuda_case(*search) for search in CUDA_SEARCHES]
