"""A SLURM job array that predicts in shards with the very command line that asked for it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_TEMPLATE = """#!/bin/bash
#SBATCH --job-name=msd-predict
#SBATCH --array=0-{last}
#SBATCH --output=msd-predict_%A_%a.log
#SBATCH --cpus-per-task=4
# Remove one '#' of the lines that your cluster needs, and adapt them:
##SBATCH --gres=gpu:1
##SBATCH --partition=NAME
##SBATCH --mem=16G
##SBATCH --time=04:00:00

# Exit codes of each task: 0 all its cases are written; 5 some failed (the log lists them, the others are written);
# 3 all failed; 4 memory, disk or device are missing; 2 wrong usage. Submit the script again after mending the cause:
# finished cases are kept, only the missing ones are predicted.

cd -- {folder} || exit 2
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
exec {command}
"""
_TASK = '"$SLURM_ARRAY_TASK_ID"'


def slurm_script(num_shards: int, argv: Sequence[str], folder: Path | None = None) -> str:
    """Return a job-array script with one task a shard.

    Args:
        num_shards: number of tasks; `argv` itself says so to each of them.
        argv: the command line, program first, as in `sys.argv`; `--print-slurm` and `--shard-id` are taken out.
        folder: where the tasks run, so that relative paths keep their meaning; None takes the current folder.
    """
    program, verb, arguments = _split(argv)
    command = f"{shlex.join([*program, *verb])} --shard-id {_TASK} {shlex.join(arguments)}".rstrip()
    where = str(Path.cwd() if folder is None else folder)
    return _TEMPLATE.format(last=num_shards - 1, folder=shlex.quote(where), command=command)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the program, the words up to the verb, and the arguments that stay."""
    program = [argv[0]] if Path(argv[0]).name != "__main__.py" else [sys.executable, "-m", "medsegdiff_cli"]
    words = list(argv[1:])
    start = words.index("predict") + 1 if "predict" in words else 0
    kept, waiting = [], iter(words[start:])
    for word in waiting:
        if word == "--shard-id":
            next(waiting, None)
        elif word != "--print-slurm" and not word.startswith("--shard-id="):
            kept.append(word)
    return program, words[:start], kept
