"""`msd predict`: trained models on a file, a folder or a list."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsegdiff_cli.cli.shell import (
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
    one_of,
    parse_duration,
    print_forecast,
    print_json,
    progress_bar,
    say,
    verb,
)
from medsegdiff_cli.errors import UsageError

if TYPE_CHECKING:
    from medsegdiff_cli.prediction.predictor import PredictionReport


@verb
def predict(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL... INPUT OUTPUT", help="Models (several are averaged), images, output folder."),
    ] = None,
    source: Annotated[Path | None, typer.Option("--input", "-i", help="Images, instead of INPUT.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder, instead of OUTPUT.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Dataset whose runs MODEL names.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Configuration of the run MODEL names.")] = None,
    folds: Annotated[
        str | None, typer.Option("--folds", "-f", help="Folds to average, for example 0,2 [all that are trained].")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="best or last [what the run selects by].")
    ] = None,
    step_size: Annotated[
        float | None, typer.Option("--step-size", min=0.05, max=1, help="Distance of windows as a share of the patch.")
    ] = None,
    mirror: Annotated[
        bool | None, typer.Option("--mirror/--no-mirror", help="Average over mirrored windows [the recipe's].")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Repetitions of a stochastic method.")] = 1,
    timesteps: Annotated[
        list[str] | None,
        typer.Option("--timesteps", help="Of a timestep ensemble, for example 1,10,25 [all it was trained with]."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="ddpm, ddim or dpm++, for methods that sample [the model's].")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Sampling steps [the model's].")] = None,
    eta: Annotated[
        float | None, typer.Option("--eta", min=0, max=1, help="Noise of ddim's steps, up to 1 for all of ddpm's [0].")
    ] = None,
    stop_change: Annotated[
        float | None,
        typer.Option("--stop-change", min=0, max=1, help="Stop when a smaller share of foreground voxels changes."),
    ] = None,
    canvas: Annotated[
        str, typer.Option("--canvas", help="window: each window samples by itself; shared: all on one noisy image.")
    ] = "window",
    init_from: Annotated[
        str | None,
        typer.Option("--init-from", metavar="PREDICTIONS|MODEL", help="Segmentation to start sampling from."),
    ] = None,
    start_t: Annotated[
        int | None, typer.Option("--start-t", min=0, help="Timestep to which that segmentation is noised.")
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            "--fusion", help="mean of the members' probabilities, majority of their votes, or staple [the recipe's]."
        ),
    ] = None,
    postprocess: Annotated[
        str | None,
        typer.Option(
            "--postprocess", metavar="STEPS", help="none, names (fill-holes,largest-component) or YAML [the recipe's]."
        ),
    ] = None,
    window_batch: Annotated[int | None, typer.Option("--window-batch", min=1, help="Windows per network call.")] = None,
    save_probabilities: Annotated[bool, typer.Option("--save-probabilities", help="Write one map per class.")] = False,
    save_uncertainty: Annotated[
        bool, typer.Option("--save-uncertainty", help="Write entropy and, with several members, variance.")
    ] = False,
    save_members: Annotated[bool, typer.Option("--save-members", help="Write each member's label map.")] = False,
    save_steps: Annotated[
        bool, typer.Option("--save-steps", help="Write the label map of each sampling step; with members, each one's.")
    ] = False,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Folder with a body or brain mask per case, if the plan needs it.")
    ] = None,
    num_shards: Annotated[int, typer.Option("--num-shards", min=1, help="Split the cases into so many jobs.")] = 1,
    shard_id: Annotated[int, typer.Option("--shard-id", min=0, help="This job's number, from 0.")] = 0,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", metavar="FOLDER", help="Predict nothing: collect this shard's cases (repeatable)."),
    ] = None,
    print_slurm: Annotated[
        bool, typer.Option("--print-slurm", help="Print a SLURM job array script for --num-shards and stop.")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", help="Begin no case after so long, e.g. 6h, and exit 7.")
    ] = None,
    workspace: WorkspaceOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Segment images on their own grid; the same command again finishes what is missing.

    Exit code 5 says that some cases failed (they are listed; the others are written), 3 that all did. Jobs with the
    same --num-shards may share OUTPUT; where each has its own, --merge brings them together and lists what is absent.

    Example: `msd predict supervised__3d new_patients/ segmentations/`
    """
    from medsegdiff_cli.artifacts.postprocessing import parse_postprocessing
    from medsegdiff_cli.methods.base import Sampling
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.prediction.settings import OutputSettings
    from medsegdiff_cli.prediction.slurm import slurm_script
    from medsegdiff_cli.workflows.models import find_models
    from medsegdiff_cli.workflows.predict import PredictRequest, prepare_prediction, run_prediction, split_arguments
    from medsegdiff_cli.workflows.warm_start import find_start

    one_of(checkpoint, ("best", "last"), "--checkpoint")
    one_of(fusion, ("mean", "majority", "staple"), "--fusion")
    one_of(canvas, ("window", "shared"), "--canvas")
    models, source, output = split_arguments(arguments or [], source, output)
    if merge and dry_run:
        raise UsageError("--merge predicts nothing", where="--dry-run", fix="leave one of the two out")
    if print_slurm:
        typer.echo(slurm_script(num_shards, sys.argv), nl=False)
        return
    prepared = prepare_prediction(
        PredictRequest(
            models=find_models(models, open_workspace(workspace), dataset=dataset, config=config),
            source=source,
            output=output,
            folds=tuple((folds or "").replace(",", " ").split()),
            checkpoint=checkpoint,  # type: ignore[arg-type]  # checked by one_of
            step_size=step_size,
            mirror=mirror,
            draws=draws,
            fusion=fusion,  # type: ignore[arg-type]  # checked by one_of
            sampling=Sampling(
                sampler=sampler,
                steps=steps,
                eta=eta or 0.0,
                start=start_t,
                stop_change=stop_change,
                timesteps=_whole_numbers(timesteps, "--timesteps"),
            ),
            canvas=canvas,  # type: ignore[arg-type]  # checked by one_of
            start_from=None if init_from is None else find_start(init_from, open_workspace(workspace), dataset, config),
            postprocessing=None if postprocess is None else parse_postprocessing(postprocess),
            window_batch=window_batch,
            wanted=OutputSettings(
                probabilities=save_probabilities, uncertainty=save_uncertainty, members=save_members, steps=save_steps
            ),
            masks=masks,
            num_shards=num_shards,
            shard_id=shard_id,
            seed=seed,
            device=device,
            workers=workers,
            max_time_s=parse_duration(max_time, "--max-time"),
            overwrite=overwrite,
        )
    )
    found, skipped = len(prepared.inputs.cases), prepared.inputs.skipped
    say(f"{found} cases found, {len(prepared.cases)} in this job; {len(skipped)} files skipped", quiet)
    for path, reason in skipped[:20]:
        say(f"- skipped {path.name}: {reason}", quiet)
    if merge:
        from medsegdiff_cli.workflows.merge import run_merge

        _print_report(run_merge(prepared, merge), output, json_output, quiet)
        return
    if dry_run:
        from medsegdiff_cli.workflows.forecast import forecast_prediction

        print_forecast(forecast_prediction(prepared), json_output)
        return
    with progress_bar("predicting", total=len(prepared.cases), quiet=quiet or json_output) as update:

        def on_case(case: str, outcome: str) -> None:
            update(advance=1, note=f"{case} {outcome}")

        report = run_prediction(prepared, on_case)
    _print_report(report, output, json_output, quiet)


def _print_report(report: "PredictionReport", output: Path, json_output: bool, quiet: bool) -> None:
    if json_output:
        print_json({"schema_version": 1, "output": str(output), "written": report.written, "reused": report.reused})
    else:
        say(f"{output}: {len(report.written)} written, {len(report.reused)} already there", quiet)


def _whole_numbers(texts: list[str] | None, flag: str) -> tuple[int, ...] | None:
    """Return the numbers of a flag that holds a list (`1,10`), is repeated, or both; None when it is not given.

    Raises:
        UsageError: something else.
    """
    if not texts:
        return None
    words = ",".join(texts).replace(",", " ").split()
    try:
        numbers = tuple(int(word) for word in words)
    except ValueError:
        numbers = ()
    if not numbers:
        raise UsageError(f"'{','.join(texts)}' is no list of whole numbers", where=flag, fix=f"write {flag} 1,10,25")
    return numbers
