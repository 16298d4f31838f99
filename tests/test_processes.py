"""A search that several processes share."""

import os

import pytest
from conftest import ROOT, SEARCH, outcome
from forks import run, torchrun

import search
import utils

FLAGS = f"{SEARCH} --neighbors 4 --weight_step neighbors"


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """To rounding, with each neighbor's own statistics: of alpha, both orders, and of the weights."""
    done = torchrun(tmp_path, os.path.join(ROOT, "tests", "two_steps.py"))
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_search_in_two_processes_goes_on_in_one(tmp_path):
    script = os.path.join(ROOT, "search.py")
    done = torchrun(tmp_path, script, *FLAGS.split(), "--epochs", 1, "--save", "run")
    assert done.returncode == 0, done.stderr[-2000:]
    done = run("search.py", "--resume", "run", "--epochs", 2, cwd=tmp_path)
    assert done.status == 0 and "resumed after epoch 1 of 2" in done.out, done.err
    checkpoint, rows, _ = outcome(tmp_path / "run")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_neighbors_that_cannot_be_shared_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(utils, "processes", lambda: (0, 2))
    search.parse_args([*SEARCH.split(), "--perturb", "ascent"])  # one neighbor, which each process has
    assert search.parse_args([*SEARCH.split(), "--relax", "gumbel"]).neighbors == 2  # one in each
    with pytest.raises(SystemExit):
        search.parse_args([*FLAGS.split(), "--neighbors", "1"])
    assert "2 processes cannot share" in capsys.readouterr().err
