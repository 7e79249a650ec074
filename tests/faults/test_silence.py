"""msd speaks to nobody: no code of it can, libraries are told not to, and the tests would notice."""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import medsegdiff_cli

pytestmark = pytest.mark.fault("F79")

ROOT = Path(__file__).resolve().parents[2]
# `socket` is imported for the machine's own name only, see below.
REACHING = {"aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "mlflow", "paramiko", "requests", "sentry_sdk"}
REACHING |= {"smtplib", "urllib", "urllib3", "wandb", "webbrowser", "xmlrpc"}


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 443), ("2001:db8::1", 80, 0, 0)])
def test_a_connection_that_leaves_the_machine_fails_any_test(address) -> None:
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family) as end, pytest.raises(AssertionError, match="reached for the network"):
        end.connect(address)


def test_processes_of_one_machine_may_meet_on_it() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_no_code_of_msd_imports_what_reaches_out() -> None:
    found = []
    for folder in ("medsegdiff_cli", "dataset_conversion", "plans"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in REACHING]
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket":
                    found += [f"{path.name}: socket.{node.attr}"] * (node.attr != "gethostname")
                if isinstance(node, ast.Attribute) and node.attr in {"from_pretrained", "load_state_dict_from_url"}:
                    found.append(f"{path.name}: {node.attr}")
    assert found == []


def test_libraries_are_told_to_stay_offline_and_to_report_nothing() -> None:
    assert medsegdiff_cli.__version__
    assert {os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")} == {"1"}
    code = (
        "import medsegdiff_cli, huggingface_hub.constants as hub\n"
        "assert hub.HF_HUB_OFFLINE and hub.HF_HUB_DISABLE_TELEMETRY"
    )
    # Whatever the user's environment says: a process of its own, for the library reads it once.
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)
