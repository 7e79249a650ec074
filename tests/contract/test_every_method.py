"""Every method and objective of the registry keeps its contract, in 2D and 3D, for exclusive classes and regions.

A new one is tested by being registered. See `small_methods` for how any method is made small.
"""

from dataclasses import replace

import pytest
import torch
from small_methods import (
    TRAINABLES,
    Variant,
    as_parameters,
    batch_of,
    build,
    edges,
    noise_for,
    predicted,
    small_settings,
    variants,
    with_garbage,
)

from medsegdiff_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
from medsegdiff_cli.artifacts.document import validate
from medsegdiff_cli.diffusion.noise import NoiseSource
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import enter_stage, parameters_of_stage
from medsegdiff_cli.methods.registry import METHODS, OBJECTIVES, find_trainable
from medsegdiff_cli.workflows.memory_forecast import measure_training

every_variant = pytest.mark.parametrize("variant", as_parameters(variants()))
every_training = pytest.mark.parametrize("variant", as_parameters(variants(objectives=True)))
every_name = pytest.mark.parametrize("name", TRAINABLES)
every_objective = pytest.mark.parametrize("variant", [v for v in variants(objectives=True) if not v.predicts], ids=str)


def losses(method, stage, batch, seed=0):
    return method.loss(batch, stage, noise_for(batch, seed))


def said(trainable, variant, shape):
    """Return what the weights make of an image: a method's probabilities, an objective's losses."""
    numbers = [0] if variant.predicts else [0, 1]  # some objectives compare items
    batch = batch_of(numbers, shape, variant.stages[-1], exclusive=variant.exclusive)
    if variant.predicts:
        return predicted(trainable, batch.image)
    with torch.inference_mode():
        return torch.stack(list(losses(trainable.eval(), variant.stages[-1], batch).values()))


@every_variant
def test_predictions_are_probabilities_of_every_member_and_class(variant):
    method = build(variant, zero_init=False)
    shape = edges(method)
    image = batch_of([0, 1, 2], shape, variant.stages[-1]).image
    probabilities = predicted(method, image)
    n_members = probabilities.shape[1]
    assert probabilities.shape == (3, n_members, variant.task.n_classes, *shape)
    assert probabilities.dtype == torch.float32
    if method.stochastic:
        assert n_members == max(1, len(method.timesteps)), "one draw a call: a member, or one for each timestep"
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    if variant.exclusive:
        torch.testing.assert_close(probabilities.sum(2), torch.ones(3, n_members, *shape))
    assert (probabilities.amax() - probabilities.amin()) > 0.01, "the test's own weights must say something"


@every_training
def test_every_stage_trains_its_parameters_and_no_others(variant):
    for stage in variant.stages:
        method = build(variant, zero_init=False)
        enter_stage(method, stage)
        batch = batch_of([0, 1], edges(method), stage, exclusive=variant.exclusive)
        terms = losses(method, stage, batch)
        assert terms
        assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values()), terms
        torch.stack(list(terms.values())).sum().backward()
        trained = parameters_of_stage(method, stage)
        for name, parameter in method.named_parameters():
            if name not in trained:
                assert parameter.grad is None, f"{stage.name} must not train {name}"
                continue
            assert parameter.grad is not None, f"{stage.name} does not reach {name}"
            assert torch.isfinite(parameter.grad).all(), name
            # A bias before a norm may have none; weights must.
            assert parameter.ndim < 2 or parameter.grad.abs().max() > 0, f"{stage.name} does not move {name}"


@every_variant
def test_randomness_comes_only_through_noise(variant):
    method = build(variant, zero_init=False)
    image = batch_of([0, 1], edges(method), variant.stages[-1]).image
    torch.manual_seed(1)
    first, state = predicted(method, image), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "predicting drew global random numbers"
    torch.manual_seed(2)
    assert torch.equal(first, predicted(method, image))
    assert torch.equal(first, predicted(method, image, [5, 6])) != method.stochastic


@every_training
def test_a_loss_is_random_only_through_noise(variant):
    method = build(variant, zero_init=False)
    for stage in variant.stages:
        enter_stage(method, stage)
        batch = batch_of([0, 1], edges(method), stage, exclusive=variant.exclusive)
        torch.manual_seed(3)
        expected = losses(method, stage, batch)
        torch.manual_seed(4)
        again = losses(method, stage, batch)
        assert {name: term.item() for name, term in expected.items()} == {n: t.item() for n, t in again.items()}


@every_variant
def test_an_item_is_predicted_alike_alone_and_in_a_batch(variant):
    # In float64: the test's large weights blow a rounding of float32 up, and what is looked for is no rounding.
    method = build(variant, zero_init=False).double()
    image = batch_of([0, 1, 2], edges(method), variant.stages[-1]).image.double()
    together = predicted(method, image)
    for index in range(3):
        alone = predicted(method, image[index : index + 1], [index])
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-6)
    turned = predicted(method, image.flip(0), [2, 1, 0])
    torch.testing.assert_close(turned.flip(0), together, rtol=0, atol=1e-6)


@every_training
def test_labels_that_nobody_annotated_do_not_count(variant):
    for stage in variant.stages:
        if stage.supervision == "none":
            continue
        method = build(variant, zero_init=False)
        enter_stage(method, stage)
        batch = batch_of([0, 1], edges(method), stage, exclusive=variant.exclusive, ignore=True)
        results = []
        for seen in (batch, with_garbage(batch)):
            method.zero_grad()
            terms = losses(method, stage, seen)
            torch.stack(list(terms.values())).sum().backward()
            results.append([*terms.values(), *(p.grad.clone() for p in method.parameters() if p.grad is not None)])
        assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@every_training
def test_a_batch_that_nobody_annotated_has_a_finite_loss(variant):
    for stage in variant.stages:
        if stage.supervision == "none":
            continue
        method = build(variant, zero_init=False)
        batch = batch_of([0, 1], edges(method), stage, exclusive=variant.exclusive, ignore=True)
        batch.valid.zero_()
        assert all(torch.isfinite(term) for term in losses(method, stage, batch).values())


@every_variant
def test_patches_are_multiples_of_the_divisor(variant):
    method = build(variant)
    assert len(method.divisor) == variant.n_dims
    for factors in ((1, 2, 3), (3, 1, 2), (5, 3, 1)):
        shape = edges(method, *factors)
        image = torch.zeros(1, 1, *shape)
        assert predicted(method, image).shape[3:] == shape


@every_training
def test_strides_of_the_plan_decide_the_divisor(variant):
    if "strides" not in type(small_settings(variant.name)).model_fields:
        pytest.skip("the method takes no strides")
    flat_first = (1, *[2] * (variant.n_dims - 1))
    method = build(variant, strides=(flat_first,))
    assert method.divisor == flat_first
    assert torch.isfinite(said(method, variant, edges(method, 3, 3, 3))).all()


@every_training
def test_weights_survive_a_checkpoint(variant, tmp_path):
    method = build(variant, zero_init=False)
    shape = edges(method)
    tensors = {f"model.{name}": tensor for name, tensor in method.state_dict().items()}
    write_checkpoint(tmp_path / "last", tensors, {"step": 1})
    restored = build(variant, seed=1)
    restored.load_state_dict(read_checkpoint(tmp_path / "last").part("model"))
    assert torch.equal(said(method, variant, shape), said(restored, variant, shape))
    assert not torch.equal(said(method, variant, shape), said(build(variant, seed=1), variant, shape))


@every_objective
def test_an_objective_illustrates_what_it_learnt(variant):
    objective = build(variant, zero_init=False).eval()
    shape = edges(objective, 2, 3, 2)
    random_state = torch.random.get_rng_state()
    pictures = [objective.illustrate(NoiseSource([("picture", seed), ("picture", 9)]), shape) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), random_state)
    for picture in (p for p in pictures if p is not None):
        assert picture.shape == (2, variant.task.in_channels, *shape)
        assert torch.isfinite(picture).all()
        assert torch.equal(picture, pictures[0]) == (picture is not pictures[2])


@every_objective
def test_an_objective_without_supervision_looks_at_no_labels(variant):
    for stage in variant.stages:
        if stage.supervision != "none":
            continue
        method = build(variant, zero_init=False)
        batch = batch_of([0, 1], edges(method), stage)
        assert batch.label is None
        labelled = replace(batch, label=torch.full(batch.image.shape[:1] + batch.image.shape[2:], 200))
        assert losses(method, stage, batch) == losses(method, stage, labelled)


@every_training
def test_memory_is_forecast_without_using_it(variant):
    method = build(variant)
    settings = small_settings(variant.name).model_dump()
    shape = edges(method)
    counts = [
        measure_training(variant.name, variant.task, settings, shape, batch_size, torch.device("cpu"))
        for batch_size in (1, 4)
    ]
    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    assert weights < counts[0] < counts[1]


@every_name
def test_stages_have_names_of_their_own_and_train_parameters_that_exist(name):
    for variant in (v for v in variants(regions=False, objectives=True) if v.name == name):
        method = build(variant)
        assert len({stage.name for stage in method.stages}) == len(method.stages) > 0
        assert all(parameters_of_stage(method, stage) for stage in method.stages)


@every_name
def test_settings_are_frozen_strict_and_explained(name):
    model = find_trainable(name).load().Settings
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"
    explained = " ".join(ancestor.__doc__ or "" for ancestor in model.__mro__ if ancestor is not object)
    assert [
        field for field in model.model_fields if f"{field}:" not in explained and f"{field}," not in explained
    ] == []


@every_name
def test_an_unknown_setting_is_a_usage_error_with_the_nearest_one(name):
    model = find_trainable(name).load().Settings
    known = next(iter(model.model_fields))
    with pytest.raises(UsageError, match=f"unknown key '{known}x': did you mean '{known}'") as error:
        validate(model, {f"{known}x": 1}, f"settings of '{name}'")
    assert error.value.exit_code == 2


@every_name
def test_wrong_settings_of_the_registry_would_be_noticed(name):
    entry = find_trainable(name)
    assert validate(entry.load().Settings, entry.preset, name) is not None
    assert set(entry.n_dims) <= {2, 3}
    assert entry.title
    assert entry.source


def test_the_variants_cover_the_whole_registry():
    assert {variant.name for variant in variants()} == set(METHODS)
    assert {variant.name for variant in variants(objectives=True)} == set(TRAINABLES)
    assert len(TRAINABLES) == len(METHODS) + len(OBJECTIVES)
    assert Variant("supervised", 3, False) in variants()
