"""`msd check`: every problem of every case in one report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsegdiff_cli.cli.shell import (
    DatasetOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
    one_dataset,
    print_json,
    progress_bar,
    say,
    verb,
)
from medsegdiff_cli.errors import UsageError

if TYPE_CHECKING:
    from medsegdiff_cli.checking.problem import CheckReport


@verb
def check(
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="DATASET", help="Id, name or path; with --for, a folder of new images."),
    ] = None,
    dataset_option: DatasetOption = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="OUTPUT", help="Write a mended copy to this new folder, check that.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--for", metavar="MODEL", help="Check new images against what MODEL was trained on.")
    ] = None,
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Look for every problem of every case; exit code 3 when any is an error.

    --fix mends what has one safe answer (label values, rounding, counts, names) in a copy; the dataset stays as it is.

    Example: `msd check 4 --json > report.json`

    Example: `msd check new_patients/ --for supervised__3d`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.check import check as check_one
    from medsegdiff_cli.workflows.check import check_and_mend, check_for_model
    from medsegdiff_cli.workflows.devices import choose_workers

    if fix is not None and model is not None:
        raise UsageError("--fix and --for are both given", where="msd check", fix="run the command twice")
    what, place, n_workers = one_dataset(dataset, dataset_option), open_workspace(workspace), choose_workers(workers)
    with progress_bar("checking", quiet=quiet or json_output) as update:

        def progress(done: int, total: int) -> None:
            update(done=done, total=total)

        if model is not None:
            report = check_for_model(Path(what), model, place, workers=n_workers, progress=progress)
            content = {**report.to_json(), "model": model}
        elif fix is not None:
            mended = check_and_mend(what, fix, place, workers=n_workers, progress=progress)
            report, content = mended.report, mended.to_json()
        else:
            report = check_one(what, place, workers=n_workers, progress=progress)
            content = report.to_json()
    if json_output:
        print_json(content)
    else:
        for change in content.get("changes", ()):
            say(f"fixed: {change['file']}: {change['what']}", quiet)
        _print_report(report, quiet)
    if not report.is_usable:
        raise typer.Exit(3)


def _print_report(report: "CheckReport", quiet: bool) -> None:
    for problem in report.problems:
        if not (quiet and problem.severity != "error"):
            where = f" [{problem.case}]" if problem.case else ""
            fix = f" -> {problem.fix}" if problem.fix else ""
            typer.echo(f"{problem.severity}: {problem.code}{where}: {problem.message}{fix}")
    counts = report.counts()
    say(f"{report.dataset}: {counts['errors']} errors, {counts['warnings']} warnings, {counts['notes']} notes", quiet)
