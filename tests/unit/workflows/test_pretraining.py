"""Which pretraining a method starts from, whose a `--set` is, and which images a pretraining may see."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from medsegdiff_cli.artifacts.dataset_folder import CaseFiles, open_dataset
from medsegdiff_cli.artifacts.recipe import AugmentationSettings, PredictionSettings, ResolvedRecipe, TrainingSettings
from medsegdiff_cli.artifacts.run import RunRecord
from medsegdiff_cli.artifacts.splits import Fold
from medsegdiff_cli.errors import InputDataError, UsageError
from medsegdiff_cli.methods.registry import METHODS, OBJECTIVES, Entry
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows.pretraining import (
    comes_with_weights,
    inherited_settings,
    of_method,
    of_pretraining,
    pretraining_cases,
    pretraining_of,
    pretraining_run_name,
    request_pretraining,
    require_fitting_run,
    same_images,
)
from medsegdiff_cli.workflows.recipes import apply_overrides, load_recipe
from medsegdiff_cli.workflows.run_request import TrainRequest

# What makes the network and the noise, and what is made of them, as docs/methods describe them.
OF_PRETRAINING = {
    "network": "adm",
    "model_channels": "8",
    "method.channel_mult": "[1, 2]",
    "attention_levels": "[]",
    "dropout": "0.1",
    "method.schedule": "{name: linear}",
    "distance": "l1",
}
OF_METHOD = {"pixels": "8", "method.noise": "shared", "timesteps": "[1]", "steps": "3", "learning_rate": "0.1"}
PRETRAINED = sorted(name for name, entry in METHODS.items() if entry.objectives)
# Those whose networks have the settings above; one with a network of its own has other ones.
ON_BACKBONES = [name for name in PRETRAINED if "network" in METHODS[name].load().inherited.model_fields]
FOLD = Fold(train=("case_tr_00", "case_tr_01"), val=("case_tr_02",))


def of_pretraining_of(method: str) -> dict[str, str]:
    """Return those of the settings above that a method's pretraining brings along."""
    known = METHODS[method].load().inherited.model_fields
    return {key: value for key, value in OF_PRETRAINING.items() if key.rpartition(".")[2] in known}


def of_method_of(method: str) -> dict[str, str]:
    """Return those that are the method's own."""
    known = {**METHODS[method].load().Settings.model_fields, **TrainingSettings.model_fields}
    return {key: value for key, value in OF_METHOD.items() if key.rpartition(".")[2] in known}


def request_of(method: str, **settings) -> TrainRequest:
    return TrainRequest(method=method, dataset="1", workspace=Workspace(Path("nowhere")), **settings)


def test_a_method_stands_for_its_first_objective():
    firsts = {name: pretraining_run_name(name).removeprefix("pretrain-") for name in PRETRAINED}
    others = {"hybrid": "hybrid", "hybrid-ledm": "hybrid", "transfer": "supervised"}
    others |= {name: name for name in ("global-cl", "global-local-cl")}
    assert firsts == {name: others.get(name, "diffusion") for name in PRETRAINED}
    assert pretraining_run_name("diffusion") == "pretrain-diffusion"
    assert pretraining_run_name("supervised") == "pretrain-supervised", "the objective, not the method"
    with pytest.raises(UsageError, match="'recycling' makes no pretraining of its own") as error:
        pretraining_run_name("recycling")
    assert "tedm" in error.value.fix
    with pytest.raises(UsageError, match="did you mean 'diffusion'"):
        pretraining_run_name("difusion")


@pytest.mark.parametrize("method", ON_BACKBONES)
def test_settings_of_network_and_noise_go_to_the_pretraining_and_all_others_to_the_method(method):
    first, second = of_pretraining_of(method), of_method_of(method)
    given = {**first, **second, "pretrain.steps": "9", "pretrain.training.batch_size": "2"}
    assert len(first) >= 6
    assert len(second) >= 2
    assert of_pretraining(given, method) == {**first, "steps": "9", "training.batch_size": "2"}
    assert of_method(given, method) == second


@pytest.mark.parametrize("method", ["supervised", "vanilla", "pretrain-diffusion", "pretrain-hybrid"])
def test_a_training_without_pretraining_keeps_all_settings(method):
    given = {"model_channels": "8", "steps": "3"}
    assert (of_pretraining(given, method), of_method(given, method)) == ({}, given)


@pytest.mark.parametrize("method", ["supervised", "pretrain-diffusion"])
def test_a_setting_for_a_pretraining_that_there_is_not_is_refused(method):
    given = of_method({"pretrain.steps": "3"}, method)
    sections = {name: {} for name in ("method", "training", "augmentation", "prediction")}
    with pytest.raises(UsageError, match=r"no section 'pretrain' in 'pretrain\.steps'"):
        apply_overrides(sections, given, method)


@pytest.mark.parametrize(
    ("key", "meant"), [("pixles", "pixels"), ("model_chanels", "model_channels"), ("method.hiden", "hidden")]
)
def test_unknown_settings_name_the_nearest_one(key, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        of_pretraining({key: "1"}, "tedm")


def test_a_schedule_of_noise_or_of_the_learning_rate_must_be_told_apart():
    with pytest.raises(UsageError, match=r"write one of method\.schedule, training\.schedule"):
        of_pretraining({"schedule": "cosine"}, "tedm")


def test_a_pretraining_is_the_same_for_every_seed_label_budget_and_name():
    plain = request_of("tedm", config="2d", fold="2", scale="small", plans_name="mine")
    other = replace(plain, seed=3, cases=2, count="cases", name="mine", selection="best", overwrite=True)
    other = replace(other, overrides=OF_METHOD)
    before = pretraining_of(plain)
    assert pretraining_of(other) == before
    assert pretraining_of(replace(other, method="ledme")) == before
    assert (before.method, before.config, before.fold) == ("pretrain-diffusion", "2d", "2")
    assert (before.scale, before.plans_name, before.seed, before.overwrite) == ("small", "mine", 0, False)


@pytest.mark.parametrize("method", ["hybrid", "transfer", "hybrid-ledm"])
def test_a_pretraining_that_sees_labels_has_the_methods_label_budget(method):
    before = pretraining_of(request_of(method, seed=3, name="mine"))
    assert (before.cases, before.seed, before.name) == (None, 0, None)
    before = pretraining_of(request_of(method, seed=3, cases=2, count="cases", name="mine"))
    assert (before.cases, before.count, before.seed, before.name) == (2, "cases", 3, None)


def test_another_network_is_another_pretraining():
    assert pretraining_of(request_of("tedm", overrides=OF_PRETRAINING)).overrides == OF_PRETRAINING


def test_no_pretraining_is_made_for_what_starts_from_none_or_from_a_given_run(tmp_path):
    assert pretraining_of(request_of("supervised")) is None
    assert pretraining_of(request_of("pretrain-diffusion")) is None
    assert pretraining_of(request_of("tedm", parent=tmp_path)) is None


@pytest.mark.parametrize(("method", "preset"), [(m, p) for m in PRETRAINED for p in sorted(load_recipe(m).presets)])
def test_msd_pretrain_and_msd_train_mean_the_same_pretraining(method, preset):
    made_first = pretraining_of(request_of(method, preset=preset))
    asked_for = request_pretraining(
        method, None, preset, dataset="1", workspace=Workspace(Path("nowhere")), device=torch.device("cpu")
    )
    assert asked_for == made_first


def test_a_recipe_names_the_pretraining_that_its_paper_had():
    chosen = pretraining_of(request_of("ledm", preset="official-code"))
    assert (chosen.recipe, chosen.preset) == ("pretrain-diffusion__ledm", "paper")
    chosen = pretraining_of(request_of("tedm", preset="paper"))
    assert (chosen.recipe, chosen.preset) == (None, "paper")


def resolved(method: str, **settings) -> ResolvedRecipe:
    return ResolvedRecipe(
        method=method,
        preset="recommended",
        scale="tiny",
        patch_size_voxels=(32, 32),
        batch_size=2,
        method_settings=settings,
        training=TrainingSettings(),
        augmentation=AugmentationSettings(),
        prediction=PredictionSettings(),
    )


def test_network_and_noise_schedule_come_with_the_weights():
    settings = METHODS["tedm"].load().inherited(model_channels=24, distance="l1").model_dump(mode="json")
    there = resolved("pretrain-diffusion", **settings)
    assert inherited_settings("tedm", there) == settings
    assert {"network", "model_channels", "channel_mult", "schedule"} <= set(settings)
    # The steps of its training, and what only another class knows, do not.
    assert inherited_settings("supervised", there) == {}
    more = resolved("tedm", **settings, pixels=7)
    assert inherited_settings("ledm", more) == settings


@pytest.mark.parametrize("objective", ["diffusion", "hybrid", "supervised"])
@pytest.mark.parametrize("method", ["vanilla", "transfer", "tedm"])
def test_a_method_starts_from_any_pretraining_whose_network_knows_the_time(method, objective):
    there = resolved(f"pretrain-{objective}", model_channels=24, schedule={"name": "linear", "T": 50})
    taken = inherited_settings(method, there)
    assert (taken["model_channels"], taken["schedule"]["T"]) == (24, 50)
    assert set(taken) <= set(METHODS[method].load().Settings.model_fields)


def test_what_comes_with_weights_is_known_of_methods_that_need_none():
    assert [comes_with_weights(key, "vanilla") for key in ("network", "method.schedule", "trains", "steps")] == [
        True,
        True,
        False,
        False,
    ]
    assert not comes_with_weights("network", "supervised")


def test_a_run_without_noise_schedule_is_no_start():
    settings = METHODS["tedm"].load().inherited().model_dump(mode="json", exclude={"schedule", "distance"})
    there = resolved("supervised", **settings)
    with pytest.raises(UsageError, match="'tedm' cannot start from a run of 'supervised', which has no schedule"):
        inherited_settings("tedm", there)
    with pytest.raises(UsageError, match="'vanilla' cannot start from") as error:
        inherited_settings("vanilla", there)
    assert "pretrain-diffusion or pretrain-hybrid or pretrain-supervised" in error.value.fix


class ToySettings(BaseModel):
    """Of networks that share nothing with those of the other methods."""

    width: int = 4


class ToyObjective:
    Settings = ToySettings


class ToyMethod:
    Settings = ToySettings
    inherited = ToySettings


def test_a_method_with_a_network_of_its_own_starts_from_an_objective_of_its_own(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "toy", Entry(f"{__name__}:ToyObjective", "", ""))
    monkeypatch.setitem(METHODS, "toy", Entry(f"{__name__}:ToyMethod", "", "", objectives=("toy",)))
    assert inherited_settings("toy", resolved("pretrain-toy", width=7)) == {"width": 7}
    with pytest.raises(UsageError, match="'toy' cannot start from a run of 'pretrain-hybrid', which has no width"):
        inherited_settings("toy", resolved("pretrain-hybrid"))
    with pytest.raises(UsageError, match="'vanilla' cannot start from a run of 'pretrain-toy'") as error:
        inherited_settings("vanilla", resolved("pretrain-toy"))
    assert "pretrain-hybrid" in error.value.fix
    assert "pretrain-toy" not in error.value.fix


def test_a_run_that_is_older_than_a_setting_has_its_default():
    settings = METHODS["tedm"].load().inherited(model_channels=24).model_dump(mode="json")
    older = {name: value for name, value in settings.items() if name != "time_injection"}
    assert inherited_settings("tedm", resolved("pretrain-diffusion", **older)) == settings


def case_of(name: str, *images: Path) -> CaseFiles:
    return CaseFiles(case=name, images=images, group=name)


def test_images_are_the_same_when_any_of_their_files_is(tmp_path):
    files = {"a": b"1234", "copy of a": b"1234", "as large as a": b"1235", "b": b"12", "longer a": b"12340"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    a, copy, as_large, b, longer = (tmp_path / name for name in files)
    cases = [case_of("first", b, copy), case_of("second", as_large), case_of("third", longer), case_of("none")]
    assert same_images(cases, [case_of("other", a)]) == ["first"]
    assert same_images(cases, [case_of("other", as_large, tmp_path / "missing")]) == ["second"]
    assert same_images(cases, []) == []
    assert same_images([case_of("missing", tmp_path / "missing")], [case_of("other", a)]) == []


@pytest.fixture
def folder(make_dataset):
    """Three training cases, the last of which validates, two test cases and two images without labels."""
    return make_dataset(n_dims=2, n_labelled=3, n_test=2, n_unlabelled=2, shape=(8, 8))


def test_a_pretraining_sees_training_images_and_unlabelled_ones_alone(folder):
    seen = pretraining_cases(open_dataset(folder), FOLD)
    assert sorted(seen) == ["case_tr_00", "case_tr_01", "case_un_00", "case_un_01"]
    # A training image that lost its label is an image without label.
    (folder / "labelsTr" / "case_tr_01.png").unlink()
    seen = pretraining_cases(open_dataset(folder), Fold(train=("case_tr_00",), val=("case_tr_02",)))
    assert sorted(seen) == ["case_tr_00", "case_tr_01", "case_un_00", "case_un_01"]


@pytest.mark.parametrize("held_out", ["Ts/case_ts_01", "Tr/case_tr_02"])
def test_an_unlabelled_copy_of_a_test_or_validation_image_is_refused(folder, held_out):
    shutil.copy(folder / f"images{held_out}_0000.png", folder / "imagesUn" / "hidden_0000.png")
    with pytest.raises(InputDataError, match="1 unlabelled images are also test or validation images: hidden"):
        pretraining_cases(open_dataset(folder), FOLD)


def test_a_copy_of_a_training_image_is_no_offence_in_the_folds_where_it_trains(folder):
    shutil.copy(folder / "imagesTr" / "case_tr_01_0000.png", folder / "imagesUn" / "again_0000.png")
    assert "again" in pretraining_cases(open_dataset(folder), FOLD)
    with pytest.raises(InputDataError, match="again"):
        pretraining_cases(open_dataset(folder), Fold(train=("case_tr_00", "case_tr_02"), val=("case_tr_01",)))


def test_what_the_dataset_allows_is_seen_with_a_warning(folder, caplog):
    shutil.copy(folder / "imagesTs" / "case_ts_00_0000.png", folder / "imagesUn" / "hidden_0000.png")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "unlabelled_test_overlap": "allowed"}))
    with caplog.at_level(logging.WARNING):
        assert "hidden" in pretraining_cases(open_dataset(folder), FOLD)
    assert "sees 1 test or validation images" in caplog.text


def test_a_misspelt_method_is_answered_with_the_nearest_that_can_be_pretrained():
    with pytest.raises(UsageError, match="did you mean 'tedm'"):
        pretraining_run_name("tedmm")


@pytest.mark.parametrize(
    ("method", "config", "parent", "message"),
    [
        ("ptdr", "2d", "pretrain-diffusion", None),
        ("vanilla", "2d", "pretrain-global-cl", None),
        ("hybrid", "2d", "hybrid", None),
        ("ptdr", "2d", "pretrain-hybrid", "'ptdr' starts from pretrain-diffusion, not from pretrain-hybrid"),
        ("vanilla", "3d", "pretrain-hybrid", "the run was trained in 2d, this training is in 3d"),
    ],
)
def test_only_a_fitting_run_is_started_from(method, config, parent, message, tmp_path):
    names = {"dataset": "D", "dataset_path": "D", "plan_digest": "", "recipe_digest": ""}
    cases = {"train_cases": ("a",), "val_cases": ()}
    record = RunRecord(msd_version="0", method=parent, config="2d", fold="0", seed=0, **cases, **names)
    if message is None:
        require_fitting_run(method, config, record, tmp_path)
    else:
        with pytest.raises(UsageError, match=message):
            require_fitting_run(method, config, record, tmp_path)
