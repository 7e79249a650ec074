"""Hostile archives: whatever a `.msd` file holds, it is refused before anything of it is written.

Every refusal is looked at from the command line: the exit code, a message that names the cause, no traceback, nothing
written.
"""

import json
import re
import tarfile
import zipfile

import pytest
from msd_shell import done, msd
from toy_models import DATASET, RUN, make_shop, refused

fault = pytest.mark.fault


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


def rewritten(shop, path, change):
    """Write the bundle again with a changed list of (ZipInfo, content); what is not changed stays valid."""
    with zipfile.ZipFile(shop / "toy.msd") as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in change(entries):
            archive.writestr(info, content)
    return path


def entry(name, mode=0o100644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def refuse_everywhere(shop, tmp_path, bundle, message, code=6):
    """A bundle must be refused by every verb that takes one, and nothing of it written anywhere."""
    before = sorted(tmp_path.rglob("*"))
    refused(code, message, shop, tmp_path, bundle)
    for words in (["info", bundle], ["import", bundle, "--workspace", tmp_path / "workspace"]):
        result = msd("bundle", *words)
        assert result.code == code
        assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@fault("F73")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../evil.json", "leads outside"),
        ("fold_0/../../evil.json", "leads outside"),
        ("/etc/evil.json", "leads outside"),
        ("C:/evil.json", "drive letter"),
        ("..\\evil.json", "backslash"),
        ("fold_0/", "leads outside, or is no file"),
        ("./evil.json", "leads outside"),
        ("fold_0//run.json", "leads outside"),
        ("évil.json", "plain characters"),
        ("evil\n.json", "plain characters"),
        ("x" * 300, "too long"),
        ("FOLD_0/run.json", "are one on some file systems"),
        ("fold_0/evil.json", "nothing that a bundle holds"),
        ("fold_0/evil.py", "nothing that a bundle holds"),
        ("archive/data.pkl", "nothing that a bundle holds"),
    ],
)
def test_a_member_with_a_hostile_name_is_code_6(shop, tmp_path, name, message):
    bundle = rewritten(shop, tmp_path / "bad.msd", lambda entries: [*entries, (entry(name), b"{}")])
    refuse_everywhere(shop, tmp_path, bundle, message)


@fault("F73")
def test_a_member_whose_name_hides_behind_a_nul_is_code_6(shop, tmp_path):
    bundle = rewritten(shop, tmp_path / "bad.msd", lambda entries: [*entries, (entry("fold_0/x.jsonZ../y"), b"{}")])
    bundle.write_bytes(bundle.read_bytes().replace(b"fold_0/x.jsonZ../y", b"fold_0/x.json\0../y"))
    refuse_everywhere(shop, tmp_path, bundle, "plain characters")


@fault("F73")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_code_6(shop, tmp_path):
    bundle = rewritten(shop, tmp_path / "bad.msd", lambda entries: [*entries, (entry("fold_0/run.json"), b"{}")])
    refuse_everywhere(shop, tmp_path, bundle, "is there twice")


@fault("F73")
@pytest.mark.parametrize("mode", [0o120777, 0o020644, 0o060644, 0o010644, 0o040755, 0o140644])
def test_a_member_that_is_no_plain_file_is_code_6(shop, tmp_path, mode):
    def change(entries):
        entries[1][0].external_attr = mode << 16
        return entries

    refuse_everywhere(shop, tmp_path, rewritten(shop, tmp_path / "bad.msd", change), "no plain file")


@fault("F73")
def test_a_tar_with_hard_links_is_code_6(shop, tmp_path):
    with tarfile.open(tmp_path / "bad.msd", "w") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("fold_0/run.json")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    refuse_everywhere(shop, tmp_path, tmp_path / "bad.msd", "no zip archive")


@fault("F74")
def test_a_bomb_is_code_6_from_its_directory_alone(shop, tmp_path, monkeypatch):
    def change(entries):
        info, _ = entries[-1]
        info.compress_type = zipfile.ZIP_DEFLATED
        return [*entries[:-1], (info, bytes(50 << 20))]

    bundle = rewritten(shop, tmp_path / "bad.msd", change)
    assert bundle.stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # nothing is even begun to be read
    refuse_everywhere(shop, tmp_path, bundle, "inflates 1")


def places_of_size(content, name):
    """Return where the directory and the local header hold the content's size of an entry."""
    central, local = content.rfind(b"PK\x01\x02", 0, content.rfind(name)), content.find(name) - 30
    return central + 24, local + 22


@fault("F74")
def test_a_bomb_that_lies_about_its_size_is_read_no_further_than_it_says(shop, tmp_path):
    def change(entries):
        info, content = next(pair for pair in entries if pair[0].filename == "fold_0/run.json")
        info.compress_type = zipfile.ZIP_DEFLATED
        return [*(pair for pair in entries if pair[0] is not info), (info, content + b" " * (10 << 20))]

    bundle = rewritten(shop, tmp_path / "bad.msd", change)
    with zipfile.ZipFile(shop / "toy.msd") as archive:
        size = archive.getinfo("fold_0/run.json").file_size
    content = bytearray(bundle.read_bytes())
    for place in places_of_size(bytes(content), b"fold_0/run.json"):
        content[place : place + 4] = size.to_bytes(4, "little")
    bundle.write_bytes(content)
    refuse_everywhere(shop, tmp_path, bundle, "a damaged archive (Bad CRC-32")


@fault("F74")
def test_members_that_share_bytes_are_code_6(shop, tmp_path):
    content = bytearray((shop / "toy.msd").read_bytes())
    places = [m.start() for m in re.finditer(b"PK\x01\x02", content)]
    content[places[3] + 42 : places[3] + 46] = content[places[2] + 42 : places[2] + 46]
    (tmp_path / "bad.msd").write_bytes(content)
    refuse_everywhere(shop, tmp_path, tmp_path / "bad.msd", "overlaps the one before")


@fault("F74")
@pytest.mark.parametrize("count", [1001, 200_000])
def test_an_archive_of_countless_entries_is_code_6(shop, tmp_path, count):
    content = bytearray((shop / "toy.msd").read_bytes())
    content[-12:-10] = content[-14:-12] = min(count, 0xFFFF).to_bytes(2, "little")
    (tmp_path / "bad.msd").write_bytes(content)
    refuse_everywhere(shop, tmp_path, tmp_path / "bad.msd", "at most 1000 are read")


@fault("F73", "F74")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], "cut short"),
        (lambda content: content[:-1], "cut short"),
        (lambda content: content + b"#!/bin/sh", "something stands behind"),
        (lambda content: b"PK\x03\x04" + content, "something stands before"),
        (lambda content: b"#!/bin/sh\n" + content, "no zip archive"),
        (lambda content: b"", "no zip archive"),
        (lambda content: content.replace(b'"msd-bundle"', b'"msd-bandle"'), "Bad CRC-32"),
    ],
)
def test_a_damaged_archive_is_code_6(shop, tmp_path, change, message):
    (tmp_path / "bad.msd").write_bytes(change((shop / "toy.msd").read_bytes()))
    refuse_everywhere(shop, tmp_path, tmp_path / "bad.msd", message)


@fault("F72", "F74")
def test_a_byte_of_any_member_is_covered_by_the_manifest(shop, tmp_path):
    """The archive's own checksums are made to fit; the sha256 in the manifest remains."""

    def change(entries):
        return [(info, text[:-1] + bytes([text[-1] ^ 1]) if info.filename == name else text) for info, text in entries]

    with zipfile.ZipFile(shop / "toy.msd") as archive:
        names = [name for name in archive.namelist() if name != "manifest.json"]
    assert len(names) == 10
    for name in names:
        bundle = rewritten(shop, tmp_path / "bad.msd", change)
        result = msd("bundle", "info", bundle)
        assert result.code == 6
        assert f"'{name}' does not match its sha256" in result.stderr
    refuse_everywhere(shop, tmp_path, bundle, "does not match its sha256")


@fault("F75")
@pytest.mark.parametrize("name", ["inner.zip", "fold_0/inner.msd", "fold_0/x.tar.gz", "x.7z"])
def test_an_archive_in_an_archive_is_code_6(shop, tmp_path, name):
    content = (shop / "toy.msd").read_bytes()
    bundle = rewritten(shop, tmp_path / "bad.msd", lambda entries: [*entries, (entry(name), content)])
    refuse_everywhere(shop, tmp_path, bundle, "is an archive in the archive")


@fault("F76")
def test_an_import_never_replaces_a_model_unasked(shop, tmp_path):
    words = ["bundle", "import", shop / "toy.msd", "--workspace", tmp_path]
    done(*words)
    run = tmp_path / "results" / DATASET / RUN
    (run / "fold_0" / "note.txt").write_text("mine")
    result = msd(*words)
    assert result.code == 2
    assert "--overwrite" in result.stderr
    assert (run / "fold_0" / "note.txt").read_text() == "mine"
    done(*words, "--name", "another")
    done(*words, "--overwrite")
    assert not (run / "fold_0" / "note.txt").exists()
    assert sorted(path.name for path in run.parent.iterdir()) == ["another", RUN]


@fault("F73", "F76")
@pytest.mark.parametrize("name", ["../escape", "/abs", "a/b", "..", ".hidden", "", "a\0b", "-rf"])
def test_an_import_cannot_be_named_to_lead_outside(shop, tmp_path, name):
    result = msd("bundle", "import", shop / "toy.msd", "--workspace", tmp_path, f"--name={name}")
    assert result.code == (0 if name == "" else 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"results"}


def manifest_changed(**changes):
    def change(entries):
        info, text = entries[0]
        assert info.filename == "manifest.json"
        return [(info, json.dumps({**json.loads(text), **changes})), *entries[1:]]

    return change


@fault("F80")
def test_a_bundle_of_a_newer_format_is_code_2_and_says_upgrade(shop, tmp_path):
    bundle = rewritten(shop, tmp_path / "new.msd", manifest_changed(format_version=2, of_the_future=[]))
    refuse_everywhere(shop, tmp_path, bundle, "newer msd (format_version 2; known: 1)", code=2)


@fault("F78")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"script": "os.system"}, "unknown key 'script'"),
        ({"name": "../escape"}, "name"),
        ({"dataset": "../escape"}, "dataset"),
        ({"dataset": "/abs"}, "dataset"),
        ({"folds": ["0", "1", "../2"]}, "folds"),
        ({"folds": ["0"]}, "nothing that a bundle holds"),
        ({"folds": ["0", "1", "2"]}, "is missing"),
        ({"licence": "\x1b[2J forged"}, "control characters"),
        ({"members": {}}, "is missing"),
        ({"format": "something else"}, "no bundle of msd"),
    ],
)
def test_a_manifest_is_held_to_its_schema(shop, tmp_path, changes, message):
    bundle = rewritten(shop, tmp_path / "bad.msd", manifest_changed(**changes))
    refuse_everywhere(shop, tmp_path, bundle, message)


@fault("F72")
@pytest.mark.parametrize(
    "changes", [{"labels": {"background": 0, "tumour": 1}}, {"channels": ["CT"]}, {"method": "tedm"}]
)
def test_a_manifest_that_speaks_of_another_model_is_not_imported(shop, tmp_path, changes):
    bundle = rewritten(shop, tmp_path / "bad.msd", manifest_changed(**changes))
    result = msd("bundle", "import", bundle, "--workspace", tmp_path / "workspace")
    assert result.code == 6
    assert next(iter(changes)) in result.stderr
    assert not (tmp_path / "workspace").exists()
