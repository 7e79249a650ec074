"""Starting from another run: what fits is taken, the rest is named, and too little is refused."""

import logging
from pathlib import Path

import pytest
import torch
from run_files import write_run_files
from toy_training import Toy, settings, toy, train

from medsegdiff_cli.artifacts.recipe import TrainingSettings
from medsegdiff_cli.artifacts.run import StageRecord
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.training.start_from import start_from

pytestmark = pytest.mark.usefixtures("no_pictures")


def trained_run(folder: Path, selection: str = "last") -> Toy:
    """Train a toy in `folder` and add the files that mark a run."""
    method = toy()
    train(method, folder, settings(4, selection=selection))
    write_run_files(folder, "supervised", training=TrainingSettings(selection=selection))
    return method


def test_equal_networks_start_from_all_weights(tmp_path: Path) -> None:
    parent, child = trained_run(tmp_path / "fold_0"), toy()
    point = start_from(child, tmp_path)  # one fold only: its parent folder will do
    assert point.transfer.coverage == 1.0
    assert point.folder == tmp_path / "fold_0"
    assert all(torch.equal(a, b) for a, b in zip(parent.parameters(), child.parameters(), strict=True))


def test_the_parents_selected_weights_are_taken(tmp_path: Path) -> None:
    trained_run(tmp_path / "fold_0", selection="best")
    from medsegdiff_cli.artifacts.checkpoint import read_checkpoint

    child = toy()
    start_from(child, tmp_path / "fold_0")
    best = read_checkpoint(tmp_path / "fold_0" / "checkpoints" / "best").part("model")
    assert all(torch.equal(best[name], tensor) for name, tensor in child.state_dict().items())


def test_a_table_names_what_is_new_and_what_was_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained_run(tmp_path)
    child = toy()
    child.head = torch.nn.Conv2d(8, 5, 1)
    del child.body[1]  # the norm is gone: two of its tensors have no place
    with caplog.at_level(logging.INFO):
        # 80 of the 80 + 45 numbers fit: the first convolution, 9 * 8 + 8, beside the head's 8 * 5 + 5.
        assert start_from(child, tmp_path).transfer.coverage == pytest.approx(80 / 125)
    assert "tensors: 2 loaded, 0 adapted, 2 new, 2 unused; 64.0% of the weights" in caplog.text
    assert "head.weight" in caplog.text
    assert "2x8x1x1" in caplog.text
    assert "body.1.weight  unused" in caplog.text


def test_too_little_coverage_is_refused_and_the_method_left_alone(tmp_path: Path) -> None:
    trained_run(tmp_path)
    child = toy()
    child.head = torch.nn.Conv2d(8, 100, 1)
    before = child.body[0].weight.detach().clone()
    with pytest.raises(UsageError, match=r"only 9\.6% of the network can start .* \(at least 50\.0% wanted\)"):
        start_from(child, tmp_path)  # 96 of the 96 + 900 numbers
    assert torch.equal(child.body[0].weight, before)


def test_a_finished_run_that_lost_its_weights_is_refused(tmp_path: Path) -> None:
    trained_run(tmp_path)
    (tmp_path / "checkpoints" / "last.json").unlink()
    with pytest.raises(IntegrityError, match="has no weights"):
        start_from(toy(), tmp_path)


@pytest.mark.parametrize("selection", ["last", "best"])
def test_an_unfinished_run_is_refused_whatever_weights_it_has(tmp_path: Path, selection: str) -> None:
    trained_run(tmp_path, selection)
    done = StageRecord(name="global", status="finished", steps_done=4, steps=4)
    write_run_files(tmp_path, "supervised", stages=(done, StageRecord(name="local", steps=4)))
    with pytest.raises(UsageError, match=r"not finished \(stage local\)"):
        start_from(toy(), tmp_path)


def test_one_of_several_folds_must_be_named(tmp_path: Path) -> None:
    for fold in ("fold_0", "fold_1"):
        trained_run(tmp_path / fold)
    with pytest.raises(UsageError, match="has 2 folds"):
        start_from(toy(), tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from medsegdiff_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint

    trained_run(tmp_path)
    last = tmp_path / "checkpoints" / "last"
    content = read_checkpoint(last)
    content.tensors["model.head.bias"][1] = torch.nan
    write_checkpoint(last, content.tensors, content.state)
    with pytest.raises(IntegrityError, match=r"'head.bias' holds numbers that are not finite"):
        start_from(toy(), tmp_path)
