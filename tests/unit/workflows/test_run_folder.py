"""A run folder that is trained anew."""

import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.workflows import run_folder
from medsegdiff_cli.workflows.pretraining import spelt_alike_in_pretraining
from medsegdiff_cli.workflows.recipes import load_recipe, sections_of, spelt_alike, without_effect
from medsegdiff_cli.workflows.run_folder import clear_fold


@pytest.fixture
def fold(tmp_path):
    folder = tmp_path / "fold_0"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "plan.yaml", "checkpoints/step_00000010.json"):
        (folder / name).write_text("{}")
    return folder


def test_clearing_a_fold_leaves_its_marker_only(fold):
    clear_fold(fold)
    assert [path.name for path in fold.iterdir()] == ["run.json"]


def test_clearing_that_breaks_off_leaves_the_marker(fold, monkeypatch):
    def fail(path):
        raise PermissionError(path)

    monkeypatch.setattr(run_folder.shutil, "rmtree", fail)
    with pytest.raises(PermissionError):
        clear_fold(fold)
    assert (fold / "run.json").is_file()


def test_clearing_removes_a_link_but_not_what_it_points_to(fold, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("")
    (fold / "link").symlink_to(tmp_path / "elsewhere")
    clear_fold(fold)
    assert (tmp_path / "elsewhere/kept").is_file()
    assert not (fold / "link").exists()


@pytest.mark.parametrize(
    ("key", "text", "changes"),
    [
        ("network", "imgx", False),
        ("network", "adm", True),
        ("method.channel_mult", "[1, 2, 4, 8]", False),
        ("channel_mult", "[1, 2]", True),
        ("training.steps", "50000", False),
        ("steps", "50", True),
        ("dice_weight", "1.0", False),
        ("schedule.name", "", None),
        ("batch_size", "2", True),
    ],
)
def test_a_setting_that_is_the_default_anyway_does_not_count(key, text, changes):
    sections = sections_of("recycling", load_recipe("recycling"), "recommended")
    if changes is None:
        with pytest.raises(UsageError):
            without_effect({key: text}, sections, "recycling")
    else:
        assert without_effect({key: text}, sections, "recycling") == (set() if changes else {key})


def test_a_run_is_named_alike_however_a_setting_was_spelt():
    assert spelt_alike(["learning_rate", "training.learning_rate"], "recycling") == {
        "learning_rate": "training.learning_rate",
        "training.learning_rate": "training.learning_rate",
    }
    assert spelt_alike(["network", "method.network"], "recycling") == {
        "network": "network",
        "method.network": "network",
    }
    with pytest.raises(UsageError, match="learning_rat"):
        spelt_alike(["learning_rat"], "recycling")


def test_settings_of_a_pretraining_are_spelt_alike_too():
    keys = ["pretrain.steps", "pretrain.training.steps", "method.model_channels", "steps"]
    assert spelt_alike_in_pretraining(keys, "ptdr", "pretrain-diffusion") == {
        "pretrain.steps": "pretrain.training.steps",
        "pretrain.training.steps": "pretrain.training.steps",
        "method.model_channels": "model_channels",
    }
    with pytest.raises(UsageError, match="step"):
        spelt_alike_in_pretraining(["pretrain.stpes"], "ptdr", "pretrain-diffusion")
