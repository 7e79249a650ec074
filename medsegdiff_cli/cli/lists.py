"""`msd methods` and `msd datasets`: what there is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medsegdiff_cli.cli.shell import JsonOption, QuietOption, VerboseOption, print_json, print_table, verb

if TYPE_CHECKING:
    from medsegdiff_cli.methods.registry import Entry


@verb
def methods(json_output: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = 0) -> None:
    """List the segmentation methods, and the pretrainings that they can start from.

    Example: `msd methods`
    """
    from medsegdiff_cli.methods.registry import METHODS, OBJECTIVES

    if json_output:
        pretrainings = {name: _entry(entry) for name, entry in OBJECTIVES.items()}
        entries = {name: {**_entry(entry), "starts_from": list(entry.objectives)} for name, entry in METHODS.items()}
        print_json({"schema_version": 1, "methods": entries, "pretrainings": pretrainings})
        return
    header = ("what it is", "source", "dimensions")
    rows = [(name, *_cells(entry), ", ".join(entry.objectives)) for name, entry in METHODS.items()]
    _print_table(("method", *header, "starts from"), rows)
    _print_table(("pretraining", *header), [(name, *_cells(entry)) for name, entry in OBJECTIVES.items()])


def _entry(entry: "Entry[Any]") -> dict[str, Any]:
    return {"title": entry.title, "source": entry.source, "dimensions": list(entry.n_dims)}


def _cells(entry: "Entry[Any]") -> tuple[str, str, str]:
    return entry.title, entry.source, "/".join(f"{n}D" for n in entry.n_dims)


@verb
def datasets(json_output: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = 0) -> None:
    """List the layouts that `msd convert` reads.

    Example: `msd datasets`
    """
    from medsegdiff_cli.workflows.convert import available_formats

    formats = available_formats()
    if json_output:
        content = {
            name: {"title": info.title, "reads": info.reads, "example": info.example, "licence": info.licence}
            for name, info in formats.items()
        }
        print_json({"schema_version": 1, "formats": content})
        return
    _print_table(("format", "what it reads", "example"), [(n, i.title, i.example) for n, i in formats.items()])


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    print_table(table)
