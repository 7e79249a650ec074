"""Channels by name: images of a dataset whose channels stand in another order than the model's are refused."""

import logging
from pathlib import Path

from medsegdiff_cli.artifacts.document import read_json
from medsegdiff_cli.artifacts.plan import Plan
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import DATASET_JSON

log = logging.getLogger(__name__)


def require_same_channels(source: Path, plan: Plan) -> None:
    """Compare the channel names of the dataset that the images lie in, if they lie in one, with the model's.

    File names carry numbers only, so that swapped channels would give a wrong result without a word.

    Raises:
        InputDataError: the same names in another order.
    """
    folder = source if source.is_dir() else source.parent
    described = folder.resolve().parent / DATASET_JSON
    if not (folder.name.startswith("images") and described.is_file()):
        return
    names = _channel_names(described)
    if names is None:
        log.info("%s names no channels: they are not compared with the model's", described)
        return
    own = [names[key] for key in sorted(names, key=lambda key: (len(key), key))]
    trained = [channel.name for channel in plan.channels]
    if own == trained:
        return
    if sorted(own) == sorted(trained):
        raise InputDataError(
            f"the images' channels are {', '.join(own)}, the model's {', '.join(trained)}",
            where=str(described),
            fix="bring the files into the model's order (CASE_0000, CASE_0001, ...)",
        )
    log.warning("%s: the channels are called %s, the model's %s", described, ", ".join(own), ", ".join(trained))


def _channel_names(described: Path) -> dict[str, str] | None:
    """Return the channels' names by their numbers; other layouts (Decathlon, nnU-Net v1) call them modalities."""
    content = read_json(described, InputDataError)
    names = content.get("channel_names", content.get("modality")) if isinstance(content, dict) else None
    return {str(key): str(name) for key, name in names.items()} if isinstance(names, dict) else None
