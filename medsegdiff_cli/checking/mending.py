"""Write a mended copy of a dataset folder: only what has one safe answer is changed, everything else is copied.

Safe are whole numbers where labels are stored as floating point, the white of a mask (255) where one class is
declared, the vendor's values where dataset.json tells them, a label's header within a tenth of a voxel of its image,
the counts and names in dataset.json, and file names that miss only a channel number or lower case.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, DatasetJson, Part, open_dataset, write_dataset_json
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.checking.case_content import ALIGNABLE_VOXELS, SAME_GRID_MM
from medsegdiff_cli.errors import MsdError, UsageError
from medsegdiff_cli.imaging.image import Geometry, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import ending_of, read_geometry, read_image, read_label
from medsegdiff_cli.imaging.writing import LOSSY_ENDINGS, write_label
from medsegdiff_cli.paths import DATASET_JSON

_WHITE = (255, 65_535)
_CHANNEL = re.compile(r".+_\d{4}")
_PART_FOLDER = re.compile(r"(?P<kind>images|labels|masks)(?P<part>Tr|Ts|Un)(?P<observer>_.+)?")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that differs from the original: a file (relative to the dataset folder) and what was done."""

    file: str
    what: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def mend_dataset(
    dataset: DatasetFolder, output: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[Change, ...]:
    """Write a mended copy of `dataset` to `output`, complete or not at all; the dataset itself is not touched.

    Args:
        progress: called with (files done, files).

    Raises:
        UsageError: the output exists, lies in the dataset or holds it; or dataset.json lists files elsewhere.
        ResourceError: the disk is full or not writable.
    """
    _refuse_unfit(dataset, output)
    jobs = list(_files(dataset))
    changes: list[Change] = []
    with atomic.staged_folder(output) as folder:
        atomic.require_space(folder, sum(path.stat().st_size for path, _ in jobs), "the mended dataset")
        for done, (path, name) in enumerate(jobs, start=1):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            origin = path.relative_to(dataset.path).as_posix()
            if origin != name:
                changes.append(Change(file=origin, what=f"is now called {name}"))
            found = _mend_label(dataset, path, target) if name.startswith("labels") and ending_of(path) else []
            if found:
                changes.append(Change(file=name, what="; ".join(found)))
            else:
                atomic.copy_file(path, target)
            if progress is not None:
                progress(done, len(jobs))
        write_dataset_json(folder, dataset.info)
        info, facts = _mended_info(open_dataset(folder))
        write_dataset_json(folder, info)
    return tuple(changes + [Change(file=DATASET_JSON, what=fact) for fact in facts])


def _refuse_unfit(dataset: DatasetFolder, output: Path) -> None:
    place, source = output.resolve(), dataset.path.resolve()
    if place == source or source in place.parents or place in source.parents:
        fix = "name a new folder; a dataset is never changed in place"
        raise UsageError("the mended dataset would lie in the original", where=str(output), fix=fix)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError("the folder for the mended dataset exists", where=str(output), fix="name a new folder")
    if (dataset.info.model_extra or {}).get("dataset"):
        fix = "msd convert nnunet makes a plain dataset folder of it"
        raise UsageError("dataset.json lists files of other folders", where=str(dataset.path), fix=fix)


def _files(dataset: DatasetFolder) -> Iterator[tuple[Path, str]]:
    """Yield each file that is copied, with its name in the new folder; hidden files stay behind."""
    cases: dict[str, set[str]] = {part: {case.case for case in dataset.cases(part)} for part in get_args(Part)}
    for path in sorted(dataset.path.iterdir()):
        match = _PART_FOLDER.fullmatch(path.name)
        if path.is_file() and not path.name.startswith(".") and path.name != DATASET_JSON:
            yield path, path.name
        elif match and path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            taken = {file.name for file in files}
            for file in files:
                is_image = match["kind"] == "images"
                name = _image_name(dataset, file) if is_image else _label_name(dataset, file, cases[match["part"]])
                yield file, f"{path.name}/{file.name if name in taken else name}"
                taken.add(name)


def _image_name(dataset: DatasetFolder, file: Path) -> str:
    """Return the file's name with its ending in lower case, and with the channel that it misses if there is but one."""
    ending, found = dataset.info.file_ending, ending_of(file)
    if not found or found != ending.lower():
        return file.name
    stem = file.name[: -len(found)]
    return stem + ("" if _CHANNEL.fullmatch(stem) or len(dataset.info.channel_names) > 1 else "_0000") + ending


def _label_name(dataset: DatasetFolder, file: Path, cases: set[str]) -> str:
    """Return the file's name with its ending in lower case, and without a channel that only images have."""
    ending, found = dataset.info.file_ending, ending_of(file)
    if not found or found != ending.lower():
        return file.name
    stem = file.name[: -len(found)]
    is_case = stem in cases or not stem.endswith("_0000") or stem.removesuffix("_0000") not in cases
    return (stem if is_case else stem.removesuffix("_0000")) + ending


def _mend_label(dataset: DatasetFolder, path: Path, target: Path) -> list[str]:
    """Write a label's mended copy and return what was done; nothing is written when nothing need be, or can be."""
    if ending_of(target) in (*LOSSY_ENDINGS, ".mhd"):
        return []  # the former would change voxels, the latter's lie in another file, which is copied
    try:
        label = read_label(path)
        scheme = dataset.label_scheme()
        was_float = label.array.dtype == np.int32 and read_image(path).array.dtype.kind == "f"
        image = _image_of(dataset, path, target)
        grid = None if image is None else _better_grid(label.geometry, read_geometry(image))
    except MsdError:
        return []  # what cannot be read is copied as it is: the report on the new folder names it
    done = ["floating point became whole numbers"] if was_float else []
    array, values = label.array, np.unique(label.array).tolist()
    mapping = _safe_mapping(values, scheme, dataset.info.source_label_values, dataset.info.labels)
    for old, new in mapping.items():
        done.append(f"value {old} became {new} ({int((label.array == old).sum())} voxels)")
    if mapping:
        table = np.array([mapping.get(value, value) for value in values])
        array = table[np.searchsorted(values, label.array)]
    if grid is not None:
        done.append("the header took over the image's grid (less than a tenth of a voxel away)")
    if done and array.min() >= 0:
        write_label(target, array, grid or label.geometry)
        return done
    return []


def _safe_mapping(
    values: list[int],
    scheme: LabelScheme,
    source_values: Mapping[str, int | list[int]],
    labels: Mapping[str, int | list[int]],
) -> dict[int, int]:
    """Return which values of a label file mean which declared ones; empty when it is sound or could mean two things."""
    known = {*scheme.values, *([] if scheme.ignore_value is None else [scheme.ignore_value])}
    unknown = set(values) - known
    if not unknown:
        return {}
    of_vendor = {
        source: target
        for name, source in source_values.items()
        if isinstance(source, int) and isinstance(target := labels.get(name), int)
    }
    if set(values) - {0} <= set(of_vendor):
        return {value: of_vendor[value] for value in values if value and of_vendor[value] != value}
    is_mask = scheme.regions is None and len(scheme.values) == 2 and scheme.ignore_value is None
    if is_mask and len(unknown) == 1 and unknown < {*_WHITE, 0} and set(values) <= {0, *unknown}:
        return {unknown.pop(): scheme.values[1]}
    return {}


def _image_of(dataset: DatasetFolder, label: Path, target: Path) -> Path | None:
    """Return the first channel of the label's case."""
    part = label.parent.name.removeprefix("labels")[:2]
    stem = target.name[: -len(ending_of(target))]
    image = dataset.path / f"images{part}" / f"{stem}_0000{dataset.info.file_ending}"
    return image if image.is_file() else None


def _better_grid(label: Geometry, image: Geometry) -> Geometry | None:
    if not (label.has_physical_spacing and image.has_physical_spacing):
        return None
    distance_mm = largest_corner_distance_mm(label, image)
    return image if SAME_GRID_MM < distance_mm <= ALIGNABLE_VOXELS * min(image.spacing_mm) else None


def _mended_info(mended: DatasetFolder) -> tuple[DatasetJson, list[str]]:
    """Return dataset.json with the counts and names of what is there, and what was changed in it."""
    info, facts = mended.info, []
    changes: dict[str, Any] = {}
    n_training = len(mended.cases("Tr"))
    if n_training != info.numTraining:
        changes["numTraining"] = n_training
        facts.append(f"numTraining is {n_training}, not {info.numTraining}")
    cases = {case.case for part in get_args(Part) for case in mended.cases(part)}
    for key in ("groups", "domains"):
        mapping: dict[str, str] = getattr(info, key)
        if gone := sorted(set(mapping) - cases):
            changes[key] = {case: value for case, value in mapping.items() if case in cases}
            facts.append(f"{key} no longer names {', '.join(gone[:5])}{' ...' if len(gone) > 5 else ''}")
    folders = (path.name for path in mended.path.glob("labels*_*") if path.is_dir())
    observers = sorted({name.partition("_")[2] for name in folders} - set(info.extra_labels))
    if observers:
        changes["extra_labels"] = [*info.extra_labels, *observers]
        facts.append(f"extra_labels names {', '.join(observers)}")
    return info.model_copy(update=changes), facts
