"""Frozen networks: how they are loaded, what is refused, and what tells one from another."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deepclust_ext.data import load_images, resize_view
from deepclust_ext.inference import Pretrained
from tests.inference import networks
from tests.inference.networks import HERE, SIZE, WIDTH, cast, save, trained


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(save(tmp_path / "w.pth", trained().state_dict()))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write seven colored images, all of different sizes but the last, which is of one pixel."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for place in range(7):
        shape = (9 + place, 20 - place, 3) if place < 6 else (1, 1, 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(tmp_path / "photos" / f"{place}.png")
    return tmp_path / "photos"


def of_tests(weights: str | None, name: str = "build", **settings: Any) -> Pretrained:
    return Pretrained(f"{HERE}:{name}", weights, **{"size": SIZE, **settings})


def test_a_network_is_frozen(weights: str) -> None:
    before = torch.get_rng_state()
    network, module = of_tests(weights).load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    expected = trained().eval()
    images = torch.rand(5, 3, SIZE, SIZE)
    assert torch.equal(module(images), expected(images))
    torch.testing.assert_close(module(images[:1]), module(images)[:1])  # by its own statistics, nothing dropped
    assert network.size == SIZE
    assert network.mean == (0.485, 0.456, 0.406)
    assert network.interpolation == "bicubic"
    assert len(network.digest or "") == 64


def test_defaults_of_a_function() -> None:
    network, _ = Pretrained(f"{HERE}:gray", mean=(0.5,), std=(0.25,)).load()
    assert (network.size, network.mean, network.std) == (224, (0.5,), (0.25,))


def test_rows_are_those_of_the_network(weights: str, photos: Path) -> None:
    images = load_images(photos, cache="none")
    network, module = of_tests(weights, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).load()
    view = resize_view(SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    with torch.no_grad():
        expected = torch.cat([trained().eval()(view([image])) for image in images])
    for batch_size in (1, 3, 64):
        rows = network.embed(module, images, batch_size=batch_size)
        assert rows.shape == (7, WIDTH)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_those_of_a_network_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in trained().state_dict().items()
    }
    found, module = of_tests(str(save(tmp_path / "half.pth", state))).load()
    assert next(module.parameters()).dtype == torch.float32
    wide = cast(state, torch.float32)
    same, _ = of_tests(str(save(tmp_path / "wide.safetensors", wide))).load()
    assert found.digest == same.digest


def flipped(path: str) -> None:
    """Change one bit of one weight."""
    state = torch.load(path, weights_only=True)
    state["0.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    torch.save(state, path)


def test_what_decides_the_rows_is_in_the_fingerprint(weights: str, tmp_path: Path) -> None:
    first = of_tests(weights).load()[0]
    moved = of_tests(str(save(tmp_path / "elsewhere.safetensors", trained().state_dict()))).load()[0]
    assert moved.fingerprint("a") == first.fingerprint("a")
    others = [
        replace(first, size=SIZE + 1),
        replace(first, mean=(0.5, 0.4, 0.3)),
        replace(first, std=(0.5, 0.4, 0.3)),
        replace(first, interpolation="bilinear"),
        replace(first, name=f"{HERE}:trained"),
        replace(first, code="0"),
    ]
    flipped(weights)
    others.append(of_tests(weights).load()[0])
    found = {network.fingerprint("a") for network in (first, *others)} | {first.fingerprint("b")}
    assert len(found) == 9


def test_a_function_may_bring_weights_but_no_random_ones() -> None:
    network, _ = of_tests(None, "trained").load()
    assert network.digest is not None
    with pytest.raises(ValueError, match=f"or the same weights from each call of {HERE}:build, got random ones"):
        of_tests(None).load()


def test_a_run_has_its_own_weights(weights: str) -> None:
    network, _ = of_tests(weights).load()
    assert network.load()[0] == network
    flipped(weights)
    expected = f"weights: expected those of {HERE}:build that the run was trained with, sha256 {network.digest}, got"
    with pytest.raises(ValueError, match=expected):
        network.load()


def test_a_module_that_has_changed_is_said(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = f"from {HERE} import build\n"
    (tmp_path / "changing_nets.py").write_text(text)
    network, _ = Pretrained("changing_nets:build", weights, SIZE).load()
    assert network.code == hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "changing_nets.py").write_text(f"{text}# now with another way to pool\n")
    with pytest.warns(RuntimeWarning, match="the module of changing_nets:build has changed since the run was trained"):
        assert network.load()[0].fingerprint("a") != network.fingerprint("a")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Pretrained("vit_small", "w.pth"),
            ValueError,
            "backbone: expected 'timm:NAME' or 'mod.*'vit_small'$",
        ),
        (
            lambda: Pretrained("resnet18", "w.pth"),
            ValueError,
            "got 'resnet18'; --set backbone.name=resnet18 trains that one from scratch",
        ),
        (
            lambda: Pretrained("timm:resnet18"),
            ValueError,
            "weights: expected a file of the weights of timm:resnet18, since nothing is downloaded, got none",
        ),
        (lambda: of_tests(None, size=0), ValueError, "image_size: expected at least 1, got 0"),
        (lambda: of_tests(None, mean=(0.5,)), ValueError, "mean, std: expected both or neither"),
        (lambda: of_tests("no.pth").load(), FileNotFoundError, "weights: expected a file of weights at no.pth, found"),
        (lambda: of_tests(None, "missing").load(), ValueError, "expected a function missing in .*networks, got None"),
        (lambda: Pretrained("no.such:network").load(), ImportError, "No module named 'no'"),
        (
            lambda: of_tests(None, "stubborn").load(),
            ValueError,
            f"expected evaluation mode after eval.., got training mode in 1 of {HERE}:stubborn",
        ),
        (
            lambda: of_tests(None, "random").load(),
            ValueError,
            f"backbone: expected the same rows of the same images from {HERE}:random, got others the second time",
        ),
        (
            lambda: of_tests(None, "refusing").load(),
            ValueError,
            "no arguments and .*, got RuntimeError: no such weights$",
        ),
        (
            lambda: of_tests(None, "leaving").load(),
            ValueError,
            "no arguments and return an nn.Module, got SystemExit: 0",
        ),
        (lambda: of_tests(None, "trained", mean=(0.5,), std=(0.5,)).load(), ValueError, r"of shape \(2, 1, 12, 12\)"),
    ],
)
def test_what_cannot_be_is_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_network_without_a_row_for_each_image(photos: Path) -> None:
    network, module = of_tests(None, "squeezing").load()
    with pytest.raises(ValueError, match=r"expected rows \(1, 432\) of .*:squeezing for as many .*, got shape \(432"):
        network.embed(module, load_images(photos, cache="none"), batch_size=3)


def test_a_network_whose_rows_change_in_width(photos: Path) -> None:
    network, module = of_tests(None, "widening").load()
    with pytest.raises(ValueError, match=r"expected rows \(1, 3\) of .*:widening for as many images, got shape \(1, 1"):
        network.embed(module, load_images(photos, cache="none"), batch_size=3)


def test_json_and_back(weights: str) -> None:
    import json
    from dataclasses import asdict

    network, _ = of_tests(weights).load()
    stored = json.loads(json.dumps(asdict(network.resolved())))
    assert Pretrained.of(stored) == network
    assert Pretrained.of(json.loads(json.dumps(asdict(of_tests(None))))) == of_tests(None)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"timm:resnet18 needs timm, .*; pip install 'deepclust_ext\[timm\]'"):
        Pretrained("timm:resnet18", weights).load()


class TestTimm:
    """Networks of timm, with weights that this file makes."""

    @pytest.fixture
    def timm(self) -> Any:
        return pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)

    @pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
    @pytest.mark.parametrize("num_classes", [0, 7])
    def test_rows_are_those_before_the_classifier(
        self, timm: Any, name: str, num_classes: int, tmp_path: Path, photos: Path
    ) -> None:
        expected = timm.create_model(name, num_classes=num_classes).eval()
        path = save(tmp_path / "w.safetensors", expected.state_dict())
        network, module = Pretrained(f"timm:{name}", str(path)).load()
        assert network.size is not None
        config = timm.data.resolve_model_data_config(expected)
        assert network.size == config["input_size"][-1]
        assert (network.mean, network.std) == (config["mean"], config["std"])
        images = torch.rand(2, 3, network.size, network.size)
        with torch.no_grad():
            rows = expected.forward_head(expected.forward_features(images), pre_logits=True)
        torch.testing.assert_close(module(images), rows)
        assert network.embed(module, load_images(photos, cache="none")).shape == (7, rows.shape[1])

    def test_positions_of_another_size_are_resampled(self, timm: Any, tmp_path: Path) -> None:
        path = save(tmp_path / "w.pth", {"model": timm.create_model("test_vit").state_dict()})
        network, module = Pretrained("timm:test_vit", str(path), 64).load()
        assert network.size == 64
        assert module(torch.rand(2, 3, 64, 64)).shape[0] == 2

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("test_vitt", None, "backbone: expected a network of timm .*, got 'test_vitt'; did you mean timm:test_vit"),
            ("hf-hub:timm/test_vit.r160_in1k", None, "backbone: expected a network of timm"),
            ("test_resnet", None, "weights: expected the .* tensors of the network in .*w.pth, got .* missing"),
            ("test_vit", 63, "image_size: expected one that timm:test_vit takes, got 63|of shape .2, 3, 63, 63."),
        ],
    )
    def test_what_does_not_fit(self, timm: Any, name: str, size: int | None, message: str, tmp_path: Path) -> None:
        path = save(tmp_path / "w.pth", timm.create_model("test_vit").state_dict())
        with pytest.raises(ValueError, match=message):
            Pretrained(f"timm:{name}", str(path), size).load()


def test_no_call_is_noted_for_black_images() -> None:
    networks.CALLS.clear()
    trained().eval()(torch.zeros(2, 3, SIZE, SIZE))
    assert isinstance(trained(), nn.Module)
    assert networks.CALLS == []


def test_torch_s_default_dtype_does_not_matter(weights: str, photos: Path) -> None:
    images = load_images(photos, cache="none")
    network, module = of_tests(weights).load()
    expected = network.embed(module, images)
    torch.set_default_dtype(torch.float64)
    try:
        network, module = of_tests(weights).load()
        rows = network.embed(module, images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(rows, expected)
