"""Trends: whether the scores of an experiment's arms meet its criterion, with intervals over test persons.

A person is the same on every scanner and at every label budget of a seed, and other persons are in other seeds: hence
whole persons are resampled, with all their cells. The interval says nothing about trainings; each seed's own figure
stands beside it for that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medsegdiff_cli.artifacts.experiment import (
    Arm,
    Experiment,
    PairedGain,
    PrecisionTrade,
    StepTrend,
    VoteGain,
)
from medsegdiff_cli.artifacts.reproduction import CellFinding, Finding, Verdict
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.metrics.paired import bootstrap_interval

_POINTS = 100.0
_SEED = 0
# Two thirds of six cells are four, also where the share is written as 0.667.
_ROUNDING = 2e-3

Person = tuple[int, str]


@dataclass(frozen=True)
class ArmScores:
    """Scores of every arm on every test image.

    Attributes:
        values: (seed, arm's name, domain) to person to metric to value, a share of 1.
    """

    values: Mapping[tuple[int, str, str], Mapping[str, Mapping[str, float]]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, ascending."""
        return tuple(sorted({seed for seed, _, _ in self.values}))

    def of(self, arm: Arm, domain: str, metric: str = "dice") -> dict[Person, float]:
        """Return the points of each person, in a fixed order.

        Raises:
            InputDataError: the arm was not scored there.
        """
        found = {
            (seed, person): _POINTS * scores[metric]
            for seed in self.seeds
            for person, scores in sorted(self.values.get((seed, arm.name, domain), {}).items())
        }
        if not found:
            raise InputDataError(f"no scores of {arm.name} on {domain}", fix="run the same command again")
        return found


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What an evaluator found: the criterion's answer, and the differences that `measured` is the mean of."""

    met: bool | None
    quantity: str
    differences: Sequence[Mapping[Person, float]]
    cells: tuple[CellFinding, ...]
    notes: tuple[str, ...] = ()


def judge(experiment: Experiment, scores: ArmScores) -> Finding:
    """Return what came of an experiment.

    Raises:
        InputDataError: an arm has no scores, or two arms were scored on different persons.
    """
    criterion = experiment.criterion
    evaluate: Callable[[Any, ArmScores], _Outcome] = _EVALUATORS[criterion.kind]
    outcome = evaluate(criterion, scores)
    measured, low, high = _interval(outcome.differences)
    per_seed = {seed: _mean_of_seed(outcome.differences, seed) for seed in scores.seeds}
    return Finding(
        id=experiment.id,
        claim=experiment.claim,
        published=experiment.published,
        criterion=criterion.in_words,
        gate=experiment.gate,
        verdict=_verdict(experiment.gate, outcome.met),
        met=outcome.met,
        quantity=outcome.quantity,
        measured=measured,
        low=low,
        high=high,
        per_seed=per_seed,
        cells=outcome.cells,
        notes=outcome.notes,
    )


def _verdict(gate: bool, met: bool | None) -> Verdict:
    if met is None:
        return "not applicable"
    if not gate:
        return "report-only"
    return "holds" if met else "does not hold"


def _paired_gain(criterion: PairedGain, scores: ArmScores) -> _Outcome:
    cells, differences = [], []
    of_budget: dict[int, list[dict[Person, float]]] = {}
    of_domain: dict[str, list[dict[Person, float]]] = {}
    for labels in criterion.labels:
        arm, other = criterion.arms_of(labels)
        for domain in criterion.domains:
            mine, theirs = scores.of(arm, domain, criterion.metric), scores.of(other, domain, criterion.metric)
            gain = _minus(mine, theirs)
            cells.append(_cell(domain, labels, {criterion.method: mine, criterion.other: theirs}, gain))
            differences.append(gain)
            of_budget.setdefault(labels, []).append(gain)
            of_domain.setdefault(domain, []).append(theirs)
    wins = _wins(cells, criterion.cell_margin)
    budgets = {labels: _mean(gains) for labels, gains in of_budget.items()}
    demands = [budgets[labels] >= floor for labels, floor in criterion.floors.items()]
    if criterion.above is not None:
        demands.append(_mean(differences) > criterion.above)
    if criterion.cells_share is not None:
        demands.append(_enough(wins, len(cells), criterion.cells_share))
    notes = [f"above {criterion.cell_margin:g} in {wins} of {len(cells)} cells"]
    notes.append("by label budget: " + ", ".join(f"n = {n}: {gain:+.1f}" for n, gain in budgets.items()))
    for labels in criterion.also:
        arm, other = criterion.arms_of(labels)
        beside = [
            _minus(scores.of(arm, d, criterion.metric), scores.of(other, d, criterion.metric))
            for d in criterion.domains
        ]
        notes.append(f"beside, n = {labels}: {_mean(beside):+.1f}")
    levels = {domain: _mean(values) for domain, values in of_domain.items()}
    full = {} if criterion.ceiling is None else {d: v for d, v in levels.items() if v > criterion.ceiling}
    if full:
        reached = ", ".join(f"{value:.1f} on {domain}" for domain, value in full.items())
        notes.insert(0, f"ceiling: {criterion.other} reaches {reached}, above {criterion.ceiling:g}")
    return _Outcome(
        met=None if full else all(demands),
        quantity=f"{criterion.metric}, {criterion.method} - {criterion.other}",
        differences=differences,
        cells=tuple(cells),
        notes=tuple(notes),
    )


def _step_trend(criterion: StepTrend, scores: ArmScores) -> _Outcome:
    # Imported here: it takes most of a second.
    from scipy import stats

    cells, drops, steps, means = [], [], [], []
    for labels in criterion.labels:
        arms = criterion.arms_of(labels)
        for domain in criterion.domains:
            of_step = {f"t = {arm.step}": scores.of(arm, domain) for arm in arms}
            first, *_, last = of_step.values()
            drops.append(_minus(first, last))
            cells.append(_cell(domain, labels, of_step, drops[-1]))
            steps += [arm.step for arm in arms]
            means += [_mean([values]) for values in of_step.values()]
    # Equal scores at all timesteps have no rank correlation, and are no trend.
    correlation = float(stats.spearmanr(steps, means).statistic) if len(set(means)) > 1 else 0.0
    return _Outcome(
        met=correlation < criterion.correlation_below and _mean(drops) >= criterion.drop,
        quantity=f"dice, t = {criterion.steps[0]} - t = {criterion.steps[-1]}",
        differences=drops,
        cells=tuple(cells),
        notes=(f"Spearman(t, dice) over {len(means)} cell means: {correlation:.2f}",),
    )


def _vote_gain(criterion: VoteGain, scores: ArmScores) -> _Outcome:
    cells, differences = [], []
    for labels in criterion.labels:
        vote, *singles = criterion.arms_of(labels)
        for domain in criterion.domains:
            means = {"vote": scores.of(vote, domain)}
            means |= {
                f"t = {step}": scores.of(arm, domain) for step, arm in zip(criterion.singles, singles, strict=True)
            }
            best = max((values for name, values in means.items() if name != "vote"), key=lambda values: _mean([values]))
            differences.append(_minus(means["vote"], best))
            cells.append(_cell(domain, labels, means, differences[-1]))
    wins = _wins(cells, criterion.cell_margin)
    return _Outcome(
        met=_enough(wins, len(cells), criterion.cells_share),
        quantity=f"dice, {criterion.method}: vote - best single timestep of each cell",
        differences=differences,
        cells=tuple(cells),
        notes=(f"above {criterion.cell_margin:g} in {wins} of {len(cells)} cells",),
    )


def _precision_trade(criterion: PrecisionTrade, scores: ArmScores) -> _Outcome:
    cells, precision, recall = [], [], []
    for labels in criterion.labels:
        arm, other = criterion.arms_of(labels)
        for domain in criterion.domains:
            means = {
                f"{method} {metric}": scores.of(one, domain, metric)
                for method, one in ((criterion.method, arm), (criterion.other, other))
                for metric in ("precision", "recall")
            }
            mine, my_recall, theirs, their_recall = means.values()
            precision.append(_minus(mine, theirs))
            recall.append(_minus(my_recall, their_recall))
            cells.append(_cell(domain, labels, means, precision[-1]))
    gained, given = _mean(precision), _mean(recall)
    _, low, high = _interval(recall)
    return _Outcome(
        met=gained > 0 and abs(given) < gained,
        quantity=f"precision, {criterion.method} - {criterion.other}",
        differences=precision,
        cells=tuple(cells),
        notes=(f"recall: {given:+.1f} ({low:+.1f} to {high:+.1f})",),
    )


_EVALUATORS: dict[Literal["paired-gain", "step-trend", "vote-gain", "precision-trade"], Callable[..., _Outcome]] = {
    "paired-gain": _paired_gain,
    "step-trend": _step_trend,
    "vote-gain": _vote_gain,
    "precision-trade": _precision_trade,
}


def _minus(mine: Mapping[Person, float], theirs: Mapping[Person, float]) -> dict[Person, float]:
    if set(mine) != set(theirs):
        raise InputDataError("two arms were scored on different persons", fix="run the same command again")
    return {person: value - theirs[person] for person, value in mine.items()}


def _mean(parts: Sequence[Mapping[Person, float]]) -> float:
    return float(np.mean([value for part in parts for value in part.values()]))


def _mean_of_seed(parts: Sequence[Mapping[Person, float]], seed: int) -> float:
    return float(np.mean([value for part in parts for (one, _), value in part.items() if one == seed]))


def _interval(parts: Sequence[Mapping[Person, float]]) -> tuple[float, float, float]:
    """Return the mean over cells and persons and its interval, whole persons resampled."""
    values = [value for part in parts for value in part.values()]
    persons = [person for part in parts for person in part]
    low, high = bootstrap_interval(values, _SEED, groups=persons)
    return float(np.mean(values)), low, high


def _cell(
    domain: str, labels: int, values: Mapping[str, Mapping[Person, float]], difference: Mapping[Person, float]
) -> CellFinding:
    mean, low, high = _interval([difference])
    means = {name: _mean([points]) for name, points in values.items()}
    return CellFinding(domain=domain, labels=labels, means=means, difference=mean, low=low, high=high)


def _wins(cells: Sequence[CellFinding], margin: float) -> int:
    return sum(cell.difference is not None and cell.difference > margin for cell in cells)


def _enough(wins: int, cells: int, share: float) -> bool:
    return wins >= math.ceil((share - _ROUNDING) * cells)
