"""The table that `msd reproduce` shows: a row an experiment, with its verdict."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medsegdiff_cli.artifacts.reproduction import Finding, Reproduction

_STYLES = {"holds": "green", "does not hold": "bold red", "not applicable": "yellow", "report-only": ""}


def reproduction_report(reproduction: Reproduction) -> RenderableType:
    """Return the table, then what must be said beside it."""
    return Group(reproduction_table(reproduction), *(Text(sentence) for sentence in reading_of(reproduction)))


def reproduction_table(reproduction: Reproduction) -> Table:
    """Return a row an experiment."""
    title = f"{reproduction.title}: {reproduction.tier}, seeds {', '.join(map(str, reproduction.seeds))}"
    table = Table(title=Text(title), show_edge=False, show_lines=True)
    table.add_column("Id", no_wrap=True)
    for column in ("Claim and what was published", "Measured (95 % interval)", "Criterion", "Verdict"):
        table.add_column(column, overflow="fold")
    for finding in reproduction.findings:
        table.add_row(
            finding.id,
            Text(f"{finding.claim}. {finding.published}"),
            Text("\n".join((measured_in_words(finding), *finding.notes))),
            Text(finding.criterion),
            Text(verdict_in_words(finding), style=_STYLES[finding.verdict]),
        )
    return table


def measured_in_words(finding: Finding) -> str:
    """Return quantity, figure, interval, and the figure of each seed."""
    n = finding.decimals
    seeds = ", ".join(f"{value:+.{n}f}" for value in finding.per_seed.values())
    figure = f"{finding.quantity}: {finding.measured:+.{n}f} ({finding.low:+.{n}f} to {finding.high:+.{n}f})"
    return figure if len(finding.per_seed) < 2 else f"{figure}; by seed {seeds}"


def verdict_in_words(finding: Finding) -> str:
    """Return the verdict, for what is only reported with the criterion's answer."""
    if finding.verdict != "report-only":
        return finding.verdict
    return f"report-only ({'met' if finding.met else 'not met'})"


def reading_of(reproduction: Reproduction) -> list[str]:
    """Return how the numbers are to be read."""
    n = reproduction.test_persons
    tests, resampled = f"means over cells, {n} test persons a seed and scanner", "test persons, with all their cells"
    if reproduction.declaration.cohort.same_tests:
        tests, resampled = f"{n} test images, the same for every seed", "test images, each with all its seeds"
    sentences = [
        f"All differences are in points (100 x score), {tests}.",
        f"Intervals: 95 % bootstrap over {resampled}; they say nothing about other trainings.",
    ]
    if len(reproduction.seeds) == 1:
        sentences.append("One seed: another training may turn any sign.")
    return sentences
