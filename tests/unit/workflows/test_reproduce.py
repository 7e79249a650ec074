"""`msd reproduce`: declared experiments from phantoms to verdicts, on the smallest declaration there is."""

import json
import shutil
from pathlib import Path

import pytest
from toy_experiments import TOY, write_toy
from typer.testing import CliRunner

from medsegdiff_cli.artifacts.reproduction import read_reproduction
from medsegdiff_cli.artifacts.run import read_run
from medsegdiff_cli.cli.app import app
from medsegdiff_cli.errors import BelowDemandedScore, UsageError
from medsegdiff_cli.paths import REPRODUCTION_JSON, REPRODUCTION_MD
from medsegdiff_cli.workflows.reproduce import ReproduceRequest, demand_gates, load_declaration, reproduce


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The quick tier of the toy: its declaration's file, its folder, what came out, and what was said."""
    folder = tmp_path_factory.mktemp("reproduce")
    said = []
    request = ReproduceRequest(paper=str(write_toy(folder)), output=folder / "out")
    return request, reproduce(request, said.append), said


def weights_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.safetensors"))}


def test_a_seed_has_one_pretraining_that_its_classifiers_start_from(toy):
    request, result, said = toy
    runs = [read_run(path.parent) for path in request.output.rglob("run.json")]
    assert sorted(run.method for run in runs) == ["pretrain-diffusion", "tedm"]
    assert {run.seed for run in runs} == {100}
    (head,) = [run for run in runs if run.method == "tedm"]
    assert head.parent["run"].startswith("pretrain-diffusion__2d__seed100")
    assert len(head.train_cases) == 1
    assert head.val_cases == ()
    assert result.seeds == (100,)
    assert [text.split("]")[0] for text in said] == [f"[{n}/5" for n in range(1, 6)]
    assert "predicting A with tedm-n1-only-25" in said[-1]


def test_what_came_out_is_on_disk(toy):
    request, result, _ = toy
    assert read_reproduction(request.output / REPRODUCTION_JSON) == result
    page = (request.output / REPRODUCTION_MD).read_text(encoding="utf-8")
    assert "report-only" in page
    assert "`msd reproduce toy --quick`" in page
    assert str(request.output) not in page
    (request.output / "newer.json").write_text(json.dumps({**result.model_dump(mode="json"), "schema_version": 2}))
    with pytest.raises(UsageError, match="newer msd"):
        read_reproduction(request.output / "newer.json")


def test_another_tier_uses_the_trainings_that_are_there_and_a_gate_fails(toy, tmp_path):
    request, quick, _ = toy
    output = tmp_path / "out"
    shutil.copytree(request.output, output)
    before = weights_in(output)
    words = ["reproduce", request.paper, "--full", "--output", str(output), "--json"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 8
    content = json.loads(outcome.stdout)
    verdicts = {finding["id"]: finding["verdict"] for finding in content["findings"]}
    assert verdicts == {"vote": "report-only", "gate": "does not hold"}
    assert content["findings"][0]["measured"] == quick.findings[0].measured
    after = weights_in(output)
    assert before
    assert {path: after[path] for path in before} == before
    assert "gate" in outcome.stderr
    full = read_reproduction(output / REPRODUCTION_JSON)
    with pytest.raises(BelowDemandedScore, match="1 of the published trends did not come out: gate"):
        demand_gates(full)


def test_what_is_reported_only_never_fails(toy):
    _, result, _ = toy
    demand_gates(result)


def test_folders_of_others_are_left_alone(tmp_path, toy):
    request, _, _ = toy
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        reproduce(ReproduceRequest(paper=request.paper, output=tmp_path))
    other = write_toy(tmp_path, heads={"overrides": {**TOY["heads"]["overrides"], "steps": 3}})
    with pytest.raises(UsageError, match="other experiments, or of an earlier version"):
        reproduce(ReproduceRequest(paper=str(other), output=request.output))


def test_wrong_words_are_exit_code_2(tmp_path):
    with pytest.raises(UsageError, match="no experiments of a paper 'tedn'") as error:
        load_declaration("tedn")
    assert "did you mean 'tedm'" in str(error.value)
    both = CliRunner().invoke(app, ["reproduce", "tedm", "--quick", "--full", "-o", str(tmp_path / "out")])
    assert both.exit_code == 2
    assert not (tmp_path / "out").exists()
