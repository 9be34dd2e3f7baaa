"""Patches of photographs, as the benchmark writes them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import patches


def test_a_folder_for_each_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(gray: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.full((100, 120, 3), gray, dtype=np.uint8)

    names = ("astronaut", "cat", "coffee", "rocket")
    shipped = {name: lambda gray=gray: plain(gray) for gray, name in enumerate(names)}
    data = SimpleNamespace(**shipped, stereo_motorcycle=lambda: (plain(9), plain(10), None))
    monkeypatch.setitem(sys.modules, "skimage", SimpleNamespace(data=data))
    monkeypatch.setattr(patches, "PATCHES", 3)
    assert patches.main([str(tmp_path / "patches")]) == 0
    folders = sorted(path.name for path in (tmp_path / "patches").iterdir())
    assert folders == ["astronaut", "cat", "china", "coffee", "flower", "motorcycle", "rocket"]
    for name, gray in (("cat", 1), ("motorcycle", 9)):
        paths = sorted((tmp_path / "patches" / name).iterdir())
        assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
        with Image.open(paths[2]) as image:
            assert (np.asarray(image) == np.full((32, 32, 3), gray)).all()


def test_what_exists_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        patches.main([str(tmp_path)])
    assert stop.value.code == 2
    assert f"folder: expected a new one, got {tmp_path}, which exists" in capsys.readouterr().err
