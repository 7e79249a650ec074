"""Trends: whether the scores of an experiment's arms meet its criterion, with intervals over test persons.

Where seeds have test persons of their own, a person is the same on every scanner and at every label budget of a seed:
hence whole persons are resampled, with all their cells. Where all seeds share their test images, whole images are,
with all their seeds. The interval says nothing about trainings; each seed's own figure stands beside it for that.
"""

from collections.abc import Callable
from typing import Any

from medsegdiff_cli.artifacts.experiment import Experiment
from medsegdiff_cli.artifacts.reproduction import Finding, Verdict
from medsegdiff_cli.evaluation.trend_scores import ArmScores, Outcome, interval, mean_of_seed
from medsegdiff_cli.evaluation.trends_few_labels import paired_gain, precision_trade, step_trend, vote_gain
from medsegdiff_cli.evaluation.trends_mask_diffusion import (
    best_strategy,
    between,
    draw_range,
    leak_margin,
    parity,
    sampler_gap,
    steady_steps,
    step_counts,
)
from medsegdiff_cli.evaluation.trends_pretraining import ahead_of

__all__ = ["ArmScores", "judge"]

# Trends of walks are hundredths of a point.
_DECIMALS_OF_WALKS = 2
_FEW_LABELS: dict[str, Callable[..., Outcome]] = {
    "paired-gain": paired_gain,
    "step-trend": step_trend,
    "vote-gain": vote_gain,
    "precision-trade": precision_trade,
}
_PRETRAINING: dict[str, Callable[..., Outcome]] = {"ahead-of": ahead_of}
_WALKS: dict[str, Callable[..., Outcome]] = {
    "best-strategy": best_strategy,
    "steady-steps": steady_steps,
    "leak-margin": leak_margin,
    "step-counts": step_counts,
    "draw-range": draw_range,
    "sampler-gap": sampler_gap,
    "parity": parity,
    "between": between,
}


def judge(experiment: Experiment, scores: ArmScores) -> Finding:
    """Return what came of an experiment.

    Raises:
        InputDataError: an arm has no scores, or two arms were scored on different persons.
    """
    criterion: Any = experiment.criterion
    outcome = {**_FEW_LABELS, **_PRETRAINING, **_WALKS}[criterion.kind](criterion, scores)
    measured, low, high = interval(outcome.differences)
    per_seed = {seed: mean_of_seed(outcome.differences, seed) for seed in scores.seeds}
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
        decimals=_DECIMALS_OF_WALKS if criterion.kind in _WALKS else 1,
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
