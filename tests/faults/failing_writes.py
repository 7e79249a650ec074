"""A command in a forked child, in which one chosen event of the atomic writer fails.

The events are the calls of the system that `atomic` makes: make a folder, open, write a piece, flush, rename, flush the
folder. They are caught where `atomic` looks its names up, so the product knows nothing of it.
"""

import errno
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli import atomic

KILL, FULL, BROKEN = "kill", errno.ENOSPC, errno.EIO
FAULTS = (KILL, FULL, BROKEN)
# Not a claim about speed: a child that hangs would stop the whole suite.
_HANGS_AFTER_S = 240


@dataclass(frozen=True)
class Fault:
    """The event number `at` (from 0) fails: the process is killed, or the call has an error of the file system."""

    kind: object
    at: int


@dataclass(frozen=True)
class Child:
    """What became of a child: its exit code (negative: killed by that signal), its events, what it said."""

    code: int
    events: tuple[str, ...]
    words: str


class _Events:
    """Stands for `os` in `atomic`, counts what is called, and fails one call."""

    def __init__(self, fault: Fault | None, record: Path) -> None:
        self._fault, self._record, self._count = fault, record, 0

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def happens(self, what: str, before_it_fails: Callable[[], object] = lambda: None) -> None:
        with self._record.open("a") as stream:
            stream.write(what.replace(f"-{os.getpid()}.", "-PID.") + "\n")
        number, self._count = self._count, self._count + 1
        if self._fault is None or number != self._fault.at:
            return
        before_it_fails()
        if self._fault.kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self._fault.kind, os.strerror(int(str(self._fault.kind))))

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self.happens(f"open {Path(path).name}")
        return os.open(path, flags, mode)

    def write(self, descriptor: int, content: memoryview) -> int:
        # What fails in the middle has written the half.
        self.happens("write", lambda: os.write(descriptor, content[: len(content) // 2]))
        return os.write(descriptor, content)

    def fsync(self, descriptor: int) -> None:
        # Not passed on: it makes no difference to a process that is killed, and on slow disks a large one to the suite.
        self.happens("fsync")

    def on_path(self, name: str) -> Callable[..., object]:
        real = getattr(Path, name)

        def method(path: Path, *args: object, **settings: object) -> object:
            self.happens(f"{name} {path.name}")
            return real(path, *args, **settings)

        return method


def run_child(command: Callable[[], int], scratch: Path, fault: Fault | None = None) -> Child:
    """Fork, run `command`, which returns an exit code, and wait for its end.

    Args:
        scratch: folder for notes about the child; not the one that the command writes to.
    """
    record, words = scratch / "events", scratch / "words"
    for path in (record, words):
        path.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns when other threads are about
        pid = os.fork()
    if pid == 0:
        _be_the_child(command, record, words, fault)
    return Child(_wait(pid), tuple(record.read_text().splitlines()), words.read_text(errors="replace"))


def _be_the_child(command: Callable[[], int], record: Path, words: Path, fault: Fault | None) -> None:
    code = 99
    try:
        descriptor = os.open(words, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = open(words, "a", buffering=1)  # noqa: SIM115, PTH123
        events = _Events(fault, record)
        atomic.os = events  # type: ignore[attr-defined]
        for name in ("mkdir", "replace", "rename"):
            setattr(Path, name, events.on_path(name))
        code = command()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    end = time.monotonic() + _HANGS_AFTER_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"the child hangs since {_HANGS_AFTER_S} s")
        time.sleep(0.002)
