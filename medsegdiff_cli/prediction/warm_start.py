"""Warm start: walks of iterative methods that begin at a segmentation noised to a timestep (PD-DDPM, Guo et al. 2022).

The segmentation is another prediction's label map, or what other models predict of the same image.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.image import Image, is_on_grid_of, largest_corner_distance_mm
from medsegdiff_cli.imaging.reading import case_name_of, ending_of, read_label, unreadable
from medsegdiff_cli.inference.settings import InferenceSettings
from medsegdiff_cli.inference.volume import predict_volume
from medsegdiff_cli.prediction.model import LoadedModel


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Where walks begin: a folder of label maps by case, or models that predict the start.

    Attributes:
        folder: with the label maps; None with models.
        inference: how the models predict; None with a folder.
    """

    folder: Path | None = None
    models: Sequence[LoadedModel] = ()
    inference: InferenceSettings | None = None

    def digests(self, case: str) -> dict[str, str]:
        """Return the digest of the case's own label map, by a name for provenance; empty with models.

        Raises:
            InputDataError: it has none, or it cannot be read.
        """
        if self.folder is None:
            return {}
        path = self._label_path(self.folder, case)
        try:
            return {f"start:{path.name}": atomic.digest_of_file(path)}
        except OSError as error:
            raise unreadable(error, path) from error

    def content(self) -> dict[str, Any]:
        """Return what all cases share of the start, JSON-serialisable."""
        settings = None if self.inference is None else asdict(self.inference)
        return {"models": [model.digest for model in self.models], "inference": settings}

    def read(self, case: str, image: Image, scheme: LabelScheme) -> np.ndarray | None:
        """Return the case's label map as inner indices (*native); None with models.

        Raises:
            InputDataError: it is missing, not on the image's grid, or has values of other classes.
        """
        if self.folder is None:
            return None
        path = self._label_path(self.folder, case)
        label = read_label(path)
        if not is_on_grid_of(image.geometry, label.geometry):
            apart_mm = largest_corner_distance_mm(image.geometry, label.geometry)
            raise InputDataError(
                f"the segmentation to start from is not on the image's grid (shapes {label.geometry.shape} and "
                f"{image.geometry.shape}, corners {apart_mm:.3g} mm apart)",
                where=str(path),
                fix="predict the start from the same images",
            )
        return scheme.encode(label.array[0], str(path))

    def probabilities(self, case: str, image: Tensor, label: np.ndarray | None, scheme: LabelScheme) -> Tensor:
        """Return the segmentation on the network's grid, float32 (class, *grid).

        Args:
            image: preprocessed, (channel, *grid).
            label: what `read` gave, brought onto the grid, (*grid).
        """
        if label is not None:
            return one_hot(label, scheme)
        if self.inference is None:
            raise RuntimeError("a start needs a label map or models")
        # Another name: the models that refine the start must not see its noise again.
        methods = [model.method for model in self.models]
        return predict_volume(methods, image, f"start:{case}", self.inference).mean

    @staticmethod
    def _label_path(folder: Path, case: str) -> Path:
        found = [path for path in sorted(folder.iterdir()) if ending_of(path) and case_name_of(path) == case]
        if not found:
            raise InputDataError(
                f"no segmentation of '{case}' to start from", where=str(folder), fix="predict this case there first"
            )
        return found[0]


def one_hot(label: np.ndarray, scheme: LabelScheme) -> Tensor:
    """Return 1 in each voxel's class (or regions) and 0 in the others, float32 (class, *grid).

    Args:
        label: inner indices, (*grid).
    """
    parts = [(index,) for index in range(len(scheme.class_names))] if scheme.regions is None else scheme.regions
    return torch.from_numpy(np.stack([np.isin(label, part) for part in parts]).astype(np.float32))
