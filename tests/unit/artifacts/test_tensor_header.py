"""Headers of safetensors files: what the library writes is read, the rest never reaches the library."""

import io
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from medsegdiff_cli.artifacts.tensor_header import check_tensor_header, read_tensor_header
from medsegdiff_cli.errors import IntegrityError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def check(content):
    return check_tensor_header(io.BytesIO(content), len(content), "here")


def refused(content, message):
    with pytest.raises(IntegrityError, match=message) as error:
        check(content)
    assert error.value.exit_code == 6
    assert error.value.where == "here"


def test_what_the_library_writes_is_what_is_read(tmp_path):
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "scalar": torch.tensor(7),
        "b.16": torch.ones(3, dtype=torch.bfloat16),
        "nothing": torch.zeros(0, 4),
        "flag": torch.tensor([True]),
    }
    (tmp_path / "x.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    found = read_tensor_header(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    with safe_open(tmp_path / "x.safetensors", "pt") as library:
        for name, info in found.items():
            assert list(info.shape) == library.get_slice(name).get_shape()
            assert info.dtype == library.get_slice(name).get_dtype()


def test_a_file_without_tensors_is_read():
    assert check(file_of({}, b"")) == {}


@pytest.mark.fault("F68")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are too few"),
        (b"\x08\0\0", "too few"),
        (file_of({"a": F32}, length=1 << 40), "a header of 1099511627776 bytes"),
        (file_of({"a": F32}, length=(1 << 64) - 1), "a header of 18446744073709551615 bytes"),
        (file_of({"a": F32}, length=10), "Unterminated|valid"),
        (file_of(b"[]"), "no JSON object"),
        (file_of(b" {}", b""), "no JSON object"),
        (file_of(b'{"a": NaN}'), "not finite"),
        (file_of(b'{"a": ' + b"[" * 5000), "nested deeper"),
        (file_of(b'{"a": ' + json.dumps(F32).encode() + b', "a": ' + json.dumps(F32).encode() + b"}"), "given twice"),
        (file_of({"a": F32, "b": F32}), "'b' overlaps 'a'"),
        (file_of({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), "overlaps"),
        (file_of({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20), "'b' leaves a hole behind 'a'"),
        (file_of({"a": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), "leaves a hole behind 'the beginning'"),
        (file_of({"a": F32}, b"\0" * 7), "tensors of 8 bytes in 7 bytes"),
        (file_of({"a": F32}, b"\0" * 9), "tensors of 8 bytes in 9 bytes"),
        (file_of({"a": {**F32, "data_offsets": [1 << 50, (1 << 50) + 8]}}), "hole"),
        (file_of({"a": {**F32, "data_offsets": [-8, 0]}}), "impossible data_offsets"),
        (file_of({"a": {**F32, "data_offsets": [8, 0]}}), "impossible data_offsets"),
        (file_of({"a": {**F32, "data_offsets": [0, 8, 8]}}), "impossible data_offsets"),
        (file_of({"a": {**F32, "data_offsets": [0, 8.0]}}), "impossible data_offsets"),
        (file_of({"a": {**F32, "shape": [-2]}}), "impossible shape"),
        (file_of({"a": {**F32, "shape": [True, 2]}}), "impossible shape"),
        (file_of({"a": {**F32, "shape": [1] * 9 + [2]}}), "impossible shape"),
        (file_of({"a": {**F32, "shape": [1 << 62, 4]}}), "do not make F32"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}'), "5000 digits"),
        (file_of({"a": {**F32, "dtype": "PICKLE"}}), "unknown dtype 'PICKLE'"),
        (file_of({"a": {**F32, "dtype": ["F32"]}}), "unknown dtype"),
        (file_of({"a": {"dtype": "F32", "shape": [2]}}), "not exactly"),
        (file_of({"a": {**F32, "code": "x"}}), "not exactly"),
        (file_of({"a": [1]}), "not exactly"),
        (file_of({"__metadata__": {"a": 1}}, b""), "metadata"),
        (file_of({"__metadata__": [1]}, b""), "metadata"),
        (b"PK\x03\x04 a pickle in a zip", "a header of"),
        (b"\x80\x04\x95 a pickle", "a header of"),
    ],
)
def test_an_impossible_header_is_refused(content, message):
    refused(content, message)


@pytest.mark.fault("F69")
@pytest.mark.parametrize("kind", ["tensors", "more tensors", "metadata", "header"])
def test_an_absurd_header_is_refused_before_it_costs_anything(kind):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    content, message = {
        "tensors": (file_of({f"t{n}": empty for n in range(20_001)}, b""), "20001 tensors; at most 20000"),
        "more tensors": (file_of({f"t{n}": empty for n in range(100_000)}, b""), "a header of 6.* bytes"),
        "metadata": (file_of({"__metadata__": {"a": "x" * (3 << 20)}}, b""), "characters of metadata; at most 65536"),
        "header": (file_of({"__metadata__": {"a": "x" * (50 << 20)}}, b""), "a header of 5242.* bytes"),
    }[kind]
    refused(content, message)


class Counting(io.BytesIO):
    def __init__(self, content):
        super().__init__(content)
        self.taken = 0

    def read(self, size=-1):
        found = super().read(size)
        self.taken += len(found)
        return found


@pytest.mark.fault("F69")
def test_of_a_file_with_an_absurd_header_eight_bytes_are_read():
    content = file_of({"__metadata__": {"a": "x" * (50 << 20)}}, b"")
    stream = Counting(content)
    with pytest.raises(IntegrityError):
        check_tensor_header(stream, len(content), "here")
    assert stream.taken == 8


def test_a_file_that_is_gone_is_an_integrity_error(tmp_path):
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_tensor_header(tmp_path / "none.safetensors")


@pytest.mark.fault("F68")
def test_whatever_bytes_change_the_library_reads_what_we_let_through():
    whole = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int8)})
    header, source, outcomes = len(whole) - 27, random.Random(1), set()
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(source.choice([1, 1, 2, 4])):
            content[source.randrange(header)] = source.randrange(256)
        try:
            check(bytes(content))
        except IntegrityError:
            outcomes.add("refused")
        else:
            load(bytes(content))
            outcomes.add("read")
    assert outcomes == {"read", "refused"}
