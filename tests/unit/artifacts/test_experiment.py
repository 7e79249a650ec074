"""Declarations: what they refuse, and what a tier keeps of them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from medsegdiff_cli.artifacts.experiment import Arm, Declaration, read_declaration
from medsegdiff_cli.errors import UsageError

GAIN = {"kind": "paired-gain", "method": "tedm", "other": "ledm", "domains": ["B"], "labels": [1, 3]}
FLOORS = {**GAIN, "floors": {1: -4.0, 3: -1.0}}
CONTENT: dict[str, Any] = {
    "paper": "toy",
    "title": "A toy",
    "citation": "Nobody, nowhere",
    "cohort": {"shape": [16, 16], "labelled": {"A": 3}, "unlabelled": {"B": 4}, "test": {"A": 2, "B": 2}},
    "plan": {"geometry": "resize", "size_voxels": [16, 16]},
    "objective": "diffusion",
    "pretraining": {"overrides": {"channel_mult": [1, 2], "learning_rate": 0.001}},
    "heads": {"overrides": {"steps": 5, "pixels": 8}, "methods": {"ledm": {"steps": 7}}},
    "tiers": {
        "quick": {"seeds": 1, "experiments": ["one"], "labels": [1], "minutes": "one"},
        "full": {"seeds": 3, "first_seed": 5, "experiments": ["one", "two"], "labels": [1, 3], "minutes": "two"},
    },
    "experiments": [
        {
            "id": "one",
            "claim": "c",
            "published": "p",
            "gate": True,
            "criterion": {**GAIN, "floors": {1: -4.0, 3: -1.0}},
        },
        {"id": "two", "claim": "c", "published": "p", "gate": False, "criterion": {**GAIN, "labels": [3]}},
    ],
}


def changed(**parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONTENT), **parts}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_tier_keeps_its_experiments_at_its_label_budgets() -> None:
    declaration = Declaration.model_validate(CONTENT)
    (one,) = declaration.chosen(declaration.tier("quick"))
    assert one.criterion.labels == (1,)
    assert one.criterion.floors == {1: -4.0}
    assert one.arms == (Arm(method="tedm", labels=1), Arm(method="ledm", labels=1))
    assert [item.id for item in declaration.chosen(declaration.tier("full"))] == ["one", "two"]
    nothing_at_one = declaration.tier("quick").model_copy(update={"experiments": ("one", "two")})
    assert [item.id for item in declaration.chosen(nothing_at_one)] == ["one"]


def test_settings_become_the_words_of_set() -> None:
    declaration = Declaration.model_validate(CONTENT)
    assert declaration.pretraining.settings_of("diffusion") == {"channel_mult": "[1, 2]", "learning_rate": "0.001"}
    assert declaration.heads.settings_of("tedm") == {"steps": "5", "pixels": "8"}
    assert declaration.heads.settings_of("ledm") == {"steps": "7", "pixels": "8"}


def test_arms_share_a_training_whatever_they_predict_with() -> None:
    vote, single = Arm(method="tedm", labels=3), Arm(method="tedm", labels=3, timesteps=(25,))
    assert (vote.run, vote.name) == ("tedm-n3", "tedm-n3")
    assert (single.run, single.name) == ("tedm-n3", "tedm-n3-only-25")
    assert Arm(method="step-probe", labels=1, step=400).run == "step-probe-n1-t400"


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"experiments": [CONTENT["experiments"][0]] * 2}, "two experiments have one id"),
        ({"experiments": CONTENT["experiments"][:1]}, r"tier 'full' names no experiment: \['two'\]"),
        ({"cohort": {**CONTENT["cohort"], "test": {"A": 2}}}, "one names scanners without test images"),
        ({"cohort": {**CONTENT["cohort"], "labelled": {"A": 2}}}, "one wants more labels than the 2"),
        ({"cohorts": {}}, "unknown key 'cohorts': did you mean 'cohort'"),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(tmp_path: Path, parts: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read_declaration(written(tmp_path, changed(**parts)))


def test_an_unknown_kind_of_criterion_is_refused(tmp_path: Path) -> None:
    content = changed()
    content["experiments"][0]["criterion"]["kind"] = "wishful"
    with pytest.raises(UsageError, match="wishful"):
        read_declaration(written(tmp_path, content))


def test_a_missing_tier_is_named() -> None:
    content = changed(tiers={"quick": CONTENT["tiers"]["quick"]})
    with pytest.raises(UsageError, match="no tier 'full'"):
        Declaration.model_validate(content).tier("full")


def test_criteria_are_told_in_words() -> None:
    one = Declaration.model_validate(CONTENT).experiments[0]
    assert one.criterion.in_words == "tedm - ledm (B; n = 1, 3): n = 1: mean >= -4; n = 3: mean >= -1"


WALKS: dict[str, Any] = {
    **{key: CONTENT[key] for key in ("paper", "title", "citation")},
    "cohort": {"kind": "blobs", "shape": [16, 16], "noise": 0.5, "labelled": 4, "test": 3, "test_seed": 9},
    "plan": CONTENT["plan"],
    "training": {"preset": "recommended"},
    "tiers": {
        "quick": {
            "seeds": 1,
            "first_seed": 2,
            "experiments": ["R2"],
            "labels": [4],
            "methods": ["old"],
            "minutes": "1",
        },
        "full": {"seeds": 3, "first_seed": 5, "experiments": ["R2"], "labels": [4], "minutes": "2"},
    },
    "experiments": [
        {
            "id": "R2",
            "claim": "c",
            "published": "p",
            "gate": True,
            "criterion": {
                "kind": "steady-steps",
                "method": "new",
                "beside": ["old", "older"],
                "fall": 0.2,
                "largest_drop": 0.5,
                "domains": ["blobs"],
                "labels": [4],
            },
        }
    ],
}


def test_methods_may_be_trained_without_a_pretraining() -> None:
    declaration = Declaration.model_validate(WALKS)
    assert declaration.objective is None
    assert declaration.heads.preset == "recommended"
    assert Declaration.model_validate(declaration.model_dump(mode="json")) == declaration
    assert declaration.experiments[0].arms[0].name == "new-n4-ddpm-5-walks-1"


def test_a_tier_leaves_out_methods_that_are_only_reported_beside() -> None:
    declaration = Declaration.model_validate(WALKS)
    (quick,) = declaration.chosen(declaration.tier("quick"))
    assert [arm.method for arm in quick.arms] == ["new", "old"]
    (full,) = declaration.chosen(declaration.tier("full"))
    assert [arm.method for arm in full.arms] == ["new", "old", "older"]
    dumped = declaration.model_dump(mode="json")["tiers"]
    assert "methods" not in dumped["full"]
    assert dumped["quick"]["methods"] == ["old"]


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"cohort": {**WALKS["cohort"], "test_seed": 7}}, "tier 'full' trains on the test images"),
        ({"cohort": {**WALKS["cohort"], "kind": "blocks"}}, "blocks"),
        ({"objective": "diffusion"}, "objective and pretraining come together"),
        ({"cohort": {**WALKS["cohort"], "labelled": 3}}, "r2 wants more labels than the 3"),
    ],
)
def test_walks_that_cannot_be_tried_are_refused(tmp_path: Path, parts: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read_declaration(written(tmp_path, {**copy.deepcopy(WALKS), **parts}))
