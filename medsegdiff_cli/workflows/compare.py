"""`msd compare`: find sets of scores by path or run, name them, and compare them with one of them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsegdiff_cli.artifacts.comparison import Comparison, write_comparison_csv
from medsegdiff_cli.artifacts.score_rows import ScoreRows, holds_scores, read_score_rows
from medsegdiff_cli.artifacts.spreadsheet import text_of
from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean
from medsegdiff_cli.evaluation.compare import ComparisonSettings, compare_scores
from medsegdiff_cli.evaluation.pairing import one_word_a_case
from medsegdiff_cli.paths import FOLD_PREFIX, VALIDATION, Workspace
from medsegdiff_cli.workflows.models import find_models


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What `msd compare` was asked for.

    Attributes:
        scores: each a path or run, or LABEL=path; the first is the baseline unless `baseline` names another.
        domains: CSV file with the columns case and domain; it replaces the domains in the scores.
        csv_file: where the rows are written, too.
        workspace: where runs are looked up by name.
    """

    scores: Sequence[str]
    workspace: Workspace
    settings: ComparisonSettings = field(default_factory=ComparisonSettings)
    baseline: str | None = None
    domains: Path | None = None
    csv_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A set of scores as it was asked for; `folders` are several for a run with several folds."""

    text: str
    label: str
    place: Path
    folders: tuple[Path, ...]


def compare(request: CompareRequest) -> Comparison:
    """Compare sets of scores and, if wanted, write the rows as CSV.

    Raises:
        UsageError: fewer than two sets, one of them twice or not to be found, or nothing shared.
        InputDataError: a table that cannot be read.
    """
    if len(request.scores) < 2:
        what = f"{len(request.scores)} set of scores: nothing to compare with"
        raise UsageError(what, where="SCORES", fix="give two or more: msd compare BASELINE OTHER")
    found = _with_labels([_find(text, request.workspace) for text in request.scores])
    baseline = _baseline(found, request.baseline)
    tables = {item.label: read_score_rows(item.label, item.folders) for item in found}
    others = [table for label, table in tables.items() if label != baseline]
    domains = _domains([tables[baseline], *others], request.domains)
    comparison = compare_scores(tables[baseline], others, request.settings, domains)
    if request.csv_file is not None:
        write_comparison_csv(request.csv_file, comparison)
    return comparison


def _find(text: str, workspace: Workspace) -> _Named:
    """Find what `PATH`, `RUN` or `LABEL=...` means; the label is empty when none is given."""
    label, found, rest = text.partition("=")
    # A path may hold an equals sign itself.
    if not found or Path(text).expanduser().exists():
        label, rest = "", text
    elif not label or not rest:
        raise UsageError(f"'{text}' is not LABEL=PATH", where="SCORES", fix="write for example ours=results/run")
    path = Path(rest).expanduser()
    if not path.exists() and "/" not in rest:
        path = _run_called(rest, workspace)
    folders = _folders_with_scores(path)
    if not folders:
        what = f"no scores in '{rest}'" if path.exists() else f"'{rest}' does not exist"
        fix = "give predictions that `msd evaluate` has scored, a scores.csv, or a validated run"
        raise UsageError(what, where="SCORES", fix=fix)
    return _Named(text=rest, label=label, place=path.resolve(), folders=folders)


def _run_called(name: str, workspace: Workspace) -> Path:
    try:
        (path,) = find_models([name], workspace)
    except UsageError as error:
        what = f"'{name}' is no path with scores, and as a run: {error.what}"
        raise UsageError(what, where=error.where, fix=error.fix) from None
    return path


def _folders_with_scores(path: Path) -> tuple[Path, ...]:
    """Return the place of scores: the path itself, a fold's validation, or that of all folds of a run."""
    if holds_scores(path):
        return (path,)
    if holds_scores(path / VALIDATION):
        return (path / VALIDATION,)
    return tuple(sorted(fold for fold in path.glob(f"{FOLD_PREFIX}*/{VALIDATION}") if holds_scores(fold)))


def _with_labels(found: Sequence[_Named]) -> list[_Named]:
    """Give each set without a label the shortest end of its path that no other set has."""
    places = [item.place for item in found]
    twice = [str(place) for place in dict.fromkeys(places) if places.count(place) > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' is given twice", where="SCORES", fix="give each set of scores once")
    parts = [_telling_parts(place) for place in places]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    ends = ["/".join(part[-depth:]) for part in parts]
    if len(set(ends)) < len(ends):
        # For example a folder and the scores.csv in it.
        ends = [str(place) for place in places]
    labelled = [
        _Named(text=item.text, label=item.label or end, place=item.place, folders=item.folders)
        for item, end in zip(found, ends, strict=True)
    ]
    labels = [item.label for item in labelled]
    if len(set(labels)) < len(labels):
        raise UsageError(f"two sets have one label: {labels}", where="SCORES", fix="write LABEL=PATH with other labels")
    return labelled


def _telling_parts(place: Path) -> tuple[str, ...]:
    """Return the parts of a path less those that all score files have in common."""
    place = place.parent if place.name in ("scores.csv", "summary.json") else place
    place = place.parent if place.name == VALIDATION else place
    return (place.with_suffix("") if place.suffix == ".csv" else place).parts


def _baseline(found: Sequence[_Named], wanted: str | None) -> str:
    if wanted is None:
        return found[0].label
    path = Path(wanted).expanduser().resolve()
    matches = [item.label for item in found if wanted in (item.label, item.text) or item.place == path]
    if len(matches) != 1:
        labels = [item.label for item in found]
        what = f"the baseline '{wanted}' is {'none' if not matches else 'more than one'} of the sets of scores"
        raise UsageError(what, where="--baseline", fix=did_you_mean(wanted, labels))
    return matches[0]


def _domains(tables: Sequence[ScoreRows], path: Path | None) -> dict[str, str]:
    """Return case to domain, from the file or from the scores themselves."""
    if path is None:
        return one_word_a_case(tables, "domain")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"cannot be read ({problem})", where=f"--domains {path}", fix="give a CSV file") from None
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not {"case", "domain"} <= set(table.fieldnames or ()):
        what = f"columns {list(table.fieldnames or ())[:8]}"
        raise InputDataError(what, where=str(path), fix="write the columns 'case' and 'domain' into its first line")
    domains: dict[str, str] = {}
    for row in table:
        if not row["case"] or not row["domain"]:
            where = f"{path}, line {table.line_num}"
            raise InputDataError("a row without case or domain", where=where, fix="write CASE,DOMAIN")
        case, domain = text_of(row["case"]), text_of(row["domain"])
        if domains.setdefault(case, domain) != domain:
            raise InputDataError(f"two domains for case '{case}'", where=str(path), fix="keep one row a case")
    return domains
