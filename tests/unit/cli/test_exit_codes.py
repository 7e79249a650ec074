"""What a command's failure becomes: one message and the exit code of its kind."""

import json

import pytest
import typer

from medsegdiff_cli.cli.shell import verb
from medsegdiff_cli.errors import InputDataError, IntegrityError, UsageError


def failing(error):
    @verb
    def command(json_output=False):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (InputDataError("x"), 3),
        (MemoryError("unable to allocate 3 TiB"), 4),
        (IntegrityError("x"), 6),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error, code, capsys):
    with pytest.raises(typer.Exit) as left:
        failing(error)()
    assert left.value.exit_code == code
    assert capsys.readouterr().err.startswith("error: ")


def test_a_lack_of_memory_says_what_to_do_and_fills_the_json_object(capsys):
    with pytest.raises(typer.Exit):
        failing(MemoryError("unable to allocate 3 TiB"))(json_output=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["exit_code"] == 4
    assert shown["error"]["what"] == "the memory does not suffice (unable to allocate 3 TiB)"
    assert "--workers" in shown["error"]["fix"]
