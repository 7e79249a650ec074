"""`msd check`: every problem of every case in one report."""

import typer

from medsegdiff_cli.cli.shell import (
    DatasetArgument,
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


@verb
def check(
    dataset: DatasetArgument = None,
    dataset_option: DatasetOption = None,
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Look for every problem of every case; exit code 3 when any is an error.

    Example: `msd check 4 --json > report.json`
    """
    from medsegdiff_cli.artifacts.dataset_folder import open_dataset
    from medsegdiff_cli.checking.check import check_dataset
    from medsegdiff_cli.paths import find_dataset, open_workspace
    from medsegdiff_cli.workflows.devices import choose_workers

    folder = open_dataset(find_dataset(one_dataset(dataset, dataset_option), open_workspace(workspace)))
    with progress_bar("checking", quiet=quiet or json_output) as update:
        report = check_dataset(
            folder, workers=choose_workers(workers), progress=lambda done, total: update(done=done, total=total)
        )
    if json_output:
        print_json(report.to_json())
    else:
        for problem in report.problems:
            if not (quiet and problem.severity != "error"):
                where = f" [{problem.case}]" if problem.case else ""
                fix = f" -> {problem.fix}" if problem.fix else ""
                typer.echo(f"{problem.severity}: {problem.code}{where}: {problem.message}{fix}")
        counts = report.counts()
        say(f"{folder.name}: {counts['errors']} errors, {counts['warnings']} warnings, {counts['notes']} notes", quiet)
    if not report.is_usable:
        raise typer.Exit(3)
