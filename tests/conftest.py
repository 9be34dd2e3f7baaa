"""What every test shares: seeds, the hypothesis budget, and the rule that the native library is what is tested."""

import gc
import os
import random
import warnings
from collections.abc import Generator, Iterator
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # of a missing library, which ends the session in one line below
    from deepclust_ext import _extension
    from tests.distributed.pool import Pool
    from tests.helpers import INSTRUCTION_SETS, KERNELS_ALONE, suite_minutes

settings.register_profile("bounded", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("bounded")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say in every log which torch and backend the results below belong to, and how long the whole suite takes."""
    backend = ", ".join(sorted(_extension.NATIVE_DEVICES)) or f"none ({_extension.REASON})"
    sets = ", ".join(INSTRUCTION_SETS)
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads, native kernels for: {backend} ({sets})"]
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr == "not slow":
        processes = max(1, len(config.getoption("tx", None) or ()))
        minutes = suite_minutes(processes)
        lines.append(f"the whole suite takes about {minutes:.0f} minutes in {processes} at once on an AMD EPYC (Zen 3)")
    return lines


def pytest_sessionstart() -> None:
    """Refuse to report success on the reference alone unless DEEPCLUST_EXT_BACKEND=reference asks for it."""
    if not _extension.NATIVE_DEVICES and _extension.BACKEND != "reference":
        cure = (
            f"Run `make setup` or `{_extension.rebuild_command()}`; DEEPCLUST_EXT_BACKEND=reference tests the reference"
        )
        pytest.exit(f"the native library is not usable: {_extension.REASON}. {cure}.", returncode=1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without looking for garbage, and never look for it in what then stays: a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the kernels are not in where they alone are under test, and begin with the longest tests.

    These build packages: at the end one would keep one process busy alone.
    """
    if KERNELS_ALONE:
        left_out = [item for item in items if item.get_closest_marker("any_kernels") or uses_reference(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=lambda item: item.path.name != "test_packaging.py")


def uses_reference(item: pytest.Item) -> bool:
    """Return whether a test runs with the reference in the place of the native ops."""
    return isinstance(item, pytest.Function) and (
        hasattr(item, "callspec") and item.callspec.params.get("backend") == "reference"
    )


@pytest.fixture(scope="session", autouse=True)
def _quick_disk() -> Iterator[None]:
    """Let no file wait until the disk has it: none outlives the power here. Processes of their own do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seed every generator from the test's name, so that a test gives the same result alone and in the suite."""
    value = crc32(request.node.nodeid.encode())
    random.seed(value)
    np.random.seed(value)
    # Without a GPU torch.manual_seed formats the stack at each call, for three kinds of devices that may start later.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    return value


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the native op and with the reference."""
    if request.param == "reference":
        monkeypatch.setattr(_extension, "NATIVE_DEVICES", frozenset())
    return str(request.param)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Ranks on gloo, which start when they are first asked."""
    pool = Pool()
    yield pool
    pool.close()
