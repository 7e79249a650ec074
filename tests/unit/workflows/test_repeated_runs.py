"""Several runs of one arm: seeds, one time budget, and means against numpy."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medsegdiff_cli.artifacts.scores import Statistic
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows import repeated_runs
from medsegdiff_cli.workflows.repeated_runs import RepeatedRuns, requests_of, settle_runs, train_repeatedly
from medsegdiff_cli.workflows.run_request import TrainRequest

DICE, JACCARD, MIOU = (0.5, 0.75, 0.875), (0.25, None, 0.5), (None, None, None)


@pytest.fixture
def request_(tmp_path: Path) -> TrainRequest:
    return TrainRequest(method="supervised", dataset="1", workspace=Workspace(tmp_path), seed=4)


def scored(number: int) -> Any:
    dice = Statistic(mean=DICE[number], std=None, median=None, n=1, undefined=0)
    named = {"jaccard_per_image": JACCARD[number], "miou": MIOU[number]}
    return SimpleNamespace(overall=SimpleNamespace(case_by_class={"dice": dice}, named=named))


def trained(monkeypatch: pytest.MonkeyPatch, request: TrainRequest, *, scores: bool = True) -> Any:
    """Run it with a training that takes 10 s; return what came out, and the requests of the trainings."""
    made: list[TrainRequest] = []
    clock = SimpleNamespace(monotonic=lambda: 10.0 * len(made))

    def train(one: TrainRequest, bars: object) -> Any:
        made.append(one)
        return SimpleNamespace(folder=one.seed), SimpleNamespace(scores=scored(len(made) - 1) if scores else None)

    monkeypatch.setattr(repeated_runs, "train_method", train)
    monkeypatch.setattr(repeated_runs, "time", clock)
    return train_repeatedly(request, 3), made


def test_means_and_sample_deviations_are_numpys(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated, made = trained(monkeypatch, request_)
    assert isinstance(repeated, RepeatedRuns)
    assert [one.seed for one in made] == [4, 5, 6]
    assert made[1] == replace(request_, seed=5)
    dice, jaccard, miou = (repeated.statistics[name] for name in ("dice", "jaccard_per_image", "miou"))
    assert (dice.mean, dice.std, dice.n) == pytest.approx((np.mean(DICE), np.std(DICE, ddof=1), 3))
    # A run without a value is in no mean, and counted.
    assert (jaccard.mean, jaccard.n, jaccard.undefined) == (0.375, 2, 1)
    assert (miou.mean, miou.n) == (None, 0)


def test_the_time_budget_is_that_of_all_runs(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = trained(monkeypatch, replace(request_, max_time_s=15.0))
    assert [one.max_time_s for one in made] == [15.0, 5.0, 0.0]


def test_runs_without_validation_have_nothing_to_average(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained(monkeypatch, request_, scores=False)[0].statistics == {}


def test_a_shared_pretraining_is_forecast_once(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = SimpleNamespace(folder="pretraining")
    settle = lambda one: SimpleNamespace(runs=(before, SimpleNamespace(folder=one.seed)))  # noqa: E731
    monkeypatch.setattr(repeated_runs, "settle_training", settle)
    assert [setup.folder for setup in settle_runs(request_, 2)] == ["pretraining", 4, 5]
    assert len(requests_of(request_, 1)) == 1
