"""`msd doctor`: the report's sections, its warnings and the demands."""

import json

import pytest

from medsegdiff_cli.errors import UsageError
from medsegdiff_cli.paths import Workspace
from medsegdiff_cli.workflows import doctor
from medsegdiff_cli.workflows.doctor import examine, unmet

GIB = 2**30


def report_of(*, gpus=(), mps=False, free=100 * GIB, memory=16 * GIB, cores=4, load=0.5, **changes):
    """A report as `examine` makes it, with made-up figures."""
    processor = {
        "cores_usable": cores,
        "load": load,
        "torch_threads": changes.get("threads", 1),
        "omp_num_threads": changes.get("omp", "1"),
        "bf16": False,
    }
    disk = {
        "workspace": "/data",
        "free_bytes": free,
        "writable": changes.get("writable", True),
        "shared_memory_bytes": changes.get("shared", 8 * GIB),
        "file_descriptors": changes.get("descriptors", 4096),
    }
    cuda = [{"name": f"GPU {n}", "memory_bytes": size, "bf16": True} for n, size in enumerate(gpus)]
    return {
        "versions": changes.get("versions", {"torch": "2.13.0"}),
        "devices": {"cuda": cuda, "mps": mps},
        "processor": processor,
        "memory": {"limit_bytes": memory},
        "disk": disk,
    }


def test_the_report_has_its_sections_and_is_plain_data(tmp_path):
    report = examine(Workspace(tmp_path / "not" / "yet"))
    assert list(report) == ["versions", "devices", "processor", "memory", "disk", "warnings"]
    assert json.loads(json.dumps(report)) == report
    assert 1 <= report["processor"]["cores_usable"] <= report["processor"]["cores_of_machine"]
    assert 0 < report["memory"]["limit_bytes"] <= report["memory"]["total_bytes"]
    assert report["disk"]["free_bytes"] > 0
    assert not (tmp_path / "not").exists()


def test_no_demand_is_always_met():
    assert unmet(report_of(), None) == []
    assert unmet(report_of(), " , ") == []


@pytest.mark.parametrize(
    ("demand", "met_by", "unmet_by"),
    [
        ("gpu", {"gpus": [8 * GIB]}, {}),
        ("gpu", {"mps": True}, {}),
        ("gpu=2", {"gpus": [8 * GIB, 8 * GIB]}, {"gpus": [8 * GIB]}),
        ("gpu-memory=12G", {"gpus": [8 * GIB, 12 * GIB]}, {"gpus": [8 * GIB, 11 * GIB]}),
        ("free=50G", {"free": 50 * GIB}, {"free": 50 * GIB - 1}),
        ("memory=16G", {"memory": 16 * GIB}, {"memory": 15 * GIB}),
        ("cores=8", {"cores": 8}, {"cores": 7}),
        ("bf16", {"gpus": [GIB]}, {}),
    ],
)
def test_each_demand_is_met_from_its_figure_on(demand, met_by, unmet_by):
    assert unmet(report_of(**met_by), demand) == []
    assert len(unmet(report_of(**unmet_by), demand)) == 1


def test_every_unmet_demand_is_named_at_once():
    problems = unmet(report_of(free=GIB, memory=GIB), "gpu, free=50G, memory=16G")
    assert len(problems) == 3
    assert "50.0 GB of disk demanded, 1.0 GB free (/data)" in problems


@pytest.mark.parametrize("demand", ["free=", "free=lots", "cores=many", "gpu=-1"])
def test_a_demand_without_a_proper_value_is_a_usage_error(demand):
    with pytest.raises(UsageError, match=demand.split("=")[0]):
        unmet(report_of(), demand)


def test_an_unknown_demand_names_the_nearest_known_one():
    with pytest.raises(UsageError) as error:
        unmet(report_of(), "memmory=3G")
    assert "did you mean 'memory'?" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"load": 4.5}, "load"),
        ({"load": 2.5, "omp": None}, "OMP_NUM_THREADS is unset"),
        ({"threads": 64}, "64 threads"),
        ({"shared": 64 * 2**20}, "/dev/shm has only 64 MB"),
        ({"descriptors": 256}, "256 files"),
        ({"writable": False}, "cannot be written"),
        ({"versions": {"scipy": "missing"}}, "scipy"),
    ],
)
def test_each_trap_of_a_machine_gives_one_warning(changes, word):
    assert doctor._warnings(report_of()) == []
    warnings = doctor._warnings(report_of(**changes))
    assert len(warnings) == 1
    assert word in warnings[0]
