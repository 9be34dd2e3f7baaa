"""The checked arguments of KMeans; scikit-learn's estimators store arguments and check them in ``fit``."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from deepclust_ext.cluster.inputs import Rows, as_rows, check_random_state
from deepclust_ext.distributed import resolve_group
from deepclust_ext.ops._checks import check_integer, check_metric, check_non_negative

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Init: TypeAlias = str | Rows | Callable[..., Rows]


class Settings(NamedTuple):
    """All that decides a fit except random numbers; see :class:`deepclust_ext.cluster.KMeans`."""

    n_clusters: int
    metric: str
    init: Init
    n_init: int
    max_iter: int
    tol: float
    batch_size: int | None
    group: "ProcessGroup | None"

    @classmethod
    def of(cls, estimator: Any) -> "Settings":
        """Return the checked arguments of an estimator.

        Raises:
            TypeError: One is of the wrong type.
            ValueError: One is out of range.
        """
        metric, batch_size = check_how(estimator)
        init, n_init = estimator.init, estimator.n_init
        is_random = callable(init) or (isinstance(init, str) and init == "random")
        if isinstance(init, str):
            if init not in ("k-means++", "k-means||", "random"):
                expected = "'k-means++', 'k-means||', 'random', centers or a function"
                raise ValueError(f"init: expected {expected}, got {init!r}")
        elif not callable(init):
            as_rows(init, "init")
        check_random_state(estimator.random_state)
        if callable(init) and estimator.process_group is not None:
            raise ValueError("init: expected a name or centers, because process_group is given, got a function")
        is_auto = isinstance(n_init, str) and n_init == "auto"
        return cls(
            check_integer(estimator.n_clusters, "n_clusters", 1),
            metric,
            init,
            (10 if is_random else 1) if is_auto else check_integer(n_init, "n_init", 1),
            check_integer(estimator.max_iter, "max_iter", 1),
            check_non_negative(estimator.tol, "tol"),
            batch_size,
            group_of(estimator),
        )


def group_of(estimator: Any) -> "ProcessGroup | None":
    """Return the ranks that an estimator works with; TypeError or ValueError for what is no group."""
    return None if estimator.process_group is None else resolve_group(estimator.process_group)


def check_how(estimator: Any) -> tuple[str, int | None]:
    """Return metric and batch size of an estimator, which all of its methods need.

    Raises:
        TypeError: The batch size is no integer.
        ValueError: One is out of range.
    """
    metric, batch_size = estimator.metric, estimator.batch_size
    check_metric(metric)
    return metric, None if batch_size is None else check_integer(batch_size, "batch_size", 1)
