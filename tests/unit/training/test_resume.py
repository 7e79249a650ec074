"""A training that was stopped and started again equals an undisturbed one, bit by bit."""

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_training import Toy, accuracy, batches, settings, toy, train

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.checkpoint import read_checkpoint
from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.errors import IntegrityError, Interrupted, NotFinished
from medsegdiff_cli.methods.base import Method, Stage
from medsegdiff_cli.training.outcome import StageResult, ValidationScore

pytestmark = pytest.mark.usefixtures("no_pictures")


def state_of_run(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the last step checkpoint, `best` and `last`."""
    newest = sorted((folder / "checkpoints").glob("step_*.json"))[-1]
    tensors = {}
    for path in (newest, folder / "checkpoints" / "best.json", folder / "checkpoints" / "last.json"):
        for name, tensor in read_checkpoint(path.with_suffix("")).tensors.items():
            tensors[f"{path.stem}:{name}"] = tensor
    return tensors


def journal(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    expected, found = state_of_run(first), state_of_run(second)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert journal(first) == journal(second)


def signal_at(step: int, chosen: TrainingSettings, n_dims: int, number: int = signal.SIGTERM) -> Any:
    """Return a `make_batches` that raises a signal while it makes the batch of `step` (counted from 0)."""

    def make(start: int) -> Iterator[Batch]:
        for current, batch in enumerate(batches(chosen.steps, n_dims=n_dims)(start), start):
            if current == step:
                signal.raise_signal(number)
            yield batch

    return make


@pytest.mark.fault("F97")
@pytest.mark.parametrize(
    ("n_dims", "changes", "network"),
    [
        (2, {}, {}),
        (3, {}, {}),
        (2, {"optimiser": "sgd", "schedule": "poly"}, {"dropout": 0.5}),
        (2, {"optimiser": "adam", "ema_decay": None}, {"batch_norm": True}),
        (2, {"validate_every_steps": 5, "schedule": "constant"}, {"dropout": 0.3, "batch_norm": True}),
    ],
)
def test_a_training_stopped_twice_equals_an_undisturbed_one(
    tmp_path: Path, n_dims: int, changes: dict[str, Any], network: dict[str, Any]
) -> None:
    chosen = settings(12, **changes)
    undisturbed = train(toy(n_dims, **network), tmp_path / "a", chosen)
    # Steps 3 (between validations) and 8 (counted from 1), where a validation is due after the step.
    for step, done in ((2, 3), (7, 8)):
        with pytest.raises(Interrupted, match=f"saved at step {done} of 12"):
            train(toy(n_dims, **network), tmp_path / "b", chosen, make_batches=signal_at(step, chosen, n_dims))
    resumed = train(toy(n_dims, **network), tmp_path / "b", chosen)
    assert resumed.weights_digest == undisturbed.weights_digest
    assert (resumed.best_score, resumed.best_step) == (undisturbed.best_score, undisturbed.best_step)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_bfloat16_and_channels_last_resume_exactly_too(tmp_path: Path) -> None:
    how = {"precision": "bfloat16", "channels_last": True}
    train(toy(), tmp_path / "a", settings(), **how)
    with pytest.raises(Interrupted):
        train(toy(), tmp_path / "b", settings(), make_batches=signal_at(5, settings(), 2), **how)
    train(toy(), tmp_path / "b", settings(), **how)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.fault("F97")
def test_a_training_killed_between_checkpoints_repeats_the_lost_steps_exactly(tmp_path: Path) -> None:
    chosen = settings(400, validate_every_steps=100)
    train(toy(), tmp_path / "a", chosen)

    def killed(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(400)(start), start):
            if step == 231:  # not a multiple of 2: the window of a line is open
                raise SystemError("as if killed: nothing is saved")
            yield batch

    with pytest.raises(Interrupted):
        train(toy(), tmp_path / "b", chosen, make_batches=signal_at(150, chosen, 2))
    with pytest.raises(SystemError):
        train(toy(), tmp_path / "b", chosen, make_batches=killed)
    assert journal(tmp_path / "b")[-1]["step"] == 230
    train(toy(), tmp_path / "b", chosen)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert [line["step"] for line in journal(tmp_path / "b")] == list(range(2, 401, 2))


def test_a_finished_stage_returns_at_once_with_its_prediction_weights(tmp_path: Path) -> None:
    first = toy()
    before = train(first, tmp_path, settings())

    def none(start: int) -> Iterator[Batch]:
        raise AssertionError("a finished stage asks for no batches")

    again = toy()
    result = train(again, tmp_path, settings(), make_batches=none)
    assert result == before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_time_budget_saves_and_the_same_call_goes_on(tmp_path: Path) -> None:
    chosen = settings(5)
    for done in (1, 2, 3, 4):
        with pytest.raises(NotFinished, match=f"saved at step {done} of 5") as stopped:
            train(toy(), tmp_path / "b", chosen, max_time_s=0.0)
        assert stopped.value.exit_code == 7
    train(toy(), tmp_path / "b", chosen, max_time_s=0.0)
    train(toy(), tmp_path / "a", chosen)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.fault("F53")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_puts_the_handlers_back(tmp_path: Path, number: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as stopped:
        train(toy(), tmp_path, settings(), make_batches=signal_at(4, settings(), 2, number))
    assert stopped.value.exit_code == 130
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.json")) == ["best", "step_00000005"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.fault("F53")
@pytest.mark.fault("F53")
def test_a_second_interrupt_acts_at_once(tmp_path: Path) -> None:
    def twice(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(12)(start), start):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            yield batch

    with pytest.raises(Interrupted, match="without saving"):
        train(toy(), tmp_path, settings(), make_batches=twice)
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_breaks_a_validation_off_and_the_next_start_makes_up_for_it(tmp_path: Path) -> None:
    chosen, seen = settings(12), []

    def interrupted(method: Method) -> ValidationScore:
        seen.append({name: p.clone() for name, p in method.named_parameters()})
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return accuracy(method)

    with pytest.raises(Interrupted, match="saved at step 8"):
        train(toy(), tmp_path / "b", chosen, validate=interrupted)
    train(toy(), tmp_path / "b", chosen, validate=interrupted)
    assert len(seen) == 4
    assert all(torch.equal(seen[1][name], seen[2][name]) for name in seen[1])
    train(toy(), tmp_path / "a", chosen)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def stopped_run(folder: Path, steps: int = 6) -> TrainingSettings:
    """Train to step 5 with a checkpoint each step, so that those of steps 4 and 5 are there."""
    chosen = settings(steps, checkpoint_minutes=1e-9)
    with pytest.raises(Interrupted):
        train(toy(), folder, chosen, make_batches=signal_at(4, chosen, 2))
    names = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert names == [f"step_0000000{step}.{ending}" for step in (4, 5) for ending in ("json", "safetensors")]
    return chosen


@pytest.mark.fault("F52")
@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = stopped_run(tmp_path / "b")
    damaged = tmp_path / "b" / "checkpoints" / f"step_00000005.{ending}"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        train(toy(), tmp_path / "b", chosen)
    assert "step_00000005 is not usable" in caplog.text
    train(toy(), tmp_path / "a", chosen)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.fault("F52")
def test_with_all_checkpoints_damaged_nothing_is_trained_over(tmp_path: Path) -> None:
    chosen = stopped_run(tmp_path)
    for path in (tmp_path / "checkpoints").glob("step_*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(IntegrityError, match="no checkpoint can be resumed from"):
        train(toy(), tmp_path, chosen)


@pytest.mark.fault("F52")
def test_damaged_last_weights_are_made_again(tmp_path: Path) -> None:
    result = train(toy(), tmp_path, settings())
    last = tmp_path / "checkpoints" / "last.safetensors"
    content = last.read_bytes()
    last.write_bytes(content[:-1] + b"?")
    again = train(toy(), tmp_path, settings())
    assert again.weights_digest == result.weights_digest
    assert last.read_bytes() == content


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    chosen = stopped_run(tmp_path)
    with pytest.raises(IntegrityError, match="do not fit"):
        train(toy(batch_norm=True), tmp_path, chosen)


def test_batches_that_fail_because_a_signal_hit_the_workers_do_not_prevent_saving(tmp_path: Path) -> None:
    def dying(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches(12)(start), start):
            if step == 6:
                signal.raise_signal(signal.SIGTERM)
                raise ConnectionResetError("a worker is gone")
            yield batch

    with pytest.raises(Interrupted, match="saved at step 6 of 12"):
        train(toy(), tmp_path / "b", settings(), make_batches=dying)
    train(toy(), tmp_path / "b", settings())
    train(toy(), tmp_path / "a", settings())
    assert_same_run(tmp_path / "a", tmp_path / "b")


def results_of_two_stages(folder: Path, make: Any = None) -> tuple[Toy, list[StageResult]]:
    method, results = toy(batch_norm=True), []
    for stage in (Stage(name="one", supervision="none"), Stage(name="two", supervision="full", trains=("head",))):
        chosen = settings(5, validate_every_steps=0)
        arguments = {} if make is None or stage.name == "one" else {"make_batches": make}
        results.append(train(method, folder, chosen, stage=stage, **arguments))
    return method, results


@pytest.mark.fault("F97")
def test_two_stages_resume_within_the_second(tmp_path: Path) -> None:
    expected, results = results_of_two_stages(tmp_path / "a")
    with pytest.raises(Interrupted, match="stage 'two'"):
        results_of_two_stages(tmp_path / "b", signal_at(2, settings(5), 2))
    found, again = results_of_two_stages(tmp_path / "b")
    assert all(
        torch.equal(a, b) for a, b in zip(expected.state_dict().values(), found.state_dict().values(), strict=True)
    )
    assert [result.steps_done for result in again] == [5, 5]
    assert again[1].weights_digest == results[1].weights_digest
    assert journal(tmp_path / "a") == journal(tmp_path / "b")
    third, once_more = results_of_two_stages(tmp_path / "b")
    assert [result.stage for result in once_more] == ["one", "two"]
    assert all(
        torch.equal(a, b) for a, b in zip(expected.state_dict().values(), third.state_dict().values(), strict=True)
    )


def test_best_weights_of_an_earlier_stage_are_not_kept_as_those_of_the_next(tmp_path: Path) -> None:
    method = toy()
    train(method, tmp_path, settings(4))
    assert (tmp_path / "checkpoints" / "best.json").is_file()
    train(method, tmp_path, settings(4), stage=Stage(name="next", supervision="full"), validate=None)
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.json")) == ["last", "step_00000004"]
    last = read_checkpoint(tmp_path / "checkpoints" / "last")
    assert last.state["stage"] == "next"
    assert list(last.state["finished"]) == ["train", "next"]
