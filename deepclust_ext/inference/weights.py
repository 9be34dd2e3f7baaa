"""All weights of a network from a local file, and no others; no code in the file is executed."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepclust_ext.data.safetensors_file import FLOATING, INTEGERS, map_tensor, read_header
from deepclust_ext.ops._checks import counted

#: Where a file may keep the weights among other things, the first that is there.
NESTED = ("state_dict", "model", "model_state_dict")
_KINDS = {**FLOATING, **INTEGERS, "BOOL": "|b1"}
_NAMED = 3  # keys in a message


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a state dict that ``torch.save`` has written, on the CPU.

    The state dict may also be an entry of the file's object: "state_dict", "model" or the like, or the only one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds no state dict or several.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(f"weights: expected a file of weights at {path}, found {found}")
    if path.suffix == ".safetensors":
        header, _ = read_header(path)
        tensors = {name: _read_tensor(path, name, entry["dtype"]) for name, entry in header.items()}
        if not tensors:
            raise ValueError(f"weights: expected tensors in {path}, got none")
        return tensors
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not torch's own message, which proposes to execute what the file holds.
        raise ValueError(
            f"weights: expected a state dict in {path}, as torch.save(network.state_dict(), file) writes it, got a "
            f"file that is damaged or holds more than tensors and plain values ({type(error).__name__})"
        ) from error
    return _state_dict(found, path)


def weights_of(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights that a file has for a network, without the prefix of their names in the file.

    If all of the network's names are found after one prefix, such as "backbone.", that is the prefix; entries with
    another prefix belong to other modules, and are counted and left out. Otherwise the prefix is the part that all
    names begin with, such as "module.".

    Args:
        network: The network whose names are looked for.
        state: Result of :func:`read_weights`.
        path: Path of the file, for messages.

    Raises:
        ValueError: If several parts of the file fit.
    """
    own = list(network.state_dict())
    anchor = own[0] if own else ""
    prefixes = [key.removesuffix(anchor) for key in state if anchor and f".{key}".endswith(f".{anchor}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in own)]
    if "" in whole:
        return dict(state)
    if len(whole) > 1:
        raise ValueError(f"weights: expected one network of this kind in {path}, got several: {_some(whole)}")
    if whole:
        found = {key.removeprefix(whole[0]): value for key, value in state.items() if key.startswith(whole[0])}
        if len(found) < len(state):
            left = f"{len(state) - len(found)} of {len(state)} tensors in {path} left out"
            print(f"deepclust-ext: {left}, whose names do not begin with {whole[0]}", file=sys.stderr)
        return found
    levels = [dict(state)]
    while len({key.partition(".")[0] for key in levels[-1]}) == 1 and all("." in key for key in levels[-1]):
        levels.append({key.partition(".")[2]: value for key, value in levels[-1].items()})
    return max(levels, key=lambda level: sum(name in level for name in own))


def load_weights(network: nn.Module, found: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a network by their names, in its own dtypes.

    Raises:
        ValueError: If weights are missing, left over, of another shape, or integers where the network has floats; the
            message names the file and the first of each.
    """
    own = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    faults = {
        "missing": [key for key in own if key not in found],
        "unexpected": [key for key in found if key not in own],
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in own.items()
            if key in found and value.shape != found[key].shape
        ],
        "of whole numbers": [
            key
            for key, value in own.items()
            if key in found and value.is_floating_point() and not found[key].is_floating_point()
        ],
    }
    if any(faults.values()):
        got = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in faults.items() if keys)
        raise ValueError(f"weights: expected the {counted(len(own), 'tensor')} of the network in {path}, got {got}")
    network.load_state_dict(found, strict=True)


def digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights and buffers with their names."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(repr((key, str(value.dtype), tuple(value.shape))).encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_tensor(path: Path, name: str, kind: str) -> Tensor:
    values = np.array(map_tensor(path, _KINDS, name))
    if kind == "BF16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict that an object holds or is."""
    if not isinstance(found, Mapping):
        raise ValueError(f"weights: expected a state dict in {path}, got {type(found).__name__}")
    if not found:
        raise ValueError(f"weights: expected a state dict in {path}, got an empty one")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors
    inner = {key: value for key, value in found.items() if isinstance(value, Mapping) and _has_tensors(value)}
    name = next((name for name in NESTED if name in inner), None)
    if name is None and len(inner) != 1:
        got = f"several: {_some(list(map(str, inner)))}" if inner else f"the keys {_some(list(map(str, found)))}"
        raise ValueError(f"weights: expected one state dict in {path}, got {got}")
    return _state_dict(next(iter(inner.values())) if name is None else inner[name], path)


def _has_tensors(found: Mapping[Any, Any]) -> bool:
    """Return whether a mapping holds tensors, or a mapping that does."""
    return any(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _has_tensors(value)) for value in found.values()
    )


def _some(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + rest
