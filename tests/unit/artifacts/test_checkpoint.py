"""A checkpoint is whole or refused: every kind of damage is an integrity error (exit 6)."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError

from medsegdiff_cli.artifacts import checkpoint as module
from medsegdiff_cli.artifacts.checkpoint import (
    Checkpoint,
    checkpoint_exists,
    parse_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from medsegdiff_cli.errors import IntegrityError, ResourceError, UsageError

TENSORS = {
    "model.weight": torch.arange(6.0).reshape(2, 3),
    "model.count": torch.tensor(7),
    "ema.weight": torch.full((2, 3), torch.pi, dtype=torch.bfloat16),
    "optimiser.step": torch.tensor(3.0),
}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "last", TENSORS, {"step": 3, "loss": 0.1 + 0.2})
    return tmp_path / "last"


def refused(path, message):
    with pytest.raises(IntegrityError, match=message) as error:
        read_checkpoint(path)
    assert error.value.exit_code == 6
    assert str(path) in str(error.value)


def test_tensors_and_state_are_read_back_bit_by_bit(path):
    found = read_checkpoint(path)
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert found.state == {"step": 3, "loss": 0.1 + 0.2}
    assert checkpoint_exists(path)


def test_a_part_is_what_stands_below_its_prefix():
    assert set(Checkpoint(TENSORS, {}).part("model")) == {"weight", "count"}
    assert Checkpoint(TENSORS, {}).part("mod") == {}


def test_the_same_tensors_have_the_same_bytes_and_digest(path, tmp_path):
    digest = write_checkpoint(tmp_path / "again", dict(reversed(TENSORS.items())), {})
    assert (tmp_path / "again.safetensors").read_bytes() == path.with_suffix(".safetensors").read_bytes()
    assert digest == json.loads(path.with_suffix(".json").read_text())["sha256"]


def test_views_and_shared_tensors_are_stored_as_their_values(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "same": base, "turned": base.T, "row": base[1], "kept": base.requires_grad_()}
    write_checkpoint(tmp_path / "views", tensors, {})
    found = read_checkpoint(tmp_path / "views").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.fault("F72")
def test_one_wrong_byte_anywhere_is_noticed(path):
    weights = path.with_suffix(".safetensors")
    whole = weights.read_bytes()
    for position in (0, 20, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refused(path, "do not match their recorded sha256|not readable as safetensors")


@pytest.mark.fault("F72")
def test_other_weights_of_the_same_shape_are_noticed(path):
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    write_checkpoint(path.parent / "other", other, {})
    path.with_suffix(".safetensors").write_bytes((path.parent / "other.safetensors").read_bytes())
    refused(path, "do not match their recorded sha256")


def test_a_checkpoint_is_the_same_from_bytes(path):
    header = json.loads(path.with_suffix(".json").read_text())
    weights = path.with_suffix(".safetensors").read_bytes()
    found = parse_checkpoint(header, weights, "somewhere")
    assert found.state == read_checkpoint(path).state
    assert found.digest == read_checkpoint(path).digest == header["sha256"]
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    with pytest.raises(IntegrityError, match="do not match"):
        parse_checkpoint(header, weights[:-1] + b"?", "somewhere")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file_is_noticed(path, length):
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:length])
    refused(path, "not readable as safetensors")


def test_without_its_header_a_checkpoint_does_not_exist(path):
    path.with_suffix(".json").unlink()
    assert not checkpoint_exists(path)
    with pytest.raises(IntegrityError, match=r"last\.json is missing"):
        read_checkpoint(path)


def test_without_its_weights_a_checkpoint_does_not_exist(path):
    path.with_suffix(".safetensors").unlink()
    assert not checkpoint_exists(path)
    with pytest.raises(IntegrityError, match=r"last\.safetensors is missing"):
        read_checkpoint(path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "not the header"), ("{}", "not the")])
def test_a_damaged_header_is_noticed(path, text, message):
    path.with_suffix(".json").write_text(text)
    refused(path, message)


@pytest.mark.fault("F80")
def test_a_newer_format_is_refused_by_name(path):
    header = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**header, "format_version": 2}))
    with pytest.raises(UsageError, match=r"newer msd \(format_version 2; known: 1\)") as error:
        read_checkpoint(path)
    assert error.value.fix == "upgrade msd"


def test_what_is_no_safetensors_is_refused_even_with_the_right_digest(path):
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(b"PK\x03\x04 a pickle in a zip")
    header = json.loads(path.with_suffix(".json").read_text())
    header["sha256"] = module.atomic.digest_of_file(weights)
    path.with_suffix(".json").write_text(json.dumps(header))
    refused(path, "not readable as safetensors")


def test_a_full_disk_keeps_the_old_checkpoint(path, monkeypatch):
    before = path.with_suffix(".safetensors").read_bytes()

    def full(tensors, file):
        file.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(ResourceError, match="No space left on device") as error:
        write_checkpoint(path, {"model.weight": torch.zeros(3)}, {})
    assert error.value.exit_code == 4
    assert path.with_suffix(".safetensors").read_bytes() == before
    assert sorted(child.name for child in path.parent.iterdir()) == ["last.json", "last.safetensors"]
    read_checkpoint(path)


def test_the_header_is_written_last(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        write_checkpoint(path.parent / "new", TENSORS, {})
    assert not checkpoint_exists(path.parent / "new")
