"""`msd runs`: list trained runs, their size and state; delete one."""

from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkspaceOption,
    print_json,
    print_table,
    say,
    verb,
)


@verb
def runs(
    dataset: Annotated[str | None, typer.Argument(metavar="[DATASET]", help="Only runs of this dataset.")] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", metavar="RUN", help="Delete a run's folder (all its folds).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """List runs with state, validation Dice and size; or delete one.

    Example: `msd runs 4`, `msd runs --delete supervised__3d__seed1`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.runs import delete_run, list_runs

    place = open_workspace(workspace)
    if delete is not None:
        folder, size = delete_run(
            delete, place, dataset, confirm=None if yes else lambda text: typer.confirm(text, err=True)
        )
        if json_output:
            print_json({"schema_version": 1, "deleted": str(folder) if size else None, "size": size})
        else:
            say(f"deleted {folder} ({size})" if size else "nothing deleted", quiet)
        return
    rows = list_runs(place, dataset)
    if json_output:
        print_json({"schema_version": 1, "runs": rows})
        return
    from rich.table import Column, Table
    from rich.text import Text

    # Names are what people copy: they are broken over lines, never cut.
    names = (Column("dataset", overflow="fold"), Column("run", overflow="fold"))
    table = Table(*names, "fold", "state", "steps", Column("Dice", no_wrap=True), Column("size", no_wrap=True))
    for row in rows:
        dice = "" if row["dice"] is None else f"{row['dice']:.4f}"
        cells = (row["dataset"], row["run"], row["fold"], row["state"], row["steps"], dice, row["size"])
        table.add_row(*map(Text, cells))
    print_table(table)
