"""The three steps of predicting one case: read, compute, write; the latter two take the future of the one before."""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from medsegdiff_cli import __version__, atomic
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.prediction_folder import Sidecar, Spread, read_sidecar, write_sidecar
from medsegdiff_cli.errors import InputDataError, ResourceError, UsageError, lacks_memory
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.crop import box_shape
from medsegdiff_cli.imaging.image import Image
from medsegdiff_cli.imaging.reading import case_name_of, ending_of, read_label, unreadable
from medsegdiff_cli.imaging.transform import Placement, Transformed, TransformSettings, forward
from medsegdiff_cli.inference.fusion import RunningFusion
from medsegdiff_cli.inference.volume import InferenceSettings, StepRecord, predict_volume
from medsegdiff_cli.prediction.flags import flags_of, image_flags
from medsegdiff_cli.prediction.inputs import InputCase
from medsegdiff_cli.prediction.model import LoadedModel, bundles_of
from medsegdiff_cli.prediction.outputs import label_ending, write_case
from medsegdiff_cli.prediction.postprocessing import require_units
from medsegdiff_cli.prediction.settings import OutputSettings, key_content
from medsegdiff_cli.prediction.warm_start import WarmStart

log = logging.getLogger(__name__)

_INTERVAL_PERCENT = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """Everything the predictor needs.

    Attributes:
        transform: the training's own preprocessing.
        masks: folder with one mask per case, for plans that normalise inside a mask.
        start: where walks of iterative methods begin, None for noise.
        ending: of label maps; None takes each input's own.
        overwrite: predict again what exists under other settings.
        workers: 0 reads, computes and writes in turn; more overlaps them.
        max_time_s: no further case is begun after so many seconds; None has no end.
    """

    models: Sequence[LoadedModel]
    output: Path
    transform: TransformSettings
    inference: InferenceSettings
    wanted: OutputSettings = field(default_factory=OutputSettings)
    masks: Path | None = None
    start: WarmStart | None = None
    ending: str | None = None
    overwrite: bool = False
    workers: int = 1
    max_time_s: float | None = None
    command: str = ""


@dataclass(frozen=True)
class ReadCase:
    """A case after reading and preprocessing; `transformed` is None when its prediction is already there."""

    case: InputCase
    key: str
    digests: dict[str, str]
    image: Image | None = None
    transformed: Transformed | None = None


@dataclass(frozen=True)
class ComputedCase:
    """A case after predicting; `fusion` is None when its prediction is already there.

    Attributes:
        window_batch: windows per network call, after halving.
        record: what walks did; empty for methods without.
    """

    read: ReadCase
    fusion: RunningFusion | None = None
    window_batch: int = 0
    record: StepRecord = field(default_factory=StepRecord)


def read_case(job: PredictionJob, case: InputCase) -> ReadCase:
    """Read and preprocess a case, unless its prediction exists under the same key.

    Raises:
        InputDataError: the image cannot be used. UsageError: it was predicted under other settings.
    """
    key, digests = key_of(job, case)
    mask_path = None if job.masks is None else _mask_of(job.masks, case.case)
    model = job.models[0]
    if _is_done(job, case.case, key):
        return ReadCase(case, key, digests)
    image = read_channels(case.images, n_channels=len(model.plan.channels))
    if image.geometry.n_dims != model.plan.n_dims_of_images:
        raise InputDataError(
            f"the image has {image.geometry.n_dims} axes, the model was trained on {model.plan.n_dims_of_images}",
            where=str(case.images[0]),
        )
    require_units(job.wanted.postprocessing, image.geometry)
    for flag in image_flags(image, model.plan.channels):
        log.warning("case '%s': %s", case.case, flag)
    mask = None if mask_path is None else read_label(mask_path).array[0] > 0
    start = None if job.start is None else job.start.read(case.case, image, model.plan.label_scheme())
    return ReadCase(case, key, digests, image, forward(image, job.transform, label=start, mask=mask))


def key_of(job: PredictionJob, case: InputCase) -> tuple[str, dict[str, str]]:
    """Return the key of a case's prediction, and the digests of its files that went into it.

    Raises:
        InputDataError: a file, or the case's mask, is missing.
    """
    digests = {path.name: _digest(path) for path in case.images}
    if job.masks is not None:
        mask_path = _mask_of(job.masks, case.case)
        digests[f"mask:{mask_path.name}"] = _digest(mask_path)
    if job.start is not None:
        digests |= job.start.digests(case.case)
    key = atomic.digest_of_content(
        {
            "models": [model.digest for model in job.models],
            "plan": job.models[0].plan.digest(),
            "settings": key_content(job.inference, job.wanted),
            "inputs": digests,
            **({} if job.start is None else {"start": job.start.content()}),
        }
    )
    return key, digests


def compute_case(job: PredictionJob, reading: "Future[ReadCase]") -> ComputedCase:
    """Predict a read case on the network's grid; where memory is too small, once more with half the windows a call.

    Raises:
        ResourceError: the memory does not suffice for that either.
    """
    read = reading.result()
    if read.transformed is None:
        return ComputedCase(read)
    asked = job.inference.window_batch
    computed = _computed(job, read, read.transformed, asked)
    if isinstance(computed, ComputedCase):
        return computed
    reason, halved = computed, asked // 2
    if halved:
        log.warning(
            "case '%s': the memory does not suffice for %d windows a call (%s); it is predicted with %d, which may "
            "change the last bits",
            *(read.case.case, asked, reason, halved),
        )
        computed = _computed(job, read, read.transformed, halved)
        if isinstance(computed, ComputedCase):
            return computed
        reason = computed
    raise ResourceError(
        f"the memory does not suffice for {halved or asked} windows a call ({reason})",
        where=f"case '{read.case.case}'",
        fix="predict fewer windows a call (--window-batch 1), or use --device cpu",
    )


def _computed(job: PredictionJob, read: ReadCase, transformed: Transformed, window_batch: int) -> ComputedCase | str:
    """Return the prediction, or in what words memory was denied; the error itself would hold on to what was there."""
    case, image = read.case.case, torch.from_numpy(np.asarray(transformed.image, dtype=np.float32))
    record = StepRecord(keep_steps=job.wanted.steps, keep_labels=job.wanted.members)
    try:
        init = None
        if job.start is not None:
            init = job.start.probabilities(case, image, transformed.label, job.models[0].plan.label_scheme())
        fusion = predict_volume(
            [model.method for model in job.models],
            image,
            case,
            replace(job.inference, window_batch=window_batch),
            keep_variance=job.wanted.uncertainty,
            keep_labels=True,
            keep_votes=True,
            init=init,
            record=record,
        )
        return ComputedCase(read, fusion, window_batch, record)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        return (str(error) or repr(error)).splitlines()[0][:200]
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what a failed call had taken in pieces


def write_predicted_case(job: PredictionJob, computing: "Future[ComputedCase]") -> str:
    """Write a predicted case; return "written", or "reused" when there was nothing to do."""
    computed = computing.result()
    read, fusion = computed.read, computed.fusion
    if read.image is None or read.transformed is None or fusion is None:
        return "reused"
    case, plan = read.case.case, job.models[0].plan
    scheme = plan.label_scheme()
    # An older sidecar must not vouch for files that are about to change.
    (job.output / f"{case}.json").unlink(missing_ok=True)
    label, outputs = write_case(
        job.output,
        case,
        job.ending or label_ending(read.case.images[0]),
        fusion,
        read.transformed.placement,
        read.image.geometry,
        scheme,
        job.wanted,
        computed.record.fusions,
    )
    voxels = {name: int(np.isin(label, values).sum()) for name, values in scheme.file_values().items()}
    geometry = read.image.geometry
    per_ml = geometry.voxel_volume_mm3 / 1000 if geometry.has_physical_spacing and geometry.n_dims == 3 else None
    agreement, spreads = fusion.agreement(), _spreads(fusion, read.transformed.placement, scheme)
    write_sidecar(
        job.output,
        Sidecar(
            case=case,
            key=read.key,
            input_digests=read.digests,
            outputs=outputs,
            model_digests=tuple(model.digest for model in job.models),
            bundles=bundles_of(job.models),
            plan_digest=plan.digest(),
            msd_version=__version__,
            command=job.command,
            seed=job.inference.seed,
            settings=key_content(job.inference, job.wanted),
            voxels=voxels,
            volumes_ml={name: None if per_ml is None else count * per_ml for name, count in voxels.items()},
            agreement=agreement,
            member_agreement=_per_class(fusion.pairwise_dice(), scheme),
            member_voxels=spreads,
            member_volumes_ml={name: None if per_ml is None else one.times(per_ml) for name, one in spreads.items()},
            steps_taken=computed.record.mean_steps_taken,
            window_batch=computed.window_batch,
            flags=flags_of(read.image, plan.channels, voxels, agreement),
        ),
    )
    return "written"


def _per_class(figures: Sequence[float | None] | None, scheme: LabelScheme) -> dict[str, float | None]:
    """Return the figures of the foreground classes by name; none with one member."""
    named = {} if figures is None else dict(zip(scheme.class_names, figures, strict=True))
    return {name: named[name] for name in scheme.foreground_names if name in named}


def _spreads(fusion: RunningFusion, placement: Placement, scheme: LabelScheme) -> dict[str, Spread]:
    """Return how much the members' own volumes differ, in native voxels by foreground class; none with one member."""
    if fusion.count < 2:
        return {}
    native_per_voxel = math.prod(box_shape(placement.crop_box)) / math.prod(placement.resampled_shape)
    volumes = fusion.member_voxels.numpy() * native_per_voxel
    low, high = np.percentile(volumes, _INTERVAL_PERCENT, axis=0)
    found = {
        name: Spread(mean=float(m), low=float(a), high=float(b))
        for name, m, a, b in zip(scheme.class_names, volumes.mean(0), low, high, strict=True)
    }
    return {name: found[name] for name in scheme.foreground_names}


def _is_done(job: PredictionJob, case: str, key: str) -> bool:
    """Return whether the case is complete under the same key; files changed behind our back are done again."""
    sidecar = read_sidecar(job.output, case)
    if sidecar is None:
        return False
    if sidecar.key != key:
        if job.overwrite:
            return False
        raise UsageError(
            f"case '{case}' was predicted from another image, by another model or with other settings",
            where=str(job.output),
            fix="choose another OUTPUT, or pass --overwrite",
        )
    files = {job.output / name: digest for name, digest in sidecar.outputs.items()}
    intact = all(path.is_file() and atomic.digest_of_file(path) == digest for path, digest in files.items())
    if not intact:
        log.warning("the prediction of '%s' was changed or removed; it is computed again", case)
    return intact


def _digest(path: Path) -> str:
    try:
        if path.is_dir():
            files = sorted(child for child in path.iterdir() if child.is_file())
            return atomic.digest_of_content({child.name: atomic.digest_of_file(child) for child in files})
        if not path.is_file():
            raise InputDataError(f"{path.name} does not exist", where=str(path.parent))
        return atomic.digest_of_file(path)
    except OSError as error:
        raise unreadable(error, path) from error


def _mask_of(folder: Path, case: str) -> Path:
    found = [path for path in sorted(folder.iterdir()) if ending_of(path) and case_name_of(path) == case]
    if not found:
        raise InputDataError(f"no mask for case '{case}'", where=str(folder), fix="name masks like the cases")
    return found[0]
