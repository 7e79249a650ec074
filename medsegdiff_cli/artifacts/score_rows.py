"""The rows of `scores.csv` as anything outside of msd reads them: one per case and class, any numeric column.

`artifacts.scores` is the full record of an evaluation; this is the plain table, which may also come from a spreadsheet.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegdiff_cli.artifacts.scores import read_scores, to_csv
from medsegdiff_cli.artifacts.spreadsheet import text_of
from medsegdiff_cli.errors import InputDataError, UsageError, did_you_mean
from medsegdiff_cli.paths import SCORES_CSV, SUMMARY_JSON

_WORDS = ("case", "class", "label", "group", "domain", "distance_unit", "volume_unit")

Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ScoreRows:
    """A table of scores.

    Attributes:
        label: what it is called beside others.
        sources: the files it was read from.
        rows: (case, class) to column to text, in the order of the files.
        nsd_tolerance: in the distance unit; None when no summary tells it.
    """

    label: str
    sources: tuple[str, ...]
    rows: dict[Key, dict[str, str]]
    nsd_tolerance: float | None = None

    @property
    def cases(self) -> tuple[str, ...]:
        """Case names, sorted: the order of files must not matter to a bootstrap."""
        return tuple(sorted({case for case, _ in self.rows}))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the file."""
        return tuple(dict.fromkeys(name for _, name in self.rows))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns that hold numbers."""
        columns = dict.fromkeys(column for row in self.rows.values() for column in row)
        return tuple(column for column in columns if column not in _WORDS)

    def words(self, column: str) -> dict[str, str]:
        """Return case to text of a column that is one for all classes of a case; cases without text are left out."""
        return {case: row[column] for (case, _), row in self.rows.items() if row.get(column)}

    def numbers(self, metric: str) -> dict[Key, float | None]:
        """Return (case, class) to value; None is "undefined", written as nothing or nan.

        Raises:
            UsageError: no such column. InputDataError: text, or an infinite number, in it.
        """
        if metric not in self.metrics:
            fix = did_you_mean(metric, self.metrics)
            raise UsageError(f"no metric '{metric}' in the scores '{self.label}'", where="--metric", fix=fix)
        return {key: self._number(key, row.get(metric, "")) for key, row in self.rows.items()}

    def _number(self, key: Key, text: str) -> float | None:
        try:
            value = float(text) if text.strip() else math.nan
        except ValueError:
            value = math.inf
        if math.isinf(value):
            where = f"{', '.join(self.sources)}: case {key[0]}, class {key[1]}"
            raise InputDataError(f"'{text}' is no score", where=where, fix="write a number, or nothing for undefined")
        return None if math.isnan(value) else value


def read_score_rows(label: str, paths: Sequence[Path]) -> ScoreRows:
    """Read score tables of disjoint cases as one.

    Args:
        label: what the table is called beside others.
        paths: each `scores.csv`, `summary.json` or a folder that holds one of them.

    Raises:
        InputDataError: a file is damaged, or a case and class has two rows. UsageError: folds with two NSD tolerances.
    """
    rows: dict[Key, dict[str, str]] = {}
    tolerances: set[float] = set()
    files = [_file_of(path) for path in paths]
    for path in files:
        for key, row in _read(path).items():
            if key in rows:
                what = f"two rows for case '{key[0]}', class '{key[1]}'"
                raise InputDataError(what, where=", ".join(map(str, files)), fix="keep one row a case and class")
            rows[key] = row
        if (path.parent / SUMMARY_JSON).is_file():
            tolerances.add(read_scores(path.parent / SUMMARY_JSON).nsd_tolerance)
    if len(tolerances) > 1:
        what = f"scores with different NSD tolerances: {sorted(tolerances)}"
        raise UsageError(what, where=label, fix="evaluate all of them with one tolerance")
    return ScoreRows(label=label, sources=tuple(map(str, files)), rows=rows, nsd_tolerance=next(iter(tolerances), None))


def holds_scores(path: Path) -> bool:
    """Tell whether a path is a table of scores or a folder with one."""
    return path.is_file() or (path / SCORES_CSV).is_file() or (path / SUMMARY_JSON).is_file()


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    return path / SCORES_CSV if (path / SCORES_CSV).is_file() else path / SUMMARY_JSON


def _read(path: Path) -> dict[Key, dict[str, str]]:
    if path.suffix == ".json":
        text = to_csv(read_scores(path))
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as problem:
            raise InputDataError(f"cannot be read ({problem})", where=str(path), fix="give a scores.csv") from None
    table = csv.DictReader(io.StringIO(text, newline=""))
    if not {"case", "class"} <= set(table.fieldnames or ()):
        what = f"no table of scores: columns {list(table.fieldnames or ())[:8]}"
        raise InputDataError(what, where=str(path), fix="columns 'case' and 'class' are needed: run `msd evaluate`")
    rows: dict[Key, dict[str, str]] = {}
    for row in table:
        where = f"{path}, line {table.line_num}"
        if None in row or None in row.values() or not row["case"]:
            raise InputDataError("a row with too few or too many cells", where=where, fix="run `msd evaluate` again")
        row |= {word: text_of(row[word]) for word in _WORDS if word in row}
        key = (row["case"], row["class"])
        if key in rows:
            what = f"two rows for case '{key[0]}', class '{key[1]}'"
            raise InputDataError(what, where=where, fix="keep one row a case and class")
        rows[key] = row
    if not rows:
        raise InputDataError("a table of scores without rows", where=str(path), fix="run `msd evaluate` again")
    return rows
