"""The files of one trained fold, wherever they lie: in a run folder, or in a bundle (`artifacts.bundle`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medsegdiff_cli.artifacts.checkpoint import Checkpoint, checkpoint_exists, read_checkpoint
from medsegdiff_cli.artifacts.document import read_json, read_yaml
from medsegdiff_cli.errors import IntegrityError
from medsegdiff_cli.paths import BEST, CHECKPOINTS, LAST, best_of


class FoldFiles(Protocol):
    """What loading a model needs of its files."""

    @property
    def folder(self) -> Path:
        """Where they lie, for messages and provenance; RUN/fold_K or BUNDLE.msd/fold_K."""

    def document(self, name: str) -> Any:
        """Return the content of a JSON or YAML file.

        Raises:
            IntegrityError: missing or damaged.
        """

    def checkpoints(self) -> list[str]:
        """Return the names of the weights that are there: "best", those of samplers ("best-ddim"), "last"."""

    def checkpoint(self, name: str) -> Checkpoint:
        """Return weights, verified.

        Raises:
            IntegrityError: missing or damaged.
        """


@dataclass(frozen=True)
class FoldFolder:
    """A fold's folder."""

    folder: Path

    def document(self, name: str) -> Any:
        """Return the content of a JSON or YAML file of the folder."""
        read = read_json if name.endswith(".json") else read_yaml
        return read(self.folder / name, IntegrityError)

    def checkpoints(self) -> list[str]:
        """Return the names of the complete weights in `checkpoints/`."""
        folder = self.folder / CHECKPOINTS
        of_samplers = sorted(path.stem for path in folder.glob(f"{best_of('*')}.json"))
        return [name for name in (BEST, *of_samplers, LAST) if checkpoint_exists(folder / name)]

    def checkpoint(self, name: str) -> Checkpoint:
        """Return the weights of that name."""
        return read_checkpoint(self.folder / CHECKPOINTS / name)
