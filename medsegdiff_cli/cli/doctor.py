"""`msd doctor`: is this machine ready?"""

from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import JsonOption, QuietOption, VerboseOption, WorkspaceOption, print_json, verb


@verb
def doctor(
    require: Annotated[
        str | None, typer.Option("--require", help="Comma-separated demands, e.g. gpu,free=50G,memory=16G; exit 4.")
    ] = None,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show versions, devices, threads against load, memory and disk; check demands.

    Example: `msd doctor --require gpu,free=50G`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.doctor import examine, unmet

    report = examine(open_workspace(workspace))
    problems = unmet(report, require)
    if json_output:
        print_json({"schema_version": 1, **report, "unmet": problems})
    elif not quiet:
        for section in ("versions", "devices", "processor", "memory", "disk"):
            typer.echo(f"{section}:")
            for key, value in report[section].items():
                if not key.endswith("_bytes"):
                    typer.echo(f"  {key.replace('_', ' ')}: {_words(value)}")
        for warning in report["warnings"]:
            typer.echo(f"warning: {warning}", err=True)
    if problems:
        from medsegdiff_cli.errors import ResourceError

        raise ResourceError("; ".join(problems), where="--require", fix="use another machine, or free some space")


def _words(value: object) -> str:
    """Write a fact for people: a list of devices as "name (memory)", nothing as "none", truth as yes and no."""
    if isinstance(value, list):
        return ", ".join(f"{device['name']} ({device['memory']})" for device in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unset" if value is None else str(value)
