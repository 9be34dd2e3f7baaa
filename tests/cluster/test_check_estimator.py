"""KMeans by scikit-learn's own checks of estimators."""

from collections.abc import Callable
from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from deepclust_ext.cluster import KMeans

#: What fails and why, in scikit-learn's KMeans too.
EXCEPTIONS = {
    "check_sample_weight_equivalence_on_dense_data": "compares weighted rows with their copies in another order, and "
    "which row a random number falls on goes by the order of rows; that in one order the two are equal, "
    "test_sample_weight.py tests",
}


@parametrize_with_checks(
    [
        KMeans(random_state=0),
        KMeans(2, metric="cosine", random_state=0),
        KMeans(2, batch_size=10, random_state=0),
    ],
    expected_failed_checks=lambda estimator: EXCEPTIONS,
)
def test_scikit_learn_s_checks(estimator: KMeans, check: Callable[[Any], None]) -> None:
    check(estimator)
