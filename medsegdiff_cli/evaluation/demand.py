"""Demanded scores: `--fail-below dice=0.85`."""

import math
from collections.abc import Sequence

from medsegdiff_cli.artifacts.scores import DISTANCES, NAMED, RATIOS, Scores
from medsegdiff_cli.errors import BelowDemandedScore, UsageError, did_you_mean

_DEMANDABLE = (*RATIOS, "nsd", *DISTANCES, *NAMED)


def demand(scores: Scores, demands: Sequence[str]) -> None:
    """Compare means (case by class, nnU-Net's foreground mean, or a named one) with what is demanded.

    Args:
        scores: the scores of a set of cases.
        demands: "METRIC=NUMBER"; ratios and nsd must reach the number, distances must not exceed it.

    Raises:
        UsageError: a demand that is not METRIC=NUMBER, or an unknown metric.
        BelowDemandedScore: the scores that fall short, all in one message.
    """
    short = []
    for metric, demanded in (_parse(text) for text in demands):
        overall = scores.overall
        value = overall.named.get(metric) if metric in NAMED else overall.case_by_class[metric].mean
        at_most = metric in DISTANCES
        if value is None or (value > demanded if at_most else value < demanded):
            found = "undefined" if value is None else f"{value:.4f}"
            short.append(f"{metric} is {found}, demanded is {'at most' if at_most else 'at least'} {demanded:g}")
    if short:
        raise BelowDemandedScore("; ".join(short), where=f"mean over {scores.overall.n_cases} cases and all classes")


def _parse(text: str) -> tuple[str, float]:
    metric, _, number = text.partition("=")
    metric = metric.strip().lower()
    if metric not in _DEMANDABLE:
        raise UsageError(f"unknown metric '{metric}'", where="--fail-below", fix=did_you_mean(metric, _DEMANDABLE))
    try:
        demanded = float(number)
    except ValueError:
        demanded = math.nan
    # Every score would pass a demand of NaN.
    if math.isnan(demanded):
        fix = f"write it as {metric}=0.85"
        raise UsageError(f"'{text}' is not METRIC=NUMBER", where="--fail-below", fix=fix)
    return metric, demanded
