"""`--print-slurm`: the script is valid bash and calls the very same command, one shard a task."""

import json
import subprocess
import sys

import pytest

from medsegdiff_cli.prediction.slurm import slurm_script

SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"


def run_as_task(script, task, tmp_path):
    """Run the script with bash as SLURM would; the program prints its arguments as JSON."""
    path = tmp_path / "job.sh"
    path.write_text(script)
    subprocess.run(["bash", "-n", str(path)], check=True, capture_output=True)
    environment = {"SLURM_ARRAY_TASK_ID": str(task), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["bash", str(path)], env=environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "a folder" / "msd"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{SHOW}\n")
    path.chmod(0o755)
    return str(path)


def test_the_task_gets_its_number_and_every_argument_unchanged(program, tmp_path):
    awkward = ["it's here", "$HOME", "a b", "`id`", 'say "x"', "*.nii.gz", "", "ünï"]
    argv = [program, "predict", "model", *awkward, "out", "--num-shards", "4", "--print-slurm"]
    output = run_as_task(slurm_script(4, argv, tmp_path), 3, tmp_path)
    assert json.loads(output) == ["predict", "--shard-id", "3", "model", *awkward, "out", "--num-shards", "4"]


def test_the_array_has_one_task_a_shard():
    assert "#SBATCH --array=0-9\n" in slurm_script(10, ["msd", "predict", "m", "i", "o", "--num-shards=10"])


@pytest.mark.parametrize("given", [["--shard-id", "7"], ["--shard-id=7"]])
def test_a_shard_number_of_ones_own_is_replaced(given, program, tmp_path):
    argv = [program, "predict", *given, "m", "i", "o", "--print-slurm"]
    output = run_as_task(slurm_script(1, argv, tmp_path), 0, tmp_path)
    assert json.loads(output) == ["predict", "--shard-id", "0", "m", "i", "o"]


def test_an_option_is_added_before_a_double_dash_ends_the_options(program, tmp_path):
    argv = [program, "predict", "--print-slurm", "--", "m", "-odd-name", "o"]
    output = run_as_task(slurm_script(1, argv, tmp_path), 0, tmp_path)
    assert json.loads(output) == ["predict", "--shard-id", "0", "--", "m", "-odd-name", "o"]


def test_the_tasks_run_where_the_command_was_given(tmp_path):
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    program = tmp_path / "show"
    program.write_text("#!/bin/bash\npwd\n")
    program.chmod(0o755)
    script = slurm_script(2, [str(program), "predict", "m", "i", "o"], folder)
    assert run_as_task(script, 1, tmp_path).strip() == str(folder)


def test_a_module_started_with_python_is_started_so_again():
    script = slurm_script(2, ["/somewhere/medsegdiff_cli/__main__.py", "predict", "m", "i", "o"])
    assert f"{sys.executable} -m medsegdiff_cli predict --shard-id" in script
