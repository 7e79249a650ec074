"""Zip archives: written with the same bytes every time, and read only after every entry was checked.

An archive from anywhere may name files outside of where it is unpacked, hold links or devices, name one file twice,
inflate to a thousand times its size or hide an archive in an archive. `check_entries` refuses all of these from the
directory at the archive's end, before any content is read; `Archive` then inflates no more than the directory declares.
"""

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from medsegdiff_cli import atomic
from medsegdiff_cli.errors import IntegrityError, reading_error

_MOST_ENTRIES = 1000
_LARGEST_DIRECTORY_BYTES = 1 << 20
_LARGEST_RATIO = 200
_LONGEST_NAME = 240
_CHUNK_BYTES = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_IS_ENCRYPTED = 0x1
_ARCHIVES = (".zip", ".msd", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".jar", ".whl")
_FIX = "get the file again from its author; nothing of it was unpacked"

# Little-endian records of the zip format (APPNOTE 4.3.7, 4.3.16, 4.3.14 and 4.3.15).
_LOCAL = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write an archive atomically; the same members in the same order make the same bytes.

    Nothing is compressed: weights hardly shrink, and the bytes would depend on the version of zlib.

    Args:
        members: name to content, or to the file that holds it.

    Raises:
        ResourceError: the disk is full or fails.
    """
    with atomic.staged(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            entry.file_size = content.stat().st_size if isinstance(content, Path) else len(content)
            with archive.open(entry, "w") as target:
                for chunk in _chunks(content):
                    target.write(chunk)


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


@dataclass(frozen=True)
class Archive:
    """An opened archive whose every entry was checked.

    Attributes:
        sizes: name of each entry to the bytes of its content.
    """

    path: Path
    sizes: dict[str, int]
    _zip: zipfile.ZipFile

    def copy(self, name: str, target: BinaryIO | None) -> str:
        """Copy an entry into a stream, never more than the directory declares; None only reads it.

        Returns:
            sha256 of the content.

        Raises:
            IntegrityError: it cannot be inflated, or its checksum is wrong.
        """
        digest, done = hashlib.sha256(), False
        with integrity_errors(self.path):
            source = self._zip.open(name)
        with source:
            while not done:
                with integrity_errors(self.path):
                    chunk = source.read(_CHUNK_BYTES)
                digest.update(chunk)
                done = not chunk
                if target is not None:
                    target.write(chunk)
        return digest.hexdigest()

    def read(self, name: str, largest_bytes: int) -> bytes:
        """Return an entry's content.

        Raises:
            IntegrityError: there is no such entry, or it is larger than `largest_bytes` or damaged.
        """
        with integrity_errors(self.path):
            if not 0 <= self.sizes.get(name, -1) <= largest_bytes:
                raise Refused(f"{name!r:.100} is missing or has more than {largest_bytes} bytes")
        target = BytesIO()
        self.copy(name, target)
        return target.getvalue()


@contextmanager
def opened_archive(path: Path) -> Iterator[Archive]:
    """Yield an archive whose every entry was checked.

    Raises:
        IntegrityError: no zip archive, or one that is damaged or not to be trusted.
    """
    with ExitStack() as stack:
        with integrity_errors(path):
            stream = stack.enter_context(path.open("rb"))
            directory_at = _check_end(stream, path.stat().st_size)
            archive = stack.enter_context(zipfile.ZipFile(stream))
            check_entries(archive.infolist())
            _check_layout(stream, archive.infolist(), directory_at)
        yield Archive(path, {entry.filename: entry.file_size for entry in archive.infolist()}, archive)


@contextmanager
def integrity_errors(path: Path) -> Iterator[None]:
    """Turn what a bad archive raises into an error that names the file.

    Raises:
        IntegrityError: the block found something wrong. ResourceError: the disk fails.
    """
    try:
        yield
    except Refused as problem:
        raise IntegrityError(str(problem), where=str(path), fix=_FIX) from None
    except OSError as problem:
        raise reading_error(problem, str(path), IntegrityError) from None
    # RuntimeError comes from unknown versions of the format, ValueError from damaged fields.
    except (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, ValueError, EOFError) as problem:
        raise IntegrityError(f"a damaged archive ({problem})", where=str(path), fix=_FIX) from None


class Refused(ValueError):
    """An archive that is not to be trusted; the message says why."""


def check_entries(entries: Iterable[zipfile.ZipInfo]) -> None:
    """Check all that the directory says about the entries.

    Raises:
        Refused: a name leads outside, collides or is an archive; an entry is no plain file, or inflates absurdly.
    """
    seen: dict[str, str] = {}
    for entry in entries:
        name = entry.orig_filename  # as it stands in the file: `filename` ends at a NUL
        _check_name(name)
        if name.casefold() in seen:
            other = seen[name.casefold()]
            what = "is there twice" if other == name else f"and {other!r:.100} are one on some file systems"
            raise Refused(f"entry {name!r:.100} {what}")
        seen[name.casefold()] = name
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise Refused(f"entry {name!r:.100} is no plain file (a link, a device or a folder)")
        if entry.flag_bits & _IS_ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"entry {name!r:.100} is encrypted or compressed in an unknown way")
        if entry.file_size > _LARGEST_RATIO * max(entry.compress_size, 1):
            ratio = entry.file_size // max(entry.compress_size, 1)
            raise Refused(f"entry {name!r:.100} inflates {ratio}-fold, to {entry.file_size} bytes")


def _check_name(name: str) -> None:
    shown = f"entry {name!r:.100}"
    if len(name) > _LONGEST_NAME or not re.fullmatch(r"[ -~]+", name):
        raise Refused(f"{shown} has a name that is empty, too long or not of plain characters")
    if "\\" in name or ":" in name:
        raise Refused(f"{shown} has a drive letter or a backslash in its name")
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise Refused(f"{shown} leads outside, or is no file")
    if name.lower().endswith(_ARCHIVES):
        raise Refused(f"{shown} is an archive in the archive")


def _check_end(stream: BinaryIO, n_bytes: int) -> int:
    """Check the record at the archive's end; return where the directory begins.

    Everything that follows from it is bounded: zipfile reads the whole directory into memory.
    """
    if stream.read(4) != b"PK\x03\x04" or n_bytes < _END.size:
        raise Refused("no zip archive")
    end_at = n_bytes - _END.size
    signature, *disks, _, count, size, begin, comment = _END.unpack(_read_at(stream, end_at, _END.size))
    if signature != b"PK\x05\x06" or comment or any(disks):
        raise Refused("the archive is cut short, or something stands behind its end")
    locator_at = end_at - _LOCATOR_64.size
    if locator_at > _END_64.size and _read_at(stream, locator_at, 4) == b"PK\x06\x07":
        end_at = locator_at - _END_64.size
        signature, *_, count, size, begin = _END_64.unpack(_read_at(stream, end_at, _END_64.size))
        if signature != b"PK\x06\x06":
            raise Refused("the archive is cut short, or something stands behind its end")
    if count > _MOST_ENTRIES or size > _LARGEST_DIRECTORY_BYTES:
        raise Refused(f"{count} entries in a directory of {size} bytes; at most {_MOST_ENTRIES} are read")
    if begin + size != end_at:
        raise Refused("something stands before the archive, or between its entries and its end")
    stream.seek(0)
    return int(begin)


def _check_layout(stream: BinaryIO, entries: Iterable[zipfile.ZipInfo], directory_at: int) -> None:
    """Refuse entries that share bytes, by which a small archive would hold a large one many times."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise Refused(f"entry {entry.orig_filename!r:.100} overlaps the one before")
        header = _LOCAL.unpack(_read_at(stream, entry.header_offset, _LOCAL.size))
        end = entry.header_offset + _LOCAL.size + header[-2] + header[-1] + entry.compress_size
    if end > directory_at:
        raise Refused("the last entry overlaps the archive's directory")


def _read_at(stream: BinaryIO, position: int, n_bytes: int) -> bytes:
    stream.seek(position)
    return stream.read(n_bytes)
