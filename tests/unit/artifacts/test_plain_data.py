"""JSON and YAML within limits: what PyYAML and `json` let through, and we do not."""

import json
import random

import pytest
import yaml

from medsegdiff_cli.artifacts import document, plain_data
from medsegdiff_cli.artifacts.document import StrictModel, read_json, read_yaml, validate
from medsegdiff_cli.artifacts.plain_data import NotPlainData, parse_json, parse_yaml
from medsegdiff_cli.errors import InputDataError, UsageError

GOOD = {"a": [1, -2.5, 1e300, True, None], "ä": {"b": "text", "c": {}}, "big": 2**63 - 1, "small": -(2**63)}
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_within_the_limits_is_what_the_libraries_read(mark):
    text = json.dumps(GOOD, ensure_ascii=False).encode()
    assert parse_json(mark + text) == GOOD
    assert parse_yaml(mark + yaml.safe_dump(GOOD, allow_unicode=True).encode()) == GOOD


def test_yaml_may_share_and_merge_within_reason():
    text = b"base: &base {a: 1, b: 2}\none: *base\ntwo:\n  <<: *base\n  b: 3\n"
    assert parse_yaml(text) == {"base": {"a": 1, "b": 2}, "one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 3}}


@pytest.mark.fault("F77")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        (b'[{"x": {"y": 1, "y": 1}}]', "'y' is given twice"),
        (b'{"a": NaN}', "NaN is not finite"),
        (b'{"a": -Infinity}', "-Infinity is not finite"),
        (b'{"a": 1e999}', "1e999 is not finite"),
        (b'{"a": 9223372036854775808}', "does not fit 64 bits"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "10000 digits"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "1009 bytes; at most 1000"),
        (b"\xff\xfe{\0}\0", "utf-8"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"", "Expecting value"),
    ],
)
def test_json_beyond_the_limits_is_refused(content, message):
    with pytest.raises(NotPlainData, match=message):
        parse_json(content, largest_bytes=1000 if b"xxx" in content else 1 << 20)


@pytest.mark.fault("F77")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b"a: 1\nb: 2\na: 3\n", "'a' is given twice"),
        (b"x: {y: 1, y: 1}", "'y' is given twice"),
        (b"a: .nan", "nan is not finite"),
        (b"a: -.inf", "inf is not finite"),
        (b"a: 1.0e+999", "not finite"),
        (b"a: 9223372036854775808", "does not fit 64 bits"),
        (b"a: " + b"9" * 10_000, "10000 digits"),
        (b"a: 2001-99-99", "month"),
        (LAUGHS.encode(), "more than 2000000 values"),
        (b"a: !!bool maybe", "not what its tag says"),
        (b"a: !!timestamp noon", "not what its tag says"),
        (b"a: !!int ''", "not what its tag says"),
        (b"a: !!int noon", "invalid literal"),
        (b"a: &a [*a]", "nested deeper|undefined|recursive"),
        (b"a: " + b"x" * 1000, "1003 bytes; at most 1000"),
    ],
)
def test_yaml_beyond_the_limits_is_refused(content, message):
    with pytest.raises(NotPlainData, match=message):
        parse_yaml(content, largest_bytes=1000 if b"xxx" in content else 1 << 20)


@pytest.mark.fault("F78")
@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/name:os.system",
        "!!python/module:os",
        "a: !!python/object/new:subprocess.Popen [[touch, canary]]",
        "a: !import os",
        "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.getcwd []",
    ],
)
def test_yaml_cannot_name_code(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotPlainData, match="could not determine a constructor"):
        parse_yaml(text.encode())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("F77")
def test_of_a_huge_file_no_more_than_the_limit_is_read(tmp_path, monkeypatch):
    with (tmp_path / "a.file").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte that takes no disk
    for reader, limit in ((read_yaml, "LARGEST_YAML_BYTES"), (read_json, "LARGEST_JSON_BYTES")):
        monkeypatch.setattr(document, limit, 1000)
        monkeypatch.setattr(plain_data, limit, 1000)
        with pytest.raises(InputDataError, match="not valid"):
            reader(tmp_path / "a.file", InputDataError)


class Versioned(StrictModel):
    schema_version: int = 3
    name: str = "x"
    added_in_2: int = 0
    added_in_3: str = ""


@pytest.mark.fault("F80")
def test_a_newer_document_says_that_msd_must_be_newer():
    with pytest.raises(UsageError, match=r"newer msd \(schema_version 4; known: 3\)") as error:
        validate(Versioned, {"schema_version": 4, "added_in_4": 1}, "plan.yaml", InputDataError)
    assert error.value.exit_code == 2
    assert error.value.fix == "upgrade msd"


@pytest.mark.fault("F80")
@pytest.mark.parametrize("version", [1, 2, 3])
def test_older_documents_are_read_with_what_was_added_since(version):
    found = validate(Versioned, {"schema_version": version, "name": "old"}, "plan.yaml")
    assert (found.name, found.added_in_3) == ("old", "")


YAML_SEED = (
    b"a: {b: [1, 2.5, null, 2001-01-01, 0x1F, 1_000, 12:30:45, !!binary aGk=], c: !!set {a}, d: !!omap [a: 1]}\n"
)
JSON_SEED = b'{"a": [1, -2.5e3, null, true, "\\u0041\\ud800", {"b": {}}], "c": 123456789012}'


@pytest.mark.fault("F77")
@pytest.mark.parametrize(("parser", "seed"), [(parse_yaml, YAML_SEED), (parse_json, JSON_SEED)])
def test_whatever_bytes_change_a_text_is_read_or_refused(parser, seed):
    source, outcomes = random.Random(1), set()
    for _ in range(700):
        text = bytearray(seed)
        for _ in range(source.choice([1, 1, 2, 4])):
            text[source.randrange(len(text))] = source.choice([source.randrange(256), *b"[]{}:,*&!?-'#% \t\n09x."])
        try:
            parser(bytes(text))
            outcomes.add("read")
        except NotPlainData:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
