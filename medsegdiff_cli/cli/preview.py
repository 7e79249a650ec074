"""`msd preview`: contact sheets to look at."""

from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import JsonOption, QuietOption, VerboseOption, WorkspaceOption, print_json, say, verb


@verb
def preview(
    target: Annotated[
        str, typer.Argument(metavar="DATASET|PREDICTIONS", help="A dataset (id, name, path) or a prediction folder.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG to write [preview.png in the folder shown].")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Number of cases shown.")] = 12,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Draw a contact sheet: image slices with label contours and a legend, as a PNG; needs no display.

    Example: `msd preview 4 --output hippocampus.png`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.preview import draw_preview

    path = draw_preview(target, open_workspace(workspace), output=output, count=count)
    if json_output:
        print_json({"schema_version": 1, "preview": str(path)})
    else:
        say(str(path), quiet)
