"""`msd train`: a method from first to last: its pretraining, when it starts from one, then its own stages."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.registry import PRETRAINING, is_pretraining
from medsegdiff_cli.paths import RUN_JSON
from medsegdiff_cli.training.distributed import join_team
from medsegdiff_cli.training.outcome import Progress
from medsegdiff_cli.workflows.pretraining import pretraining_of
from medsegdiff_cli.workflows.run_folder import open_run_folder
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import RunSetup, set_up_run
from medsegdiff_cli.workflows.train import TrainReport, train_run

log = logging.getLogger(__name__)

Bars = Callable[[RunSetup], AbstractContextManager[Progress | None]]


@dataclass(frozen=True, kw_only=True)
class SettledTraining:
    """All that a training will do, before anything is written.

    Attributes:
        pretraining: the run that the method starts from; None when it starts from none, or from `--from`.
    """

    pretraining: RunSetup | None
    setup: RunSetup

    @property
    def runs(self) -> tuple[RunSetup, ...]:
        """The runs that need training, in order; a finished pretraining is none of them."""
        first = self.pretraining
        return (self.setup,) if first is None or is_finished(first) else (first, self.setup)


def settle_training(request: TrainRequest) -> SettledTraining:
    """Settle every setting of a training and its pretraining, so that nothing wrong shows only hours later.

    Raises:
        UsageError, InputDataError: as `set_up_run`.
    """
    if is_pretraining(request.method):
        objective = request.method.removeprefix(PRETRAINING)
        raise UsageError(f"'{request.method}' is a pretraining", where="METHOD", fix=f"msd pretrain {objective}")
    before = pretraining_of(request)
    pretraining = None if before is None else set_up_run(before)
    setup = set_up_run(request, planned_parent=None if pretraining is None else pretraining.recipe)
    return SettledTraining(pretraining=pretraining, setup=setup)


def train_method(request: TrainRequest, bars: Bars | None = None) -> tuple[RunSetup, TrainReport]:
    """Train a method; a pretraining that is finished is used again, one that was begun goes on.

    Args:
        bars: given a run, opens what shows its progress.

    Raises:
        MsdError: as `set_up_run` and `train_run`.
    """
    # One team for both runs: a rank that left the first would meet another's end of it in the second.
    with join_team(request.device):
        return _train_both(request, bars or (lambda _: nullcontext()))


def _train_both(request: TrainRequest, show: Bars) -> tuple[RunSetup, TrainReport]:
    started = time.monotonic()
    settled = settle_training(request)
    if settled.pretraining is not None:
        _pretrain(settled.pretraining, show)
        request = replace(request, pretraining=settled.pretraining.folder)
        if request.max_time_s is not None:
            request = replace(request, max_time_s=max(0.0, request.max_time_s - (time.monotonic() - started)))
    setup = settled.setup if settled.pretraining is None else set_up_run(request)
    with show(setup) as progress:
        return setup, train_run(setup, progress)


def is_finished(setup: RunSetup) -> bool:
    """Return whether a run is there and finished.

    Raises:
        UsageError: a run of this name is there with other settings.
    """
    if not (setup.folder / RUN_JSON).is_file():
        return False
    open_run_folder(setup.folder, setup.plan, setup.recipe, setup.record, overwrite=False)
    return read_run(setup.folder).is_finished


def _pretrain(setup: RunSetup, show: Bars) -> None:
    if is_finished(setup):
        log.info("the pretraining is finished and used again: %s", setup.folder)
        return
    steps = setup.recipe.training.steps
    log.info("pretraining first, %d steps (as --set pretrain.training.steps=%d): %s", steps, steps, setup.folder)
    with show(setup) as progress:
        train_run(setup, progress)
