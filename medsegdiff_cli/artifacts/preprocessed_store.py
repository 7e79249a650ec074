"""Preprocessed store: one folder a configuration, three or four files a case, read by memory mapping.

```
CASE.npy             image (channel, *grid), float16 or float32
CASE.label.npy       inner class indices (*grid), uint8 or uint16 (labelled cases)
CASE.foreground.npy  int32 (n, 1 + axes): class index (region index for regions), then voxel coordinates
CASE.json            key (hash of inputs and plan), placement on the native grid, class voxel counts; written last
```
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import read_json


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One preprocessed case.

    Attributes:
        image: memory-mapped (channel, *grid).
        label: memory-mapped (*grid), or None.
        foreground: (n, 1 + axes), or None.
        properties: JSON content: `key`, `placement`, `grid_spacing_mm`, `class_voxels`, `group`, `domain`, `part`.
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
        path = self.folder / f"{case}.json"
        if not path.is_file() or not (self.folder / f"{case}.npy").is_file():
            return None
        return str(read_json(path).get("key"))

    def cases(self) -> list[str]:
        """Return the complete cases, sorted."""
        return sorted(path.name.removesuffix(".json") for path in self.folder.glob("*.json"))

    def read(self, case: str) -> StoredCase:
        """Open a case; arrays are memory-mapped, so that a patch costs what it covers."""
        labelled = (self.folder / f"{case}.label.npy").is_file()
        return StoredCase(
            case=case,
            image=np.load(self.folder / f"{case}.npy", mmap_mode="r", allow_pickle=False),
            label=np.load(self.folder / f"{case}.label.npy", mmap_mode="r", allow_pickle=False) if labelled else None,
            foreground=np.load(self.folder / f"{case}.foreground.npy", allow_pickle=False) if labelled else None,
            properties=read_json(self.folder / f"{case}.json"),
        )

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
            with atomic.staged(path) as temporary, temporary.open("wb") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
        atomic.write_json(self.folder / f"{case}.json", properties)
