"""`volumes.csv`: what the sidecars of a prediction folder say about every case and class, as one table."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

from medsegdiff_cli import atomic
from medsegdiff_cli.artifacts.prediction_folder import Sidecar, Spread, read_sidecar
from medsegdiff_cli.artifacts.spreadsheet import cell
from medsegdiff_cli.errors import InputDataError
from medsegdiff_cli.paths import PREDICTION_JSON, SUMMARY_JSON, VOLUMES_CSV

log = logging.getLogger(__name__)


def write_volumes(folder: Path) -> None:
    """Write `volumes.csv` from all sidecars of a prediction folder: one row a case and class."""
    rows: list[dict[str, Any]] = []
    for path in sorted(path for path in folder.glob("*.json") if path.name[0] != "."):
        sidecar = _sidecar(folder, path.stem)
        if sidecar is None:
            continue
        for name, voxels in sidecar.voxels.items():
            volume = sidecar.volumes_ml[name]
            rows.append(
                {
                    "case": cell(sidecar.case),
                    "class": cell(name),
                    "voxels": voxels,
                    "volume_ml": "" if volume is None else f"{volume:.6g}",
                    "agreement": _share(sidecar.agreement),
                    "member_agreement": _share(sidecar.member_agreement.get(name)),
                    **_spread("voxels", sidecar.member_voxels.get(name)),
                    **_spread("volume_ml", sidecar.member_volumes_ml.get(name)),
                    "flags": cell("; ".join(sidecar.flags)),
                }
            )
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(folder / VOLUMES_CSV, text.getvalue())


def _sidecar(folder: Path, case: str) -> Sidecar | None:
    """Return a case's sidecar; None for the folder's other JSON files."""
    if f"{case}.json" in (PREDICTION_JSON, SUMMARY_JSON):
        return None
    try:
        return read_sidecar(folder, case)
    except InputDataError:
        log.warning("%s.json is not a sidecar of msd; it is left out of %s", case, VOLUMES_CSV)
        return None


def _spread(name: str, spread: Spread | None) -> dict[str, str]:
    """Return the columns of mean and interval; blank with one member, or without physical spacing."""
    values = {} if spread is None else {key: f"{value:.6g}" for key, value in spread}
    return {f"{name}_{key}": values.get(key, "") for key in Spread.model_fields}


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
