"""`msd finetune`: the labelled stages of a method, starting from another run's weights."""

from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    ConfigOption,
    DatasetArgument,
    DatasetOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    PresetOption,
    QuietOption,
    SeedOption,
    SetOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
    one_dataset,
    parse_duration,
    parse_pairs,
    verb,
)
from medsegdiff_cli.cli.train import (
    CasesOption,
    CountOption,
    FoldOption,
    MaxTimeOption,
    MethodArgument,
    MinCoverageOption,
    NameOption,
    PlansOption,
    RecipeOption,
    RunsOption,
    ScaleOption,
    SelectionOption,
    StepOption,
    override_of_step,
    starting_point,
    train_fold,
)


@verb
def finetune(
    method: MethodArgument,
    parent: Annotated[
        str, typer.Option("--from", metavar="RUN", help="Run, one of its folds, or bundle to start from.")
    ],
    dataset: DatasetArgument = None,
    dataset_option: DatasetOption = None,
    config: ConfigOption = None,
    fold: FoldOption = "0",
    cases: CasesOption = None,
    count: CountOption = "groups",
    scale: ScaleOption = None,
    preset: PresetOption = "recommended",
    recipe: RecipeOption = None,
    plans_name: PlansOption = None,
    overrides: SetOption = None,
    step: StepOption = None,
    selection: SelectionOption = None,
    min_coverage: MinCoverageOption = 0.5,
    seed: SeedOption = 0,
    runs: RunsOption = None,
    name: NameOption = None,
    max_time: MaxTimeOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    workspace: WorkspaceOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Train from another run's weights, across datasets: changed channels and classes are adapted and listed.

    Example: `msd finetune supervised 12 --from supervised__2d --cases 6`
    """
    with starting_point(parent, workspace, fold) as folder:
        train_fold(
            {
                "method": method,
                "dataset": one_dataset(dataset, dataset_option),
                "config": config,
                "cases": cases,
                "count": count,
                "scale": scale,
                "preset": preset,
                "recipe": recipe,
                "plans_name": plans_name,
                "overrides": {**parse_pairs(overrides, "=", "--set"), **override_of_step(step)},
                "selection": selection,
                "seed": seed,
                "name": name,
                "parent": folder,
                "min_coverage": min_coverage,
                "max_time_s": parse_duration(max_time, "--max-time"),
                "overwrite": overwrite,
            },
            fold=fold,
            runs=runs,
            device=device,
            workers=workers,
            workspace=workspace,
            dry_run=dry_run,
            json_output=json_output,
            quiet=quiet,
        )
