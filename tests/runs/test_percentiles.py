"""Runs on values between percentiles: these are measured once, and other images are scaled by those of the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from deepclust_ext import recipes
from deepclust_ext.data import ImageError, load_images
from deepclust_ext.data.seen import PixelRange
from deepclust_ext.runs import Options, Run, Source, open_run, train
from deepclust_ext.runs.prepare import Wishes, prepare_to_resume
from tests.runs.runfolders import write_recipe

RNG = np.random.default_rng(0)


def write(folder: Path, middle: float, count: int = 60, dtype: str = "uint16") -> Path:
    folder.mkdir()
    for index in range(count):
        tifffile.imwrite(folder / f"{index:02}.tif", RNG.normal(middle, 20, (12, 12)).astype(dtype))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = recipes.load(write_recipe(tmp_path))
    source = Source((str(write(tmp_path / "old", 1000)),), scale="percentile")
    return train(recipe, source.open(), tmp_path / "run", source=source)


def test_other_images_are_scaled_as_those_of_the_run(tmp_path: Path, run: Run) -> None:
    new = write(tmp_path / "new", 1500, count=3)
    opened, kept = open_run(run.path), run.source.range
    assert kept == load_images(tmp_path / "old", scale="percentile").range
    assert kept is not None
    images: Any = opened.images(new)
    assert images.range == kept
    values = tifffile.imread(new / "00.tif").astype(np.float32)
    np.testing.assert_allclose(images[0][0], (values - kept.low) / (kept.high - kept.low), rtol=1e-6)
    again: Any = load_images(new, scale=kept)
    assert again.fingerprint == images.fingerprint
    assert torch.equal(opened.trained.infer(images)[0], opened.trained.infer(again)[0])
    with pytest.raises(
        ImageError, match=r"00\.tif: .* uint16 up to 65535 as in the images whose range it is, got float32"
    ):
        opened.images(write(tmp_path / "floats", 1500, 3, "float32"))


def test_what_was_measured_is_not_measured_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = run.source.open().fingerprint  # type: ignore[attr-defined]
    monkeypatch.setattr("deepclust_ext.data.sources.percentiles", lambda *images: pytest.fail("measured again"))
    assert open_run(run.path).images().fingerprint == fingerprint  # type: ignore[attr-defined]
    ready = prepare_to_resume(run.path, Wishes(epochs=3), Source(()))
    resumed = train(ready.recipe, ready.images, run.path, Options(resume=True), source=ready.source)
    assert len(resumed.history) == 3
    assert resumed.source.range == run.source.range


def test_a_record_without_a_range(tmp_path: Path, run: Run) -> None:
    record = json.loads((run.path / "run.json").read_text())
    del record["source"]["range"]
    (run.path / "run.json").write_text(json.dumps(record))
    assert len(open_run(run.path).images()) == 60  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data: expected none, since .*run\.json lacks the range of the run's images"):
        open_run(run.path).images(tmp_path / "old")


def test_a_range_of_others_is_no_percentile_of_these() -> None:
    images = load_images(np.array([[[0, 100, 200]]], np.uint8), scale=PixelRange(100, 200, "uint8", 255))
    assert (images.scale, images.dtype, images[0].tolist()) == ("percentile", torch.float32, [[[-1.0, 0.0, 1.0]]])
