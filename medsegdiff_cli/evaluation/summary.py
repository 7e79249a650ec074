"""Summaries of many cases; how values are averaged is always named (`artifacts.scores.DEFINITIONS`)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from medsegdiff_cli.artifacts.scores import (
    METRICS,
    RATIOS,
    CaseScore,
    ClassScore,
    Scores,
    ScoreSummary,
    Statistic,
    VoxelCounts,
)
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.metrics.overlap import Overlap


def collect_scores(
    cases: Sequence[CaseScore],
    classes: Mapping[str, tuple[int, ...]],
    *,
    nsd_tolerance: float,
    failures: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Scores:
    """Summarise scored cases: all of them, per group and per domain.

    Groups are summarised when at least one of them has two cases; else they say no more than the cases do.
    """
    names = tuple(classes)
    groups, domains = _split_by(cases, "group"), _split_by(cases, "domain")
    if all(len(members) < 2 for members in groups.values()):
        groups = {}
    mixed = len({case.distance_unit for case in cases}) > 1
    warning = "Some images have no physical spacing: means of distances mix px and mm."
    return Scores(
        classes=dict(classes),
        cases=tuple(cases),
        nsd_tolerance=nsd_tolerance,
        overall=summarise(cases, names),
        groups={group: summarise(members, names) for group, members in groups.items()},
        domains={domain: summarise(members, names) for domain, members in domains.items()},
        failures=dict(failures or {}),
        notes=(*notes, warning) if mixed and warning not in notes else tuple(notes),
        provenance=dict(provenance or {}),
    )


def merge_scores(parts: Sequence[Scores], provenance: Mapping[str, Any] | None = None) -> Scores:
    """Summarise the cases of several score files as one set, for example the folds of a cross-validation.

    Raises:
        UsageError: the parts differ in classes or tolerance, or share a case.
    """
    model = parts[0]
    for part in parts[1:]:
        if part.classes != model.classes:
            what = f"scores of different classes: {list(model.classes)} and {list(part.classes)}"
            raise UsageError(what, fix="merge scores of one dataset")
        if part.nsd_tolerance != model.nsd_tolerance:
            what = f"scores with different NSD tolerances: {model.nsd_tolerance:g} and {part.nsd_tolerance:g}"
            raise UsageError(what, fix="evaluate all of them with one tolerance")
    cases = sorted((case for part in parts for case in part.cases), key=lambda case: case.case)
    twice = sorted({first.case for first, second in pairwise(cases) if first.case == second.case})
    if twice:
        raise UsageError(f"cases {twice[:5]} are in more than one set of scores", fix="merge disjoint sets")
    return collect_scores(
        cases,
        model.classes,
        nsd_tolerance=model.nsd_tolerance,
        failures={case: reason for part in parts for case, reason in part.failures.items()},
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        provenance=provenance,
    )


def summarise(cases: Sequence[CaseScore], class_names: Sequence[str]) -> ScoreSummary:
    """Aggregate the scores of `cases`; undefined values are left out of every mean, and counted."""
    rows = {name: [case.classes[index] for case in cases] for index, name in enumerate(class_names)}
    per_class = {
        name: {metric: statistic_of([getattr(score, metric) for score in scores]) for metric in METRICS}
        for name, scores in rows.items()
    }
    dataset_level = {name: _pooled_ratios(scores) for name, scores in rows.items()}
    per_case_then_class = {
        metric: statistic_of([_mean([getattr(score, metric) for score in case.classes]) for case in cases])
        for metric in METRICS
    }
    named = {"jaccard_per_image": per_case_then_class["iou"].mean, "miou": _miou(cases, dataset_level)}
    return ScoreSummary(
        n_cases=len(cases),
        missing_predictions=sum(case.missing_prediction for case in cases),
        missed={name: sum(score.missed for score in scores) for name, scores in rows.items()},
        spurious={name: sum(score.spurious for score in scores) for name, scores in rows.items()},
        undefined={name: sum(score.undefined for score in scores) for name, scores in rows.items()},
        per_class=per_class,
        per_case_then_class=per_case_then_class,
        case_by_class={
            metric: statistic_of([per_class[name][metric].mean for name in class_names]) for metric in METRICS
        },
        dataset_level=dataset_level,
        dataset_level_mean={ratio: _mean([ratios[ratio] for ratios in dataset_level.values()]) for ratio in RATIOS},
        named=named,
    )


def _miou(cases: Sequence[CaseScore], dataset_level: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """Return the mean IoU of the whole set of cases, background included; None when a case does not know that.

    The metric of LEDM (Baranchuk et al. 2022) and, on faces, of Sauvalle & Salzmann 2024. Differs from LEDM's code: a
    class that occurs nowhere is left out; there it counts as 0.
    """
    backgrounds = [case.background for case in cases if case.background is not None]
    if len(backgrounds) < len(cases):
        return None
    return _mean([_pooled_ratios(backgrounds)["iou"], *(ratios["iou"] for ratios in dataset_level.values())])


def _split_by(cases: Sequence[CaseScore], attribute: str) -> dict[str, list[CaseScore]]:
    names = sorted({name for case in cases if (name := getattr(case, attribute)) is not None})
    return {name: [case for case in cases if getattr(case, attribute) == name] for name in names}


def statistic_of(values: Sequence[float | None]) -> Statistic:
    """Return the statistic of the values that are defined, and the count of the others."""
    defined = [value for value in values if value is not None]
    return Statistic(
        mean=_mean(defined),
        std=float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        median=float(np.median(defined)) if defined else None,
        n=len(defined),
        undefined=len(values) - len(defined),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _pooled_ratios(scores: Sequence[ClassScore | VoxelCounts]) -> dict[str, float | None]:
    """Return the ratios of the counts of all cases together; None when the class is nowhere."""
    total = Overlap(tp=0, fp=0, fn=0, tn=0)
    for score in scores:
        total += Overlap(tp=score.tp, fp=score.fp, fn=score.fn, tn=score.tn)
    is_nowhere = total.n_pred + total.n_ref == 0
    return {ratio: None if is_nowhere else getattr(total, ratio) for ratio in RATIOS}
