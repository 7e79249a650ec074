"""A batch that holds nothing to find is trained on like any other: losses and gradients are finite."""

from dataclasses import replace

import pytest
import torch
from small_methods import as_parameters, batch_of, build, edges, noise_for, variants

from medsegdiff_cli.methods.base import enter_stage


@pytest.mark.fault("F95")
@pytest.mark.parametrize("annotated", [True, False], ids=["all-background", "nobody-annotated"])
@pytest.mark.parametrize("variant", as_parameters(variants()))
def test_losses_and_gradients_stay_finite(variant, annotated):
    method, stage = build(variant), variant.stages[-1]
    batch = batch_of([0, 1], edges(method), stage, exclusive=variant.exclusive)
    nothing = torch.zeros_like(batch.label)
    valid = None if annotated else torch.zeros(nothing.shape[:1] + batch.image.shape[2:], dtype=torch.bool)
    # A patch of air, too: every voxel is the same.
    batch = replace(batch, label=nothing, valid=valid, image=torch.zeros_like(batch.image))
    enter_stage(method, stage)
    losses = method.loss(batch, stage, noise_for(batch))
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
