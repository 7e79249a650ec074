"""Checks that compare cases: leaks between parts, classes that never occur, grids that disagree."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.splits import Splits
from medsegdiff_cli.checking.case_content import CaseFacts
from medsegdiff_cli.checking.problem import Problem, Severity


def check_across(
    dataset: DatasetFolder, facts: Sequence[CaseFacts], scheme: LabelScheme | None, folds: Splits | None = None
) -> list[Problem]:
    """Compare all cases that could be read, and the two sides of every fold."""
    problems = [*_check_same_content(dataset, facts), *_check_groups(dataset, facts), *_check_orientation(facts)]
    if folds is not None:
        problems += _check_folds(facts, folds)
    if scheme is not None:
        problems += [*_check_absent_classes(dataset, facts, scheme), *_check_scheme(scheme)]
    return problems


def _check_same_content(dataset: DatasetFolder, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    by_digest: dict[str, list[CaseFacts]] = defaultdict(list)
    for fact in facts:
        if fact.content_digest:
            by_digest[fact.content_digest].append(fact)
    for same in by_digest.values():
        if len(same) < 2:
            continue
        parts = {fact.part for fact in same}
        names = ", ".join(f"images{fact.part}/{fact.case}" for fact in same)
        is_leak = "Ts" in parts and len(parts) > 1
        allowed = parts == {"Ts", "Un"} and dataset.info.unlabelled_test_overlap == "allowed"
        severity: Severity = "note" if allowed else "error" if is_leak else "warning"
        yield Problem(
            severity=severity,
            code="test-leak" if is_leak else "duplicate-image",
            case=same[0].case,
            message=f"the very same image occurs {len(same)} times: {names}",
            fix="" if allowed else "keep one of them" + (": test images must not serve training" if is_leak else ""),
        )


def _check_groups(dataset: DatasetFolder, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    parts_of: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        if fact.case in dataset.info.groups:
            parts_of[fact.group].add(fact.part)
    for group, parts in sorted(parts_of.items()):
        others = sorted(parts - {"Ts"})
        if "Ts" in parts and others:
            allowed = others == ["Un"] and dataset.info.unlabelled_test_overlap == "allowed"
            yield Problem(
                severity="note" if allowed else "error" if "Tr" in others else "warning",
                code="group-leak",
                message=f"group '{group}' is in the test set and in images{' and images'.join(others)}",
                fix="" if allowed else "keep all images of a group (patient) in one part",
            )


def _check_folds(facts: Sequence[CaseFacts], folds: Splits) -> Iterator[Problem]:
    """A patient, or an image under two names, that trains and validates makes the validation's scores too good."""
    training = {fact.case: fact for fact in facts if fact.part == "Tr"}
    told: set[str] = set()
    for index, fold in enumerate(folds.folds):
        trained = [training[case] for case in fold.train if case in training]
        of_group = {fact.group: fact.case for fact in trained}
        of_content = {fact.content_digest: fact.case for fact in trained if fact.content_digest}
        for fact in (training[case] for case in fold.val if case in training):
            if fact.group in of_group:
                code, what = "group-leak", f"group '{fact.group}' ({of_group[fact.group]} and {fact.case})"
            elif fact.content_digest in of_content:
                code, what = "fold-leak", f"the very same image ({of_content[fact.content_digest]} and {fact.case})"
            else:
                continue
            key = fact.group if code == "group-leak" else fact.content_digest
            if key not in told:
                told.add(key)
                fix = "keep one of the images, or name their group in dataset.json (`groups`) and delete old folds"
                message = f"fold {index} trains and validates on {what}"
                yield Problem(severity="error", code=code, case=fact.case, message=message, fix=fix)


def _check_orientation(facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    n_dims = Counter(fact.n_dims for fact in facts if fact.n_dims)
    if len(n_dims) > 1:
        usual = n_dims.most_common(1)[0][0]
        odd = sorted(fact.case for fact in facts if fact.n_dims not in (0, usual))
        message = f"2D and 3D images in one dataset; {len(odd)} are not {usual}D: {', '.join(odd[:5])}"
        yield Problem(severity="error", code="mixed-dimensions", message=message, fix="make two datasets of them")
    orientations = Counter(fact.orientation for fact in facts if fact.orientation)
    if len(orientations) > 1:
        usual_orientation = orientations.most_common(1)[0][0]
        odd = sorted(fact.case for fact in facts if fact.orientation not in ("", usual_orientation))
        counted = ", ".join(f"{name} ({n})" for name, n in orientations.most_common())
        message = f"axes point in different directions: {counted}; unusual: {', '.join(odd[:5])}"
        fix = "fine if intended; else reorient the images and labels to one orientation"
        yield Problem(severity="warning", code="orientation-varies", message=message, fix=fix)


def _check_absent_classes(dataset: DatasetFolder, facts: Sequence[CaseFacts], scheme: LabelScheme) -> Iterator[Problem]:
    # Few samples of a generative model need not show every class of the images that it learnt from.
    severity: Severity = "warning" if dataset.info.synthetic else "error"
    labels = [fact.label_values for fact in facts if fact.part == "Tr" and fact.label_values is not None]
    seen = frozenset().union(*labels)
    for name, values in scheme.file_values().items():
        if labels and not seen & set(values):
            message = (
                f"class '{name}' (value {', '.join(map(str, values))}) is in none of {len(labels)} training labels"
            )
            fix = "remove it from `labels`, or correct the label files"
            yield Problem(severity=severity, code="class-absent", message=message, fix=fix)


def _check_scheme(scheme: LabelScheme) -> Iterator[Problem]:
    fix = "`msd convert nnunet` renumbers them"
    if scheme.values != tuple(range(len(scheme.values))):
        message = f"label values {list(scheme.values)} are not consecutive: fine here, refused by nnU-Net"
        yield Problem(severity="note", code="labels-not-consecutive", message=message, fix=fix)
    if scheme.ignore_value is not None and scheme.ignore_value != max(scheme.values) + 1:
        message = f"ignore is {scheme.ignore_value}, nnU-Net wants {max(scheme.values) + 1}: fine here"
        yield Problem(severity="note", code="ignore-not-last", message=message, fix=fix)
