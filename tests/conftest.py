"""What the tests share: small settings, images, runs in this process, and how two runs are compared.

Every test runs on one thread: what they compute is tiny, and threads that wait for each other on busy cores
cost more than they give. pytest-xdist has two processes use the cores instead (pyproject.toml). NA_DATA names
the folder of nasbench201.csv and nats_tss_sample; tests that need them are skipped where it is not set.
"""

import csv
import itertools
import json
import os
import random
import signal
from collections import namedtuple

import pytest
import torch
from PIL import Image

import search
import utils
from genotypes import nasbench201_architectures

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for what the tests start

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NB201 = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
STRINGS = [  # architectures 0, 11 and 284 of the official table
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|",
    "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|none~0|nor_conv_1x1~1|none~2|",
]
SHAPES = "--dataset shapes --image_size 8 --device cpu"
SEARCH = f"{SHAPES} --space nasbench201 --init_channels 2 --layers 1 --batch_size 496"
TRAIN = f"{SHAPES} --init_channels 4 --layers 3 --batch_size 640"
Run = namedtuple("Run", "checkpoint rows result")


def data(name):
    """A file of NA_DATA."""
    folder = os.environ.get("NA_DATA")
    if not folder:
        pytest.skip("NA_DATA does not name a folder")
    path = os.path.join(folder, name)
    assert os.path.exists(path), path
    return path


def save_images(root, classes=("dark", "light"), count=24, test_count=4, size=(8, 8)):
    """An image folder of noise, whose classes differ in brightness."""
    g = random.Random(0)
    for part, n in (("train", count), ("val", test_count)):
        for i, name in enumerate(classes):
            os.makedirs(root / part / name)
            shade = 128 * i // (len(classes) - 1 or 1)
            for k in range(n):
                pixels = bytes(g.randrange(128) + shade for _ in range(3 * size[0] * size[1]))
                Image.frombytes("RGB", size, pixels).save(root / part / name / f"{k}.png")


def draw_few_shapes(patch, part=4):
    """Let the synthetic set have a quarter of its images, or another part, for speed."""
    draw = utils.draw_shapes
    patch.setattr(utils, "draw_shapes", lambda n, size, seed: draw(n // part, size, seed))


@pytest.fixture
def few_shapes(monkeypatch):
    draw_few_shapes(monkeypatch)


@pytest.fixture
def double():
    """Everything in float64, where rounding does not grow to something visible; other pictures, too."""
    torch.set_default_dtype(torch.float64)
    utils._scale_and_shift.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    utils._scale_and_shift.cache_clear()


@pytest.fixture
def no_sharpness(monkeypatch):
    """Searches end without a look at what is around the cell, which takes longer than they do."""
    monkeypatch.setattr(search, "sharpness_and_picture", lambda *args: None)


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A made-up table: the error grows with distance from one architecture, with some noise."""
    g = torch.Generator().manual_seed(0)
    ops = torch.tensor(list(itertools.product(range(5), repeat=6)))
    value = 90 - 10 * (ops != torch.tensor([3, 1, 3, 2, 3, 0])).sum(1) + torch.rand(len(ops), generator=g)
    other = (value + 5 * torch.rand(len(ops), generator=g)).tolist()
    path = tmp_path_factory.mktemp("table") / "t.csv"
    names = nasbench201_architectures()
    rows = [f"{name},{v:.4f},{o:.4f}" for name, v, o in zip(names, value.tolist(), other, strict=True)]
    path.write_text("\n".join(["arch,cifar10_valid_200,cifar100_test_200", *rows]) + "\n")
    return path


def do(script, flags="", *words):
    """Run a script in this process. flags: words with spaces between them; words: any others."""
    script.main(script.parse_args([*flags.split(), *map(str, words)]))


@pytest.fixture
def refused(capsys):
    """A function that runs a script in this process, as `do` does, and returns the one line of error with
    which it ends."""

    def run(script, flags="", *words, status=2, most=1000):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            utils.run(script.main, script.parse_args([*flags.split(), *map(str, words)]))
        error = capsys.readouterr().err
        assert stop.value.code == status and "error: " in error
        assert error.count("\n") == 1 and len(error) < most, error
        return error

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def outcome(folder):
    """A run's checkpoint, its metrics without times, and its result; None for a file that there is not."""
    paths = [os.path.join(folder, name) for name in ("checkpoint.pt", "metrics.csv", "result.json")]
    checkpoint, rows, result = (read(path) if os.path.exists(path) else None for path in paths)
    return Run(checkpoint, without_times(rows), without_times(result))


def check_same(whole, parts):
    """Checkpoints, metrics and results of two runs are the same to the bit, but for times and folders."""
    for name in whole.checkpoint.keys() - {"rows", "args"}:
        assert same(whole.checkpoint[name], parts.checkpoint[name]), name
    assert whole[1:] == parts[1:]


def read(path):
    """A file of a run: a checkpoint, a table, JSON, or bytes."""
    path = str(path)
    if path.endswith(".pt"):
        return torch.load(path, weights_only=True)
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".csv"):
        return list(csv.DictReader(content.decode().splitlines()))
    return json.loads(content) if path.endswith(".json") else content


def without_times(value):
    """A nested value without what may differ between runs: times, and the names of folders."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "save", "resume")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def same(a, b):
    """Equality to the bit of nested dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a, b, strict=True))
    return a == b


def tree(folder):
    """The contents of all files below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
