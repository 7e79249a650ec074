"""Every method and objective resumes exactly, trains deterministically, and learns what is there to be learnt.

A method that starts from a pretraining does so here, from a short one: features of random weights say little.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from small_methods import (
    Variant,
    as_parameters,
    batch_of,
    build,
    edges,
    mean_dice,
    noise_for,
    organs,
    predicted,
    stream_of_batches,
    variants,
)

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.artifacts.checkpoint import read_checkpoint
from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.inference.fusion import label_map
from medsegdiff_cli.methods.base import Method, Stage, Trainable
from medsegdiff_cli.methods.iterative import IterativeMethod
from medsegdiff_cli.methods.registry import METHODS, PRETRAINING
from medsegdiff_cli.networks.transfer import adaptation_data
from medsegdiff_cli.training.journal import Journal
from medsegdiff_cli.training.loop import train_stage

STEPS = 4
SHAPES = {2: (32, 32), 3: (16, 24, 24)}
# A network that speaks of every eighth or fourth pixel needs the same organs in more of them.
MAGNIFIED = {"deeplabv3": 4, "segformer": 4}
PRETRAINING_STEPS = 80
# What is small and on top of a network takes larger steps than a network; a linear classifier the largest.
LEARNING = {
    **{name: {"learning_rate": 1e-2} for name in ("tedm", "ledm", "ledme", "hybrid-ledm")},
    "step-probe": {"learning_rate": 1e-1, "steps": 160},
    # Fed its own estimate, a network has more to learn: until then each step of its walk leads further astray.
    **{name: {"steps": 160} for name in ("self-conditioning", "self-conditioning-next", "recycling-next")},
    # A transformer has to learn first which positions belong together.
    "segformer": {"steps": 160},
}


class Killed(Exception):
    """Stands for kill -9: nothing is saved after it."""


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "draw", lambda self: None)


def run_stages(variant: Variant, folder: Path, *, killed_at: int | None = None) -> Trainable:
    """Train all stages for a few steps, saving after each; stop dead before a step of each stage, then go on."""
    method = build(variant)
    for stage in variant.stages:
        before = frozen_in(stage, method)
        for stop in [killed_at, None] if killed_at is not None else [None]:
            if killed_at is not None and stop is None:
                method = rebuilt(variant, folder, stage)
            with contextlib.suppress(Killed):
                train(method, stage, folder, stop)
        assert changed(before, method) == [], stage.name
    return method


def frozen_in(stage: Stage, method: Trainable) -> dict[str, torch.Tensor]:
    """Return what a stage must not change, weights and buffers: a frozen norm's running statistics drift unnoticed."""
    return {name: tensor.clone() for name, tensor in method.state_dict().items() if not name.startswith(stage.trains)}


def changed(before: dict[str, torch.Tensor], method: Trainable) -> list[str]:
    """Return the names of the tensors that are no longer what they were."""
    after = method.state_dict()
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]


def rebuilt(variant: Variant, folder: Path, stage: Stage) -> Trainable:
    """Return what a new process would build: another initialisation, then the weights of the stage before."""
    method = build(variant, seed=99)
    index = variant.stages.index(stage)
    if index > 0:
        method.load_state_dict(read_checkpoint(folder / "checkpoints" / "last").part("model"))
    return method


def train(method: Trainable, stage: Stage, folder: Path, stop: int | None) -> None:
    shape, exclusive = edges(method, 4, 6, 5), method.task.classes_are_exclusive

    def make_batches(start: int) -> Iterator[Batch]:
        batches = stream_of_batches(start, STEPS, shape, stage, exclusive=exclusive)
        for step, batch in enumerate(batches, start):
            if step == stop:
                raise Killed
            yield batch

    settings = TrainingSettings(steps=STEPS, warmup_steps=1, ema_decay=0.9, checkpoint_minutes=1e-9)
    train_stage(method, stage, settings, folder=folder, make_batches=make_batches, seed=3, device=torch.device("cpu"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return weights, optimiser state and averages after the last step, and the prediction weights."""
    checkpoints = folder / "checkpoints"
    newest, last = read_checkpoint(checkpoints / f"step_{STEPS:08d}"), read_checkpoint(checkpoints / "last")
    return {**newest.tensors, **{f"last.{name}": tensor for name, tensor in last.tensors.items()}}


@pytest.mark.fault("F97")
@pytest.mark.parametrize("variant", as_parameters(variants(objectives=True)))
def test_a_killed_training_equals_an_undisturbed_one_and_two_are_alike(variant, tmp_path):
    untouched = build(variant).state_dict()
    for name, killed_at in (("first", None), ("second", None), ("killed", 2)):
        run_stages(variant, tmp_path / name, killed_at=killed_at)
    expected = tensors_of(tmp_path / "first")
    assert {name.split(".")[0] for name in expected} == {"model", "optimiser", "ema", "last"}
    for other in ("second", "killed"):
        found = tensors_of(tmp_path / other)
        assert expected.keys() == found.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert any(not torch.equal(untouched[name], expected[f"last.model.{name}"]) for name in untouched)


@pytest.mark.parametrize(
    ("name", "settings", "trains"),
    [
        ("vanilla", {"trains": "not-encoder"}, None),
        ("vanilla", {"trains": "decoder"}, None),
        # Its backbone is full of batch norms, whose running statistics drift unless they are frozen, too.
        ("deeplabv3", {}, ("network.classifier.",)),
    ],
)
def test_a_part_that_settings_freeze_never_changes(name, settings, trains, tmp_path):
    method = build(Variant(name, 2, True), zero_init=False, **settings)
    (stage,) = method.stages if trains is None else (replace(method.stages[0], trains=trains),)
    before = frozen_in(stage, method)
    assert len(before) > 10
    train(method, stage, tmp_path, None)
    assert changed(before, method) == []


def fit(method: Trainable, folder: Path, make_batch: Any, **changes: Any) -> None:
    """Train all stages on batches that are a function of stage and step."""
    settings = TrainingSettings(
        **{"steps": 80, "learning_rate": 3e-3, "warmup_steps": 10, "ema_decay": 0.95, **changes}
    )
    for stage in method.stages:
        train_stage(
            method,
            stage,
            settings,
            folder=folder,
            make_batches=lambda start, stage=stage: (make_batch(stage, step) for step in range(start, settings.steps)),
            seed=0,
            device=torch.device("cpu"),
        )


def shape_for(variant: Variant) -> tuple[int, ...]:
    """Return the size of the images that a method learns from."""
    return tuple(edge * MAGNIFIED.get(variant.name, 1) for edge in SHAPES[variant.n_dims])


def labels_of(method: Method, images: torch.Tensor) -> torch.Tensor:
    """Return label maps of the mean over members."""
    return torch.stack([label_map(p, True).long() for p in predicted(method, images).mean(1)])


def learning(chosen: list[Variant]) -> list[Any]:
    """Return variants as parameters; in 3D pretrainings, what starts from them and what walks are slow, and further
    names and trainings of two stages are everywhere.
    """
    parameters = as_parameters(chosen, slow_2d=True)
    for index, variant in enumerate(chosen):
        if len(variant.stages) > 1 or (variant.n_dims == 3 and not _trains_once(variant)):
            parameters[index] = pytest.param(variant, marks=[pytest.mark.slow], id=str(variant))
    return parameters


def _trains_once(variant: Variant) -> bool:
    """Return whether the method takes no pretraining and one pass through its network a step."""
    if not variant.predicts or METHODS[variant.name].load().inherited is not None:
        return False
    return not issubclass(METHODS[variant.name].load(), IterativeMethod)


@lru_cache(maxsize=2)
def pretrained(name: str, n_dims: int) -> tuple[Trainable, float, float]:
    """Return an objective after some steps on the first two phantoms, and its loss before and after."""
    variant, shape = Variant(name, n_dims), SHAPES[n_dims]
    objective = build(variant)
    losses = [loss_of(objective, shape)]
    with TemporaryDirectory() as folder:
        fit(objective, Path(folder), lambda stage, step: batch_of([0, 1], shape, stage), steps=PRETRAINING_STEPS)
    losses.append(loss_of(objective, shape))
    return objective, losses[0], losses[1]


def loss_of(objective: Trainable, shape: tuple[int, ...]) -> float:
    """Return the mean loss on the first two phantoms under some noises."""
    stage = objective.stages[-1]
    batch = batch_of([0, 1], shape, stage)
    with torch.no_grad():
        losses = [sum(objective.eval().loss(batch, stage, noise_for(batch, seed)).values()) for seed in range(20)]
    return float(sum(losses)) / len(losses)


def started(variant: Variant) -> Method:
    """Return a method as its training begins: with a pretrained network, when it starts from one."""
    method: Method = build(variant)
    objectives = METHODS[variant.name].objectives
    if objectives:
        objective = pretrained(f"{PRETRAINING}{objectives[0]}", variant.n_dims)[0]
        heads = tuple(adaptation_data(method)["head"]) if method.outputs != objective.outputs else ()
        taken = {
            name: tensor
            for name, tensor in objective.state_dict().items()
            if name.startswith(method.pretrained) and not name.startswith(heads)
        }
        assert method.load_state_dict(taken, strict=False).unexpected_keys == []
    return method


@pytest.mark.parametrize("variant", learning([v for v in variants(regions=False, objectives=True) if not v.predicts]))
def test_an_objective_learns_what_is_in_its_images(variant):
    _, before, after = pretrained(variant.name, variant.n_dims)
    assert after < 0.5 * before


@pytest.mark.parametrize("variant", learning(variants(regions=False)))
def test_two_cases_are_learnt_by_heart(variant, tmp_path):
    method, shape = started(variant), shape_for(variant)
    fit(method, tmp_path, lambda stage, step: batch_of([0, 1], shape, stage), **LEARNING.get(variant.name, {}))
    images, labels = (torch.stack(part) for part in zip(*(organs(n, shape) for n in (0, 1)), strict=True))
    assert mean_dice(labels_of(method, images), labels) >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "variant",
    [v for v in variants(regions=False) if v.n_dims == 2 or not METHODS[v.name].objectives],
    ids=str,
)
def test_labels_of_other_cases_teach_nothing(variant, tmp_path):
    shape, n_cases = shape_for(variant), 24
    cases = [organs(number, shape) for number in range(2 * n_cases)]
    images = torch.stack([image for image, _ in cases])
    labels = torch.stack([label for _, label in cases])
    order = torch.randperm(n_cases, generator=torch.Generator().manual_seed(0))
    held_out = slice(n_cases, None)
    scores = {}
    for name, taught in (("own", labels[:n_cases]), ("shuffled", labels[:n_cases][order])):

        def make_batch(stage: Stage, step: int, taught: torch.Tensor = taught) -> Batch:
            chosen = torch.randint(n_cases, (4,), generator=torch.Generator().manual_seed(step))
            plain = batch_of([0, 0, 0, 0], shape, stage)
            supervised = None if plain.label is None else taught[chosen]
            return Batch(
                image=images[chosen],
                label=supervised,
                valid=plain.valid,
                case_ids=tuple(f"case{n}" for n in chosen.tolist()),
                positions=plain.positions,
                views=tuple(images[chosen].flip(-1) for _ in plain.views),
            )

        method = started(variant)
        fit(method, tmp_path / name, make_batch, **{**LEARNING.get(variant.name, {}), "steps": 300})
        scores[name] = mean_dice(labels_of(method, images[held_out]), labels[held_out])
    # Chance: the best fixed map, every voxel being foreground where the labels' frequency exceeds a threshold.
    frequency = torch.stack([(labels[:n_cases] == index).float().mean(0) for index in (1, 2)])
    chance = max(
        sum(
            mean_dice((f > threshold).expand_as(labels[held_out]).long(), (labels[held_out] == index).long(), 2)
            for index, f in enumerate(frequency, 1)
        )
        / 2
        for threshold in torch.linspace(0, 0.5, 21)
    )
    assert scores["own"] >= 0.85, scores
    assert scores["shuffled"] <= chance + 0.1, (scores, chance)
    assert scores["own"] - scores["shuffled"] >= 0.4, scores
