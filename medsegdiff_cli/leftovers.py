"""What killed writers leave behind: hidden names that tell whose they were, and their removal."""

import os
import re
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PART_SUFFIX = ".part"
OLD_SUFFIX = ".old"
_LEFTOVER = re.compile(r"\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)(?P<suffix>\.part|\.old)\.(?P<name>.+)", re.DOTALL)


@dataclass(frozen=True)
class Leftover:
    """A temporary file or folder: `.HOST-PID.part.NAME`, or `.HOST-PID.old.NAME` for what NAME was before."""

    path: Path
    suffix: str
    name: str


def hidden_name(path: Path, suffix: str) -> Path:
    """Return this process's temporary name beside `path`; it keeps the ending, by which writers choose a format."""
    return path.with_name(f".{_host_digits()}-{os.getpid()}{suffix}.{path.name}")


def leftovers(folder: Path, *, alone: bool = False) -> Iterator[Leftover]:
    """Find the temporary files in a folder that nobody writes to.

    Args:
        alone: the caller holds the folder's lock, so that all are leftovers. Without it only those of this machine's
            processes that are gone count: whether another machine's are, nobody here can know.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        found = _LEFTOVER.fullmatch(name)
        if found and (alone or (found["host"] == _host_digits() and not is_running(int(found["pid"])))):
            yield Leftover(folder / name, found["suffix"], found["name"])


def remove_leftovers(folder: Path, *, alone: bool = False, deep: bool = False) -> None:
    """Remove the temporary files that killed writers left in a folder.

    Args:
        alone: as in `leftovers`.
        deep: in its sub-folders, too; links are not followed.
    """
    folders = [Path(inner) for inner, _, _ in os.walk(folder)] if deep else [folder]
    for inner in folders:
        for leftover in leftovers(inner, alone=alone):
            if leftover.suffix == PART_SUFFIX and not leftover.path.is_dir():
                remove(leftover.path)


def remove(path: Path) -> None:
    """Remove a temporary file or folder; one that cannot be removed must not hide what led here."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Return whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _host_digits() -> str:
    """Return eight digits that stand for this machine: names of machines may be long, and file names may not."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"
