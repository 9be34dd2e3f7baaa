"""Loads the native library, once, and says which device types it serves.

DEEPCLUST_EXT_BACKEND chooses what happens where there is no native kernel:
    auto       the reference runs, after one RuntimeWarning with the reason and the cure (default)
    native     an error instead
    reference  the reference runs everywhere, without a warning
"""

import importlib.util
import json
import os
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parent

BACKEND = os.environ.get("DEEPCLUST_EXT_BACKEND", "auto")


def build_record() -> dict[str, Any]:
    """Return the record that setup.py wrote next to the library; it can be read even if the library does not load."""
    path = _PACKAGE / "_build.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return record


def rebuild_command() -> str:
    """Return the command that builds the native library for the running Python and torch."""
    checkout = _PACKAGE.parent
    source = f"-e {checkout}" if (checkout / "setup.py").is_file() else "--force-reinstall --no-deps CHECKOUT"
    return f"{sys.executable} -m pip install --no-build-isolation {source}"


def _why_there_is_none() -> str:
    """Return where a library for the running Python is missing, and where there is one that cannot be imported."""

    def has_library(package: Path) -> bool:
        return any((package / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)

    reason = f"it is not built for Python {sys.version_info[0]}.{sys.version_info[1]} in {_PACKAGE}"
    if other := next((package for entry in sys.path if has_library(package := Path(entry, "deepclust_ext"))), None):
        reason += (
            f", which Python imports here instead of {other.resolve()}, and that has it: run from a folder that holds "
            f"no deepclust_ext, or build it here too"
        )
    return reason


def _load() -> frozenset[str]:
    """Load the native library and return the device types it has kernels for; ImportError says why it cannot."""
    built_for = build_record().get("torch_version", torch.__version__)
    if built_for.split("+")[0] != torch.__version__.split("+")[0]:  # the ABI may differ: loading it could crash
        raise ImportError(f"it was built for torch {built_for}, running torch is {torch.__version__}")
    found = importlib.util.find_spec("deepclust_ext._C")
    if found is None or found.origin is None:
        raise ImportError(_why_there_is_none())
    if Path(found.origin).resolve().parent != _PACKAGE.resolve():  # an editable install of another tree answers too
        raise ImportError(f"{_PACKAGE} has none, and that of another tree is not taken: {found.origin}")
    import deepclust_ext._C

    return frozenset(deepclust_ext._C.build_info()["devices"])


def _choose_backend() -> tuple[frozenset[str], str | None]:
    """Return the device types that run natively and, if there are none, the reason."""
    if BACKEND not in ("auto", "native", "reference"):
        raise ValueError(f"DEEPCLUST_EXT_BACKEND: expected auto, native or reference, got {BACKEND!r}")
    if BACKEND == "reference":
        return frozenset(), "DEEPCLUST_EXT_BACKEND=reference"
    try:
        return _load(), None
    except ImportError as error:
        message = f"deepclust_ext has no usable native library: {error}. To build it: {rebuild_command()}"
        if BACKEND == "native":
            raise ImportError(f"{message} (an error because DEEPCLUST_EXT_BACKEND=native)") from error
        warnings.warn(f"{message}\nUntil then the slower PyTorch reference runs.", RuntimeWarning, stacklevel=2)
        return frozenset(), str(error)


#: Device types with native kernels, and why there are none if so. Constants, so that torch.compile folds them.
NATIVE_DEVICES, REASON = _choose_backend()

_warned: set[str] = set()


def uses_native(device_type: str) -> bool:
    """Return whether ops on this type of device run natively; if not, warn once per type or raise.

    Raises:
        RuntimeError: There is no kernel for this type of device and DEEPCLUST_EXT_BACKEND=native.
    """
    if device_type in NATIVE_DEVICES:
        return True
    if not NATIVE_DEVICES or device_type == "meta":  # the import has warned already; fake kernels serve meta tensors
        return bool(NATIVE_DEVICES)
    message = f"deepclust_ext was built without kernels for {device_type} tensors"
    if BACKEND == "native":
        raise RuntimeError(f"{message} (an error because DEEPCLUST_EXT_BACKEND=native)")
    if not torch.compiler.is_compiling() and device_type not in _warned:
        _warned.add(device_type)
        cure = f"`python -m deepclust_ext info` says why; to build again: {rebuild_command()}"
        warnings.warn(f"{message}: the slower PyTorch reference runs. {cure}", RuntimeWarning, stacklevel=3)
    return False
