"""Preprocessed store: one folder a configuration, three or four files a case, read by memory mapping.

```
CASE.npy             image (channel, *grid), float16 or float32
CASE.label.npy       inner class indices (*grid), uint8 or uint16 (labelled cases)
CASE.foreground.npy  int32 (n, 1 + axes): class index (region index for regions), then voxel coordinates; rows are
                     grouped by class; class -1 samples all annotated voxels (datasets with an ignore label only)
CASE.json            key (hash of inputs and plan), placement on the native grid, class voxel counts; written last
```
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.errors import InputDataError, reading_error

# Pseudo class of the foreground table: every voxel that somebody annotated, background too.
ANNOTATED = -1
_FIX = "run `msd preprocess` again"


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One preprocessed case.

    Attributes:
        image: memory-mapped (channel, *grid).
        label: memory-mapped (*grid), or None.
        foreground: (n, 1 + axes), or None.
        properties: JSON content: `key`; `part`, `group`, `domain`; `placement`; `grid_spacing_mm`; `class_voxels`
            (class name to number of voxels on the grid, None without a label); `foreground_slices` (indices along
            the first axis of a 3D grid); `rounding_error_bound` (of the stored image, in normalised intensity);
            `inputs` (digest and stamp of each file).
    """

    case: str
    image: np.ndarray
    label: np.ndarray | None
    foreground: np.ndarray | None
    properties: dict[str, Any]


@dataclass(frozen=True)
class PreprocessedStore:
    """The folder of one configuration."""

    folder: Path

    def key_of(self, case: str) -> str | None:
        """Return the key a case was stored under, or None when it is absent or incomplete."""
        if not (self.folder / f"{case}.json").is_file():
            return None
        properties = self.properties(case)
        endings = ("", ".label", ".foreground") if properties.get("class_voxels") is not None else ("",)
        is_complete = all((self.folder / f"{case}{ending}.npy").is_file() for ending in endings)
        return str(properties.get("key")) if is_complete else None

    def cases(self) -> list[str]:
        """Return the complete cases, sorted."""
        return sorted(path.name.removesuffix(".json") for path in self.folder.glob("*.json") if path.name[0] != ".")

    def properties(self, case: str) -> dict[str, Any]:
        """Return the JSON content of a complete case."""
        return dict(read_json(self.folder / f"{case}.json"))

    def read(self, case: str, *, with_label: bool = True) -> StoredCase:
        """Open a case; arrays are memory-mapped, so that a patch costs what it covers.

        Args:
            with_label: False hides the label, as unsupervised stages demand.

        Raises:
            InputDataError: the case is absent or incomplete. ResourceError: the disk fails.
        """
        properties = self.properties(case)
        labelled = with_label and (self.folder / f"{case}.label.npy").is_file()
        with self._explained_errors(case):
            return StoredCase(
                case=case,
                image=self._mapped(f"{case}.npy"),
                label=self._mapped(f"{case}.label.npy") if labelled else None,
                foreground=self._mapped(f"{case}.foreground.npy") if labelled else None,
                properties=properties,
            )

    def n_channels(self, case: str) -> int:
        """Return the number of a case's channels.

        Raises:
            InputDataError, ResourceError: as `read`.
        """
        with self._explained_errors(case):
            return int(self._mapped(f"{case}.npy").shape[0])

    @contextmanager
    def _explained_errors(self, case: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise reading_error(problem, str(self.folder / case), fix=_FIX) from problem
        except ValueError as problem:
            what = f"case '{case}' of the preprocessed store cannot be read ({problem})"
            raise InputDataError(what, where=str(self.folder), fix=_FIX) from problem

    def _mapped(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self.folder / name, mmap_mode="r", allow_pickle=False))

    def write(
        self,
        case: str,
        *,
        image: np.ndarray,
        label: np.ndarray | None,
        foreground: np.ndarray | None,
        properties: dict[str, Any],
    ) -> None:
        """Write a case atomically; an older entry stops being valid before its arrays change."""
        (self.folder / f"{case}.json").unlink(missing_ok=True)
        arrays = {"": image, ".label": label, ".foreground": foreground}
        for ending, array in arrays.items():
            path = self.folder / f"{case}{ending}.npy"
            if array is None:
                path.unlink(missing_ok=True)
                continue
            with atomic.staged_stream(path) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
        self.write_properties(case, properties)

    def write_properties(self, case: str, properties: dict[str, Any]) -> None:
        """Write the JSON content of a case whose arrays are in place."""
        atomic.write_json(self.folder / f"{case}.json", properties)

    def remove(self, case: str) -> None:
        """Delete a case; it stops being complete before its arrays go."""
        for ending in (".json", ".npy", ".label.npy", ".foreground.npy"):
            (self.folder / f"{case}{ending}").unlink(missing_ok=True)
