"""Logging: people's words go to stderr, and to the run's log file when there is one."""

import logging
import sys
from pathlib import Path

ROOT_NAME = "medsegdiff_cli"


def set_up(verbosity: int = 0, quiet: bool = False) -> None:
    """Send the package's log to stderr.

    Args:
        verbosity: 0 shows what a user needs, 1 (`-v`) shows details.
        quiet: show warnings and errors only.
    """
    logger = logging.getLogger(ROOT_NAME)
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbosity else logging.INFO)
    logger.propagate = False


def add_file(path: Path) -> logging.Handler:
    """Also append the log to a file, with times; the caller removes the returned handler with `remove`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(ROOT_NAME).addHandler(handler)
    return handler


def remove(handler: logging.Handler) -> None:
    """Stop logging to `handler` and close it."""
    logging.getLogger(ROOT_NAME).removeHandler(handler)
    handler.close()


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
