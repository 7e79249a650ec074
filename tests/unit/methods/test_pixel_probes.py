"""TEDM, LEDM and their like against the textbook way: enlarge all features, join them, classify each pixel."""

import pytest
import torch
import torch.nn.functional as F
from plain_pixel_probes import (
    MARGIN,
    SHAPE,
    STAGE,
    STEPS,
    drawn_pixels,
    enlarged,
    heads_of,
    images,
    inputs_of,
    labelled,
    noise,
    predicted,
    probes,
)
from torch import nn

from medsegdiff_cli.artifacts.batch import Batch
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.base import enter_stage
from medsegdiff_cli.methods.registry import METHODS

every_kind = pytest.mark.parametrize(
    "settings",
    [
        {"shared": True},
        {"shared": False, "upsampling": "nearest"},
        {"shared": True, "n_heads": 3},
        {"shared": False, "n_heads": 3},
        {"shared": True, "hidden": (), "upsampling": "nearest"},
        {"shared": False, "hidden": ()},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)


# Training


@every_kind
@pytest.mark.parametrize(("exclusive", "ignore"), [(True, False), (True, True), (False, True)])
def test_the_loss_is_that_of_the_plain_way(settings, exclusive, ignore):
    method = probes(exclusive=exclusive, **settings).double()
    enter_stage(method, STAGE)
    valid = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(5)) < 0.7 if ignore else None
    batch = labelled(method, valid=valid)
    assert 2 * method.settings.pixels > 100

    source = noise()
    pixels = drawn_pixels(method, source)
    features = inputs_of(method, enlarged(method, batch.image, source))
    chosen = torch.stack([torch.stack([item[p] for item, p in zip(f, pixels, strict=True)]) for f in features])
    counted = torch.ones_like(pixels, dtype=torch.bool) if valid is None else valid.flatten(1).gather(1, pixels)
    total = 0.0
    for head in heads_of(method):
        logits = head(chosen.flatten(0, 2)).view(*chosen.shape[:3], -1)  # (step, item, pixel, class)
        if exclusive:
            label = batch.label.flatten(1).gather(1, pixels)
            terms = -logits.log_softmax(-1).gather(-1, label.expand(len(features), -1, -1)[..., None])[..., 0]
        else:
            region = torch.stack([r.flatten(1).gather(1, pixels) for r in batch.label.unbind(1)], -1).double()
            terms = -(region * F.logsigmoid(logits) + (1 - region) * F.logsigmoid(-logits)).mean(-1)
        total += sum(terms[step][counted].mean() for step in range(len(features))) / len(features)
    found = method.loss(batch, STAGE, noise())
    assert list(found) == ["cross_entropy"]
    expected = total / method.settings.n_heads
    assert found["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_those_of_the_plain_way_and_the_network_gets_none(shared):
    method = probes(shared=shared).double()
    enter_stage(method, STAGE)
    batch, source = labelled(method), noise()
    pixels = drawn_pixels(method, source)
    features = inputs_of(method, enlarged(method, batch.image, source))
    chosen = torch.stack([torch.stack([item[p] for item, p in zip(f, pixels, strict=True)]) for f in features])
    (head,) = heads_of(method)
    label = batch.label.flatten(1).gather(1, pixels).expand(len(features), -1, -1)
    F.cross_entropy(head(chosen.flatten(0, 2)), label.flatten()).backward()
    sum(method.loss(batch, STAGE, noise()).values()).backward()
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    for mine, theirs in zip([method.classifier.first, *method.classifier.later], linear, strict=True):
        torch.testing.assert_close(mine.weight.grad[..., 0], theirs.weight.grad, rtol=1e-8, atol=1e-10)
    assert all(parameter.grad is None for parameter in method.network.parameters())


def test_the_norms_of_a_shared_classifier_see_all_timesteps_at_once():
    method = probes().double()
    enter_stage(method, STAGE)
    (first, _), before = method.classifier.norms, method.classifier.norms[0].running_mean.clone()
    batch, source = labelled(method), noise()
    pixels = drawn_pixels(method, source)
    features = enlarged(method, batch.image, source)
    chosen = torch.cat([item[p] for f in features for item, p in zip(f, pixels, strict=True)])
    layer = method.classifier.first
    hidden = (chosen @ layer.weight[..., 0].T + layer.bias).relu()
    method.loss(batch, STAGE, noise())
    # One update, by 0.1 towards the mean over timesteps, items and pixels.
    expected = 0.9 * before + 0.1 * hidden.mean(0)
    torch.testing.assert_close(first.running_mean, expected, rtol=0, atol=1e-10)
    assert first.num_batches_tracked == 1


@pytest.mark.parametrize("shared", [True, False])
def test_every_training_step_sees_all_timesteps_of_every_image(shared):
    method, seen = probes(shared=shared), []
    method.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].tolist()))
    method.loss(labelled(method), STAGE, noise())
    assert seen == [[step, step] for step in STEPS]


def test_training_without_labels_is_a_fault():
    method = probes()
    batch = Batch(image=images(), label=None, valid=None, case_ids=("x", "y"), positions=torch.arange(2))
    with pytest.raises(ValueError, match="need labels"):
        method.loss(batch, STAGE, noise())


def test_pixels_are_drawn_everywhere_and_for_each_image_apart():
    from medsegdiff_cli.methods.pixel_probes import _draw_positions

    positions = _draw_positions((4, 3, 5), 5000, noise())
    assert positions.shape == (2, 5000, 3)
    for item in positions:
        counts = torch.bincount((item * torch.tensor([15, 5, 1])).sum(1), minlength=60)
        # 5000 draws of 60: 83 each, with a standard deviation of 9.
        assert len(counts) == 60
        assert 40 < counts.min() <= counts.max() < 130
    assert not torch.equal(positions[0], positions[1])


# The ridge of the step probe


def test_the_ridge_is_the_weights_squares_and_pulls_them_to_zero():
    method = probes(hidden=(), timesteps=(1,), l2=0.25).double()
    enter_stage(method, STAGE)
    weight, bias = method.classifier.first.weight, method.classifier.first.bias
    terms = method.loss(labelled(method), STAGE, noise())
    assert list(terms) == ["cross_entropy", "ridge"]
    assert terms["ridge"].item() == pytest.approx(0.25 * (weight**2).sum().item())
    (gradient,) = torch.autograd.grad(terms["ridge"], weight, retain_graph=True)
    torch.testing.assert_close(gradient, 0.5 * weight.detach())
    assert torch.autograd.grad(terms["ridge"], bias, allow_unused=True, retain_graph=True) == (None,)
    without = probes(hidden=(), timesteps=(1,)).double().loss(labelled(method), STAGE, noise())
    assert list(without) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], without["cross_entropy"])


def test_the_ridge_of_an_mlp_counts_all_its_layers_but_no_norms():
    method = probes(l2=1.0)
    layers = (method.classifier.first, *method.classifier.later)
    expected = sum((layer.weight**2).sum().item() for layer in layers)
    assert len(layers) == 3
    assert method.loss(labelled(method), STAGE, noise())["ridge"].item() == pytest.approx(expected, rel=1e-5)


def test_a_stronger_ridge_leaves_smaller_weights():
    sizes = []
    for l2 in (0.0, 0.01, 1.0):
        method = probes(hidden=(), timesteps=(1,), l2=l2)
        optimiser = torch.optim.Adam(method.classifier.parameters(), lr=0.02)
        for seed in range(40):
            optimiser.zero_grad()
            sum(method.loss(labelled(method), STAGE, noise(seed, seed + 50)).values()).backward()
            optimiser.step()
        sizes.append(method.classifier.first.weight.norm().item())
    assert sizes[2] < 0.7 * sizes[0]
    assert sizes[2] < sizes[1] < sizes[0]


def test_the_registrys_step_probe_has_a_ridge_and_no_hidden_layer():
    preset = METHODS["step-probe"].preset
    assert preset["l2"] > 0
    assert preset["hidden"] == ()
    assert len(preset["timesteps"]) == 1


# Prediction


@every_kind
@pytest.mark.parametrize("exclusive", [True, False])
def test_predictions_are_those_of_the_plain_way(settings, exclusive):
    method = probes(exclusive=exclusive, **settings)
    features = inputs_of(method, enlarged(method, images(), noise()))
    members = []
    for step in features:
        for head in heads_of(method):
            with torch.no_grad():
                logits = head(step.flatten(0, 1)).unflatten(0, (2, -1)).movedim(-1, 1).unflatten(2, SHAPE)
            members.append(logits.softmax(1) if exclusive else logits.sigmoid())
    expected = torch.stack(members, 1)
    found = predicted(method, images())
    n_members = method.settings.n_heads * (len(STEPS) if method.settings.shared else 1)
    assert found.shape == (2, n_members, method.task.n_classes, *SHAPE)
    assert (found - expected).abs().max() <= 1e-5
    assert expected.std() > 0.05, "the test's own weights must say something"


def test_with_one_timestep_ledm_and_tedm_are_the_same():
    tedm, ledm = probes(timesteps=(25,), shared=True), probes(timesteps=(25,), shared=False)
    ledm.load_state_dict(tedm.state_dict())
    assert torch.equal(predicted(tedm, images()), predicted(ledm, images()))
    for method in (tedm, ledm):
        enter_stage(method, STAGE)
    assert torch.equal(*(method.loss(labelled(method), STAGE, noise())["cross_entropy"] for method in (tedm, ledm)))


def test_ledm_reads_all_timesteps_joined_and_tedm_each_alone():
    tedm, ledm = probes(shared=True), probes(shared=False)
    (one,) = {sum(block.shape[1] for block in blocks) for _, blocks in tedm.features(images(), noise())}
    assert tedm.classifier.first.weight.shape[1] == one
    assert ledm.classifier.first.weight.shape[1] == len(STEPS) * one
    assert (tedm.timesteps, ledm.timesteps) == (STEPS, ())


def test_the_order_of_timesteps_does_not_change_the_vote():
    # With one noise for all, so that a timestep's noise does not depend on its place.
    forward, backward = probes(noise="shared"), probes(noise="shared", timesteps=STEPS[::-1])
    members = predicted(forward, images())
    assert torch.equal(members, predicted(backward, images()).flip(1))
    torch.testing.assert_close(members.mean(1), predicted(backward, images()).mean(1))
    assert (members[:, 0] - members[:, 2]).abs().max() > MARGIN


def test_some_timesteps_predict_what_they_predict_among_all():
    method = probes()
    members = predicted(method, images())
    for index, step in enumerate(STEPS):
        assert torch.equal(predicted(method, images(), (step,)), members[:, [index]])
    assert torch.equal(predicted(method, images(), (1, 25)), members[:, [0, 2]])


def test_unknown_timesteps_are_refused_with_those_that_there_are():
    for shared, known in ((True, "1, 10, 25"), (False, "reads all timesteps at once")):
        with pytest.raises(UsageError, match=r"timesteps \[2\] are no members") as error:
            predicted(probes(shared=shared), images(), (2,))
        assert known in str(error.value)
