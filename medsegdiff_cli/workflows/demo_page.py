"""The demonstration's page: what was done, scores per domain and method, and cases from the worst to the best."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_cli import __version__
from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, Part, open_dataset
from medsegdiff_cli.artifacts.prediction_folder import read_prediction_info
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.imaging.reading import case_name_of, ending_of, read_image, read_label
from medsegdiff_cli.metrics.paired import bootstrap_interval
from medsegdiff_cli.reporting.overlay_figure import Overlay, UncertaintyMap, overlay_figure
from medsegdiff_cli.reporting.page import (
    Figure,
    Page,
    Section,
    Table,
    joined,
    seconds_in_words,
    with_interval,
    write_page,
)

_PARTS: tuple[Part, ...] = ("Un", "Tr", "Ts")
_NOTICE = "All images are phantoms: this page proves that the chain works, and nothing about patients."


@dataclass(frozen=True, kw_only=True)
class DemoScores:
    """One method in one domain.

    Attributes:
        cases: names of the test cases of this domain.
        dice: (n_cases,) mean Dice over classes of each case; NaN where undefined.
        predictions: folder of label maps with `prediction.json`; it may hold cases of other domains too. With
            `uncertainty/CASE_entropy` in it, the entropy is drawn.
    """

    domain: str
    method: str
    cases: tuple[str, ...]
    dice: np.ndarray
    predictions: Path

    def __post_init__(self) -> None:
        if self.dice.shape != (len(self.cases),):
            raise ValueError(f"{len(self.cases)} cases, but scores of shape {self.dice.shape}")

    def dice_of(self, case: str) -> float | None:
        """Return a case's Dice; None when it is undefined or the case was not scored."""
        value = float(self.dice[self.cases.index(case)]) if case in self.cases else math.nan
        return None if math.isnan(value) else value


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """The mean Dice of one method in one domain, with its 95 % bootstrap interval (NaN for fewer than two cases)."""

    domain: str
    method: str
    mean: float
    interval: tuple[float, float]
    n: int
    undefined: int

    @property
    def words(self) -> str:
        """Mean, interval and number of cases."""
        words = with_interval(self.mean, self.interval, self.n)
        return f"{words} ({self.undefined} undefined)" if self.undefined else words

    def to_json(self) -> dict[str, Any]:
        """Return plain data; what is not a number is null."""
        mean, low, high = (None if math.isnan(value) else value for value in (self.mean, *self.interval))
        counts = {"n": self.n, "undefined": self.undefined}
        return {"domain": self.domain, "method": self.method, "dice": mean, "low": low, "high": high, **counts}


@dataclass(frozen=True, kw_only=True)
class DemoResults:
    """All that the page is made of.

    Attributes:
        scores: one entry a domain and method; domains and methods are shown in the order of their first entry.
        references: domain to the dataset folder that holds its images and reference labels.
        shown_method: its Dice ranks the cases that are drawn, and its entropy is drawn.
        what_was_done: paragraphs.
        seconds: step to wall time.
        commands: what a person would type for the same, in order; may be empty.
        samples: picture of what a pretraining generates; None for none.
    """

    scores: tuple[DemoScores, ...]
    references: dict[str, Path]
    shown_method: str
    what_was_done: tuple[str, ...]
    seconds: dict[str, float]
    seed: int
    commands: tuple[str, ...] = ()
    samples: Path | None = None

    @property
    def domains(self) -> list[str]:
        """The domains, in order."""
        return list(dict.fromkeys(entry.domain for entry in self.scores))

    @property
    def methods(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(entry.method for entry in self.scores))

    def entry(self, domain: str, method: str) -> DemoScores | None:
        """Return what a method reached in a domain, None where it was not run."""
        return next((e for e in self.scores if (e.domain, e.method) == (domain, method)), None)

    def rows(self) -> list[DemoRow]:
        """Return mean and interval of every entry."""
        return [_row_of(entry, self.seed) for entry in self.scores]

    def differences(self) -> tuple[str, ...]:
        """Say, for each domain, by how much the shown method differs from each other one, case by case."""
        others = [method for method in self.methods if method != self.shown_method]
        return tuple(
            sentence
            for domain in self.domains
            for method in others
            if (
                sentence := _difference_in_words(
                    self.entry(domain, self.shown_method), self.entry(domain, method), self
                )
            )
        )


def write_demo_page(results: DemoResults, path: Path) -> Path:
    """Write the page (one self-contained HTML file) atomically and return `path`; same results, same bytes.

    Raises:
        InputDataError: a case to be drawn has no image, reference or prediction.
    """
    sections = [
        Section(heading="Scores", paragraphs=_how_scored(results), tables=(score_table(results),)),
        *(_cases_of_domain(results, domain) for domain in results.domains),
        *_learnt(results),
        Section(heading="Time", tables=(_time_table(results),)),
    ]
    if results.commands:
        text = "The same by hand, in the demonstration's folder with MSD_WORKSPACE=workspace, in this order:"
        rows = tuple((str(number), f"msd {line}") for number, line in enumerate(results.commands, 1))
        table = Table(caption="Commands", headers=("step", "command"), rows=rows, alignments=("left", "left"))
        sections.append(Section(heading="Commands", paragraphs=(text,), tables=(table,)))
    page = Page(
        title="msd demo: segmentation with few labels",
        notice=_NOTICE,
        paragraphs=results.what_was_done,
        sections=tuple(sections),
        provenance=(("msd", __version__), ("seed", str(results.seed))),
    )
    return write_page(page, path)


def _how_scored(results: DemoResults) -> tuple[str, ...]:
    text = (
        "Dice of a case is the mean over its classes, and the table shows the mean over n test cases. The interval is "
        "a 95 % percentile bootstrap over cases (10,000 resamples). It says how much the mean would move with other "
        "cases of the same kind, not with another training seed."
    )
    n = max(len(entry.cases) for entry in results.scores)
    few = f"With at most {n} cases in a domain and one training a method, small differences mean nothing."
    return (*results.differences(), text, few)


def score_table(results: DemoResults) -> Table:
    """Return mean, interval and number of cases: a row a domain, a column a method."""
    words = {(row.domain, row.method): row.words for row in results.rows()}
    rows = [
        (domain, *(words.get((domain, method), "not run") for method in results.methods)) for domain in results.domains
    ]
    caption = "Mean Dice [95 % bootstrap interval], n cases; higher is better"
    return Table(caption=caption, headers=("domain", *results.methods), rows=tuple(rows))


def _row_of(entry: DemoScores, seed: int) -> DemoRow:
    # The interval depends on the order of the values: by case name it is the same however cases were listed.
    ordered = np.array([entry.dice[entry.cases.index(case)] for case in sorted(entry.cases)])
    values = ordered[~np.isnan(ordered)]
    return DemoRow(
        domain=entry.domain,
        method=entry.method,
        mean=float(values.mean()) if values.size else math.nan,
        interval=bootstrap_interval(values, seed),
        n=values.size,
        undefined=ordered.size - values.size,
    )


def _difference_in_words(ours: DemoScores | None, other: DemoScores | None, results: DemoResults) -> str:
    """Return a sentence about the cases that both have a Dice of; empty for fewer than two."""
    if ours is None or other is None:
        return ""
    pairs = [(ours.dice_of(case), other.dice_of(case)) for case in sorted(ours.cases)]
    values = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if values.size < 2:
        return ""
    low, high = bootstrap_interval(values, results.seed)
    better = ours.method if low > 0 else other.method if high < 0 else "neither"
    return (
        f"On {ours.domain}, {ours.method} minus {other.method} is {values.mean():+.3f} [{low:+.3f}, {high:+.3f}] over "
        f"{values.size} pairs: {better} is better here."
    )


def _time_table(results: DemoResults) -> Table:
    rows = [(step, seconds_in_words(seconds)) for step, seconds in results.seconds.items()]
    rows.append(("together", seconds_in_words(sum(results.seconds.values()))))
    return Table(caption="Wall time on this machine", headers=("step", "time"), rows=tuple(rows))


def _learnt(results: DemoResults) -> tuple[Section, ...]:
    if results.samples is None:
        return ()
    figure = Figure(
        png=results.samples.read_bytes(),
        caption="Generated images: drawn from noise, of nobody",
        alt="Images that the pretrained network generates from noise",
        is_wide=True,
    )
    text = "The better these resemble the images that it saw, the more its features know about them."
    return (Section(heading="What the pretraining learnt", paragraphs=(text,), figures=(figure,)),)


def _cases_of_domain(results: DemoResults, domain: str) -> Section:
    """Draw the worst, the median and the best case of the shown method."""
    heading = f"Cases: {domain}"
    ranked = _ranked(results.entry(domain, results.shown_method))
    if not ranked:
        return Section(heading=heading, paragraphs=(f"{results.shown_method} has no scored case here.",))
    words = {ranked[-1]: "best", ranked[(len(ranked) - 1) // 2]: "median", ranked[0]: "worst"}
    if len(ranked) == 1:
        words = {ranked[0]: "only"}
    figures = tuple(_figure(results, domain, case, words[case]) for case in sorted(words, key=ranked.index))
    text = f"Chosen by the Dice of {results.shown_method}, not by looks. Volumes show the slice with most reference."
    return Section(heading=heading, paragraphs=(text,), figures=figures)


def _ranked(entry: DemoScores | None) -> list[str]:
    """Return the scored cases from the worst to the best, equal ones by name."""
    if entry is None:
        return []
    scored = [(dice, case) for case in entry.cases if (dice := entry.dice_of(case)) is not None]
    return [case for _, case in sorted(scored)]


def _figure(results: DemoResults, domain: str, case: str, word: str) -> Figure:
    files = _files_of(results.references[domain], case)
    image, reference = read_image(files.images[0]), _label_of(files.label, case, results.references[domain])
    entries = [e for e in (results.entry(domain, method) for method in results.methods) if e and case in e.cases]
    overlays = [
        Overlay(
            name=entry.method,
            label=_label_of(_find(entry.predictions, case), case, entry.predictions),
            dice=entry.dice_of(case),
        )
        for entry in entries
    ]
    shown = next(entry for entry in entries if entry.method == results.shown_method)
    classes = read_prediction_info(shown.predictions).classes
    unsure = _entropy_of(shown, case, classes)
    png = overlay_figure(image, reference, overlays, classes, uncertainty=unsure)
    scores = joined([f"{o.name} {'undefined' if o.dice is None else f'{o.dice:.3f}'}" for o in overlays])
    drawn = "image, reference, predictions" + ("" if unsure is None else " and entropy")
    return Figure(
        png=png,
        caption=f"{word.capitalize()} case, {case}: Dice {scores}",
        alt=f"{drawn} of {case}, the {word} case of {domain}; Dice: {scores}",
        is_wide=True,
    )


def _entropy_of(entry: DemoScores, case: str, classes: dict[str, tuple[int, ...]]) -> UncertaintyMap | None:
    """Return the predictive entropy, on a scale that ends at the largest one possible."""
    path = _find(entry.predictions / "uncertainty", f"{case}_entropy")
    if path is None:
        return None
    values = [value for members in classes.values() for value in members]
    overlap = len(values) != len(set(values))
    top = math.log(2) if overlap else math.log(len(classes) + 1)
    return UncertaintyMap(name=f"{entry.method}: entropy (nats)", values=read_image(path).array[0], top=top)


def _files_of(dataset: Path, case: str) -> CaseFiles:
    folder = open_dataset(dataset)
    # Later parts win: a test case may be among the unlabelled images too.
    known = {files.case: files for part in _PARTS for files in folder.cases(part)}
    if case not in known:
        raise InputDataError(f"case '{case}' is not in the dataset", where=str(dataset), fix="see `msd check`")
    return known[case]


def _label_of(path: Path | None, case: str, folder: Path) -> np.ndarray:
    if path is None:
        raise InputDataError(f"case '{case}' has no label map", where=str(folder), fix="run the demo again")
    array: np.ndarray = read_label(path).array[0]
    return array


def _find(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        return None
    return next((file for file in sorted(folder.iterdir()) if ending_of(file) and case_name_of(file) == name), None)
