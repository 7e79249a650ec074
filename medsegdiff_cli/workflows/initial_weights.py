"""The weights that a training starts from: another run's, or public ones in a file."""

from medsegdiff_cli.methods.base import Method, Trainable
from medsegdiff_cli.methods.public_weights import StartsFromPublicWeights
from medsegdiff_cli.paths import CHECKPOINTS
from medsegdiff_cli.training.start_from import start_from
from medsegdiff_cli.training.start_from_file import start_from_file
from medsegdiff_cli.workflows.run_setup import RunSetup


def give_initial_weights(setup: RunSetup, method: Trainable) -> list[str]:
    """Load the weights that training starts from, of another run or a file; return what was taken, in words.

    Raises:
        UsageError: they do not fit. IntegrityError: they are damaged.
    """
    said, parent = [], setup.request.starts_from
    if parent is not None and isinstance(method, Method):
        start = start_from(method, parent, min_coverage=setup.request.min_coverage)
        said.append(f"initial weights: {100 * start.transfer.coverage:.1f} % from {start.folder}")
    if taken := _public_weights_of(setup, method):
        said.append(f"initial weights: {taken}")
    return said


def _public_weights_of(setup: RunSetup, method: Trainable) -> str | None:
    """Give the method the public weights that a new training starts from; return what was taken, if anything was.

    A training that goes on has its weights in a checkpoint.
    """
    is_new = setup.request.overwrite or not any((setup.folder / CHECKPOINTS).glob("*.json"))
    if setup.weights_file is None or not is_new or not isinstance(method, StartsFromPublicWeights):
        return None
    return start_from_file(method, setup.weights_file)
