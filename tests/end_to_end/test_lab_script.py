"""The nightly script of docs/lab.md, as it stands on the page, run by bash: with a pretended msd and the real one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lab.md"
MAIL = """#!/bin/bash
# mail -s SUBJECT TO: keep the subject, the address and the words.
{ echo "subject: $2"; echo "to: $3"; cat; echo "--"; } >>"$MAILBOX"
"""
# Looks its answer up: $ANSWERS/VERB.code and VERB.json; notes its words.
PRETENDED = """#!/bin/bash
echo "$@" >>"$ANSWERS/called"
cat "$ANSWERS/$1.json"
echo "words of $1" >&2
exit "$(cat "$ANSWERS/$1.code")"
"""
ANSWERS = {
    "doctor": {"unmet": []},
    "check": {"counts": {"errors": 0}},
    "predict": {"written": ["a"], "reused": []},
    "evaluate": {"foreground_mean": {"Dice": 0.9}},
    "runs": {"removable": []},
}


@pytest.fixture
def night(tmp_path):
    """Return a function that runs the page's script with `msd` and `mail` from a folder of its own."""
    page = PAGE.read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(#!/usr/bin/env bash\n.*?)```", page, re.DOTALL)
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "night.sh").write_text(script, encoding="utf-8")
    (programs / "python3").symlink_to(sys.executable)

    def run(msd: str, **environment: object) -> subprocess.CompletedProcess[str]:
        for name, content in (("mail", MAIL), ("msd", msd)):
            (programs / name).write_text(content)
            (programs / name).chmod(0o755)
        given = {
            "MAILBOX": tmp_path / "mailbox",
            "LOGS": tmp_path / "logs",
            "MAILTO": "lab",
            "FREE": "1M",
            **environment,
        }
        path = f"{programs}:/usr/bin:/bin"
        words = {**os.environ, "PATH": path, **{name: str(value) for name, value in given.items()}}
        return subprocess.run(
            ["bash", tmp_path / "night.sh"], env=words, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def mails(folder: Path) -> list[str]:
    """Return the subjects of the mails so far, and forget them."""
    box = folder / "mailbox"
    text = box.read_text() if box.is_file() else ""
    box.unlink(missing_ok=True)
    return re.findall(r"^subject: msd: (.*)$", text, re.MULTILINE)


@pytest.fixture
def pretend(night, tmp_path):
    """Return a function that runs a night in which each verb answers as told: VERB=(exit code, JSON)."""
    answers = tmp_path / "answers"

    def run(reference="labels", **told):
        shutil.rmtree(answers, ignore_errors=True)
        answers.mkdir()
        for verb, content in ANSWERS.items():
            code, content = told.get(verb, (0, content))
            (answers / f"{verb}.code").write_text(str(code))
            (answers / f"{verb}.json").write_text(json.dumps(content))
        (tmp_path / "out").mkdir(exist_ok=True)
        places = {"MODEL": "m", "INCOMING": "in", "OUTPUT": "out", "REFERENCE": reference, "ANSWERS": answers}
        outcome = night(PRETENDED, **places)
        called = [line.split()[0] for line in (answers / "called").read_text().splitlines()]
        return outcome.returncode, called, mails(tmp_path), outcome.stderr

    return run


ALL = ["doctor", "check", "predict", "evaluate", "runs"]


def failed(what: str) -> dict[str, object]:
    return {"schema_version": 1, "exit_code": 0, "error": {"what": what, "where": "", "fix": ""}}


def test_a_good_night_is_silent(pretend):
    assert pretend() == (0, ALL, [], "")
    assert pretend(reference="") == (0, [verb for verb in ALL if verb != "evaluate"], [], "")


@pytest.mark.parametrize(
    ("told", "code", "called", "subject"),
    [
        ({"doctor": (4, {"unmet": ["free=1M"]})}, 4, ["doctor"], "the machine is not ready: 1 demands unmet"),
        ({"check": (3, {"counts": {"errors": 2}})}, 3, ALL, "images with problems: 2 errors"),
        ({"check": (6, failed("x"))}, 6, ALL, "the check did not run (exit 6)"),
        ({"predict": (5, failed("1 of 3 cases failed: b"))}, 5, ALL, "1 of 3 cases failed: b"),
        ({"predict": (7, failed("2 are left"))}, 7, ALL, "not finished, the next night goes on: 2 are left"),
        ({"predict": (4, failed("disk"))}, 4, ALL[:3], "the prediction stopped (exit 4): disk"),
        ({"evaluate": (8, {"foreground_mean": {"Dice": 0.5}})}, 8, ALL, "the score fell below dice=0.80: 0.5"),
        ({"evaluate": (3, failed("none"))}, 3, ALL, "no scores (exit 3): none"),
    ],
)
def test_what_needs_a_person_is_mailed_and_the_night_goes_on_where_it_can(pretend, told, code, called, subject):
    assert pretend(**told) == (code, called, [subject], "")


def test_without_a_model_nothing_starts(night, tmp_path):
    outcome = night(PRETENDED, INCOMING="in", OUTPUT="out", ANSWERS=tmp_path)
    assert outcome.returncode != 0
    assert "MODEL" in outcome.stderr
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # five commands, a process each
@pytest.mark.xdist_group("lab")
def test_a_night_on_phantoms(lab, night, tmp_path):
    """A truncated image is mailed and the others are segmented; a score below the floor is mailed, too."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    for path in lab.images.iterdir():
        shutil.copy(path, incoming / path.name)
    good = sorted(incoming.iterdir())[0].read_bytes()
    (incoming / "broken_0000.nii.gz").write_bytes(good[: len(good) // 2])
    real = f'#!/bin/bash\nexec "{sys.executable}" -m medsegdiff_cli "$@"\n'
    places = {"MODEL": lab.run, "INCOMING": incoming, "OUTPUT": tmp_path / "out", "MSD_WORKSPACE": lab.workspace}
    places |= {"REFERENCE": lab.dataset, "FLOOR": "dice=0.9999", "PYTHONPATH": PAGE.parents[1], "OMP_NUM_THREADS": 1}
    outcome = night(real, **places)
    assert outcome.returncode == 8, outcome.stderr
    problems, failed_cases, below = mails(tmp_path)
    assert problems.startswith("images with problems: ")
    assert failed_cases == "1 of 3 cases failed: broken"
    assert below.startswith("the score fell below dice=0.9999: 0.")
    assert len(list((tmp_path / "out").glob("case_*.nii.gz"))) == 2
    assert not (tmp_path / "out" / "broken.nii.gz").exists()
    (log,) = tmp_path.glob("logs/*/night.log")
    assert "done, exit 8, 2 segmentations" in log.read_text()
