"""Calls on all cores by threads, for work that releases the interpreter's lock: reading files, Pillow and numpy."""

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_AHEAD = 4  # results for each thread that may wait: a million images would be too many
_Result = TypeVar("_Result")


def side_by_side(
    function: Callable[[int], _Result], count: int, title: str | None = None
) -> Generator[_Result, None, None]:
    """Yield the results of a function for 0, 1, ... in this order, computed by as many threads as there are cores.

    Args:
        function: If it raises, the error is raised here in its turn, and no further call begins.
        count: Number of calls.
        title: Title of a bar on a terminal; by default there is no bar.
    """
    threads = max(1, min(count, os.cpu_count() or 1))
    waiting: deque[Future[_Result]] = deque()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=title, total=count, leave=False, disable=None if title else True) as bar,
    ):
        try:
            for number in range(count):
                waiting.append(pool.submit(function, number))
                if len(waiting) == _AHEAD * threads:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
