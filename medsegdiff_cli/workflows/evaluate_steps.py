"""`msd evaluate --per-step --per-member`: the label maps of sampling's steps and of members against references."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, read_prediction_info
from medsegdiff_cli.artifacts.scores import CaseScore
from medsegdiff_cli.artifacts.step_scores import Place, ScoredMap, StepScores, write_step_scores
from medsegdiff_cli.errors import InputDataError, PartialFailure, UsageError
from medsegdiff_cli.evaluation.evaluate import score_pairs
from medsegdiff_cli.evaluation.label_pair import ScorePair, ScoreSettings
from medsegdiff_cli.evaluation.steps import changes, curves, spreads
from medsegdiff_cli.imaging.reading import ending_of
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import EVALUATION_LOCK, MEMBERS, STEP_CURVES_PNG, STEPS, STEPS_JSON
from medsegdiff_cli.workflows.evaluate import (
    EvaluateRequest,
    find_pairs,
    notes_on,
    provenance_of,
    score_settings,
)
from medsegdiff_cli.workflows.plan_grid import find_plan, on_plan_grid

log = logging.getLogger(__name__)

_Key = tuple[Place | None, int | None]


@dataclass(frozen=True, kw_only=True)
class EvaluateStepsRequest:
    """What `msd evaluate` was asked for beyond the scores of predictions.

    Attributes:
        common: where predictions and references are, and how they are read.
        per_step: score `steps/CASE_tTTTT`.
        per_member: score `members/CASE_NNN_tTTTT`, or `members/CASE_NNN` where those are not there.
    """

    common: EvaluateRequest
    per_step: bool = False
    per_member: bool = False


def evaluate_steps(
    request: EvaluateStepsRequest,
    on_case: Callable[[str], None] | None = None,
    on_scores: Callable[[StepScores], None] | None = None,
) -> StepScores:
    """Score steps and members, and write `steps.json`, `steps.csv`, `step_curves.csv` and `step_curves.png`.

    Args:
        on_case: called with the case's name after each label map.
        on_scores: called with the result once it is written, before a failure is raised.

    Raises:
        InputDataError: label maps of steps or members are missing, or nothing could be scored.
        UsageError: the method has no steps, there is one member only, or another process is scoring.
        PartialFailure: some cases could not be scored (the others are written).
    """
    folder = request.common.predictions
    info = read_prediction_info(folder)
    with locked(folder / EVALUATION_LOCK):
        every = find_pairs(request.common, info)
        pairs = [pair for pair in every if pair.prediction is not None]
        if not pairs:
            raise InputDataError("none of the reference cases has a prediction", where=str(folder))
        maps = _maps_of_steps(pairs, info, folder) if request.per_step else {}
        members = _maps_of_members(pairs, info, folder) if request.per_member else {}
        scored, failures = _scored(request.common, info, {**maps, **members}, on_case)
        result = _result(request, info, pairs, scored, failures, n_absent=len(every) - len(pairs))
        write_step_scores(folder, result, scored)
        _draw(folder, result)
    if on_scores is not None:
        on_scores(result)
    if failures:
        raise PartialFailure(
            f"{len(failures)} of {len(pairs)} cases could not be scored: {', '.join(list(failures)[:5])}",
            where=str(folder),
            fix=f"see `failures` in {STEPS_JSON}",
        )
    return result


def _result(
    request: EvaluateStepsRequest,
    info: PredictionInfo,
    pairs: Sequence[ScorePair],
    scored: Sequence[ScoredMap],
    failures: Mapping[str, str],
    n_absent: int,
) -> StepScores:
    names = tuple(info.classes)
    notes = [*notes_on(pairs, info)]
    if n_absent:
        notes.append(f"Reference cases without a prediction, in no number here: {n_absent}.")
    if request.common.grid == "plan":
        notes.append("Scores are on the plan's grid, not on the images' own.")
    numbers = {one.member for one in scored if one.member is not None}
    return StepScores(
        classes=names,
        distance_units=tuple(sorted({one.score.distance_unit for one in scored})),
        timesteps=info.visited_timesteps if request.per_step else (),
        members=len(numbers),
        cases=tuple(dict.fromkeys(one.score.case for one in scored)),
        curves=tuple(curves(scored, names)),
        changes=tuple(changes(scored, names)),
        spreads=tuple(spreads(scored, names)),
        failures=dict(failures),
        notes=tuple(notes),
        provenance=provenance_of(info),
    )


def _draw(folder: Path, result: StepScores) -> None:
    from medsegdiff_cli.reporting.step_curves import draw_step_curves  # matplotlib is slow to import

    if result.curves or len({spread.step for spread in result.spreads}) > 1:
        draw_step_curves(folder / STEP_CURVES_PNG, result)


def _maps_of_steps(pairs: Sequence[ScorePair], info: PredictionInfo, folder: Path) -> dict[_Key, list[ScorePair]]:
    """Return the label maps of all members fused, step by step."""
    if not info.visited_timesteps:
        raise UsageError(
            f"predictions of '{info.method}' have no steps",
            where=str(folder),
            fix="--per-step is for methods that sample; predict with --save-steps",
        )
    return {
        (place, None): _instead(pairs, folder / STEPS, f"_t{place.timestep:04d}", "--save-steps")
        for place in _places(info)
    }


def _maps_of_members(pairs: Sequence[ScorePair], info: PredictionInfo, folder: Path) -> dict[_Key, list[ScorePair]]:
    """Return the label maps of each member: at each step where these were saved, else at the end."""
    members, first = folder / MEMBERS, pairs[0]
    at_steps = [f"_t{place.timestep:04d}" for place in _places(info)]
    has_steps = bool(at_steps) and _file(first, members, f"_000{at_steps[0]}").is_file()
    ends: list[tuple[Place | None, str]] = [(None, "")]
    if has_steps:
        ends = list(zip(_places(info), at_steps, strict=True))
    count = 0
    while _file(first, members, f"_{count:03d}{ends[-1][1]}").is_file():
        count += 1
    if count == 1:
        what = f"one member of case '{first.case}' is there; a spread needs two"
        raise UsageError(what, where=str(members), fix="predict with --draws 5 --save-members")
    return {
        (place, number): _instead(pairs, members, f"_{number:03d}{end}", "--save-members")
        for number in range(max(count, 2))  # none at all: the first one is named as missing
        for place, end in ends
    }


def _places(info: PredictionInfo) -> list[Place]:
    return [Place(number, timestep) for number, timestep in enumerate(info.visited_timesteps, 1)]


def _instead(pairs: Sequence[ScorePair], folder: Path, suffix: str, flag: str) -> list[ScorePair]:
    """Return the pairs with other label maps instead of the predictions.

    Raises:
        InputDataError: some are missing.
    """
    files = [_file(pair, folder, suffix) for pair in pairs]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputDataError(
            f"'{missing[0].name}' is missing ({len(missing)} of {len(files)} cases have none)",
            where=str(folder),
            fix=f"predict with {flag} into another folder, or with --overwrite",
        )
    return [replace(pair, prediction=file) for pair, file in zip(pairs, files, strict=True)]


def _file(pair: ScorePair, folder: Path, suffix: str) -> Path:
    return folder / f"{pair.case}{suffix}{ending_of(pair.prediction) if pair.prediction else ''}"


def _scored(
    request: EvaluateRequest,
    info: PredictionInfo,
    maps: Mapping[_Key, Sequence[ScorePair]],
    on_case: Callable[[str], None] | None,
) -> tuple[list[ScoredMap], dict[str, str]]:
    """Score all label maps; a case with one that cannot be scored is left out, and returned with the reason."""
    settings = score_settings(request, info)
    keys = [key for key, pairs in maps.items() for _ in pairs]
    every = [pair for pairs in maps.values() for pair in pairs]
    outcomes = _on_plan_grid if request.grid == "plan" else _native
    scored: list[ScoredMap] = []
    failures: dict[str, str] = {}
    for (place, member), pair, outcome in zip(keys, every, outcomes(request, info, maps, settings), strict=True):
        if isinstance(outcome, str):
            log.warning("case %s is not scored: %s", pair.case, outcome)
            failures.setdefault(pair.case, outcome)
        else:
            scored.append(ScoredMap(place=place, member=member, score=outcome))
        if on_case is not None:
            on_case(pair.case)
    kept = [one for one in scored if one.score.case not in failures]
    if not kept:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in list(failures.items())[:3])
        raise InputDataError(f"none of {len(failures)} cases could be scored", where=reasons)
    return kept, failures


def _native(
    request: EvaluateRequest,
    info: PredictionInfo,
    maps: Mapping[_Key, Sequence[ScorePair]],
    settings: ScoreSettings,
) -> Iterator[CaseScore | str]:
    yield from score_pairs([pair for pairs in maps.values() for pair in pairs], settings, request.workers)


def _on_plan_grid(
    request: EvaluateRequest,
    info: PredictionInfo,
    maps: Mapping[_Key, Sequence[ScorePair]],
    settings: ScoreSettings,
) -> Iterator[CaseScore | str]:
    """Score one set of label maps after the other: temporary files are called like cases."""
    for pairs in maps.values():
        plan = find_plan(request.predictions, info, [pair.case for pair in pairs], request.workspace)
        with on_plan_grid(pairs, settings, plan, info.config, Path(info.dataset_path)) as moved:
            yield from score_pairs(moved.pairs, moved.settings, request.workers)
