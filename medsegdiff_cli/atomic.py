"""The one writer: a final file name exists if and only if its content is complete.

Bytes go to a temporary name beside the target, are flushed to the disk and renamed; then the folder is flushed.
A process that is killed leaves at most hidden temporary files (see `leftovers`), never a half-written final name; the
next process that writes into the folder removes them.
"""

import errno
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from medsegdiff_cli.errors import ResourceError
from medsegdiff_cli.leftovers import OLD_SUFFIX, PART_SUFFIX, hidden_name, leftovers, remove, remove_leftovers

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22
# Folders that this process has tidied: once is enough, what comes later belongs to processes that live.
_tidied: set[Path] = set()


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and move it there when the block ends without an error.

    It is for native writers, which want a name; all others use `staged_stream`. The temporary name keeps the ending of
    `path`, because writers of images choose the format by it.

    Raises:
        ResourceError: the disk is full, read-only or fails.
    """
    path = Path(path)
    temporary = hidden_name(path, PART_SUFFIX)
    try:
        _make_tidy(path.parent)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        remove(temporary)
        raise resource_error(error, path) from error
    except BaseException:
        remove(temporary)
        raise


@contextmanager
def staged_stream(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream to write to; what was written stands at `path` when the block ends without an error.

    Raises:
        ResourceError: as `staged`.
    """
    with staged(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            yield cast(BinaryIO, _Pieces(descriptor))
        finally:
            os.close(descriptor)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`; it takes that name, and its place, when the block ends well.

    What stood there is removed last. A process that is killed between the two renames leaves it under a hidden name,
    from which the next call puts it back.

    Raises:
        ResourceError: the disk is full, read-only or fails.
    """
    path = Path(path)
    temporary, old = hidden_name(path, PART_SUFFIX), hidden_name(path, OLD_SUFFIX)
    try:
        put_back(path)
        remove(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        _flush(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise resource_error(error, path) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        remove(temporary)
        remove(old)


def put_back(path: Path) -> None:
    """Remove what a killed `staged_folder` left beside `path`; a folder that it had moved out of the way comes back."""
    for leftover in leftovers(path.parent):
        if leftover.name != path.name:
            continue
        if leftover.suffix == OLD_SUFFIX and not path.exists():
            log.warning("%s: a process that is gone had only half replaced it; the former one is put back", path)
            leftover.path.rename(path)
        else:
            remove(leftover.path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with staged_stream(path) as stream:
        stream.write(content)


def copy_file(source: Path, path: Path) -> None:
    """Copy the bytes of `source` to `path` atomically."""
    with staged(path) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON with a trailing newline to `path` atomically; key order is kept (regions depend on it)."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: Path, content: Any, header: str = "") -> None:
    """Write YAML to `path` atomically, below `header` (comment lines); key order is kept."""
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    write_text(path, header + body)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to start where the disk cannot take what will be written.

    Args:
        folder: where it goes; it need not exist yet.
        what: is to be written, for people.

    Raises:
        ResourceError: less is free.
    """
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ResourceError(
            f"{what} will take about {needed_bytes / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free",
            where=str(folder),
            fix="free some space, or choose a place on another disk",
        )


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def digest_of_content(content: Any) -> str:
    """Return the sha256 of JSON-serialisable `content`, independent of key order."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class _Pieces(io.RawIOBase):
    """A stream that hands everything on to a descriptor, piece by piece, and buffers nothing."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        pieces, done = memoryview(content).cast("B"), 0
        while done < len(pieces):  # a disk that is nearly full takes less than it is given
            done += os.write(self._descriptor, pieces[done : done + _CHUNK_BYTES])
        return done


def _make_tidy(folder: Path) -> None:
    """Make the folder; the first time, remove what processes that are gone have left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _tidied:
        _tidied.add(folder)
        remove_leftovers(folder)


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resource_error(error: OSError, path: Path) -> ResourceError:
    """Return what an error of the file system means to the user."""
    if error.errno == errno.ENOSPC:
        return ResourceError("the disk is full", where=str(path), fix="free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ResourceError(
            f"cannot write ({error.strerror})", where=str(path), fix="choose a folder in which you may write"
        )
    return ResourceError(f"writing failed ({error})", where=str(path), fix="check the disk, then run the command again")
