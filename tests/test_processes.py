"""A search that several processes share."""

import csv
import os
import subprocess
import sys

import pytest
import torch

import search
import utils

TESTS = os.path.dirname(os.path.abspath(__file__))
TINY = (
    "--dataset shapes --image_size 8 --space nasbench201 --init_channels 2 --layers 1 --batch_size 496 "
    "--neighbors 4 --weight_step neighbors --device cpu"
)


def torchrun(path, *flags, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(TESTS)}
    command += [os.path.join(TESTS, path), *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """To rounding, with each neighbor's own statistics: of alpha, both orders, and of the weights."""
    done = torchrun("two_steps.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_search_in_two_processes_goes_on_in_one(tmp_path):
    done = torchrun("../search.py", *TINY.split(), "--epochs", "1", "--save", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    command = [sys.executable, os.path.join(TESTS, "../search.py"), "--resume", "run", "--epochs", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "resumed after epoch 1 of 2" in done.stdout, done.stderr[-2000:]
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_neighbors_that_cannot_be_shared_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(utils, "processes", lambda: (0, 2))
    search.parse_args([*TINY.split()[:-6], "--perturb", "ascent"])  # one neighbor, which each process has
    with pytest.raises(SystemExit):
        search.parse_args([*TINY.split(), "--neighbors", "1"])
    assert "2 processes cannot share" in capsys.readouterr().err
