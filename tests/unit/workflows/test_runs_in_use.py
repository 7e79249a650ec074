"""Runs that another process writes are neither deleted nor replaced; what a killed one unpacked is cleared away."""

import shutil
from pathlib import Path

import pytest
from toy_models import DATASET, RUN, make_shop

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.leftovers import PART_SUFFIX, hidden_name
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK, Workspace
from medsegdiff_cli.workflows import bundle
from medsegdiff_cli.workflows.bundle import import_bundle, opened_parent
from medsegdiff_cli.workflows.runs import delete_run

fault = pytest.mark.fault


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def place(shop, tmp_path):
    return Workspace(Path(shutil.copytree(shop / "workspace", tmp_path / "workspace")))


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@fault("F55")
@pytest.mark.parametrize("name", [RUN, f"{RUN}/fold_1"])
def test_a_run_in_which_a_process_writes_is_not_deleted(place, name):
    run = place.results / DATASET / RUN
    before = names_below(run)
    with locked(run / "fold_1" / LOCK), pytest.raises(UsageError, match=r"process \d+ on .* is writing here"):
        delete_run(name, place)
    assert names_below(run) == before
    delete_run(name, place)
    assert not (run / "fold_1").exists()


@fault("F55")
def test_a_run_in_which_a_process_writes_is_not_replaced_by_a_bundle(shop, place):
    run = place.results / DATASET / RUN
    before = names_below(run)
    for lock in (run / "fold_1" / LOCK, run.parent / f"{LOCK}.import-{RUN}"):
        with locked(lock), pytest.raises(UsageError, match="is writing here"):
            import_bundle(shop / "toy.msd", place, overwrite=True)
        assert names_below(run) == before
    import_bundle(shop / "toy.msd", place, overwrite=True)
    assert names_below(run) == sorted([*before, "manifest.json"])
    assert [path.name for path in run.parent.iterdir()] == [RUN]


@fault("F41")
def test_what_a_killed_training_had_unpacked_is_removed_by_the_next_one(shop, place, monkeypatch):
    left = hidden_name(place.root / "unpacked", PART_SUFFIX)
    left = left.with_name(left.name.replace(left.name.split("-")[1].split(".")[0], "4000000"))
    (left / RUN / "fold_0").mkdir(parents=True)
    before = sorted(path.name for path in place.root.iterdir() if path != left)
    with opened_parent(str(shop / "toy.msd"), place, "1") as folder:
        assert (folder.name, folder.parent.name) == ("fold_1", RUN)
        assert not left.exists()
    assert sorted(path.name for path in place.root.iterdir()) == before
    monkeypatch.setattr(bundle, "_unpack", lambda *_: (_ for _ in ()).throw(UsageError("stop")))
    with pytest.raises(UsageError, match="stop"), opened_parent(str(shop / "toy.msd"), place, "1"):
        pass
    assert sorted(path.name for path in place.root.iterdir()) == before
