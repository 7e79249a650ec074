"""Test set: whole patients that are set aside before anything else looks at the data."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medsegdiff_cli.errors import UsageError, did_you_mean

from .case_source import CaseSource, bare_name, safe_name
from .contract import Options


def set_aside(sources: Sequence[CaseSource], options: Options) -> tuple[list[CaseSource], tuple[str, ...]]:
    """Move the cases of `--test-list` or `--test-count` to part Ts, together with all cases of their groups.

    A group's unlabelled images go with it, since a patient in the test set must not serve pretraining.

    Returns:
        All cases, and sentences for the report.

    Raises:
        UsageError: both options at once, an unknown name in the list, or not enough labelled cases.
    """
    if options.test_list is None and not options.test_count:
        return list(sources), ()
    if options.test_list is not None and options.test_count:
        raise UsageError("a list and a count of test cases", where="--test-list, --test-count", fix="give one of them")
    if options.test_list is not None:
        groups = _listed_groups(sources, options.test_list)
    else:
        groups = _drawn_groups(sources, options.test_count, options.seed)
    moved = [replace(source, part="Ts") if _group(source) in groups else source for source in sources]
    test = [source for source in moved if source.part == "Ts"]
    labelled = sum(source.label is not None for source in test)
    how = f"listed in {options.test_list.name}" if options.test_list else f"drawn with seed {options.seed}"
    note = f"{labelled} labelled cases of {len(groups)} groups set aside for testing ({how})"
    if len(test) > labelled:
        note += f", with {len(test) - labelled} unlabelled images of the same groups"
    return moved, (note,)


def _group(source: CaseSource) -> str:
    return source.group or source.case


def _drawn_groups(sources: Sequence[CaseSource], n_cases: int, seed: int) -> set[str]:
    """Draw whole groups until they hold at least `n_cases` labelled cases."""
    sizes: dict[str, int] = {}
    for source in sources:
        if source.label is not None:
            sizes[_group(source)] = sizes.get(_group(source), 0) + 1
    n_labelled = sum(sizes.values())
    if n_cases >= n_labelled:
        raise UsageError(
            f"{n_cases} test cases asked for, {n_labelled} are labelled", where="--test-count", fix="ask for fewer"
        )
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    chosen: set[str] = set()
    for group in order:
        if sum(sizes[name] for name in chosen) >= n_cases:
            break
        chosen.add(group)
    if sum(sizes[name] for name in chosen) == n_labelled:
        raise UsageError(
            f"{n_cases} test cases would take all {len(sizes)} groups", where="--test-count", fix="ask for fewer"
        )
    return chosen


def _listed_groups(sources: Sequence[CaseSource], test_list: Path) -> set[str]:
    """Return the groups of the listed cases; a line may name a case, a file or a group."""
    lines = [line.strip() for line in test_list.read_text(encoding="utf-8-sig").splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    group_of = {source.case: _group(source) for source in sources}
    known = {**{group: group for group in group_of.values()}, **group_of}
    chosen, unknown = set(), []
    for line in wanted:
        name = line if line in known else safe_name(bare_name(Path(line)))
        if name in known:
            chosen.add(known[name])
        else:
            unknown.append(line)
    if unknown or not wanted:
        what = f"{len(unknown)} lines name no case: {', '.join(unknown[:5])}" if unknown else "the list is empty"
        fix = did_you_mean(unknown[0], known) if unknown else "write one case a line"
        raise UsageError(what, where=str(test_list), fix=fix)
    return chosen
