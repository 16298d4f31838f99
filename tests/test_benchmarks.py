"""The benchmark scripts run, and print what the README quotes from them. Times are not judged here."""

import os
import re
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = {
    "bench_supernet.py": "supernet_darts search_step na_step_8 supernet_nasbench201 na_repeat_4",
    "bench_data.py": "batches",
    "bench_train.py": "fixed_cell",
}


@pytest.mark.parametrize("script", RESULTS)
def test_a_benchmark_runs(script, tmp_path):
    command = [sys.executable, os.path.join(HERE, script), "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^RESULT (\w+) ratio=([\d.]+)", done.stdout, re.MULTILINE))
    assert set(RESULTS[script].split()) <= set(found)
    assert all(float(value) > 0 for value in found.values())
