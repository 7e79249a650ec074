"""Validations that score several ways to predict keep the best weights of each."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import settings, toy, train

from medsegdiff_cli.artifacts.checkpoint import checkpoint_exists, read_checkpoint
from medsegdiff_cli.artifacts.fold_files import FoldFolder
from medsegdiff_cli.errors import NotFinished
from medsegdiff_cli.methods.base import Method
from medsegdiff_cli.training.counters import Counters
from medsegdiff_cli.training.outcome import ValidationScore

pytestmark = pytest.mark.usefixtures("no_pictures")

# Scores at steps 2, 4, 6 and 8: the model's own sampler is best at 4, the other one at 6.
OWN = {2: 0.2, 4: 0.6, 6: 0.5, 8: 0.6}
OTHER = {2: 0.3, 4: 0.1, 6: 0.9, 8: math.nan}


def by_step() -> Callable[[Any], ValidationScore]:
    """Return a `validate` that tells the step by the weights: equal ones are of the step they were first seen at."""
    weights: dict[bytes, int] = {}

    def validate(method: Method) -> ValidationScore:
        key = b"".join(p.detach().numpy().tobytes() for p in method.parameters())
        step = weights.setdefault(key, 2 * (len(weights) + 1))
        return ValidationScore(value=OWN[step], cases=1, others={"ddim": OTHER[step]})

    return validate


def checkpoint(folder: Path, name: str) -> Any:
    return read_checkpoint(folder / "checkpoints" / name)


def test_each_sampler_keeps_its_best_weights(tmp_path: Path) -> None:
    chosen = settings(8, validate_every_steps=2)
    result = train(toy(), tmp_path, chosen, validate=by_step())
    assert (result.best_score, result.best_step) == (0.6, 4), "the model's own sampler decides what is best"
    for name, step, score in (("best", 4, 0.6), ("best-ddim", 6, 0.9)):
        state = checkpoint(tmp_path, name).state
        assert (state["step"], state["score"]) == (step, score)
    assert FoldFolder(tmp_path).checkpoints() == ["best", "best-ddim", "last"]
    # The weights are the predicting ones of that step: those of a training that stops there.
    other = toy()
    train(other, tmp_path / "c", settings(8, validate_every_steps=6, patience=1), validate=scripted([math.nan]))
    assert checkpoint(tmp_path / "c", "last").state["step"] == 6
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, checkpoint(tmp_path, "best-ddim").part("model")[name])


def scripted(scores: list[float]) -> Callable[[Any], ValidationScore]:
    remaining = list(scores)
    return lambda method: ValidationScore(value=remaining.pop(0), cases=1)


def test_a_training_that_was_stopped_keeps_the_same_ones(tmp_path: Path) -> None:
    chosen = settings(8, validate_every_steps=2)
    train(toy(), tmp_path / "a", chosen, validate=by_step())
    validate = by_step()
    for budget in (1e-9, 1e-9, 1e-9, None):
        with contextlib.suppress(NotFinished):
            train(toy(), tmp_path / "b", chosen, validate=validate, max_time_s=budget)
    for name in ("best", "best-ddim", "last"):
        first, second = (checkpoint(tmp_path / folder, name) for folder in "ab")
        assert first.state["step"] == second.state["step"]
        assert first.state["score"] == second.state["score"]
        assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)


def test_a_new_beginning_forgets_them_all(tmp_path: Path) -> None:
    train(toy(), tmp_path, settings(8, validate_every_steps=2), validate=by_step())
    for path in (tmp_path / "checkpoints").iterdir():
        if not path.name.startswith("best"):
            path.unlink()
    train(toy(), tmp_path, settings(4, validate_every_steps=0), validate=None)
    assert not checkpoint_exists(tmp_path / "checkpoints" / "best")
    assert not list((tmp_path / "checkpoints").glob("best*"))


def test_other_ways_to_predict_are_no_reason_to_go_on() -> None:
    counters = Counters(step=2)
    assert counters.improvements({"ddim": 0.3, "dpm++": math.nan}) == {"ddim": 0.3}
    assert counters.improvements({"ddim": 0.3, "dpm++": 0.0}) == {"dpm++": 0.0}
    assert counters.best_others == {"ddim": 0.3, "dpm++": 0.0}
    counters.judge(0.5, patience=1)
    counters.judge(0.4, patience=1)
    assert counters.stopped_early
