"""Case source: where the files of one case lie before conversion, and what the case will be called."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medsegdiff_cli.artifacts.dataset_folder import Part
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.reading import ending_of


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """One case in a vendor's layout.

    Attributes:
        images: one path a channel, or one file (or DICOM folder) that holds all channels.
        more_label: further files of the label, each with a part of its foreground.
        extra_labels: observer to file.
        mask: body or brain mask.
        group, domain: empty where unknown.
    """

    case: str
    part: Part
    images: tuple[Path, ...]
    label: Path | None = None
    more_label: tuple[Path, ...] = ()
    extra_labels: Mapping[str, Path] = field(default_factory=dict)
    mask: Path | None = None
    group: str = ""
    domain: str = ""


def bare_name(path: Path) -> str:
    """Return a file's name without its image ending, nor the `.dcm` that exports leave before it."""
    ending = ending_of(path)
    name = path.name[: len(path.name) - len(ending)] if ending else path.name
    return name[:-4] if name.lower().endswith(".dcm") else name


def safe_name(name: str) -> str:
    """Return `name` in letters, digits, `-`, `_` and `.` only, without a hidden file's dot.

    Raises:
        InputDataError: nothing is left.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip(".-")
    if not safe.strip("_"):
        raise InputDataError(f"no case name can be made of '{name}'", fix="rename the file")
    return safe


def name_cases(root: Path, files: Iterable[Path]) -> dict[Path, str]:
    """Name every file: its bare name, or its path below `root` joined by `_` when bare names are not unique.

    Raises:
        InputDataError: two files would still be called the same.
    """
    ordered = sorted(files)
    names = {file: safe_name(bare_name(file)) for file in ordered}
    if len(set(names.values())) < len(ordered):
        parents = {file: _relative_parents(root, file) for file in ordered}
        names = {file: safe_name("_".join((*parents[file], bare_name(file)))) for file in ordered}
    seen: dict[str, Path] = {}
    for file, name in names.items():
        if name in seen:
            fix = "rename one of the files, or narrow --images"
            raise InputDataError(f"two files would be case '{name}'", where=f"{seen[name]} and {file}", fix=fix)
        seen[name] = file
    return names


def visible_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return a folder's image files, sorted; hidden ones (`._*`) and those in hidden folders are left out."""
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(path for path in found if ending_of(path) and not is_hidden(folder, path) and path.is_file())


def is_hidden(root: Path, path: Path) -> bool:
    """Say whether a part of `path` below `root` begins with a dot."""
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return any(part.startswith(".") for part in relative.parts)


def _relative_parents(root: Path, file: Path) -> tuple[str, ...]:
    return file.parent.relative_to(root).parts if file.is_relative_to(root) else (file.parent.name,)
