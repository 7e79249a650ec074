"""The one writer: a final file name exists if and only if its content is complete.

Bytes go to a temporary name beside the target, are flushed to the disk and renamed; then the folder is flushed.
A crash leaves at most a `*.part` file, never a half-written final name.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from medsegdiff_cli.errors import ResourceError

PART_SUFFIX = ".part"
_CHUNK_BYTES = 1 << 22


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and move it there when the block ends without an error.

    The temporary name keeps the ending of `path`, because native image writers choose the format by it.

    Raises:
        ResourceError: the disk is full, read-only or fails.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}{PART_SUFFIX}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        _discard(temporary)
        raise _as_resource_error(error, path) from error
    except BaseException:
        _discard(temporary)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with staged(path) as temporary, temporary.open("wb") as stream:
        for start in range(0, max(len(content), 1), _CHUNK_BYTES):
            stream.write(content[start : start + _CHUNK_BYTES])


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


def _discard(temporary: Path) -> None:
    """Remove what was begun; a disk that fails at this too must not hide the error that led here."""
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_resource_error(error: OSError, path: Path) -> ResourceError:
    if error.errno == errno.ENOSPC:
        return ResourceError("the disk is full", where=str(path), fix="free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ResourceError(
            f"cannot write ({error.strerror})", where=str(path), fix="choose a folder in which you may write"
        )
    return ResourceError(f"writing failed ({error})", where=str(path), fix="check the disk, then run the command again")
