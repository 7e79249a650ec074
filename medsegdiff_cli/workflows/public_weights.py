"""Public weights of a run: which file, and what the run remembers of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsegdiff_cli.atomic import digest_of_file
from medsegdiff_cli.errors import IntegrityError, UsageError
from medsegdiff_cli.methods.public_weights import RANDOM, StartsFromPublicWeights
from medsegdiff_cli.methods.registry import find_trainable

_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")


def settle_weights(name: str, settings: Mapping[str, Any], *, from_run: bool) -> tuple[dict[str, Any], Path | None]:
    """Return what a run records of its public weights, and the file to start from, if there is one.

    Args:
        name: of the method or pretraining; most start from no such file.
        settings: of the method.
        from_run: whether training starts from another run.

    Raises:
        UsageError: neither a file, nor `random`, nor a run was given, or two of them; or no such file.
        IntegrityError: the file is not the one whose digest the settings name.
    """
    method = find_trainable(name).load()
    if not issubclass(method, StartsFromPublicWeights):
        return {}, None
    given = settings.get("weights")
    if from_run:
        if given is not None:
            raise UsageError(
                f"'{name}' cannot start from a run and from '{given}'", where="weights", fix="leave one of them out"
            )
        return {}, None
    if given is None:
        raise UsageError(
            f"'{name}' has no initial weights; nothing is downloaded, nor random unless asked for",
            where="--set weights",
            fix=f"--set weights=FILE.safetensors, {method.public_file}; or --set weights={RANDOM}; or --from RUN",
        )
    if given == RANDOM:
        return {}, None
    path = _existing(Path(given).expanduser(), method)
    digest, demanded = digest_of_file(path), settings.get("weights_sha256")
    if demanded not in (None, digest):
        raise IntegrityError(
            f"the file's sha256 is {digest}, the settings demand {demanded}",
            where=str(path),
            fix="give that file, or leave weights_sha256 out",
        )
    return {"weights": path.name, "weights_sha256": digest}, path


def _existing(path: Path, method: type[StartsFromPublicWeights]) -> Path:
    if path.suffix.lower() in _PICKLES:
        raise UsageError(
            f"'{path.name}' is a pickle, which may run programs and is never opened",
            where="weights",
            fix=f"give {method.public_file}",
        )
    if not path.is_file():
        raise UsageError(f"no file '{path}'", where="weights", fix=f"give {method.public_file}; or weights={RANDOM}")
    return path
