"""KMeans against those of scikit-learn, faiss, flash-kmeans and cuVS: `python -m benchmarks --op KMeans`.

All make the same iterations on the same rows from the same centers. Ours, scikit-learn's and cuVS' then find labels or
inertia of all rows, which the others do not, so that their share of the work is a little smaller. Before all are timed,
inertias of their centers have to agree to one in a thousand; no closer, as flash-kmeans multiplies in TF32.

On the CPU, scikit-learn and faiss bring an OpenMP, set to as many threads as torch; faiss is told to use all rows. On a
GPU faiss alone takes its rows from host memory, and copies them in every iteration.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import Function, paired_ratio, summarize, time_rounds
from benchmarks.floors.cpu import Floor, Rates
from benchmarks.floors.kmeans import CUDA_ASSIGNMENTS, LABEL_BYTES
from benchmarks.harness import describe_failure
from benchmarks.report import Row, Setting
from deepclust_ext.cluster import KMeans

SERIES = (5000, 20_000, 80_000)  # rows
DIMS, CLUSTERS, ITERATIONS = 64, 40, 20
CHECKED_PAIRS = 1 << 25  # distances of a check at a time: 0.3 GB in float64


def make_rows(rows: int, dims: int) -> Tensor:
    """Return normal rows (N, D), on which k-means goes on for longer than ITERATIONS."""
    return torch.randn(rows, dims, generator=torch.Generator().manual_seed(0))


def load_ours() -> Function:
    """Return this package's, as a function from rows and first centers to the last centers, as all are."""

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        kmeans = KMeans(len(centers), init=centers, max_iter=ITERATIONS, tol=0).fit(rows)
        assert kmeans.n_iter_ == ITERATIONS
        found: Tensor = kmeans.cluster_centers_
        return found

    return fit


def load_scikit_learn() -> Function:
    """Return scikit-learn's, by Lloyd's algorithm."""
    from sklearn.cluster import KMeans as PeerKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        kmeans = PeerKMeans(len(centers), init=centers.numpy(), n_init=1, max_iter=ITERATIONS, tol=0)
        with threadpool_limits(torch.get_num_threads()):
            kmeans.fit(rows.numpy())
        assert kmeans.n_iter_ == ITERATIONS
        return torch.from_numpy(kmeans.cluster_centers_)

    return fit


def load_faiss(*, gpu: bool) -> Function:
    """Return faiss', without its choice of 256 rows per cluster."""
    import faiss

    if gpu and not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("faiss with GPU support")

    @cache  # what is timed does not begin by copying to the host
    def to_numpy(x: Tensor) -> Any:
        return x.cpu().numpy()

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        faiss.omp_set_num_threads(torch.get_num_threads())
        kmeans = faiss.Kmeans(rows.shape[1], len(centers), niter=ITERATIONS, max_points_per_centroid=len(rows), gpu=gpu)
        kmeans.train(to_numpy(rows), init_centroids=to_numpy(centers))
        return torch.from_numpy(kmeans.centroids)

    return fit


def load_flash_kmeans() -> Function:
    """Return flash-kmeans', by Triton kernels that add clusters up in no fixed order."""
    from flash_kmeans import batch_kmeans_Euclid

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        first = centers[None].clone()  # it writes over them
        _, last, iterations = batch_kmeans_Euclid(
            rows[None], len(centers), max_iters=ITERATIONS, tol=0.0, init_centroids=first
        )
        assert iterations == ITERATIONS, f"{iterations} iterations"
        return last[0]  # type: ignore[no-any-return]

    return fit


def load_cuvs() -> Function:
    """Return cuVS'."""
    from cuvs.cluster.kmeans import KMeansParams
    from cuvs.cluster.kmeans import fit as fit_centers
    from cuvs.common import Resources

    resources = Resources()  # else every call would make its own

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        parameters = KMeansParams(
            n_clusters=len(centers),
            init_method="Array",
            max_iter=ITERATIONS,
            tol=1e-30,  # 0 is refused
            n_init=1,
        )
        last = centers.clone()  # first ones too: it writes over them
        _, _, iterations = fit_centers(parameters, rows, centroids=last, resources=resources)
        resources.sync()
        assert iterations >= ITERATIONS, f"{iterations} iterations"  # it counts one more where it did not converge
        return last

    return fit


PROVIDERS: Mapping[str, Callable[[], Function]] = {
    "ours": load_ours,
    "scikit-learn": load_scikit_learn,
    "faiss": partial(load_faiss, gpu=False),
}
CUDA_PROVIDERS: Mapping[str, Callable[[], Function]] = {
    "ours": load_ours,
    "flash-kmeans": load_flash_kmeans,
    "faiss-gpu": partial(load_faiss, gpu=True),
    "cuVS": load_cuvs,
}


def find_floor(rows: int, clusters: int, dims: int) -> Floor:
    """Return the least that a fit has to do.

    Operations are those of the product of rows and centers in every iteration, and once more for the labels of the last
    centers. Bytes are those of rows and first centers, read once however many iterations there are, as if a cache held
    them from then on, and of labels and last centers.
    """
    product = 2 * rows * clusters * dims
    values = rows * dims + 2 * clusters * dims
    return Floor((ITERATIONS + 1) * product, 4 * values + LABEL_BYTES * rows)


def measure_series(setting: Setting, seconds: float, rates: Rates | None) -> list[Row]:
    """Measure every size for about so many seconds; no seconds mean the first one, briefly. Rates are of a CPU."""
    sizes = CUDA_ASSIGNMENTS if setting.device == "cuda" else [(rows, CLUSTERS, DIMS) for rows in SERIES]
    return [row for size in (sizes if seconds else sizes[:1]) for row in measure(setting, seconds, rates, *size)]


def find_inertia(
    rows: Tensor,  # (N, D)
    centers: Tensor,  # (K, D)
) -> float:
    """Return the sum of squared distances to the nearest centers, by torch's distances in float64."""
    parts = rows.double().split(max(CHECKED_PAIRS // len(centers), 1))
    return sum(float(torch.cdist(part, centers.to(part)).amin(dim=1).square().sum()) for part in parts)


def measure(setting: Setting, seconds: float, rates: Rates | None, rows: int, clusters: int, dims: int) -> list[Row]:
    """Check and time all providers; one that is not installed, fails, or is wrong has a status that says so."""
    features = make_rows(rows, dims).to(setting.device)
    inputs = (features, features[:clusters].clone())
    functions: dict[str, Function] = {}
    statuses: dict[str, str] = {}
    inertias: dict[str, float] = {}
    for name, load in (CUDA_PROVIDERS if setting.device == "cuda" else PROVIDERS).items():
        try:
            functions[name] = load()
        except ImportError as missing:
            statuses[name] = f"not installed: {missing}"
            continue
        try:
            inertias[name] = find_inertia(features, functions[name](*inputs))
        except Exception as failure:
            if name == "ours":
                raise
            statuses[name] = describe_failure(failure)
            del functions[name]
            continue
        if not abs(inertias[name] / inertias["ours"] - 1) <= 1e-3:
            statuses[name] = f"WRONG: inertia is {inertias[name]:.6g}, ours {inertias['ours']:.6g}"
            del functions[name]
    times = time_rounds(functions, dict.fromkeys(functions, ("forward",)), inputs, setting.device, seconds)
    case = f"random-{rows}x{dims}-k{clusters}-{ITERATIONS}-iterations"
    floor_ms = find_floor(rows, clusters, dims).milliseconds(rates) if rates else None
    made = []
    for (name, mode), taken in times.items():
        summary = summarize(taken)
        made.append(
            Row(
                "KMeans",
                case,
                name,
                mode,
                **asdict(setting),
                status="ok",
                rounds=len(taken),
                **asdict(summary),
                per_ours=paired_ratio(taken, times["ours", "forward"]),
                floor_ms=floor_ms,
                per_floor=summary.median_ms / floor_ms if floor_ms else None,
            )
        )
    made += [
        Row("KMeans", case, name, "forward", **asdict(setting), status=status) for name, status in statuses.items()
    ]
    return made
