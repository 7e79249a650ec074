"""Worker processes, watched: one that is killed, or that stands still, ends the command; none stays behind.

A process stands still when it was stopped (SIGSTOP, a debugger), or waits for a file system that does not answer. It
cannot be told from a slow one by time alone. So the time counts during which nothing was delivered, and less than a
hundredth of it was spent computing; the time during which this process was stopped itself does not count.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

from medsegdiff_cli.errors import ResourceError

# Seconds without any progress after which workers count as standing still.
NO_PROGRESS_S = 600.0
_LOOKS = 100
_BUSY_SHARE = 0.01
_NAMED_JOBS = 20

Job = TypeVar("Job")
Result = TypeVar("Result")


class Standstill:
    """Tells whether processes have stood still since they last delivered something.

    Args:
        processes: those that work.
    """

    def __init__(self, processes: Collection[BaseProcess]) -> None:
        self.limit_s = NO_PROGRESS_S
        self.look_every_s = self.limit_s / _LOOKS
        self._processes = processes
        self.progressed()

    def progressed(self) -> None:
        """Begin to count anew."""
        self._quiet_s, self._last_look = 0.0, time.monotonic()
        self._computed_s = _computing_time_s(self._processes)

    def has_come(self) -> bool:
        """Return whether they stand still; to be called every `look_every_s`."""
        now = time.monotonic()
        # A longer gap was a stop of this process (Ctrl-Z): its workers had been stopped with it.
        self._quiet_s += min(now - self._last_look, 2 * self.look_every_s)
        self._last_look = now
        if self._quiet_s < self.limit_s:
            return False
        if _computing_time_s(self._processes) - self._computed_s > _BUSY_SHARE * self.limit_s:
            self.progressed()
            return False
        return True


class Watch:
    """Looks after processes from a thread, while this one waits for them in a library's code.

    Processes that stand still are killed, which such a library notices.

    Attributes:
        found_standstill: whether that has happened.
    """

    def __init__(self, processes: Collection[BaseProcess]) -> None:
        self.found_standstill = False
        self._processes, self._standstill = processes, Standstill(processes)
        self._is_waiting, self._is_over = threading.Event(), threading.Event()
        threading.Thread(target=self._look, name="watch over workers", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the time in which something is expected of the processes."""
        self._standstill.progressed()
        self._is_waiting.set()
        try:
            yield
        finally:
            self._is_waiting.clear()

    def end(self) -> None:
        """Stop looking."""
        self._is_over.set()

    def _look(self) -> None:
        while not self._is_over.wait(self._standstill.look_every_s):
            if self._is_waiting.is_set() and self._standstill.has_come():
                self.found_standstill = True
                kill(self._processes)
                return


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, *, name: Callable[[Job], str], kind: str
) -> Iterator[tuple[Job, "Future[Result]"]]:
    """Yield each job with its finished future, in the order in which they finish.

    Args:
        work: a function of a module, called in other processes.
        workers: how many processes there are at most.
        name: of a job, for people.
        kind: of the processes, for people: "preprocessing".

    Raises:
        ResourceError: a process was killed, or all stand still; the jobs that they were on are named.
    """
    before = multiprocessing.active_children()
    # Spawned, because forking a process that has threads (torch, SimpleITK) can hang.
    context = multiprocessing.get_context("spawn")
    n_processes = max(1, min(workers, len(jobs)))
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=leave_interrupts_to_the_parent)
    running: dict[Future[Result], Job] = {}
    waiting = iter(jobs)
    try:
        while True:
            # One job a process at a time: memory stays flat, and a dead process's job is one of few.
            for _, job in zip(range(n_processes - len(running)), waiting, strict=False):
                running[pool.submit(work, job)] = job
            if not running:
                return
            for future in _next_finished(running, started_since(before)):
                if isinstance(problem := future.exception(), BrokenProcessPool):
                    raise problem
                yield running[future], future
                del running[future]
    except BrokenProcessPool as problem:
        raise _killed(kind, sorted(map(name, running.values()))) from problem
    except _StandsStill:
        raise standstill_error(kind, sorted(map(name, running.values()))) from None
    finally:
        # All is done, or something went wrong, or Ctrl-C: a process that stands still would be waited for forever.
        kill(started_since(before))
        pool.shutdown()


class _StandsStill(Exception):
    pass


def _next_finished(running: Collection["Future[Result]"], processes: Collection[BaseProcess]) -> set["Future[Result]"]:
    standstill = Standstill(processes)
    while True:
        finished, _ = wait(running, timeout=standstill.look_every_s, return_when=FIRST_COMPLETED)
        if finished:
            return finished
        if standstill.has_come():
            raise _StandsStill


def _killed(kind: str, jobs: Sequence[str]) -> ResourceError:
    return ResourceError(
        f"a {kind} process was killed, most often because memory is full",
        where=f"it was working on one of: {listed(jobs)}",
        fix="run the same command again with fewer --workers (0 works in one process); what is done is kept",
    )


def standstill_error(kind: str, jobs: Sequence[str]) -> ResourceError:
    """Return what a standstill is to the user; `jobs` are names."""
    return ResourceError(
        f"the {kind} processes stand still: nothing has come from them for {NO_PROGRESS_S:.0f} s",
        where=f"waiting for one of: {listed(jobs)}",
        fix="see whether the disk answers and whether somebody stopped them, then run the same command again "
        "(--workers 0 works in one process); what is done is kept",
    )


def listed(names: Sequence[str], most: int = _NAMED_JOBS) -> str:
    """Return names as one text, of very many only the first ones."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def started_since(before: Collection[BaseProcess]) -> list[BaseProcess]:
    """Return this process's children but for those that `multiprocessing.active_children` gave before."""
    return [child for child in multiprocessing.active_children() if child not in before]


def kill(processes: Collection[BaseProcess]) -> None:
    """End processes at once; also stopped ones, to which no other signal gets through."""
    for process in processes:
        with suppress(OSError, ValueError):  # gone already
            process.kill()


def leave_interrupts_to_the_parent(*_: object) -> None:
    """Ignore SIGINT, which Ctrl-C sends to every process of the terminal: the parent ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _computing_time_s(processes: Collection[BaseProcess]) -> float:
    """Return the processor time that they have used so far; 0 where the system does not tell."""
    ticks = 0
    for process in processes:
        with suppress(OSError, IndexError, ValueError):
            # The name of the program, in brackets, may hold spaces; `utime` and `stime` are fields 14 and 15 (proc(5)).
            fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii", errors="replace")
            ticks += sum(map(int, fields.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
