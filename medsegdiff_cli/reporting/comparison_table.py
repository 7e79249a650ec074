"""The tables that `msd compare` shows: one a compared set, a row a class and domain."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medsegdiff_cli.artifacts.comparison import Comparison, ComparisonRow

_ALL = "all"


def comparison_report(comparison: Comparison) -> RenderableType:
    """Return a table a compared set, then the rule of the test and everything that must be said beside it."""
    labels = [label for label in comparison.sources if label != comparison.baseline]
    notes = list(dict.fromkeys(row.note for row in comparison.rows if row.note))
    parts: list[RenderableType] = [comparison_table(comparison, label, notes) for label in labels]
    parts.extend(Text(f"[{number}] {note}.") for number, note in enumerate(notes, 1))
    parts.extend(Text(sentence) for sentence in (*_reading(comparison), *comparison.warnings))
    return Group(*parts)


def comparison_table(comparison: Comparison, label: str, notes: list[str]) -> Table:
    """Return the rows of one compared set.

    Args:
        comparison: all of them.
        label: the compared set.
        notes: the rows' notes, which the table refers to by number (from 1).
    """
    rows = [row for row in comparison.rows if row.scores == label]
    by_domain = any(row.domain is not None for row in rows)
    by_groups = comparison.resampled == "groups"
    title = Text(f"{comparison.metric}: {label} minus {comparison.baseline} (means over cases)")
    table = Table(title=title, show_edge=False)
    table.add_column("Class", overflow="fold")
    if by_domain:
        table.add_column("Domain", overflow="fold")
    for column in ("n", *(["patients"] if by_groups else [])):
        table.add_column(column, justify="right", no_wrap=True)
    numbers = ("baseline", "mean", "difference", "95 % interval", "p", "p corr.", "wins/ties/\nlosses", "note")
    for column in numbers:
        table.add_column(column, justify="right")
    for row in rows:
        cells: list[Text | str] = [Text(row.class_name), *([Text(row.domain or _ALL)] if by_domain else []), str(row.n)]
        cells += [str(row.groups)] if by_groups else []
        table.add_row(*cells, *_numbers(row), Text(f"[{notes.index(row.note) + 1}]" if row.note else ""))
    return table


def _numbers(row: ComparisonRow) -> list[Text]:
    interval = "–" if row.low is None or row.high is None else f"{_signed(row.low)} to {_signed(row.high)}"
    return [
        Text(_number(row.mean_baseline)),
        Text(_number(row.mean)),
        Text(_signed(row.difference)),
        Text(interval),
        Text(_p(row.p)),
        Text(_p(row.p_corrected), style="bold" if row.is_significant else ""),
        Text(f"{row.wins}/{row.ties}/{row.losses}"),
    ]


def _reading(comparison: Comparison) -> list[str]:
    better = "no direction is better; wins are greater values" if comparison.better is None else comparison.better
    by_groups = comparison.resampled == "groups"
    drawn = "whole patients" if by_groups else "cases"
    intervals = f"{comparison.resamples} bootstrap samples of {drawn} (percentile), seed {comparison.seed}"
    sentences = [
        f"Better {comparison.metric}: {better}. Intervals: {intervals}.",
        f"Test: {comparison.rule}.",
    ]
    if by_groups:
        sentences.append(
            "Some patients have several cases: the test is of patients' mean differences (--no-groups: of cases)."
        )
    undefined = sum(row.undefined for row in comparison.rows if row.domain is None)
    if undefined:
        sentences.append(f"Values undefined in both sets (class in neither mask), in no row: {undefined}.")
    return sentences


def _number(value: float | None) -> str:
    """Write up to 1 with four decimals, up to 10 with three, beyond with two; a dash when undefined."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return f"+{_number(value)}" if value is not None and value > 0 else _number(value)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
