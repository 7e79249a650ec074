"""Fixtures of the training tests."""

import pytest

from medsegdiff_cli.training.journal import Journal


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out `progress.png`, which takes longer than the toys' trainings."""
    monkeypatch.setattr(Journal, "draw", lambda self: None)
