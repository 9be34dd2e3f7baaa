"""How runs are told apart, and what a resumed run needs besides its weights: settings, data, generators."""

import functools
import hashlib
import random
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from deepclust_ext import __version__
from deepclust_ext.inference import IndexedImages
from deepclust_ext.methods.base import ClusteringMethod
from deepclust_ext.ops._checks import check_seed
from deepclust_ext.training.config import TrainConfig
from deepclust_ext.training.files import ANEW, OF_ANOTHER_VERSION
from deepclust_ext.training.phases import describe_phase
from deepclust_ext.training.schedule import LearningRate

Setting: TypeAlias = str | int | float | bool | None

#: Images at most whose values count in a fingerprint.
SAMPLE = 32
#: What counts for the values of images that are others at every reading.
NEVER_THE_SAME = "not the same twice"
#: What the hashes in a fingerprint are of.
HASHED = {"content": "values", "values": "values", "names": "names"}


def check_settings(stored: Mapping[str, Setting], own: Mapping[str, Setting], path: Path) -> None:
    """Require equal settings; a ValueError names each that differs and both values, but of data what differs."""
    absent = "nothing"
    settings, data = list[str](), dict[str, None]()
    for name in {**stored, **own}:
        before, now = stored.get(name, absent), own.get(name, absent)
        if before == now or (name.startswith("recipe.") and name.removeprefix("recipe.") in own):  # said once
            continue
        whose, _, part = name.rpartition(".")
        if name.startswith("data.") and part in HASHED:  # a hash says nothing to anyone
            data[f"{whose}: expected the same {HASHED[part]} as in {path}, got others"] = None
        else:
            settings.append(f"{name}: expected {before!r} as in {path}, got {now!r}")
    if data:
        settings += [*data, f"a run goes on only with the data that it began with: bring those back, or {ANEW}"]
    if settings:
        raise ValueError("; ".join(settings))


def why_epochs_are_fixed(learning_rate: LearningRate, method: ClusteringMethod) -> str | None:
    """Return why a run cannot go on for more epochs than it began with, or None where it can."""
    if not learning_rate.open_ended:
        return "without a horizon the learning rate falls over all epochs of the run"
    return f"{type(method).__name__} goes by the share of the run that is done" if method.uses_progress else None


def check_resumed(
    state: Mapping[str, Any],
    own: Mapping[str, Setting],
    path: Path,
    *,
    last_phase: int,
    fixed_epochs: str | None,
    other_versions: bool,
) -> None:
    """Require that a run of these settings can go on from a checkpoint's state.

    Args:
        state: State in the checkpoint.
        own: Settings of the run.
        path: Path of the checkpoint.
        last_phase: Index of the last phase.
        fixed_epochs: Why the last phase may not have more epochs than before; None if it may.
        other_versions: Whether the checkpoint may be from other versions.

    Raises:
        ValueError: If anything differs; the message names it and both values.
    """
    stored = state["settings"]
    unknown = _not_known_to(stored, own)
    if unknown:
        raise ValueError(
            f"resume: expected a checkpoint of this version of deepclust_ext at {path}, got one of an older version, "
            f"which does not know {', '.join(unknown)}: {OF_ANOTHER_VERSION}"
        )
    if fixed_epochs is None:
        stored = _with_epochs_of(stored, own, last_phase)
    try:
        check_settings(stored, own, path)
    except ValueError as error:
        if fixed_epochs is None or own["epochs"] <= stored["epochs"]:
            raise
        raise ValueError(
            f"{error}; {fixed_epochs}, so in a run of {own['epochs']} epochs the first {stored['epochs']} would have "
            f"been others: train a new one of {own['epochs']}"
        ) from error
    if other_versions:
        return
    try:
        check_settings(flatten(state["versions"], "versions"), flatten(versions(), "versions"), path)
    except ValueError as error:
        raise ValueError(f"{error}; {OF_ANOTHER_VERSION}") from error


def _not_known_to(stored: Mapping[str, Setting], own: Mapping[str, Setting]) -> list[str]:
    """Return the run's own settings that the checkpoint, from an older version, does not have."""
    always = {"kmeans", "learning_rate", *(["method"] if stored.get("method") == own["method"] else [])}
    if any(name.startswith("recipe.") for name in stored):
        always.add("recipe")

    def is_always_there(name: str) -> bool:
        group, *rest = name.split(".")
        if group == "data":
            return rest[-1] == "values" and f"data.{'.'.join(rest[:-1])}.content" in stored
        return not rest or (len(rest) == 1 and group in always)

    # Where a value is a mapping now and then, its parts have the names.
    return [
        name
        for name in own
        if name not in stored and is_always_there(name) and not any(each.startswith(f"{name}.") for each in stored)
    ]


def _with_epochs_of(stored: Mapping[str, Setting], own: Mapping[str, Setting], phase: int) -> dict[str, Setting]:
    """Return stored settings with the run's own number of epochs of the last phase, if that is larger."""
    if own["epochs"] <= stored["epochs"]:  # type: ignore[operator]
        return dict(stored)
    names = ("epochs", f"phases.{phase}.epochs", f"recipe.phases.{phase}.epochs")
    return {**stored, **{name: own[name] for name in names if name in stored and name in own}}


def run_settings(config: TrainConfig, method: ClusteringMethod, others: Mapping[str, Any]) -> dict[str, Setting]:
    """Return all that decides a run but the versions, by dotted names: config, method, and others by their names."""
    weights = list(method.parameters())
    found = {
        "method": type(method).__name__,
        **flatten(method.arguments(), "method"),
        "weights": f"{sum(weight.numel() for weight in weights)} numbers in {len(weights)} tensors",
        "epochs": config.epochs,
        **flatten([describe_phase(phase, method) for phase in config.phases], "phases"),
        "batch_size": config.batch_size,
        **flatten(config.learning_rate, "learning_rate"),
        **flatten(config.optimizer or method.default_optimizer, "optimizer"),
        **flatten(config.kmeans, "kmeans"),
        "seed": config.seed,
        "precision": config.precision,
        "compile": config.compile,
        "sync_batch_norm": config.sync_batch_norm,
    }
    return {**found, **{key: entry for name in others for key, entry in flatten(others[name], name).items()}}


def flatten(value: Any, name: str) -> dict[str, Setting]:
    """Return settings by dotted names; a value that is no number, text or container is replaced by its description."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, functools.partial):
        value = {"function": value.func, "arguments": value.args, **value.keywords}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {key: entry for part in value for key, entry in flatten(value[part], f"{name}.{part}").items()}
    kinds: tuple[tuple[Any, type], ...] = ((bool | np.bool_, bool), (Integral, int), (Real, float), (str, str))
    for kind, plain in kinds:
        if isinstance(value, kind):
            return {name: plain(value)}  # of numpy's kinds too, which a checkpoint could not hold
    return {name: None if value is None else describe(value)}


def plain_numbers(value: Any) -> Any:
    """Return a setting with Python's numbers in place of those of numpy and of tensors, in tuples and lists too."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain_numbers, value))
    return value.item() if isinstance(value, np.generic | Tensor) else value


def describe(value: Any) -> str:
    """Return a text that distinguishes views: the representation without memory addresses."""
    if isinstance(value, torch.nn.Module):
        return repr(value)
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def fingerprint(data: Dataset[Any]) -> dict[str, Setting]:
    """Return facts that distinguish data sets.

    These are the number of images, the first one's shape and dtype, all ``names`` if the data set has them, and the
    values of up to ``SAMPLE`` images, from the first to the last at equal distances. Values are left out if an image
    differs at every reading. All values are compared for a TensorDataset, and if the data set has a hash of them as
    ``fingerprint``; for other data sets changes in other images are not noticed.
    """
    images = IndexedImages(data)
    first, _ = images[0]
    found: dict[str, Setting] = {"count": len(images), "shape": str(tuple(first.shape)), "dtype": str(first.dtype)}
    places = sorted({i * (len(images) - 1) // (SAMPLE - 1) for i in range(SAMPLE)})
    first_time, second_time = ([_digest(images[place][0]) for place in places] for _ in range(2))
    same = first_time == second_time
    found["content"] = hashlib.sha256("".join(first_time).encode()).hexdigest() if same else NEVER_THE_SAME
    every = getattr(data, "fingerprint", None)
    if isinstance(data, TensorDataset):
        every = str(crc32(data.tensors[0].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data))
    if isinstance(every, str):
        found["values"] = every
    names = getattr(data, "names", None)
    if names is not None:
        found["names"] = hashlib.sha256("\n".join(map(str, names)).encode(errors="surrogateescape")).hexdigest()
    return found


def _digest(image: Tensor) -> str:
    """Return the SHA-256 of an image's values."""
    return hashlib.sha256(image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a run's bits depend on."""
    return {"deepclust_ext": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy's global generator and python's ``random``.

    Raises:
        TypeError: If the seed is no integer.
        ValueError: If it is negative, or 2^32 or more.
    """
    seed = check_seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return every generator's state in types that ``torch.load(weights_only=True)`` accepts.

    Args:
        device: Where the run draws.
    """
    name, keys, *rest = np.random.get_state()
    on_cuda = device is not None and device.type == "cuda"
    return {
        "device": (device.index or 0) if device is not None and on_cuda else None,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Set every generator to a state of :func:`random_state`; warns if it has states of more GPUs than there are.

    Args:
        state: Result of :func:`random_state`.
        device: Where the run draws now; its generator continues that of the device where the run drew before.
    """
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count()
    for place, generator in enumerate(state["cuda"][:devices]):
        torch.cuda.set_rng_state(generator, place)
    if device is not None and device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["cuda"][state["device"]], device)
    if len(state["cuda"]) > devices:
        warnings.warn(
            f"the checkpoint is of a machine with {len(state['cuda'])} GPUs, and here are {devices}: the random "
            f"numbers of the others are left out, and the result may differ from that of a run that never stopped",
            RuntimeWarning,
            stacklevel=4,
        )
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the floating tensors that have a number that is not finite; waits for the device once."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        return []
    good = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    return [name for name, fine in zip(floating, good, strict=True) if not fine]
