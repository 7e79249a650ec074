"""How scores change from step to step, and how far members are apart: Figures 3 and 4 and Table 3 of Fu et al. 2023.

The paper scores one draw a case in the figures; here each step's label map is of all draws fused. Its Hausdorff
distance leaves out cases in which a structure was missed; here they have the image's diagonal, as everywhere in msd.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medsegdiff_cli.artifacts.scores import CaseScore, ClassScore, Statistic
from medsegdiff_cli.artifacts.step_scores import METRICS, CurvePoint, MemberSpread, Metric, Place, ScoredMap, StepChange
from medsegdiff_cli.evaluation.summary import statistic_of


def curves(maps: Sequence[ScoredMap], class_names: Sequence[str]) -> Iterator[CurvePoint]:
    """Yield class by class, metric by metric, a point a step: the scores of all cases there.

    Args:
        maps: those of members are left out.
        class_names: of each score, in their order.
    """
    steps = _fused_by_place(maps)
    for name in _with_mean(class_names):
        for metric in METRICS:
            for place, scores in steps.items():
                lost = [score for case in scores for score in _of_class(case, name)]
                yield CurvePoint(
                    step=place.step,
                    timestep=place.timestep,
                    class_name=name,
                    metric=metric,
                    values=statistic_of([_value(score, name, metric) for score in scores]),
                    missed=sum(score.missed for score in lost),
                    spurious=sum(score.spurious for score in lost),
                )


def changes(maps: Sequence[ScoredMap], class_names: Sequence[str]) -> Iterator[StepChange]:
    """Yield, for each class and metric, the last step minus the first one, case by case; nothing for one step."""
    steps = _fused_by_place(maps)
    if len(steps) < 2:
        return
    begin, end = min(steps), max(steps)
    first, last = ({score.case: score for score in steps[place]} for place in (begin, end))
    for name in _with_mean(class_names):
        for metric in METRICS:
            pairs = [(_value(first[case], name, metric), _value(last[case], name, metric)) for case in first]
            differences = [None if a is None or b is None else b - a for a, b in pairs]
            towards = 1 if metric == "dice" else -1
            gains = [towards * value for value in differences if value is not None]
            yield StepChange(
                first_timestep=begin.timestep,
                last_timestep=end.timestep,
                class_name=name,
                metric=metric,
                better="higher" if towards > 0 else "lower",
                values=statistic_of(differences),
                improved=sum(gain > 0 for gain in gains),
                unchanged=sum(gain == 0 for gain in gains),
                worsened=sum(gain < 0 for gain in gains),
                improved_share=sum(gain > 0 for gain in gains) / len(gains) if gains else None,
            )


def spreads(maps: Sequence[ScoredMap], class_names: Sequence[str]) -> Iterator[MemberSpread]:
    """Yield, for each class, metric and step, the largest minus the smallest score of each case's members."""
    steps: dict[Place | None, list[CaseScore]] = {}
    for scored in maps:
        if scored.member is not None:
            steps.setdefault(scored.place, []).append(scored.score)
    for name in _with_mean(class_names):
        for metric in METRICS:
            for place, scores in steps.items():
                members: dict[str, list[float | None]] = {}
                for score in scores:
                    members.setdefault(score.case, []).append(_value(score, name, metric))
                yield MemberSpread(
                    step=None if place is None else place.step,
                    timestep=None if place is None else place.timestep,
                    class_name=name,
                    metric=metric,
                    members=max(map(len, members.values())),
                    values=_range_statistic(members),
                )


def _range_statistic(members: Mapping[str, Sequence[float | None]]) -> Statistic:
    ranges: list[float | None] = []
    for values in members.values():
        defined = [value for value in values if value is not None]
        ranges.append(max(defined) - min(defined) if len(defined) == len(values) else None)
    return statistic_of(ranges)


def _with_mean(class_names: Sequence[str]) -> tuple[str | None, ...]:
    """Return the mean over classes, then each class where there are several."""
    return (None, *class_names) if len(class_names) > 1 else (None,)


def _fused_by_place(maps: Sequence[ScoredMap]) -> dict[Place, list[CaseScore]]:
    places: dict[Place, list[CaseScore]] = {}
    for scored in maps:
        if scored.member is None and scored.place is not None:
            places.setdefault(scored.place, []).append(scored.score)
    return places


def _of_class(case: CaseScore, class_name: str | None) -> list[ClassScore]:
    return [score for score in case.classes if class_name in (None, score.class_name)]


def _value(case: CaseScore, class_name: str | None, metric: Metric) -> float | None:
    """Return a class's value, or the mean over the classes that have one; None where none has."""
    values = [getattr(score, metric) for score in _of_class(case, class_name)]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
