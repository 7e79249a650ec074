"""`msd bundle`: a trained model as one file, out, looked into, and in."""

from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    JsonOption,
    OverwriteOption,
    QuietOption,
    VerboseOption,
    WorkspaceOption,
    print_json,
    print_table,
    say,
    verb,
)

bundle = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Hand a model on as one file.\n\nExample: `msd bundle export supervised__3d`",
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle, which ends in .msd.")]


@bundle.command(name="export")
@verb
def bundle_export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run (all its folds), one of its folds, or its name.")],
    output: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="File to write [RUN.msd, here].")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Dataset whose runs MODEL names.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Configuration of the run MODEL names.")] = None,
    folds: Annotated[str | None, typer.Option("--folds", "-f", help="Folds to take, for example 0,2 [all].")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Under which others may use it: CC-BY-4.0.")] = None,
    citation: Annotated[str | None, typer.Option("--citation", help="What to cite.")] = None,
    intended_use: Annotated[
        str | None, typer.Option("--intended-use", help="For which images and purposes it is meant, and for which not.")
    ] = None,
    keep_case_names: Annotated[
        bool, typer.Option("--keep-case-names", help="Name the training cases, for public data [they are numbered].")
    ] = False,
    workspace: WorkspaceOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Write a trained run as one file: weights, settings, licence, and a manifest with the sha256 of each.

    The same run and words give the same bytes. Paths, command lines and names of cases stay behind.

    Example: `msd bundle export supervised__3d hippocampus.msd --licence CC-BY-4.0 --intended-use 'T1 MR; research'`
    """
    from medsegdiff_cli.artifacts.bundle import NOT_STATED
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.bundle import ExportRequest, describe_bundle, export_bundle

    request = ExportRequest(
        model=model,
        workspace=open_workspace(workspace),
        output=output,
        dataset=dataset,
        config=config,
        folds=tuple((folds or "").replace(",", " ").split()),
        licence=licence,
        citation=citation,
        intended_use=intended_use,
        keep_case_names=keep_case_names,
        overwrite=overwrite,
    )
    path, manifest = export_bundle(request)
    open_words = [key for key in ("licence", "citation", "intended_use") if getattr(manifest, key) == NOT_STATED]
    if open_words:
        flags = ", ".join("--" + key.replace("_", "-") for key in open_words)
        say(f"the bundle does not say {flags}: who gets it will want to know", quiet)
    if json_output:
        print_json({"schema_version": 1, "bundle": str(path), **describe_bundle(path)})
    else:
        say(f"bundle: {path} ({_folds_in_words(manifest.folds)})", quiet)


@bundle.command(name="info")
@verb
def bundle_info(
    file: FileArgument,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show what a bundle is, and verify all of it; nothing is unpacked.

    Exit code 6 says that it is damaged or not to be trusted.

    Example: `msd bundle info hippocampus.msd`
    """
    from medsegdiff_cli.workflows.bundle import describe_bundle

    facts = describe_bundle(file)
    if json_output:
        print_json({"schema_version": 1, "bundle": str(file), **facts})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("", escape(file.name), show_header=True)
    members = facts.pop("members")
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), escape(_in_words(value)))
    for name, member in members.items():
        table.add_row("member", escape(f"{name}, {member['bytes']} bytes, sha256 {member['sha256']}"))
    table.add_row("verified", f"all {len(members)} members are what the manifest says")
    print_table(table)


@bundle.command(name="import")
@verb
def bundle_import(
    file: FileArgument,
    name: Annotated[str | None, typer.Option("--name", help="Of the run in the results [the bundle's own].")] = None,
    workspace: WorkspaceOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Put a bundle's model among the results, where predict, finetune and runs find it by name.

    All of it is verified before anything is written. `msd predict` takes the file as it is, too.

    Example: `msd bundle import hippocampus.msd --name from-the-other-lab`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.bundle import import_bundle

    folder, manifest = import_bundle(file, open_workspace(workspace), name=name, overwrite=overwrite)
    if json_output:
        print_json({"schema_version": 1, "run": str(folder), **manifest.model_dump(mode="json", exclude={"members"})})
    else:
        say(f"run: {folder} ({_folds_in_words(manifest.folds)})", quiet)


def _folds_in_words(folds: tuple[str, ...]) -> str:
    return f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(folds)}"


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
