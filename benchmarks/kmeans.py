"""KMeans against those of scikit-learn, faiss, flash-kmeans, flashlib and cuVS: `python -m benchmarks --op KMeans`.

`--op KMeans_grid` has fewer iterations of many sizes, most of them larger; it takes half an hour or more.

All make the same iterations on the same rows from the same centers, fewer where no label changes before. SuperKmeans
of faiss takes no centers, begins with rows that it draws, and needs 32 features. Ours, scikit-learn's and cuVS' then
find labels or inertia of all rows, which the others do not, so that their share of the work is a little smaller. Before
all are timed, inertias of their centers have to agree to one in a thousand, and to one in fifty that of SuperKmeans; no
closer, as flash-kmeans and flashlib multiply in TF32 on a GPU.

On the CPU, scikit-learn and faiss bring an OpenMP, set to as many threads as torch; faiss is told to use all rows.
flash-kmeans is there what its class falls back to without a GPU. On a GPU faiss alone takes its rows from host memory,
and copies them in every iteration.
"""

from collections.abc import Callable, Iterator, Mapping
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
GRID_ITERATIONS = 10
#: Rows, clusters, dims: what a table needs first, then all of a grid.
GRID = (
    (100_000, 1000, 128),
    (100_000, 100, 64),
    (20_000, 1000, 512),
    *((n, k, d) for n in (2000, 20_000, 200_000) for d in (16, 64, 128, 512) for k in (2, 10, 100, 1000)),
)
OWN_START = {"faiss SuperKmeans"}
CHECKED_PAIRS = 1 << 25  # distances of a check at a time: 0.3 GB in float64


def make_rows(rows: int, dims: int) -> Tensor:
    """Return normal rows (N, D), on which k-means goes on for longer than ITERATIONS."""
    return torch.randn(rows, dims, generator=torch.Generator().manual_seed(0))


def count_iterations(
    rows: Tensor,  # (N, D)
    centers: Tensor,  # (K, D)
    most: int,
) -> int:
    """Return how many iterations there are, at most so many, until no label changes: some packages stop there."""
    made: int = KMeans(len(centers), init=centers, max_iter=most, tol=0).fit(rows).n_iter_
    return made


def load_ours(iterations: int) -> Function:
    """Return this package's, as a function from rows and first centers to the last centers, as all are."""

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        kmeans = KMeans(len(centers), init=centers, max_iter=iterations, tol=0).fit(rows)
        assert kmeans.n_iter_ == iterations
        found: Tensor = kmeans.cluster_centers_
        return found

    return fit


def load_scikit_learn(iterations: int) -> Function:
    """Return scikit-learn's, by Lloyd's algorithm."""
    from sklearn.cluster import KMeans as PeerKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        kmeans = PeerKMeans(len(centers), init=centers.numpy(), n_init=1, max_iter=iterations, tol=0)
        with threadpool_limits(torch.get_num_threads()):
            kmeans.fit(rows.numpy())
        assert kmeans.n_iter_ == iterations
        return torch.from_numpy(kmeans.cluster_centers_)

    return fit


def load_faiss(iterations: int, *, gpu: bool) -> Function:
    """Return faiss', without its choice of 256 rows per cluster."""
    import faiss

    if gpu and not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("faiss with GPU support")

    @cache  # what is timed does not begin by copying to the host
    def to_numpy(x: Tensor) -> Any:
        return x.cpu().numpy()

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        faiss.omp_set_num_threads(torch.get_num_threads())
        kmeans = faiss.Kmeans(rows.shape[1], len(centers), niter=iterations, max_points_per_centroid=len(rows), gpu=gpu)
        kmeans.train(to_numpy(rows), init_centroids=to_numpy(centers))
        return torch.from_numpy(kmeans.centroids)

    return fit


def load_super_kmeans(iterations: int) -> Function:
    """Return faiss' with pruning by some of the features, of all rows, and without its early stop."""
    import faiss

    super_kmeans: Any = getattr(faiss, "SuperKmeans", None)
    if super_kmeans is None:
        raise ImportError("faiss with SuperKmeans, 1.15.1 or newer")

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        faiss.omp_set_num_threads(torch.get_num_threads())
        kmeans = super_kmeans(
            rows.shape[1], len(centers), niter=iterations, max_points_per_centroid=len(rows), early_stop_threshold=-1.0
        )
        kmeans.train(rows.numpy())
        return torch.from_numpy(kmeans.centroids)

    return fit


def load_flash_kmeans(iterations: int, *, gpu: bool) -> Function:
    """Return flash-kmeans', by Triton kernels on a GPU, and by what its class falls back to, plain PyTorch, on the CPU.

    The class itself takes no centers to begin with.
    """
    if gpu:
        from flash_kmeans import batch_kmeans_Euclid as cluster
    else:
        from flash_kmeans.torch_fallback import batch_kmeans_Euclid_torch_native as cluster

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        first = centers[None].clone()  # not for it to write over
        _, last, made = cluster(rows[None], len(centers), max_iters=iterations, tol=0.0, init_centroids=first)
        assert made == iterations, f"{made} iterations"
        return last[0]  # type: ignore[no-any-return]

    return fit


def load_flashlib(iterations: int) -> Function:
    """Return flashlib's, the successor of flash-kmeans, by the kernels that it chooses itself."""
    from flashlib import flash_kmeans

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        first = centers[None].clone()  # it writes over them
        _, last, made = flash_kmeans(rows, len(centers), max_iters=iterations, tol=0.0, init_centroids=first)
        assert made == iterations, f"{made} iterations"
        return last  # type: ignore[no-any-return]

    return fit


def load_cuvs(iterations: int) -> Function:
    """Return cuVS'."""
    from cuvs.cluster.kmeans import KMeansParams
    from cuvs.cluster.kmeans import fit as fit_centers
    from cuvs.common import Resources

    resources = Resources()  # else every call would make its own

    def fit(rows: Tensor, centers: Tensor) -> Tensor:
        parameters = KMeansParams(
            n_clusters=len(centers),
            init_method="Array",
            max_iter=iterations,
            tol=1e-30,  # 0 is refused
            n_init=1,
        )
        last = centers.clone()  # first ones too: it writes over them
        _, _, made = fit_centers(parameters, rows, centroids=last, resources=resources)
        resources.sync()
        assert made >= iterations, f"{made} iterations"  # it counts one more where it did not converge
        return last

    return fit


PROVIDERS: Mapping[str, Callable[[int], Function]] = {
    "ours": load_ours,
    "scikit-learn": load_scikit_learn,
    "faiss": partial(load_faiss, gpu=False),
    "faiss SuperKmeans": load_super_kmeans,
    "flash-kmeans": partial(load_flash_kmeans, gpu=False),
}
CUDA_PROVIDERS: Mapping[str, Callable[[int], Function]] = {
    "ours": load_ours,
    "flash-kmeans": partial(load_flash_kmeans, gpu=True),
    "flashlib": load_flashlib,
    "faiss-gpu": partial(load_faiss, gpu=True),
    "cuVS": load_cuvs,
}


def find_floor(rows: int, clusters: int, dims: int, iterations: int = ITERATIONS) -> Floor:
    """Return the least that a fit has to do.

    Operations are those of the product of rows and centers in every iteration, and once more for the labels of the last
    centers. Bytes are those of rows and first centers, read once however many iterations there are, as if a cache held
    them from then on, and of labels and last centers.
    """
    product = 2 * rows * clusters * dims
    values = rows * dims + 2 * clusters * dims
    return Floor((iterations + 1) * product, 4 * values + LABEL_BYTES * rows)


def measure_series(setting: Setting, seconds: float, rates: Rates | None) -> Iterator[Row]:
    """Measure every size for about so many seconds; no seconds mean the first one, briefly. Rates are of a CPU."""
    sizes = CUDA_ASSIGNMENTS if setting.device == "cuda" else [(rows, CLUSTERS, DIMS) for rows in SERIES]
    for size in sizes if seconds else sizes[:1]:
        yield from measure(setting, seconds, rates, *size)


def measure_grid(setting: Setting, seconds: float, rates: Rates | None) -> Iterator[Row]:
    """Measure the sizes of GRID alike."""
    for size in GRID if seconds else GRID[-1:]:
        yield from measure(setting, seconds, rates, *size, iterations=GRID_ITERATIONS)


def find_inertia(
    rows: Tensor,  # (N, D)
    centers: Tensor,  # (K, D)
) -> float:
    """Return the sum of squared distances to the nearest centers, by torch's distances in float64."""
    parts = rows.double().split(max(CHECKED_PAIRS // len(centers), 1))
    return sum(float(torch.cdist(part, centers.to(part)).amin(dim=1).square().sum()) for part in parts)


def measure(
    setting: Setting,
    seconds: float,
    rates: Rates | None,
    rows: int,
    clusters: int,
    dims: int,
    iterations: int = ITERATIONS,
) -> list[Row]:
    """Check and time all providers; one that is not installed, fails, or is wrong has a status that says so."""
    features = make_rows(rows, dims).to(setting.device)
    inputs = (features, features[:clusters].clone())
    iterations = count_iterations(*inputs, iterations)
    functions: dict[str, Function] = {}
    statuses: dict[str, str] = {}
    inertias: dict[str, float] = {}
    for name, load in (CUDA_PROVIDERS if setting.device == "cuda" else PROVIDERS).items():
        try:
            functions[name] = load(iterations)
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
        if not abs(inertias[name] / inertias["ours"] - 1) <= (0.02 if name in OWN_START else 1e-3):
            statuses[name] = f"WRONG: inertia is {inertias[name]:.6g}, ours {inertias['ours']:.6g}"
            del functions[name]
    times = time_rounds(functions, dict.fromkeys(functions, ("forward",)), inputs, setting.device, seconds)
    case = f"random-{rows}x{dims}-k{clusters}-{iterations}-iterations"
    floor_ms = find_floor(rows, clusters, dims, iterations).milliseconds(rates) if rates else None
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
