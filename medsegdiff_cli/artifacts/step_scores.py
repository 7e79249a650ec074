"""Scores by step and by member: what `msd evaluate --per-step --per-member` found out.

```
steps.json        all of `StepScores`
steps.csv         one row a case, class, step and member
step_curves.csv   one row a point of the curves
```

An undefined number is null in JSON and an empty cell in CSV.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.document import StrictModel
from medsegdiff_cli.artifacts.scores import CaseScore, Statistic
from medsegdiff_cli.artifacts.spreadsheet import cell
from medsegdiff_cli.paths import STEP_CURVES_CSV, STEPS_CSV, STEPS_JSON

Metric = Literal["dice", "hd95_max"]
METRICS: tuple[Metric, ...] = ("dice", "hd95_max")
DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN)",
    "hd95_max": "larger one of the two directed 95th percentiles, in distance_units",
    "class_name": "null: the mean over the classes of a case, then statistics over cases",
    "curves": "scores of each step's label map, all members fused",
    "changes": "a case's value at the last step minus that at the first one",
    "spreads": "a case's largest minus smallest value over its members; step null: at the end, which is all there is",
    "missed": "structures in the reference and not in the prediction: dice 0, hd95_max the image diagonal",
    "spurious": "structures in the prediction and not in the reference: dice 0, hd95_max the image diagonal",
    "undefined": "cases without a value (class in neither label map), in no mean",
    "std": "sample standard deviation over cases (n - 1)",
}


class Place(NamedTuple):
    """A step of sampling.

    Attributes:
        step: from 1, in the order of sampling.
        timestep: of the training, which that step is at.
    """

    step: int
    timestep: int


class CurvePoint(StrictModel):
    """One metric at one step, over cases.

    Attributes:
        step, timestep: see `Place`.
        class_name: None for the mean over a case's classes.
        missed: structures among these that were missed; spurious likewise.
    """

    step: int
    timestep: int
    class_name: str | None
    metric: Metric
    values: Statistic
    missed: int
    spurious: int


class StepChange(StrictModel):
    """The last step against the first one, case by case (Fu et al. 2023, Figure 3).

    Attributes:
        first_timestep: of the first step, as `last_timestep` of the last one.
        values: of the differences last minus first; `undefined` cases have a value at neither or at one of them.
        improved: cases that became better: a greater Dice, a smaller distance.
        improved_share: of the `values.n` cases; None without any.
    """

    first_timestep: int
    last_timestep: int
    class_name: str | None
    metric: Metric
    better: Literal["higher", "lower"]
    values: Statistic
    improved: int
    unchanged: int
    worsened: int
    improved_share: float | None


class MemberSpread(StrictModel):
    """How far the members of a case are apart (Fu et al. 2023, Table 3: draws with different noise).

    Attributes:
        step, timestep: None where only the members' final label maps are there.
        values: of the differences largest minus smallest; a case is `undefined` when a member of it has no value.
    """

    step: int | None
    timestep: int | None
    class_name: str | None
    metric: Metric
    members: int
    values: Statistic


class StepScores(StrictModel):
    """Everything that was found out.

    Attributes:
        timesteps: of the steps, in the order of sampling; empty without `--per-step`.
        members: of each case; 0 without `--per-member`.
        cases: that were scored.
        curves: by class, metric and step; empty without `--per-step`, as `changes`.
        spreads: by class, metric and step; empty without `--per-member`.
        failures: cases that could not be scored, with the reason; they are in no mean.
        notes: sentences to print beside the numbers.
    """

    schema_version: Literal[1] = 1
    classes: tuple[str, ...]
    distance_units: tuple[str, ...]
    timesteps: tuple[int, ...]
    members: int
    cases: tuple[str, ...]
    curves: tuple[CurvePoint, ...]
    changes: tuple[StepChange, ...]
    spreads: tuple[MemberSpread, ...]
    definitions: dict[str, str] = Field(default_factory=lambda: dict(DEFINITIONS))
    failures: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = Field(default_factory=dict)


class ScoredMap(StrictModel):
    """A scored label map of one case.

    Attributes:
        place: None for a member's final label map.
        member: from 0; None for all members fused.
    """

    place: Place | None
    member: int | None
    score: CaseScore


def write_step_scores(folder: Path, scores: StepScores, maps: Sequence[ScoredMap]) -> None:
    """Write `steps.csv`, `step_curves.csv`, then `steps.json`, atomically."""
    atomic.write_text(folder / STEPS_CSV, _maps_csv(maps))
    atomic.write_text(folder / STEP_CURVES_CSV, _curves_csv(scores))
    atomic.write_json(folder / STEPS_JSON, scores.model_dump(mode="json"))


def _maps_csv(maps: Sequence[ScoredMap]) -> str:
    flags = ("missed", "spurious", "undefined")
    rows: list[tuple[Any, ...]] = [("case", "class", "step", "timestep", "member", *METRICS, *flags, "distance_unit")]
    for scored in maps:
        place = (*(scored.place or (None, None)), scored.member)
        for score in scored.score.classes:
            numbers = [getattr(score, name) for name in (*METRICS, *flags)]
            rows.append((scored.score.case, score.class_name, *place, *numbers, scored.score.distance_unit))
    return _csv(rows)


def _curves_csv(scores: StepScores) -> str:
    statistic = ("mean", "std", "median", "n", "undefined")
    rows: list[tuple[Any, ...]] = [("curve", "step", "timestep", "class", "metric", "members", *statistic)]
    points: list[CurvePoint | MemberSpread] = [*scores.curves, *scores.spreads]
    for point in points:
        curve, members = ("member_range", point.members) if isinstance(point, MemberSpread) else ("score", None)
        numbers = [getattr(point.values, name) for name in statistic]
        rows.append((curve, point.step, point.timestep, point.class_name, point.metric, members, *numbers))
    return _csv(rows)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    for row in rows:
        table.writerow(map(cell, row))
    return stream.getvalue()
