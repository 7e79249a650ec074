"""A final file name exists if and only if its content is complete."""

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medsegdiff_cli import atomic
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
