"""`msd train` and `msd finetune`: from a settled run to trained weights and its fold's validation scores."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from medsegdiff_cli import log as logs
from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.artifacts.run import RunRecord, StageRecord, write_run
from medsegdiff_cli.artifacts.scores import Scores
from medsegdiff_cli.batching.loader import make_batches
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.leftovers import remove_leftovers
from medsegdiff_cli.locks import locked
from medsegdiff_cli.methods.base import Method, Objective, Stage, Trainable
from medsegdiff_cli.networks.feature_cache import FeatureCache
from medsegdiff_cli.paths import FEATURES, LOCK, SAMPLES_PNG, TRAINING_LOG
from medsegdiff_cli.preprocessing.store import preprocess
from medsegdiff_cli.reporting.sample_sheet import draw_samples
from medsegdiff_cli.training.distributed import Team, join_team
from medsegdiff_cli.training.loop import train_stage
from medsegdiff_cli.training.outcome import Progress, StageResult
from medsegdiff_cli.workflows.devices import choose_workers, torch_threads, usable_cores
from medsegdiff_cli.workflows.fold_validation import quick_validator, validate_fold
from medsegdiff_cli.workflows.initial_weights import give_initial_weights
from medsegdiff_cli.workflows.preflight import require_training_memory, require_training_space
from medsegdiff_cli.workflows.run_folder import open_run_folder
from medsegdiff_cli.workflows.run_setup import RunSetup

log = logging.getLogger(__name__)

# By the number of axes. Of volumes fewer: each takes as long as a hundred or more slices, and one slice is shown.
_PICTURES = {2: 8, 3: 2}


@dataclass(frozen=True)
class TrainReport:
    """What came out: the record, and the validation scores (None without validation cases)."""

    record: RunRecord
    scores: Scores | None


def train_run(setup: RunSetup, progress: Progress | None = None) -> TrainReport:
    """Train all stages of a run, resuming what was begun, then predict and score the fold's validation cases.

    A pretraining has nothing to score: it leaves a picture of what it learnt instead.

    Args:
        progress: told of every step.

    Raises:
        UsageError: the run folder holds other settings, or too little of the parent's weights fits; nothing is written.
            Or another process trains it.
        ResourceError: the disk cannot be written or is too full, or the memory is too small.
        NotFinished: `max_time_s` is used up. Interrupted: SIGINT or SIGTERM; both after saving.
    """
    started, limit = time.monotonic(), setup.request.max_time_s
    cores_left = usable_cores() - setup.request.workers
    with torch_threads(cores_left), join_team(setup.request.device) as team, _run_of_its_own(setup, team):
        method = setup.new_trainable()
        initial = give_initial_weights(setup, method)
        if team.is_lead:
            require_training_space(setup, store_of(setup).folder, method)
            if team.world_size == 1:  # several share the batch, and may do so on several machines
                require_training_memory(setup)
        record, store = _prepare(setup) if team.is_lead else (setup.record, store_of(setup))
        # A resumed run keeps the precision that it began with.
        setup = replace(setup, record=record)
        # The other ranks wait here until the lead has written run folder and store.
        team.from_lead(0.0)
        handler = logs.add_file(setup.folder / TRAINING_LOG) if team.is_lead else None
        try:
            for remark in (*initial, *setup.patch.notes, *method.remarks()):
                log.info(remark)
            if setup.recipe.training.feature_cache and isinstance(method, Method):
                method.keep_features(FeatureCache(setup.folder / FEATURES))
            for stage in method.stages:
                left = None if limit is None else max(0.0, limit - (time.monotonic() - started))
                record = _train_one(setup, record, method, stage, store, progress, team, max_time_s=left)
            if team.is_lead and (setup.folder / FEATURES).is_dir():
                shutil.rmtree(setup.folder / FEATURES)  # of use to this training alone
            if isinstance(method, Objective) and team.is_lead:
                _illustrate(method, setup)
            team.wait()  # what comes next on the other ranks may read the finished run
            return TrainReport(record, validate_fold(setup) if record.val_cases and team.is_lead else None)
        finally:
            if handler is not None:
                logs.remove(handler)


@contextmanager
def _run_of_its_own(setup: RunSetup, team: Team) -> Iterator[None]:
    """Keep other processes out of the run's folder, and remove what killed ones left there."""
    if not team.is_lead:
        yield
        return
    with locked(setup.folder / LOCK):
        remove_leftovers(setup.folder, alone=True, deep=True)
        yield


def _illustrate(objective: Objective, setup: RunSetup) -> None:
    """Draw what a pretraining learnt, once."""
    picture = setup.folder / SAMPLES_PNG
    if picture.is_file():
        return
    objective.eval()
    images = []
    # One by one: a batch of volumes may not fit where a training step did.
    for number in range(_PICTURES[len(setup.recipe.patch_size_voxels)]):
        noise = NoiseSource([(setup.record.seed, "picture", number)], setup.request.device)
        image = objective.illustrate(noise, setup.recipe.patch_size_voxels)
        if image is None:
            return
        images.append(image.cpu())
    title = f"{setup.folder.parent.name}, {setup.recipe.training.steps} steps: generated images"
    draw_samples(torch.cat(images).numpy(), picture, title=title)
    log.info("what was learnt: %s", picture)


def _prepare(setup: RunSetup) -> tuple[RunRecord, PreprocessedStore]:
    """Create or check the run folder, and preprocess the cases that are missing or stale."""
    store = store_of(setup)
    record = open_run_folder(setup.folder, setup.plan, setup.recipe, setup.record, overwrite=setup.request.overwrite)
    report = preprocess(
        setup.dataset,
        setup.plan,
        setup.record.config,
        store,
        parts=setup.parts,
        cases={*setup.record.train_cases, *setup.record.val_cases},
        workers=choose_workers(None) if setup.request.workers else 0,
        wait=True,
    )
    if report.written:
        log.info("preprocessed %d cases (%d were there)", len(report.written), len(report.reused))
    return record, store


def store_of(setup: RunSetup) -> PreprocessedStore:
    """Return the preprocessed store that the run trains on."""
    return PreprocessedStore(
        setup.request.workspace.store_folder(setup.dataset.name, setup.plan.plans_name, setup.record.config)
    )


def _train_one(
    setup: RunSetup,
    record: RunRecord,
    method: Trainable,
    stage: Stage,
    store: PreprocessedStore,
    progress: Progress | None,
    team: Team,
    *,
    max_time_s: float | None,
) -> RunRecord:
    recipe, scheme = setup.recipe, setup.plan.label_scheme()
    training = recipe.training

    def batches(start_step: int) -> Iterator[Batch]:
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
            rank=team.rank,
            world_size=team.world_size,
            workers=setup.request.workers,
            supervision=stage.supervision,
            views=stage.views,
            aligned=stage.aligned,
            hidden_labels=record.hidden_labels,
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
        max_time_s=max_time_s,
        progress=progress,
        team=team,
    )
    record = _with_stage(record, result)
    if team.is_lead:
        write_run(setup.folder, record)
    return record


def _with_stage(record: RunRecord, result: StageResult) -> RunRecord:
    """Return the record after a stage is finished."""
    stages = tuple(
        StageRecord(name=stage.name, status="finished", steps_done=result.steps_done, steps=stage.steps)
        if stage.name == result.stage
        else stage
        for stage in record.stages
    )
    return record.model_copy(update={"stages": stages, "weights_digest": result.weights_digest})
