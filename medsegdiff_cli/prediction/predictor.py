"""The predictor: case after case, reading the next and writing the last while the current one computes."""

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from medsegdiff_cli.errors import (
    InputDataError,
    MsdError,
    NotFinished,
    PartialFailure,
    ResourceError,
    UsageError,
    lacks_memory,
)
from medsegdiff_cli.prediction.case_steps import PredictionJob, compute_case, read_case, write_predicted_case
from medsegdiff_cli.prediction.inputs import InputCase

log = logging.getLogger(__name__)


@dataclass
class PredictionReport:
    """What happened: case names; failed ones with their error."""

    written: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, MsdError] = field(default_factory=dict)


def predict_cases(
    job: PredictionJob, cases: Sequence[InputCase], on_case: Callable[[str, str], None] | None = None
) -> PredictionReport:
    """Predict all cases; a bad one is reported and the others go on.

    Args:
        on_case: called with (case, "written" | "reused" | "failed").

    Raises:
        UsageError: a case exists under other settings and `overwrite` is not set.
        ResourceError: disk or memory is full or the like; every further case would fail as well.
        NotFinished: the job's time is used up before the last case; the case under way was finished.
        PartialFailure: some cases failed. InputDataError: all did.
    """
    report = PredictionReport()
    end = None if job.max_time_s is None else time.monotonic() + job.max_time_s

    def is_over() -> bool:
        # What is there already costs nothing: at least one case is worked on, or the same command would never end.
        return end is not None and time.monotonic() > end and bool(report.written or report.failed)

    for case, outcome in _outcomes(job, cases, is_over):
        try:
            name = outcome.result()
            getattr(report, name).append(case.case)
        except (UsageError, ResourceError):
            raise
        except (MemoryError, RuntimeError) as problem:
            if not lacks_memory(problem):
                raise
            raise ResourceError(
                f"the memory does not suffice ({str(problem)[:200] or repr(problem)})",
                where=f"case '{case.case}'",
                fix="see with --dry-run what it takes; use --workers 0, or a machine with more memory",
            ) from problem
        except MsdError as error:
            name = "failed"
            _let_go_of_images(error)
            report.failed[case.case] = error
            log.error("case '%s' failed: %s", case.case, error)
        if on_case is not None:
            on_case(case.case, name)
    _require_end(job, cases, report)
    if report.failed:
        kind = PartialFailure if report.written or report.reused else InputDataError
        raise kind(
            f"{len(report.failed)} of {len(cases)} cases failed: {', '.join(sorted(report.failed)[:10])}",
            where=str(job.output),
            fix="mend the images named above and run the same command again; finished cases are kept",
        )
    return report


def _let_go_of_images(error: BaseException) -> None:
    """Empty the frames behind a kept error and its causes: their variables hold the case's file and voxels."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _require_end(job: PredictionJob, cases: Sequence[InputCase], report: PredictionReport) -> None:
    done = len(report.written) + len(report.reused) + len(report.failed)
    if done < len(cases):
        failed = f"; failed: {', '.join(sorted(report.failed)[:10])}" if report.failed else ""
        raise NotFinished(
            f"the time is used up: {len(cases) - done} of {len(cases)} cases are left{failed}",
            where=str(job.output),
            fix="run the same command again; finished cases are kept",
        )


def _outcomes(
    job: PredictionJob, cases: Sequence[InputCase], is_over: Callable[[], bool]
) -> Iterator[tuple[InputCase, "Future[str]"]]:
    """Yield the cases in order with the future of their last step; one case is read and one written ahead."""
    ahead = 1 if job.workers else 0
    computer = _Inline()
    with _executor(job.workers) as reader, _executor(job.workers) as writer:
        reading: deque[Future[Any]] = deque()
        writing: deque[tuple[InputCase, Future[str]]] = deque()
        waiting = iter(cases)
        for case in cases:
            if is_over():
                break
            while len(reading) <= ahead and (following := next(waiting, None)) is not None:
                reading.append(reader.submit(read_case, job, following))
            computed = computer.submit(compute_case, job, reading.popleft())
            writing.append((case, writer.submit(write_predicted_case, job, computed)))
            while len(writing) > ahead:
                yield writing.popleft()
        yield from writing


def _executor(workers: int) -> Executor:
    return ThreadPoolExecutor(1) if workers else _Inline()


class _Inline(Executor):
    """Runs each call at once in this thread, keeping its error for `result()` as other executors do."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
