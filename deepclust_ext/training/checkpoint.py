"""Checkpoints: plain types and tensors, written whole or not at all, and refused where the run would be another."""

import hashlib
import os
import random
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepclust_ext import __version__
from deepclust_ext.inference import Images

FORMAT = "deepclust_ext checkpoint 1"
#: What a resumed run reads.
ENTRIES = ("settings", "versions", "method", "optimizer", "pseudo_labels", "history", "random")

Setting: TypeAlias = str | int | float | bool | None


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` holds either the old file or the whole new one, whatever interrupts."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that a trainer wrote; no code in the file is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a whole checkpoint of this format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"resume: expected a checkpoint at {path}, got none")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load by itself takes changed bytes for weights
            changed = archive.testzip()
        if changed is not None:
            raise zipfile.BadZipFile(changed)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the many kinds that a broken or foreign file leads to
        # Not torch's own message, which proposes to execute what the file holds.
        raise ValueError(
            f"resume: expected a checkpoint at {path}, got a file that cannot be read ({type(error).__name__}): it is "
            f"incomplete, or no checkpoint"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"resume: expected a file of the format {FORMAT!r} at {path}, got {found!r}")
    missing = [name for name in ENTRIES if name not in state]
    if missing:
        raise ValueError(f"resume: expected {', '.join(ENTRIES)} in {path}, got none of {', '.join(missing)}")
    return state


def check_settings(stored: Mapping[str, Setting], own: Mapping[str, Setting], path: Path) -> None:
    """Require equal settings; a ValueError names each that differs and both values."""
    absent = "nothing"
    different = [
        f"{name}: expected {stored.get(name, absent)!r} as in {path}, got {own.get(name, absent)!r}"
        for name in {**stored, **own}
        if stored.get(name, absent) != own.get(name, absent)
    ]
    if different:
        raise ValueError("\n".join(different))


def flatten(value: Any, name: str) -> dict[str, Setting]:
    """Return settings by dotted names; what is no number, text or container of them counts by its description."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {key: entry for part in value for key, entry in flatten(value[part], f"{name}.{part}").items()}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return {name: kind(value)}  # of a subclass too, such as numpy's, which a checkpoint could not hold
    return {name: None if value is None else describe(value)}


def describe(value: Any) -> str:
    """Return what tells a view from another one: its representation, without places in memory."""
    if isinstance(value, torch.nn.Module):
        return repr(value)
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def fingerprint(data: Dataset[Any]) -> dict[str, Setting]:
    """Return what tells a data set from another one: the number of images, the first one's shape, and their names.

    Names count where the data set has them, as ``names``.
    """
    images = Images(data)
    first, _ = images[0]
    found: dict[str, Setting] = {"count": len(images), "shape": str(tuple(first.shape)), "dtype": str(first.dtype)}
    names = getattr(data, "names", None)
    if names is not None:
        found["names"] = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
    return found


def versions() -> dict[str, str]:
    """Return the versions that a run's bits depend on."""
    return {"deepclust_ext": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy's global generator and python's ``random``."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """Return every generator's state in types that ``torch.load(weights_only=True)`` accepts."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every generator to a state of :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the floating tensors that hold a number which is not finite; waits for the device once."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        return []
    good = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    return [name for name, fine in zip(floating, good, strict=True) if not fine]
