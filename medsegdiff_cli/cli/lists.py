"""`msd methods` and `msd datasets`: what there is."""

from collections.abc import Sequence

from medsegdiff_cli.cli.shell import JsonOption, QuietOption, VerboseOption, print_json, print_table, verb


@verb
def methods(json_output: JsonOption = False, quiet: QuietOption = False, verbose: VerboseOption = 0) -> None:
    """List the segmentation methods.

    Example: `msd methods`
    """
    from medsegdiff_cli.methods.registry import METHODS

    if json_output:
        entries = {
            name: {"title": entry.title, "source": entry.source, "dimensions": list(entry.n_dims)}
            for name, entry in METHODS.items()
        }
        print_json({"schema_version": 1, "methods": entries})
        return
    rows = [
        (name, entry.title, entry.source, "/".join(f"{n}D" for n in entry.n_dims)) for name, entry in METHODS.items()
    ]
    _print_table(("method", "what it is", "source", "dimensions"), rows)


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
