"""Check a dataset folder: names, every file's voxels and grid, and how the cases compare."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import get_args

from medsegdiff_cli.artifacts.dataset_folder import DatasetFolder, Part
from medsegdiff_cli.artifacts.label_scheme import LabelScheme
from medsegdiff_cli.artifacts.splits import Splits
from medsegdiff_cli.checking.across_cases import check_across
from medsegdiff_cli.checking.case_content import Expected, examine_case
from medsegdiff_cli.checking.listing import check_listing
from medsegdiff_cli.checking.problem import CheckReport, Problem, sorted_problems
from medsegdiff_cli.errors import InputDataError


def check_dataset(
    dataset: DatasetFolder,
    *,
    folds: Splits | None = None,
    known_problems: Sequence[Problem] = (),
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Return every problem of every case; a damaged file is a problem in the report, never an exception.

    nnU-Net's own integrity rules are included, and what they lack: damaged files, missing channels, duplicates,
    leaks between training and test or within folds, orphans, absent classes, values that are no Hounsfield units,
    odd geometry.

    Args:
        folds: those that a training would use; patients and images that occur on both sides of one are leaks.
        known_problems: found by the caller; they become part of the report.
        workers: files read at the same time.
        progress: called with (cases done, cases) after each case.
    """
    problems = [*known_problems, *check_listing(dataset)]
    scheme = _scheme(dataset, problems)
    jobs = [(case, part) for part in get_args(Part) for case in dataset.cases(part)]
    names = tuple(dataset.info.channel_names[key] for key in sorted(dataset.info.channel_names, key=_as_number))
    expected = {
        part: Expected(channel_names=names, scheme=scheme, extra_folders=_observer_folders(dataset.path, part))
        for part in get_args(Part)
    }
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        futures = [pool.submit(examine_case, case, part, expected[part]) for case, part in jobs]
        try:
            for done, _ in enumerate(as_completed(futures), start=1):
                if progress is not None:
                    progress(done, len(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for all other cases
            raise
    facts = [future.result() for future in futures]
    for fact in facts:
        problems += fact.problems
    problems += check_across(dataset, facts, scheme, folds)
    n_cases = {part: sum(fact.part == part for fact in facts) for part in get_args(Part)}
    return CheckReport(dataset=dataset.name, n_cases=n_cases, problems=sorted_problems(problems))


def _scheme(dataset: DatasetFolder, problems: list[Problem]) -> LabelScheme | None:
    try:
        return dataset.label_scheme()
    except InputDataError as error:
        fix = error.fix or "correct `labels` in dataset.json"
        problems.append(Problem(severity="error", code="labels-wrong", message=error.what, fix=fix))
        return None


def _observer_folders(root: Path, part: Part) -> tuple[Path, ...]:
    return tuple(sorted(path for path in root.glob(f"labels{part}_*") if path.is_dir()))


def _as_number(key: str) -> int:
    return int(key) if key.isdigit() else 0
