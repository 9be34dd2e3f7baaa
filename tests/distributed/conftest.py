"""The pool of ranks, once per session."""

from collections.abc import Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Ranks on gloo."""
    pool = Pool()
    yield pool
    pool.close()
