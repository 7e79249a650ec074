"""The tables that `msd evaluate --per-step --per-member` shows."""

from collections.abc import Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medsegdiff_cli.artifacts.scores import Statistic
from medsegdiff_cli.artifacts.step_scores import CurvePoint, MemberSpread, Metric, StepChange, StepScores

_Point = TypeVar("_Point", CurvePoint, MemberSpread)

_ALL = "mean over classes"
_NAMES = {"dice": "Dice", "hd95_max": "HD95 max"}


def step_report(scores: StepScores) -> RenderableType:
    """Return scores by step, the last step against the first, the spread of members, and what must be said."""
    parts: list[RenderableType] = []
    if scores.curves:
        parts.append(curve_table(scores))
    if scores.changes:
        parts.append(change_table(scores))
    if scores.spreads:
        parts.append(spread_table(scores))
    parts.extend(Text(sentence) for sentence in _sentences(scores))
    return Group(*parts)


def curve_table(scores: StepScores) -> Table:
    """Return mean ± standard deviation over cases: a row a class and step, a column a metric."""
    unit = "/".join(scores.distance_units)
    title = f"Scores by step of {len(scores.cases)} cases (mean ± standard deviation over cases)"
    table = _table(title, ("Class",), ("step", "t", "Dice", f"HD95 max\n{unit}", "n", "missed", "spurious"))
    for name in _class_names(scores.curves):
        own = [point for point in scores.curves if point.class_name == name]
        for dice, hd95 in _pairs(own):
            n = str(dice.values.n)
            lost = (str(dice.missed), str(dice.spurious))
            table.add_row(
                Text(name or _label(scores)),
                *(str(dice.step), str(dice.timestep), _cell(dice.values), _cell(hd95.values), n, *lost),
            )
        table.add_section()
    return table


def change_table(scores: StepScores) -> Table:
    """Return the last step minus the first one: means, and how many cases became better."""
    first, last = scores.changes[0].first_timestep, scores.changes[0].last_timestep
    title = f"Last step minus first one, case by case (t={last} minus t={first})"
    columns = ("metric", "mean ± std", "better", "improved", "unchanged", "worse", "share\nimproved", "n")
    table = _table(title, ("Class",), columns)
    for change in scores.changes:
        share = "–" if change.improved_share is None else f"{100 * change.improved_share:.1f} %"
        counts = (str(change.improved), str(change.unchanged), str(change.worsened))
        cells = (_name(change.metric, scores), _cell(change.values, signed=True), change.better, *counts, share)
        table.add_row(Text(change.class_name or _label(scores)), *cells, str(change.values.n))
    return table


def spread_table(scores: StepScores) -> Table:
    """Return the mean over cases of the largest minus the smallest score of a case's members."""
    unit = "/".join(scores.distance_units)
    title = f"Largest minus smallest score of each case's {scores.members} members (mean ± standard deviation)"
    table = _table(title, ("Class",), ("step", "t", "Dice", f"HD95 max\n{unit}", "n"))
    for name in _class_names(scores.spreads):
        own = [spread for spread in scores.spreads if spread.class_name == name]
        for dice, hd95 in _pairs(own):
            place = ("end", "–") if dice.step is None else (str(dice.step), str(dice.timestep))
            cells = (*place, _cell(dice.values), _cell(hd95.values), str(dice.values.n))
            table.add_row(Text(name or _label(scores)), *cells)
        table.add_section()
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, show_edge=False)
    for column in words:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _pairs(points: Sequence[_Point]) -> list[tuple[_Point, _Point]]:
    """Return Dice and HD95 of each step."""
    by_metric = [[point for point in points if point.metric == metric] for metric in _NAMES]
    return list(zip(by_metric[0], by_metric[1], strict=True))


def _class_names(points: Sequence[CurvePoint | MemberSpread | StepChange]) -> list[str | None]:
    return list(dict.fromkeys(point.class_name for point in points))


def _label(scores: StepScores) -> str:
    return _ALL if len(scores.classes) > 1 else scores.classes[0]


def _name(metric: Metric, scores: StepScores) -> str:
    return _NAMES[metric] if metric == "dice" else f"{_NAMES[metric]} {'/'.join(scores.distance_units)}"


def _sentences(scores: StepScores) -> list[str]:
    sentences = []
    points: list[CurvePoint | MemberSpread] = [*scores.curves, *scores.spreads]
    undefined = max((point.values.undefined for point in points if point.class_name is None), default=0)
    if any(point.missed or point.spurious for point in scores.curves):
        sentences.append("Missed or spurious structures count as Dice 0 and the image diagonal.")
    if undefined:
        sentences.append(f"Cases without a value (classes in neither label map), in no mean: up to {undefined}.")
    if scores.failures:
        names = ", ".join(list(scores.failures)[:5])
        sentences.append(f"Cases that could not be scored, in no mean: {len(scores.failures)} ({names}).")
    return [*sentences, *scores.notes]


def _cell(values: Statistic, *, signed: bool = False) -> str:
    if values.mean is None:
        return "–"
    mean = f"{values.mean:+.4f}" if signed else f"{values.mean:.4f}"
    return mean if values.std is None else f"{mean} ± {values.std:.4f}"
