"""A folder with images of every kind and size trains with every method, and is embedded and clustered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from deepclust_ext.backbones.masked_autoencoder import VisionTransformer
from deepclust_ext.data import Images, load_images, make_view, resize_view, weak_view
from deepclust_ext.inference import map_images
from deepclust_ext.methods import SACC, ClusteringMethod
from deepclust_ext.training import Phase, TrainConfig, Trainer
from tests.methods.methodsamples import METHODS

RNG = np.random.default_rng(0)
SIDE = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write 24 images of many sizes and of the kinds of docs/formats.md, and one cut off."""
    root = tmp_path / "images"
    root.mkdir()
    for place in range(12):
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
    write_rare_kinds(root)
    (root / "broken.png").write_bytes(b"\x89PNG")
    return root


def write_rare_kinds(root: Path) -> None:
    """Write twelve images of other depths, signs, orders and layouts."""
    deep = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    gray = deep[:, :, 0]
    shares = (gray / 65535).astype(np.float32)
    shares[0, 0] = np.nan
    Image.fromarray(gray).save(root / "deep.png")
    Image.fromarray(gray > 9999).save(root / "bits.png")
    Image.fromarray(gray[:1, :1]).save(root / "pixel.png")
    Image.fromarray((deep[:, :, :2] >> 8).astype(np.uint8), "LA").save(root / "alpha.png")
    frames = [Image.new("L", (9, 7), shade) for shade in (9, 99)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    (root / "twelve.pgm").write_bytes(b"P5 30 20 4095\n" + (gray >> 4).astype(">u2").tobytes())
    tifffile.imwrite(root / "float.tif", shares, byteorder=">")
    tifffile.imwrite(root / "signed.tif", gray.astype(np.int16), byteorder=">", compression="zlib")
    tifffile.imwrite(root / "white.tif", gray, photometric="miniswhite")
    tifffile.imwrite(root / "planes.tif", np.moveaxis(deep, 2, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(root / "stack.tif", np.stack([gray, gray]), photometric="minisblack")
    colors = np.stack([np.arange(256) * 257] * 3).astype(np.uint16)
    tifffile.imwrite(root / "palette.tif", (gray >> 8).astype(np.uint8), photometric="palette", colormap=colors)


@pytest.mark.filterwarnings("ignore:epoch .* have collapsed")  # noise has no clusters
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_a_folder_of_all_kinds(name: str, folder: Path, tmp_path: Path) -> None:
    images = load_images(folder)
    assert (len(images), images.image_size, len(images.skipped)) == (24, None, 1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16))
    backbone = VisionTransformer(SIDE, SIDE // 2, 16, 1, 2) if name == "pici" else linear
    options: dict[str, Any] = {} if name == "turtle" else {"hidden_dim": 16, "embedding_dim": 8}
    options |= {"clc": {"queue_size": 16}, "pici": {"decoder_depth": 1}}.get(name, {})
    if name == "boost":
        options = {"hidden_dim": 16, "base_model": options}
    method: Any = type(METHODS[name].method())(backbone, 16, 2, **options)
    trainer = trainer_of(method, images, tmp_path / "run", labels=1 if name in ("hadis", "boost") else "never")
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


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_list_where_one_has_the_size_already(dtype: str, interpolation: str) -> None:
    kind = getattr(torch, dtype)
    white = 255 if dtype == "uint8" else 1
    images = [(torch.rand(3, height, SIDE) * white).to(kind) for height in (SIDE, SIDE + 4)]
    views = resize_view(SIDE, interpolation=interpolation)(images)
    assert views.dtype == (torch.float32 if dtype == "uint8" else kind)
    torch.testing.assert_close(views[0].float(), images[0].float() / white, rtol=0, atol=1e-6)


def test_a_view_that_takes_one_size_alone_is_told_before_training(folder: Path, tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16))
    method = SACC(backbone, 16, 2, hidden_dim=16, embedding_dim=8)
    images, config = load_images(folder), TrainConfig([Phase("main", 1)], batch_size=8)
    parts = [{"name": "contrastive", "size": SIDE}, {"name": "gamma"}]
    first, last = (make_view("sequential", views=order) for order in (parts, parts[::-1]))
    with pytest.raises(
        ValueError, match=r"views: .* any_size, .* images of data images differ in size, got one without"
    ):
        Trainer(method, images, [last] * 3, config, tmp_path / "run", test_view=resize_view(SIDE))
    assert not (tmp_path / "run").exists()
    Trainer(method, images, [first] * 3, config, tmp_path / "run", test_view=resize_view(SIDE)).fit()


def test_what_needs_a_test_view_is_told_before_training(folder: Path, tmp_path: Path) -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 16))
    method = SACC(backbone, 16, 2, hidden_dim=16, embedding_dim=8)
    views, config = [weak_view(SIDE)] * 3, TrainConfig([Phase("main", 1)], batch_size=8)
    with pytest.raises(ValueError, match="expected images of one size where .*, got several; pass a test_view"):
        Trainer(method, load_images(folder), views, config, tmp_path / "run")
    integers: Any = [torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)] * 8
    with pytest.raises(TypeError, match="image 0: expected a floating image, .* got torch.uint8; pass"):
        Trainer(method, integers, views, config, tmp_path / "run")
