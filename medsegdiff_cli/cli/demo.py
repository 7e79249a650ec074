"""`msd demo`: the whole chain on seeded phantoms."""

from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import JsonOption, QuietOption, SeedOption, VerboseOption, print_json, say, verb


@verb
def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder to work in.")] = Path("msd_demo"),
    seed: SeedOption = 0,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Make phantom images, then convert, check, plan, train, predict and evaluate them; under three minutes.

    Example: `msd demo --output /tmp/demo`
    """
    from medsegdiff_cli.cli.evaluate import print_scores
    from medsegdiff_cli.workflows.demo import run_demo

    report = run_demo(folder, seed=seed, say=lambda text: say(text, quiet or json_output))
    if json_output:
        print_json({"schema_version": 1, **report.to_json()})
        return
    print_scores(report.scores, False, quiet)
    say(f"overlay: {report.picture}", quiet)
