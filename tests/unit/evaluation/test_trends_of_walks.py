"""Verdicts about walks on made-up scores, worked out by hand: the same ten test images in two seeds."""

import pytest

from medsegdiff_cli.artifacts.experiment import Experiment
from medsegdiff_cli.artifacts.reproduction import Finding
from medsegdiff_cli.evaluation.trends import ArmScores, judge

IMAGES = [f"blobs-{number:04d}" for number in range(10)]
CELLS = {"domains": ("blobs",), "labels": (8,)}


def experiment(**criterion: object) -> Experiment:
    content = {**CELLS, **criterion}
    return Experiment.model_validate({"id": "X", "claim": "c", "published": "p", "gate": True, "criterion": content})


def judged(trend: Experiment, points: dict[str, dict[str, float]], wiggle: float = 0.0) -> Finding:
    """Judge on arm to metric to mean points; `wiggle` raises every other image's first arm and lowers the rest."""
    assert {arm.name for arm in trend.arms} == set(points)
    values: dict[tuple[int, str, str], dict[str, dict[str, float]]] = {}
    for seed, shift in ((11, 0.5), (12, -0.5)):
        for number, (arm, metrics) in enumerate(points.items()):
            values[seed, arm, "blobs"] = {
                image: {
                    metric: (mean + (shift + wiggle * (-1) ** place if number == 0 else 0)) / 100
                    for metric, mean in metrics.items()
                }
                for place, image in enumerate(IMAGES)
            }
    return judge(trend, ArmScores(values, same_tests=True))


def walk(method: str, *, steps: int = 5, sampler: str = "ddpm", draws: int = 1) -> str:
    return f"{method}-n8-{sampler}-{steps}-walks-{draws}"


def ends(points: float, steps: int = 5) -> dict[str, float]:
    return {f"dice after step {steps}": points}


BEST = {
    "kind": "best-strategy",
    "method": "new",
    "other": "old",
    "rivals": ("old", "third"),
    "p_below": 0.01,
    "margin": 0.5,
}


@pytest.mark.parametrize(
    ("old", "third", "wiggle", "holds"),
    [
        (89.0, 90.4, 0.5, True),
        (89.0, 90.6, 0.5, False),  # a strategy is better by more than the margin
        (89.0, 80.0, 1.5, False),  # five images of ten are worse: p is far above 0.01
        (91.0, 80.0, 0.5, False),  # worse than the one to beat
    ],
)
def test_the_best_strategy(old: float, third: float, wiggle: float, holds: bool) -> None:
    points = {walk("new"): ends(90.0), walk("old"): ends(old), walk("third"): ends(third)}
    finding = judged(experiment(**BEST), points, wiggle)
    assert finding.met is holds
    assert finding.measured == pytest.approx(90.0 - old)
    assert finding.per_seed == {11: pytest.approx(90.5 - old), 12: pytest.approx(89.5 - old)}
    assert [cell.row for cell in finding.cells] == ["old", "third"]
    assert finding.decimals == 2
    if holds:
        # All ten images are better once the seeds are averaged: the smallest p that ten can give, 1 / 2^10.
        assert finding.notes[0].endswith("p = 0.00098")
        assert finding.notes[1] == "best other strategy: third, +0.40 to new"


def test_images_are_resampled_with_all_their_seeds() -> None:
    """Seeds differ by a point, images do not: the interval over images has no width."""
    points = {walk("new"): ends(90.0), walk("old"): ends(89.0), walk("third"): ends(80.0)}
    finding = judged(experiment(**BEST), points)
    assert (finding.low, finding.high) == (pytest.approx(1.0), pytest.approx(1.0))


STEADY = {"kind": "steady-steps", "method": "new", "steps": 3, "fall": 0.2, "largest_drop": 0.5, "beside": ("old",)}


@pytest.mark.parametrize(
    ("dice", "holds"),
    [((90.0, 90.1, 89.9), True), ((90.0, 90.1, 89.7), False), ((90.0, 89.4, 90.0), False), ((80.0, 85, 90), True)],
)
def test_steps_must_not_fall_and_what_is_beside_counts_for_nothing(dice: tuple[float, ...], holds: bool) -> None:
    def steps(*means: float) -> dict[str, float]:
        return {f"dice after step {n + 1}": mean for n, mean in enumerate(means)}

    points = {walk("new", steps=3): steps(*dice), walk("old", steps=3): steps(90, 80, 70)}
    finding = judged(experiment(**STEADY), points)
    assert finding.met is holds
    assert finding.measured == pytest.approx(dice[2] - dice[0])
    assert [cell.difference for cell in finding.cells] == pytest.approx([dice[2] - dice[0], -20])
    assert list(finding.cells[1].means) == ["step 1", "step 2", "step 3"]


@pytest.mark.parametrize(("at_50", "holds"), [(71.0, True), (76.0, False)])
def test_the_margin_of_the_leak_must_be_there_at_each_timestep(at_50: float, holds: bool) -> None:
    leak = {
        "kind": "leak-margin",
        "method": "new",
        "other": "old",
        "timesteps": (50, 150),
        "also": (500,),
        "shift_voxels": 4,
        "least": 20.0,
    }

    def fed(at_50: float, at_150: float) -> dict[str, float]:
        found = {50: at_50, 150: at_150, 500: 50.0}
        return {f"dice to fed mask at {t}": v for t, v in found.items()} | {f"dice to truth at {t}": 70 for t in found}

    finding = judged(experiment(**leak), {"new-n8-leak-4": fed(at_50, 50.0), "old-n8-leak-4": fed(95.0, 80.0)})
    assert finding.met is holds
    assert finding.measured == pytest.approx(min(95 - at_50, 30))
    assert [cell.row for cell in finding.cells] == ["t = 50", "t = 150", "t = 500"]
    assert "t = 500: +0.00" in finding.notes[0]


@pytest.mark.parametrize(("eleven", "met"), [(90.4, True), (90.6, False), (89.5, False)])
def test_numbers_of_steps(eleven: float, met: bool) -> None:
    counts = {"kind": "step-counts", "method": "new", "counts": (2, 5, 11), "spread": 0.5}
    points = {walk("new", steps=n): ends(d, n) for n, d in ((5, 90.0), (2, 90.1), (11, eleven))}
    finding = judged(experiment(**counts), points)
    assert finding.met is met
    assert finding.measured == pytest.approx(max(90.1, eleven) - min(90.0, eleven))


@pytest.mark.parametrize(("last", "met"), [(1.3, True), (1.5, False)])
def test_the_range_of_draws(last: float, met: bool) -> None:
    trend = experiment(kind="draw-range", method="new", steps=2, draws=3, ratio=0.7)
    finding = judged(trend, {walk("new", steps=2, draws=3): {"range after step 1": 2.0, "range after step 2": last}})
    assert finding.met is met
    assert finding.measured == pytest.approx(last - 1.4)
    assert finding.notes == (f"mean range 2.00 after step 1, {last:.2f} after step 2: ratio {last / 2:.2f}",)


@pytest.mark.parametrize(("mine", "theirs", "met"), [(0.2, -0.3, True), (-0.2, 0.05, False), (0.4, 0.9, False)])
def test_the_gap_of_samplers(mine: float, theirs: float, met: bool) -> None:
    trend = experiment(kind="sampler-gap", method="new", other="old", largest=0.3, beyond=0.1)
    points = {walk("new"): ends(90 + mine), walk("new", sampler="ddim"): ends(90)}
    points |= {walk("old"): ends(80 + theirs), walk("old", sampler="ddim"): ends(80)}
    finding = judged(trend, points)
    assert finding.met is met
    assert finding.measured == pytest.approx(mine)
    assert [cell.difference for cell in finding.cells] == pytest.approx([mine, theirs])


@pytest.mark.parametrize(("other", "met"), [(91.4, True), (91.6, False), (88.4, False)])
def test_parity(other: float, met: bool) -> None:
    trend = experiment(kind="parity", method="new", other="plain", within_points=1.5)
    finding = judged(trend, {walk("new"): ends(90.0), "plain-n8": {"dice": other}})
    assert finding.met is met
    assert finding.cells[0].means == {"new": pytest.approx(90), "plain": pytest.approx(other)}


@pytest.mark.parametrize(("middle", "met"), [(89.5, True), (88.9, False), (90.1, False)])
def test_between(middle: float, met: bool) -> None:
    trend = experiment(kind="between", method="mid", lower="low", upper="high")
    points = {walk("low"): ends(89.0), walk("mid"): ends(middle), walk("high"): ends(90.0)}
    assert judged(trend, points).met is met
