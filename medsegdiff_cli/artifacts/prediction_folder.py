"""Prediction folder: label maps on the native grid, a sidecar JSON a case (written last), and `prediction.json`.

```
CASE.nii.gz                     label map, the dataset's own values
CASE.json                       sidecar: digests, settings, flags, volumes; its presence means "done"
probabilities/, uncertainty/   optional maps
members/CASE_NNN.nii.gz         label map of each member; where members have an estimate at each step of a walk,
                                members/CASE_NNN_tTTTT.nii.gz is that of training timestep TTTT
steps/CASE_tTTTT.nii.gz         label map of the members' fused estimates at that timestep
prediction.json                 models, settings, label names
volumes.csv                     one row a case and class, from the sidecars
```

`volumes.csv` has the columns `case`, `class`, `voxels` (native grid), `volume_ml` (blank without physical spacing),
`agreement` (of the case, 0 to 1: mean over members of the Dice with the fused prediction), `member_agreement` (of the
class, 0 to 1: Dice pooled over all pairs of members; blank where no member sees the class) and `flags`. Both agreements
are measured on the network's grid, before the way back to the native one, and are blank for one member. So are
`voxels_mean`, `voxels_low`, `voxels_high` and the same for `volume_ml`: mean and 95 % interval of the members' own
volumes.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import PREDICTION_JSON


class Spread(StrictModel):
    """A figure over members: their mean, and the interval from the 2.5th to the 97.5th percentile."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> "Spread":
        """Return the spread in another unit."""
        return Spread(mean=self.mean * factor, low=self.low * factor, high=self.high * factor)


class Sidecar(StrictModel):
    """What is known about one predicted case.

    Attributes:
        key: sha256 over model, settings and input content; equal keys mean that the prediction can be reused.
        outputs: file name to sha256.
        bundles: file name to sha256 of the bundles that models came from.
        volumes_ml: class to volume in millilitres (None without physical spacing); voxels: class to voxel count.
        agreement: mean over members of the Dice with the fused prediction, None with one member.
        member_agreement: class to the Dice pooled over all pairs of members (see `RunningFusion.pairwise_dice`), None
            where no member sees the class; empty with one member.
        member_voxels: class to the spread of the members' own volumes, measured on the network's grid and given in
            native voxels; empty with one member. member_volumes_ml: the same in millilitres.
        steps_taken: mean number of steps over windows and draws, fewer than were planned where walks ended early; None
            for methods that take none.
        window_batch: windows per network call that were used; half of what `settings` say where memory did not suffice.
            None in sidecars of versions that did not say.
        flags: sentences on what to look at.
    """

    schema_version: int = 1
    case: str
    key: str
    input_digests: dict[str, str]
    outputs: dict[str, str]
    model_digests: tuple[str, ...]
    bundles: dict[str, str] = Field(default_factory=dict)
    plan_digest: str
    msd_version: str
    command: str
    seed: int
    settings: dict[str, Any] = Field(default_factory=dict)
    voxels: dict[str, int] = Field(default_factory=dict)
    volumes_ml: dict[str, float | None] = Field(default_factory=dict)
    agreement: float | None = None
    member_agreement: dict[str, float | None] = Field(default_factory=dict)
    member_voxels: dict[str, Spread] = Field(default_factory=dict)
    member_volumes_ml: dict[str, Spread | None] = Field(default_factory=dict)
    steps_taken: float | None = None
    window_batch: int | None = None
    flags: tuple[str, ...] = ()


class PredictionInfo(StrictModel):
    """Content of `prediction.json`: what `msd evaluate` needs to know about a folder of predictions.

    Attributes:
        classes: class name to the label values it consists of.
        bundles: file name to sha256 of the bundles that models came from.
        settings: of inference; all cases of the folder share them. Empty in folders of versions that did not say.
        visited_timesteps: training timesteps that sampling visits, from noisy to clean; empty for methods without.
        draws: repetitions of a stochastic method.
        trained_on: labelled cases that one of the models was trained on; scores of them are said to be no test.
        notes: sentences to print beside every score, for example about test images seen in pretraining.
    """

    schema_version: int = 1
    dataset: str
    dataset_path: str
    file_ending: str
    classes: dict[str, tuple[int, ...]]
    ignore_value: int | None = None
    source_label_values: dict[str, int | list[int]] = Field(default_factory=dict)
    models: tuple[str, ...]
    model_digests: tuple[str, ...]
    bundles: dict[str, str] = Field(default_factory=dict)
    method: str
    config: str
    msd_version: str
    command: str
    seed: int
    train_cases: int
    settings: dict[str, Any] = Field(default_factory=dict)
    visited_timesteps: tuple[int, ...] = ()
    draws: int = 1
    trained_on: tuple[str, ...] = ()
    validation_labels_used_for_selection: int = 0
    notes: tuple[str, ...] = ()


def read_prediction_info(folder: Path) -> PredictionInfo:
    """Read `prediction.json`.

    Raises:
        InputDataError: the folder holds none.
    """
    path = folder / PREDICTION_JSON
    return validate(PredictionInfo, read_json(path), str(path), InputDataError)


def write_prediction_info(folder: Path, info: PredictionInfo) -> None:
    """Write `prediction.json` atomically."""
    atomic.write_json(folder / PREDICTION_JSON, info.model_dump(mode="json"))


def read_sidecar(folder: Path, case: str) -> Sidecar | None:
    """Return the sidecar of a case, or None when the case is not done."""
    path = folder / f"{case}.json"
    return validate(Sidecar, read_json(path), str(path), InputDataError) if path.is_file() else None


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write a sidecar atomically, after all its outputs."""
    atomic.write_json(folder / f"{sidecar.case}.json", sidecar.model_dump(mode="json"))
