"""Scores: every metric of every case and class, and their summaries; `summary.json` and `scores.csv`.

`summary.json` keeps nnU-Net's keys (`foreground_mean`, `mean`, `metric_per_case`, label integers as strings, a region
as "(1, 2)"), so that scripts made for it go on working; all that is new has keys of its own. An undefined value (the
class is in neither prediction nor reference) is null, never NaN. `scores.csv` has one row a case and class.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import AliasChoices, Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel, read_json, validate
from medsegdiff_cli.artifacts.spreadsheet import cell
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import SCORES_CSV, SUMMARY_JSON

SCHEMA_VERSION = 1
RATIOS = ("dice", "iou", "precision", "recall")
DISTANCES = ("hd95_pooled", "hd95_max", "assd")
METRICS = (*RATIOS, *DISTANCES, "nsd", "volume_prediction", "volume_reference")
COUNTS = ("tp", "fp", "fn", "tn", "n_pred", "n_ref")
FLAGS = ("missed", "spurious", "undefined")

# Aggregations that papers quote as one number.
NAMED = ("jaccard_per_image", "miou")

DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN)",
    "iou": "TP / (TP + FP + FN)",
    "precision": "TP / (TP + FP); 0 for an empty prediction",
    "recall": "TP / (TP + FN); 0 for an empty reference",
    "surface": "inner border voxels (4 or 6 face neighbours); outside the image is background",
    "hd95_pooled": "95th percentile of the distances of both directions in one heap (MedPy)",
    "hd95_max": "larger one of the two directed 95th percentiles (MONAI)",
    "assd": "mean of the distances of both directions in one heap",
    "nsd": "share of the border voxels of both surfaces within nsd_tolerance of the other surface",
    "missed": "in the reference, not in the prediction: ratios and nsd 0, distances the image diagonal",
    "spurious": "in the prediction, not in the reference: ratios and nsd 0, distances the image diagonal",
    "undefined": "in neither: no value; left out of means and counted",
    "missing_prediction": "no file: ratios and nsd 0, distances the image diagonal, for every class",
    "std": "sample standard deviation (n - 1)",
    "per_case_then_class": "mean over the classes of a case, then statistics over cases",
    "case_by_class": "mean over the cases of a class, then statistics over classes; its dice is foreground_mean",
    "dataset_level": "TP, FP, FN of all cases added up, then one ratio a class",
    "jaccard_per_image": "iou of a case, mean over its classes without background, then over cases: the iou of "
    "per_case_then_class; a class in neither prediction nor reference is left out, it does not count as 1",
    "miou": "TP, FP, FN of all cases added up, iou of each class, the background among them; mean over the classes "
    "that occur in a prediction or reference",
}


def _nnunet(key: str) -> Any:
    """Return a field that is called `key` on disk, as nnU-Net calls it."""
    return Field(serialization_alias=key, validation_alias=AliasChoices(key, key.lower()))


class ClassScore(StrictModel):
    """The scores of one class in one case; None is "undefined".

    Attributes:
        class_name: name of the class or region.
        hd95_pooled: in the case's distance unit, as `hd95_max` and `assd`.
        volume_prediction: in the case's volume unit, as `volume_reference`.
        tp: voxels; ignored voxels count nowhere.
        missed: in the reference, not in the prediction.
        spurious: in the prediction, not in the reference.
        undefined: in neither.
    """

    class_name: str
    dice: float | None = _nnunet("Dice")
    iou: float | None = _nnunet("IoU")
    tp: int = _nnunet("TP")
    fp: int = _nnunet("FP")
    fn: int = _nnunet("FN")
    tn: int = _nnunet("TN")
    n_pred: int
    n_ref: int
    precision: float | None
    recall: float | None
    hd95_pooled: float | None
    hd95_max: float | None
    assd: float | None
    nsd: float | None
    volume_prediction: float
    volume_reference: float
    missed: bool
    spurious: bool
    undefined: bool


class VoxelCounts(StrictModel):
    """Voxels of a mask against its reference; ignored ones count nowhere."""

    tp: int = _nnunet("TP")
    fp: int = _nnunet("FP")
    fn: int = _nnunet("FN")
    tn: int = _nnunet("TN")


class CaseScore(StrictModel):
    """The scores of one case, one per class in the order of `Scores.classes`.

    Attributes:
        prediction_file: None when there was none; the case then counts with the worst scores.
        distance_unit: px for images without physical spacing.
        volume_unit: ml for volumes, mm2 for slices, px without physical spacing.
        image_diagonal: in the distance unit; stands for distances to what is not there.
        background: of what belongs to no class; None in files of earlier versions.
    """

    case: str
    group: str | None = None
    domain: str | None = None
    reference_file: str
    prediction_file: str | None
    missing_prediction: bool = False
    distance_unit: Literal["mm", "px"]
    volume_unit: Literal["ml", "mm2", "px"]
    image_diagonal: float
    classes: tuple[ClassScore, ...]
    background: VoxelCounts | None = None


class Statistic(StrictModel):
    """Mean, sample standard deviation and median of n values; `undefined` values are not among them."""

    mean: float | None
    std: float | None
    median: float | None
    n: int
    undefined: int


class ScoreSummary(StrictModel):
    """What a set of cases comes to; the aggregations are defined in `DEFINITIONS`.

    Attributes:
        missed: class name to the number of cases, as `spurious` and `undefined`.
        per_class: class name to metric to statistic over cases.
        per_case_then_class: metric to statistic.
        case_by_class: metric to statistic.
        dataset_level: class name to ratio.
        dataset_level_mean: ratio, mean over the classes.
        named: the aggregations of `NAMED`; one that a case lacks numbers for is None.
    """

    n_cases: int
    missing_predictions: int
    missed: dict[str, int]
    spurious: dict[str, int]
    undefined: dict[str, int]
    per_class: dict[str, dict[str, Statistic]]
    per_case_then_class: dict[str, Statistic]
    case_by_class: dict[str, Statistic]
    dataset_level: dict[str, dict[str, float | None]]
    dataset_level_mean: dict[str, float | None]
    named: dict[str, float | None] = Field(default_factory=dict)


class Scores(StrictModel):
    """Everything that `msd evaluate` found out.

    Attributes:
        classes: class name to the label values it consists of.
        nsd_tolerance: in the distance unit of each case.
        groups: summary per group (patient); empty when no group has a second case.
        domains: summary per domain (scanner, site).
        failures: cases that could not be scored, with the reason; they are in no mean.
        notes: sentences to print beside the scores.
        provenance: model digest, command, version and the like, as far as known.
    """

    schema_version: Literal[1] = 1
    classes: dict[str, tuple[int, ...]]
    cases: tuple[CaseScore, ...]
    nsd_tolerance: float
    overall: ScoreSummary
    groups: dict[str, ScoreSummary] = Field(default_factory=dict)
    domains: dict[str, ScoreSummary] = Field(default_factory=dict)
    failures: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def distance_units(self) -> tuple[str, ...]:
        """The distance units in use: one, unless images with and without physical spacing are mixed."""
        return tuple(sorted({case.distance_unit for case in self.cases}))

    @property
    def volume_units(self) -> tuple[str, ...]:
        """The volume units in use."""
        return tuple(sorted({case.volume_unit for case in self.cases}))


def label_key(values: Sequence[int]) -> str:
    """Return nnU-Net's key of a class: "1", or "(1, 2)" for a region."""
    return str(values[0]) if len(values) == 1 else str(tuple(values))


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.csv`, then `summary.json`, atomically."""
    atomic.write_text(folder / SCORES_CSV, to_csv(scores))
    atomic.write_json(folder / SUMMARY_JSON, to_json(scores))


def read_scores(path: Path) -> Scores:
    """Read `summary.json`, given itself or its folder.

    Raises:
        InputDataError: missing, damaged, or not written by msd (nnU-Net's own summary lacks the surface metrics).
    """
    path = path / SUMMARY_JSON if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise InputDataError("no summary written by msd", where=str(path), fix="run `msd evaluate` on the predictions")
    if content["schema_version"] != SCHEMA_VERSION:
        what = f"schema_version {content['schema_version']} is not known (known: {SCHEMA_VERSION})"
        raise InputDataError(what, where=str(path), fix="use the msd version that wrote it, or evaluate again")
    try:
        plain = _from_json(content)
    except (KeyError, TypeError, AttributeError) as error:
        fix = "run `msd evaluate` again"
        raise InputDataError(f"the summary is incomplete ({error!r})", where=str(path), fix=fix) from error
    return validate(Scores, plain, str(path), InputDataError)


def to_json(scores: Scores) -> dict[str, Any]:
    """Return the content of `summary.json`."""
    plain = scores.model_dump(mode="json", by_alias=True)
    keys = {name: label_key(values) for name, values in scores.classes.items()}
    per_case = []
    for case in plain["cases"]:
        metrics = {keys[score.pop("class_name")]: score for score in case.pop("classes")}
        files = {name: case.pop(name) for name in ("reference_file", "prediction_file")}
        per_case.append({**files, "metrics": metrics, **case})
    mean = {key: _nnunet_mean([case["metrics"][key] for case in per_case]) for key in keys.values()}
    return {
        "foreground_mean": _nnunet_mean(list(mean.values())),
        "mean": mean,
        "metric_per_case": per_case,
        "schema_version": scores.schema_version,
        "names": {keys[name]: name for name in scores.classes},
        "label_values": plain["classes"],
        "units": {"distance": scores.distance_units, "volume": scores.volume_units},
        "nsd_tolerance": scores.nsd_tolerance,
        "definitions": DEFINITIONS,
        "aggregations": {name: plain[name] for name in ("overall", "groups", "domains")},
        **{name: plain[name] for name in ("failures", "notes", "provenance")},
    }


def _from_json(content: dict[str, Any]) -> dict[str, Any]:
    names = content["names"]
    cases = []
    for case in content["metric_per_case"]:
        classes = [{"class_name": names[key], **score} for key, score in case["metrics"].items()]
        cases.append({**{key: value for key, value in case.items() if key != "metrics"}, "classes": classes})
    kept = ("schema_version", "nsd_tolerance", "failures", "notes", "provenance")
    plain = {key: content[key] for key in kept}
    return {**plain, **content["aggregations"], "classes": content["label_values"], "cases": cases}


def _nnunet_mean(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean of nnU-Net's eight numbers, undefined ones left out; None when all are."""
    means: dict[str, float | None] = {}
    for key in ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"):
        values = [row[key] for row in rows if row[key] is not None]
        means[key] = float(np.mean(values)) if values else None
    return means


def to_csv(scores: Scores) -> str:
    """Return the content of `scores.csv`."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    facts = ("missing_prediction", "distance_unit", "volume_unit")
    table.writerow(["case", "class", "label", "group", "domain", *METRICS, *COUNTS, *FLAGS, *facts])
    for case in scores.cases:
        for score in case.classes:
            label = label_key(scores.classes[score.class_name])
            words = (case.case, score.class_name, label, case.group, case.domain)
            numbers = [getattr(score, name) for name in (*METRICS, *COUNTS, *FLAGS)]
            table.writerow(map(cell, (*words, *numbers, *(getattr(case, name) for name in facts))))
    return stream.getvalue()
