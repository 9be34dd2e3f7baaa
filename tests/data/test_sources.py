"""Images from folders, lists and arrays: what is found, in which order, what is skipped, and what it is worth."""

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from deepclust_ext.data import ImageError, Images, load_images
from deepclust_ext.data.stores import Files
from deepclust_ext.inference import map_images
from deepclust_ext.training.checkpoint import fingerprint
from tests.data.imagefiles import RNG, hwc, pixels, save, scaled


class TestFolders:
    def test_flat_and_nested_in_the_order_of_names(self, tmp_path: Path) -> None:
        stored = {name: save(tmp_path / name) for name in ("b.png", "a/2.png", "a/10.png", "c/d/e.png", "B.PNG")}
        images = load_images(tmp_path)
        assert images.names == ["B.PNG", "a/10.png", "a/2.png", "b.png", "c/d/e.png"]
        for name, image in zip(images.names, images, strict=True):
            np.testing.assert_array_equal(hwc(image), stored[name])
        assert (images.channels, images.image_size, images.labels) == (3, (12, 16), None)

    def test_hidden_files_are_left_out(self, tmp_path: Path) -> None:
        for name in ("a.png", ".b.png", ".ipynb_checkpoints/c.png", "d/._e.png"):
            save(tmp_path / name)
        images = load_images(tmp_path)
        assert images.names == ["a.png"]
        assert images.skipped == []

    def test_links_are_followed_and_a_circle_ends(self, tmp_path: Path) -> None:
        save(tmp_path / "outside" / "a.png")
        save(tmp_path / "data" / "b.png")
        (tmp_path / "data" / "linked").symlink_to(tmp_path / "outside")
        (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
        (tmp_path / "outside" / "back").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "none.png")
        (tmp_path / "data" / "file.png").symlink_to(tmp_path / "outside" / "a.png")
        images = load_images(tmp_path / "data")
        assert images.names == ["b.png", "file.png", "linked/a.png"]
        assert images.skipped == [("broken.png", "a link to nothing")]

    def test_what_cannot_be_read_is_listed(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        (tmp_path / "notes.txt").write_text("hello")
        (tmp_path / "empty.jpg").write_bytes(b"")
        data = (tmp_path / "a.png").read_bytes()
        (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
        images = load_images(tmp_path)
        assert images.names == ["a.png"]
        assert dict(images.skipped).keys() == {"notes.txt", "empty.jpg", "cut.png"}
        assert "3 files skipped, first notes.txt: no image by its name" in images.notes
        images.write_skipped(str(tmp_path / "skipped.csv"))
        lines = (tmp_path / "skipped.csv").read_text().splitlines()
        assert lines[:2] == ["path,reason", "notes.txt,no image by its name"]
        assert len(lines) == 4
        with pytest.raises(ImageError, match="cut.png: |empty.jpg: "):
            load_images(tmp_path, on_error="raise")

    @pytest.mark.parametrize("cause", ["link", "pipe"])
    def test_what_is_no_file_stops_where_all_shall_be_read(self, tmp_path: Path, cause: str) -> None:
        save(tmp_path / "a.png")
        (tmp_path / "notes.txt").write_text("hello")
        assert len(load_images(tmp_path, on_error="raise")) == 1
        if cause == "link":
            (tmp_path / "broken.png").symlink_to("nothing")
        else:
            os.mkfifo(tmp_path / "broken.png")
        with pytest.raises(
            ImageError, match=r"broken\.png: expected an image that can be read, got (a link|no regular)"
        ):
            load_images(tmp_path, on_error="raise")

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        os.mkfifo(tmp_path / "pipe.png")
        images = load_images(tmp_path)
        assert images.skipped == [("pipe.png", "no regular file")]
        with pytest.raises(ImageError, match="pipe.png: expected a file, got a folder or a device"):
            load_images(tmp_path / "pipe.png")

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(ImageError, match="expected images, got none; skipped 1 file, first notes.txt: no image by"):
            load_images(tmp_path)
        (tmp_path / "a.png").write_bytes(b"x")
        with pytest.raises(ImageError, match="expected images, got none; skipped 2 files"):
            load_images(tmp_path)

    def test_no_image_in_a_batch_or_a_store(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="expected images, got none; skipped 0 files"):
            Images(Files([]))
        save(tmp_path / "a.png")
        for cache in ("ram", "none"):
            assert not len(load_images(tmp_path, cache=cache).images_at([]))
        assert not len(load_images(pixels(3, 8, 9)).images_at([]))

    def test_a_file_that_vanishes_or_changes_is_named(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(8, 8))
        images = load_images(tmp_path, cache="none")
        for changed in (pixels(8, 8, 3), pixels(8, 8)):
            save(tmp_path / "a.png", changed)
            with pytest.raises(ImageError, match=r"a\.png: expected the image that was read first, got another one"):
                images[0]
        (tmp_path / "a.png").unlink()
        with pytest.raises(ImageError, match=r"a\.png: No such file"):
            images[0]


class TestOtherSources:
    def test_list_of_paths(self, tmp_path: Path) -> None:
        stored = save(tmp_path / "images" / "a.png")
        (tmp_path / "list.txt").write_text("images/a.png\n\n")
        images = load_images(tmp_path / "list.txt")
        np.testing.assert_array_equal(hwc(images[0]), stored)
        (tmp_path / "list.txt").write_text("\n")
        with pytest.raises(ValueError, match=r"list\.txt: expected a path on each line"):
            load_images(tmp_path / "list.txt")

    def test_one_file(self, tmp_path: Path) -> None:
        stored = save(tmp_path / "a.png")
        np.testing.assert_array_equal(hwc(load_images(tmp_path / "a.png")[0]), stored)

    def test_several_sources_keep_their_names_apart(self, tmp_path: Path) -> None:
        for name in ("train/x/a.png", "test/x/a.png", "test/y/a.png"):
            save(tmp_path / name)
        images = load_images(tmp_path / "train", tmp_path / "test", labels="folders")
        assert images.names == ["train/x/a.png", "test/x/a.png", "test/y/a.png"]
        assert images.labels is not None
        assert images.labels.tolist() == [0, 0, 1]
        assert images.classes == ("x", "y")
        with pytest.raises(ValueError, match="expected every image once, got .*/train/x/a.png again"):
            load_images(tmp_path / "train", tmp_path / "train")
        with pytest.raises(ValueError, match="expected every image once, got .*/train/x/a.png again"):
            load_images(tmp_path / "train", tmp_path / "train" / "x")

    @pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 3), (5, 3, 8, 9), (5, 8, 9, 1), (5, 13, 20, 24)])
    def test_arrays(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        values = pixels(*shape)
        np.save(tmp_path / "a.npy", values)
        expected = (
            values[:, None] if values.ndim == 3 else values if shape[1] < shape[3] else values.transpose(0, 3, 1, 2)
        )
        for source in (values, tmp_path / "a.npy", str(tmp_path / "a.npy")):
            images = load_images(source)
            np.testing.assert_array_equal(images[2], expected[2])
            np.testing.assert_array_equal(images.images_at([2, 0, 2]), expected[[2, 0, 2]])
        assert images.names[2] == "a.npy[2]"

    def test_a_mapped_array_is_not_carried_to_other_processes(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", pixels(2000, 16, 16, 3))
        images = load_images(tmp_path / "a.npy")
        assert len(pickle.dumps(images)) < 200_000  # the pixels are 1.5 MB
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[7], images[7])

    @pytest.mark.parametrize(
        ("values", "error"),
        [
            (np.zeros((5, 8)), r"images: expected shape \(N, H, W\)"),
            (np.zeros((3, 0, 8, 3)), r"images: expected shape \(N, H, W\)"),
            (np.zeros((5, 8, 8, 8)), "the second or the last side to be smaller"),
            (np.zeros((5, 8, 9), complex), "expected real numbers, got complex128"),
            (np.zeros((0, 8, 9)), "expected images, got none"),
        ],
    )
    def test_arrays_of_another_kind(self, values: NDArray[Any], error: str) -> None:
        with pytest.raises((TypeError, ValueError), match=error):
            load_images(values)

    def test_npz(self, tmp_path: Path) -> None:
        values, labels = pixels(6, 8, 8), np.arange(6)[:, None] % 3
        np.savez(tmp_path / "mnist.npz", train_images=values[:4], test_images=values[4:], train_labels=labels[:4])
        with pytest.raises(
            ValueError, match="expected one array of images, got train_images, test_images; write one to a file"
        ):
            load_images(tmp_path / "mnist.npz")
        with pytest.raises(KeyError, match="val_images"):
            load_images(tmp_path / "mnist.npz", keys=["val_images"])
        images = load_images(tmp_path / "mnist.npz", keys=["train_images", "test_images"])
        np.testing.assert_array_equal(torch.stack(list(images))[:, 0], values)
        assert images.names[4] == "mnist.npz:test_images[0]"
        labeled = load_images(tmp_path / "mnist.npz", keys=["train_images"], labels="train_labels")
        assert [label for _, label in labeled] == [0, 1, 2, 0]

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    @pytest.mark.parametrize("data", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{", "cut", "objects"])
    def test_damaged_arrays_are_named(self, tmp_path: Path, name: str, data: bytes | str) -> None:
        path = tmp_path / name
        whole = np.array([[[{}]]], dtype=object) if data == "objects" else pixels(40, 8, 9)
        np.save(path, whole) if name == "a.npy" else np.savez(path, images=whole)
        if data != "objects":
            path.write_bytes(path.read_bytes()[:200] if isinstance(data, str) else data)
        with pytest.raises((ValueError, KeyError), match=rf"{name}: expected"):
            load_images(path)

    def test_text_of_another_encoding_is_named(self, tmp_path: Path) -> None:
        save(tmp_path / "data" / "a.png")
        for name in ("labels.csv", "list.txt"):
            (tmp_path / name).write_bytes("path,label\na.png,caf\xe9\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"labels\.csv: expected text in UTF-8"):
            load_images(tmp_path / "data", labels=tmp_path / "labels.csv")
        with pytest.raises(ValueError, match=r"list\.txt: expected text in UTF-8"):
            load_images(tmp_path / "list.txt")

    def test_settings_and_keys_are_named(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        with pytest.raises(TypeError, match="settings: expected some of size, channels, scale, .*, got sizes"):
            load_images(tmp_path, sizes=3)
        with pytest.raises(ValueError, match="keys: expected an .npz file among the sources"):
            load_images(tmp_path, keys=["a"])
        np.savez(tmp_path / "a.npz", a=pixels(3, 8, 9))
        with pytest.raises(TypeError, match="keys: expected a list of names, got 'a'"):
            load_images(tmp_path / "a.npz", keys="a")
        for size in (1.5, True, "7"):
            with pytest.raises(TypeError, match="size: expected an integer"):
                load_images(tmp_path, size=size)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="none: expected a folder or a file of images, found nothing"):
            load_images(tmp_path / "none")
        with pytest.raises(ValueError, match="sources: expected folders, files or arrays, got none"):
            load_images()
        with pytest.raises(TypeError, match="sources: expected folders, files or arrays, got int"):
            load_images(3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("channels", [3, 4])
    def test_an_array_that_looks_like_one_image(self, channels: int) -> None:
        values = pixels(8, 9, channels)
        with pytest.raises(ValueError, match=rf"got \(8, 9, {channels}\), which looks like one image .* array\[None\]"):
            load_images(values)
        assert load_images(values[None])[0].shape == (channels, 8, 9)
        assert load_images(values[..., None])[0].shape == (1, 9, channels)
        assert len(load_images(pixels(4, 3, 3))) == 4  # images of 3 x 3

    def test_floats_beyond_0_to_1_are_noted(self) -> None:
        within, beyond = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8), pixels(2, 8, 8).astype(np.float32)
        assert not any("floats" in note for note in load_images(within).notes)
        within[0, 0, 0] = np.nan
        assert not any("floats" in note for note in load_images(within).notes)
        beyond[0] /= 255
        (note,) = (note for note in load_images(beyond).notes if "floats" in note)
        low, high = beyond[1].min(), beyond[1].max()
        assert note.startswith(f"1 image of floats, 0 being black and 1 white, from {low:g} to {high:g}")
        assert not any("floats" in note for note in load_images(beyond, scale="percentile").notes)

    def test_wide_integers_that_hardly_differ_are_noted(self) -> None:
        (note,) = (note for note in load_images(pixels(2, 8, 8).astype(np.int64)).notes if "integers" in note)
        assert note.endswith("store them as uint8 or uint16, or use scale='percentile'")
        whole = np.array([[[0, 2**32 - 1]]], np.uint32)
        assert not any("integers" in note for note in load_images(whole).notes)

    def test_two_folders_of_one_name(self, tmp_path: Path) -> None:
        for name in ("1/images/a.png", "2/images/a.png", "3/others/a.png"):
            save(tmp_path / name)
        images = load_images(tmp_path / "1/images", tmp_path / "2/images", tmp_path / "3/others")
        first, second = (f"{(tmp_path / name).as_posix()}/images/a.png" for name in ("1", "2"))
        assert images.names == [first, second, "others/a.png"]
        with pytest.raises(ValueError, match="expected every image once"):
            load_images(tmp_path / "1/images", tmp_path / "1/images")

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        for name, whole in ((b"caf\xe9.png", True), (b"th\xe9.png", False)):
            path = tmp_path / "data" / os.fsdecode(name)
            save(path)
            if not whole:
                path.write_bytes(b"broken")
        images = load_images(tmp_path / "data")
        assert fingerprint(images) != fingerprint(load_images(pixels(1, 12, 16, 3)))
        images.write_skipped(tmp_path / "skipped.csv")
        assert b"th\xe9.png" in (tmp_path / "skipped.csv").read_bytes()

    def test_a_folder_that_cannot_be_read_is_skipped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "a.png")
        save(tmp_path / "closed" / "b.png")
        right = os.scandir

        def scan(folder: Path) -> Any:
            if folder.name == "closed":
                raise PermissionError(13, "Permission denied", str(folder))
            return right(folder)

        monkeypatch.setattr(os, "scandir", scan)
        images = load_images(tmp_path)
        assert images.names == ["a.png"]
        assert images.skipped == [("closed", "a folder that cannot be read")]


class TestKinds:
    def test_gray_among_color(self, tmp_path: Path) -> None:
        gray, color = save(tmp_path / "a.png", pixels(12, 16)), save(tmp_path / "b.png")
        images = load_images(tmp_path)
        np.testing.assert_array_equal(hwc(images[0]), np.repeat(gray, 3, axis=2))
        np.testing.assert_array_equal(hwc(images[1]), color)
        assert any("1 gray image among colored ones" in note for note in images.notes)

    def test_other_numbers_of_bands_stop(self, tmp_path: Path) -> None:
        for name, bands in (("a.tif", 5), ("b.tif", 5), ("c.tif", 8)):
            tifffile.imwrite(tmp_path / name, pixels(9, 10, bands), planarconfig="contig", photometric="minisblack")
        with pytest.raises(ImageError, match="c.tif: expected 5 bands as in most files, got 8"):
            load_images(tmp_path)

    @pytest.mark.parametrize("bands", [2, 3, 13])
    def test_what_needs_colors_is_told(self, bands: int) -> None:
        notes = load_images(pixels(4, 20, 24, bands)).notes
        said = f"4 images of {bands} bands, not three colors: views leave out saturation, hue and gray"
        assert (said in notes) == (bands != 3)

    def test_of_gray_colors_and_more_bands_the_more_are_named(self, tmp_path: Path) -> None:
        for name, shape in (("a.png", (8, 8)), ("b.png", (8, 8)), ("c.png", (8, 8, 3))):
            save(tmp_path / name, pixels(*shape))
        tifffile.imwrite(tmp_path / "d.tif", pixels(8, 8, 4), photometric="rgb", extrasamples=["unspecified"])
        with pytest.raises(ImageError, match=r"d\.tif: expected 1 band as in most files, got 4"):
            load_images(tmp_path)

    @pytest.mark.parametrize("size", [None, 8])
    def test_percentiles(self, tmp_path: Path, size: int | None) -> None:
        values = RNG.normal(1000, 50, (4, 64, 64)).astype(np.float32)
        values[0, :2] = -9999
        for index, image in enumerate(values):
            tags = [(42113, "s", 0, "-9999", True)]
            tifffile.imwrite(tmp_path / f"{index}.tif", image, extratags=tags)
        images = load_images(tmp_path, scale="percentile", size=size)
        valid = values[values > 0]
        assert images.range is not None
        assert (images.range.low, images.range.high) == pytest.approx(np.percentile(valid, [0.1, 99.9]), abs=1)
        assert "128 values missing in 1 image, taken for 0" in images.notes
        low, high = images.range.low, images.range.high
        if size is None:
            np.testing.assert_allclose(images[1][0], (values[1] - low) / (high - low), atol=1e-6)
            assert images[0][0, :2].eq(0).all()
        else:
            assert images[0].min() > 0.1  # the filled value does not bleed

    def test_percentiles_of_different_types_are_refused(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png", pixels(8, 8))
        Image.fromarray(pixels(8, 8).astype(np.uint16)).save(tmp_path / "b.png")
        with pytest.raises(ImageError, match="b.png: .*uint8 up to 255 as in a.png, got uint16 up to 65535"):
            load_images(tmp_path, scale="percentile")

    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_canvas(self, tmp_path: Path, cache: str) -> None:
        stored = save(tmp_path / "a.png", pixels(40, 30, 3))
        save(tmp_path / "b.png", pixels(8, 8, 3))
        assert load_images(tmp_path).image_size is None
        images = load_images(tmp_path, size=16, cache=cache)
        assert images.image_size == (16, 16)
        image = torch.from_numpy(stored).permute(2, 0, 1)[None]
        expected = functional.interpolate(image, (16, 16), mode="bilinear", antialias=True)[0]
        assert np.abs(scaled(images[0]) - expected.numpy()).max() < 0.51 / 255  # kept as uint8

    def test_fingerprint(self, tmp_path: Path) -> None:
        values = pixels(3, 8, 9)
        first = load_images(values).fingerprint
        assert load_images(values.copy()).fingerprint == first
        assert load_images(values[::-1].copy()).fingerprint != first
        assert load_images(values, size=4).fingerprint != first
        changed = values.copy()
        changed[2, 7, 8] ^= 1
        assert load_images(changed).fingerprint != first

    def test_memory_decides_what_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "a.png")
        assert "1 image, kept in memory" in load_images(tmp_path).notes
        monkeypatch.setattr(os, "sysconf", lambda name: 10)
        assert "1 image, read from their files each time" in load_images(tmp_path).notes

    @pytest.mark.parametrize(
        "settings", [{"size": 0}, {"scale": "minmax"}, {"cache": "tape"}, {"on_error": "ignore"}], ids=str
    )
    def test_settings(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
            load_images(pixels(3, 8, 9), **settings)

    def test_all_kinds_go_through_inference_with_workers(self, tmp_path: Path) -> None:
        for place in range(6):
            save(tmp_path / f"{place}.png")
        images: Images = load_images(tmp_path, labels=list(range(6)), cache="none")
        means, labels = map_images(
            lambda batch: (batch.float().mean((1, 2, 3)),), images, batch_size=4, num_workers=2, with_labels=True
        )
        np.testing.assert_array_equal(labels, np.arange(6))
        expected = torch.stack([image.float().mean() for image, _ in copy.copy(images)])
        torch.testing.assert_close(means, expected)
