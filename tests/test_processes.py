"""A search that several processes share."""

import os

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SEARCH, outcome
from forks import run, torchrun

import search
import utils
from model_search import SUPERNETS

FLAGS = f"{SEARCH} --neighbors 4 --weight_step neighbors"


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """To rounding, with each neighbor's own statistics: of alpha, both orders, and of the weights."""
    done = torchrun(tmp_path, os.path.join(ROOT, "tests", "two_steps.py"))
    assert done.returncode == 0, done.stderr[-2000:]


# The script in float64, where rounding does not grow to something visible, and on a quarter of the pictures
DOUBLE = """
import torch
import search, utils
torch.set_default_dtype(torch.float64)
draw = utils.draw_shapes
utils.draw_shapes = lambda n, size, seed: draw(n // 4, size, seed)
search.sharpness_and_picture = lambda *args: None
utils.run(search.main, search.parse_args())
"""


def test_a_search_in_two_processes_is_that_of_one(tmp_path, few_shapes, double):
    """Its losses, alpha and weights; and it goes on in one. Running statistics are the processes' means, with
    which the architecture half is evaluated."""
    script, flags = tmp_path / "double.py", [*FLAGS.split(), "--batch_size", 160, "--epochs", 1]
    script.write_text(DOUBLE)
    done = torchrun(tmp_path, script, *flags, "--save", "both")
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(str(script), *flags, "--save", "alone", cwd=tmp_path)
    assert done.status == 0, done.err
    (a, a_rows, _), (b, b_rows, _) = outcome(tmp_path / "both"), outcome(tmp_path / "alone")
    for name in ("weight_loss", "weight_accuracy", "neighborhood_loss"):
        assert float(a_rows[0][name]) == pytest.approx(float(b_rows[0][name]), rel=1e-9), name
    assert torch.allclose(a["trajectory"]["alpha"], b["trajectory"]["alpha"], rtol=1e-7, atol=1e-9)
    model = SUPERNETS["nasbench201"](2, 1, 10)
    for name, _ in model.named_parameters():
        assert torch.allclose(a["model"][name], b["model"][name], rtol=1e-7, atol=1e-9), name

    model.load_state_dict(a["model"])
    images, labels, _, _, half, norm = utils.load_halves(search.parse_args(list(map(str, flags))))
    with torch.no_grad():
        logits = model.eval()(utils.normalise(images[half], **norm), model.mixture())
    loss, right = F.cross_entropy(logits, labels[half]), (logits.argmax(1) == labels[half]).double()
    assert float(a_rows[0]["arch_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert float(a_rows[0]["arch_accuracy"]) == pytest.approx(100 * right.mean().item())

    done = run(str(script), "--resume", "both", "--epochs", 2, cwd=tmp_path)
    assert done.status == 0 and "resumed after epoch 1 of 2" in done.out, done.err
    assert [row["epoch"] for row in outcome(tmp_path / "both").rows] == ["1", "2"]


def test_neighbors_that_cannot_be_shared_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(utils, "processes", lambda: (0, 2))
    search.parse_args([*SEARCH.split(), "--perturb", "ascent"])  # one neighbor, which each process has
    assert search.parse_args([*SEARCH.split(), "--relax", "gumbel"]).neighbors == 2  # one in each
    with pytest.raises(SystemExit):
        search.parse_args([*FLAGS.split(), "--neighbors", "1"])
    assert "2 processes cannot share" in capsys.readouterr().err
