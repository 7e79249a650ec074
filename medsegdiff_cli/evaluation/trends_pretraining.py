"""Whether criteria about pretrainings are met."""

import math

from medsegdiff_cli.artifacts.criteria_pretraining import AheadOf
from medsegdiff_cli.artifacts.reproduction import CellFinding
from medsegdiff_cli.evaluation.trend_scores import ArmScores, Outcome, Person, cell, interval, mean, mean_of_seed, minus

# Two thirds of three seeds are two, also where the share is written as 0.667.
_ROUNDING = 2e-3


def ahead_of(criterion: AheadOf, scores: ArmScores) -> Outcome:
    """Compare every method with every other in cells."""
    cells: list[CellFinding] = []
    gains: dict[str, list[dict[Person, float]]] = {}
    for labels in criterion.labels:
        arms = {arm.method: arm for arm in criterion.arms_of(labels)}
        for domain in criterion.domains:
            points = {name: scores.of(arm, domain, criterion.metric) for name, arm in arms.items()}
            for method in criterion.methods:
                for other in criterion.others:
                    pair = f"{method} - {other}"
                    gain = minus(points[method], points[other])
                    gains.setdefault(pair, []).append(gain)
                    means = {"method": points[method], "other": points[other]}
                    cells.append(cell(domain, labels, means, gain, row=pair))
    differences = [gain for of_pair in gains.values() for gain in of_pair]
    by_seed = [mean_of_seed(differences, seed) for seed in scores.seeds]
    demands = []
    if criterion.margin is not None:
        demands.append(all(mean(of_pair) >= -criterion.margin for of_pair in gains.values()))
    if criterion.above is not None:
        demands.append(mean(differences) > criterion.above)
    if criterion.seeds_share is not None:
        wins = sum(gain > 0 for gain in by_seed)
        demands.append(wins >= math.ceil((criterion.seeds_share - _ROUNDING) * len(by_seed)))
    return Outcome(
        met=all(demands),
        quantity=f"{criterion.metric}, {' and '.join(criterion.methods)} - {' and '.join(criterion.others)}",
        differences=differences,
        cells=tuple(cells),
        notes=tuple(_in_words(pair, of_pair) for pair, of_pair in gains.items()) if len(gains) > 1 else (),
    )


def _in_words(pair: str, differences: list[dict[Person, float]]) -> str:
    middle, low, high = interval(differences)
    return f"{pair}: {middle:+.1f} ({low:+.1f} to {high:+.1f})"
