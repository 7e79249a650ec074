"""Merging: the finished cases of shards that wrote into folders of their own become one prediction folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.prediction_folder import Sidecar, read_sidecar
from medsegdiff_cli.errors import InputDataError, IntegrityError, PartialFailure, UsageError
from medsegdiff_cli.paths import PREDICTION_JSON
from medsegdiff_cli.prediction.case_steps import PredictionJob, key_of
from medsegdiff_cli.prediction.inputs import InputCase
from medsegdiff_cli.prediction.predictor import PredictionReport

_NAMED_CASES = 20


def find_finished(job: PredictionJob, cases: Sequence[InputCase], folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each case that a shard has finished, in the order of the cases; nothing is written.

    Raises:
        UsageError: a folder holds no predictions, two hold the same case, or a case has other settings or images.
        IntegrityError: a case comes from another model, or its files are not those of its sidecar.
    """
    places = _places(cases, folders)
    finished = {case.case: places[case.case] for case in cases if case.case in places}
    for case in cases:
        if case.case in finished:
            _check(job, case, finished[case.case])
    return finished


def take_finished(job: PredictionJob, finished: Mapping[str, Path]) -> PredictionReport:
    """Copy the finished cases into the job's output; those of a folder that is the output itself stay where they are.

    Raises:
        ResourceError: the disk is full or the like.
    """
    report = PredictionReport()
    for name, folder in finished.items():
        if folder == job.output.resolve():
            report.reused.append(name)
        else:
            _take(folder, job.output, _sidecar_of(folder, name))
            report.written.append(name)
    return report


def require_all(cases: Sequence[InputCase], finished: Mapping[str, Path], folders: Sequence[Path]) -> None:
    """Name the cases that are in no shard.

    Raises:
        PartialFailure: some are. InputDataError: all are.
    """
    absent = [case.case for case in cases if case.case not in finished]
    if absent:
        more = f" and {len(absent) - _NAMED_CASES} more" if len(absent) > _NAMED_CASES else ""
        raise (PartialFailure if finished else InputDataError)(
            f"{len(absent)} of {len(cases)} cases are in no shard: {', '.join(absent[:_NAMED_CASES])}{more}",
            where=", ".join(map(str, folders)),
            fix="run the missing shard and merge again, or run the same command without --merge, which predicts them",
        )


def _places(cases: Sequence[InputCase], folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each finished case."""
    places: dict[str, Path] = {}
    doubled: dict[str, tuple[Path, Path]] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        if not (folder / PREDICTION_JSON).is_file():
            raise UsageError(f"'{folder}' holds no predictions", where="--merge", fix="name the OUTPUT of a shard")
        for case in cases:
            if read_sidecar(folder, case.case) is None:
                continue
            first = places.setdefault(case.case, folder)
            if first != folder:
                doubled[case.case] = (first, folder)
    if doubled:
        name, (first, second) = next(iter(doubled.items()))
        raise UsageError(
            f"{len(doubled)} cases are in two shards, first: '{name}'",
            where=f"{first} and {second}",
            fix="name each shard once; were both run with the same --shard-id?",
        )
    return places


def _check(job: PredictionJob, case: InputCase, folder: Path) -> None:
    """Refuse a case that this job would not have predicted just so."""
    sidecar, where = _sidecar_of(folder, case.case), str(folder)
    if sidecar.model_digests != tuple(model.digest for model in job.models):
        what = f"case '{case.case}' was predicted by another model"
        raise IntegrityError(what, where=where, fix="name the model of this shard, or predict it again")
    if sidecar.key != key_of(job, case)[0]:
        raise UsageError(
            f"case '{case.case}' was predicted from another image or with other settings",
            where=where,
            fix="give the flags and the images of the shards, or predict this shard again",
        )
    for name, digest in sidecar.outputs.items():
        if not _stays_inside(name):
            raise IntegrityError(
                f"the sidecar of '{case.case}' names '{name}'", where=where, fix="do not use this shard"
            )
        if not (folder / name).is_file() or atomic.digest_of_file(folder / name) != digest:
            what = f"'{name}' is missing or not what its sidecar says"
            raise IntegrityError(what, where=where, fix="copy or predict this shard again")


def _take(folder: Path, output: Path, sidecar: Sidecar) -> None:
    """Copy a case's files, its sidecar last."""
    # An older sidecar must not vouch for files that are about to change.
    (output / f"{sidecar.case}.json").unlink(missing_ok=True)
    for name in (*sidecar.outputs, f"{sidecar.case}.json"):
        with atomic.staged(output / name) as temporary:
            shutil.copyfile(folder / name, temporary)


def _sidecar_of(folder: Path, case: str) -> Sidecar:
    sidecar = read_sidecar(folder, case)
    if sidecar is None or sidecar.case != case:
        raise IntegrityError(f"the sidecar of '{case}' is not its own", where=str(folder), fix="predict it again")
    return sidecar


def _stays_inside(name: str) -> bool:
    """Return whether a relative name leads to a file below its folder, wherever the folder came from."""
    return all(
        path.parts and not path.is_absolute() and not path.drive and ".." not in path.parts
        for path in (PurePosixPath(name), PureWindowsPath(name))
    )
