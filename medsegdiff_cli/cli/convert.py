"""`msd convert`: any published layout into a dataset folder."""

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
    say,
    verb,
)


@verb
def convert(
    format_name: Annotated[str, typer.Argument(metavar="FORMAT", help="See `msd datasets` for all formats.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder with the vendor's files; never changed.")],
    dataset: Annotated[int, typer.Option("--dataset", "-d", help="Id of the new dataset, 1 to 999.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new dataset, for example Hippocampus.")],
    images: Annotated[str | None, typer.Option("--images", help="Glob of the images, relative to SOURCE.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Glob of the labels, relative to SOURCE.")] = None,
    label_suffix: Annotated[
        str, typer.Option("--label-suffix", help="What a label's name has more than its image's.")
    ] = "",
    label_map: Annotated[
        list[str] | None, typer.Option("--label-map", metavar="VALUE:NAME", help="Name of a label value; repeatable.")
    ] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Values above it are foreground.")] = None,
    extra_labels: Annotated[
        list[str] | None,
        typer.Option("--extra-labels", metavar="OBSERVER=SUFFIX", help="Keep a further observer's labels beside."),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="Regular expression for the patient in a file name.")
    ] = None,
    domain: Annotated[str, typer.Option("--domain", help="Scanner, site or source of all cases.")] = "",
    test_list: Annotated[
        Path | None, typer.Option("--test-list", help="File with one case or group a line that becomes a test case.")
    ] = None,
    test_count: Annotated[int, typer.Option("--test-count", min=0, help="Set so many labelled cases aside.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of --test-count.")] = 0,
    test_as_unlabelled: Annotated[
        bool, typer.Option("--test-as-unlabelled", help="The source's test images serve pretraining.")
    ] = False,
    channel_names: Annotated[
        list[str] | None, typer.Option("--channel", help="Channel name, in order; CT chooses CT normalisation.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence to record.")] = "",
    fix_affine: Annotated[
        bool, typer.Option("--fix-affine", help="Take the nearest rigid grid for images that are sheared a little.")
    ] = False,
    max_shear: Annotated[
        float, typer.Option("--max-shear", min=0, max=45, help="Degrees of shear that --fix-affine may take away.")
    ] = 1.0,
    file_ending: Annotated[str | None, typer.Option("--file-ending", help="Ending of all files written.")] = None,
    workspace: WorkspaceOption = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Files read and written at the same time.")] = 2,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Convert a published layout (or any folder of images) into a dataset folder in nnU-Net v2's format.

    Example: `msd convert decathlon Task04_Hippocampus --dataset 4 --name Hippocampus --test-as-unlabelled`

    Example: `msd convert folder cxr --dataset 11 --name Lungs --images 'CXR_png/*.png' --labels 'mask/*.png'
    --label-suffix _mask --label-map 255:lung --threshold 127 --test-count 20`
    """
    from medsegdiff_cli.paths import new_dataset_folder, open_workspace
    from medsegdiff_cli.workflows.convert import convert_dataset, parse_options

    options = parse_options(
        name=name,
        overwrite=overwrite,
        licence=licence,
        images=images,
        labels=labels,
        label_suffix=label_suffix,
        label_map=label_map or [],
        threshold=threshold,
        extra_labels=extra_labels or [],
        group_regex=group,
        domain=domain,
        test_list=test_list,
        test_count=test_count,
        seed=seed,
        test_as_unlabelled=test_as_unlabelled,
        channel_names=tuple(channel_names or ()),
        fix_affine=max_shear if fix_affine else 0.0,
        file_ending=file_ending,
        workers=workers,
    )
    destination = new_dataset_folder(open_workspace(workspace), dataset, name)
    report = convert_dataset(format_name, source, destination, options)
    if json_output:
        print_json(report.to_json())
        return
    say(
        f"{destination}\n{report.n_training} training, {report.n_test} test ({report.n_test_labelled} labelled), "
        f"{report.n_unlabelled} unlabelled cases; channels {', '.join(report.channel_names.values())}; "
        f"labels {', '.join(report.labels)}",
        quiet,
    )
    for note in report.notes:
        say(f"- {note}", quiet)
    say(f"next: msd check {dataset}", quiet)
