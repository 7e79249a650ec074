"""`msd train`: all stages of a method on one fold, or on every case (`--fold all`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    print_json,
    print_table,
    progress_bar,
    say,
    verb,
)

if TYPE_CHECKING:
    from medsegdiff_cli.training.outcome import Progress
    from medsegdiff_cli.workflows.repeated_runs import RepeatedRuns
    from medsegdiff_cli.workflows.run_setup import RunSetup
    from medsegdiff_cli.workflows.train import TrainReport
    from medsegdiff_cli.workflows.train_method import Bars

MethodArgument = Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method, see `msd methods`.")]
FoldOption = Annotated[str, typer.Option("--fold", "-f", help="Fold 0, 1, ..., or all (train on every case).")]
CasesOption = Annotated[int | None, typer.Option("--cases", min=1, help="Keep so many labels (patients).")]
CountOption = Annotated[str, typer.Option("--count", help="What --cases counts: groups (patients) or cases.")]
ScaleOption = Annotated[str | None, typer.Option("--scale", help="tiny, small or full [the plan's default].")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="Shipped recipe or YAML file [METHOD].")]
PlansOption = Annotated[str | None, typer.Option("--plans-name", help="Plan to train on [plans].")]
SelectionOption = Annotated[
    str | None, typer.Option("--selection", help="last, or best on the validation labels [the recipe's].")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Ending of the run's name, for a run of its own.")]
StepOption = Annotated[
    int | None, typer.Option("--step", min=0, help="step-probe: the one timestep to probe, as --set timesteps=[N].")
]
RunsOption = Annotated[
    int | None,
    typer.Option("--runs", min=1, help="Train so many, with seeds S, S+1, ..., and average their validation scores."),
]
MinCoverageOption = Annotated[
    float, typer.Option("--min-coverage", min=0, max=1, help="Least share of the network that RUN must fill.")
]
MaxTimeOption = Annotated[str | None, typer.Option("--max-time", help="Save and exit 7 after so long, e.g. 6h.")]


@verb
def train(
    method: MethodArgument,
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
    parent: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Start from this run, as `msd finetune` does.")
    ] = None,
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
    """Train a method; missing plans and preprocessing are made first, and the same command again resumes.

    A method that starts from a pretraining makes it first, or uses the one that is there; --set changes that one, too,
    where it owns the setting (network, noise schedule), and --set pretrain.KEY=VALUE always does.
    Afterwards the fold's validation cases are predicted and scored into `fold_K/validation/`.
    With --from, training starts from that run and makes no pretraining. With --runs 3, three runs of consecutive seeds
    are trained, or used again where they are finished, and their scores averaged.

    Example: `msd train supervised 4 --config 3d --fold 0 --scale small`
    """
    settings = {
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
        "max_time_s": parse_duration(max_time, "--max-time"),
        "overwrite": overwrite,
    }
    with starting_point(parent, workspace, fold) as folder:
        train_fold(
            {**settings, "parent": folder, "min_coverage": min_coverage},
            fold=fold,
            runs=runs,
            device=device,
            workers=workers,
            workspace=workspace,
            dry_run=dry_run,
            json_output=json_output,
            quiet=quiet,
        )


@contextmanager
def starting_point(parent: str | None, workspace: Path | None, fold: str) -> Iterator[Path | None]:
    """Yield the fold's folder that `--from` names, None without it."""
    if parent is None:
        yield None
        return
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.bundle import opened_parent

    with opened_parent(parent, open_workspace(workspace), fold) as folder:
        yield folder


def override_of_step(step: int | None) -> dict[str, str]:
    """Return `--step N` as the setting that it stands for."""
    return {} if step is None else {"timesteps": f"[{step}]"}


def train_fold(
    settings: dict[str, Any],
    *,
    fold: str,
    runs: int | None,
    device: str | None,
    workers: int | None,
    workspace: Path | None,
    dry_run: bool,
    json_output: bool,
    quiet: bool,
) -> None:
    """Train one fold, once or several times, and print what came out; shared by `train` and `finetune`."""
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.devices import choose_device, choose_workers
    from medsegdiff_cli.workflows.repeated_runs import settle_runs, train_repeatedly
    from medsegdiff_cli.workflows.run_request import TrainRequest
    from medsegdiff_cli.workflows.train_method import train_method

    chosen = choose_device(device)
    request = TrainRequest(
        **settings,
        fold=fold,
        workspace=open_workspace(workspace),
        device=chosen,
        workers=choose_workers(workers, chosen),
    )
    if dry_run:
        from medsegdiff_cli.workflows.forecast import forecast_runs

        setups = settle_runs(request, runs or 1)
        first = next(setup for setup in setups if not setup.is_pretraining)
        print_forecast(forecast_runs(setups), json_output, run=str(first.folder))
        return
    if runs is not None:
        print_repeated(train_repeatedly(request, runs, step_bars(quiet, json_output)), json_output, quiet)
        return
    setup, report = train_method(request, step_bars(quiet, json_output))
    print_outcome(setup, report, json_output, quiet)


def step_bars(quiet: bool, json_output: bool) -> "Bars":
    """Return what opens a progress bar for a run and names its folder."""

    @contextmanager
    def opened(setup: "RunSetup") -> "Iterator[Progress]":
        say(f"run: {setup.folder}", quiet or json_output)
        what = "pretraining" if setup.is_pretraining else "training"
        with progress_bar(what, total=setup.recipe.training.steps, quiet=quiet or json_output) as update:
            yield _StepBar(update, setup.recipe.training.validation_metric)

    return opened


def print_outcome(setup: "RunSetup", report: "TrainReport", json_output: bool, quiet: bool) -> None:
    """Print the validation scores, if any."""
    if json_output:
        from medsegdiff_cli.artifacts.scores import to_json

        scores = None if report.scores is None else to_json(report.scores)
        print_json({"schema_version": 1, "run": str(setup.folder), "validation": scores})
    elif report.scores is not None:
        from medsegdiff_cli.cli.evaluate import print_scores

        print_scores(report.scores, False, quiet)


def print_repeated(repeated: "RepeatedRuns", json_output: bool, quiet: bool) -> None:
    """Print mean and standard deviation of the runs' validation scores, or all of their scores as one JSON object."""
    if json_output:
        from medsegdiff_cli.artifacts.scores import to_json

        runs = [
            {
                "run": str(setup.folder),
                "seed": setup.record.seed,
                "validation": None if report.scores is None else to_json(report.scores),
            }
            for setup, report in repeated.runs
        ]
        statistics = {name: statistic.model_dump() for name, statistic in repeated.statistics.items()}
        print_json({"schema_version": 1, "runs": runs, "statistics": statistics})
        return
    if quiet:
        return
    if not repeated.statistics:
        say("these runs have no validation cases: nothing to average")
        return
    from medsegdiff_cli.reporting.score_table import runs_table

    print_table(runs_table(repeated.statistics))


class _StepBar:
    """Shows training's progress on a bar."""

    def __init__(self, show: Callable[..., None], metric: str) -> None:
        self._show, self._metric = show, metric

    def update(self, step: int, steps: int, loss: float, score: float | None) -> None:
        note = f"loss {loss:.3f}" + ("" if score is None else f", validation {self._metric} {score:.3f}")
        self._show(done=step, total=steps, note=note)
