"""Whether criteria about walks from noise to a mask are met."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medsegdiff_cli.artifacts.criteria import CellCriterion
from medsegdiff_cli.artifacts.criteria_mask_diffusion import (
    BestStrategy,
    Between,
    DrawRange,
    LeakMargin,
    Parity,
    SamplerGap,
    SteadySteps,
    StepCounts,
)
from medsegdiff_cli.artifacts.experiment_arms import Arm, LeakProbe, WalkProbe
from medsegdiff_cli.artifacts.reproduction import CellFinding
from medsegdiff_cli.evaluation.trend_scores import ArmScores, Outcome, Person, cell, mean, minus

Points = dict[Person, float]


def best_strategy(criterion: BestStrategy, scores: ArmScores) -> Outcome:
    """Compare a strategy with each other one."""
    rows: list[CellFinding] = []
    gains: dict[str, list[Points]] = {rival: [] for rival in criterion.rivals}
    for domain, labels, (arm, *rivals) in _cells(criterion):
        mine = _ends(scores, arm, domain)
        for rival in rivals:
            theirs = _ends(scores, rival, domain)
            gains[rival.method].append(minus(mine, theirs))
            means = {criterion.method: mine, "other strategy": theirs}
            rows.append(cell(domain, labels, means, gains[rival.method][-1], row=rival.method))
    differences = gains[criterion.other]
    p = _one_sided_p(differences)
    best = max(gains, key=lambda rival: -mean(gains[rival]))
    behind = -mean(gains[best])
    return Outcome(
        met=mean(differences) > 0 and p < criterion.p_below and behind <= criterion.margin,
        quantity=f"dice, {criterion.method} - {criterion.other}",
        differences=differences,
        cells=tuple(rows),
        notes=(
            f"one-sided Wilcoxon over test images: p = {p:.2g}",
            f"best other strategy: {best}, {behind:+.2f} to {criterion.method}",
        ),
    )


def steady_steps(criterion: SteadySteps, scores: ArmScores) -> Outcome:
    """Compare the steps of a walk."""
    rows, of_method = [], []
    falls: list[float] = []
    for domain, labels, arms in _cells(criterion):
        for arm in arms:
            steps = {f"step {n}": scores.of(arm, domain, WalkProbe.dice_at(n)) for n in _numbers(criterion.steps)}
            change = minus(steps[f"step {criterion.steps}"], steps["step 1"])
            rows.append(cell(domain, labels, steps, change, row=arm.method))
            if arm.method == criterion.method:
                of_method.append(change)
                falls.append(_largest_drop(list(rows[-1].means.values())))
    return Outcome(
        met=mean(of_method) >= -criterion.fall and max(falls) <= criterion.largest_drop,
        quantity=f"dice, {criterion.method}: step {criterion.steps} - step 1",
        differences=of_method,
        cells=tuple(rows),
        notes=(f"largest drop below an earlier step: {max(falls):.2f}",),
    )


def leak_margin(criterion: LeakMargin, scores: ArmScores) -> Outcome:
    """Compare how far two methods follow a wrong mask that they are fed."""
    rows: list[CellFinding] = []
    margins: dict[int, list[Points]] = {t: [] for t in (*criterion.timesteps, *criterion.also)}
    for domain, labels, (arm, other) in _cells(criterion):
        for t, found in margins.items():
            means = {
                f"{one.method} to {what}": scores.of(one, domain, metric)
                for one in (other, arm)
                for what, metric in (("fed mask", LeakProbe.to_fed(t)), ("truth", LeakProbe.to_truth(t)))
            }
            theirs, _, mine, _ = means.values()
            found.append(minus(theirs, mine))
            rows.append(cell(domain, labels, means, found[-1], row=f"t = {t}"))
    least = min(criterion.timesteps, key=lambda t: mean(margins[t]))
    return Outcome(
        met=mean(margins[least]) >= criterion.least,
        quantity=f"dice to the fed mask at t = {least}, {criterion.other} - {criterion.method}",
        differences=margins[least],
        cells=tuple(rows),
        notes=("by timestep: " + ", ".join(f"t = {t}: {mean(found):+.2f}" for t, found in margins.items()),),
    )


def step_counts(criterion: StepCounts, scores: ArmScores) -> Outcome:
    """Compare numbers of sampling steps."""
    of_count: dict[int, list[Points]] = {count: [] for count in criterion.counts}
    places: list[tuple[str, int]] = []
    for domain, labels, arms in _cells(criterion):
        places.append((domain, labels))
        for count, arm in zip(criterion.counts, arms, strict=True):
            of_count[count].append(_ends(scores, arm, domain))
    best = max(of_count, key=lambda count: mean(of_count[count]))
    worst = min(of_count, key=lambda count: mean(of_count[count]))
    spreads = [minus(high, low) for high, low in zip(of_count[best], of_count[worst], strict=True)]
    rows = [
        cell(*place, {f"{n} steps": found[number] for n, found in of_count.items()}, spread, row=criterion.method)
        for number, (place, spread) in enumerate(zip(places, spreads, strict=True))
    ]
    return Outcome(
        met=mean(spreads) <= criterion.spread,
        quantity=f"dice, {criterion.method}: {best} - {worst} steps, the best and the worst",
        differences=spreads,
        cells=tuple(rows),
    )


def draw_range(criterion: DrawRange, scores: ArmScores) -> Outcome:
    """Compare how far draws are apart after the last step and after the first."""
    rows, differences, first, last = [], [], [], []
    for domain, labels, (arm,) in _cells(criterion):
        ranges = {f"step {n}": scores.of(arm, domain, WalkProbe.range_at(n)) for n in _numbers(criterion.steps)}
        first.append(ranges["step 1"])
        last.append(ranges[f"step {criterion.steps}"])
        differences.append(minus(last[-1], first[-1], criterion.ratio))
        rows.append(cell(domain, labels, ranges, differences[-1], row=arm.method))
    begun, ended = mean(first), mean(last)
    ratio = f"{ended / begun:.2f}" if begun else "undefined, no range at step 1"
    return Outcome(
        met=ended <= criterion.ratio * begun,
        quantity=(
            f"range of dice over {criterion.draws} draws, {criterion.method}: "
            f"step {criterion.steps} - {criterion.ratio:g} x step 1"
        ),
        differences=differences,
        cells=tuple(rows),
        notes=(f"mean range {begun:.2f} after step 1, {ended:.2f} after step {criterion.steps}: ratio {ratio}",),
    )


def sampler_gap(criterion: SamplerGap, scores: ArmScores) -> Outcome:
    """Compare two samplers, of a method and of another."""
    rows: list[CellFinding] = []
    gaps: dict[str, list[Points]] = {criterion.method: [], criterion.other: []}
    one, other = criterion.samplers
    for domain, labels, arms in _cells(criterion):
        for first, second in (arms[:2], arms[2:]):
            means: dict[str, Points] = {one: _ends(scores, first, domain), other: _ends(scores, second, domain)}
            gaps[first.method].append(minus(means[one], means[other]))
            rows.append(cell(domain, labels, means, gaps[first.method][-1], row=first.method))
    mine, theirs = (abs(mean(gaps[method])) for method in (criterion.method, criterion.other))
    return Outcome(
        met=mine <= criterion.largest and mine <= theirs + criterion.beyond,
        quantity=f"dice, {criterion.method}: {one} - {other}",
        differences=gaps[criterion.method],
        cells=tuple(rows),
        notes=(f"|gap| of {criterion.method} {mine:.2f}, of {criterion.other} {theirs:.2f}",),
    )


def parity(criterion: Parity, scores: ArmScores) -> Outcome:
    """Compare a method with one that does not walk."""
    rows, differences = [], []
    for domain, labels, (arm, other) in _cells(criterion):
        means = {criterion.method: _ends(scores, arm, domain), criterion.other: scores.of(other, domain)}
        differences.append(minus(means[criterion.method], means[criterion.other]))
        rows.append(cell(domain, labels, means, differences[-1]))
    return Outcome(
        met=abs(mean(differences)) <= criterion.within_points,
        quantity=f"dice, {criterion.method} - {criterion.other}",
        differences=differences,
        cells=tuple(rows),
    )


def between(criterion: Between, scores: ArmScores) -> Outcome:
    """Compare a method with the two that it should lie between."""
    rows, above, below = [], [], []
    for domain, labels, arms in _cells(criterion):
        means = {arm.method: _ends(scores, arm, domain) for arm in arms}
        lower, middle, upper = means.values()
        above.append(minus(middle, lower))
        below.append(minus(upper, middle))
        rows.append(cell(domain, labels, means, above[-1]))
    return Outcome(
        met=mean(above) >= 0 and mean(below) >= 0,
        quantity=f"dice, {criterion.method} - {criterion.lower}",
        differences=above,
        cells=tuple(rows),
        notes=(f"{criterion.upper} - {criterion.method}: {mean(below):+.2f}",),
    )


def _cells(criterion: CellCriterion) -> list[tuple[str, int, tuple[Arm, ...]]]:
    """Return domain, label budget and arms of each cell."""
    return [(domain, n, criterion.arms_of(n)) for n in criterion.labels for domain in criterion.domains]


def _ends(scores: ArmScores, arm: Arm, domain: str) -> Points:
    """Return the points of the estimate that walks end with."""
    assert arm.sampling_steps is not None
    return scores.of(arm, domain, WalkProbe.dice_at(arm.sampling_steps))


def _numbers(steps: int) -> range:
    return range(1, steps + 1)


def _largest_drop(means: Sequence[float]) -> float:
    """Return how far a mean lies below the highest before it; 0 where none does."""
    return max(high - now for high, now in zip(np.maximum.accumulate(means), means, strict=True))


def _one_sided_p(parts: Sequence[Mapping[Person, float]]) -> float:
    """Return Wilcoxon's p for a positive centre, over units averaged over seeds and cells; 1 without a difference."""
    # Imported here: it takes most of a second.
    from scipy import stats

    of_unit: dict[object, list[float]] = {}
    for part in parts:
        for person, value in part.items():
            of_unit.setdefault(person.unit, []).append(value)
    means = [math.fsum(values) / len(values) for values in of_unit.values()]
    different = [value for value in means if value != 0]
    return float(stats.wilcoxon(different, alternative="greater").pvalue) if different else 1.0
