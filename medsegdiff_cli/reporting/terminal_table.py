"""A page's table on the terminal."""

from rich.table import Table as TerminalTable
from rich.text import Text

from medsegdiff_cli.reporting.page import Table


def terminal_table(table: Table) -> TerminalTable:
    """Return the same headers, cells and alignments for Rich; the caption stands above."""
    shown = TerminalTable(title=Text(table.caption), show_edge=False)
    for header, alignment in zip(table.headers, table.columns, strict=True):
        shown.add_column(Text(header), justify=alignment, overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
