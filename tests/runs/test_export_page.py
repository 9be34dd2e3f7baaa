"""docs/export.md: its code runs as it stands there, without this package, and gives what ours gives."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deepclust_ext import recipes
from deepclust_ext.data import load_images
from deepclust_ext.recipes.build import make_method
from deepclust_ext.recipes.schema import Backbone
from deepclust_ext.runs.export import export
from deepclust_ext.runs.folder import Run
from tests.forks import run_python

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE))


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten())


def run_of(backbone: Backbone) -> Run:
    recipe = replace(recipes.load("hadis-cifar10"), backbone=backbone, model={"hidden_dim": 8, "embedding_dim": 4})
    torch.manual_seed(0)
    return Run(Path("run"), recipe, make_method(recipe), [], {}, torch.randn(10, 4))


def test_every_format_has_its_lines() -> None:
    assert list(BLOCKS) == ["Preprocessing", "onnxruntime", "torch", "safetensors"]


def test_the_page_gives_what_ours_gives(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxscript", "safetensors", "torchvision"):
        pytest.importorskip(name)
    values = np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    small, resnet = run_of(Backbone(f"{__name__}:tiny")), run_of(Backbone("resnet18", "cifar"))
    export(small, tmp_path / "network.onnx", format="onnx")
    export(small, tmp_path / "network.pt2", format="torch")
    export(resnet, tmp_path / "weights.safetensors", format="safetensors")
    preprocessing, onnx, program, weights = BLOCKS.values()
    script = "\n".join(
        [
            "import sys",
            "sys.modules['deepclust_ext'] = None",
            preprocessing,
            onnx,
            "found = [torch.from_numpy(rows), torch.from_numpy(shares)]",
            program,
            "found += [rows, shares]",
            weights,
            "torch.save([images, *found, features.detach()], 'found.pt')",
        ]
    )
    done = run_python(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images, *found, features = torch.load(tmp_path / "found.pt")
    photo = load_images(tmp_path / "photo.png", cache="none")[0][None]
    view, expected = small.trained.test_view, small.trained(photo)
    assert view is not None
    assert small.recipe.test_view is not None
    mean, std = (torch.tensor(small.recipe.test_view[name]).view(-1, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close((images - mean) / std, view(photo), rtol=0, atol=1e-5)
    for part, ours in zip(found, [*expected, *expected], strict=True):
        torch.testing.assert_close(part, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(nn.functional.normalize(features), _features(resnet, photo), rtol=0, atol=1e-5)
    assert done.stdout.count('"resize": "bicubic"') == 2


def _features(run: Run, photo: torch.Tensor) -> torch.Tensor:
    """Return the backbone's features of a photo, which differ from image to image even where the weights are random."""
    assert run.trained.test_view is not None
    network = run.trained.method.inference_network()
    assert isinstance(network.backbone, nn.Module)
    with torch.no_grad():
        return nn.functional.normalize(network.backbone.eval()(run.trained.test_view(photo)))
