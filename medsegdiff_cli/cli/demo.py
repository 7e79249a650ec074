"""`msd demo`: the whole chain on seeded phantoms."""

from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    print_json,
    print_table,
    say,
    verb,
)


@verb
def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder to work in.")] = Path("msd_demo"),
    seed: SeedOption = 0,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Few labels and a second scanner, on chest phantoms: the whole chain in under five minutes.

    Phantoms are converted, checked and planned; a diffusion model is pretrained on images without labels; tedm starts
    from it and supervised from nothing, with the same three labels; both are tested on both scanners. The commands
    that do the same are printed, and a page with scores and pictures is written. The same command again goes on.

    Example: `msd demo --output /tmp/demo`
    """
    from medsegdiff_cli.reporting.terminal_table import terminal_table
    from medsegdiff_cli.workflows.demo import run_demo
    from medsegdiff_cli.workflows.demo_page import score_table

    report = run_demo(folder, seed=seed, say=lambda text: say(text, quiet or json_output))
    if json_output:
        print_json({"schema_version": 1, **report.to_json()})
        return
    if not quiet:
        print_table(terminal_table(score_table(report.results)))
    for sentence in report.results.differences():
        say(sentence, quiet)
    say(f"page: {report.page}", quiet)
