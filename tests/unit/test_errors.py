"""Errors carry what, where and fix, one exit code each, and survive process boundaries."""

import pickle

import pytest

from medsegdiff_cli import errors
from medsegdiff_cli.errors import MsdError, UsageError, did_you_mean

EXIT_CODES = {
    "UsageError": 2,
    "InputDataError": 3,
    "ResourceError": 4,
    "PartialFailure": 5,
    "IntegrityError": 6,
    "NotFinished": 7,
    "BelowDemandedScore": 8,
    "Interrupted": 130,
}


def test_every_exit_code_belongs_to_one_error():
    found = {kind.__name__: kind.exit_code for kind in MsdError.__subclasses__() if kind.__module__ == errors.__name__}
    assert found == EXIT_CODES
    assert MsdError.exit_code == 1


def test_a_message_says_what_where_and_what_to_do():
    error = UsageError("no fold '9'", where="--fold", fix="choose 0 to 4")
    assert str(error) == "no fold '9'\n  where: --fold\n  to do: choose 0 to 4"
    assert str(UsageError("no fold '9'")) == "no fold '9'"


@pytest.mark.parametrize("name", EXIT_CODES)
def test_errors_cross_process_boundaries_whole(name):
    error = getattr(errors, name)("what", where="here", fix="this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.what, again.where, again.fix) == ("what", "here", "this")
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ("stpes", ["steps", "seed"], "did you mean 'steps'?"),
        ("patch_size", ["batch_size", "patch_size_voxels"], "did you mean 'patch_size_voxels'?"),
        ("zzz", ["steps", "seed"], "known: seed, steps"),
        ("zzz", [], "none is known"),
    ],
)
def test_the_nearest_word_is_offered_else_all(given, known, expected):
    assert did_you_mean(given, known) == expected


def test_names_from_files_cannot_forge_what_a_terminal_shows():
    shown = str(UsageError("unknown key 'a\x1b[2K\rok'", where="x\u202ey\udcff", fix="say: é 中"))
    assert shown == "unknown key 'a\\x1b[2K\\rok'\n  where: x\\u202ey\\udcff\n  to do: say: é 中"
