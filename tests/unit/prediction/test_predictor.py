"""The predictor's order of work: case by case, one bad case stops no other, with and without threads."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from medsegdiff_cli.errors import InputDataError, NotFinished, PartialFailure, ResourceError, UsageError
from medsegdiff_cli.prediction import predictor
from medsegdiff_cli.prediction.inputs import InputCase
from medsegdiff_cli.prediction.predictor import predict_cases

CASES = [InputCase(case=f"c{index}", images=()) for index in range(6)]


@pytest.fixture
def steps(monkeypatch):
    """Replace reading, computing and writing by notes on what was done where; `errors` maps (step, case) to a raise."""
    seen = SimpleNamespace(events=[], errors={}, threads={})

    def note(step, case):
        seen.events.append((step, case))
        seen.threads.setdefault(step, set()).add(threading.get_ident())
        if (step, case) in seen.errors:
            raise seen.errors[step, case]
        return case

    monkeypatch.setattr(predictor, "read_case", lambda job, case: note("read", case.case))
    monkeypatch.setattr(predictor, "compute_case", lambda job, reading: note("compute", reading.result()))
    monkeypatch.setattr(
        predictor, "write_predicted_case", lambda job, computing: note("write", computing.result()) and "written"
    )
    return seen


def job(workers, max_time_s=None):
    return SimpleNamespace(workers=workers, output=Path("out"), max_time_s=max_time_s)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_case_passes_the_three_steps_in_order(steps, workers):
    told = []
    report = predict_cases(job(workers), CASES, lambda case, outcome: told.append((case, outcome)))
    names = [case.case for case in CASES]
    assert report.written == names
    assert told == [(name, "written") for name in names]
    for step in ("read", "compute", "write"):
        assert [case for what, case in steps.events if what == step] == names
    for name in names:
        assert [what for what, case in steps.events if case == name] == ["read", "compute", "write"]


def test_reading_and_writing_have_threads_of_their_own_and_computing_has_none(steps):
    predict_cases(job(1), CASES)
    own = threading.get_ident()
    assert steps.threads["compute"] == {own}
    assert len(steps.threads["read"] | steps.threads["write"] | {own}) == 3
    steps.threads.clear()
    predict_cases(job(0), CASES)
    assert steps.threads == {step: {own} for step in ("read", "compute", "write")}


def test_only_two_cases_are_read_ahead_of_the_one_that_is_computed(steps):
    most = 0
    predict_cases(job(1), CASES)
    read = computed = 0
    for step, _ in steps.events:
        read, computed = read + (step == "read"), computed + (step == "compute")
        most = max(most, read - computed)
    assert most <= 3  # the case itself and two that wait


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_a_bad_case_is_reported_and_the_others_are_written(steps, workers, step):
    steps.errors[step, "c2"] = InputDataError("broken")
    with pytest.raises(PartialFailure, match="1 of 6 cases failed: c2"):
        predict_cases(job(workers), CASES)
    assert [case for what, case in steps.events if what == "write" and case != "c2"] == ["c0", "c1", "c3", "c4", "c5"]


def test_only_bad_cases_are_an_error_of_the_data(steps):
    steps.errors = {("read", case.case): InputDataError("broken") for case in CASES}
    with pytest.raises(InputDataError, match="6 of 6"):
        predict_cases(job(0), CASES)


@pytest.mark.parametrize("workers", [0, 2])
def test_wrong_usage_ends_everything_at_once(steps, workers):
    steps.errors["read", "c1"] = UsageError("other settings")
    with pytest.raises(UsageError, match="other settings"):
        predict_cases(job(workers), CASES)
    assert ("compute", "c5") not in steps.events


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_a_fault_of_msd_itself_is_not_taken_for_a_bad_case(steps, workers, step):
    steps.errors[step, "c1"] = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        predict_cases(job(workers), CASES)


def test_a_full_disk_is_not_repeated_for_every_case(steps):
    steps.errors = {("write", case.case): ResourceError("the disk is full") for case in CASES}
    with pytest.raises(ResourceError, match="the disk is full"):
        predict_cases(job(0), CASES)


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds a look at the clock."""
    now = SimpleNamespace(s=0.0)

    def look():
        now.s += 10
        return now.s

    monkeypatch.setattr(predictor, "time", SimpleNamespace(monotonic=look))


@pytest.mark.usefixtures("clock")
def test_when_time_is_up_no_case_is_begun_and_the_left_ones_are_counted(steps):
    with pytest.raises(NotFinished, match="4 of 6 cases are left"):
        predict_cases(job(0, max_time_s=25), CASES)
    assert [case for step, case in steps.events if step == "write"] == ["c0", "c1"]


@pytest.mark.usefixtures("clock")
def test_one_case_is_worked_on_however_short_the_time_and_failed_ones_are_named(steps):
    steps.errors = {("read", "c0"): InputDataError("cut short")}
    with pytest.raises(NotFinished, match="5 of 6 cases are left; failed: c0"):
        predict_cases(job(0, max_time_s=1e-3), CASES)


@pytest.mark.usefixtures("clock")
def test_what_is_there_already_costs_no_time(steps, monkeypatch):
    monkeypatch.setattr(predictor, "write_predicted_case", lambda job, computing: computing.result() and "reused")
    assert predict_cases(job(0, max_time_s=1), CASES).reused == [case.case for case in CASES]
