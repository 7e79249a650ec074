"""`msd evaluate`: predictions against references of any layout."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, DatasetFolder, Part, open_dataset
from medsegdiff_cli.artifacts.prediction_folder import PredictionInfo, read_prediction_info
from medsegdiff_cli.artifacts.scores import Scores, read_scores, write_scores
from medsegdiff_cli.errors import InputDataError, PartialFailure, UsageError
from medsegdiff_cli.evaluation.demand import demand
from medsegdiff_cli.evaluation.evaluate import evaluate_folder
from medsegdiff_cli.evaluation.label_pair import ScorePair, ScoreSettings
from medsegdiff_cli.evaluation.summary import merge_scores
from medsegdiff_cli.imaging.reading import case_name_of, ending_of
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import (
    CROSS_VALIDATION,
    DATASET_JSON,
    EVALUATION_LOCK,
    FOLD_PREFIX,
    PICTURES,
    SUMMARY_JSON,
    VALIDATION,
    Workspace,
    find_dataset,
)
from medsegdiff_cli.workflows.convert import case_name, mask_files
from medsegdiff_cli.workflows.plan_grid import find_plan, on_plan_grid

# The test part comes first: predictions of it are what is published.
_PARTS: tuple[Part, ...] = ("Ts", "Tr")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What `msd evaluate` was asked for.

    Attributes:
        reference: a labels folder, a dataset folder, or any tree of masks.
        cases: only these; empty takes every reference case that is expected in the predictions.
        labels: glob of masks below `reference`; label_suffix, label_values and threshold as in `msd convert folder`.
        label_values: raw value in the masks -> class name.
        observer: further observer's labels of a dataset folder (`labelsTs_OBSERVER`).
        demands: "dice=0.85" and the like.
        grid: "native", where users look at segmentations; "plan", the grid of the network.
        workspace: where the run that predicted is looked up, for its plan.
    """

    predictions: Path
    reference: Path
    cases: Sequence[str] = ()
    labels: str | None = None
    label_suffix: str = ""
    label_values: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    observer: str | None = None
    nsd_tolerance: float = 2.0
    allow_missing: bool = False
    demands: Sequence[str] = ()
    grid: Literal["native", "plan"] = "native"
    workspace: Workspace | None = None
    workers: int = 0


def evaluate_predictions(
    request: EvaluateRequest,
    on_case: Callable[[str], None] | None = None,
    on_scores: Callable[[Scores], None] | None = None,
) -> Scores:
    """Score a folder of predictions and write `summary.json` and `scores.csv` into it.

    Args:
        on_scores: called with the scores once they are written, before a failure is raised.

    Raises:
        InputDataError: nothing to compare. PartialFailure: some cases could not be scored (the others are written).
        BelowDemandedScore: a demand is not met (the scores are written).
        UsageError: another process is scoring them. ResourceError: the folder cannot be written.
    """
    info = read_prediction_info(request.predictions)
    with locked(request.predictions / EVALUATION_LOCK):
        return _evaluate(request, info, on_case, on_scores)


def _evaluate(
    request: EvaluateRequest,
    info: PredictionInfo,
    on_case: Callable[[str], None] | None,
    on_scores: Callable[[Scores], None] | None,
) -> Scores:
    pairs, settings = find_pairs(request, info), score_settings(request, info)
    if request.grid == "plan":
        plan = find_plan(request.predictions, info, [pair.case for pair in pairs], request.workspace)
        with on_plan_grid(pairs, settings, plan, info.config, Path(info.dataset_path)) as moved:
            scores = moved.with_original_files(_score(request, info, moved.pairs, moved.settings, on_case))
    else:
        scores = _score(request, info, pairs, settings, on_case)
    write_scores(request.predictions, scores)
    if on_scores is not None:
        on_scores(scores)
    if scores.failures:
        raise PartialFailure(
            f"{len(scores.failures)} of {len(pairs)} cases could not be scored: {', '.join(list(scores.failures)[:5])}",
            where=str(request.predictions),
            fix=f"see `failures` in {SUMMARY_JSON}",
        )
    demand(scores, request.demands)
    return scores


def _score(
    request: EvaluateRequest,
    info: PredictionInfo,
    pairs: Sequence[ScorePair],
    settings: ScoreSettings,
    on_case: Callable[[str], None] | None,
) -> Scores:
    return evaluate_folder(
        pairs,
        settings,
        allow_missing=request.allow_missing,
        workers=request.workers,
        notes=notes_on(pairs, info),
        provenance=provenance_of(info),
        on_case=on_case,
    )


def provenance_of(info: PredictionInfo) -> dict[str, Any]:
    """Return where predictions come from, to stand beside their scores."""
    keys = ("method", "config", "models", "model_digests", "msd_version", "command", "seed", "train_cases")
    return {key: getattr(info, key) for key in (*keys, "validation_labels_used_for_selection")}


def notes_on(pairs: Sequence[ScorePair], info: PredictionInfo) -> tuple[str, ...]:
    """Return the sentences that must stand beside scores of these pairs."""
    return (*info.notes, *_no_test(pairs, info))


def _no_test(pairs: Sequence[ScorePair], info: PredictionInfo) -> list[str]:
    seen = {pair.case for pair in pairs if pair.prediction is not None} & set(info.trained_on)
    if not seen:
        return []
    return [f"Cases named like ones that the model was trained on: {len(seen)} of {len(pairs)}; no test if the same."]


def evaluate_folds(run: Path, demands: Sequence[str] = ()) -> Scores:
    """Merge the validation scores of all folds of a run into `RUN/crossval/`.

    Raises:
        UsageError: no fold has been validated. BelowDemandedScore: a demand is not met.
    """
    folders = sorted(path.parent for path in run.glob(f"{FOLD_PREFIX}*/{VALIDATION}/{SUMMARY_JSON}"))
    if not folders:
        raise UsageError(f"'{run}' has no validated fold", where="--cv", fix="give the run's folder (…/METHOD__CONFIG)")
    merged = merge_scores([read_scores(folder) for folder in folders], {"folds": [f.parent.name for f in folders]})
    write_scores(run / CROSS_VALIDATION, merged)
    demand(merged, demands)
    return merged


def find_reference(reference: str, workspace: Workspace) -> Path:
    """Return the folder of a reference given as a path, or as a dataset's id or name."""
    path = Path(reference).expanduser()
    return path if path.is_dir() else find_dataset(reference, workspace)


def read_case_list(path: Path | None) -> tuple[str, ...]:
    """Return the cases named in a file, one a line.

    Raises:
        UsageError: the file is missing or empty.
    """
    if path is None:
        return ()
    lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
    if not lines:
        raise UsageError(f"'{path}' is missing or names no case", where="--cases", fix="write one case a line")
    return tuple(lines)


def find_pairs(request: EvaluateRequest, info: PredictionInfo) -> list[ScorePair]:
    """Match predictions and references by case name.

    Raises:
        InputDataError: no reference fits.
    """
    predicted = label_maps_by_case(request.predictions)
    folder = open_dataset(request.reference) if (request.reference / DATASET_JSON).is_file() else None
    if folder is not None:
        references, details = _dataset_references(folder, request.observer, predicted)
    else:
        references, details = _of_known_cases(
            _tree_references(request), info, predicted, all_of_them=bool(request.cases)
        )
    wanted = request.cases or sorted(references)
    missing = [case for case in request.cases if case not in references]
    if missing or not wanted:
        raise InputDataError(
            f"no reference for {missing[:5]}" if missing else "no reference label found",
            where=str(request.reference),
            fix="check --labels, --label-suffix and --cases",
        )
    return [
        ScorePair(
            case=case,
            prediction=predicted.get(case),
            reference=references[case],
            group=details.get(case, (None, None))[0],
            domain=details.get(case, (None, None))[1],
        )
        for case in wanted
    ]


def score_settings(request: EvaluateRequest, info: PredictionInfo) -> ScoreSettings:
    """Return how label values are understood.

    Raises:
        UsageError: `label_values` name a class that the predictions have not.
    """
    values = info.classes
    by_name = {name: numbers[0] for name, numbers in values.items() if len(numbers) == 1}
    unknown = sorted(set(request.label_values.values()) - set(by_name) - {"background"})
    if unknown:
        raise UsageError(
            f"the predictions have no class {unknown}", where="--label-map", fix=f"classes: {sorted(by_name)}"
        )
    raw = {_integer(value): by_name.get(name, 0) for value, name in request.label_values.items()}
    if not raw and not (request.reference / DATASET_JSON).is_file():
        raw = _source_values(info, by_name)
    return ScoreSettings(
        classes=values,
        ignore_value=info.ignore_value,
        other_values=sorted({value for numbers in values.values() for value in numbers}),
        nsd_tolerance=request.nsd_tolerance,
        reference_values=raw,
        reference_threshold=request.threshold,
    )


def _integer(text: str) -> int:
    if not text.lstrip("-").isdigit():
        raise UsageError(f"'{text}' is no label value", where="--label-map", fix="write VALUE:NAME, e.g. 255:lung")
    return int(text)


def _source_values(info: PredictionInfo, by_name: Mapping[str, int]) -> dict[int, int]:
    """Return vendor value -> dataset value, where conversion renumbered the classes."""
    return {
        value: by_name[name]
        for name, value in info.source_label_values.items()
        if isinstance(value, int) and name in by_name and value != by_name[name]
    }


def _dataset_references(
    folder: DatasetFolder, observer: str | None, predicted: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[str, tuple[str | None, str | None]]]:
    """Return the dataset's labels: of the test part when predictions of it are there, else of the training part."""
    references: dict[str, Path] = {}
    details: dict[str, tuple[str | None, str | None]] = {}
    for part in _PARTS:
        cases = folder.cases(part)
        if not any(case.case in predicted for case in cases):
            continue
        for case in cases:
            path = case.label
            if observer is not None:
                path = folder.path / f"labels{part}_{observer}" / f"{case.case}{folder.info.file_ending}"
            # A training set is rarely predicted as a whole; only its test part is expected to be complete.
            if path is not None and path.is_file() and (part == "Ts" or case.case in predicted):
                references[case.case] = path
                details[case.case] = _group_and_domain(case)
    return references, details


def _of_known_cases(
    references: dict[str, Path], info: PredictionInfo, predicted: Mapping[str, Path], *, all_of_them: bool
) -> tuple[dict[str, Path], dict[str, tuple[str | None, str | None]]]:
    """Return the references, and groups and domains from the dataset that the predicting model was trained on.

    A vendor's tree holds training cases as well; without a prediction they are left out, as for a dataset folder.
    """
    path = Path(info.dataset_path)
    if not (path / DATASET_JSON).is_file():
        return references, {}
    folder = open_dataset(path)
    parts = {case.case: (part, case) for part in get_args(Part) for case in folder.cases(part)}
    kept = {
        name: file
        for name, file in references.items()
        if all_of_them or name in predicted or name not in parts or parts[name][0] == "Ts"
    }
    if len(kept) < len(references):
        log.warning("%d references of training cases have no prediction: not scored", len(references) - len(kept))
    return kept, {name: _group_and_domain(case) for name, (_, case) in parts.items()}


def _group_and_domain(case: CaseFiles) -> tuple[str | None, str | None]:
    return case.group if case.group != case.case else None, case.domain or None


def _tree_references(request: EvaluateRequest) -> dict[str, Path]:
    """Return the masks of a folder or tree by case, named as `msd convert folder` names cases."""
    if not request.reference.is_dir():
        raise UsageError(f"'{request.reference}' is no folder", where="REFERENCE", fix="give a folder of labels")
    references: dict[str, Path] = {}
    for path in mask_files(request.reference, request.labels):
        case = case_name(path, request.label_suffix)
        if case is None:
            continue
        if case in references:
            raise InputDataError(
                f"two files could be the reference of '{case}'",
                where=f"{references[case]} and {path}",
                fix="say which are masks: --labels GLOB or --label-suffix SUFFIX",
            )
        references[case] = path
    return references


def label_maps_by_case(folder: Path) -> dict[str, Path]:
    """Return the predicted label maps of a folder.

    Raises:
        UsageError: it is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is no folder", where="PREDICTIONS", fix="give the OUTPUT of `msd predict`")
    return {case_name_of(path): path for path in _images_in(folder)}


def _images_in(folder: Path) -> list[Path]:
    images = [path for path in sorted(folder.iterdir()) if path.is_file() and ending_of(path) and path.name[0] != "."]
    return [path for path in images if path.name not in PICTURES]
