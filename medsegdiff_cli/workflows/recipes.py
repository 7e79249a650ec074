"""Recipes and overrides: from a method's name to all settings of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.artifacts.recipe import (
    SECTIONS,
    AugmentationSettings,
    PredictionSettings,
    Preset,
    Recipe,
    TrainingSettings,
    read_recipe,
)
from medsegdiff_cli.errors import UsageError, did_you_mean
from medsegdiff_cli.methods.registry import PRETRAINING, find_method, find_trainable, is_pretraining

_PACKAGE = "medsegdiff_cli.plans"
_FROM_THE_PLAN = ("strides",)
Sections = dict[str, dict[str, Any]]


def recipe_names() -> list[str]:
    """Return the shipped recipes, `METHOD` or `METHOD__DATA`."""
    files = resources.files(_PACKAGE).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Return a shipped recipe by name, or a user's own file; what its presets take from others is filled in.

    Raises:
        UsageError: no such recipe, wrong keys in it, or presets that are like themselves.
    """
    recipe = _read(name_or_path)
    presets = {name: _filled_in(recipe, name, name_or_path, ()) for name in recipe.presets}
    return recipe.model_copy(update={"presets": presets})


def _read(name_or_path: str, where: str = "--recipe") -> Recipe:
    own = Path(name_or_path).expanduser()
    if own.suffix in (".yaml", ".yml") and own.is_file():
        return read_recipe(own)
    if name_or_path not in recipe_names():
        raise UsageError(f"no recipe '{name_or_path}'", where=where, fix=did_you_mean(name_or_path, recipe_names()))
    with resources.as_file(resources.files(_PACKAGE) / f"{name_or_path}.yaml") as path:
        return read_recipe(path)


def _filled_in(recipe: Recipe, name: str, source: str, before: tuple[str, ...]) -> Preset:
    """Return a preset on top of the one that it is like."""
    own, here = recipe.preset(name), f"{source}.{name}"
    if own.like is None:
        return own
    if here in before:
        raise UsageError(f"preset '{name}' is like itself", where=source, fix=" -> ".join((*before, here)))
    other, _, like = own.like.rpartition(".")
    base_recipe = _read(other, where=f"`like: {own.like}` in {source}") if other else recipe
    base = _filled_in(base_recipe, like, other or source, (*before, here))
    merged: dict[str, Any] = {section: {**getattr(base, section), **getattr(own, section)} for section in SECTIONS}
    merged["pretraining"] = base.pretraining.model_copy(update=own.pretraining.model_dump(exclude_unset=True))
    return Preset(**merged)


def sections_of(method: str, recipe: Recipe, preset: str) -> Sections:
    """Return the preset's settings section by section, over the registry line's own.

    Raises:
        UsageError: the recipe is for another method, or has no such preset.
    """
    if recipe.method != method:
        raise UsageError(
            f"the recipe is for '{recipe.method}', not '{method}'",
            where="--recipe",
            fix=f"leave it out, or name '{recipe.method}' as the method",
        )
    chosen = recipe.preset(preset)
    sections: Sections = {name: dict(getattr(chosen, name)) for name in SECTIONS}
    sections["method"] = {**find_trainable(method).preset, **sections["method"]}
    return sections


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """A recipe and one of its presets.

    Attributes:
        method: what it is for, a method or `pretrain-OBJECTIVE`.
    """

    method: str
    recipe: str
    preset: str

    def sections(self) -> Sections:
        """Return the settings, section by section."""
        return sections_of(self.method, load_recipe(self.recipe), self.preset)


def pretraining_choice(method: str, recipe: str | None, preset: str) -> RecipeChoice | None:
    """Return the recipe of the pretraining that a method starts from by default; None when it starts from none.

    Args:
        recipe, preset: the method's own; no recipe takes the one of its name.
    """
    if is_pretraining(method) or not find_method(method).objectives:
        return None
    choice = load_recipe(recipe or method).preset(preset).pretraining
    name = f"{PRETRAINING}{find_method(method).objectives[0]}"
    chosen = choice.recipe or name
    presets = load_recipe(chosen).presets
    return RecipeChoice(
        method=name, recipe=chosen, preset=choice.preset or (preset if preset in presets else "recommended")
    )


def planned_by(method: str, recipe: str | None, preset: str) -> RecipeChoice:
    """Return the recipe whose `plan` section counts: the pretraining's, for a method that starts from one."""
    own = RecipeChoice(method=method, recipe=recipe or method, preset=preset)
    return pretraining_choice(method, recipe, preset) or own


def apply_overrides(sections: Sections, overrides: Mapping[str, str], method: str) -> Sections:
    """Put `--set key=value` on top; a key may be `section.key`, or bare when only one section has it.

    Raises:
        UsageError: an unknown or ambiguous key, with the nearest known one.
    """
    known = known_settings(method)
    result = {name: dict(content) for name, content in sections.items()}
    for key, text in overrides.items():
        section, name = locate(key, known)
        if name in _FROM_THE_PLAN:
            raise UsageError(f"'{name}' follows from the plan", where="--set", fix=f"edit `{name}` in the plan")
        result[section][name] = _value_of(key, text)
    for section, model in known.items():
        if section != "method":
            validate(model, result[section], f"settings of '{section}'")
    return result


def without_effect(overrides: Mapping[str, str], sections: Sections, method: str) -> set[str]:
    """Return the keys of those `--set` assignments that only say what the settings already are.

    Raises:
        UsageError: an unknown or ambiguous key.
    """
    known, same = known_settings(method), set()
    for key, text in overrides.items():
        section, name = locate(key, known)
        default = known[section].model_fields[name].get_default(call_default_factory=True)
        now, then = (_plain(value) for value in (sections[section].get(name, default), _value_of(key, text)))
        if now == then and type(now) is type(then):
            same.add(key)
    return same


def spelt_alike(keys: Iterable[str], method: str) -> dict[str, str]:
    """Return the one spelling of each key of a `--set`: bare for the method's own settings, else `section.key`.

    Raises:
        UsageError: an unknown or ambiguous key.
    """
    known, spellings = known_settings(method), {}
    for key in keys:
        section, name = locate(key, known)
        is_bare = section == "method" and sum(name in model.model_fields for model in known.values()) == 1
        spellings[key] = name if is_bare else f"{section}.{name}"
    return spellings


def _plain(value: Any) -> Any:
    """Return a setting as YAML would hold it."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _value_of(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        fix = f"write it as in YAML, for example --set {key}=0.1 or --set '{key}=[1, 2]'"
        raise UsageError(f"'{text}' is no value for '{key}'", where="--set", fix=fix) from None


def known_settings(method: str) -> dict[str, type[BaseModel]]:
    """Return the settings model of every section that `--set` can change."""
    return {
        "method": find_trainable(method).load().Settings,
        "training": TrainingSettings,
        "augmentation": AugmentationSettings,
        "prediction": PredictionSettings,
    }


def locate(key: str, known: Mapping[str, type[BaseModel]]) -> tuple[str, str]:
    """Return the section and the setting that the key of a `--set` means.

    Raises:
        UsageError: it means none, or more than one.
    """
    section, _, name = key.rpartition(".")
    if section:
        if section not in known:
            raise UsageError(f"no section '{section}' in '{key}'", where="--set", fix=did_you_mean(section, known))
        if name not in known[section].model_fields:
            raise UsageError(f"no setting '{key}'", where="--set", fix=did_you_mean(name, known[section].model_fields))
        return section, name
    homes = [section for section, model in known.items() if name in model.model_fields]
    if len(homes) == 1:
        return homes[0], name
    if homes:
        choices = ", ".join(f"{home}.{name}" for home in homes)
        raise UsageError(f"'{name}' is ambiguous", where="--set", fix=f"write one of {choices}")
    everything = [field for model in known.values() for field in model.model_fields]
    raise UsageError(f"no setting '{name}'", where="--set", fix=did_you_mean(name, everything))
