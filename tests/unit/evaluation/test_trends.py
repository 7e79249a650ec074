"""Verdicts on made-up scores, worked out by hand."""

import pytest

from medsegdiff_cli.artifacts.experiment import Arm, Experiment
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.evaluation.trends import ArmScores, judge

PERSONS = [f"test-{number:04d}" for number in range(8)]


def experiment(gate: bool = True, **criterion: object) -> Experiment:
    content = {"id": "X", "claim": "it does", "published": "it did", "gate": gate, "criterion": criterion}
    return Experiment.model_validate(content)


def made_up(dice: dict[tuple[Arm, str], float], seeds: int = 2, **others: float) -> ArmScores:
    """Give each arm a mean Dice a domain; persons lie around it by the same steps in every arm, seeds by 0.02."""
    values = {}
    for seed in range(seeds):
        for (arm, domain), mean in dice.items():
            values[seed, arm.name, domain] = {
                person: {"dice": mean + 0.001 * (number - 3.5) + 0.02 * (seed - 0.5), **others}
                for number, person in enumerate(PERSONS)
            }
    return ArmScores(values)


def two_methods(gains: dict[tuple[str, int], float], base: float = 0.8) -> ArmScores:
    """Return scores of `new` and `old`, where `new` is better by so much on (domain, labels)."""
    dice = {}
    for (domain, labels), gain in gains.items():
        dice[Arm(method="old", labels=labels), domain] = base
        dice[Arm(method="new", labels=labels), domain] = base + gain
    return made_up(dice)


GAIN = {"kind": "paired-gain", "method": "new", "other": "old", "domains": ("B", "C"), "labels": (1, 3, 6)}


def test_a_gain_in_four_of_six_cells_holds_and_in_three_does_not() -> None:
    gains = {(d, n): 0.03 for d in "BC" for n in (1, 3, 6)} | {("B", 6): -0.01, ("C", 6): -0.01}
    holds = judge(experiment(**GAIN, above=0.0, cells_share=0.667), two_methods(gains))
    assert (holds.verdict, holds.met) == ("holds", True)
    assert holds.measured == pytest.approx((4 * 3 - 2 * 1) / 6)
    # Persons and seeds lie alike in both arms, so that all their differences are equal.
    assert holds.per_seed == {0: pytest.approx(holds.measured), 1: pytest.approx(holds.measured)}
    assert (holds.low, holds.high) == (pytest.approx(holds.measured), pytest.approx(holds.measured))
    assert [cell.difference for cell in holds.cells] == pytest.approx([3, 3, 3, 3, -1, -1])
    assert holds.cells[0].means == {"new": pytest.approx(83), "old": pytest.approx(80)}
    fewer = judge(experiment(**GAIN, above=0.0, cells_share=0.667), two_methods(gains | {("C", 3): -0.01}))
    assert (fewer.verdict, fewer.measured) == ("does not hold", pytest.approx(1.0))


def test_a_negative_mean_fails_however_many_cells_are_won() -> None:
    gains = {(d, n): 0.01 for d in "BC" for n in (1, 3, 6)} | {("B", 1): -0.20}
    finding = judge(experiment(**GAIN, above=0.0, cells_share=0.667), two_methods(gains))
    assert finding.verdict == "does not hold"
    assert finding.measured == pytest.approx((5 - 20) / 6)


def test_a_ceiling_in_one_domain_makes_it_not_applicable() -> None:
    finding = judge(
        experiment(**GAIN, above=0.0, ceiling=90.0),
        two_methods({(d, n): 0.03 for d in "BC" for n in (1, 3, 6)}, base=0.91),
    )
    assert (finding.verdict, finding.met) == ("not applicable", None)
    assert finding.notes[0].startswith("ceiling: old reaches 91.0 on B")
    below = judge(
        experiment(**GAIN, above=0.0, ceiling=90.0),
        two_methods({(d, n): 0.03 for d in "BC" for n in (1, 3, 6)}, base=0.89),
    )
    assert below.verdict == "holds"


@pytest.mark.parametrize(
    ("at_one", "at_three", "holds"), [(-3.9, -0.9, True), (-4.1, -0.9, False), (-3.9, -1.1, False)]
)
def test_each_label_budget_has_its_floor(at_one: float, at_three: float, holds: bool) -> None:
    criterion = {**GAIN, "domains": ("A",), "labels": (1, 3), "floors": {1: -4.0, 3: -1.0}}
    gains = {("A", 1): at_one / 100, ("A", 3): at_three / 100}
    assert judge(experiment(**criterion), two_methods(gains)).met is holds


def test_a_label_budget_beside_is_reported_and_counts_for_nothing() -> None:
    gains = {(d, n): 0.03 for d in "BC" for n in (1, 3, 6)} | {("B", 12): -0.5, ("C", 12): -0.3}
    finding = judge(experiment(**GAIN, above=0.0, also=(12,)), two_methods(gains))
    assert finding.verdict == "holds"
    assert finding.measured == pytest.approx(3.0)
    assert "beside, n = 12: -40.0" in finding.notes


TREND = {"kind": "step-trend", "method": "probe", "steps": (1, 50, 800), "domains": ("A",), "labels": (1,), "drop": 5.0}


@pytest.mark.parametrize(
    ("dice", "holds", "correlation"),
    [
        ((0.90, 0.88, 0.70), True, "-1.00"),
        ((0.90, 0.88, 0.86), False, "-1.00"),
        ((0.88, 0.90, 0.70), True, "-0.50"),
        ((0.70, 0.88, 0.90), False, "1.00"),
        ((0.80, 0.80, 0.80), False, "0.00"),
    ],
)
def test_scores_must_fall_with_the_timestep(dice: tuple[float, ...], holds: bool, correlation: str) -> None:
    arms = {
        (Arm(method="probe", labels=1, step=step), "A"): mean for step, mean in zip((1, 50, 800), dice, strict=True)
    }
    finding = judge(experiment(**TREND), made_up(arms))
    assert finding.met is holds
    assert finding.measured == pytest.approx(100 * (dice[0] - dice[2]))
    assert finding.notes[0].endswith(f": {correlation}")


@pytest.mark.parametrize(("vote", "met"), [(0.896, True), (0.894, False)])
def test_a_vote_is_measured_by_the_best_single_timestep(vote: float, met: bool) -> None:
    criterion = {
        "kind": "vote-gain",
        "method": "tedm",
        "singles": (1, 10),
        "domains": ("B",),
        "labels": (1,),
        "cells_share": 1.0,
        "cell_margin": -0.5,
    }
    dice = {(Arm(method="tedm", labels=1), "B"): vote}
    dice |= {(Arm(method="tedm", labels=1, timesteps=(t,)), "B"): d for t, d in ((1, 0.7), (10, 0.9))}
    finding = judge(experiment(gate=False, **criterion), made_up(dice))
    assert (finding.verdict, finding.met) == ("report-only", met)
    assert finding.measured == pytest.approx(100 * (vote - 0.9))


@pytest.mark.parametrize(
    ("precision", "recall", "met"), [(0.10, -0.02, True), (0.10, 0.02, True), (0.01, -0.02, False), (-0.1, 0.0, False)]
)
def test_precision_must_gain_more_than_recall_changes(precision: float, recall: float, met: bool) -> None:
    values = {}
    for name, p, r in (("new", 0.8 + precision, 0.9 + recall), ("old", 0.8, 0.9)):
        values[0, f"{name}-n1", "B"] = {person: {"dice": 0.8, "precision": p, "recall": r} for person in PERSONS}
    criterion = {"kind": "precision-trade", "method": "new", "other": "old", "domains": ("B",), "labels": (1,)}
    finding = judge(experiment(gate=False, **criterion), ArmScores(values))
    assert finding.met is met
    assert finding.measured == pytest.approx(100 * precision)
    assert finding.notes[0].startswith(f"recall: {100 * recall:+.1f}")


def test_persons_are_resampled_as_a_whole_with_all_their_cells() -> None:
    """Four cells that say the same are no narrower than one."""

    def interval(domains: tuple[str, ...]) -> tuple[float, float]:
        values = {}
        for domain in domains:
            for name, step in (("new", 0.01), ("old", 0.0)):
                values[0, f"{name}-n1", domain] = {p: {"dice": 0.5 + step * i} for i, p in enumerate(PERSONS)}
        criterion = {**GAIN, "domains": domains, "labels": (1,), "above": 0.0}
        finding = judge(experiment(**criterion), ArmScores(values))
        assert finding.measured == pytest.approx(3.5)
        return finding.low, finding.high

    low, high = interval(("A",))
    assert low < 3.5 < high
    assert interval(("A", "B", "C", "D")) == (pytest.approx(low), pytest.approx(high))


def test_missing_scores_and_other_persons_are_refused() -> None:
    scores = two_methods({("B", 1): 0.03})
    with pytest.raises(InputDataError, match="no scores of new-n1 on C"):
        judge(experiment(**{**GAIN, "labels": (1,)}), scores)
    values = {key: dict(persons) for key, persons in scores.values.items()}
    del values[0, "old-n1", "B"][PERSONS[0]]
    with pytest.raises(InputDataError, match="different persons"):
        judge(experiment(**{**GAIN, "labels": (1,), "domains": ("B",)}), ArmScores(values))
