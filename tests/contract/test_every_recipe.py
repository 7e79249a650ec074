"""Every shipped recipe fits the method or pretraining it names, with every preset, in 2D and 3D."""

import re
from functools import cache
from importlib import resources

import pytest
import torch
import yaml
from pydantic import BaseModel

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.recipe import (
    SECTIONS,
    AugmentationSettings,
    PredictionSettings,
    PretrainingChoice,
    ResolvedRecipe,
    TrainingSettings,
    read_recipe,
    read_resolved_recipe,
    write_resolved_recipe,
)
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.registry import METHODS, OBJECTIVES, PRETRAINING, find_trainable, is_pretraining
from medsegdiff_cli.networks.transfer import adaptation_data
from medsegdiff_cli.prediction.model import build_trainable
from medsegdiff_cli.workflows.recipes import (
    apply_overrides,
    known_settings,
    load_recipe,
    pretraining_choice,
    recipe_names,
    sections_of,
)

recipe_of = cache(load_recipe)  # a recipe is frozen, and reading YAML takes longer than any test here
RECIPES = recipe_names()
TRAINABLES = (*METHODS, *(f"{PRETRAINING}{name}" for name in OBJECTIVES))
PRESETS = [(name, preset) for name in RECIPES for preset in recipe_of(name).presets]
every_recipe = pytest.mark.parametrize("name", RECIPES)
every_preset = pytest.mark.parametrize(("name", "preset"), PRESETS)


def sections(name: str, preset: str) -> dict[str, dict[str, object]]:
    recipe = recipe_of(name)
    return sections_of(recipe.method, recipe, preset)


def settings_of(model: type[BaseModel], content: dict[str, object]) -> BaseModel:
    return validate(model, content, model.__name__)


@every_preset
def test_all_settings_of_a_preset_are_known(name, preset):
    chosen = sections(name, preset)
    assert tuple(chosen) == SECTIONS
    for section, model in known_settings(recipe_of(name).method).items():
        assert set(settings_of(model, chosen[section]).model_fields_set) >= set(chosen[section])


@every_preset
def test_only_a_recipes_own_keys_change_what_makes_a_name_out_of_its_class(name, preset):
    recipe = recipe_of(name)
    with resources.as_file(resources.files("medsegdiff_cli.plans") / f"{name}.yaml") as path:
        own = read_recipe(path).presets[preset].method
    makes = find_trainable(recipe.method).preset
    chosen = sections(name, preset)["method"]
    assert {key: value for key, value in chosen.items() if key in own} == own
    assert {key: chosen[key] for key in makes if key not in own} == {key: makes[key] for key in makes if key not in own}


@every_preset
@pytest.mark.parametrize("n_dims", [2, 3])
def test_the_method_can_be_built_from_a_preset(name, preset, n_dims):
    method = recipe_of(name).method
    if n_dims not in find_trainable(method).n_dims:
        pytest.skip(f"{method} has no {n_dims}D networks")
    recipe = resolved(name, preset, (32,) * n_dims)
    task = Task(n_dims=n_dims, in_channels=1, class_names=("background", "organ"))
    with torch.device("meta"):
        built = build_trainable(recipe, task)
    assert sum(parameter.numel() for parameter in built.parameters()) > 0


def resolved(name: str, preset: str, patch_size: tuple[int, ...]) -> ResolvedRecipe:
    """Return the recipe of a run as it would be written into its folder."""
    recipe, chosen = recipe_of(name), sections(name, preset)
    model = find_trainable(recipe.method).load().Settings
    return ResolvedRecipe(
        method=recipe.method,
        preset=preset,
        scale="full",
        patch_size_voxels=patch_size,
        batch_size=2,
        method_settings=settings_of(model, chosen["method"]).model_dump(mode="json"),
        training=TrainingSettings.model_validate(chosen["training"]),
        augmentation=AugmentationSettings.model_validate(chosen["augmentation"]),
        prediction=PredictionSettings.model_validate(chosen["prediction"]),
    )


@every_preset
def test_a_runs_recipe_is_read_back_as_it_was_written(name, preset, tmp_path):
    recipe = resolved(name, preset, (32, 32))
    write_resolved_recipe(tmp_path / "recipe.yaml", recipe)
    again = read_resolved_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.digest() == recipe.digest()


@every_recipe
def test_a_recipe_is_named_after_a_method_of_the_registry_and_says_what_it_is(name):
    recipe = recipe_of(name)
    assert recipe.method in TRAINABLES
    assert name == recipe.method or name.startswith(f"{recipe.method}__")
    assert recipe.title
    assert recipe.citation
    assert "recommended" in recipe.presets
    assert {"recommended", "paper", "official-code"} >= set(recipe.presets)


@every_recipe
def test_the_header_of_a_recipe_names_an_expected_score(name):
    text = (resources.files("medsegdiff_cli.plans") / f"{name}.yaml").read_text(encoding="utf-8")
    header = [line for line in text.split("\nmethod:")[0].splitlines() if line]
    assert header
    assert all(line.startswith("#") for line in header)
    assert any(line.startswith("# Expected") for line in header)
    expected = recipe_of(name).expected
    assert expected
    assert any(re.search(r"\d\.\d", sentence) for sentence in expected), "a score is a number"


@pytest.mark.parametrize("method", TRAINABLES)
def test_every_method_and_objective_has_a_recipe(method):
    assert method in RECIPES


@every_preset
def test_a_preset_names_a_pretraining_that_fits(name, preset):
    method = recipe_of(name).method
    choice = pretraining_choice(method, name, preset)
    if is_pretraining(method) or not METHODS[method].objectives:
        assert choice is None
        assert recipe_of(name).preset(preset).pretraining == PretrainingChoice()
        return
    chosen = choice.sections()
    inherited = METHODS[method].load().inherited
    network = {key: value for key, value in chosen["method"].items() if key in inherited.model_fields}
    recipe = resolved(name, preset, (32, 32))
    recipe = recipe.model_copy(update={"method_settings": {**recipe.method_settings, **network}})
    with torch.device("meta"):
        built = build_trainable(recipe, Task(n_dims=2, in_channels=1, class_names=("background", "organ")))
        pretrained = build_trainable(resolved(choice.recipe, choice.preset, (32, 32)), built.task)
    # All that the method takes over is there, of the same shape; an output layer that says something else is not.
    theirs = {key: value.shape for key, value in pretrained.state_dict().items()}
    mine = {key: value.shape for key, value in built.state_dict().items() if key.startswith(built.pretrained)}
    if built.outputs != pretrained.outputs:
        heads = tuple(adaptation_data(built)["head"])
        mine = {key: shape for key, shape in mine.items() if not key.startswith(heads)}
    assert mine
    assert mine.items() <= theirs.items()


@pytest.mark.parametrize(
    ("name", "preset", "n_millions"),
    [("pretrain-hybrid", "paper", 138.29), ("hybrid", "paper", 138.29), ("vanilla", "paper", 138.29)],
)
def test_the_hybrid_papers_network_has_its_number_of_parameters(name, preset, n_millions):
    task = Task(n_dims=2, in_channels=3, class_names=("background", "lesion"))
    recipe = resolved(name, preset, (256, 256))
    with torch.device("meta"):
        built = build_trainable(recipe, task)
    assert sum(p.numel() for p in built.parameters()) / 1e6 == pytest.approx(n_millions, abs=0.005)


@every_recipe
def test_only_one_recipe_of_a_pretraining_and_its_method_plans(name):
    recipe = recipe_of(name)
    if not is_pretraining(recipe.method) and METHODS[recipe.method].objectives:
        assert not any(preset.plan for preset in recipe.presets.values()), "its pretraining brings the plan"


@every_recipe
def test_overrides_reach_the_right_section_and_wrong_ones_are_usage_errors(name):
    method = recipe_of(name).method
    chosen = sections(name, "recommended")
    changed = apply_overrides(chosen, {"training.steps": "7", "foreground_share": "0.5"}, method)
    assert (changed["training"]["steps"], changed["training"]["foreground_share"]) == (7, 0.5)
    assert chosen["training"].get("steps") != 7, "the recipe itself stays as it was"
    for wrong in ({"training.stepz": "7"}, {"stepz": "7"}, {"trainig.steps": "7"}, {"training.steps": "many"}):
        with pytest.raises(UsageError, match=r"steps|training"):
            apply_overrides(chosen, wrong, method)


def test_unknown_recipes_and_presets_are_usage_errors_with_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean 'supervised'"):
        load_recipe("supervisd")
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        sections("supervised", "papr")


def test_a_recipe_of_the_users_own_is_read_from_its_path(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("method: supervised\ntitle: mine\npresets: {recommended: {training: {steps: 5}}}\n")
    assert sections_of("supervised", load_recipe(str(own)), "recommended")["training"] == {"steps": 5}
    own.write_text("method: supervised\ntitel: mine\npresets: {recommended: {traning: {steps: 5}}}\n")
    with pytest.raises(UsageError) as error:
        load_recipe(str(own))
    assert "did you mean 'title'" in str(error.value)
    assert "did you mean 'training'" in str(error.value)


def test_a_recipe_for_another_method_is_refused(tmp_path):
    own = tmp_path / "other.yaml"
    own.write_text("method: tedm\ntitle: other\npresets: {recommended: {}}\n")
    with pytest.raises(UsageError, match="is for 'tedm', not 'supervised'"):
        sections_of("supervised", load_recipe(str(own)), "recommended")


OWN = """\
method: tedm
title: Mine
presets:
  recommended: {like: tedm.paper}
  short:
    like: recommended
    pretraining: {recipe: pretrain-diffusion__jsrt}
    training: {steps: 5}
  lost: {like: tedm.papre}
  nowhere: {like: temd.paper}
  egg: {like: hen}
  hen: {like: egg}
"""


def test_a_preset_puts_its_own_settings_on_top_of_the_one_it_is_like(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(OWN.split("  lost")[0])
    recipe, base = load_recipe(str(own)), recipe_of("tedm").preset("paper")
    assert recipe.preset("recommended") == base
    short = recipe.preset("short")
    assert short.training == {**base.training, "steps": 5}
    assert (short.method, short.augmentation) == (base.method, base.augmentation)
    assert short.pretraining == PretrainingChoice(recipe="pretrain-diffusion__jsrt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("lost",), r"no preset 'papre'.*paper"),
        (("nowhere",), r"no recipe 'temd'.*`like: temd.paper` in .*own.yaml.*tedm"),
        (("egg", "hen"), r"'egg' is like itself.*egg -> .*hen -> .*egg"),
    ],
)
def test_a_preset_that_is_like_nothing_is_a_usage_error(names, message, tmp_path):
    own = tmp_path / "own.yaml"
    content = yaml.safe_load(OWN)
    content["presets"] = {
        name: preset for name, preset in content["presets"].items() if name in ("recommended", *names)
    }
    own.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UsageError) as error:
        load_recipe(str(own))
    assert re.search(message, str(error.value), re.DOTALL)
