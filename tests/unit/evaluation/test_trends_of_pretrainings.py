"""Verdicts about pretrainings on made-up scores, worked out by hand."""

import pytest
from pydantic import ValidationError

from medsegdiff_cli.artifacts.experiment import Arm, Experiment
from medsegdiff_cli.evaluation.trends import ArmScores, judge

CELLS = {"kind": "ahead-of", "domains": ("B", "C"), "labels": (20,)}


def experiment(**criterion: object) -> Experiment:
    content = {"id": "X", "claim": "c", "published": "p", "gate": True, "criterion": {**CELLS, **criterion}}
    return Experiment.model_validate(content)


def made_up(of_seeds: list[dict[str, float]]) -> ArmScores:
    """Give each method a Jaccard a seed, the same for both scanners and all four persons."""
    return ArmScores(
        {
            (seed, Arm(method=method, labels=20).name, domain): {f"p{n}": {"iou": iou, "dice": 0.0} for n in range(4)}
            for seed, ious in enumerate(of_seeds)
            for method, iou in ious.items()
            for domain in "BC"
        }
    )


def test_one_must_be_near_each_other_and_ahead_on_the_mean() -> None:
    demand = {"methods": ("new",), "others": ("a", "b"), "margin": 0.5, "above": 0.0}
    near = judge(experiment(**demand), made_up([{"new": 0.80, "a": 0.803, "b": 0.76}]))
    assert near.verdict == "holds"
    assert near.measured == pytest.approx((-0.3 + 4.0) / 2)
    assert near.notes == ("new - a: -0.3 (-0.3 to -0.3)", "new - b: +4.0 (+4.0 to +4.0)")
    assert [cell.row for cell in near.cells] == ["new - a", "new - b"] * 2
    behind_one = judge(experiment(**demand), made_up([{"new": 0.80, "a": 0.806, "b": 0.70}]))
    assert behind_one.verdict == "does not hold"
    behind_on_the_mean = judge(experiment(**demand), made_up([{"new": 0.80, "a": 0.804, "b": 0.801}]))
    assert behind_on_the_mean.verdict == "does not hold"


def test_each_of_several_must_be_ahead_of_one() -> None:
    demand = {"methods": ("a", "b"), "others": ("none",), "margin": 0.0, "above": 0.0}
    assert judge(experiment(**demand), made_up([{"a": 0.9, "b": 0.81, "none": 0.8}])).verdict == "holds"
    assert judge(experiment(**demand), made_up([{"a": 0.9, "b": 0.79, "none": 0.8}])).verdict == "does not hold"


def test_a_share_of_the_seeds_must_have_the_sign() -> None:
    demand = {"methods": ("a",), "others": ("b",), "seeds_share": 0.667}
    ahead, behind = {"a": 0.81, "b": 0.8}, {"a": 0.5, "b": 0.8}
    assert judge(experiment(**demand), made_up([ahead, behind, ahead])).verdict == "holds"
    assert judge(experiment(**demand), made_up([ahead, behind, behind])).verdict == "does not hold"


def test_it_demands_something_and_a_tier_keeps_what_is_trained() -> None:
    with pytest.raises(ValidationError, match="must say what is demanded"):
        experiment(methods=("a",), others=("b",))
    cut = experiment(methods=("a", "b"), others=("none",), margin=0.0).within({20}, {"a"})
    assert cut is not None
    assert [arm.method for arm in cut.arms] == ["a", "none"]
