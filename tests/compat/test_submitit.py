"""The private part of submitit is there, and leaves it as it was."""

from pathlib import Path

import pytest
from submitit import AutoExecutor, SlurmExecutor

from sae_baselines.compat.submitit import sbatch_script


@pytest.mark.parametrize(("n", "array"), [(5, True), (1, False)])
def test_the_script_of_an_array_is_written_without_slurm(n: int, array: bool, tmp_path: Path):
    before = SlurmExecutor.__dict__["affinity"]

    def make() -> AutoExecutor:
        made = AutoExecutor(tmp_path / "jobs", cluster="slurm")
        made.update_parameters(timeout_min=7, slurm_partition="short")
        return made

    lines = sbatch_script(make, n).splitlines()
    assert ("#SBATCH --array=0-4%5" in lines) == array
    assert {"#SBATCH --time=7", "#SBATCH --partition=short"} <= set(lines)
    assert any("submitit.core._submit" in line for line in lines)
    assert SlurmExecutor.__dict__["affinity"] is before
