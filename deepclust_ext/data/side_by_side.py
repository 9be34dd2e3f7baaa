"""Calls on all cores by threads, for what lets go of the interpreter: reading files, and Pillow and numpy at work."""

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
    """Yield what a function gives for 0, 1, ... in this order, computed by as many threads as there are cores.

    Args:
        function: What it raises is raised here in its turn, and no other call begins.
        count: Of the calls.
        title: Of a bar on a terminal; by default there is none.
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
