"""DeepClusterer by scikit-learn's own checks of estimators, which feed rows of features."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from deepclust_ext import DeepClusterer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches of a few rows are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@parametrize_with_checks([DeepClusterer(n_clusters=3, epochs=1, device="cpu")])
def test_scikit_learn_s_checks(estimator: DeepClusterer, check: Callable[[Any], None]) -> None:
    check(estimator)
