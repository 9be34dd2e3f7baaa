"""Rows of features from files and arrays: what stores of features get wrong, types, names, labels, and faults."""

import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deepclust_ext.data import Features, ImageError, feature_stores, load_features
from deepclust_ext.data.features import are_features
from deepclust_ext.inference import map_images
from deepclust_ext.runs.rows import write_rows
from deepclust_ext.training.checkpoint import fingerprint

COUNT, COLUMNS = 13, 5


def rows(dtype: Any = np.float16) -> NDArray[Any]:
    """Return rows none of which is like another."""
    return np.random.default_rng(0).standard_normal((COUNT, COLUMNS)).astype(dtype)


def needed_pyarrow() -> Any:
    """Return pyarrow; without it the test is skipped."""
    pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow", exc_type=ImportError)
    return sys.modules["pyarrow"]


def write(path: Path, values: NDArray[Any], **others: NDArray[Any]) -> Path:
    """Write rows as the file's name ends."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, **{"rows": values, **others})  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        write_safetensors(path, {"rows": values, **others})
    else:
        pyarrow = needed_pyarrow()
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
        columns = {name: pyarrow.array(other) for name, other in others.items()}
        pyarrow.parquet.write_table(pyarrow.table({"rows": column, **columns}), path, row_group_size=4)
    return path


def write_safetensors(path: Path, tensors: dict[str, Any], *, bfloat16: bool = False) -> None:
    """Write the file by its format, without the package."""
    names = {"f2": "F16", "f4": "F32", "f8": "F64", "i8": "I64", "u2": "BF16"}
    header, data = {}, b""
    for name, values in tensors.items():
        part = np.ascontiguousarray(values).tobytes()
        kind = names[values.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps({"__metadata__": {"made": "here"}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def matrix(features: Features, places: Any = None) -> NDArray[np.float32]:
    """Return rows (B, D), by default all."""
    found = features.images_at(range(len(features)) if places is None else places)
    assert found.dtype == torch.float32
    assert found.shape[2:] == (1, 1)
    return found.flatten(1).numpy()


@pytest.fixture(params=[".npy", ".npz", ".safetensors", ".parquet"])
def suffix(request: pytest.FixtureRequest) -> str:
    if request.param == ".parquet":
        needed_pyarrow()
    return str(request.param)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_any_type_in_any_order(suffix: str, dtype: Any, tmp_path: Path) -> None:
    path, values = tmp_path / f"x{suffix}", rows(dtype)
    before = write(path, values).read_bytes()
    assert are_features([str(path)])
    features = load_features(path)
    assert (len(features), features.channels, features.kind) == (COUNT, COLUMNS, np.dtype(dtype).name)
    order = [7, 0, 12, 7]
    np.testing.assert_array_equal(matrix(features, order), values[order].astype(np.float32))
    stored = features.stored()
    assert stored.dtype == torch.from_numpy(values).dtype
    np.testing.assert_array_equal(stored.numpy(), values)
    assert features[3].shape == (COLUMNS, 1, 1)
    assert len({*features.names}) == COUNT
    assert path.read_bytes() == before  # a user's file is never written


def test_types_of_the_file_stay_until_a_batch(tmp_path: Path) -> None:
    part = load_features(write(tmp_path / "x.npy", rows())).parts[0]
    assert isinstance(part.array, np.memmap)
    assert part.array.dtype == np.float16
    assert not part.array.flags.writeable
    features = load_features(tmp_path / "x.npy")
    assert np.shares_memory(features.stored().numpy(), features.parts[0].array)  # no copy


def test_an_npz_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.npz", rows())
    opened: list[Any] = []
    load = np.load

    def noted(*given: Any, **how: Any) -> Any:
        opened.append(given)
        return load(*given, **how)

    monkeypatch.setattr(np, "load", noted)
    features = load_features(path)
    first = matrix(features)
    np.testing.assert_array_equal(matrix(features), first)
    assert len(opened) == 1


def test_an_npz_file_that_memory_does_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.npz", rows())
    monkeypatch.setattr(feature_stores, "free_memory", lambda: 2 * rows().nbytes - 1)
    with pytest.raises(MemoryError, match=r"x.npz: expected at most half of the .* numpy.save as .npy, which can"):
        load_features(path)


def test_slices_do_clip(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block is shorter than the others, in the file and when all rows are read."""
    monkeypatch.setattr("deepclust_ext.data.features._BLOCK_BYTES", 4 * COLUMNS * 4)
    features = load_features(write(tmp_path / f"x{suffix}", rows()))
    np.testing.assert_array_equal(matrix(features), rows().astype(np.float32))
    np.testing.assert_array_equal(features[-1].flatten().numpy(), rows()[-1])
    np.testing.assert_array_equal(matrix(features[10:99]), rows()[10:])
    with pytest.raises(IndexError, match="index: expected -13 to 12, got 13"):
        features[COUNT]
    with pytest.raises(ValueError, match="index: expected a slice with at least one of 13 rows"):
        features[13:]


@pytest.mark.parametrize("fixed", [True, False])
def test_null_rows_do_not_shift_the_others(fixed: bool, tmp_path: Path) -> None:
    pyarrow = needed_pyarrow()
    values: list[Any] = [list(row) for row in rows(np.float32)]
    values[2], values[9] = None, None
    values[5] = [*values[5][:2], None, *values[5][3:]]
    kind = pyarrow.list_(pyarrow.float32(), COLUMNS) if fixed else pyarrow.list_(pyarrow.float32())
    table = pyarrow.table({"name": [f"r{i}" for i in range(COUNT)], "x": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    features = load_features(tmp_path / "x.parquet", labels=list(range(COUNT)))
    kept = [place for place in range(COUNT) if place not in (2, 5, 9)]
    assert features.skipped == [("r2", "a null"), ("r5", "a null"), ("r9", "a null")]
    assert features.names == [f"r{place}" for place in kept]
    assert features.classes == tuple(map(str, kept))
    np.testing.assert_array_equal(matrix(features), rows(np.float32)[kept])
    np.testing.assert_array_equal(features.stored().numpy(), rows(np.float32)[kept])


def test_columns_of_a_parquet_file_side_by_side(tmp_path: Path) -> None:
    pyarrow = needed_pyarrow()
    columns: dict[str, Any] = {f"f{place}": column for place, column in enumerate(rows(np.float32).T)}
    table = pyarrow.table({**columns, "label": list(range(COUNT))})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    features = load_features(tmp_path / "x.parquet", labels="own")
    np.testing.assert_array_equal(matrix(features), rows(np.float32))
    assert features.classes == tuple(map(str, range(COUNT)))
    ragged = pyarrow.table({"x": [[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]})
    pyarrow.parquet.write_table(ragged, tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match="ragged.parquet: expected lists of one length in column x, got several"):
        load_features(tmp_path / "ragged.parquet")


def test_columns_side_by_side_in_a_file_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(rows()))
    features = load_features(tmp_path / "x.npy")
    np.testing.assert_array_equal(matrix(features), rows())
    assert features.parts[0].array.flags.c_contiguous
    assert "x.npy is stored by columns, so its rows were put in order in memory" in features.notes
    monkeypatch.setattr(feature_stores, "free_memory", lambda: 0)
    features = load_features(tmp_path / "x.npy")
    np.testing.assert_array_equal(matrix(features), rows())
    assert isinstance(features.parts[0].array, np.memmap)
    assert any("too large to put in order in memory: reading is slow" in note for note in features.notes)


@pytest.mark.parametrize("block", [2, 100])
def test_rows_that_cannot_be_used_are_left_out_and_rows_of_zeros_counted(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepclust_ext.data.features._BLOCK_BYTES", 4 * COLUMNS * block)
    values = rows(np.float64)
    values[1, 0], values[4, 2], values[6, 1] = np.nan, np.inf, 1e300  # the last beyond float32
    values[[3, 8]] = 0
    features = load_features(write(tmp_path / "x.npy", values), labels=np.arange(COUNT))
    kept = [place for place in range(COUNT) if place not in (1, 4, 6)]
    assert features.skipped == [(f"x.npy[{place}]", "NaN or infinity") for place in (1, 4, 6)]
    np.testing.assert_array_equal(matrix(features), values[kept].astype(np.float32))
    assert [features.names[place] for place in features.zeros] == ["x.npy[3]", "x.npy[8]"]
    assert features[2:].zeros.tolist() == [0, 3]
    assert "2 rows of zeros, first x.npy[3]: no direction and no neighbors" in features.notes
    assert "3 rows skipped, first x.npy[1]: NaN or infinity" in features.notes
    features.write_skipped(tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1] == "x.npy[1],NaN or infinity"
    with pytest.raises(ImageError, match=r"x.npy\[1\]: expected finite numbers, got NaN or infinity"):
        load_features(tmp_path / "x.npy", on_error="raise")
    with pytest.raises(ImageError, match="expected rows of features, got none; all 13 were skipped, such as rows"):
        load_features(np.full_like(values, np.nan))


def test_bfloat16(tmp_path: Path) -> None:
    exact = torch.from_numpy(rows(np.float32)).bfloat16()
    write_safetensors(tmp_path / "x.safetensors", {"rows": exact.view(torch.int16).numpy().view(np.uint16)})
    features = load_features(tmp_path / "x.safetensors")
    assert features.kind == "bfloat16"
    np.testing.assert_array_equal(matrix(features), exact.float().numpy())
    assert torch.equal(features.stored(), exact)


def test_what_safetensors_writes(tmp_path: Path) -> None:
    torch_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed", exc_type=ImportError)
    tensors = {"x": torch.from_numpy(rows()), "y": torch.arange(COUNT), "scale": torch.ones(2, 2, 2)}
    torch_file.save_file(tensors, tmp_path / "x.safetensors", {"note": "here"})
    features = load_features(tmp_path / "x.safetensors", labels="own")
    np.testing.assert_array_equal(matrix(features), rows())
    assert features.labels is not None
    assert features.labels.tolist() == list(range(COUNT))


@pytest.mark.parametrize("kind", ["npz", "npy", "csv"])
def test_what_embed_has_written(kind: str, tmp_path: Path) -> None:
    names = [f"a/{place}.png" for place in range(COUNT)]
    write_rows(tmp_path / f"x.{kind}", torch.from_numpy(rows(np.float32)), names)
    assert are_features([str(tmp_path / f"x.{kind}")])
    features = load_features(tmp_path / f"x.{kind}")
    assert features.names == names
    np.testing.assert_array_equal(matrix(features), rows(np.float32))


def test_a_text_beside_that_is_no_list_of_names(tmp_path: Path) -> None:
    write(tmp_path / "x.npy", rows())
    (tmp_path / "x.txt").write_text("notes of mine\n")
    features = load_features(tmp_path / "x.npy")
    assert features.names[1] == "x.npy[1]"
    assert "x.txt has 1 line for 13 rows, so it is no list of names" in features.notes


def test_several_files(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.npy", rows(dtype)) for name, dtype in (("a", np.float16), ("b", np.float32))]
    features = load_features(*sources)
    assert features.names[::COUNT] == ["a.npy[0]", "b.npy[0]"]
    expected = np.concatenate([rows(np.float16), rows(np.float32)])
    order = [20, 3, 13, 12]
    np.testing.assert_array_equal(matrix(features, order), expected[order])
    np.testing.assert_array_equal(features.stored().numpy(), expected)
    assert features.kind == "float16, float32"
    with pytest.raises(ValueError, match="sources: expected every row once, got a.npy.0. again"):
        load_features(sources[0], sources[0])
    np.save(tmp_path / "c.npy", rows()[:, 1:])
    with pytest.raises(ValueError, match="c.npy: expected 5 columns as in a.npy, got 4"):
        load_features(sources[0], tmp_path / "c.npy")


def test_labels(tmp_path: Path) -> None:
    numbers = np.arange(COUNT) % 3
    path = write(tmp_path / "x.npz", rows(), y=numbers, names=np.array([f"r{place}" for place in range(COUNT)]))
    np.save(tmp_path / "y.npy", numbers)
    (tmp_path / "y.csv").write_text("path,label\n" + "".join(f"r{place},{n}\n" for place, n in enumerate(numbers)))
    for labels in ("own", tmp_path / "y.npy", tmp_path / "y.csv", numbers):
        features = load_features(path, labels=labels)
        assert features.labels is not None
        assert features.labels.tolist() == numbers.tolist()
    assert features[4][1] == 1
    (tmp_path / "y.csv").write_text("path,label\nr0,1\n")
    with pytest.raises(ValueError, match="y.csv: expected a label for every row, got none for 12, such as r1"):
        load_features(path, labels=tmp_path / "y.csv")
    with pytest.raises(ValueError, match="labels: expected 'own', .* for features, got 'folders'"):
        load_features(path, labels="folders")
    with pytest.raises(ValueError, match="labels: expected one array of whole numbers beside rows, got none"):
        load_features(rows(), labels="own")


def test_a_data_set_like_any_other(tmp_path: Path) -> None:
    features = load_features(write(tmp_path / "x.npy", rows()), labels=np.arange(COUNT))
    (found,) = map_images(lambda images: (images.flatten(1),), features, batch_size=4)
    np.testing.assert_array_equal(found.numpy(), rows())
    copied = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(matrix(copied), rows())
    other = rows()
    other[COUNT - 1, 0] += 1
    assert fingerprint(features) == fingerprint(copied) != fingerprint(load_features(other))
    assert features.fingerprint != load_features(write(tmp_path / "x.npy", other)).fingerprint
    with pytest.raises(ImageError, match="x.npy: expected the file that was opened first, got one that has changed"):
        features[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", rows()[0], r"x.npy: expected shape \(N, D\), got \(5,\)"),
        ("x.npy", np.arange(6).reshape(2, 3), "x.npy: expected floating numbers, got int64"),
        ("x.npy", rows()[:0], r"x.npy: expected rows of features, got shape \(0, 5\)"),
        ("x.npy", b"\x93NUMPY", "x.npy: expected an array of numbers in a whole .npy file"),
        ("x.npz", b"PK\x03\x04", "x.npz: expected arrays of numbers in a whole .npz file"),
        ("x.safetensors", b"\x00" * 20, "x.safetensors: expected a whole file of safetensors, got a header of 0 bytes"),
        ("x.safetensors", b"\xff" * 20, "x.safetensors: expected a whole file of safetensors, got a header of"),
        ("x.safetensors", (9).to_bytes(8, "little") + b"[1, 2, 3]" + b"x" * 9, "expected a whole file of safetensors"),
        ("x.csv", b"path,label\na,1\n", "x.csv: expected the columns path, 0, 1 and so on, as embed writes them"),
        ("x.csv", b"path,0,1\na,1\n", "x.csv, line 2: expected 2 numbers, got 2 columns"),
        ("x.csv", b"path,0\n" + b"a" * 200_000 + b",1\n", "x.csv: expected a table as embed writes it: field larger"),
        ("x.csv", b"path,0\na,b\n", "x.csv, line 2: expected 1 number, got could not convert"),
        ("x.png", b"", "x.png: expected a file of features, .npy, .npz, .safetensors, .parquet, .csv, got another"),
    ],
)
def test_faults_name_the_file(name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=message):
        load_features(path)
    if isinstance(content, bytes) and path.suffix not in (".safetensors",):
        assert not are_features([str(path)]) or path.suffix == ".csv"


def test_a_file_of_safetensors_that_ends_early(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", rows())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match="x.safetensors: expected a whole file of safetensors: a tensor beyond its end"
    ):
        load_features(path)


def test_keys(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=rows(), b=rows()[::-1])
    with pytest.raises(
        ValueError, match=r"x.npz: expected one array \(N, D\) of floating numbers, or its key, got a, b"
    ):
        load_features(tmp_path / "x.npz")
    np.testing.assert_array_equal(matrix(load_features(tmp_path / "x.npz", key="b")), rows()[::-1])
    with pytest.raises(KeyError, match="x.npz: expected one of a, b as key, got 'c'"):
        load_features(tmp_path / "x.npz", key="c")
    with pytest.raises(FileNotFoundError, match="none.npy: expected a file of features, found nothing"):
        load_features(tmp_path / "none.npy")
    with pytest.raises(TypeError, match="sources: expected files or arrays of features, got int"):
        load_features(3)  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(ValueError, match="empty.npz: expected one array .* got none among nothing"):
        load_features(tmp_path / "empty.npz")


def test_features_and_images_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "x.npy", rows())
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((4, 8), np.int64))
    np.savez(tmp_path / "both.npz", images=np.zeros((4, 8, 8), np.uint8), extra=rows())
    assert are_features([str(tmp_path / "x.npy")])
    others = ("images.npy", "whole.npy", "both.npz", "none.npy", "")
    assert not any(are_features([str(tmp_path / name)]) for name in others)
    with pytest.raises(ValueError, match="data: expected features alone or images alone, got .*x.npy and .*images.npy"):
        are_features([str(tmp_path / "images.npy"), str(tmp_path / "x.npy")])
