"""The benchmarks that want a GPU run: on a CPU, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.vllm
def test_everything_for_a_gpu_runs_on_a_cpu() -> None:
    command = [sys.executable, FOLDER / "gpu.py", "--device", "cpu", "--small", "--turns", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {row["part"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(parts) == ["engine", "packing", "vllm"]
    gaps = {f"{part}: {name}": row[name] for part, row in parts.items() for name in row if "gap" in name}
    assert len(gaps) == 8
    assert all(gap is not None and gap < 1e-3 for gap in gaps.values()), gaps
