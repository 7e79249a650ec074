"""Locks: of two processes that want to write the same thing, the second is told who the first is.

The lock is the system's own (`flock`) on a small file: it ends with its process, however that ends, also on another
machine of a shared file system. What is written in the file is for people: it names the holder. A file that a killed
process left is taken over, and that is said.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from medsegdiff_cli.atomic import resource_error
from medsegdiff_cli.errors import UsageError

log = logging.getLogger(__name__)

_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_LOOK_AGAIN_S = 0.2
_MOST_BYTES = 10_000


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        since: time at which it was taken, with its time zone.
        shards: number of jobs that share the work; only jobs of the same number may hold the lock together.
    """

    pid: int
    host: str
    since: str
    shards: int = 1

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def locked(file: Path, *, shards: int = 1, wait: bool = False) -> Iterator[None]:
    """Hold the lock `file`, whose folder is made if need be; where nothing is written, no folder stays.

    That the folder can be written is thereby proved before any work.

    Args:
        file: the lock's file; gone when the lock is released.
        shards: more than 1 lets as many processes with the same number hold the lock together.
        wait: wait for the other process instead of being refused.

    Raises:
        UsageError: another process holds it.
        ResourceError: the file cannot be made.
    """
    made = [folder for folder in file.parents if not folder.exists()]
    descriptor = None
    try:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _acquired(file, shards, wait)
        except OSError as error:
            raise resource_error(error, file.parent) from error
        yield
    finally:
        if descriptor is not None:
            _release(descriptor, file)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # only what is empty goes


def _acquired(file: Path, shards: int, wait: bool) -> int:
    """Return a descriptor of `file` that holds its lock."""
    has_waited = False
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        is_mine = False
        try:
            is_mine = _try(descriptor, file, shards)
            # The holder before may have removed the file between our opening and locking it: then nobody sees it.
            if is_mine and _is_still(file, descriptor):
                return descriptor
            if not is_mine:
                holder = _holder(descriptor)
                if not wait:
                    raise UsageError(
                        f"{holder or 'another process'} is writing here" + (f" since {holder.since}" if holder else ""),
                        where=str(file),
                        fix="wait until it has ended, stop it, or choose another output",
                    )
                if not has_waited:
                    log.info("waiting for %s, which is writing to %s", holder or "another process", file.parent)
                has_waited = True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not is_mine:
            time.sleep(_LOOK_AGAIN_S)


def _try(descriptor: int, file: Path, shards: int) -> bool:
    """Lock an open file, alone at first, and write down who holds it; a shard then lets its like in."""
    me = Holder(os.getpid(), socket.gethostname(), datetime.now(timezone.utc).isoformat(timespec="seconds"), shards)
    try:
        if _flock(descriptor, fcntl.LOCK_EX):
            if (before := _holder(descriptor)) is not None:
                log.warning("%s: taking over the lock of %s, which ended without releasing it", file.parent, before)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(me)).encode() + b"\n", 0)
            return shards == 1 or _flock(descriptor, fcntl.LOCK_SH)
        if shards == 1 or not _flock(descriptor, fcntl.LOCK_SH):
            return False
        other = _holder(descriptor)
        return other is None or other.shards == shards
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        log.warning("this file system has no locks: let no second process write to %s", file.parent)
        return True


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> Holder | None:
    """Return who is written down; None for an empty file, or a strange one."""
    try:
        content = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        return Holder(int(content["pid"]), str(content["host"]), str(content["since"]), int(content["shards"]))
    except (ValueError, TypeError, KeyError):
        return None


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(descriptor: int, file: Path) -> None:
    """Remove the file unless others share the lock, and let go; what goes wrong here must not hide an error."""
    with suppress(OSError):
        if _flock(descriptor, fcntl.LOCK_EX) and _is_still(file, descriptor):
            file.unlink()
    os.close(descriptor)
