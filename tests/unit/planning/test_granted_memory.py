"""Memory sizes and limits."""

from pathlib import Path

import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.planning.memory import default_memory_bytes, format_bytes, granted_ram_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8G", 8 * 2**30), ("8 GiB", 8 * 2**30), ("1.5gb", 3 * 2**29), ("500M", 500 * 2**20), ("1000000", 1_000_000)],
)
def test_sizes_are_read_with_units_of_1024(text: str, expected: int) -> None:
    assert expected == parse_bytes(text)


@pytest.mark.parametrize("text", ["", "G", "eight", "-1G", "0", "8X"])
def test_other_words_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="no memory size"):
        parse_bytes(text)


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_counts(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{2**20}\n")
    assert granted_ram_bytes(tmp_path) == 2**20


def test_no_limit_means_the_machines_memory(tmp_path: Path) -> None:
    without = granted_ram_bytes(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert without == granted_ram_bytes(tmp_path) > 2**28


def test_the_default_is_said_in_words() -> None:
    size, words = default_memory_bytes()
    assert size > 0
    assert "GPU" in words or "RAM" in words
    assert format_bytes(7.5 * 2**30) == "7.5 GB"
