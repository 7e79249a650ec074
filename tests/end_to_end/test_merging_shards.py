"""Shards with folders of their own come together: the bytes of one job, and whatever does not belong is named."""

import json
import shutil

import pytest
from msd_shell import images_only, msd, trained, tree

pytestmark = [pytest.mark.xdist_group("lab"), pytest.mark.fault("F66")]


def predict(lab, output, *words, model=None):
    return msd(
        "predict",
        model or lab.run,
        lab.dataset / "imagesTr",
        output,
        "--workspace",
        lab.workspace,
        "--workers",
        0,
        *words,
    )


@pytest.fixture(scope="module")
def shards(lab, tmp_path_factory):
    """Three shards of the six training images, two cases each."""
    folder = tmp_path_factory.mktemp("shards")
    found = [folder / str(number) for number in range(3)]
    for number, output in enumerate(found):
        assert predict(lab, output, "--num-shards", 3, "--shard-id", number).code == 0
    return found


def merged(lab, output, folders, *words, **others):
    return predict(lab, output, *(word for folder in folders for word in ("--merge", folder)), *words, **others)


def test_merged_shards_are_the_bytes_of_one_job(lab, shards, tmp_path):
    assert predict(lab, tmp_path / "whole").code == 0
    outcome = merged(lab, tmp_path / "out", shards, "--json")
    assert (outcome.code, len(outcome.json["written"])) == (0, 6), outcome.stderr
    assert images_only(tmp_path / "out") == images_only(tmp_path / "whole")
    assert (tmp_path / "out" / "volumes.csv").read_bytes() == (tmp_path / "whole" / "volumes.csv").read_bytes()
    # Nothing is left to do, and what was merged may be merged once more.
    assert predict(lab, tmp_path / "out", "--json").json["written"] == []
    again = merged(lab, tmp_path / "out", [tmp_path / "out"], "--json")
    assert (again.code, len(again.json["reused"])) == (0, 6)


def test_a_missing_shard_is_exit_code_5_and_its_cases_are_listed(lab, shards, tmp_path):
    absent = sorted(path.stem for path in shards[1].glob("case_*.json"))
    outcome = merged(lab, tmp_path / "out", [shards[0], shards[2]])
    assert outcome.code == 5
    assert f"2 of 6 cases are in no shard: {', '.join(absent)}" in outcome.stderr
    assert len(images_only(tmp_path / "out")) == 4
    # The same command without --merge predicts them.
    assert sorted(predict(lab, tmp_path / "out", "--json").json["written"]) == absent


def test_a_doubled_shard_is_wrong_usage_and_nothing_is_written(lab, shards, tmp_path):
    shutil.copytree(shards[0], tmp_path / "copy")
    outcome = merged(lab, tmp_path / "out", [*shards, tmp_path / "copy"])
    assert outcome.code == 2
    assert "2 cases are in two shards, first: 'case_0'" in outcome.stderr
    assert str(tmp_path / "copy") in outcome.stderr
    assert not (tmp_path / "out").exists()


def assert_another_model_is_refused(lab, output, folders):
    outcome = merged(lab, output, folders)
    assert outcome.code == 6
    assert "was predicted by another model" in outcome.stderr
    assert not output.exists()


def test_a_shard_that_names_another_model_is_refused_as_such(lab, shards, tmp_path):
    shutil.copytree(shards[1], tmp_path / "foreign")
    for sidecar in (tmp_path / "foreign").glob("case_*.json"):
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "model_digests": ["0" * 64]}))
    assert_another_model_is_refused(lab, tmp_path / "out", [shards[0], tmp_path / "foreign", shards[2]])


@pytest.mark.slow
def test_a_shard_of_another_model_is_refused_as_such(lab, shards, tmp_path):
    other = trained(lab.workspace, 1, "--config", "3d", "--seed", 5, "--set", "steps=2")
    assert predict(lab, tmp_path / "foreign", "--num-shards", 3, "--shard-id", 1, model=other).code == 0
    assert_another_model_is_refused(lab, tmp_path / "out", [shards[0], tmp_path / "foreign", shards[2]])
    shutil.rmtree(other.parent)


def test_shards_with_other_settings_or_damaged_files_are_refused(lab, shards, tmp_path):
    outcome = merged(lab, tmp_path / "out", shards, "--step-size", 0.9)
    assert (outcome.code, "with other settings" in outcome.stderr) == (2, True)
    damaged = shutil.copytree(shards[0], tmp_path / "damaged")
    image = next(damaged.glob("*.nii.gz"))
    image.write_bytes(image.read_bytes()[:-9])
    outcome = merged(lab, tmp_path / "out", [damaged, *shards[1:]])
    assert (outcome.code, f"'{image.name}' is missing or not what its sidecar says" in outcome.stderr) == (6, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../escaped.txt", "/tmp/escaped.txt", "..\\escaped.txt", "C:\\escaped.txt"])
def test_a_sidecar_that_names_files_outside_is_refused(lab, shards, tmp_path, name):
    hostile = shutil.copytree(shards[0], tmp_path / "a" / "b" / "hostile")
    sidecar = hostile / "case_0.json"
    content = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**content, "outputs": {**content["outputs"], name: "0" * 64}}))
    before = tree(tmp_path)
    outcome = merged(lab, tmp_path / "out", [hostile, *shards[1:]])
    assert outcome.code == 6
    assert name in outcome.stderr
    assert tree(tmp_path) == before


def test_merging_is_for_finished_shards_and_all_cases(lab, shards, tmp_path):
    for words in (["--num-shards", 3], ["--dry-run"]):
        assert merged(lab, tmp_path / "out", shards, *words).code == 2
    assert merged(lab, tmp_path / "out", [lab.dataset]).code == 2
    assert not (tmp_path / "out").exists()
