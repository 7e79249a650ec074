"""Starting from pretrainings: which rows of the output layer are taken, and what is new or adapted."""

from pathlib import Path

import pytest
import torch
from run_files import write_run_files

from medsegdiff_cli.artifacts.checkpoint import write_checkpoint
from medsegdiff_cli.artifacts.task import Task
from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.methods.registry import find_trainable
from medsegdiff_cli.training.start_from import start_from

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": ()}
LAYERS = {"adm": "network.out.2", "tedm": "network.out", "imgx": "network.out"}


def built(name: str, n_channels: int, n_classes: int, **settings):
    """Return a small method or objective whose every number is random."""
    entry = find_trainable(name)
    task = Task(n_dims=2, in_channels=n_channels, class_names=tuple(f"class{k}" for k in range(n_classes)))
    method = entry.load()(task, entry.load().Settings(**{**entry.preset, **SMALL, **settings}))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return method


def run_of(name: str, folder: Path, *sizes: int, regions: bool = False, **settings):
    """Write the fold of a finished run, and return what it trained."""
    trained = built(name, *sizes, **settings)
    settings_there = trained.settings.model_dump(mode="json")
    write_run_files(folder, name, method_settings=settings_there, n_classes=sizes[1], regions=regions)
    tensors = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    write_checkpoint(folder / "checkpoints" / "last", tensors, {"step": 1})
    return trained


@pytest.mark.parametrize("network", LAYERS)
def test_vanilla_takes_the_masks_rows_of_a_hybrid_model_and_pixel_probes_the_images(tmp_path, network):
    parent = run_of("pretrain-hybrid", tmp_path, 2, 3, network=network)
    layer = LAYERS[network]
    theirs = parent.state_dict()
    assert theirs[f"{layer}.weight"].shape[0] == 2 + 3
    for name, rows in (("vanilla", slice(2, 5)), ("tedm", slice(0, 2))):
        method = built(name, 2, 3, network=network)
        point = start_from(method, tmp_path)
        mine = method.state_dict()
        for part in ("weight", "bias"):
            assert torch.equal(mine[f"{layer}.{part}"], theirs[f"{layer}.{part}"][rows])
        rest = [n for n in mine if n.startswith("network.") and not n.startswith(f"{layer}.")]
        assert all(torch.equal(mine[n], theirs[n]) for n in rest)
        assert point.transfer.coverage == 1.0
        adapted = {
            row.name: (row.source_shape[0], row.target_shape[0])
            for row in point.transfer.rows
            if row.status == "adapted"
        }
        assert adapted == {f"{layer}.{part}": (5, rows.stop - rows.start) for part in ("weight", "bias")}


def status_of_output(method, folder: Path) -> str:
    (status,) = {
        row.status for row in start_from(method, folder).transfer.rows if row.name.startswith("network.out.2.")
    }
    return status


def test_rows_that_mean_something_else_are_new_even_where_their_number_is_the_same(tmp_path):
    run_of("pretrain-diffusion", tmp_path / "d", 2, 2)
    assert status_of_output(built("vanilla", 2, 2), tmp_path / "d") == "new"
    assert status_of_output(built("tedm", 2, 2), tmp_path / "d") == "loaded"
    run_of("pretrain-supervised", tmp_path / "s", 2, 2)
    assert status_of_output(built("vanilla", 2, 2), tmp_path / "s") == "loaded"
    assert status_of_output(built("ledm", 2, 2), tmp_path / "s") == "new"
    run_of("pretrain-supervised", tmp_path / "r", 2, 2, regions=True)
    assert status_of_output(built("vanilla", 2, 2), tmp_path / "r") == "new", "a region is no background"
    run_of("pretrain-hybrid", tmp_path / "h", 2, 3)
    assert status_of_output(built("vanilla", 2, 4), tmp_path / "h") == "new", "other classes: a new layer"


def test_other_channels_are_adapted_and_the_masks_rows_still_found(tmp_path):
    parent = run_of("pretrain-hybrid", tmp_path, 1, 3)
    method = built("vanilla", 4, 3)
    point = start_from(method, tmp_path)
    found = {row.name: row.status for row in point.transfer.rows if row.status != "loaded"}
    assert found == dict.fromkeys(
        ("network.input_blocks.0.0.weight", "network.out.2.weight", "network.out.2.bias"), "adapted"
    )
    stem, theirs = method.state_dict()["network.input_blocks.0.0.weight"], parent.state_dict()
    torch.testing.assert_close(stem.sum(1, keepdim=True), theirs["network.input_blocks.0.0.weight"])
    assert torch.equal(method.state_dict()["network.out.2.bias"], theirs["network.out.2.bias"][1:])


def test_another_network_is_refused(tmp_path):
    run_of("pretrain-hybrid", tmp_path, 1, 3)
    with pytest.raises(UsageError, match=r"only \d+\.\d% of the network"):
        start_from(built("vanilla", 1, 3, network="tedm"), tmp_path)
