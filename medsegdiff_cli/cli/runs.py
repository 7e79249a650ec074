"""`msd runs`: list trained runs, their size and state; delete one, or what serves nothing any more."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsegdiff_cli.cli.shell import (
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkspaceOption,
    parse_duration,
    print_json,
    print_table,
    say,
    verb,
)
from medsegdiff_cli.errors import UsageError

if TYPE_CHECKING:
    from medsegdiff_cli.paths import Workspace

_CLEAN = "clean"


@verb
def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[clean] [DATASET]", help="Only of this dataset. With `clean`: list what may go."),
    ] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", metavar="RUN", help="Delete a run's folder (all its folds).")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="TIME", help="With clean: what was last written to before, e.g. 12h [30d]."
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="With clean: planned, running, damaged or finished runs [the first two]."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete without asking; with clean: delete what is listed.")
    ] = False,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """List runs with state, validation Dice and size; or delete one, or what serves nothing any more.

    `msd runs clean` lists unfinished runs that nobody has gone on with, and preprocessed images that no plan asks for;
    --yes deletes them. A run that another one started from is never listed.

    Example: `msd runs 4`, `msd runs --delete supervised__3d__seed1`, `msd runs clean --older-than 30d --yes`
    """
    from medsegdiff_cli.paths import open_workspace

    place, rest = open_workspace(workspace), list(words or [])
    is_cleaning = rest[:1] == [_CLEAN]
    rest = rest[1:] if is_cleaning else rest
    if len(rest) > 1:
        raise UsageError(f"'{rest[1]}' is one word too many", where="DATASET", fix="name one dataset")
    dataset = rest[0] if rest else None
    if is_cleaning:
        if delete is not None:
            raise UsageError("clean and --delete exclude each other", where="--delete", fix="leave one of them out")
        older_than_s = parse_duration(older_than or "30d", "--older-than")
        _clean(place, dataset, older_than_s or 0.0, state, yes, json_output, quiet)
    elif older_than is not None or state:
        flag = "--state" if state else "--older-than"
        raise UsageError(f"{flag} belongs to `msd runs clean`", where=flag, fix="write msd runs clean")
    elif delete is not None:
        _delete(delete, place, dataset, yes, json_output, quiet)
    else:
        _list(place, dataset, json_output)


def _list(place: "Workspace", dataset: str | None, json_output: bool) -> None:
    from medsegdiff_cli.workflows.runs import list_runs

    rows = list_runs(place, dataset)
    if json_output:
        print_json({"schema_version": 1, "runs": rows})
        return
    shown = [
        [*(row[key] for key in ("dataset", "run", "fold", "state", "steps")), _dice(row), row["size"]] for row in rows
    ]
    _print_rows(["dataset", "run"], ["fold", "state", "steps", "Dice", "size"], shown)


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        raise UsageError("nobody answered whether to delete", where="--delete", fix="add --yes") from None


def _delete(name: str, place: "Workspace", dataset: str | None, yes: bool, json_output: bool, quiet: bool) -> None:
    from medsegdiff_cli.workflows.runs import delete_run

    folder, size = delete_run(name, place, dataset, confirm=None if yes else _confirmed)
    if json_output:
        print_json({"schema_version": 1, "deleted": str(folder) if size else None, "size": size})
    else:
        say(f"deleted {folder} ({size})" if size else "nothing deleted", quiet)


def _clean(
    place: "Workspace",
    dataset: str | None,
    older_than_s: float,
    states: list[str] | None,
    yes: bool,
    json_output: bool,
    quiet: bool,
) -> None:
    from medsegdiff_cli.planning.memory import format_bytes
    from medsegdiff_cli.workflows.clean import UNFINISHED, find_removable, remove

    found = find_removable(place, dataset=dataset, older_than_s=older_than_s, states=states or UNFINISHED)
    total = sum(item.n_bytes for item in found)
    if not json_output:
        rows = [[str(_below(item.path, place.root)), item.kind, item.reason, f"{item.days:.0f} d"] for item in found]
        sizes = [format_bytes(item.n_bytes) for item in found]
        _print_rows(
            ["folder"], ["kind", "why", "unused", "size"], [[*row, size] for row, size in zip(rows, sizes, strict=True)]
        )
    if yes:
        for item in found:
            remove(item)
    if json_output:
        listed = [
            {
                "kind": item.kind,
                "path": str(item.path),
                "reason": item.reason,
                "days": round(item.days, 2),
                "bytes": item.n_bytes,
            }
            for item in found
        ]
        print_json({"schema_version": 1, "removable": listed, "bytes": total, "deleted": yes})
    elif not found:
        say("nothing to clean up", quiet)
    else:
        size = f"{len(found)} folders, {format_bytes(total)}"
        say(f"deleted {size}" if yes else f"{size}; nothing is deleted yet: say --yes for that", quiet)


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _dice(row: dict[str, Any]) -> str:
    return "" if row["dice"] is None else f"{row['dice']:.4f}"


def _print_rows(names: list[str], others: list[str], rows: list[list[str]]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    # Names are what people copy: they are broken over lines, never cut.
    columns = [Column(name, overflow="fold") for name in names]
    table = Table(*columns, *(Column(name, no_wrap=name in ("Dice", "size")) for name in others))
    for row in rows:
        table.add_row(*map(Text, row))
    print_table(table)
