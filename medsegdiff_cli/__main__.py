"""Entry point of `msd` and of `python -m medsegdiff_cli`."""

import sys


def main() -> None:
    """Run the command line; `--version` answers before anything else is imported."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from medsegdiff_cli import __version__

        sys.stdout.write(f"msd {__version__}\n")
        return
    from medsegdiff_cli.cli.app import app

    app()


if __name__ == "__main__":
    main()
