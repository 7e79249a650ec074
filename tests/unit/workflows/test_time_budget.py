"""`--max-time` is for a training as a whole, however many stages it has."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from medsegdiff_cli.training.outcome import StageResult
from medsegdiff_cli.workflows import train
from medsegdiff_cli.workflows.run_request import TrainRequest
from medsegdiff_cli.workflows.run_setup import set_up_run

# One worker makes the volumes for all of them.
pytestmark = pytest.mark.xdist_group("tiny-volumes")


def test_all_stages_share_one_time_budget(tiny_volumes, monkeypatch, tmp_path):
    given: list[tuple[str, float]] = []

    def train_stage(method, stage, settings, *, max_time_s, **_):
        given.append((stage.name, max_time_s))
        return StageResult(
            stage=stage.name, steps_done=1, best_score=None, best_step=0, weights_digest="", seconds=30.0
        )

    monkeypatch.setattr(train, "train_stage", train_stage)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: 30.0 * len(given)))
    small = {"model_channels": "8", "channel_mult": "[1, 2]", "steps": "1", "patch_size_voxels": "[8, 16, 16]"}
    request = TrainRequest(
        method="pretrain-global-local-cl",
        dataset="1",
        workspace=tiny_volumes,
        config="3d",
        scale="tiny",
        overrides=small,
        max_time_s=45.0,
    )
    setup = replace(set_up_run(request), folder=tmp_path / "run" / "fold_0")
    report = train.train_run(setup)
    assert given == [("global", 45.0), ("local", 15.0)]
    assert report.record.is_finished
