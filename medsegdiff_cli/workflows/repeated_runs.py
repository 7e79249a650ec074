"""`msd train|finetune --runs N`: the same arm with several seeds, and the mean of its validation scores."""

import time
from dataclasses import dataclass, replace

from medsegdiff_cli.artifacts.scores import Scores, Statistic
from medsegdiff_cli.evaluation.summary import statistic_of
from medsegdiff_cli.training.distributed import join_team
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import RunSetup
from medsegdiff_cli.workflows.train import TrainReport
from medsegdiff_cli.workflows.train_method import Bars, settle_training, train_method


@dataclass(frozen=True, kw_only=True)
class RepeatedRuns:
    """What came out of several runs of one arm.

    Attributes:
        runs: each run and its outcome, in the order of their seeds.
        statistics: over the runs, of each number of `validation_numbers`; none without validation cases.
    """

    runs: tuple[tuple[RunSetup, TrainReport], ...]
    statistics: dict[str, Statistic]


def requests_of(request: TrainRequest, n_runs: int) -> tuple[TrainRequest, ...]:
    """Return the requests of the runs, with seeds S, S + 1, ...; a run of another seed has a folder of its own."""
    return tuple(replace(request, seed=request.seed + number) for number in range(n_runs))


def settle_runs(request: TrainRequest, n_runs: int) -> tuple[RunSetup, ...]:
    """Return all runs that need training, in order, a pretraining that several start from once.

    Raises:
        UsageError, InputDataError: as `set_up_run`.
    """
    setups = [setup for one in requests_of(request, n_runs) for setup in settle_training(one).runs]
    return tuple({setup.folder: setup for setup in setups}.values())


def train_repeatedly(request: TrainRequest, n_runs: int, bars: Bars | None = None) -> RepeatedRuns:
    """Train an arm `n_runs` times; runs that are finished are used again, one that was begun goes on.

    Args:
        request: of the first run; its `max_time_s` is for all of them together.
        bars: given a run, opens what shows its progress.

    Raises:
        MsdError: as `train_method`.
    """
    started, runs = time.monotonic(), []
    with join_team(request.device):
        for one in requests_of(request, n_runs):
            if request.max_time_s is not None:
                one = replace(one, max_time_s=max(0.0, request.max_time_s - (time.monotonic() - started)))
            runs.append(train_method(one, bars))
    numbers = [validation_numbers(report.scores) for _, report in runs if report.scores is not None]
    names = dict.fromkeys(name for one in numbers for name in one)
    statistics = {name: statistic_of([one[name] for one in numbers]) for name in names}
    return RepeatedRuns(runs=tuple(runs), statistics=statistics)


def validation_numbers(scores: Scores) -> dict[str, float | None]:
    """Return the single numbers of a run: Dice (nnU-Net's foreground mean) and the named aggregations."""
    return {"dice": scores.overall.case_by_class["dice"].mean, **scores.overall.named}
