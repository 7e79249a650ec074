"""Pieces that every picture of this room is drawn with."""

import math

MOST_COLUMNS = 6


def grid_columns(n_tiles: int) -> int:
    """Return a number of columns that leaves few gaps in the last row, near a sheet somewhat wider than high."""
    if n_tiles <= 3:
        return n_tiles
    wanted = math.sqrt(n_tiles * 1.4)
    return min(range(3, MOST_COLUMNS + 1), key=lambda columns: (-n_tiles % columns) / columns + abs(columns - wanted))
