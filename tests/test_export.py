"""Trained networks for use elsewhere: --export, and the lines of RESULTS.md that load a checkpoint."""

import os
import re
from argparse import Namespace

import pytest
import torch
from conftest import NB201, ROOT, TRAIN, do, outcome, tree

import train
import utils

CELL = (
    "Genotype(normal=[('sep_conv_3x3',0),('skip_connect',1)],normal_concat=[2],"
    "reduce=[('max_pool_3x3',0),('dil_conv_3x3',1)],reduce_concat=[2])"
)
RUNS = {
    "cifar": f"{TRAIN} --arch {CELL} --auxiliary --epochs 1",
    "nasbench201": f"{TRAIN} --arch {NB201} --layers 1 --valid_portion 0.1 --epochs 2",
}


@pytest.fixture
def here(tmp_path, monkeypatch, few_shapes):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_results(kind):
    """The network that the lines of RESULTS.md load from the run RUN."""
    with open(os.path.join(ROOT, "RESULTS.md"), encoding="utf-8") as file:
        (lines,) = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
    names = {}
    exec(lines.replace('"cifar"', repr(kind)), names)
    return names["network"].eval(), names["run"]["data"]


@pytest.mark.parametrize("kind", ["cifar", "nasbench201"])
def test_export(here, capsys, kind):
    do(train, f"{RUNS[kind]} --save RUN")
    before = tree(here)
    do(train, "--eval --resume RUN --export there.pt2")
    assert "wrote there.pt2; its logits of 250 test images differ by" in capsys.readouterr().out
    (here / "there.pt2").rename(here.parent / f"{kind}.pt2")
    assert tree(here) == before

    exported = torch.export.load(here.parent / f"{kind}.pt2").module()
    network, data = by_results(kind)
    images, labels, _ = utils.load_images("shapes", None, 8, train=False)
    x = images.permute(0, 3, 1, 2) / 255
    norm = [torch.tensor(data[name])[:, None, None] for name in ("mean", "std")]
    with torch.no_grad():
        expected = network((x - norm[0]) / norm[1])[0]
        for n in (1, 7, len(x)):
            torch.testing.assert_close(exported(x[:n]), expected[:n], rtol=1e-3, atol=1e-4)
    top1 = 100 * (expected.argmax(1) == labels).double().mean().item()
    assert outcome("RUN").result["test_top1"] == pytest.approx(top1)


def test_exports_that_are_refused(here, monkeypatch, refused):
    do(train, RUNS["nasbench201"], "--save", "RUN")
    before = tree(here)
    error = refused(train, "--eval --resume RUN --export no/x.pt2")
    assert "no/x.pt2 cannot be written" in error and "go on with" not in error
    for flags in ("--export x.pt2", "--eval --export x.onnx"):
        assert "give --eval --resume FOLDER, and a file that ends in .pt2" in refused(
            train, f"--resume RUN {flags}"
        )
    wrong = Namespace(module=lambda: lambda x: torch.zeros(len(x), 10))
    monkeypatch.setattr(torch.export, "load", lambda file: wrong)
    assert "x.pt2: what it holds gives other logits" in refused(train, "--eval --resume RUN --export x.pt2")
    assert tree(here) == before
