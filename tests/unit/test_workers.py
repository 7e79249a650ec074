"""Worker processes: what a killed one, a stopped one and a slow one do to the command that waits for them."""

import multiprocessing
import os
import signal
import time

import pytest

from medsegdiff_cli import workers
from medsegdiff_cli.errors import ResourceError
from medsegdiff_cli.workers import in_processes


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(workers, "NO_PROGRESS_S", 0.5)


def carry_out(job):
    """Return a job, or do to this process what it says."""
    if isinstance(job, int):
        os.kill(os.getpid(), job)
    elif isinstance(job, float):
        end = time.process_time() + job
        while time.process_time() < end:
            pass
    elif job == "fail":
        raise ValueError(job)
    return job


def outcomes_of(jobs, n_workers=2):
    found = [(job, future) for job, future in in_processes(carry_out, jobs, n_workers, name=str, kind="test")]
    assert multiprocessing.active_children() == []
    return found


def test_every_job_comes_back_with_its_own_outcome():
    found = dict(outcomes_of(["a", "fail", "b", "c"]))
    assert {job for job in found if found[job].exception() is None} == {"a", "b", "c"}
    assert found["b"].result() == "b"
    with pytest.raises(ValueError, match="fail"):
        found["fail"].result()
    assert outcomes_of([]) == []


@pytest.mark.fault("F58")
def test_a_killed_process_is_a_resource_error_that_names_its_job():
    with pytest.raises(ResourceError, match=r"a test process was killed[\s\S]*: 9\n"):
        outcomes_of([int(signal.SIGKILL)])
    assert multiprocessing.active_children() == []


@pytest.mark.fault("F59")
def test_a_stopped_process_is_ended_and_its_job_named():
    begin = time.monotonic()
    with pytest.raises(ResourceError, match=r"test processes stand still: nothing has come[\s\S]*: 19\n") as caught:
        outcomes_of(["a", int(signal.SIGSTOP), "b"])
    assert caught.value.exit_code == 4
    assert multiprocessing.active_children() == []
    assert time.monotonic() - begin < 60  # it ended, by whatever margin


@pytest.mark.fault("F59")
def test_a_slow_process_that_computes_is_waited_for():
    assert [job for job, _ in outcomes_of([1.5, "a"])] == ["a", 1.5]


@pytest.mark.fault("F59")
def test_what_stands_idle_and_stopped_at_the_end_is_ended_too():
    found = in_processes(carry_out, ["a", "b"], 2, name=str, kind="test")
    next(found)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    found.close()
    assert multiprocessing.active_children() == []


@pytest.mark.fault("F59")
def test_the_time_in_which_this_process_was_stopped_itself_does_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    standstill = workers.Standstill([])
    now[0] = 1000.0
    assert not standstill.has_come()
    for _ in range(workers._LOOKS):
        now[0] += standstill.look_every_s
        last = standstill.has_come()
    assert last
