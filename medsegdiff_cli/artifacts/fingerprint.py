"""Fingerprint: what the planner needs to know about a dataset's images, measured once per file content."""

from pathlib import Path

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate


class IntensityStatistics(StrictModel):
    """Intensities of one channel, in the image's own units."""

    mean: float
    std: float
    min: float
    max: float
    median: float
    percentile_00_5: float
    percentile_99_5: float
    n_samples: int


class CaseFingerprint(StrictModel):
    """One case, measured.

    Attributes:
        digest: sha256 over the digests of the case's files and the label scheme; the cache key.
        shape_voxels, spacing_mm: native grid in array order.
        shape_after_crop_voxels: after cropping to the non-zero box.
        orientation: anatomical axis codes in array order, for example "SAR"; "" without physical axes.
        class_voxels: class name to number of voxels (labelled cases).
        class_boundary_voxels: class name to number of voxels at its boundary; with the former it tells the thickness.
        intensity: one entry a channel, over the whole image.
    """

    case: str
    part: str
    digest: str
    shape_voxels: tuple[int, ...]
    shape_after_crop_voxels: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    has_physical_spacing: bool
    n_channels: int
    orientation: str = ""
    class_voxels: dict[str, int] = Field(default_factory=dict)
    class_boundary_voxels: dict[str, int] = Field(default_factory=dict)
    intensity: tuple[IntensityStatistics, ...]


class Fingerprint(StrictModel):
    """The whole dataset.

    Attributes:
        foreground_intensity: per channel, over the labelled voxels of the training cases (empty without labels).
        mask_intensity: per channel, over the mask (masksTr, else the non-zero voxels) of the training cases.
        whole_intensity: per channel, over all voxels of training and unlabelled cases.
            Every case weighs the same in all three.
        median_relative_size_after_cropping: median over cases of voxels kept by the non-zero crop.
    """

    schema_version: int = 1
    dataset: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    foreground_intensity: tuple[IntensityStatistics, ...]
    mask_intensity: tuple[IntensityStatistics, ...] = ()
    whole_intensity: tuple[IntensityStatistics, ...]
    median_relative_size_after_cropping: float

    def training_cases(self) -> list[CaseFingerprint]:
        """Return labelled training cases; all cases when none is labelled."""
        return [case for case in self.cases if case.part == "Tr"] or list(self.cases)

    def digest(self) -> str:
        """Return the sha256 of the content."""
        return atomic.digest_of_content(self.model_dump(mode="json"))


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint written by `write_fingerprint`."""
    return validate(Fingerprint, read_json(path), str(path))


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write a fingerprint atomically."""
    atomic.write_json(path, fingerprint.model_dump(mode="json"))
