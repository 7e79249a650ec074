"""Memorisation: how near generated images are to their nearest training images; `memorisation.json` beside them."""

from pathlib import Path

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import MEMORISATION_JSON

_NAMED = 5


class NearestImage(StrictModel):
    """A generated image and the training image that is most like it.

    Attributes:
        distance: 1 - correlation of the two as small pictures: 0 is a copy.
        is_suspicious: nearer than training images usually are to each other.
    """

    sample: str
    training_case: str
    distance: float
    is_suspicious: bool


class Memorisation(StrictModel):
    """The comparison of generated with training images.

    Attributes:
        dataset: of the training images.
        n_training_cases, n_training_patches: compared with; volumes are compared slice by slice or patch by patch.
        percentile: of the training images' own distances (each to the nearest of another case), which is the limit.
        limit: that distance; None with fewer than two training cases.
        median_between_training: median of the same distances.
        mirrored_axes: along which mirror images were compared, too.
        samples: nearest first.
        suspicious_share: of the samples.
    """

    schema_version: int = 1
    dataset: str
    n_training_cases: int
    n_training_patches: int
    percentile: float
    limit: float | None
    median_between_training: float | None
    mirrored_axes: tuple[int, ...] = ()
    samples: tuple[NearestImage, ...] = Field(min_length=1)
    suspicious_share: float

    def sentences(self) -> list[str]:
        """Return the finding for people."""
        nearest = self.samples[0]
        if self.limit is None:
            return [
                f"memorisation: nearest pair {nearest.sample} and {nearest.training_case}, distance "
                f"{nearest.distance:.4f}; with one training image there is nothing to compare that with"
            ]
        suspicious = [sample for sample in self.samples if sample.is_suspicious]
        lines = [
            f"memorisation: {len(suspicious)} of {len(self.samples)} samples ({self.suspicious_share:.0%}) are nearer "
            f"to a training image than {100 - self.percentile:g} % of the {self.n_training_cases} training images are "
            f"to each other (distance at most {self.limit:.4f}; new real images would be in {self.percentile:g} % of "
            "the cases)"
        ]
        for sample in suspicious[:_NAMED]:
            lines.append(f"- {sample.sample} is like {sample.training_case}: distance {sample.distance:.4f}")
        if len(suspicious) > _NAMED:
            lines.append(f"- and {len(suspicious) - _NAMED} more, see {MEMORISATION_JSON}")
        return lines


def read_memorisation(folder: Path) -> Memorisation:
    """Read `memorisation.json`.

    Raises:
        InputDataError: there is none, or it is damaged.
    """
    path = folder / MEMORISATION_JSON
    return validate(Memorisation, read_json(path), str(path), InputDataError)


def write_memorisation(folder: Path, found: Memorisation) -> None:
    """Write `memorisation.json` atomically."""
    atomic.write_json(folder / MEMORISATION_JSON, found.model_dump(mode="json"))
