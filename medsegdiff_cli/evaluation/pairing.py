"""What must hold, or be said, before two tables of scores are compared case by case."""

from collections.abc import Mapping, Sequence

from medsegdiff_cli.artifacts.comparison import Unpaired
from medsegdiff_cli.artifacts.score_rows import ScoreRows
from medsegdiff_cli.artifacts.scores import DISTANCES
from medsegdiff_cli.errors import UsageError

_NAMED = 5


def named(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def one_word_a_case(tables: Sequence[ScoreRows], column: str) -> dict[str, str]:
    """Return case to domain (or group), which all tables that name it must agree on.

    Raises:
        UsageError: two tables name different ones.
    """
    words: dict[str, str] = {}
    for table in tables:
        for case, word in table.words(column).items():
            if words.setdefault(case, word) != word:
                what = f"case '{case}' has the {column} '{words[case]}' in one set and '{word}' in '{table.label}'"
                raise UsageError(what, fix="evaluate both against the same dataset")
    return words


def group_of_cases(tables: Sequence[ScoreRows], wanted: bool | None) -> dict[str, str] | None:
    """Return case to patient, or None when cases are to be taken as independent.

    A case without a named patient is a patient of its own.

    Args:
        wanted: None takes patients where at least one has several cases.

    Raises:
        UsageError: patients are wanted, but no table names any.
    """
    if wanted is False:
        return None
    words = one_word_a_case(tables, "group")
    if wanted and not words:
        what = "the scores name no patients (column 'group')"
        raise UsageError(what, where="--groups", fix="evaluate against the dataset, whose groups are then written")
    cases = {case for table in tables for case in table.cases}
    # Marked, so that a case called like somebody's patient is not taken for that patient's.
    groups = {case: f"group {words[case]}" if case in words else f"case {case}" for case in sorted(cases)}
    return groups if wanted or len(set(groups.values())) < len(groups) else None


def comparability_warnings(
    baseline: ScoreRows, other: ScoreRows, metric: str, unpaired: Unpaired, domains: Mapping[str, str]
) -> list[str]:
    """Return sentences on what is in no row, and on what makes a comparison doubtful.

    Raises:
        UsageError: the values have different units or tolerances, so that differences mean nothing.
    """
    _demand_one_unit(baseline, other, metric)
    warnings = []
    for left_out, label in ((unpaired.only_in_baseline, baseline.label), (unpaired.only_in_scores, other.label)):
        if left_out:
            pair = f"'{other.label}' against '{baseline.label}'"
            warnings.append(f"{pair}: cases only in '{label}', in no row: {len(left_out)} ({named(left_out)}).")
    alone = sorted(set(baseline.class_names) ^ set(other.class_names))
    if alone:
        warnings.append(f"Classes that are not in both '{baseline.label}' and '{other.label}': {named(alone)}.")
    shared = sorted(set(baseline.cases) & set(other.cases))
    lacking = [
        f"{case} ({name})"
        for case in shared
        for name in baseline.class_names
        if name in other.class_names and ((case, name) in baseline.rows) + ((case, name) in other.rows) == 1
    ]
    if lacking:
        warnings.append(f"Rows that only one of '{baseline.label}' and '{other.label}' has: {named(lacking)}.")
    differing = [
        case
        for case in shared
        if any(
            other.rows[case, name].get("n_ref") != baseline.rows[case, name].get("n_ref")
            for name in baseline.class_names
            if (case, name) in baseline.rows and (case, name) in other.rows
        )
    ]
    if differing:
        warnings.append(
            f"'{baseline.label}' and '{other.label}' were scored against references of different size "
            f"(other labels, or another grid) in {len(differing)} of {len(shared)} cases: {named(differing)}."
        )
    for table in (baseline, other):
        absent = sorted(case for case, flag in table.words("missing_prediction").items() if flag == "1")
        if absent:
            text = f"Cases without a prediction in '{table.label}', which have the worst scores"
            warnings.append(f"{text}: {len(absent)} ({named(absent)}).")
    several = len(set(domains.values())) > 1
    homeless = [case for case in shared if several and case not in domains]
    if homeless:
        warnings.append(f"Cases of no domain, in the rows of all cases only: {len(homeless)} ({named(homeless)}).")
    return warnings


def _demand_one_unit(baseline: ScoreRows, other: ScoreRows, metric: str) -> None:
    column = "volume_unit" if metric.startswith("volume_") else "distance_unit"
    if metric in (*DISTANCES, "nsd") or metric.startswith("volume_"):
        ours, theirs = baseline.words(column), other.words(column)
        mixed = sorted(case for case in ours.keys() & theirs.keys() if ours[case] != theirs[case])
        if mixed:
            what = f"'{metric}' of case '{mixed[0]}' is in {ours[mixed[0]]} and in {theirs[mixed[0]]}"
            raise UsageError(what, where=f"{len(mixed)} cases", fix="evaluate both on the same grid")
    tolerances = {table.nsd_tolerance for table in (baseline, other)} - {None}
    if metric == "nsd" and len(tolerances) > 1:
        what = f"NSD with different tolerances: '{baseline.label}' and '{other.label}'"
        raise UsageError(what, where=str(sorted(tolerances, key=str)), fix="evaluate both with one --nsd-tolerance")
