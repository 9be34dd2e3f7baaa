"""Images that are kept in a file: written once, whole, found again, and never used where they are others."""

import errno
import fcntl
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from deepclust_ext.data import ImageError, Images, kept, load_images, sources
from deepclust_ext.inference import map_images
from tests.helpers import loading_processes

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write six photographs of one size."""
    root = tmp_path / "images"
    root.mkdir()
    for place in range(6):
        Image.fromarray(RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(root / f"{place}.png")
    return root


def on_disk(folder: Path, **settings: Any) -> Images:
    return load_images(folder, cache="disk", cache_folder=folder.parent / "cache", **settings)


def file_of(folder: Path) -> Path:
    (path,) = (folder.parent / "cache").iterdir()
    return path


def stacked(images: Images) -> torch.Tensor:
    return torch.stack(list(images))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with an entry for each image that is decoded to be kept or used, not merely looked at."""
    calls: list[int] = []
    right = Images._decoded

    def counted(self: Images, index: int) -> Any:
        calls.append(index)
        return right(self, index)

    monkeypatch.setattr(Images, "_decoded", counted)
    return calls


def test_it_is_written_once_and_found_again(folder: Path, conversions: list[int]) -> None:
    expected = stacked(load_images(folder, cache="none"))
    conversions.clear()
    first = on_disk(folder)
    path = file_of(folder)
    assert f"6 images, kept in {path}" in first.notes
    assert sorted(conversions) == list(range(6))
    again = on_disk(folder)
    assert f"6 images, found in {path}" in again.notes
    for images in (first, again, pickle.loads(pickle.dumps(first))):
        assert torch.equal(stacked(images), expected)
        assert torch.equal(torch.as_tensor(images.images_at([5, 0, 5])), expected[[5, 0, 5]])
    assert len(conversions) == 6
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), expected)  # a .npy file like others
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_images_of_different_sizes(folder: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (7, 5)).astype(np.uint8)).save(folder / "3.png")
    expected = list(load_images(folder, cache="none"))
    for images in (on_disk(folder), on_disk(folder), load_images(folder, cache="ram")):
        found = images.images_at([3, 0])
        assert [tuple(image.shape) for image in found] == [(3, 7, 5), (3, 12, 16)]
        for place in range(6):
            assert torch.equal(images[place], expected[place])
        assert torch.equal(images[-1], expected[5])
        images[3].zero_()
        assert torch.equal(images[3], expected[3])  # that was a copy


def test_other_images_and_settings_have_files_of_their_own(folder: Path) -> None:
    on_disk(folder)
    assert "kept" in on_disk(folder, size=8).notes[0]
    Image.fromarray(RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(folder / "3.png")
    changed = on_disk(folder)
    assert "kept" in changed.notes[0]
    assert torch.equal(stacked(changed), stacked(load_images(folder, cache="none")))
    assert len(list((folder.parent / "cache").iterdir())) == 3


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (flipped, "a damaged file: its checksum is not that of its bytes"),
        (lambda data: data[:-1], "a file that is incomplete or of another kind"),
        (lambda data: data[:100], "a file that is incomplete or of another kind"),
        (lambda data: b"", "a file that is incomplete or of another kind"),
        (lambda data: data.replace(b"images 1 ", b"images 0 "), "a file that is incomplete or of another kind"),
        (lambda data: data[:-73] + b"0" * 64 + data[-9:], "those of another one"),
    ],
)
def test_what_is_not_whole_is_refused_and_stays(folder: Path, damage: Callable[[bytes], bytes], fault: str) -> None:
    on_disk(folder)
    path = file_of(folder)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"images-.*\.npy: expected the decoded images .*, got {fault}; remove it"):
        on_disk(folder)
    assert path.read_bytes() == damaged
    path.unlink()
    assert "kept" in on_disk(folder).notes[0]


@pytest.mark.parametrize("moment", ["posix_fallocate", "fsync"])
def test_a_full_disk_is_named_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match=r"images-.*\.npy: cannot be written: No space left on device") as caught:
        on_disk(folder)
    assert caught.value.errno == errno.ENOSPC
    assert not list((folder.parent / "cache").iterdir())


def test_a_disk_that_cannot_reserve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    expected = stacked(load_images(folder, cache="none"))
    assert torch.equal(stacked(on_disk(folder)), expected)
    monkeypatch.delattr(os, "posix_fallocate")
    file_of(folder).unlink()
    assert torch.equal(stacked(on_disk(folder)), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("cache", ["disk", "ram", "none"])
def test_what_interrupts_leaves_no_file_and_no_thread(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], cache: str
) -> None:
    right = Images._decoded

    def interrupted(self: Images, index: int) -> Any:
        if index == 3:
            raise error
        return right(self, index)

    monkeypatch.setattr(Images, "_decoded", interrupted)
    before = threading.active_count()
    with pytest.raises(error):
        load_images(folder, cache=cache, cache_folder=folder.parent / "cache").images_at(range(6))
    assert threading.active_count() == before
    assert not list((folder.parent / "cache").glob("*"))


@pytest.mark.parametrize("cache", ["disk", "ram"])
def test_a_file_that_changes_before_it_is_kept_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    right = Images._keep

    def late(self: Images, *arguments: Any) -> Any:
        Image.fromarray(RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(folder / "2.png")
        (folder / "4.png").unlink()
        return right(self, *arguments)

    monkeypatch.setattr(Images, "_keep", late)
    with pytest.raises(ImageError, match=r"2\.png: expected the image that was read first, got another one since"):
        load_images(folder, cache=cache, cache_folder=folder.parent / "cache")
    assert not list((folder.parent / "cache").glob("*"))


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_a_mapped_file_that_changes_or_vanishes_is_named(folder: Path, cache: str) -> None:
    if cache == "disk":
        images = on_disk(folder)
        path = file_of(folder)
    else:
        path = folder / "rows.npy"
        np.save(path, RNG.integers(0, 256, (6, 12, 16, 3)).astype(np.uint8))
        images = load_images(path)
    copy = path.read_bytes()
    images.images_at([0])
    with path.open("rb+") as file:
        file.seek(len(copy) - 200)
        file.write(b"\0" * 8)
    for read in (lambda: images[0], lambda: images.images_at([0, 1]), lambda: pickle.loads(pickle.dumps(images))[0]):
        with pytest.raises(ImageError, match=rf"{path.name}: expected the file that was opened first, got one that"):
            read()
    path.unlink()
    with pytest.raises(ImageError, match=rf"{path.name}: No such file or directory"):
        images.images_at([0])


def test_of_two_that_want_the_same_file_one_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, writers = threading.Event(), []
    right = kept._write

    def slow(*arguments: Any) -> None:
        writers.append(arguments[0])
        entered.set()
        time.sleep(0.3)
        right(*arguments)

    monkeypatch.setattr(kept, "_write", slow)
    found: list[Images] = []
    threads = [threading.Thread(target=lambda: found.append(on_disk(folder))) for _ in range(2)]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(writers) == 1
    assert sorted(images.notes[0].split()[2] for images in found) == ["found", "kept"]
    assert torch.equal(stacked(found[0]), stacked(found[1]))
    assert file_of(folder).suffix == ".npy"


def test_who_waits_in_vain_leaves_the_writer_s_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    unfinished = folder / "images.npy.tmp"
    with kept._locked(unfinished):
        monkeypatch.setattr(fcntl, "flock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept.keep_in_file(folder / "images.npy", "", [], np.dtype(np.uint8), 1, np.ones((1, 2), np.int64))
        assert unfinished.exists()


def test_who_waits_does_not_write_into_a_file_that_is_gone(folder: Path) -> None:
    unfinished = folder / "images.npy.tmp"
    waiting, written = threading.Event(), []

    def wait() -> None:
        waiting.set()
        with kept._locked(unfinished) as file:
            written.append(os.path.samestat(os.fstat(file.fileno()), unfinished.stat()))

    thread = threading.Thread(target=wait)
    with kept._locked(unfinished):
        thread.start()
        assert waiting.wait(20)
        time.sleep(0.2)
        unfinished.unlink()  # as a writer does that fails
    thread.join()
    assert written == [True]


def test_a_value_that_is_missing_now_is_another_image(tmp_path: Path) -> None:
    values = np.full((8, 8), 200, np.uint8)
    values[:4] = 100
    tifffile.imwrite(tmp_path / "a.tif", values)
    before = load_images(tmp_path / "a.tif", cache="disk", cache_folder=tmp_path)
    late = load_images(tmp_path / "a.tif", cache="none")
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, 2, 0, "200", True)])
    after = load_images(tmp_path / "a.tif", cache="disk", cache_folder=tmp_path)
    assert before.fingerprint != after.fingerprint
    assert (before[0].unique().tolist(), after[0].unique().tolist()) == ([100, 200], [0, 100])
    with pytest.raises(ImageError, match=r"a\.tif: expected the image that was read first"):
        late.images_at([0])


def test_what_a_killed_process_left_is_written_again(folder: Path) -> None:
    on_disk(folder)
    path = file_of(folder)
    whole = path.read_bytes()
    path.rename(path.with_name(f"{path.name}.tmp"))
    path.with_name(f"{path.name}.tmp").write_bytes(b"x" * 10_000)
    on_disk(folder)
    assert file_of(folder).read_bytes() == whole


def test_workers_map_the_file(folder: Path) -> None:
    images = on_disk(folder)
    assert len(pickle.dumps(images)) < 6 * 12 * 16 * 3 + 4000  # without the pixels
    (sums,) = map_images(lambda batch: (batch.float().sum((1, 2, 3)),), images, batch_size=2, num_workers=2)
    torch.testing.assert_close(sums, stacked(images).float().sum((1, 2, 3)))
    assert not loading_processes()


def test_what_fits_is_chosen_and_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = folder.parent / "cache"
    size = 6 * 12 * 16 * 3
    for free, cache_folder, chosen in (
        (4 * size, None, "kept in memory"),
        (4 * size - 1, None, "read from their files each time"),
        (4 * size - 1, cache, "kept in "),
        (4 * size, cache, "kept in memory"),
    ):
        monkeypatch.setattr(sources, "free_memory", lambda free=free: free)
        load_images(folder, cache_folder=cache_folder)
        assert capsys.readouterr().err.startswith(f"deepclust-ext: 6 images, {chosen}")
    monkeypatch.setattr(sources, "free_memory", lambda: 4 * size - 1)
    assert "kept in memory" in load_images(folder, size=8).notes[0]
    load_images(np.zeros((4, 8, 8), np.uint8), cache="none")
    capsys.readouterr()
    load_images(np.zeros((4, 8, 8), np.uint8))
    assert capsys.readouterr().err == "deepclust-ext: 4 images, in an array\n"
    with pytest.raises(ValueError, match="cache_folder: expected a folder with cache='disk', got None"):
        load_images(folder, cache="disk")
