"""Scores on the plan's grid: both label maps of each case are brought to where the network works.

Published scores are often computed there (for example at 128 x 128 pixels); what users get is on the native grid.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, Part, open_dataset
from medsegdiff_cli.artifacts.plan import Plan, read_plan
from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, read_sidecar
from medsegdiff_cli.artifacts.scores import Scores
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.evaluation.label_pair import ScorePair, ScoreSettings, read_pair
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.image import Geometry, Image
from medsegdiff_cli.imaging.reading import read_label
from medsegdiff_cli.imaging.transform import TransformSettings, forward
from medsegdiff_cli.imaging.writing import write_label
from medsegdiff_cli.paths import DATASET_JSON, RUN_PLAN, Workspace
from medsegdiff_cli.preprocessing.transform_settings import transform_settings

_PARTS: tuple[Part, ...] = ("Un", "Tr", "Ts")


@dataclass(frozen=True)
class OnPlanGrid:
    """Pairs of temporary files on the plan's grid, and how they are read.

    Attributes:
        originals: the files they were made from, in the same order.
    """

    pairs: list[ScorePair]
    settings: ScoreSettings
    originals: Sequence[ScorePair]

    def with_original_files(self, scores: Scores) -> Scores:
        """Return the scores with the names of the native files, and a note on the grid."""
        files = {pair.case: pair for pair in self.originals}
        cases = tuple(
            case.model_copy(
                update={
                    "reference_file": str(files[case.case].reference),
                    "prediction_file": _text(files[case.case].prediction),
                }
            )
            for case in scores.cases
        )
        note = "Scores are on the plan's grid, not on the images' own."
        provenance = {**scores.provenance, "grid": "plan"}
        return scores.model_copy(update={"cases": cases, "notes": (*scores.notes, note), "provenance": provenance})


@contextmanager
def on_plan_grid(
    pairs: Sequence[ScorePair], settings: ScoreSettings, plan: Plan, config: str, dataset: Path
) -> Iterator[OnPlanGrid]:
    """Yield the pairs on the grid of the plan's configuration; their files are gone afterwards.

    Args:
        dataset: folder with the images, which decide on the crop.

    Raises:
        UsageError: a case's image is not in the dataset.
        InputDataError: a case cannot be brought onto the grid.
    """
    known = _images(dataset)
    missing = [pair.case for pair in pairs if pair.case not in known]
    if missing:
        raise UsageError(
            f"{len(missing)} cases have no image in the dataset, first: {missing[0]}",
            where=str(dataset),
            fix="use --grid native; the plan's grid depends on the image",
        )
    to_grid = _labels_only(transform_settings(plan, config))
    with tempfile.TemporaryDirectory() as folder:
        moved = [_move(pair, settings, known[pair.case], to_grid, Path(folder)) for pair in pairs]
        # The temporary files hold the dataset's values already.
        yield OnPlanGrid(moved, replace(settings, reference_values={}, reference_threshold=None), pairs)


def find_plan(folder: Path, info: PredictionInfo, cases: Sequence[str], workspace: Workspace | None) -> Plan:
    """Return the plan of the run that made a prediction folder: in the run around it, or in the workspace's results.

    Raises:
        UsageError: the run is not there, or its plan is not the one that was predicted with.
    """
    candidates = [folder.resolve().parent / RUN_PLAN]
    if workspace is not None:
        candidates += [workspace.results / info.dataset / model / RUN_PLAN for model in info.models]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    fix = "use --grid native, or name the workspace that holds the run with --workspace"
    if path is None:
        raise UsageError(f"the plan of run '{info.models[0]}' is not found", where=str(folder), fix=fix)
    plan = read_plan(path)
    sidecars = (read_sidecar(folder, case) for case in cases)
    if any(sidecar is not None and sidecar.plan_digest != plan.digest() for sidecar in sidecars):
        raise UsageError("the run's plan is another than the predictions'", where=str(path), fix=fix)
    return plan


def _images(dataset: Path) -> dict[str, CaseFiles]:
    if not (dataset / DATASET_JSON).is_file():
        raise UsageError("the dataset that was trained on is gone", where=str(dataset), fix="use --grid native")
    folder = open_dataset(dataset)
    return {case.case: case for part in _PARTS for case in folder.cases(part)}


def _labels_only(settings: TransformSettings) -> TransformSettings:
    """Return settings with the same grid that cost little on the image, which only decides on the crop."""
    plain = tuple(replace(channel, scheme="none", use_mask=False) for channel in settings.channels)
    return replace(settings, channels=plain, interpolation="nearest")


def _move(
    pair: ScorePair, settings: ScoreSettings, files: CaseFiles, to_grid: TransformSettings, folder: Path
) -> ScorePair:
    labels = read_pair(pair, settings)
    image = read_channels(files.images, n_channels=len(to_grid.channels))
    mask = None if files.mask is None else read_label(files.mask).array[0] > 0
    prediction = None
    if pair.prediction is not None:
        prediction = _write(image, labels.prediction, mask, to_grid, folder / f"prediction_{pair.case}")
    reference = _write(image, labels.reference, mask, to_grid, folder / f"reference_{pair.case}")
    return replace(pair, prediction=prediction, reference=reference)


def _write(image: Image, label: np.ndarray, mask: np.ndarray | None, to_grid: TransformSettings, stem: Path) -> Path:
    if label.shape != image.geometry.shape:
        raise InputDataError(f"image {image.geometry.shape} and label {label.shape} differ in shape", where=stem.name)
    moved = forward(image, to_grid, label=label, mask=mask)
    if moved.label is None:
        raise RuntimeError("a label went in and none came out")
    is_physical = image.geometry.has_physical_spacing
    # Without physical spacing distances are in pixels of the grid; TIFF stores none and holds volumes as well.
    path = stem.with_name(f"{stem.name}{'.nii.gz' if is_physical else '.tif'}")
    spacing_mm = moved.spacing_mm if is_physical else None
    geometry = Geometry.plain(moved.label.shape, spacing_mm, has_physical_spacing=is_physical)
    write_label(path, moved.label, geometry)
    return path


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
