"""One case from files to store entry; runs in worker processes, so nothing heavy (torch) is imported here."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.preprocessed_store import PreprocessedStore
from medsegdiff_cli.errors import InputDataError, MsdError, ResourceError, reading_error
from medsegdiff_cli.imaging.channels import read_channels
from medsegdiff_cli.imaging.image import Image, is_on_grid_of, largest_corner_distance_mm
from medsegdiff_cli.imaging.normalise import needs_mask
from medsegdiff_cli.imaging.reading import read_label
from medsegdiff_cli.imaging.transform import TransformSettings, forward
from medsegdiff_cli.preprocessing.foreground import class_voxels, foreground_slices, foreground_table

# Part of every key: raise it when the same inputs would be stored differently.
_FORMAT_VERSION = 1
# A file changed more recently than this may change once more without a different time stamp.
_SETTLED_AFTER_NS = 2_000_000_000

Outcome = Literal["written", "reused"]


@dataclass(frozen=True, kw_only=True)
class CaseJob:
    """All that a worker needs for one case.

    Attributes:
        seed: of the foreground sample.
    """

    files: CaseFiles
    part: str
    settings: TransformSettings
    scheme: LabelScheme
    store: PreprocessedStore
    seed: int

    @property
    def case(self) -> str:
        """Name of the case."""
        return self.files.case

    def inputs(self) -> dict[str, Path]:
        """Return the files that the entry depends on, by role."""
        files = {f"image_{index:04d}": path for index, path in enumerate(self.files.images)}
        if self.files.label is not None:
            files["label"] = self.files.label
        if self.files.mask is not None and uses_mask(self.settings):
            files["mask"] = self.files.mask
        return files

    def key(self, digests: dict[str, str]) -> str:
        """Return the key of the entry for inputs of these digests (by role)."""
        # Lists keep the order of classes, which a digest of a mapping would lose.
        scheme = [list(item) if isinstance(item, tuple) else item for item in asdict(self.scheme).values()]
        settings = asdict(self.settings)
        if settings["channel_copies"] == 1:
            del settings["channel_copies"]  # stores are older than this setting
        return atomic.digest_of_content(
            {"format": _FORMAT_VERSION, "inputs": digests, "settings": settings, "labels": scheme}
        )


def uses_mask(settings: TransformSettings) -> bool:
    """Tell whether a case's mask changes the result."""
    return settings.crop == "mask" or any(c.use_mask or needs_mask(c.scheme) for c in settings.channels)


def demands_mask(settings: TransformSettings) -> bool:
    """Tell whether a case without a mask cannot be preprocessed at all."""
    return settings.crop == "mask" or any(needs_mask(channel.scheme) for channel in settings.channels)


def is_up_to_date(job: CaseJob) -> bool:
    """Tell whether the stored entry is current, judged without reading any image.

    A file counts as unchanged when its stamp (see `_stamp`) is the one at which its digest was taken.
    """
    if job.store.key_of(job.case) is None:
        return False
    properties = job.store.properties(job.case)
    known = properties.get("inputs", {})
    paths = job.inputs()
    if known.keys() != paths.keys() or not all(_is_unchanged(path, known[role]) for role, path in paths.items()):
        return False
    key = job.key({role: known[role]["sha256"] for role in paths})
    return properties["key"] == key and {**properties, **_facts(job)} == properties


def preprocess_case(job: CaseJob) -> Outcome:
    """Bring the store's entry of one case up to date.

    Raises:
        InputDataError: the case cannot be read, decoded or normalised, or its files do not fit together.
        ResourceError: memory or disk is full.
    """
    try:
        return _preprocess(job)
    except MemoryError as problem:
        raise ResourceError(
            "the case does not fit into memory", where=job.case, fix="use fewer --workers or a machine with more memory"
        ) from problem
    except MsdError as problem:
        # Toolboxes see arrays: they cannot say which case they were given.
        where = job.case if problem.where is None else f"{job.case}: {problem.where}"
        raise type(problem)(problem.what, where=where, fix=problem.fix) from problem


def _preprocess(job: CaseJob) -> Outcome:
    # Stamps first: a file that changes while it is read looks changed the next time.
    stamps = {role: _stamp(path) for role, path in job.inputs().items()}
    digests = {role: _digest(path) for role, path in job.inputs().items()}
    inputs = {role: {"sha256": digests[role], "stamp": stamps[role]} for role in stamps}
    key = job.key(digests)
    if job.store.key_of(job.case) == key:
        job.store.write_properties(job.case, {**job.store.properties(job.case), **_facts(job), "inputs": inputs})
        return "reused"
    image, label, mask = _read(job)
    result = forward(image, job.settings, label=label, mask=mask)
    properties: dict[str, Any] = {
        "key": key,
        **_facts(job),
        "placement": result.placement.to_json(),
        "grid_spacing_mm": list(result.spacing_mm),
        "class_voxels": None if result.label is None else class_voxels(result.label, job.scheme),
        "rounding_error_bound": _rounding_error_bound(result.image),
        "inputs": inputs,
    }
    if result.label is not None and result.label.ndim == 3:
        properties["foreground_slices"] = foreground_slices(result.label, job.scheme)
    job.store.write(
        job.case,
        image=result.image,
        label=result.label,
        foreground=None if result.label is None else foreground_table(result.label, job.scheme, job.seed),
        properties=properties,
    )
    return "written"


def _read(job: CaseJob) -> tuple[Image, np.ndarray | None, np.ndarray | None]:
    image = read_channels(job.files.images, len(job.settings.channels))
    label = mask = None
    if job.files.label is not None:
        label = job.scheme.encode(_on_grid_of(image, job.files.label), str(job.files.label))
    if job.files.mask is not None and uses_mask(job.settings):
        mask = _on_grid_of(image, job.files.mask) != 0
    return image, label, mask


def _on_grid_of(image: Image, path: Path) -> np.ndarray:
    """Read a label or a mask (*spatial) that must lie on the image's grid."""
    label = read_label(path)
    if not is_on_grid_of(image.geometry, label.geometry):
        distance_mm = largest_corner_distance_mm(image.geometry, label.geometry)
        raise InputDataError(
            f"not on the image's grid (corners {distance_mm:.3g} mm apart, shapes {label.geometry.shape} and "
            f"{image.geometry.shape})",
            where=str(path),
            fix="run `msd check` on the dataset",
        )
    return label.array[0]


def _facts(job: CaseJob) -> dict[str, str]:
    """Return the properties that may change without touching a voxel."""
    return {"part": job.part, "group": job.files.group, "domain": job.files.domain}


def _is_unchanged(path: Path, known: dict[str, Any]) -> bool:
    return known["stamp"] is not None and known["stamp"] == _stamp(path)


def _stamp(path: Path) -> list[int] | None:
    """Return what shows that a file was touched; None for one that is missing or may still change.

    Size and time of change can be the same for two contents (archives may give all files one time). The system's own
    time of the file's entry cannot be set: where it is another one, the content is looked at again.
    """
    status = path.stat() if path.is_file() else None
    if status is None or time.time_ns() - status.st_mtime_ns < _SETTLED_AFTER_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(path: Path) -> str:
    try:
        return atomic.digest_of_file(path)
    except OSError as problem:
        raise reading_error(problem, str(path), fix="check path and rights") from problem


def _rounding_error_bound(image: np.ndarray) -> float:
    """Return half the distance of neighbouring numbers at the largest magnitude: the rounding to float16 is below."""
    if image.dtype != np.float16 or not image.size:
        return 0.0
    largest = np.float16(max(abs(float(image.min())), abs(float(image.max()))))
    return float(np.spacing(largest)) / 2
