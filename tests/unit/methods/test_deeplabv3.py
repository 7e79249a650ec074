"""DeepLabv3 as a method: public weights under their own names, and nothing random unless asked for."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.methods.base import enter_stage
from medsegdiff_cli.methods.deeplabv3 import DeepLab, DeepLabV3Settings
from medsegdiff_cli.training.start_from_file import start_from_file
from medsegdiff_cli.workflows.public_weights import settle_weights

SMALL = {"width": 4, "blocks": (1, 1, 1, 1), "dropout": 0.0}
PREFIX = "network.backbone."


def method(in_channels=3, seed=0, **settings):
    torch.manual_seed(seed)
    task = Task(n_dims=2, in_channels=in_channels, class_names=("background", "organ"))
    return DeepLab(task, DeepLabV3Settings(**{**SMALL, **settings}))


def write(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def resnet(tmp_path):
    """A file as torchvision's ResNet has it, with the classifier of ImageNet and without counters; and its tensors."""
    state = method(seed=7).state_dict()
    tensors = {name.removeprefix(PREFIX): t + 0.1 for name, t in state.items() if name.startswith(PREFIX)}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    tensors |= {"fc.weight": torch.ones(1000, 128), "fc.bias": torch.ones(1000)}
    return write(tmp_path / "resnet.safetensors", tensors), tensors


def test_a_resnets_file_fills_the_backbone_and_nothing_else(resnet):
    path, tensors = resnet
    ours, untouched = method(), method().state_dict()
    assert f"{len(tensors) - 2} tensors of resnet.safetensors" in start_from_file(ours, path)
    for name, tensor in ours.state_dict().items():
        expected = tensors.get(name.removeprefix(PREFIX), untouched[name])
        assert torch.equal(tensor, expected), name


def test_a_whole_deeplab_fills_all_but_the_layer_of_its_classes(tmp_path):
    state = {name.removeprefix("network."): tensor + 0.1 for name, tensor in method(seed=7).state_dict().items()}
    state |= {name: t.float() for name, t in state.items() if t.is_floating_point()}
    state["aux_classifier.4.weight"] = torch.ones(2, 3)
    path = write(tmp_path / "deeplab.safetensors", {n: t for n, t in state.items() if t.ndim})
    ours, untouched = method(), method().state_dict()
    start_from_file(ours, path)
    for name, tensor in ours.state_dict().items():
        is_own = name.startswith("network.classifier.4.") or tensor.ndim == 0
        assert torch.equal(tensor, untouched[name] if is_own else state[name.removeprefix("network.")]), name


def test_a_grey_image_gives_the_features_of_its_three_channel_copy(resnet):
    path, _ = resnet
    grey, colour = method(in_channels=1).eval(), method(in_channels=3).eval()
    assert "conv1.weight for other channels" in start_from_file(grey, path)
    start_from_file(colour, path)
    image = torch.randn(1, 1, 32, 32)
    ours, expected = grey.network.backbone(image), colour.network.backbone(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(resnet, tmp_path):
    path, tensors = resnet
    wide = method(width=8)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    with pytest.raises(UsageError, match=r"missing or of another shape, the first is conv1\.weight \[8, 3, 7, 7\]"):
        start_from_file(wide, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())
    lacking = write(tmp_path / "a.safetensors", {n: t for n, t in tensors.items() if n != "layer3.0.conv2.weight"})
    with pytest.raises(UsageError, match=r"1 tensors are missing .* layer3\.0\.conv2\.weight"):
        start_from_file(method(), lacking)


def test_damaged_files_are_refused(resnet, tmp_path):
    path, tensors = resnet
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="safetensors"):
        start_from_file(method(), cut)
    broken = write(tmp_path / "nan.safetensors", {**tensors, "bn1.weight": tensors["bn1.weight"] * torch.nan})
    with pytest.raises(IntegrityError, match=r"bn1\.weight.*not finite"):
        start_from_file(method(), broken)


def test_a_run_remembers_the_files_name_and_digest_not_its_folder(resnet):
    path, _ = resnet
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = {"weights": "resnet.safetensors", "weights_sha256": digest}
    assert settle_weights("deeplabv3", {"weights": str(path)}, from_run=False) == (kept, path)
    assert settle_weights("deeplabv3", {**kept, "weights": str(path)}, from_run=False) == (kept, path)
    with pytest.raises(IntegrityError, match="the settings demand 00"):
        settle_weights("deeplabv3", {"weights": str(path), "weights_sha256": "00"}, from_run=False)


def test_nothing_is_random_unless_asked_for_by_name():
    with pytest.raises(UsageError, match=r"(?s)no initial weights.*resnet50-0676ba61.pth.*weights=random.*--from"):
        settle_weights("deeplabv3", {}, from_run=False)
    assert settle_weights("deeplabv3", {"weights": "random"}, from_run=False) == ({}, None)
    assert settle_weights("deeplabv3", {"weights": None}, from_run=True) == ({}, None)
    with pytest.raises(UsageError, match="cannot start from a run and from 'random'"):
        settle_weights("deeplabv3", {"weights": "random"}, from_run=True)
    assert settle_weights("supervised", {}, from_run=False) == ({}, None)


@pytest.mark.parametrize("name", ["absent.safetensors", "resnet50-0676ba61.pth", "deeplab.PT"])
def test_what_is_no_file_or_a_pickle_is_refused_with_the_public_file(name, tmp_path):
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match=r"no file|is a pickle") as error:
        settle_weights("deeplabv3", {"weights": str(tmp_path / name)}, from_run=False)
    assert "ResNet50_Weights.IMAGENET1K_V1" in str(error.value)


def test_frozen_parts_keep_weights_and_statistics():
    ours = method()
    stage = ours.stages[0].__class__(name="head", supervision="full", trains=("network.classifier.",))
    enter_stage(ours, stage)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    ours.network(torch.randn(2, 3, 32, 32)).sum().backward()
    moved = {name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("network.classifier.") for name in moved)
    assert all(p.grad is None for name, p in ours.named_parameters() if name.startswith(PREFIX))
