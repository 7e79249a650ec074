"""`msd compare`: paired statistics of two or more sets of scores."""

from pathlib import Path
from typing import Annotated

import typer

from medsegdiff_cli.cli.shell import (
    JsonOption,
    QuietOption,
    VerboseOption,
    WorkspaceOption,
    one_of,
    print_json,
    print_table,
    say,
    verb,
)


@verb
def compare(
    scores: Annotated[
        list[str],
        typer.Argument(
            metavar="SCORES SCORES...", help="Scored predictions, a scores.csv, a run or fold; or LABEL=PATH."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Label or path of the set that others are compared with [first].")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="Numeric column of scores.csv.")] = "dice",
    test: Annotated[str, typer.Option("--test", help="wilcoxon (signed-rank) or ttest (paired).")] = "wilcoxon",
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Level of the test [0.05 for wilcoxon, 0.01 for ttest].")
    ] = None,
    correction: Annotated[
        str, typer.Option("--correction", help="holm, bonferroni or none, over all tested rows.")
    ] = "holm",
    domains: Annotated[
        Path | None, typer.Option("--domains", help="CSV file with columns case,domain [the scores' own domains].")
    ] = None,
    groups: Annotated[
        bool | None,
        typer.Option(
            "--groups/--no-groups", help="Resample and test patients [if the scores name some with several cases]."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap samples.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the rows into this file, too.")] = None,
    workspace: WorkspaceOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Compare sets of scores case by case: differences with 95 % bootstrap intervals, and corrected p-values.

    The first set is the baseline. Rows are classes, of all shared cases and of each domain; cases without a partner
    are counted and named. TEDM's rule is `--correction bonferroni`, ImgX's is `--test ttest --correction none`.

    Example: `msd compare base=predictions_a ours=predictions_b --csv differences.csv`
    """
    from medsegdiff_cli.errors import UsageError
    from medsegdiff_cli.evaluation.compare import ComparisonSettings
    from medsegdiff_cli.paths import open_workspace
    from medsegdiff_cli.workflows.compare import CompareRequest
    from medsegdiff_cli.workflows.compare import compare as compare_sets

    one_of(test, ("wilcoxon", "ttest"), "--test")
    one_of(correction, ("holm", "bonferroni", "none"), "--correction")
    if alpha is not None and not 0 < alpha < 1:
        raise UsageError(f"alpha {alpha:g} is no level", where="--alpha", fix="choose one between 0 and 1, as 0.05")
    settings = ComparisonSettings(
        metric=metric,
        test=test,  # type: ignore[arg-type]  # checked by one_of
        alpha=alpha,
        correction=correction,  # type: ignore[arg-type]  # checked by one_of
        resamples=resamples,
        seed=seed,
        use_groups=groups,
    )
    comparison = compare_sets(
        CompareRequest(
            scores=scores,
            workspace=open_workspace(workspace),
            settings=settings,
            baseline=baseline,
            domains=domains,
            csv_file=csv_file,
        )
    )
    if json_output:
        print_json(comparison.model_dump(mode="json"))
    elif not quiet:
        from medsegdiff_cli.reporting.comparison_table import comparison_report

        print_table(comparison_report(comparison))
    if json_output or quiet:
        for sentence in comparison.warnings:
            say(f"warning: {sentence}")
