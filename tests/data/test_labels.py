"""Classes of images: by folders, CSV files and arrays, and what is wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepclust_ext.data import ImageError, load_images
from tests.data.imagefiles import pixels, save


class TestLabels:
    def test_by_folders(self, tmp_path: Path) -> None:
        for name in ("10/a.png", "9/a.png", "9/deep/b.png"):
            save(tmp_path / name)
        images = load_images(tmp_path, labels="folders")
        assert images.classes == ("9", "10")  # as numbers
        assert [label for _, label in images] == [1, 0, 0]
        save(tmp_path / "loose.png")
        with pytest.raises(
            ValueError, match="in a folder of its class, got loose.png; move it into one, or give labels as"
        ):
            load_images(tmp_path, labels="folders")

    def test_by_csv(self, tmp_path: Path) -> None:
        for name in ("a.png", "x/b.png"):
            save(tmp_path / "data" / name)
        table = tmp_path / "labels.csv"
        table.write_text("path,label\nx/b.png,dog\na.png,cat\nunused.png,cow\n")
        images = load_images(tmp_path / "data", labels=table)
        assert images.classes == ("cat", "dog")
        assert images.labels is not None
        assert images.labels.tolist() == [0, 1]
        for text, error in (
            ("file,label\na.png,1\n", "expected the columns path and label"),
            ("path,label\na.png,1\n", "none for 1, such as x/b.png"),
            ("path,label\na.png,1\na.png,2\n", "line 3: expected each image once, got a.png again"),
            ("path,label\na.png,\n", "line 2: expected a label for a.png, got none"),
            ("path,label\na.png,  \n", "line 2: expected a label for a.png, got none"),
            ("path,label\na.png,cat, big\n", "line 2: expected a comma only within quotes, got one in a.png's row"),
            ("path,label\na.png," + 200_000 * "a", "expected a table of path and label: field larger than"),
        ):
            table.write_text(text)
            with pytest.raises(ValueError, match=error):
                load_images(tmp_path / "data", labels=table)

    def test_labels_stay_with_their_images_when_one_is_skipped(self, tmp_path: Path) -> None:
        for name in ("a/1.png", "b/1.png", "b/2.png"):
            save(tmp_path / name)
        (tmp_path / "b/1.png").write_bytes(b"")
        images = load_images(tmp_path, labels="folders")
        assert images.names == ["a/1.png", "b/2.png"]
        assert [label for _, label in images] == [0, 1]

    def test_names_with_ends_of_lines(self, tmp_path: Path) -> None:
        for name in ("a\nb.png", "c\u2028d.png"):
            save(tmp_path / "data" / name)
        table = tmp_path / "labels.csv"
        table.write_text('path,label\n"a\nb.png",cat\nc\u2028d.png,dog\n', encoding="utf-8")
        assert [label for _, label in load_images(tmp_path / "data", labels=table)] == [0, 1]

    def test_absolute_paths_lie_in_no_class(self, tmp_path: Path) -> None:
        save(tmp_path / "cat" / "a.png")
        (tmp_path / "list.txt").write_text(f"{tmp_path / 'cat' / 'a.png'}\n")
        with pytest.raises(ValueError, match=r"expected every image in a folder of its class, got .*/cat/a\.png"):
            load_images(tmp_path / "list.txt", labels="folders")

    def test_paths_as_a_list_has_them(self, tmp_path: Path) -> None:
        for name in ("a.png", "x/b.png"):
            save(tmp_path / "data" / name)
        listing, table = tmp_path / "data" / "list.txt", tmp_path / "labels.csv"
        listing.write_text(f"x/b.png\n{tmp_path}/data/a.png\n")
        for names in (("a.png", "x/b.png"), (tmp_path / "data" / "a.png", "./x/b.png")):
            table.write_text(f"path,label\n{names[0]},cat\n{names[1]},dog\n")
            assert [label for _, label in load_images(listing, labels=table)] == [1, 0]

    def test_what_is_skipped_needs_no_label(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png", "c.png"):
            save(tmp_path / "data" / name)
        (tmp_path / "data/a.png").write_bytes(b"broken")
        table = tmp_path / "labels.csv"
        table.write_text("path,label\nb.png,dog\nc.png,cat\n")
        images = load_images(tmp_path / "data", labels=table)
        assert images.names == ["b.png", "c.png"]
        assert [label for _, label in images] == [1, 0]
        assert images.classes == ("cat", "dog")
        with pytest.raises(ImageError, match=r"a\.png"):
            load_images(tmp_path / "data", labels=table, on_error="raise")
        table.write_text("path,label\nc.png,cat\n")
        with pytest.raises(ValueError, match=r"expected a label for every image, got none for 2, such as b\.png$"):
            load_images(tmp_path / "data", labels=table)

    def test_paths_that_begin_at_another_folder(self, tmp_path: Path) -> None:
        save(tmp_path / "data" / "a.png")
        table = tmp_path / "labels.csv"
        table.write_text("path,label\ndata/a.png,dog\n")
        with pytest.raises(ValueError, match=r"got none for 1, such as a\.png; its first path is data/a\.png$"):
            load_images(tmp_path / "data", labels=table)

    @pytest.mark.parametrize(
        ("labels", "error"),
        [
            ([0, 1], "one class for each of 3 images, got shape"),
            (np.zeros((3, 14), int), r"got shape \(3, 14\)"),
            ([0.0, 1.0, 2.0], "expected whole numbers, got float64"),
            (
                "classes",
                "expected 'folders', 'own' of an .npz file, or a CSV file of path and label, got 'classes'",
            ),
        ],
    )
    def test_other_labels(self, labels: Any, error: str) -> None:
        with pytest.raises(ValueError, match=error):
            load_images(pixels(3, 8, 9), labels=labels)


def test_a_file_that_cannot_be_read_needs_no_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "0.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = load_images(tmp_path, labels="folders")
    assert images.classes == ("a", "b")
    assert [name for name, _ in images.skipped] == ["broken.png"]
    save(tmp_path / "alone.png")
    with pytest.raises(ValueError, match="expected every image in a folder of its class, got alone.png"):
        load_images(tmp_path, labels="folders")


def test_the_labels_of_an_npz_file_are_told_by_their_number(tmp_path: Path) -> None:
    path, images = tmp_path / "scans.npz", np.zeros((4, 2, 3), np.uint8)
    images[:] = np.arange(4, dtype=np.uint8)[:, None, None]
    np.savez(path, x=images, y=np.array([3, 1, 1, 2]), other=np.array([1, 2, 3]), weights=np.ones(4))
    loaded = load_images(path, labels="own")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [2, 0, 0, 1]
    np.savez(path, x=images, y=np.array([3, 1, 1, 2]), z=np.array([[3], [1], [1], [2]]))
    with pytest.raises(ValueError, match="labels: expected one array of .*, got y, z; name one of them"):
        load_images(path, labels="own")
    assert load_images(path, labels="z").classes == ("1", "2", "3")
    np.savez(path, x=images, weights=np.ones(4))
    with pytest.raises(ValueError, match="labels: expected one array .*, got none among x, weights"):
        load_images(path, labels="own")


def test_images_without_labels_of_their_own_are_named(tmp_path: Path) -> None:
    images = np.zeros((4, 2, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    for source, name in ((images, "an array"), (tmp_path / "images.npy", ".*images.npy")):
        with pytest.raises(
            ValueError, match=f"labels: expected 'folders' or a CSV file, since .*, got 'own' of {name}"
        ):
            load_images(source, labels="own")
