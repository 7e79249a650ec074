"""`msd evaluate`: scores per case, class, group and domain."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medsegdiff_cli.cli.shell import (
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkersOption,
    WorkspaceOption,
    one_of,
    parse_pairs,
    print_json,
    print_table,
    progress_bar,
    verb,
)

if TYPE_CHECKING:
    from medsegdiff_cli.artifacts.scores import Scores
    from medsegdiff_cli.artifacts.step_scores import StepScores


@verb
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="OUTPUT of `msd predict`, or a run.")],
    reference: Annotated[
        str | None,
        typer.Argument(metavar="REFERENCE", help="Labels folder, dataset (id, name, path), or a tree of masks."),
    ] = None,
    cv: Annotated[bool, typer.Option("--cv", help="PREDICTIONS is a run: merge its folds' validation scores.")] = False,
    cases: Annotated[Path | None, typer.Option("--cases", help="File with one case a line: score only these.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Glob of the masks below REFERENCE.")] = None,
    label_suffix: Annotated[str, typer.Option("--label-suffix", help="What a mask's name has more.")] = "",
    label_map: Annotated[
        list[str] | None, typer.Option("--label-map", metavar="VALUE:NAME", help="Class of a mask value; repeatable.")
    ] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Mask values above it are foreground.")] = None,
    observer: Annotated[
        str | None, typer.Option("--observer", help="Further observer's labels of the dataset as reference.")
    ] = None,
    nsd_tolerance: Annotated[float, typer.Option("--nsd-tolerance", min=0, help="In mm (px without spacing).")] = 2.0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave cases without prediction out instead of scoring them 0.")
    ] = False,
    fail_below: Annotated[
        list[str] | None, typer.Option("--fail-below", metavar="METRIC=VALUE", help="Exit 8 below it; repeatable.")
    ] = None,
    per_step: Annotated[
        bool, typer.Option("--per-step", help="Score the label maps of `--save-steps`, step by step, instead.")
    ] = False,
    per_member: Annotated[
        bool, typer.Option("--per-member", help="Score those of `--save-members`: how far members are apart.")
    ] = False,
    grid: Annotated[
        str, typer.Option("--grid", help="native, or plan: on the grid of the plan, as published scores often are.")
    ] = "native",
    workspace: WorkspaceOption = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Score predictions against references; writes `summary.json` and `scores.csv` into PREDICTIONS.

    Missing predictions count as 0 (training cases need none), missed structures are counted, never dropped.
    With --per-step or --per-member, the label maps of sampling's steps and of members are scored instead, into
    `steps.json`, `steps.csv`, `step_curves.csv` and `step_curves.png`.

    Example: `msd evaluate segmentations/ 4 --fail-below dice=0.85`
    """
    from medsegdiff_cli.errors import UsageError
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.devices import choose_workers
    from medsegdiff_cli.workflows.evaluate import (
        EvaluateRequest,
        evaluate_folds,
        evaluate_predictions,
        find_reference,
        read_case_list,
    )
    from medsegdiff_cli.workflows.models import find_models

    one_of(grid, ("native", "plan"), "--grid")
    inner = "--per-step" if per_step else "--per-member" if per_member else None
    if inner and (cv or fail_below or allow_missing):
        other = "--cv" if cv else "--fail-below" if fail_below else "--allow-missing"
        raise UsageError(f"{inner} does not go with {other}", where="msd evaluate", fix="run the command twice")
    if cv:
        (run,) = find_models([str(predictions)], open_workspace(workspace))
        scores = evaluate_folds(run, demands=fail_below or ())
        print_scores(scores, json_output, quiet)
        return
    if reference is None:
        raise UsageError("what are the predictions compared with?", where="REFERENCE", fix="give a dataset or a folder")
    request = EvaluateRequest(
        predictions=predictions,
        reference=find_reference(reference, open_workspace(workspace)),
        cases=read_case_list(cases),
        labels=labels,
        label_suffix=label_suffix,
        label_values=parse_pairs(label_map, ":", "--label-map"),
        threshold=threshold,
        observer=observer,
        nsd_tolerance=nsd_tolerance,
        allow_missing=allow_missing,
        demands=fail_below or (),
        grid=grid,  # type: ignore[arg-type]  # checked by one_of
        workspace=open_workspace(workspace),
        workers=choose_workers(workers),
    )
    with progress_bar("scoring", quiet=quiet or json_output) as update:

        def on_case(case: str) -> None:
            update(advance=1, note=case)

        if inner:
            from medsegdiff_cli.workflows.evaluate_steps import EvaluateStepsRequest, evaluate_steps

            asked = EvaluateStepsRequest(common=request, per_step=per_step, per_member=per_member)
            evaluate_steps(asked, on_case, on_scores=lambda s: print_step_scores(s, json_output, quiet))
            return
        evaluate_predictions(request, on_case, on_scores=lambda s: print_scores(s, json_output, quiet))


def print_scores(scores: "Scores", json_output: bool, quiet: bool) -> None:
    """Print the summary as a table, or as one JSON object."""
    from medsegdiff_cli.artifacts.scores import to_json

    if json_output:
        print_json(to_json(scores))
        return
    if quiet:
        return
    from medsegdiff_cli.reporting.score_table import score_report

    print_table(score_report(scores))


def print_step_scores(scores: "StepScores", json_output: bool, quiet: bool) -> None:
    """Print scores by step and member as tables, or as one JSON object."""
    if json_output:
        print_json(scores.model_dump(mode="json"))
    elif not quiet:
        from medsegdiff_cli.reporting.step_table import step_report

        print_table(step_report(scores))
