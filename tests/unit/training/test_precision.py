"""bfloat16 is taken where the processor multiplies it natively."""

import logging
from pathlib import Path

import pytest
import torch

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.training import precision
from medsegdiff_cli.training.precision import cpu_multiplies_bfloat16, resolve_precision

CPU = torch.device("cpu")


def x86(*flags: str) -> str:
    return "".join(f"processor\t: {n}\nflags\t\t: fpu avx2 {f}\nbugs\t\t: bf16\n\n" for n, f in enumerate(flags))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (x86("avx512f avx512_bf16", "avx512f avx512_bf16"), True),
        (x86("amx_bf16 amx_tile"), True),
        (x86("avx512f"), False),
        (x86("avx512_bf16", "avx512f"), False),  # a process may run on either core
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_the_processors_features_decide(text: str, expected: bool) -> None:
    assert cpu_multiplies_bfloat16(text) is expected


@pytest.mark.parametrize(("flag", "expected"), [("avx512_bf16", "bfloat16"), ("avx2", "float32")])
def test_auto_follows_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, expected: str) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(x86(flag))
    monkeypatch.setattr(precision, "_CPU_INFO", info)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == "float32"


def test_without_a_list_of_features_auto_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "missing")
    assert resolve_precision("auto", CPU) == "float32"


def test_emulated_bfloat16_is_granted_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "missing")
    with caplog.at_level(logging.WARNING):
        assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert "emulates bfloat16" in caplog.text


@pytest.mark.fault("F96")
def test_an_unknown_precision_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no precision 'half'"):
        resolve_precision("half", CPU)


@pytest.mark.fault("F96")
def test_the_lower_precision_does_not_underflow_where_float32_does_not() -> None:
    """There is no float16 here, which would lose small gradients: bfloat16 has float32's exponents."""
    small = torch.tensor([1e-37, 3e-30, 1e-8], requires_grad=True)
    assert small.half().tolist()[:2] == [0, 0]
    with torch.autocast("cpu", torch.bfloat16):
        product = small[:, None] @ torch.ones(1, 1)
    product.sum().backward()
    assert product.dtype == torch.bfloat16
    assert (product > 0).all()
    assert (small.grad > 0).all()
    with pytest.raises(UsageError, match="float16"):
        resolve_precision("float16", torch.device("cpu"))
