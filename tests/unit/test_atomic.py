"""A final file name exists if and only if its content is complete."""

import errno
import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medsegdiff_cli import atomic, leftovers
from medsegdiff_cli.errors import ResourceError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_while_writing(path, failure):
    with atomic.staged(path) as temporary:
        temporary.write_text("a beginning")
        raise failure


@pytest.mark.parametrize("size", [0, 1, 100_000, (1 << 22) + 7])
def test_bytes_are_written_as_they_are(tmp_path, size):
    content = os.urandom(size)
    atomic.write_bytes(tmp_path / "new" / "folder" / "file.bin", content)
    assert (tmp_path / "new" / "folder" / "file.bin").read_bytes() == content
    assert names(tmp_path / "new" / "folder") == ["file.bin"]


def test_the_final_name_appears_only_at_the_end_and_beside_it_nothing_stays(tmp_path):
    path = tmp_path / "image.nii.gz"
    with atomic.staged(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".image.nii.gz"), "writers choose the format by the ending"
        assert temporary.name.startswith("."), "listings leave it out"
        temporary.write_bytes(b"half")
        assert not path.exists()
    assert names(tmp_path) == ["image.nii.gz"]


@pytest.mark.parametrize("failure", [ValueError("bug"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(failure)):
        fail_while_writing(path, failure)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.fault("F44", "F45")
@pytest.mark.parametrize(
    ("number", "what"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot write"), (errno.EIO, "writing failed")],
)
def test_a_disk_that_fails_is_a_resource_error(tmp_path, number, what):
    path = tmp_path / "file.txt"
    with pytest.raises(ResourceError, match=what) as error:
        fail_while_writing(path, OSError(number, os.strerror(number)))
    assert error.value.exit_code == 4
    assert error.value.where == str(path)
    assert error.value.fix
    assert names(tmp_path) == []


def test_a_full_disk_is_noticed_when_the_bytes_are_flushed(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        atomic.write_text(tmp_path / "file.txt", "text")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_a_resource_error(tmp_path):
    (tmp_path / "occupied").write_text("")
    with pytest.raises(ResourceError):
        atomic.write_text(tmp_path / "occupied" / "file.txt", "text")


def test_many_names_are_written_at_once(tmp_path):
    def write(number: int) -> None:
        atomic.write_text(tmp_path / f"{number}.txt", str(number) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert names(tmp_path) == sorted(f"{number}.txt" for number in range(40))
    assert all((tmp_path / f"{number}.txt").read_text() == str(number) * 1000 for number in range(40))


def test_json_keeps_its_order_and_its_letters_and_refuses_nan(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"z": 1, "a": "Prüfung"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "z": 1,\n  "a": "Prüfung"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "b.json", {"value": float("nan")})
    assert names(tmp_path) == ["a.json"]


def test_yaml_stands_below_its_header_in_order(tmp_path):
    atomic.write_yaml(tmp_path / "a.yaml", {"z": [1, 2], "a": {"b": None}}, "# header\n")
    assert (tmp_path / "a.yaml").read_text() == "# header\nz: [1, 2]\na: {b: null}\n"


def test_digests_are_sha256_of_bytes_and_of_content_in_any_order(tmp_path):
    content = os.urandom((1 << 22) + 5)
    (tmp_path / "file").write_bytes(content)
    assert atomic.digest_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert atomic.digest_of_content({"a": 1, "b": [2, 3]}) == atomic.digest_of_content({"b": (2, 3), "a": 1})
    assert atomic.digest_of_content({"a": 1}) != atomic.digest_of_content({"a": 2})
    text = json.dumps({"a": Path("x")}, default=str, separators=(",", ":"))
    assert atomic.digest_of_content({"a": Path("x")}) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.fault("F46")
def test_bytes_are_flushed_before_the_name_changes_and_the_folder_after(tmp_path, monkeypatch):
    done, kinds = [], {}
    real_open, real_fsync, real_replace = os.open, os.fsync, Path.replace

    def note_open(path, *settings):
        descriptor = real_open(path, *settings)
        kinds[descriptor] = "folder" if Path(path).is_dir() else "file"
        return descriptor

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", lambda number: done.append(f"flush {kinds[number]}") or real_fsync(number))
    monkeypatch.setattr(Path, "replace", lambda path, target: done.append("rename") or real_replace(path, target))
    atomic.write_text(tmp_path / "file.txt", "text")
    assert done == ["flush file", "rename", "flush folder"]


@pytest.mark.fault("F46")
@pytest.mark.parametrize("at", [1, 2])
def test_a_flush_that_fails_is_no_success(tmp_path, monkeypatch, at):
    calls = []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == at:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="writing failed") as error:
        atomic.write_text(tmp_path / "file.txt", "text")
    assert error.value.where == str(tmp_path / "file.txt")
    assert names(tmp_path) == ([] if at == 1 else ["file.txt"])


@pytest.mark.fault("F57")
def test_a_rename_between_file_systems_is_an_error_and_never_a_copy(tmp_path, monkeypatch):
    def fail(path, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ResourceError, match="cross-device"):
        atomic.write_text(tmp_path / "file.txt", "text")
    with pytest.raises(ResourceError, match="cross-device"), atomic.staged_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == []


@pytest.mark.fault("F44")
def test_a_disk_that_takes_a_part_of_what_it_is_given_is_given_the_rest(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:1000]))
    content = os.urandom(12_345)
    atomic.write_bytes(tmp_path / "file.bin", content)
    assert (tmp_path / "file.bin").read_bytes() == content


def test_a_stream_takes_an_array_piece_by_piece(tmp_path):
    array = np.arange(3_000_000, dtype=np.float64).reshape(1000, 3000)
    with atomic.staged_stream(tmp_path / "array.npy") as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)
    assert np.array_equal(np.load(tmp_path / "array.npy"), array)


@pytest.fixture
def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def left_by(pid, path, suffix=".part"):
    """Return the name under which a process had begun `path`."""
    ours = leftovers.hidden_name(path, suffix).name
    return path.with_name(ours.replace(f"-{os.getpid()}.", f"-{pid}."))


@pytest.mark.fault("F41", "F42", "F43")
def test_what_a_killed_process_left_goes_when_the_folder_is_written_to_again(tmp_path, gone):
    path = tmp_path / "file.txt"
    kept = [left_by(os.getppid(), path), path.with_name(f".0badcafe-{gone}.part.file.txt"), path.with_name(".12.part")]
    for leftover in (left_by(gone, path), left_by(gone, tmp_path / "other.txt"), *kept):
        leftover.write_text("a beginning")
    atomic.write_text(path, "text")
    assert names(tmp_path) == sorted([*(file.name for file in kept), "file.txt"]), "only what surely nobody writes goes"
    leftovers.remove_leftovers(tmp_path, alone=True)
    assert names(tmp_path) == [".12.part", "file.txt"], "with the folder's lock, everything"


@pytest.mark.fault("F43")
def test_a_folder_takes_its_name_when_it_is_complete_and_the_one_before_goes(tmp_path):
    path = tmp_path / "dataset"
    for content in ("first", "second"):
        with atomic.staged_folder(path) as folder:
            (folder / content).touch()
            assert not (path / content).exists()
        assert names(path) == [content]
    with pytest.raises(ZeroDivisionError), atomic.staged_folder(path) as folder:
        (folder / str(1 / 0)).touch()
    assert names(path) == ["second"]
    assert names(tmp_path) == ["dataset"]


@pytest.mark.fault("F43", "F57")
def test_a_folder_that_cannot_take_its_name_leaves_the_one_before(tmp_path, monkeypatch):
    path, real = tmp_path / "dataset", Path.rename
    path.mkdir()
    (path / "first").touch()

    def fail(self, target):
        if ".part." in self.name:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ResourceError), atomic.staged_folder(path):
        pass
    assert names(path) == ["first"]
    assert names(tmp_path) == ["dataset"]


@pytest.mark.fault("F43")
def test_a_folder_that_a_killed_process_moved_away_comes_back(tmp_path, gone):
    path = tmp_path / "dataset"
    old, begun = left_by(gone, path, ".old"), left_by(gone, path)
    old.mkdir()
    (old / "first").touch()
    begun.mkdir()
    atomic.put_back(path)
    assert names(tmp_path) == ["dataset"]
    assert names(path) == ["first"]
    left_by(gone, path, ".old").mkdir()
    atomic.put_back(path)
    assert names(path) == ["first"], "what stands under its name is the newer one"
    assert names(tmp_path) == ["dataset"]


@pytest.mark.fault("F48")
def test_too_little_space_is_refused_and_both_figures_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000_000))
    atomic.require_space(tmp_path / "not" / "there", 2_000_000_000, "the files")
    with pytest.raises(ResourceError, match="the files will take about 3 GB, but only 2 GB are free"):
        atomic.require_space(tmp_path / "not" / "there", 3_000_000_000, "the files")
    assert names(tmp_path) == []
