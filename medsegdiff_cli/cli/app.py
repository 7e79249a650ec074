"""The `msd` application: every verb, in the order of the pipeline."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from medsegdiff_cli.cli import (
    bundle,
    check,
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    finetune,
    lists,
    plan,
    predict,
    preprocess,
    pretrain,
    preview,
    reproduce,
    runs,
    sample,
    shell,
    train,
)


class _Shell(TyperGroup):
    """The group of all verbs; with `--json` a wrong command line leaves its one object on stdout, too."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **settings: Any) -> Any:
        try:
            return super().main(args, *others, **settings)
        except SystemExit as stop:
            # Typer says what is wrong on stderr and exits before a verb, and thereby its `--json`, is known.
            describe = getattr(stop.__context__, "format_message", None)
            if describe is not None and "--json" in (sys.argv[1:] if args is None else args):
                error = {"what": describe(), "where": "command line", "fix": "see --help"}
                shell.print_json({"schema_version": 1, "exit_code": stop.code, "error": error})
            raise


app = typer.Typer(
    name="msd",
    cls=_Shell,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Medical image segmentation with diffusion models: a folder of images in, a trained and scored model and its "
        "predictions out.\n\n"
        "`msd convert` -> `check` -> `plan` -> `train METHOD` -> `predict` -> `evaluate`. "
        "`msd demo` shows the whole chain in under five minutes."
    ),
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", "-V", help="Show the version and exit."),
) -> None:
    if version:
        from medsegdiff_cli import __version__

        typer.echo(f"msd {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


for verb in (
    convert.convert,
    check.check,
    preview.preview,
    plan.plan,
    preprocess.preprocess,
    pretrain.pretrain,
    train.train,
    finetune.finetune,
    predict.predict,
    evaluate.evaluate,
    compare.compare,
    sample.sample,
    reproduce.reproduce,
    runs.runs,
    lists.methods,
    lists.datasets,
    doctor.doctor,
    demo.demo,
):
    app.command(name=verb.__name__)(verb)
app.add_typer(bundle.bundle, name="bundle")


def all_commands() -> dict[str, Callable[..., Any]]:
    """Return every command's function by the words that call it: `train`, `bundle export`."""
    groups = [("", app), *((f"{info.name} ", info.typer_instance) for info in app.registered_groups)]
    return {
        f"{prefix}{command.name}": command.callback
        for prefix, group in groups
        for command in (group.registered_commands if group else ())
        if command.callback
    }
