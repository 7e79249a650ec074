"""The training images behind a run: how they look to the network, and what their intensities were."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, open_dataset
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.artifacts.run import RunRecord
from medsegdiff_cli.batching.patch_sampler import cut
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.denormalise import fitted
from medsegdiff_cli.imaging.image import Image
from medsegdiff_cli.imaging.reading import read_label
from medsegdiff_cli.imaging.transform import ChannelScheme, TransformSettings, forward
from medsegdiff_cli.inference.windows import window_starts
from medsegdiff_cli.metrics.nearest_images import signature
from medsegdiff_cli.paths import DATASET_JSON, Workspace, find_dataset
from medsegdiff_cli.preprocessing.case import demands_mask, uses_mask
from medsegdiff_cli.preprocessing.transform_settings import transform_settings

log = logging.getLogger(__name__)

# Beyond so many, patches are left out evenly: neighbouring slices and windows are alike.
_MOST_PATCHES = 20_000
_WINDOW_STEP = 0.5
# So many images, spread evenly, tell what a typical one's intensities are.
_TYPICAL_CASES = 32


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """What generated images are compared with.

    Attributes:
        cases: names, in the order that `case_of` counts.
        signatures: of patches, (patch, features); see `metrics.nearest_images`.
        case_of: case of each patch, int (patch,).
        limits: smallest and largest normalised intensity.
        typical: slope and offset per channel with which a typical image's normalised intensities come back; None for a
            channel that is constant in all.
        direction: axes of the first image, ITK's; None without physical space.
    """

    dataset: str
    cases: tuple[str, ...]
    signatures: np.ndarray
    case_of: np.ndarray
    limits: tuple[float, float]
    typical: tuple[tuple[float, float] | None, ...]
    direction: tuple[float, ...] | None


def find_training_images(run: RunRecord, named: str | None, workspace: Workspace) -> list[tuple[str, CaseFiles]]:
    """Return name of the dataset and files of each image that a run was trained on; none where they are not there.

    Args:
        named: dataset to take them from, all its training and unlabelled images where the run's names of cases do not
            fit, as in a bundle; None takes the run's own.

    Raises:
        UsageError: no such dataset.
    """
    if named is not None:
        dataset = open_dataset(find_dataset(named, workspace))
    elif (Path(run.dataset_path) / DATASET_JSON).is_file():
        dataset = open_dataset(Path(run.dataset_path))
    else:
        return []
    found = [*dataset.cases("Tr"), *dataset.cases("Un")]
    seen = [files for files in found if files.case in run.train_cases]
    if named is not None and not seen:
        seen = found
    if named is not None and not seen:
        raise UsageError(f"'{named}' has no training image", where="--against", fix="name the dataset of the training")
    return [(dataset.name, files) for files in seen]


def read_training_images(
    found: Sequence[tuple[str, CaseFiles]],
    plan: Plan,
    config: str,
    patch: tuple[int, ...],
    progress: Callable[[int, int], None] | None = None,
) -> TrainingImages:
    """Read, normalise and cut training images as the network saw them.

    Args:
        found: from `find_training_images`, at least one.
        progress: called with (cases done, cases).

    Raises:
        InputDataError: an image cannot be read, or lacks the mask that the plan needs.
    """
    settings, budget = transform_settings(plan, config), max(1, _MOST_PATCHES // len(found))
    step = max(1, len(found) // _TYPICAL_CASES)
    signatures: list[np.ndarray] = []
    case_of: list[int] = []
    scales: list[list[tuple[float, float] | None]] = []
    limits = [np.inf, -np.inf]
    direction: tuple[float, ...] | None = None
    for index, (_, files) in enumerate(found):
        image, mask = _read(files, settings, len(plan.channels))
        grid = forward(image, replace(settings, channel_copies=1), mask=mask).image
        limits = [min(limits[0], float(grid.min())), max(limits[1], float(grid.max()))]
        patches = _evenly(list(_patches(grid, patch)), budget)
        signatures += [signature(cut(grid[at], start, patch)) for at, start in patches]
        case_of += [index] * len(patches)
        if index % step == 0:
            scales.append(_scales(image, mask, settings))
        if index == 0 and image.geometry.has_physical_spacing and image.geometry.n_dims == len(patch):
            direction = image.geometry.direction
        if progress is not None:
            progress(index + 1, len(found))
    return TrainingImages(
        dataset=found[0][0],
        cases=tuple(files.case for _, files in found),
        signatures=np.stack(signatures),
        case_of=np.array(case_of),
        limits=(limits[0], limits[1]),
        typical=tuple(_median([scale[channel] for scale in scales]) for channel in range(len(plan.channels))),
        direction=direction,
    )


def _read(files: CaseFiles, settings: TransformSettings, n_channels: int) -> tuple[Image, np.ndarray | None]:
    if files.mask is None and demands_mask(settings):
        raise InputDataError(
            f"training image '{files.case}' has no mask, which the plan needs",
            where=str(files.images[0].parent),
            fix="restore the masks of the dataset",
        )
    image = read_channels(files.images, n_channels)
    has_use = files.mask is not None and uses_mask(settings)
    return image, read_label(files.mask).array[0] > 0 if has_use and files.mask is not None else None


def _patches(grid: np.ndarray, patch: tuple[int, ...]) -> Iterator[tuple[tuple[slice | int, ...], tuple[int, ...]]]:
    """Yield where patches lie that cover an image: an index into (channel, *grid), and the start in what it gives."""
    has_slices = grid.ndim - 1 > len(patch)
    starts = []
    for length, edge in zip(grid.shape[-len(patch) :], patch, strict=True):
        starts.append([-((edge - length) // 2)] if length <= edge else window_starts(length, edge, _WINDOW_STEP))
    for index in range(grid.shape[1]) if has_slices else (None,):
        at: tuple[slice | int, ...] = (slice(None),) if index is None else (slice(None), index)
        for start in product(*starts):
            yield at, start


def _scales(image: Image, mask: np.ndarray | None, settings: TransformSettings) -> list[tuple[float, float] | None]:
    """Return each channel's slope and offset in one image: normalised and raw voxels compared on its own grid."""
    on_own_grid = replace(
        settings,
        geometry="spacing",
        spacing_mm=None,
        size_voxels=None,
        centre_crop=None,
        channel_copies=1,
        store_dtype="float32",
    )
    raw_channels = tuple(ChannelScheme(name=channel.name, scheme="none") for channel in settings.channels)
    normalised = forward(image, on_own_grid, mask=mask).image
    raw = forward(image, replace(on_own_grid, channels=raw_channels), mask=mask).image
    return [fitted(native, channel) for native, channel in zip(raw, normalised, strict=True)]


def _median(scales: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [scale for scale in scales if scale is not None]
    if not known:
        return None
    slope, offset = np.median(np.array(known), axis=0)
    return float(slope), float(offset)


def _evenly(
    items: list[tuple[tuple[slice | int, ...], tuple[int, ...]]], most: int
) -> list[tuple[tuple[slice | int, ...], tuple[int, ...]]]:
    if len(items) <= most:
        return items
    return [items[int(position)] for position in np.linspace(0, len(items) - 1, most).round()]
