"""Arrays in files: what numpy reads of them, and full disks."""

import errno
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deepclust_ext.training.files import write_array
from tests.forks import run_python

ROWS = np.random.default_rng(0).normal(size=(6, 4))


@pytest.mark.parametrize(
    "array", [ROWS, ROWS.astype(np.float16), ROWS.T, ROWS[::2], ROWS[:0], np.arange(3)], ids=lambda x: str(x.shape)
)
def test_numpy_reads_them(array: NDArray[np.float64], tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    write_array(path, array)
    assert np.load(path).dtype == array.dtype
    assert np.array_equal(np.load(path), array)
    assert np.array_equal(np.load(path, mmap_mode="r"), array) or not array.size
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npy"]


def test_a_file_whose_last_bytes_do_not_fit_is_named(tmp_path: Path) -> None:
    """Numpy's own function ends without an error, and a part of the array is missing."""
    path = tmp_path / "rows.npy"
    script = """if True:
        import resource, sys
        from pathlib import Path
        import numpy as np
        from deepclust_ext.training.files import write_array
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        try:
            write_array(Path(sys.argv[1]), np.ones((60, 4), np.float32))
        except OSError as error:
            print(error.errno, error)
    """
    done = run_python(script, path)
    assert done.stderr == ""
    assert done.stdout == f"{errno.EFBIG} {path}: cannot be written: File too large\n"
    assert not path.exists()
