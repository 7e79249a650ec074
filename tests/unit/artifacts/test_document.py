"""Documents: strict reading whose errors name file, key and nearest known key, all at once."""

from typing import Literal

import pytest
from pydantic import ValidationError

from medsegdiff_cli.artifacts.document import StrictModel, read_json, read_yaml, validate
from medsegdiff_cli.errors import InputDataError, IntegrityError, UsageError


class Inner(StrictModel):
    spacing_mm: float = 1.0
    strides: tuple[int, ...] = ()


class Outer(StrictModel):
    name: str
    one: Inner = Inner()
    maybe: Inner | None = None
    several: tuple[Inner, ...] = ()
    by_name: dict[Literal["2d", "3d"], Inner] = {}


def problem(content):
    with pytest.raises(UsageError) as error:
        validate(Outer, content, "plan.yaml")
    assert error.value.where == "plan.yaml"
    return error.value.what


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"one": {"spacing": 2}}, "one.spacing"),
        ({"maybe": {"spacing": 2}}, "maybe.spacing"),
        ({"several": [{}, {"spacing": 2}]}, "several.1.spacing"),
        ({"by_name": {"3d": {"spacing": 2}}}, "by_name.3d.spacing"),
    ],
)
def test_an_unknown_key_is_compared_with_the_keys_of_its_own_level(content, key):
    assert problem({"name": "x", **content}) == f"unknown key '{key}': did you mean 'spacing_mm'?"


def test_an_unknown_key_at_the_top_is_compared_with_the_top():
    assert problem({"name": "x", "severl": []}) == "unknown key 'severl': did you mean 'several'?"


def test_all_problems_are_named_at_once():
    text = problem({"nam": "x", "one": {"spacing_mm": "far"}, "by_name": {"4d": {}}})
    for part in ("name: field required", "unknown key 'nam'", "one.spacing_mm", "(given: 'far')", "by_name.4d"):
        assert part in text


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_document_that_is_no_mapping_is_refused(content):
    assert "(whole document)" in problem(content)


def test_documents_do_not_change_after_reading():
    document = validate(Outer, {"name": "x"}, "here")
    with pytest.raises(ValidationError, match="frozen"):
        document.name = "y"


@pytest.mark.parametrize("reader", [read_json, read_yaml])
def test_a_missing_file_is_the_callers_error(tmp_path, reader):
    with pytest.raises(IntegrityError, match=r"x\.file is missing") as error:
        reader(tmp_path / "x.file", IntegrityError)
    assert error.value.where == str(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"[" * 100_000])
def test_what_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputDataError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"a: [1", b"a: b: c", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []"])
def test_what_is_not_plain_yaml_is_refused(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UsageError, match="not valid YAML"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("reader", [read_json, read_yaml])
def test_a_folder_in_place_of_a_file_is_the_callers_error(tmp_path, reader):
    (tmp_path / "a.file").mkdir()
    with pytest.raises(IntegrityError, match="cannot be read"):
        reader(tmp_path / "a.file", IntegrityError)
