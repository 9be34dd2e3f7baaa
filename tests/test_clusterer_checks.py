"""DeepClusterer by scikit-learn's own checks of estimators, which feed rows of features."""

from collections.abc import Callable
from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from deepclust_ext import DeepClusterer

EXCEPTIONS: dict[str, str] = {}


@parametrize_with_checks(
    [DeepClusterer(n_clusters=3, epochs=1, device="cpu")], expected_failed_checks=lambda estimator: EXCEPTIONS
)
def test_scikit_learn_s_checks(estimator: DeepClusterer, check: Callable[[Any], None]) -> None:
    check(estimator)
