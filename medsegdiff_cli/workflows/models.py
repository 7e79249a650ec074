"""Finding trained models by path or by name."""

from collections.abc import Sequence
from pathlib import Path

from medsegdiff_cli.errors import UsageError, did_you_mean
from medsegdiff_cli.paths import FOLD_PREFIX, RUN_JSON, Workspace, find_dataset


def find_models(
    references: Sequence[str], workspace: Workspace, *, dataset: str | None = None, config: str | None = None
) -> tuple[Path, ...]:
    """Return the run folders that MODEL names: a path, or a run's name (or its method) within the results.

    Raises:
        UsageError: nothing, or more than one run, is called so.
    """
    return tuple(_find_model(reference, workspace, dataset, config) for reference in references)


def _find_model(reference: str, workspace: Workspace, dataset: str | None, config: str | None) -> Path:
    path = Path(reference).expanduser()
    if path.is_dir() and ((path / RUN_JSON).is_file() or any(path.glob(f"{FOLD_PREFIX}*/{RUN_JSON}"))):
        return path.resolve()
    within = find_dataset(dataset, workspace).name if dataset else "*"
    runs = sorted(run for run in workspace.results.glob(f"{within}/*") if run.is_dir())
    wanted = {"3d_fullres": "3d"}.get(config or "", config)
    matches = [
        run
        for run in runs
        if run.name == reference or (run.name.split("__")[0] == reference and wanted in (None, run.name.split("__")[1]))
    ]
    exact = [run for run in matches if run.name in (reference, f"{reference}__{wanted}")]
    chosen = exact if len(exact) == 1 else matches
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        names = ", ".join(f"{run.parent.name}/{run.name}" for run in chosen)
        raise UsageError(f"'{reference}' names {len(chosen)} runs: {names}", where="MODEL", fix="give the run's path")
    known = [run.name for run in runs]
    fix = f"{did_you_mean(reference, known)}; see `msd runs`" if known else "train one first: msd train METHOD DATASET"
    raise UsageError(f"no model '{reference}'", where=str(workspace.results), fix=fix)
