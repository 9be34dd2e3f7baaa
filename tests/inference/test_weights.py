"""Weights from files: kinds of files, nested keys, prefixes, and what does not fit."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepclust_ext.inference.weights import digest_of, load_weights, read_weights, weights_of
from tests.inference.networks import build, cast, save, trained


def loaded(path: Path) -> dict[str, Any]:
    """Return the state of a network that has got the weights of a file."""
    network = build()
    load_weights(network, weights_of(network, read_weights(path), path), path)
    return network.state_dict()


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_weights_in_any_precision(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = cast(trained().state_dict(), dtype)
    found = loaded(save(tmp_path / name, state))
    assert found["0.weight"].dtype == torch.float32
    assert same(found, {key: value.to(found[key].dtype) for key, value in state.items()})


def test_what_the_package_of_safetensors_writes(tmp_path: Path) -> None:
    written = pytest.importorskip("safetensors.torch", reason="safetensors is not installed", exc_type=ImportError)
    state = {**trained().state_dict(), "flag": torch.tensor([True, False])}
    written.save_file(state, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        lambda state: {"model": state, "args": {"lr": 0.1}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"teacher": state, "epoch": 1},
        lambda state: {"state_dict": state, "ema": {key: value + 1 for key, value in state.items()}},
        lambda state: {**state, "epoch": 3},
    ],
)
def test_nested_weights(nest: Any, tmp_path: Path) -> None:
    state = trained().state_dict()
    assert same(loaded(save(tmp_path / "w.pth", nest(dict(state)))), state)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q.", "0."])
def test_prefixes(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = trained().state_dict()
    named = {prefix + key: value for key, value in state.items()}
    assert same(loaded(save(tmp_path / "w.pth", named)), state)
    assert capsys.readouterr().err == ""
    others = {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}
    path = save(tmp_path / "more.pth", named | others)
    assert same(loaded(path), state)
    left = f"2 of {len(state) + 2} tensors in {path} left out, whose names do not begin with {prefix}"
    assert capsys.readouterr().err == f"deepclust-ext: {left}\n"


def change(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """Return weights with others in place of some, or without them; in names __ stands for a point."""
    named = {key.strip("_").replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in {**state, **named}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_0__weight": None}, "got 1 missing: 0.weight"),
        (
            {"_0__weight": None, "_0__bias": None, "_1__weight": None, "_1__bias": None},
            "got 4 missing: 0.weight, 0.bias, 1.weight and 1 more",
        ),
        ({"fc__weight": torch.ones(1), "fc__bias": torch.ones(1)}, "got 2 unexpected: fc.weight, fc.bias"),
        ({"_0__bias": None, "fc__bias": torch.ones(1)}, "got 1 missing: 0.bias; 1 unexpected: fc.bias"),
        ({"_0__bias": torch.ones(4).long()}, "got 1 of whole numbers: 0.bias"),
        ({"_0__bias": torch.ones(5)}, r"got 1 of another shape: 0.bias \(5,\) instead of \(4,\)"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_does_not_fit_is_named(changes: Any, message: str, prefix: str, tmp_path: Path) -> None:
    state = change(dict(trained().state_dict()), **changes)
    path = save(tmp_path / "w.pth", {prefix + key: value for key, value in state.items()})
    with pytest.raises(ValueError, match=f"weights: expected the 7 tensors of the network in .*w.pth, {message}$"):
        loaded(path)


def test_two_networks_in_a_file(tmp_path: Path) -> None:
    state = trained().state_dict()
    both = {f"{name}.{key}": value for name in ("encoder_q", "encoder_k") for key, value in state.items()}
    with pytest.raises(ValueError, match="one network of this kind in .*w.pth, got several: encoder_q., encoder_k."):
        loaded(save(tmp_path / "w.pth", both))
    with pytest.raises(ValueError, match="expected one state dict in .*w.pth, got several: student, teacher"):
        loaded(save(tmp_path / "w.pth", {"student": state, "teacher": state}))


class Harmful:
    """What would make a folder when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Harmful(), r"w.pth, as torch.save\(network.state_dict\(\), file\) writes it, got a file that is damaged or"),
        ({"state_dict": {"a": torch.ones(1)}, "config": Harmful()}, "holds more than tensors and plain values"),
        (torch.ones(3), "expected a state dict in .*w.pth, got Tensor"),
        ({"epoch": 3}, "expected one state dict in .*w.pth, got the keys epoch"),
        ({}, "weights: expected a state dict in w.pth, got an empty one"),
        (b"PK\x03\x04 and no more", "a file that is damaged"),
        (b"", "a file that is damaged"),
    ],
)
def test_files_that_hold_something_else(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("w.pth").write_bytes(content)
    else:
        torch.save(content, "w.pth")
    with pytest.raises(ValueError, match=message):
        read_weights(Path("w.pth"))
    assert not Path("harmed").exists()


def test_files_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights: expected a file of weights at .*w.pth, found nothing"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match="weights: expected tensors in .*none.safetensors, got none"):
        read_weights(save(tmp_path / "none.safetensors", {}))
    path = save(tmp_path / "w.safetensors", trained().state_dict())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="w.safetensors: expected a whole file of safetensors"):
        read_weights(path)


def test_the_digest_is_of_every_number_and_name() -> None:
    first, second = trained(), trained()
    assert digest_of(first) == digest_of(second) == digest_of(first.to(memory_format=torch.channels_last))
    second[1].running_mean[0] += 1e-6  # type: ignore[index]
    assert digest_of(first) != digest_of(second)
