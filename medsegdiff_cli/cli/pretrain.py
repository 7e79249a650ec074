"""`msd pretrain`: learn from images, with labels or without; methods start from such a run."""

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
    print_forecast,
    verb,
)
from medsegdiff_cli.cli.train import (
    CasesOption,
    CountOption,
    FoldOption,
    MaxTimeOption,
    NameOption,
    PlansOption,
    RecipeOption,
    ScaleOption,
    print_outcome,
    step_bars,
)

ObjectiveArgument = Annotated[
    str, typer.Argument(metavar="OBJECTIVE|METHOD", help="An objective, or a method: its first objective.")
]


@verb
def pretrain(
    objective: ObjectiveArgument,
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
    seed: SeedOption = 0,
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
    """Pretrain on unlabelled images and the fold's training images.

    `diffusion`, `global-cl` and `global-local-cl` never look at labels; `hybrid` does where there are any; `supervised`
    takes labelled images only.
    With --cases, `hybrid` takes the other training images without their labels.
    The run, `pretrain-OBJECTIVE__CONFIG/fold_K`, serves every method and number of labels that starts from it.
    A picture of what was learnt, `samples.png`, is drawn at the end, where the objective generates images.

    Example: `msd pretrain tedm 11 --scale small`
    """
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.devices import choose_device, choose_workers
    from medsegdiff_cli.workflows.pretraining import request_pretraining
    from medsegdiff_cli.workflows.run_setup import set_up_run
    from medsegdiff_cli.workflows.train import train_run

    chosen = choose_device(device)
    request = request_pretraining(
        objective,
        recipe,
        preset,
        dataset=one_dataset(dataset, dataset_option),
        workspace=open_workspace(workspace),
        config=config,
        fold=fold,
        cases=cases,
        count=count,
        scale=scale,
        plans_name=plans_name,
        overrides=parse_pairs(overrides, "=", "--set"),
        seed=seed,
        name=name,
        max_time_s=parse_duration(max_time, "--max-time"),
        device=chosen,
        workers=choose_workers(workers, chosen),
        overwrite=overwrite,
    )
    setup = set_up_run(request)
    if dry_run:
        from medsegdiff_cli.workflows.forecast import forecast_runs

        print_forecast(forecast_runs([setup]), json_output, run=str(setup.folder))
        return
    with step_bars(quiet, json_output)(setup) as progress:
        report = train_run(setup, progress)
    print_outcome(setup, report, json_output, quiet)
