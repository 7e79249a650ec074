"""Finding trained models by path or by name; what could run code when it is opened is refused by its name alone."""

from collections.abc import Sequence
from pathlib import Path

from medsegdiff_cli.artifacts.bundle import is_bundle
from medsegdiff_cli.errors import IntegrityError, UsageError, did_you_mean
from medsegdiff_cli.paths import FOLD_PREFIX, RUN_JSON, Workspace, find_dataset

_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".joblib", ".pt2", ".model", ".npy", ".npz")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def find_models(
    references: Sequence[str], workspace: Workspace, *, dataset: str | None = None, config: str | None = None
) -> tuple[Path, ...]:
    """Return what MODEL names: a run folder's or a bundle's path, or a run's name (or its method) within the results.

    Raises:
        UsageError: nothing, or more than one run, is called so.
        IntegrityError: a pickle, or an archive of another tool.
    """
    return tuple(_find_model(reference, workspace, dataset, config) for reference in references)


def _refuse_foreign(path: Path) -> None:
    """Let bundles pass; other files are named for what they are, and never opened."""
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise IntegrityError(
            f"'{path.name}' is a pickle, or may be one: it can run code when it is opened, so msd never does",
            where=str(path),
            fix="ask its author for a bundle (msd bundle export), which holds numbers and settings only",
        )
    if suffix in _ARCHIVES:
        raise IntegrityError(
            f"'{path.name}' is an archive of another tool", where=str(path), fix="give a bundle (.msd) or a run folder"
        )
    if not is_bundle(path):
        raise UsageError(
            f"'{path.name}' is no model", where=str(path), fix="give a run folder, a run's name or a bundle (.msd)"
        )


def _find_model(reference: str, workspace: Workspace, dataset: str | None, config: str | None) -> Path:
    path = Path(reference).expanduser()
    if path.is_dir() and ((path / RUN_JSON).is_file() or any(path.glob(f"{FOLD_PREFIX}*/{RUN_JSON}"))):
        return path.resolve()
    if path.is_file():
        _refuse_foreign(path)
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
