"""Whether criteria about few labels and other scanners are met."""

import math
from collections.abc import Sequence

from medsegdiff_cli.artifacts.criteria_few_labels import PairedGain, PrecisionTrade, StepTrend, VoteGain
from medsegdiff_cli.artifacts.reproduction import CellFinding
from medsegdiff_cli.evaluation.trend_scores import ArmScores, Outcome, Person, cell, interval, mean, minus

# Two thirds of six cells are four, also where the share is written as 0.667.
_ROUNDING = 2e-3


def paired_gain(criterion: PairedGain, scores: ArmScores) -> Outcome:
    """Compare two methods in cells."""
    cells, differences = [], []
    of_budget: dict[int, list[dict[Person, float]]] = {}
    of_domain: dict[str, list[dict[Person, float]]] = {}
    for labels in criterion.labels:
        arm, other = criterion.arms_of(labels)
        for domain in criterion.domains:
            mine, theirs = scores.of(arm, domain, criterion.metric), scores.of(other, domain, criterion.metric)
            gain = minus(mine, theirs)
            cells.append(cell(domain, labels, {criterion.method: mine, criterion.other: theirs}, gain))
            differences.append(gain)
            of_budget.setdefault(labels, []).append(gain)
            of_domain.setdefault(domain, []).append(theirs)
    wins = _wins(cells, criterion.cell_margin)
    budgets = {labels: mean(gains) for labels, gains in of_budget.items()}
    demands = [budgets[labels] >= floor for labels, floor in criterion.floors.items()]
    if criterion.above is not None:
        demands.append(mean(differences) > criterion.above)
    if criterion.cells_share is not None:
        demands.append(_enough(wins, len(cells), criterion.cells_share))
    notes = [f"above {criterion.cell_margin:g} in {wins} of {len(cells)} cells"]
    notes.append("by label budget: " + ", ".join(f"n = {n}: {gain:+.1f}" for n, gain in budgets.items()))
    for labels in criterion.also:
        arm, other = criterion.arms_of(labels)
        beside = [
            minus(scores.of(arm, d, criterion.metric), scores.of(other, d, criterion.metric)) for d in criterion.domains
        ]
        notes.append(f"beside, n = {labels}: {mean(beside):+.1f}")
    levels = {domain: mean(values) for domain, values in of_domain.items()}
    full = {} if criterion.ceiling is None else {d: v for d, v in levels.items() if v > criterion.ceiling}
    if full:
        reached = ", ".join(f"{value:.1f} on {domain}" for domain, value in full.items())
        notes.insert(0, f"ceiling: {criterion.other} reaches {reached}, above {criterion.ceiling:g}")
    return Outcome(
        met=None if full else all(demands),
        quantity=f"{criterion.metric}, {criterion.method} - {criterion.other}",
        differences=differences,
        cells=tuple(cells),
        notes=tuple(notes),
    )


def step_trend(criterion: StepTrend, scores: ArmScores) -> Outcome:
    """Compare classifiers of single timesteps."""
    # Imported here: it takes most of a second.
    from scipy import stats

    cells, drops, steps, means = [], [], [], []
    for labels in criterion.labels:
        arms = criterion.arms_of(labels)
        for domain in criterion.domains:
            of_step = {f"t = {arm.step}": scores.of(arm, domain) for arm in arms}
            first, *_, last = of_step.values()
            drops.append(minus(first, last))
            cells.append(cell(domain, labels, of_step, drops[-1]))
            steps += [arm.step for arm in arms]
            means += [mean([values]) for values in of_step.values()]
    # Equal scores at all timesteps have no rank correlation, and are no trend.
    correlation = float(stats.spearmanr(steps, means).statistic) if len(set(means)) > 1 else 0.0
    return Outcome(
        met=correlation < criterion.correlation_below and mean(drops) >= criterion.drop,
        quantity=f"dice, t = {criterion.steps[0]} - t = {criterion.steps[-1]}",
        differences=drops,
        cells=tuple(cells),
        notes=(f"Spearman(t, dice) over {len(means)} cell means: {correlation:.2f}",),
    )


def vote_gain(criterion: VoteGain, scores: ArmScores) -> Outcome:
    """Compare a vote with the best single timestep of each cell."""
    cells, differences = [], []
    for labels in criterion.labels:
        vote, *singles = criterion.arms_of(labels)
        for domain in criterion.domains:
            means = {"vote": scores.of(vote, domain)}
            means |= {
                f"t = {step}": scores.of(arm, domain) for step, arm in zip(criterion.singles, singles, strict=True)
            }
            best = max((values for name, values in means.items() if name != "vote"), key=lambda values: mean([values]))
            differences.append(minus(means["vote"], best))
            cells.append(cell(domain, labels, means, differences[-1]))
    wins = _wins(cells, criterion.cell_margin)
    return Outcome(
        met=_enough(wins, len(cells), criterion.cells_share),
        quantity=f"dice, {criterion.method}: vote - best single timestep of each cell",
        differences=differences,
        cells=tuple(cells),
        notes=(f"above {criterion.cell_margin:g} in {wins} of {len(cells)} cells",),
    )


def precision_trade(criterion: PrecisionTrade, scores: ArmScores) -> Outcome:
    """Compare precision and recall of two methods."""
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
            precision.append(minus(mine, theirs))
            recall.append(minus(my_recall, their_recall))
            cells.append(cell(domain, labels, means, precision[-1]))
    gained, given = mean(precision), mean(recall)
    _, low, high = interval(recall)
    return Outcome(
        met=gained > 0 and abs(given) < gained,
        quantity=f"precision, {criterion.method} - {criterion.other}",
        differences=precision,
        cells=tuple(cells),
        notes=(f"recall: {given:+.1f} ({low:+.1f} to {high:+.1f})",),
    )


def _wins(cells: Sequence[CellFinding], margin: float) -> int:
    return sum(cell.difference is not None and cell.difference > margin for cell in cells)


def _enough(wins: int, cells: int, share: float) -> bool:
    return wins >= math.ceil((share - _ROUNDING) * cells)
