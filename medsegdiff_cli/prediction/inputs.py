"""Which images to predict: a file, a folder or a list; what matched and what was skipped is said."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.imaging.reading import IMAGE_ENDINGS, ending_of
from medsegdiff_cli.paths import DATASET_JSON, PREDICTION_JSON, SUMMARY_JSON

# File systems take 255; the names of maps, members and temporary files are longer than their case's.
_LONGEST_NAME_BYTES = 180
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """One case to predict; a single path may hold all channels (an RGB photograph, a DICOM folder)."""

    case: str
    images: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was found, and the files left out with the reason."""

    cases: tuple[InputCase, ...]
    skipped: tuple[tuple[Path, str], ...] = ()


def find_inputs(source: Path, n_channels: int, file_ending: str) -> Inputs:
    """Find the cases in a file, a folder or a text file of paths.

    A folder with nnU-Net's names (`CASE_0000.nii.gz`, one file a channel) is read so; else every image is a case.

    Args:
        n_channels: channels the model needs.
        file_ending: the training dataset's; files with it win when a folder holds several formats.

    Raises:
        InputDataError: nothing usable was found.
        UsageError: the path is a dataset folder, or does not exist.
    """
    source = Path(source)
    if (source / DATASET_JSON).is_file() and (source / "imagesTr").is_dir():
        raise UsageError(
            f"'{source}' is a dataset folder", where="INPUT", fix=f"name its images: {source / 'imagesTs'} or imagesTr"
        )
    if source.is_dir():
        found = _from_folder(source, n_channels, file_ending)
    elif source.is_file() and source.suffix == ".txt":
        listed = [Path(line.strip()) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        missing = [path for path in listed if not path.exists()]
        if missing:
            raise InputDataError(f"{len(missing)} listed files don't exist, first: {missing[0]}", where=str(source))
        found = _from_files(listed, n_channels)
    elif source.is_file():
        found = _from_files([source], n_channels)
    else:
        raise UsageError(f"'{source}' does not exist", where="INPUT", fix="give an image, a folder or a .txt list")
    if not found.cases:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in found.skipped[:5])
        raise InputDataError(
            "no image to predict" + (f" ({reasons})" if reasons else ""),
            where=str(source),
            fix=f"supported: {' '.join(IMAGE_ENDINGS)}, or a folder with one DICOM series",
        )
    return found


def _from_folder(folder: Path, n_channels: int, file_ending: str) -> Inputs:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in files if path.is_file() and ending_of(path)]
    others = [(path, "not an image format") for path in files if path.is_file() and not ending_of(path)]
    if not images:
        # Without an ending that is known, the folder's own files are the slices of its one case.
        is_series = not any(path.is_dir() for path in files)
        return Inputs(cases=_dicom_cases(folder, files), skipped=() if is_series else tuple(others))
    if len({ending_of(path) for path in images}) > 1 and any(ending_of(path) == file_ending for path in images):
        others += [(path, f"ends not in {file_ending}") for path in images if ending_of(path) != file_ending]
        images = [path for path in images if ending_of(path) == file_ending]
    found = _from_files(images, n_channels)
    return Inputs(cases=found.cases, skipped=(*found.skipped, *others))


def _from_files(files: Sequence[Path], n_channels: int) -> Inputs:
    by_case: dict[str, list[tuple[str, Path]]] = {}
    for path in files:
        stem = path.name if path.is_dir() else path.name[: -len(ending_of(path))] if ending_of(path) else path.name
        match = _CHANNEL.fullmatch(stem)
        case, channel = (match["case"], match["channel"]) if match else (stem, "")
        by_case.setdefault(case, []).append((channel, path))
    cases, skipped = [], []
    forms: dict[str, set[str]] = {}
    for case in by_case:
        forms.setdefault(unicodedata.normalize("NFC", case), set()).add(case)
    complete = [f"{channel:04d}" for channel in range(n_channels)]
    for case, found in sorted(by_case.items()):
        paths = [path for _, path in sorted(found)]
        reason = _unusable_name(case)
        if f"{case}.json" in (PREDICTION_JSON, SUMMARY_JSON):
            reason = f"'{case}.json' is a file of OUTPUT itself; rename the image"
        elif len(forms[unicodedata.normalize("NFC", case)]) > 1:
            reason = "another image's name looks the same and differs in its Unicode form; rename one"
        elif len(paths) > 1 and sorted(channel for channel, _ in found) != complete:
            reason = f"case '{case}' has {len(paths)} files, which are not its {n_channels} channels"
        if reason is None:
            cases.append(InputCase(case=case, images=tuple(paths)))
        else:
            skipped += [(path, reason) for path in paths]
    return Inputs(cases=tuple(cases), skipped=tuple(skipped))


def _unusable_name(case: str) -> str | None:
    """Return why files cannot be called after a case, None when they can."""
    n_bytes = len(os.fsencode(case))
    if not case.isprintable():
        return "its name has a line break or another unprintable character; rename it"
    if n_bytes > _LONGEST_NAME_BYTES:
        return f"its name is too long for what is written beside it ({n_bytes} bytes, at most {_LONGEST_NAME_BYTES})"
    return None


def _dicom_cases(folder: Path, children: Sequence[Path]) -> tuple[InputCase, ...]:
    """Treat a folder without known images as DICOM: each sub-folder is a case, else the folder itself."""
    folders = [child for child in children if child.is_dir()]
    if folders:
        return tuple(InputCase(case=child.name, images=(child,)) for child in folders)
    return (InputCase(case=folder.name, images=(folder,)),) if any(child.is_file() for child in children) else ()


def require_other_folder(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output folder that holds one of the inputs, by whatever name or link it is called.

    Raises:
        UsageError: it does.
    """
    place = output.resolve()
    for path in inputs:
        if place in (path.absolute().parent.resolve(), path.resolve(), path.resolve().parent):
            raise UsageError(
                "OUTPUT is the folder of the input images", where=f"{output} and {path}", fix="name another folder"
            )


def shard(cases: Sequence[InputCase], num_shards: int, shard_id: int) -> tuple[InputCase, ...]:
    """Return every `num_shards`-th case of the sorted list, beginning with `shard_id`.

    Raises:
        UsageError: the numbers don't fit each other.
    """
    if num_shards < 1 or not 0 <= shard_id < num_shards:
        raise UsageError(
            f"--shard-id {shard_id} of --num-shards {num_shards}", fix="count shards from 0 to num-shards - 1"
        )
    return tuple(sorted(cases, key=lambda case: case.case)[shard_id::num_shards])
