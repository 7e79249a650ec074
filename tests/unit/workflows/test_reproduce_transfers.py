"""`msd reproduce` where a source is pretrained on and other scanners are fine-tuned on, on the smallest networks."""

import pytest
from pydantic import ValidationError
from toy_experiments import TOY, write_toy

from medsegdiff_cli.artifacts.cohorts import Transfers
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.imaging.reading import read_image
from medsegdiff_cli.paths import REPRODUCTION_MD
from medsegdiff_cli.workflows.reproduce import ReproduceRequest, reproduce

NETWORK = {key: value for key, value in TOY["pretraining"]["overrides"].items() if key not in ("steps", "batch_size")}
COHORT = {
    "kind": "transfers",
    "shape": [16, 16],
    "source": {"A": 3},
    "targets": {"B": 2, "C": 2},
    "test": {"B": 2, "C": 2},
}
PARTS = {
    "cohort": COHORT,
    "objective": None,
    "objectives": {"transfer": "supervised"},
    "pretraining": {**TOY["pretraining"], "preset": "recommended", "methods": {"supervised": {"dice_weight": 0.0}}},
    "heads": {
        "preset": "recommended",
        "overrides": {"steps": 2, "batch_size": 2, "validate_every_steps": 0},
        "methods": {"vanilla": {"network": "tedm", "method.schedule": {"name": "cosine"}, **NETWORK}},
    },
    "tiers": {"quick": {"seeds": 1, "first_seed": 7, "experiments": ["any"], "labels": [2], "minutes": "seconds"}},
    "experiments": [
        {
            "id": "any",
            "claim": "c",
            "published": "p",
            "gate": False,
            "criterion": {
                "kind": "ahead-of",
                "methods": ["transfer"],
                "others": ["vanilla"],
                "margin": 100.0,
                "domains": ["B", "C"],
                "labels": [2],
            },
        }
    ],
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfers")
    said = []
    request = ReproduceRequest(paper=str(write_toy(folder, **PARTS)), output=folder / "out")
    return request.output, reproduce(request, said.append), said


@pytest.mark.slow
def test_each_target_has_models_of_its_own_and_all_share_the_pretrainings_of_the_source(toy):
    output, result, said = toy
    runs = [read_run(path.parent) for path in output.rglob("run.json")]
    assert [run.method for run in runs if run.dataset == "Dataset001_Source"] == ["pretrain-supervised"]
    for target in ("Dataset002_TargetB", "Dataset003_TargetC"):
        assert sorted(run.method for run in runs if run.dataset == target) == ["transfer", "vanilla"]
    starts = {run.method: run.parent and run.parent["run"].split("__")[0] for run in runs}
    assert starts["transfer"] == "pretrain-supervised"
    assert not starts["vanilla"]
    assert [text.split("]")[0] for text in said] == [f"[{n}/10" for n in range(1, 11)]
    assert result.findings[0].met
    page = (output / REPRODUCTION_MD).read_text(encoding="utf-8")
    assert "pretraining `supervised` (for transfer): preset `recommended`" in page


@pytest.mark.slow
def test_no_person_is_in_two_of_the_datasets(toy):
    output, _, _ = toy
    labels = {}
    for part in ("pretraining", "targets/B", "targets/C", "tests/B"):
        folder = output / "seed_7" / "phantoms" / part / "labels"
        labels[part] = {read_image(path).array.tobytes() for path in sorted(folder.iterdir())}
    assert labels["targets/B"] == labels["targets/C"]
    for one, other in (("pretraining", "targets/B"), ("pretraining", "tests/B"), ("targets/B", "tests/B")):
        assert labels[one].isdisjoint(labels[other]), (one, other)


def test_the_targets_are_what_is_tested():
    with pytest.raises(ValidationError, match="not the same scanners"):
        Transfers.model_validate({**COHORT, "test": {"B": 2}})
