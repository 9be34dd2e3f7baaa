"""Calls on all cores by threads, for what lets go of the interpreter: reading files, and Pillow and numpy at work."""

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_BLOCK = 256  # results that may wait at a time
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
    with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as pool:
        try:
            with tqdm(desc=title, total=count, leave=False, disable=None if title else True) as bar:
                for start in range(0, count, _BLOCK):  # a million results would wait otherwise
                    for result in pool.map(function, range(start, min(start + _BLOCK, count))):
                        yield result
                        bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
