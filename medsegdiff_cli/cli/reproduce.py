"""`msd reproduce`: a paper's published trends, tried on phantoms."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli import log
from medsegdiff_cli.cli.shell import (
    DeviceOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    print_json,
    print_table,
    say,
    verb,
)


@verb
def reproduce(
    paper: Annotated[
        str,
        typer.Argument(metavar="PAPER", help="Whose experiments: tedm, recycling, hybrid; or a YAML file of your own."),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="A few experiments, one seed: minutes (the default).")] = False,
    full: Annotated[bool, typer.Option("--full", help="All experiments, fresh phantoms and trainings a seed.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to work in [msd_reproduction/PAPER].")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="How many seeds [as declared].")] = None,
    device: DeviceOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Try a paper's published trends on phantoms, by criteria that were fixed beforehand.

    The same command again goes on where it stopped. `reproduction.json` and `reproduction.md` in the folder hold what
    came out. A gate that does not hold is exit code 8; what is reported only never fails.

    Example: `msd reproduce tedm --quick --output /tmp/tedm`
    """
    from medsegdiff_cli.errors import UsageError
    from medsegdiff_cli.workflows.reproduce import ReproduceRequest, demand_gates
    from medsegdiff_cli.workflows.reproduce import reproduce as reproduce_paper

    if not verbose:
        # Dozens of trainings would each tell their start; their own logs do.
        for handler in logging.getLogger(log.ROOT_NAME).handlers:
            handler.setLevel(logging.WARNING)
    if quick and full:
        raise UsageError("--quick and --full are both given", where="msd reproduce", fix="leave one out")
    request = ReproduceRequest(
        paper=paper,
        output=output or Path("msd_reproduction") / Path(paper).stem,
        tier="full" if full else "quick",
        seeds=seeds,
        device=device,
    )
    result = reproduce_paper(request, say=lambda text: say(text, quiet))
    if json_output:
        print_json(result.model_dump(mode="json"))
    elif not quiet:
        from medsegdiff_cli.reporting.reproduction_table import reproduction_report

        print_table(reproduction_report(result))
    demand_gates(result)
