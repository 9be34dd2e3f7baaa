"""Exported networks: they give what ours gives, without this package, or say why they cannot."""

import errno
import json
import os
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from deepclust_ext import recipes
from deepclust_ext.inference import Trained
from deepclust_ext.methods import ClusterHeadMethod
from deepclust_ext.recipes.build import make_method, make_test_view
from deepclust_ext.recipes.schema import Backbone, Recipe
from deepclust_ext.runs import export as exporting
from deepclust_ext.runs.export import FACTS, FORMATS, ExportedNetwork, check_target, describe, export
from deepclust_ext.runs.folder import Run
from tests.runs.backbones import Tied

MISSING = [name for kind in FORMATS.values() for name in kind.packages if not find_spec(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"there is no {', '.join(MISSING)}")

VIEW = {"name": "resize", "size": 8, "mean": [0.3], "std": [0.4]}
NAMES = {format: f"network{kind.suffix}" for format, kind in FORMATS.items()}


def recipe_of(method: str, backbone: str = "digits-linear", **changes: Any) -> Recipe:
    recipe = recipes.load(f"{method}-digits")
    return replace(recipe, backbone=Backbone(backbone), test_view=VIEW, **changes)


def trained_of(recipe: Recipe) -> Trained:
    """Return a network with random weights and statistics, in training mode."""
    torch.manual_seed(0)
    method = make_method(recipe)
    for part in method.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 2)
    centers = None if isinstance(method, ClusterHeadMethod) else torch.randn(10, recipe.model["embedding_dim"])
    trained = Trained(method, make_test_view(recipe), centers)
    method.train()
    return trained


def run_of(trained: Trained, recipe: Recipe, **source: Any) -> Run:
    run = Run(Path("run"), recipe, trained.method, [], {"source": source or None}, trained.centers)
    run.trained.method.train()
    return run


class Files:
    """One trained network in all formats."""

    def __init__(self, method: str, folder: Path) -> None:
        self.recipe, self.folder = recipe_of(method), folder
        self.trained = trained_of(self.recipe)
        self.program: Any = None
        self.facts = {
            format: export(run_of(self.trained, self.recipe), folder / name, format=format)
            for format, name in NAMES.items()
        }

    def run(self, format: str, images: Tensor) -> tuple[Tensor, ...]:
        """Return rows and shares as a user without this package computes them."""
        path = self.folder / NAMES[format]
        if format == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            return tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))
        if format == "torch":
            self.program = self.program or torch.export.load(path).module()  # which takes seconds
            results: tuple[Tensor, ...] = self.program(images)
            return results
        from safetensors.torch import load_file

        network = ExportedNetwork(self.trained)
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.zero_()
            network.load_state_dict(load_file(path))
            outputs: tuple[Tensor, ...] = network(images)
        return outputs


@pytest.fixture(
    params=["hadis", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sacc", "clc"))], scope="module"
)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=NAMES)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_file_gives_what_ours_gives(files: Files, format: str, count: int) -> None:
    images = torch.rand(count, 1, 8, 8)
    rows, shares = files.run(format, images)
    expected = files.trained(images)
    assert (expected[0] - expected[0][:1]).abs().max() > 0.01 or count == 1  # else any constant would do
    torch.testing.assert_close(rows, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(shares, expected[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(count))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(count))
    assert files.facts[format]["largest_difference"] < 1e-5
    # In evaluation mode, though the method was in training mode: a row does not depend on its batch.
    torch.testing.assert_close(files.run(format, images[:1])[0], rows[:1], rtol=0, atol=1e-6)
    assert files.trained.method.training


def test_an_image_that_is_not_finite_gives_nan_and_no_other_does(tmp_path: Path) -> None:
    import onnxruntime

    run = own("pooling")  # where onnxruntime loses NaN
    export(run, tmp_path / NAMES["onnx"], format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / NAMES["onnx"], providers=["CPUExecutionProvider"])
    images = torch.rand(5, 1, 8, 8)
    clean = run.trained(images)
    for place, value in ((1, torch.nan), (3, -torch.inf)):
        images[place, 0, 0, 0] = value
    for part, expected in zip(session.run(None, {"images": images.numpy()}), clean, strict=True):
        assert np.isnan(part[[1, 3]]).all()
        np.testing.assert_allclose(part[[0, 2, 4]], expected[[0, 2, 4]], rtol=0, atol=1e-5)


def test_the_file_says_what_goes_in_and_out(files: Files, format: str) -> None:
    facts, path = dict(files.facts[format]), files.folder / NAMES[format]
    assert Path(facts.pop("path")) == path
    assert facts.pop("bytes") == path.stat().st_size
    facts.pop("largest_difference")
    assert facts["images"] == ["batch", 1, 8, 8]
    assert facts["rows"] == ["batch", files.recipe.model["embedding_dim"]]
    assert facts["shares"] == ["batch", 10]
    assert (facts["dtype"], facts["range"], facts["resize"]) == ("float32", [0, 1], "bicubic")
    assert (facts["mean"], facts["std"]) == ([0.3], [0.4])
    assert (facts["method"], facts["backbone"]) == (files.recipe.method, "digits-linear")
    if format == "onnx":
        import onnx

        model = onnx.load(path)
        text = {entry.key: entry.value for entry in model.metadata_props}[FACTS]
        shapes = {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        assert shapes == {name: facts[name] for name in ("images", "rows", "shares")}
        assert not any("Resize" in node.op_type for node in model.graph.node)
    elif format == "torch":
        extra = {FACTS: ""}
        torch.export.load(path, extra_files=extra)
        text = extra[FACTS]
    else:
        from safetensors import safe_open

        with safe_open(path, "pt") as opened:
            text = opened.metadata()[FACTS]
    assert json.loads(text) == facts


def test_a_file_holds_no_path_of_this_machine(files: Files, format: str) -> None:
    path = files.folder / NAMES[format]
    texts = [path.read_bytes()]
    if format == "torch":
        with zipfile.ZipFile(path) as archive:
            texts = [archive.read(name) for name in archive.namelist()]
    for place in (exporting.__file__, torch.__file__, "site-packages"):
        assert not any(place.encode() in text for text in texts)


def test_there_is_one_file_for_each_format(files: Files) -> None:
    assert sorted(path.name for path in files.folder.iterdir()) == sorted(NAMES.values())


# Backbones of a user's own, and what is wrong with some.


def own(name: str) -> Run:
    recipe = recipe_of("sacc", f"tests.runs.backbones:{name}")
    return run_of(trained_of(recipe), recipe)


def test_tied_weights_and_weights_in_any_layout(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run, path = own("tied"), tmp_path / NAMES["safetensors"]
    backbone = run.trained.method.inference_network().backbone
    assert isinstance(backbone, Tied)
    assert not any(tensor.is_contiguous() for tensor in (backbone.first.weight, backbone.shift))
    export(run, path, format="safetensors")
    weights = load_file(path)
    assert torch.equal(weights["network.backbone.first.weight"], backbone.first.weight)
    assert torch.equal(weights["network.backbone.second.weight"], backbone.second.weight)
    assert torch.equal(weights["network.backbone.third.weight"], backbone.second.weight)
    assert torch.equal(weights["network.backbone.shift"], backbone.shift)
    assert weights["mean"].flatten().tolist() == pytest.approx([0.3])
    export(run, tmp_path / NAMES["torch"], format="torch")


@pytest.mark.parametrize(
    ("name", "format", "error", "message"),
    [
        ("stubborn", "torch", ValueError, "backbone: expected evaluation mode after eval.*in backbone.1, which"),
        ("stubborn", "safetensors", ValueError, "backbone: expected evaluation mode"),
        (
            "searching",
            "torch",
            RuntimeError,
            "backbone: expected torch's own operators, .* deepclust_ext.nearest_neigh",
        ),
        ("searching", "onnx", RuntimeError, "backbone: expected torch's own operators"),
        ("chance", "torch", RuntimeError, "backbone: expected torch to give rows .* within 0.0001 of ours, got 0.*"),
        ("of_two", "onnx", RuntimeError, "backbone: torch.export cannot trace it for any number of images: "),
    ],
)
def test_what_is_wrong_with_a_backbone_is_said_and_nothing_is_written(
    name: str, format: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / NAMES[format]
    path.write_text("before")
    with pytest.raises(error, match=message) as raised:
        export(own(name), path, format=format, overwrite=True)
    assert "\n" not in str(raised.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(NAMES[format], "before")]


@pytest.mark.parametrize(
    ("dtype", "memory_format"), [(torch.float64, torch.contiguous_format), (torch.bfloat16, torch.channels_last)]
)
def test_other_dtypes_are_written_in_float32(
    dtype: torch.dtype, memory_format: torch.memory_format, tmp_path: Path
) -> None:
    recipe = recipe_of("hadis")
    trained = trained_of(recipe)
    trained.method.to(dtype).to(memory_format=memory_format)
    facts = export(run_of(trained, recipe), tmp_path / NAMES["torch"], format="torch")
    assert facts["largest_difference"] < 1e-5
    rows, shares = torch.export.load(tmp_path / NAMES["torch"]).module()(torch.rand(2, 1, 8, 8))
    assert (rows.dtype, shares.dtype) == (torch.float32, torch.float32)
    assert next(trained.method.parameters()).dtype == dtype


def test_without_a_test_view_images_are_taken_as_they_are(tmp_path: Path) -> None:
    recipe = replace(recipe_of("clc"), test_view=None)
    facts = export(run_of(trained_of(recipe), recipe), tmp_path / NAMES["torch"], format="torch")
    assert (facts["resize"], facts["mean"], facts["std"]) == (None, None, None)


@pytest.mark.parametrize(
    ("source", "resize", "scale", "told"),
    [
        ({"data": ["photos"]}, "bicubic", "type", "bicubic, then kept between 0 and 1, with antialias"),
        ({"data": ["photos"], "size": 8}, "bilinear", "type", "bilinear, with antialias"),
        ({"data": ["photos"], "scale": "percentile"}, "bicubic", "percentile", "by percentiles of the run's images"),
    ],
)
def test_how_the_run_read_its_images_is_said(
    source: dict[str, Any], resize: str, scale: str, told: str, tmp_path: Path
) -> None:
    recipe = recipe_of("clc")
    run = run_of(trained_of(recipe), recipe, **source)
    facts = export(run, tmp_path / NAMES["safetensors"], format="safetensors")
    assert (facts["resize"], facts["scale"]) == (resize, scale)
    assert told in describe(facts)


def test_another_test_view_is_named(tmp_path: Path) -> None:
    recipe = replace(recipe_of("clc"), test_view={"name": "gamma"})
    message = "test_view: expected 'resize' or none, got RandomGamma, which cannot be written"
    with pytest.raises(ValueError, match=message):
        export(run_of(trained_of(recipe), recipe), tmp_path / NAMES["torch"], format="torch")


def test_onnx_above_its_limit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporting, "ONNX_LIMIT", 1000)
    recipe = recipe_of("clc")
    with pytest.raises(ValueError, match=r"format: expected weights below 1,000 bytes for onnx, got [\d,]+; torch"):
        export(run_of(trained_of(recipe), recipe), tmp_path / NAMES["onnx"], format="onnx")


@pytest.mark.parametrize(
    ("format", "name"), [(format, name) for format, kind in FORMATS.items() for name in kind.packages]
)
def test_a_missing_package_is_named_before_any_work(format: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=rf"format: {format} needs .*{name}.*no {name}; pip install 'deepclust_ext\[e"
    ):
        check_target(Path(NAMES[format]), format)


@pytest.mark.parametrize(
    ("name", "format", "error", "message"),
    [
        ("network.pt2", "pickle", ValueError, "format: expected one of onnx, safetensors, torch, got 'pickle'"),
        ("network.pt", "torch", ValueError, "out: expected a name that ends in .pt2 for torch, got .*network.pt"),
        ("folder.onnx", "onnx", ValueError, "out: expected a file, got the folder .*folder.onnx"),
        (
            "there.onnx",
            "onnx",
            FileExistsError,
            "out: expected a new file, got .*there.onnx, which exists; --overwrite",
        ),
    ],
)
def test_a_wrong_target_is_named(name: str, format: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "there.onnx").touch()
    with pytest.raises(error, match=message):
        check_target(tmp_path / name, format)
    if error is FileExistsError:
        check_target(tmp_path / name, format, overwrite=True)


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_a_full_disk_is_named(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' own writers end with errors of other kinds, or end the process."""

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    recipe, path = recipe_of("sacc"), tmp_path / NAMES[format]
    with pytest.raises(OSError, match=f"^{path}: cannot be written: No space left on device$"):
        export(run_of(trained_of(recipe), recipe), path, format=format)
    assert not list(tmp_path.iterdir())


def test_centers_decide_as_the_nearest_of_k_means_does() -> None:
    trained = trained_of(recipe_of("hadis"))
    images = torch.rand(20, 1, 8, 8)
    rows, shares = ExportedNetwork(trained)(images)
    assert trained.centers is not None
    cosines = rows.double() @ normalize(trained.centers.double(), dim=1).T
    assert np.array_equal(shares.argmax(dim=1), cosines.argmax(dim=1))
