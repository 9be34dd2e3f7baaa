"""Caches: decoded images one after the other in memory, and arrays in a file that all processes map."""

import errno
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from deepclust_ext.data.stores import Mapped

_BLOCK_BYTES = 1 << 22
#: How the end of a whole file begins; a fingerprint and a checksum follow. The number changes with what decodes.
_SEAL = b"deepclust_ext images 1 "
_SEAL_BYTES = len(_SEAL) + 64 + 1 + 8


class Kept:
    """Images of one type and number of channels, one after the other.

    Args:
        values: All of them, flat, in memory or mapped.
        channels: C.
        sides: (N, 2), height and width of each.
    """

    def __init__(self, values: Tensor | Mapped, channels: int, sides: NDArray[np.int64]) -> None:
        self._values, self.channels, self.sides = values, channels, sides  # torch shares tensors with its workers
        self._ends = np.cumsum(channels * sides.prod(axis=1))
        self._alike = bool((sides == sides[0]).all())

    def __getitem__(self, index: int) -> Tensor:
        """Return a copy of an image (C, H, W)."""
        height, width = self.sides[index].tolist()
        end = int(self._ends[index])
        image = self._flat()[end - self.channels * height * width : end]
        return torch.from_numpy(image.reshape(self.channels, height, width).copy())

    def images_at(self, indices: Sequence[int]) -> Tensor | list[Tensor]:
        """Return copies of images, (B, C, H, W), or a list if the N images differ in size."""
        if not self._alike:
            return [self[index] for index in indices]
        images = self._flat().reshape(len(self.sides), self.channels, *self.sides[0].tolist())
        return torch.from_numpy(images.take(np.asarray(indices, np.int64), axis=0))

    def _flat(self) -> NDArray[Any]:
        values = self._values.numpy() if isinstance(self._values, Tensor) else self._values.array
        return values.reshape(-1)


def keep_in_memory(
    images: Iterable[NDArray[Any]], dtype: np.dtype[Any], channels: int, sides: NDArray[np.int64]
) -> Kept:
    """Return images (C, H, W) of a type, number of channels and sides (N, 2) as one tensor."""
    values = np.empty(_count(channels, sides), dtype)
    end = 0
    for image in images:
        values[end : end + image.size] = image.reshape(-1)
        end += image.size
    return Kept(torch.from_numpy(values), channels, sides)


def keep_in_file(
    path: Path,
    fingerprint: str,
    images: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    channels: int,
    sides: NDArray[np.int64],
) -> tuple[Kept, bool]:
    """Return images (C, H, W) mapped from a .npy file, and whether the file existed; if not, it is written.

    The file holds the array (N, C, H, W), or a flat array if images differ in size; see :func:`keep_array`.

    Raises:
        OSError: If the file cannot be written; names it.
        ValueError: If there is a file of this name that is not whole or holds other images.
    """
    alike = bool((sides == sides[0]).all())
    shape = (len(sides), channels, *sides[0].tolist()) if alike else (_count(channels, sides),)
    found = keep_array(path, fingerprint, images, dtype, shape)
    if (fault := fault_of(path, fingerprint)) is not None:
        raise ValueError(
            f"{path}: expected the decoded images of this data set, got {fault}; remove it, and they are decoded again"
        )
    return Kept(Mapped(path), channels, sides), found


def keep_array(
    path: Path, fingerprint: str, parts: Iterable[NDArray[Any]], dtype: np.dtype[Any], shape: Sequence[int]
) -> bool:
    """Write an array to a .npy file where there is none yet, part by part, and return whether there was one.

    After the array comes a seal: the fingerprint and a checksum of all bytes. The file is written under another name,
    synced and renamed. If two processes want the same file, one waits for the other. :func:`fault_of` tells whether an
    existing file is whole.

    Raises:
        OSError: If the file cannot be written; names it.
    """
    if path.exists():
        return True
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(unfinished) as file:
            found = path.exists()  # another process has written it meanwhile
            try:
                if not found:
                    _write(file, fingerprint, parts, dtype, shape)
                    unfinished.replace(path)
            finally:  # while no other process can have it
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        named = OSError(f"{path}: cannot be written: {error.strerror or error}")
        named.errno = error.errno
        raise named from error
    return found


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file, made if missing, with an exclusive lock; wait until no other process has it."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "rb+") as file:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:  # who had it has renamed or removed it
                same = False
            if same:
                yield file
                return


def free_memory() -> int:
    """Return the bytes of free memory, or of all memory if the system does not tell.

    If torchrun has started several ranks on this machine, it is the share of one rank.
    """
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _count(channels: int, sides: NDArray[np.int64]) -> int:
    return channels * int(sides.prod(axis=1).sum())


def _write(
    file: BinaryIO, fingerprint: str, parts: Iterable[NDArray[Any]], dtype: np.dtype[Any], shape: Sequence[int]
) -> None:
    """Write the array and the seal from the beginning of a file to its end, and sync it."""
    file.truncate(0)
    header = io.BytesIO()
    description = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    npy.write_array_header_1_0(header, description)
    _reserve(file, len(header.getvalue()) + prod(shape) * dtype.itemsize + _SEAL_BYTES)
    checksum = crc32(header.getvalue())
    file.write(header.getvalue())
    for part in parts:
        checksum = crc32(part.data, checksum)
        file.write(part.data)
    file.write(_seal(fingerprint, checksum))
    file.flush()
    os.fsync(file.fileno())


def _reserve(file: BinaryIO, size: int) -> None:
    """Fail now if the disk is too full, and not after hours of decoding; some systems and disks cannot tell."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def _seal(fingerprint: str, checksum: int) -> bytes:
    return _SEAL + f"{fingerprint} {checksum:08x}".encode()


def fault_of(path: Path, fingerprint: str) -> str | None:
    """Return what is wrong with a file that :func:`keep_array` has written, or None."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        left = max(size - _SEAL_BYTES, 0)
        file.seek(left)
        seal = file.read()
        if not seal.startswith(_SEAL):
            return "a file that is incomplete or of another kind"
        if not seal.startswith(_SEAL + fingerprint.encode()):
            return "those of another one"
        file.seek(0)
        checksum = 0
        words = f"checking {path.name}"
        with tqdm(desc=words, total=left, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                checksum = crc32(block, checksum)
                left -= len(block)
                bar.update(len(block))
    return None if seal == _seal(fingerprint, checksum) else "a damaged file: its checksum is not that of its bytes"
