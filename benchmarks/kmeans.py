"""KMeans against those of scikit-learn and faiss, from one start: `python -m benchmarks --op KMeans`.

All make the same iterations on the same rows from the same centers, then find the labels and inertia of all rows;
before they are timed, inertias have to agree to one in a thousand. faiss is told to use all rows; it makes no last
assignment, so that its share of the work is a little smaller. Both bring an OpenMP, set to as many threads as torch.
"""

from dataclasses import asdict

import torch
from torch import Tensor

from benchmarks.clock import Function, paired_ratio, summarize, time_rounds
from benchmarks.report import Row, Setting
from deepclust_ext.cluster import KMeans

SERIES = (5000, 20_000, 80_000)  # rows
DIMS, CLUSTERS, ITERATIONS = 64, 40, 20


def make_rows(rows: int, dims: int) -> Tensor:
    """Return normal rows (N, D), on which k-means goes on for longer than ITERATIONS."""
    return torch.randn(rows, dims, generator=torch.Generator().manual_seed(0))


def load_ours() -> Function:
    """Return this package's, as a function from rows and first centers to the inertia."""

    def fit(rows: Tensor, centers: Tensor) -> float:
        kmeans = KMeans(len(centers), init=centers, max_iter=ITERATIONS, tol=0).fit(rows)
        assert kmeans.n_iter_ == ITERATIONS
        return kmeans.inertia_

    return fit


def load_scikit_learn() -> Function:
    """Return scikit-learn's, by Lloyd's algorithm."""
    from sklearn.cluster import KMeans as PeerKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def fit(rows: Tensor, centers: Tensor) -> float:
        kmeans = PeerKMeans(len(centers), init=centers.numpy(), n_init=1, max_iter=ITERATIONS, tol=0)
        with threadpool_limits(torch.get_num_threads()):
            kmeans.fit(rows.numpy())
        assert kmeans.n_iter_ == ITERATIONS
        return float(kmeans.inertia_)

    return fit


def load_faiss() -> Function:
    """Return faiss', without its choice of 256 rows per cluster."""
    import faiss

    def fit(rows: Tensor, centers: Tensor) -> float:
        faiss.omp_set_num_threads(torch.get_num_threads())
        kmeans = faiss.Kmeans(rows.shape[1], len(centers), niter=ITERATIONS, max_points_per_centroid=len(rows))
        return float(kmeans.train(rows.numpy(), init_centroids=centers.numpy()))

    return fit


PROVIDERS = {"ours": load_ours, "scikit-learn": load_scikit_learn, "faiss": load_faiss}


def measure_series(setting: Setting, seconds: float) -> list[Row]:
    """Measure every size for about so many seconds; no seconds mean the first one, briefly."""
    return [row for rows in (SERIES if seconds else SERIES[:1]) for row in measure(setting, seconds, rows)]


def measure(setting: Setting, seconds: float, rows: int, dims: int = DIMS, clusters: int = CLUSTERS) -> list[Row]:
    """Check and time all providers; one that is not installed, or wrong, has a status that says so."""
    features = make_rows(rows, dims)
    inputs = (features, features[:clusters].clone())
    functions: dict[str, Function] = {}
    statuses: dict[str, str] = {}
    inertias: dict[str, float] = {}
    for name, load in PROVIDERS.items():
        try:
            functions[name] = load()
        except ImportError as missing:
            statuses[name] = f"not installed: {missing}"
            continue
        inertias[name] = functions[name](*inputs)
        if abs(inertias[name] / inertias["ours"] - 1) > 1e-3:
            statuses[name] = f"WRONG: inertia is {inertias[name]:.6g}, ours {inertias['ours']:.6g}"
            del functions[name]
    times = time_rounds(functions, dict.fromkeys(functions, ("forward",)), inputs, "cpu", seconds)
    case = f"random-{rows}x{dims}-k{clusters}-{ITERATIONS}-iterations"
    made = []
    for (name, mode), taken in times.items():
        ratio = paired_ratio(taken, times["ours", "forward"])
        summary = asdict(summarize(taken))
        made.append(
            Row(
                "KMeans", case, name, mode, **asdict(setting), status="ok", rounds=len(taken), **summary, per_ours=ratio
            )
        )
    made += [
        Row("KMeans", case, name, "forward", **asdict(setting), status=status) for name, status in statuses.items()
    ]
    return made
