"""`reproduction.md`: findings, their cells, and the protocol that they came from."""

from medsegdiff_cli.artifacts.experiment import Budget, Declaration
from medsegdiff_cli.artifacts.reproduction import Finding, Reproduction
from medsegdiff_cli.reporting.reproduction_table import measured_in_words, reading_of, verdict_in_words


def reproduction_markdown(reproduction: Reproduction) -> str:
    """Return the page's text, headings from the second level on."""
    place = "images" if reproduction.declaration.cohort.same_tests else "scanner"
    cells = [_cells(finding, place) for finding in reproduction.findings]
    parts = [_head(reproduction), _verdicts(reproduction), *cells, _protocol(reproduction)]
    return "\n\n".join(parts) + "\n"


def _head(reproduction: Reproduction) -> str:
    seeds = ", ".join(map(str, reproduction.seeds))
    return (
        f"## {reproduction.paper}: {reproduction.title}\n\n{reproduction.citation}\n\n"
        f"Written by `{reproduction.command}` (msd {reproduction.msd_version}, seeds {seeds})."
    )


def _verdicts(reproduction: Reproduction) -> str:
    rows = [
        [
            finding.id,
            finding.claim,
            finding.published,
            "<br>".join((measured_in_words(finding), *finding.notes)),
            finding.criterion,
            f"**{verdict_in_words(finding)}**",
        ]
        for finding in reproduction.findings
    ]
    table = _table(["id", "claim", "published", "measured (95 % interval)", "criterion", "verdict"], rows)
    return table + "\n\n" + "\n".join(reading_of(reproduction))


def _cells(finding: Finding, place: str) -> str:
    names, n = list(finding.cells[0].means), finding.decimals
    rows = [
        [
            cell.domain,
            str(cell.labels),
            *([cell.row] if cell.row else []),
            *(f"{cell.means[name]:.{n}f}" for name in names),
            "" if cell.difference is None else f"{cell.difference:+.{n}f} ({cell.low:+.{n}f} to {cell.high:+.{n}f})",
        ]
        for cell in finding.cells
    ]
    of_row = ["of"] if finding.cells[0].row else []
    header = [place, "n", *of_row, *names, "difference"]
    return f"### {finding.id}: {finding.quantity}\n\n" + _table(header, rows)


def _protocol(reproduction: Reproduction) -> str:
    declaration = reproduction.declaration
    lines = [f"- {declaration.cohort.in_words}"]
    if declaration.pretraining is not None:
        lines.append(f"- pretraining {_objectives(declaration)}: {_budget(declaration.pretraining)}")
        lines += [f"- pretraining `{name}`: {_settings(own)}" for name, own in declaration.pretraining.methods.items()]
        lines.append(f"- {'classifiers' if declaration.objective else 'fine-tuning'}: {_budget(declaration.heads)}")
    else:
        lines.append(f"- training of every method: {_budget(declaration.heads)}")
    lines += [f"- {method}: {_settings(settings)}" for method, settings in declaration.heads.methods.items()]
    lines.append(f"- sha256 of the declaration: `{reproduction.declaration_digest}`")
    deviations = "\n".join(f"- {sentence}" for sentence in declaration.deviations)
    return "### Protocol\n\n" + "\n".join(lines) + f"\n\nDiffers from the paper:\n\n{deviations}"


def _objectives(declaration: Declaration) -> str:
    if declaration.objective is not None:
        return f"`{declaration.objective}`"
    return ", ".join(f"`{objective}` (for {method})" for method, objective in declaration.objectives.items())


def _budget(budget: Budget) -> str:
    return f"preset `{budget.preset}`, {_settings(budget.overrides)}"


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in settings.items())


def _table(header: list[str], rows: list[list[str]]) -> str:
    # A bar inside a cell would begin the next one.
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
