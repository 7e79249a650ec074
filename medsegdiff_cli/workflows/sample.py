"""`msd sample`: a pretrained generative model in, a dataset folder of synthetic images (and labels) out."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medsegdiff_cli import __version__, atomic
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, open_dataset, write_dataset_json
from medsegdiff_cli.artifacts.memorisation import Memorisation, write_memorisation
from medsegdiff_cli.artifacts.synthesis import ChannelIntensity, Synthesis, read_sampling, write_sampling
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.imaging.denormalise import intensity_scale
from medsegdiff_cli.imaging.reading import read_label
from medsegdiff_cli.leftovers import remove_leftovers
from medsegdiff_cli.locks import locked
from medsegdiff_cli.methods.generating import USUAL_RANGE
from medsegdiff_cli.paths import (
    DATASET_JSON,
    LOCK,
    MEMORISATION_JSON,
    SAMPLES_PNG,
    SAMPLING_JSON,
)
from medsegdiff_cli.planning.memory import require_memory
from medsegdiff_cli.reporting.contact_sheet import contact_sheet, sheet_items_of_dataset
from medsegdiff_cli.workflows.memorisation import compare_with_training
from medsegdiff_cli.workflows.provenance import command_line
from medsegdiff_cli.workflows.sample_files import SampleFiles, case_names, dataset_json, sample_files
from medsegdiff_cli.workflows.sample_forecast import bytes_on_disk, memory_of_a_call
from medsegdiff_cli.workflows.sample_request import PreparedSampling, SampleRequest, generate_pairs
from medsegdiff_cli.workflows.training_images import TrainingImages, read_training_images

log = logging.getLogger(__name__)

# More voxels a call gain nothing on a CPU; the default does not depend on the device, for it is part of the last bits.
_BATCH_VOXELS = 1 << 16
_LARGEST_BATCH = 16
_MOST_SHOWN = 64
_IN_THREE_PLANES = 12
_FLOAT_BYTES = 4
_OURS = ("imagesTr", "labelsTr", "imagesUn")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """What was written, what was there already, and the comparison with training images where these are there."""

    dataset: Path
    contact_sheet: Path
    written: tuple[str, ...]
    reused: tuple[str, ...]
    memorisation: Memorisation | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "dataset": str(self.dataset),
            "contact_sheet": str(self.contact_sheet),
            "written": list(self.written),
            "reused": list(self.reused),
            "memorisation": None if self.memorisation is None else self.memorisation.model_dump(mode="json"),
        }


def run_sampling(prepared: PreparedSampling, progress: Progress | None = None) -> SampleReport:
    """Generate what is missing, write the dataset folder, its contact sheet and the comparison with training images.

    Args:
        progress: called with (done, total, what is done).

    Raises:
        UsageError: the output holds something else, or samples of other settings, or another process writes it.
        ResourceError: disk or memory does not suffice.
        InputDataError: a training image cannot be read.
    """
    request, tell = prepared.request, progress or (lambda done, total, what: None)
    with _output_of_its_own(request):
        training = None
        if prepared.found:
            training = read_training_images(
                prepared.found,
                prepared.model.plan,
                prepared.model.run.config,
                prepared.patch,
                lambda done, total: tell(done, total, "reading training images"),
            )
        synthesis = _settled(prepared, training)
        files = sample_files(
            request.output,
            prepared.model.plan,
            prepared.patch,
            synthesis,
            has_labels=prepared.objective.draws_masks,
        )
        written, reused = _generate_missing(prepared, synthesis, files, tell)
        cases = files.cases()
        write_dataset_json(request.output, dataset_json(files, prepared.model.plan, synthesis, cases))
        sheet = _draw(request.output)
        _warn_of_absent_classes(files, cases)
        found = None
        if training is None:
            log.warning(
                "the training images are not there, so that samples were not compared with them: name their dataset "
                "with --against"
            )
        else:
            found = compare_with_training(files, cases, training, _mirror_axes(prepared))
            write_memorisation(request.output, found)
    return SampleReport(
        dataset=request.output,
        contact_sheet=sheet,
        written=tuple(written),
        reused=tuple(reused),
        memorisation=found,
    )


@contextmanager
def _output_of_its_own(request: SampleRequest) -> Iterator[None]:
    """Keep other processes out of the output; with `overwrite`, empty it of what an earlier sampling left."""
    folder = request.output
    with locked(folder / LOCK):
        foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if foreign and not (folder / SAMPLING_JSON).is_file():
            raise UsageError(
                f"the folder holds '{sorted(foreign)[0]}', which msd sample did not write",
                where=str(folder),
                fix="choose a new folder",
            )
        remove_leftovers(folder, alone=True, deep=True)
        if request.overwrite:
            for name in (DATASET_JSON, MEMORISATION_JSON, SAMPLES_PNG):
                (folder / name).unlink(missing_ok=True)
            for name in _OURS:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
            (folder / SAMPLING_JSON).unlink(missing_ok=True)  # last: until then the folder is known as ours
        yield


def _settled(prepared: PreparedSampling, training: TrainingImages | None) -> Synthesis:
    """Return how samples are made: as in the folder, where there are some; what is measured is then taken from there.

    Raises:
        UsageError: the folder's samples were made in another way.
    """
    request, run, plan = prepared.request, prepared.model.run, prepared.model.plan
    typical = training.typical if training is not None else (None,) * len(plan.channels)
    scales = [
        intensity_scale(channel.normalisation, channel.statistics, channel.training_range, known)
        for channel, known in zip(plan.channels, typical, strict=True)
    ]
    wanted = Synthesis(
        model=prepared.name,
        method=run.method,
        model_digest=prepared.model.digest,
        plan_digest=plan.digest(),
        dataset=run.dataset,
        config=run.config,
        seed=request.seed,
        sampler=prepared.walk.name,
        steps=len(prepared.walk.grid),
        route=request.route,
        mask_start=request.mask_start,
        batch=prepared.batch,
        precision=run.precision,
        intensities=tuple(
            ChannelIntensity(name=channel.name, **vars(scale))
            for channel, scale in zip(plan.channels, scales, strict=True)
        ),
        limits=training.limits if training is not None else USUAL_RANGE,
        direction=training.direction if training is not None else None,
        msd_version=__version__,
        command=command_line(),
    )
    existing = read_sampling(request.output)
    if existing is None:
        write_sampling(request.output, wanted)
        return wanted
    if differences := existing.differences(wanted):
        raise UsageError(
            f"the folder holds samples made with other settings ({', '.join(differences)})",
            where=str(request.output),
            fix="undo the change, choose another folder, or start over with --overwrite",
        )
    return existing


def _generate_missing(
    prepared: PreparedSampling, synthesis: Synthesis, files: SampleFiles, tell: Progress
) -> tuple[list[str], list[str]]:
    """Generate in the same groups whatever is there already, so that bytes do not depend on an interruption."""
    names, written = case_names(prepared.request.count), list[str]()
    reused = [case for case in names if files.is_done(case)]
    if len(reused) < len(names):
        (files.folder / DATASET_JSON).unlink(missing_ok=True)  # until all are there
        atomic.require_space(files.folder, bytes_on_disk(prepared), "the samples")
        require_memory(memory_of_a_call(prepared), "sampling", prepared.device)
    for start in range(0, len(names), prepared.batch):
        group = names[start : start + prepared.batch]
        missing = [case for case in group if case not in reused]
        if missing:
            tell(start, len(names), "sampling")
            pair = generate_pairs(prepared, group, prepared.walk, synthesis.limits)
            images, masks = _on_cpu(pair.image), None if pair.mask is None else _on_cpu(pair.mask)
            for index, case in enumerate(group):
                if case in missing:
                    files.write(case, images[index], None if masks is None else masks[index])
                    written.append(case)
        tell(start + len(group), len(names), "sampling")
    return written, reused


def _on_cpu(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.float().cpu().numpy()
    return array


def _draw(folder: Path) -> Path:
    dataset, picture = open_dataset(folder), folder / SAMPLES_PNG
    items = sheet_items_of_dataset(dataset, _MOST_SHOWN)
    if len(items) <= _IN_THREE_PLANES:
        items = sheet_items_of_dataset(dataset, _MOST_SHOWN, three_planes=True)
    contact_sheet(items, dataset.label_scheme().file_values(), picture)
    return picture


def _warn_of_absent_classes(files: SampleFiles, cases: Sequence[CaseFiles]) -> None:
    """Say which classes no sample has: `msd check` calls such a dataset faulty."""
    seen = {int(value) for case in cases if case.label for value in np.unique(read_label(case.label).array)}
    for name, values in files.scheme.file_values().items():
        if files.has_labels and not seen & set(values):
            log.warning("class '%s' is in none of the %d samples", name, len(cases))


def _mirror_axes(prepared: PreparedSampling) -> tuple[int, ...]:
    """Return the patch's axes along which training mirrored images: a mirrored copy is a copy."""
    augmentation, plan = prepared.model.recipe.augmentation, prepared.model.plan
    if not augmentation.mirror:
        return ()
    if augmentation.mirror_axes is not None:
        return augmentation.mirror_axes
    lost = plan.n_dims_of_images - len(prepared.patch)
    return tuple(axis - lost for axis in plan.mirror_axes if axis >= lost)
