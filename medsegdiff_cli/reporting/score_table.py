"""The table of scores that `msd evaluate` shows: a row a class, a column a metric."""

from collections.abc import Callable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medsegdiff_cli.artifacts.scores import Scores, ScoreSummary, Statistic

_COLUMNS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd95_pooled": "HD95\npooled",
    "hd95_max": "HD95\nmax",
    "assd": "ASSD",
    "nsd": "NSD",
}
_NAMED = {"jaccard_per_image": "Jaccard index per image", "miou": "mIoU of the data set, background included"}
_WITH_UNIT = ("hd95_pooled", "hd95_max", "assd")


def score_table(scores: Scores, *, metrics: tuple[str, ...] = ("dice", "hd95_pooled", "hd95_max", "nsd")) -> Table:
    """Return mean ± standard deviation per class, with the number of cases behind it and of lost structures.

    Args:
        scores: what to show.
        metrics: the columns, among those of `artifacts.scores.METRICS` that are no volumes.
    """
    unit = "/".join(scores.distance_units)
    table = Table(
        title=f"Scores of {scores.overall.n_cases} cases (mean ± standard deviation over cases)", show_edge=False
    )
    widest = max(map(len, (*scores.classes, "Case by class")))
    table.add_column("Class", overflow="fold", min_width=min(widest, 20))
    for metric in metrics:
        table.add_column(_header(metric, unit, scores.nsd_tolerance), justify="right")
    for column in ("n", "missed", "spurious"):
        table.add_column(column, justify="right", no_wrap=True)
    overall = scores.overall
    for name in scores.classes:
        statistics = overall.per_class[name]
        n = max(statistics[metric].n for metric in metrics)
        counts = (str(n), _count(overall.missed[name]), _count(overall.spurious[name]))
        table.add_row(Text(name), *(_cell(statistics[metric]) for metric in metrics), *counts)
    table.add_section()
    table.add_row("Case by class", *_means(lambda metric: overall.case_by_class[metric].mean, metrics))
    table.add_row("Case then class", *_means(lambda metric: overall.per_case_then_class[metric].mean, metrics))
    table.add_row("Dataset level", *_means(lambda metric: overall.dataset_level_mean.get(metric), metrics))
    return table


def domain_table(scores: Scores, metric: str = "dice") -> Table:
    """Return one metric per class (rows) and domain (columns), with the number of cases of each domain."""
    table = Table(
        title=f"{_header(metric, '/'.join(scores.distance_units), scores.nsd_tolerance)} per domain", show_edge=False
    )
    table.add_column("Class", overflow="fold")
    for domain, part in scores.domains.items():
        table.add_column(Text(f"{domain} (n={part.n_cases})"), justify="right")
    for name in scores.classes:
        table.add_row(Text(name), *(_cell(part.per_class[name][metric]) for part in scores.domains.values()))
    table.add_section()
    table.add_row("Case by class", *(_number(p.case_by_class[metric].mean) for p in scores.domains.values()))
    return table


def runs_table(statistics: Mapping[str, Statistic]) -> Table:
    """Return mean ± sample standard deviation of each score over several runs, with their number.

    Args:
        statistics: over runs, by `dice` or the name of an aggregation.
    """
    table = Table(title="Validation scores (mean ± standard deviation over runs)", show_edge=False)
    for column in ("Score", "mean ± std", "runs"):
        table.add_column(column, justify="left" if column == "Score" else "right")
    words = {"dice": "Dice, case by class", **_NAMED}
    for name, statistic in statistics.items():
        table.add_row(words[name], _cell(statistic), str(statistic.n))
    return table


def score_report(scores: Scores) -> RenderableType:
    """Return the table of classes, that of domains when there are several, and what must be said beside them."""
    parts: list[RenderableType] = [score_table(scores)]
    if len(scores.domains) > 1:
        parts.append(domain_table(scores))
    parts.extend(Text(f"{words}: {_number(value)}.") for words, value in _named(scores.overall))
    parts.extend(Text(sentence) for sentence in _sentences(scores, scores.overall))
    return Group(*parts)


def _named(overall: ScoreSummary) -> list[tuple[str, float]]:
    return [(text, value) for name, text in _NAMED.items() if (value := overall.named.get(name)) is not None]


def _sentences(scores: Scores, overall: ScoreSummary) -> list[str]:
    sentences = []
    if overall.missing_predictions:
        sentences.append(f"Cases without a prediction, counted with the worst scores: {overall.missing_predictions}.")
    if n_lost := sum(overall.missed.values()) + sum(overall.spurious.values()):
        sentences.append(f"Missed or spurious structures, counted as Dice 0, NSD 0 and the image diagonal: {n_lost}.")
    if n_undefined := sum(overall.undefined.values()):
        sentences.append(f"Classes in neither prediction nor reference, in no mean: {n_undefined}.")
    if scores.failures:
        names = ", ".join(list(scores.failures)[:5])
        sentences.append(f"Cases that could not be scored, in no mean: {len(scores.failures)} ({names}).")
    return [*sentences, *scores.notes]


def _header(metric: str, unit: str, nsd_tolerance: float) -> str:
    if metric == "nsd":
        return f"NSD\n{nsd_tolerance:g} {unit}"
    return f"{_COLUMNS[metric]} {unit}" if metric in _WITH_UNIT else _COLUMNS[metric]


def _means(value_of: Callable[[str], float | None], metrics: tuple[str, ...]) -> list[str]:
    return [_number(value_of(metric)) for metric in metrics]


def _cell(statistic: Statistic) -> str:
    mean = _number(statistic.mean)
    return mean if statistic.mean is None or statistic.std is None else f"{mean} ± {_number(statistic.std)}"


def _number(value: float | None) -> str:
    """Write up to 1 with three decimals, up to 10 with two, beyond with one; a dash when undefined."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _count(value: int) -> Text:
    return Text(str(value), style="bold red" if value else "")
