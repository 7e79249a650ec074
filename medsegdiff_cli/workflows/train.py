"""`msd train` and `msd finetune`: from a settled run to trained weights and its fold's validation scores."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medsegdiff_cli import log as logs
from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.scores import Scores
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run
from medsegdiff_cli.batching.loader import make_batches
from medsegdiff_cli.methods.base import Method, Stage
from medsegdiff_cli.paths import TRAINING_LOG
from medsegdiff_cli.preprocessing.store import preprocess
from medsegdiff_cli.training.distributed import process_group
from medsegdiff_cli.training.loop import train_stage
from medsegdiff_cli.training.start_from import start_from
from medsegdiff_cli.workflows.fold_validation import quick_validator, validate_fold
from medsegdiff_cli.workflows.run_setup import RunSetup, open_run_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainReport:
    """What came out: the record, and the validation scores (None without validation cases)."""

    record: RunRecord
    scores: Scores | None


def train_run(setup: RunSetup, on_step: Callable[..., None] | None = None) -> TrainReport:
    """Train all stages of a run, resuming what was begun, then predict and score the fold's validation cases.

    Args:
        on_step: progress callback, see `training.loop`.

    Raises:
        UsageError: the run folder holds other settings.
        NotFinished: `max_time_s` is used up. Interrupted: SIGINT or SIGTERM; both after saving.
    """
    record = open_run_folder(setup)
    handler = logs.add_file(setup.folder / TRAINING_LOG)
    try:
        store = preprocess_for(setup)
        method = setup.new_method()
        if setup.request.parent is not None:
            start_from(method, setup.request.parent, min_coverage=setup.request.min_coverage)
        method = method.to(setup.request.device)
        for stage in method.stages:
            record = _train_one(setup, record, method, stage, store, on_step)
        return TrainReport(record, validate_fold(setup) if record.val_cases else None)
    finally:
        logs.remove(handler)


def preprocess_for(setup: RunSetup) -> PreprocessedStore:
    """Return the run's store with every case it needs, preprocessing those that are missing or stale."""
    store = PreprocessedStore(
        setup.request.workspace.store_folder(setup.dataset.name, setup.plan.plans_name, setup.record.config)
    )
    wanted = {*setup.record.train_cases, *setup.record.val_cases}
    report = preprocess(
        setup.dataset,
        setup.plan,
        setup.record.config,
        store,
        parts=("Tr",),
        cases=wanted,
        workers=setup.request.workers,
        progress=None,
    )
    if report.written:
        log.info("preprocessed %d cases (%d reused)", len(report.written), len(report.reused))
    return store


def _train_one(
    setup: RunSetup,
    record: RunRecord,
    method: Method,
    stage: Stage,
    store: PreprocessedStore,
    on_step: Callable[..., None] | None,
) -> RunRecord:
    recipe, scheme = setup.recipe, setup.plan.label_scheme()
    training = recipe.training

    def batches(start_step: int) -> Iterator[Batch]:
        group = process_group()
        return make_batches(
            store,
            record.train_cases,
            scheme=scheme,
            patch_size=recipe.patch_size_voxels,
            batch_size=recipe.batch_size,
            seed=record.seed,
            augmentation=recipe.augmentation,
            mirror_axes=setup.plan.mirror_axes,
            foreground_share=training.foreground_share,
            drop_empty_slices=training.drop_empty_slices,
            slices_2d=setup.slices,
            start_step=start_step,
            steps=training.steps,
            rank=group.rank,
            world_size=group.size,
            workers=setup.request.workers,
            supervision=stage.supervision,
            views=stage.views,
        )

    result = train_stage(
        method,
        stage,
        training,
        folder=setup.folder,
        make_batches=batches,
        validate=quick_validator(setup, store) if record.val_cases else None,
        seed=record.seed,
        device=setup.request.device,
        precision=record.precision,
        max_time_s=setup.request.max_time_s,
        progress=on_step,
    )
    stages = tuple(
        StageRecord(name=s.name, status="finished", steps_done=result.steps_done, steps=s.steps)
        if s.name == stage.name
        else s
        for s in record.stages
    )
    record = record.model_copy(update={"stages": stages, "weights_digest": result.weights_digest})
    if process_group().rank == 0:
        write_run(setup.folder, record)
    return record
