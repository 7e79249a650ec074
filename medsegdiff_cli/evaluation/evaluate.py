"""Score many cases from their files, in one or several processes."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from medsegdiff_cli.artifacts.scores import DISTANCES, RATIOS, CaseScore, ClassScore, Scores
from medsegdiff_cli.errors import InputDataError, MsdError
from medsegdiff_cli.evaluation.case_scores import score_case, volume_unit
from medsegdiff_cli.evaluation.label_pair import ScorePair, ScoreSettings, read_pair
from medsegdiff_cli.evaluation.summary import collect_scores
from medsegdiff_cli.metrics.surface import image_diagonal_mm
from medsegdiff_cli.workers import in_processes

log = logging.getLogger(__name__)


def evaluate_folder(
    pairs: Sequence[ScorePair],
    settings: ScoreSettings,
    *,
    allow_missing: bool = False,
    workers: int = 1,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    on_case: Callable[[str], None] | None = None,
) -> Scores:
    """Score many cases; a case that cannot be scored is listed in `failures`, the others go on.

    Args:
        pairs: one per case; their order is kept.
        settings: label values and tolerance.
        allow_missing: leave cases without a prediction out instead of giving them the worst scores.
        workers: processes; up to 1 works in this one. The scores do not depend on it.
        notes: sentences to keep beside the scores.
        provenance: where the predictions come from.
        on_case: called with the case name after each case, for a progress bar.

    Raises:
        InputDataError: no case at all could be scored, or a case name occurs twice.
        ResourceError: a worker was killed or stands still.
    """
    names = [pair.case for pair in pairs]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputDataError(f"cases {twice[:5]} occur more than once", fix="give every case one name")
    left_out = [pair.case for pair in pairs if allow_missing and pair.prediction is None]
    chosen = [pair for pair in pairs if not (allow_missing and pair.prediction is None)]
    cases: list[CaseScore] = []
    failures: dict[str, str] = {}
    for pair, outcome in zip(chosen, score_pairs(chosen, settings, workers), strict=True):
        if isinstance(outcome, CaseScore):
            cases.append(outcome)
        else:
            log.warning("case %s is not scored: %s", pair.case, outcome)
            failures[pair.case] = outcome
        if on_case is not None:
            on_case(pair.case)
    if not cases:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in list(failures.items())[:3])
        raise InputDataError(f"none of {len(pairs)} cases could be scored", where=reasons or None)
    said = (
        [f"Cases left out because they have no prediction (--allow-missing): {len(left_out)} of {len(pairs)}."]
        if left_out
        else []
    )
    return collect_scores(
        cases,
        settings.classes,
        nsd_tolerance=settings.nsd_tolerance,
        failures=failures,
        notes=(*notes, *said),
        provenance=provenance,
    )


def score_pair(pair: ScorePair, settings: ScoreSettings) -> CaseScore:
    """Read and score one case; without a prediction it gets the worst scores in every class.

    Raises:
        InputDataError: as `read_pair`.
    """
    labels = read_pair(pair, settings)
    geometry, is_physical = labels.geometry, labels.geometry.has_physical_spacing
    classes, background = score_case(
        labels.prediction,
        labels.reference,
        settings.classes,
        geometry.spacing_mm,
        ignore_value=settings.ignore_value,
        nsd_tolerance_mm=settings.nsd_tolerance,
        has_physical_spacing=is_physical,
    )
    diagonal = image_diagonal_mm(geometry.shape, geometry.spacing_mm)
    if pair.prediction is None:
        classes = [_worst(score, diagonal) for score in classes]
    return CaseScore(
        case=pair.case,
        group=pair.group,
        domain=pair.domain,
        reference_file=str(pair.reference),
        prediction_file=None if pair.prediction is None else str(pair.prediction),
        missing_prediction=pair.prediction is None,
        distance_unit="mm" if is_physical else "px",
        volume_unit=volume_unit(geometry.n_dims, is_physical),
        image_diagonal=diagonal,
        classes=tuple(classes),
        background=background,
    )


def score_pairs(pairs: Sequence[ScorePair], settings: ScoreSettings, workers: int) -> Iterator[CaseScore | str]:
    """Yield the score of each pair, or why there is none, in their order; no pair occurs twice.

    Args:
        workers: processes; up to 1 works in this one.

    Raises:
        ResourceError: a worker died or stands still.
    """
    work = partial(_score_or_reason, settings=settings)
    if workers <= 1 or len(pairs) <= 1:
        yield from map(work, pairs)
        return
    ready: dict[int, CaseScore | str] = {}
    numbers = {pair: number for number, pair in enumerate(pairs)}
    expected = 0
    for pair, future in in_processes(work, pairs, workers, name=attrgetter("case"), kind="scoring"):
        ready[numbers[pair]] = future.result()
        while expected in ready:
            yield ready.pop(expected)
            expected += 1


def _score_or_reason(pair: ScorePair, settings: ScoreSettings) -> CaseScore | str:
    try:
        return score_pair(pair, settings)
    except MsdError as error:
        return str(error)


def _worst(score: ClassScore, diagonal: float) -> ClassScore:
    """Give a class the worst scores, also where it is absent: nobody predicted that it is."""
    worst = {**dict.fromkeys((*RATIOS, "nsd"), 0.0), **dict.fromkeys(DISTANCES, diagonal), "undefined": False}
    return score.model_copy(update=worst)
