"""Stages choose parameters by prefix; everything else is frozen and in eval mode."""

import pytest
import torch
from torch import nn

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.methods.base import Method, Stage, enter_stage, parameters_of_stage


class Parts(Method):
    """Two norms with names of which one begins like the other, and a body of two layers with dropout between."""

    stages = ()

    def __init__(self):
        super().__init__(Task(n_dims=2, in_channels=1, class_names=("background", "organ")), None)
        self.norm = nn.BatchNorm2d(1)
        self.norm2 = nn.BatchNorm2d(1)
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(), nn.BatchNorm2d(2))

    def loss(self, batch, stage, noise):
        return {}

    def predict(self, prepared, noise, sampling):
        return prepared

    @property
    def divisor(self):
        return (1, 1)


def stage(*trains):
    return Stage(name="some", supervision="full", trains=trains)


def trained(method):
    return {name for name, parameter in method.named_parameters() if parameter.requires_grad}


def training(method):
    return {name for name, module in method.named_modules() if module.training and name}


def test_the_empty_prefix_trains_everything():
    method = Parts().eval()
    enter_stage(method, stage(""))
    assert trained(method) == set(dict(method.named_parameters()))
    assert training(method) == {"norm", "norm2", "body", "body.0", "body.1", "body.2"}


def test_only_what_a_prefix_names_is_trained():
    method = Parts()
    enter_stage(method, stage("norm2."))
    assert trained(method) == {"norm2.weight", "norm2.bias"}
    assert training(method) == {"norm2"}


def test_a_frozen_batch_norm_does_not_drift():
    method = Parts()
    enter_stage(method, stage("norm2"))
    method.norm(torch.ones(4, 1, 3, 3))
    method.norm2(torch.ones(4, 1, 3, 3))
    assert method.norm.running_mean.item() == 0
    assert method.norm2.running_mean.item() == pytest.approx(0.1)


def test_a_single_layer_of_a_sequence_is_trained_alone():
    method = Parts()
    enter_stage(method, stage("body.0", "norm."))
    assert trained(method) == {"body.0.weight", "body.0.bias", "norm.weight", "norm.bias"}
    assert training(method) == {"body", "body.0", "norm"}


def test_a_later_stage_thaws_what_an_earlier_one_froze():
    method = Parts()
    enter_stage(method, stage("body"))
    enter_stage(method, stage("norm."))
    assert trained(method) == {"norm.weight", "norm.bias"}
    assert training(method) == {"norm"}


def test_a_prefix_of_nothing_is_a_fault_of_the_method():
    with pytest.raises(ValueError, match="stage 'some' trains 'head'"):
        parameters_of_stage(Parts(), stage("body", "head"))
