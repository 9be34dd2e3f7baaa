"""A folder with images of every kind and size trains with every method, and is embedded and clustered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from torch import nn

from deepclust_ext.data import Images, load_images, resize_view, weak_view
from deepclust_ext.inference import map_images
from deepclust_ext.methods import ClusteringMethod
from deepclust_ext.training import Phase, TrainConfig, Trainer
from tests.methods.methodsamples import METHODS

RNG = np.random.default_rng(0)
SIDE = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write 24 images of many sizes: color on its side, gray, palette, alpha, inks, 16 bits; and one cut off."""
    root = tmp_path / "images"
    root.mkdir()
    for place in range(24):
        height, width = int(RNG.integers(6, 40)), int(RNG.integers(6, 40))
        values = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
        picture = Image.fromarray(values)
        exif = Image.Exif()
        exif[274] = 6
        match place % 6:
            case 0:
                picture.save(root / f"{place}.jpg", exif=exif)
            case 1:
                picture.convert("L").save(root / f"{place}.png")
            case 2:
                picture.quantize(8).save(root / f"{place}.gif")
            case 3:
                picture.convert("RGBA").save(root / f"{place}.webp")
            case 4:
                picture.convert("CMYK").save(root / f"{place}.jpeg")
            case _:
                tifffile.imwrite(root / f"{place}.tif", values.astype(np.uint16) * 257, photometric="rgb")
    (root / "broken.png").write_bytes(b"\x89PNG")
    return root


@pytest.mark.filterwarnings("ignore:epoch .* have collapsed")  # noise has no clusters
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_a_folder_of_all_kinds(name: str, folder: Path, tmp_path: Path) -> None:
    images = load_images(folder)
    assert (len(images), images.image_size, len(images.skipped)) == (24, None, 1)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16))
    options = {"queue_size": 16} if name == "clc" else {}
    method: Any = type(METHODS[name].method())(backbone, 16, 2, hidden_dim=16, embedding_dim=8, **options)
    trainer = trainer_of(method, images, tmp_path / "run", labels=1 if name == "hadis" else "never")
    history = trainer.fit()
    assert len(history) == 2
    assert trainer.embed().shape[0] == 24
    assert trainer.cluster().shape == (24,)


def trainer_of(method: ClusteringMethod, images: Images, out: Path, labels: int | str) -> Trainer:
    views: list[nn.Module] = [weak_view(SIDE, blur_p=0.5) for _ in range(method.num_views)]
    config = TrainConfig([Phase("main", 2, pseudo_labels=labels)], batch_size=8)
    return Trainer(method, images, views, config, out, test_view=resize_view(SIDE))


def test_views_that_need_one_size_name_the_image(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data, image 1 \(1\.png\): expected the shape and dtype of data, image 0"):
        map_images(lambda batch: (batch,), load_images(folder))
