"""Archives: the same bytes every time, readable by any tool, and read back from any tool's honest archive."""

import io
import random
import shutil
import subprocess
import zipfile
from hashlib import sha256

import pytest

from medsegdiff_cli.artifacts.archive import Refused, check_entries, opened_archive, write_archive
from medsegdiff_cli.errors import IntegrityError, ResourceError

CONTENT = {"b/x.json": b"{}", "a.txt": b"text" * 100, "empty": b"", "c/weights": random.Random(0).randbytes(1 << 21)}


@pytest.fixture
def path(tmp_path):
    write_archive(tmp_path / "x.zip", CONTENT)
    return tmp_path / "x.zip"


def read_all(path):
    with opened_archive(path) as archive:
        return {name: archive.read(name, 1 << 30) for name in archive.sizes}


def test_what_is_written_is_read_by_us_and_by_others(path):
    assert read_all(path) == CONTENT
    with zipfile.ZipFile(path) as others:
        assert others.testzip() is None
        assert {name: others.read(name) for name in others.namelist()} == CONTENT
        assert others.namelist() == list(CONTENT)


def test_files_and_bytes_make_the_same_archive_whenever_they_are_written(path, tmp_path):
    files = {}
    for number, (name, content) in enumerate(CONTENT.items()):
        files[name] = tmp_path / f"file_{number}"
        files[name].write_bytes(content)
    write_archive(tmp_path / "y.zip", files)
    assert (tmp_path / "y.zip").read_bytes() == path.read_bytes()
    assert sha256(path.read_bytes()).hexdigest() == "39c4123adea08c3da406de1303a04649c44ee12fb4f74633f42789ca2b905e4e"


def test_an_archive_that_others_compressed_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    assert read_all(tmp_path / "z.zip") == CONTENT


@pytest.mark.skipif(shutil.which("zip") is None, reason="Info-ZIP is not installed")
def test_an_archive_of_info_zip_is_read(path, tmp_path):
    folder = tmp_path / "unpacked"
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    subprocess.run(["zip", "-q", "-r", "-D", "../i.zip", "."], cwd=folder, check=True)
    assert read_all(tmp_path / "i.zip") == CONTENT


def test_an_archive_beyond_32_bits_is_read(path, tmp_path, monkeypatch):
    """Python writes the long records where a size passes this limit, whatever the limit."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    write_archive(tmp_path / "long.zip", CONTENT)
    assert b"PK\x06\x06" in (tmp_path / "long.zip").read_bytes()
    assert read_all(tmp_path / "long.zip") == CONTENT


def test_an_entry_larger_than_wanted_is_not_read(path):
    with opened_archive(path) as archive, pytest.raises(IntegrityError, match="more than 100 bytes"):
        archive.read("a.txt", 100)


def test_a_full_disk_while_copying_is_not_blamed_on_the_archive(path):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    with opened_archive(path) as archive, pytest.raises(OSError, match="No space left"):
        archive.copy("a.txt", Full())


def test_a_full_disk_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile._ZipWriteFile, "write", full)
    with pytest.raises(ResourceError) as error:
        write_archive(tmp_path / "x.zip", CONTENT)
    assert error.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_unreadable_archive_is_an_integrity_error(tmp_path):
    for place in (tmp_path / "none.zip", tmp_path):
        with pytest.raises(IntegrityError, match="cannot be read"), opened_archive(place):
            pass


@pytest.mark.fault("F73")
@pytest.mark.parametrize(("field", "value"), [("flag_bits", 1), ("compress_type", 12), ("compress_type", 97)])
def test_encrypted_and_unknown_entries_are_refused(field, value):
    entry = zipfile.ZipInfo("a.json")
    setattr(entry, field, value)
    with pytest.raises(Refused, match="encrypted or compressed in an unknown way"):
        check_entries([entry])


@pytest.mark.fault("F74")
@pytest.mark.parametrize(("packed", "whole", "is_fine"), [(10, 2000, True), (10, 2001, False), (0, 201, False)])
def test_an_entry_may_inflate_two_hundredfold(packed, whole, is_fine):
    entry = zipfile.ZipInfo("a.json")
    entry.compress_size, entry.file_size = packed, whole
    if is_fine:
        check_entries([entry])
    else:
        with pytest.raises(Refused, match="inflates"):
            check_entries([entry])


@pytest.mark.fault("F73", "F74")
def test_whatever_bytes_change_an_archive_is_read_or_refused(tmp_path):
    write_archive(tmp_path / "x.zip", {"a.json": b'{"a": 1}' * 50, "b.json": b"{}"})
    whole, source, outcomes = (tmp_path / "x.zip").read_bytes(), random.Random(1), set()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(source.choice([1, 1, 2, 4])):
            content[source.randrange(len(content))] = source.randrange(256)
        (tmp_path / "y.zip").write_bytes(content)
        try:
            read_all(tmp_path / "y.zip")
            outcomes.add("read")
        except IntegrityError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip", "y.zip"]
