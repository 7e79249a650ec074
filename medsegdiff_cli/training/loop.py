"""The training loop: the same for every method, objective and number of processes.

Everything random is a function of (seed, stage, step, position in the global batch); so a training that was stopped and
started again goes on as if nothing had happened, bit by bit on a CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.errors import Interrupted, ResourceError, lacks_memory
from medsegdiff_cli.methods.base import Stage, Trainable
from medsegdiff_cli.networks.transfer import adaptation_data
from medsegdiff_cli.paths import CHECKPOINTS
from medsegdiff_cli.training.checkpoints import StageCheckpoints
from medsegdiff_cli.training.distributed import Team
from medsegdiff_cli.training.journal import Journal
from medsegdiff_cli.training.outcome import Progress, StageResult, ValidationScore
from medsegdiff_cli.training.signals import StopSignals
from medsegdiff_cli.training.stage_run import Collaborators, StageRun
from medsegdiff_cli.training.updater import Updater, load_weights


def train_stage(
    method: Trainable,
    stage: Stage,
    settings: TrainingSettings,
    *,
    folder: Path,
    make_batches: Callable[[int], Iterator[Batch]],
    validate: Callable[[Any], ValidationScore] | None = None,
    seed: int,
    device: torch.device,
    precision: str = "float32",
    channels_last: bool = False,
    max_time_s: float | None = None,
    progress: Progress | None = None,
    team: Team | None = None,
) -> StageResult:
    """Train one stage, or go on with it, or return at once when it is finished.

    Afterwards the method holds the stage's prediction weights (averaged ones when `ema_decay` is set); only of a
    finished stage that later stages have already built upon, it is left as it was.

    Args:
        method: freshly built (or as the stage before left it); moved to `device`.
        folder: the run's fold folder.
        make_batches: given the number of steps done, returns this rank's batches of the remaining steps.
        validate: predicts with the method, which is in `eval()` with its prediction weights; called on rank 0 only.
            None: the stage has nothing to predict.
        precision: "float32" or "bfloat16" (autocast), as recorded with the run.
        max_time_s: save and stop after so long, counted from this call.
        team: the processes of this training, from `join_team`; its device is then the one that counts.

    Raises:
        NotFinished: the time is used up; the same call goes on.
        Interrupted: SIGINT or SIGTERM; saved, the same call goes on.
        MsdError: the loss or its gradient is no finite number.
        ResourceError: out of memory, or another rank is gone.
        IntegrityError: checkpoints that are damaged or belong to another method.
    """
    team = team or Team(device=device)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[method.task.n_dims]
    method.to(device=team.device)
    if channels_last:
        method.to(memory_format=layout)  # type: ignore[call-overload]
    checkpoints = StageCheckpoints(folder / CHECKPOINTS, stage.name, adaptation_data(method))
    finished = _finished_before(method, checkpoints)
    if finished is not None:
        return finished
    outside = Collaborators(make_batches=make_batches, validate=validate, progress=progress, max_time_s=max_time_s)
    with _explained_errors(stage), StopSignals() as signals:
        updater = Updater(
            method,
            stage,
            settings,
            seed=seed,
            device=team.device,
            precision=precision,
            channels_last=channels_last,
            team=team,
        )
        return StageRun(updater, outside, checkpoints, Journal(folder), signals).run()


def _finished_before(method: Trainable, checkpoints: StageCheckpoints) -> StageResult | None:
    """Return the outcome of a finished stage, its weights loaded unless a later stage has gone on from them."""
    outcome = checkpoints.finished().get(checkpoints.stage)
    if outcome is None:
        return None
    last = checkpoints.read_last()
    if last is not None:
        load_weights(method, last)
        method.eval()
        digest = checkpoints.digest_of_last()
    elif checkpoints.stage_of_last() == checkpoints.stage:
        return None  # damaged: made again from the newest step checkpoint
    else:
        digest = ""
    return StageResult(stage=checkpoints.stage, weights_digest=digest, **outcome)


@contextmanager
def _explained_errors(stage: Stage) -> Iterator[None]:
    """Turn interruption without saving and lack of memory into errors with an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stage '{stage.name}' was stopped at once, without saving",
            fix="run the same command again: it goes on from the last checkpoint",
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        # No smaller batch is tried: its statistics, its Dice and its noise would make it another training.
        raise ResourceError(
            f"the memory does not suffice for a training step ({(str(error) or repr(error)).splitlines()[0][:200]})",
            where=f"stage '{stage.name}'",
            fix="under a new --name, set a smaller training.batch_size or training.patch_size_voxels, or a smaller "
            "--scale, or gradient_checkpointing where the method has it; --dry-run says what is forecast. If something "
            "else fills the memory, end that and run the same command again: it goes on from the last checkpoint",
        ) from error
