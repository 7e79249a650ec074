"""`msd predict`: trained models and images in, a prediction folder out."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.postprocessing import Step
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.image import Geometry
from medsegdiff_cli.imaging.inflating import refuse_bomb
from medsegdiff_cli.imaging.reading import read_geometry
from medsegdiff_cli.imaging.transform import grid_shape
from medsegdiff_cli.inference.fusion import Fusion
from medsegdiff_cli.inference.settings import Canvas
from medsegdiff_cli.inference.volume import InferenceSettings, windows_of
from medsegdiff_cli.leftovers import remove_leftovers
from medsegdiff_cli.locks import locked
from medsegdiff_cli.methods.base import Sampling
from medsegdiff_cli.paths import LOCK, PREDICTION_JSON
from medsegdiff_cli.planning.memory import require_memory
from medsegdiff_cli.prediction.case_steps import PredictionJob
from medsegdiff_cli.prediction.inputs import InputCase, Inputs, find_inputs, require_other_folder, shard
from medsegdiff_cli.prediction.model import CheckpointName, LoadedModel, load_models
from medsegdiff_cli.prediction.outputs import MAP_FOLDERS, label_ending
from medsegdiff_cli.prediction.postprocessing import require_applicable
from medsegdiff_cli.prediction.predictor import PredictionReport, predict_cases
from medsegdiff_cli.prediction.settings import OutputSettings
from medsegdiff_cli.prediction.volumes import write_volumes
from medsegdiff_cli.preprocessing.case import uses_mask
from medsegdiff_cli.preprocessing.transform_settings import transform_settings
from medsegdiff_cli.workflows.channel_order import require_same_channels
from medsegdiff_cli.workflows.devices import choose_device, choose_workers
from medsegdiff_cli.workflows.prediction_info import write_info
from medsegdiff_cli.workflows.provenance import command_line
from medsegdiff_cli.workflows.sampling import chosen_sampling, require_common_steps, visited_timesteps
from medsegdiff_cli.workflows.warm_start import load_start, require_pair

log = logging.getLogger(__name__)

# More voxels a call gain nothing on a CPU; on a GPU the default stays the same, for it is part of a result's bytes.
_WINDOW_BATCH_VOXELS = 1 << 18
_LARGEST_WINDOW_BATCH = 16
_FLOAT_BYTES = 4
# Compressing shrinks files by so much at best, in practice: what is refused for lack of space would not have fitted.
_LABELS_SHRINK, _FLOATS_SHRINK = 20, 4


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What `msd predict` was asked for; None takes the model's own setting.

    Attributes:
        start_from: predictions, a run or a bundle that walks start from at `sampling.start`; None starts from noise.
    """

    models: tuple[Path, ...]
    source: Path
    output: Path
    folds: tuple[str, ...] = ()
    checkpoint: CheckpointName | None = None
    step_size: float | None = None
    mirror: bool | None = None
    draws: int = 1
    fusion: Fusion | None = None
    canvas: Canvas = "window"
    start_from: Path | None = None
    postprocessing: tuple[Step, ...] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    window_batch: int | None = None
    wanted: OutputSettings = field(default_factory=OutputSettings)
    masks: Path | None = None
    num_shards: int = 1
    shard_id: int = 0
    seed: int = 0
    device: str | None = None
    workers: int | None = None
    max_time_s: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PreparedPrediction:
    """A checked request: loaded models and the cases found."""

    job: PredictionJob
    inputs: Inputs
    cases: tuple[InputCase, ...]
    num_shards: int = 1
    shard_id: int = 0

    def windows(self) -> int:
        """Return the number of network calls' windows over all cases, models, draws and mirrored versions."""
        inference, total = self.job.inference, 0
        for case in self.cases:
            geometry = read_geometry(case.images[0])
            shape = grid_shape(geometry.shape, geometry.spacing_mm, self.job.transform)
            total += windows_of(shape, inference)
        draws = sum(inference.draws if model.method.stochastic else 1 for model in self.job.models)
        return total * draws * 2 ** len(inference.mirror_axes)


def prepare_prediction(request: PredictRequest) -> PreparedPrediction:
    """Load the models, find the images and settle every setting; nothing is written.

    Raises:
        UsageError, InputDataError, IntegrityError: see the rooms.
    """
    device = choose_device(request.device)
    models = load_models(
        request.models,
        folds=request.folds,
        checkpoint=request.checkpoint,
        sampler=request.sampling.sampler,
        device=device,
    )
    first, sampling = models[0], _sampling(request, models)
    inputs = find_inputs(request.source, len(first.plan.channels), first.plan.file_ending)
    require_same_channels(request.source, first.plan)
    if request.masks is not None and not request.masks.is_dir():
        raise UsageError(f"'{request.masks}' is no folder", where="--masks", fix="give the folder that holds the masks")
    taken = [path for case in inputs.cases for path in case.images]
    require_other_folder(request.output, taken if request.masks is None else [*taken, request.masks / "mask"])
    transform = transform_settings(first.plan, first.run.config)
    if request.masks is None and uses_mask(transform) and (Path(first.run.dataset_path) / "masksTr").is_dir():
        log.warning("the model was trained with masks: name those of these images with --masks")
    inference = inference_settings(first, replace(request, sampling=sampling))
    if request.mirror and not inference.mirror_axes:
        log.warning("--mirror changes nothing: the plan has no axis to mirror along")
    start = None
    if request.start_from is not None:
        start = load_start(
            request.start_from, models, lambda model: replace(inference_settings(model), seed=request.seed), device
        )
        require_other_folder(request.output, [] if start.folder is None else [start.folder / "label"])
    steps = first.recipe.prediction.postprocessing if request.postprocessing is None else request.postprocessing
    require_applicable(steps, first.plan.label_scheme(), first.plan.n_dims_of_images)
    job = PredictionJob(
        models=models,
        output=request.output,
        transform=transform,
        inference=inference,
        wanted=replace(request.wanted, postprocessing=steps),
        masks=request.masks,
        start=start,
        overwrite=request.overwrite,
        workers=choose_workers(request.workers, device),
        max_time_s=request.max_time_s,
        command=command_line(),
    )
    cases = shard(inputs.cases, request.num_shards, request.shard_id)
    return PreparedPrediction(job, inputs, cases, request.num_shards, request.shard_id)


def _sampling(request: PredictRequest, models: Sequence[LoadedModel]) -> Sampling:
    """Return how to sample.

    Raises:
        UsageError: a model cannot, or what was asked for does not fit together.
    """
    require_pair(request.start_from, request.sampling.start)
    further = {
        "--canvas shared": request.canvas == "shared",
        "--save-steps": request.wanted.steps,
        "--init-from": request.start_from is not None,
    }
    sampling = chosen_sampling(models, request.sampling, *(name for name, given in further.items() if given))
    if request.wanted.steps:
        require_common_steps(models, sampling)
    if request.draws > 1 and not any(model.method.stochastic for model in models):
        log.warning("--draws changes nothing: method '%s' predicts the same every time", models[0].run.method)
    return sampling


def inference_settings(model: LoadedModel, request: PredictRequest | None = None) -> InferenceSettings:
    """Return the model's own inference settings, with what the request overrides."""
    recipe, plan = model.recipe.prediction, model.plan
    mirror = recipe.mirror if request is None or request.mirror is None else request.mirror
    patch = model.recipe.patch_size_voxels
    slices = len(patch) < plan.n_dims_of_images
    # A 2D network cannot mirror over the slices' axis.
    axes = tuple(axis for axis in plan.mirror_axes if not (slices and axis == 0)) if mirror else ()
    default_batch = max(1, min(_LARGEST_WINDOW_BATCH, _WINDOW_BATCH_VOXELS // math.prod(patch)))
    return InferenceSettings(
        patch_size=patch,
        slices=slices,
        step_size=recipe.step_size if request is None or request.step_size is None else request.step_size,
        mirror_axes=axes,
        draws=request.draws if request else 1,
        window_batch=(request.window_batch if request else None) or default_batch,
        precision=model.run.precision,
        seed=request.seed if request else 0,
        fusion=(request.fusion if request else None) or recipe.fusion,
        overlap=recipe.overlap,
        window_weights=recipe.window_weights,
        canvas=request.canvas if request else "window",
        sampling=request.sampling if request else Sampling(),
    )


def run_prediction(prepared: PreparedPrediction, on_case: Callable[[str, str], None] | None = None) -> PredictionReport:
    """Predict the prepared cases and write `prediction.json` and `volumes.csv`.

    Raises:
        UsageError: the output is of other models or settings, or another process is writing it.
        ResourceError: it cannot be written, the disk is too full or the memory too small.
        PartialFailure, InputDataError: some cases failed, or all did.
    """
    job = prepared.job
    with _output_of_its_own(prepared):
        _require_room(prepared)
        _refuse_foreign_files(prepared)
        write_info(job)
        try:
            return predict_cases(job, prepared.cases, on_case)
        finally:
            write_volumes(job.output)


@contextmanager
def _output_of_its_own(prepared: PreparedPrediction) -> Iterator[None]:
    """Keep other processes out of the output, but those of other shards; remove what killed ones left there."""
    output, shards = prepared.job.output, prepared.num_shards
    with ExitStack() as stack:
        stack.enter_context(locked(output / LOCK, shards=shards))
        if shards > 1:
            stack.enter_context(locked(output / f"{LOCK}.shard-{prepared.shard_id}-of-{shards}"))
        for folder in (output, *(output / name for name in MAP_FOLDERS)):
            remove_leftovers(folder, alone=shards == 1)
        yield


def _require_room(prepared: PreparedPrediction) -> None:
    """Refuse what the disk, or for every case the memory, cannot take.

    One image that is too large, or whose header lies, is no reason not to predict the others.

    Raises:
        ResourceError: it cannot.
    """
    job, pending = prepared.job, []
    for case in prepared.cases:
        if not (job.output / f"{case.case}.json").is_file():
            with suppress(InputDataError):  # what cannot be read is reported when its turn comes
                geometry = read_geometry(path := case.images[0])
                if path.is_file():
                    refuse_bomb(math.prod(geometry.shape), path.stat().st_size, path)
                pending.append(geometry)
    atomic.require_space(job.output, _least_bytes(job, pending), "the predictions")
    require_memory(min((least_memory(job, geometry) for geometry in pending), default=0), "the smallest case")


def _least_bytes(job: PredictionJob, pending: Sequence[Geometry]) -> int:
    """Return about how many bytes the missing cases will take when compressing makes them small; no fewer."""
    task = job.models[0].method.task
    n_floats = (task.n_classes if job.wanted.probabilities else 0) + bool(job.wanted.uncertainty)
    n_labels = label_maps_of(job)
    a_voxel = n_labels / _LABELS_SHRINK + n_floats * _FLOAT_BYTES / _FLOATS_SHRINK
    return int(sum(math.prod(geometry.shape) * a_voxel for geometry in pending))


def label_maps_of(job: PredictionJob) -> int:
    """Return how many label maps are written for a case."""
    members = job.inference.draws * len(job.models) if job.wanted.members else 0
    return (1 + members) * (1 + _kept_steps(job))


def _kept_steps(job: PredictionJob) -> int:
    return len(visited_timesteps(job.models, job.inference.sampling)) if job.wanted.steps else 0


def least_memory(job: PredictionJob, native: Geometry) -> int:
    """Return the bytes of a case's arrays alone: its image, canvas, sums and label map; the network comes on top."""
    task, is_shared = job.models[0].method.task, job.inference.canvas == "shared"
    grid_voxels = math.prod(grid_shape(native.shape, native.spacing_mm, job.transform))
    # A shared canvas has its state, two estimates and fresh noise; kept steps a mean each, or as long as windows are
    # walked one by one, also an estimate.
    walk = (4 if is_shared else 0) + _kept_steps(job) * (1 if is_shared else 2)
    floats = task.in_channels + (2 + 2 * job.wanted.uncertainty + walk) * task.n_classes
    return _FLOAT_BYTES * (grid_voxels * floats + math.prod(native.shape) * (task.in_channels + 1))


def _refuse_foreign_files(prepared: PreparedPrediction) -> None:
    """Refuse to write over images that no prediction left: their folder has no `prediction.json`."""
    job = prepared.job
    if job.overwrite or (job.output / PREDICTION_JSON).is_file():
        return
    for case in prepared.cases:
        path = job.output / f"{case.case}{job.ending or label_ending(case.images[0])}"
        if path.exists():
            raise UsageError(
                f"OUTPUT holds a file '{path.name}' that is no prediction of msd",
                where=str(job.output),
                fix="choose another OUTPUT, or pass --overwrite to replace it",
            )


def split_arguments(
    arguments: Sequence[str], source: Path | None, output: Path | None
) -> tuple[tuple[str, ...], Path, Path]:
    """Tell MODEL... INPUT OUTPUT apart; `-i` and `-o` take the place of the last ones.

    Raises:
        UsageError: something is missing.
    """
    rest = list(arguments)
    if output is None and len(rest) > 1:
        output = Path(rest.pop())
    if source is None and len(rest) > 1:
        source = Path(rest.pop())
    if not rest or source is None or output is None:
        missing = "MODEL" if not rest else "INPUT" if source is None else "OUTPUT"
        raise UsageError(f"{missing} is missing", where="msd predict", fix="write msd predict MODEL... INPUT OUTPUT")
    return tuple(rest), source, output
