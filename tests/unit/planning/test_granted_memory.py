"""Memory sizes and limits."""

from pathlib import Path

import pytest

from medsegdiff_cli.errors import ResourceError, UsageError
from medsegdiff_cli.planning import memory
from medsegdiff_cli.planning.memory import (
    available_memory,
    default_memory_bytes,
    format_bytes,
    granted_ram_bytes,
    parse_bytes,
    require_memory,
)


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


@pytest.fixture
def system(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with 9 MB to be had, in a container that has used 3 of its 10 MB, 1 of them for pages of files."""
    cgroup, proc = tmp_path / "cgroup", tmp_path / "proc"
    cgroup.mkdir()
    proc.mkdir()
    (proc / "meminfo").write_text("MemTotal: 16384 kB\nMemAvailable: 9216 kB\n")
    (cgroup / "memory.max").write_text(f"{10 * 2**20}\n")
    (cgroup / "memory.current").write_text(f"{3 * 2**20}\n")
    (cgroup / "memory.stat").write_text(f"anon {2**21}\ninactive_file {2**19}\nactive_file {2**19}\nfile {2**20}\n")
    return cgroup, proc


@pytest.mark.fault("F60")
def test_what_can_be_had_is_the_least_that_any_limit_leaves(system: tuple[Path, Path], monkeypatch) -> None:
    cgroup, proc = system
    assert available_memory(cgroup, proc) == (8 * 2**20, "the limit of this container or job")
    (proc / "meminfo").write_text("MemAvailable: 4096 kB\n")
    assert available_memory(cgroup, proc) == (4 * 2**20, "the free memory of this machine")
    import resource

    (proc / "self").mkdir()
    (proc / "self" / "statm").write_text("100 50 20 1 0 30 0\n")
    limit = 2**20 + 100 * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert available_memory(cgroup, proc) == (2**20, "the limit of the address space (ulimit -v)")


@pytest.mark.fault("F60")
def test_a_forecast_over_the_limit_is_refused_with_both(monkeypatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: (2**30, "the free memory of this machine"))
    require_memory(2**30, "a training step")
    with pytest.raises(ResourceError, match=r"a training step is forecast to need 3\.0 GB of memory, but only 1\.0 GB"):
        require_memory(3 * 2**30, "a training step")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    require_memory(3 * 2**60, "a training step")
