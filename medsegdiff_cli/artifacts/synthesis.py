"""Synthesis: how the images of a synthetic dataset were made; part of its dataset.json.

While images are still missing it stands alone in `sampling.json`: a folder has a dataset.json when it is complete.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import SAMPLING_JSON


class ChannelIntensity(StrictModel):
    """intensity = slope x normalised + offset, kept from low to high; see `imaging.denormalise.IntensityScale`."""

    name: str
    slope: float
    offset: float
    low: float | None = None
    high: float | None = None
    source: Literal["plan", "training images", "range", "nothing"]


class Synthesis(StrictModel):
    """Provenance of generated images.

    Attributes:
        model: RUN/fold_K, or BUNDLE.msd/fold_K.
        model_digest: sha256 of the weights' file.
        dataset: that the model was trained on.
        sampler, steps: of the walk from noise.
        route: "joint": image and mask walk together; "cheap": the image walks alone and is then segmented.
        mask_start: y_T of the joint route.
        batch: images per network call; the last bits may depend on it.
        intensities: how normalised channels became the files' intensities.
        limits: of the normalised image's estimates.
        direction: of the files' axes, ITK's; None where there is no physical space.
    """

    schema_version: int = 1
    model: str
    method: str
    model_digest: str
    plan_digest: str
    dataset: str
    config: Literal["2d", "3d"]
    seed: int
    sampler: str
    steps: int
    route: Literal["joint", "cheap"]
    mask_start: float = 0.0
    batch: int = Field(ge=1)
    precision: str = "float32"
    intensities: tuple[ChannelIntensity, ...]
    limits: tuple[float, float]
    direction: tuple[float, ...] | None = None
    msd_version: str
    command: str

    def differences(self, other: "Synthesis") -> list[str]:
        """Return the settings in which two differ, of those that were asked for.

        What was measured on the training images is taken from the earlier one: these need not be there any more.
        """
        measured = {"intensities", "limits", "direction", "command", "msd_version"}
        return [name for name in type(self).model_fields if name not in measured and _differs(self, other, name)]


def _differs(first: Synthesis, second: Synthesis, name: str) -> bool:
    return bool(getattr(first, name) != getattr(second, name))


def read_sampling(folder: Path) -> Synthesis | None:
    """Return what `sampling.json` says; None where there is none.

    Raises:
        InputDataError: it is damaged.
    """
    path = folder / SAMPLING_JSON
    return validate(Synthesis, read_json(path), str(path), InputDataError) if path.is_file() else None


def write_sampling(folder: Path, synthesis: Synthesis) -> None:
    """Write `sampling.json` atomically."""
    atomic.write_json(folder / SAMPLING_JSON, synthesis.model_dump(mode="json"))
