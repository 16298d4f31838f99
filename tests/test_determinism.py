"""Two runs of one command give the same files, byte for byte but for times and folders; another seed gives
others. And numbers: what is not finite stops a run, and small or lopsided sets are right or refused."""

import math
import re
from types import SimpleNamespace

import forks
import pytest
import torch
from conftest import NB201, do, read, same, save_images, without_times
from sweep_kills import COMMANDS, TINY

import search
import train
import utils

RUNS = {
    "search": COMMANDS["search"],
    "second order": COMMANDS["search"] + " --unrolled --cutout --weight_step neighbors",
    "train": COMMANDS["train"] + " --cutout",
    "cell": f"train.py {TINY} --arch DARTS_V1 --layers 3 --batch_size 16 --epochs 1 --drop_path_prob 0.3",
    "files": COMMANDS["files"],
    "trained": COMMANDS["trained"],
    "rs": "sample.py --bench t.csv --repeats 5 --algo rs --budget 60",
    "ls": "sample.py --bench t.csv --repeats 5 --algo ls --budget 60",
    "exact": "experiments/exact.py --bench t.csv --repeats 5 --steps 5",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("same")
    save_images(folder / "images", count=12)
    (folder / "t.csv").symlink_to(table)
    return folder


def files(root, name, *more):
    """The files of a run, as bytes without times and without the folder's name."""
    script, *flags = RUNS[name].split()
    save = f"{name} {len(list(root.iterdir()))}"
    done = forks.run(script, *flags, *more, "--save", save, cwd=root)
    assert done.status == 0 and done.err == "", done.err
    found = {}
    for path in (root / save).iterdir():
        if path.suffix in (".pt", ".csv"):
            found[path.name] = without_times(read(path))
            continue
        data = re.sub(f"'?{save}'?".encode(), b"FOLDER", path.read_bytes())
        data = re.sub(rb"[\d.]+ s\n", b"TIME s\n", data)  # the log
        found[path.name] = re.sub(rb'"seconds": [\d.]+', b'"seconds": TIME', data)  # result.json
    return found


@pytest.mark.parametrize("name", RUNS)
def test_one_seed_one_result(root, name):
    first, second, other = files(root, name), files(root, name), files(root, name, "--seed", 77)
    assert first.keys() == second.keys() == other.keys()
    for file in first:
        assert same(first[file], second[file]), file
    assert first["metrics.csv"] != other["metrics.csv"]
    if "checkpoint.pt" in first:
        assert not same(first["checkpoint.pt"]["model"], other["checkpoint.pt"]["model"])
        assert re.search(rb"\b1 threads\b", first["log.txt"])  # all that a CPU's result may depend on


# ------------------------------------------------------------------------------------------------------------
# Numbers
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_training(root, amp, bad):
    """From the first batch of the second epoch on the images are not finite, and so is the loss."""
    script, *flags = COMMANDS["train"].split()
    save = f"{amp}-{bad}"
    before = ["forks.bad_images_after", 1, bad]
    done = forks.run(script, *flags, "--amp", amp, "--save", save, cwd=root, before=before)
    assert done.status == 1 and done.err == (
        "train.py: error: the loss is not finite at step 1 of epoch 2, learning rate 0.075; last good "
        f"checkpoint: {save}/checkpoint.pt\n"
    )
    check_good(root / save / "checkpoint.pt", 1)


def test_a_loss_that_is_not_finite_stops_a_search(root):
    script, *flags = COMMANDS["search"].split()
    before = ["forks.bad_images_after", 1, "nan"]
    done = forks.run(script, *flags, "--save", "search-nan", cwd=root, before=before)
    assert done.status == 1 and "not finite at step 1 of epoch 2, learning rate 0.019" in done.err
    assert done.err.endswith("last good checkpoint: search-nan/checkpoint.pt\n") and done.err.count("\n") == 1
    check_good(root / "search-nan" / "checkpoint.pt", 1)


def check_good(path, epoch):
    checkpoint = read(path)
    assert checkpoint["epoch"] == epoch
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_a_scaler_skips_steps_whose_gradients_overflow(root):
    """Under fp16 with a scale that is far too large the loss is finite and the gradients are not: the steps
    are left out, the scale falls, and training goes on with finite weights."""
    script, *flags = COMMANDS["train"].split()
    before = ["forks.large_scale", 2.0**40]
    done = forks.run(script, *flags, "--amp", "fp16", "--save", "scaled", cwd=root, before=before)
    assert done.status == 0, done.err
    check_good(root / "scaled" / "checkpoint.pt", 3)
    assert 0 < read(root / "scaled" / "checkpoint.pt")["scaler"]["scale"] < 2.0**40
    assert all(math.isfinite(float(row["train_loss"])) for row in read(root / "scaled" / "metrics.csv"))


def numbers(path):
    return [float(value) for row in read(path) for name, value in row.items() if name != "genotype"]


SMALL = "--dataset folder --image_size 8 --init_channels 2 --epochs 1 --device cpu"


@pytest.mark.parametrize(
    "script,flags",
    [
        # A batch of one, and of one for each neighbor
        (search, "--space nasbench201 --layers 1 --batch_size 1 --neighbors 1"),
        (search, "--space nasbench201 --layers 1 --batch_size 4 --neighbors 4"),
        (search, "--space darts --layers 3 --batch_size 1 --neighbors 1"),
        # The least that batch norm takes, with an auxiliary head and without
        (train, f"--arch {NB201} --layers 1 --batch_size 2"),
        (train, "--arch DARTS_V2 --layers 3 --batch_size 2 --auxiliary"),
        # Test images of which the last batch has one alone, and a held-out part of one image
        (train, f"--arch {NB201} --layers 1 --batch_size 3"),
        (train, f"--arch {NB201} --layers 1 --batch_size 2 --valid_portion 0.2"),
    ],
)
def test_small_batches_give_finite_numbers(tmp_path, no_sharpness, capsys, script, flags):
    save_images(tmp_path / "images", count=4)
    do(script, f"{SMALL} {flags}", "--data", tmp_path / "images", "--save", tmp_path / "run")
    found = numbers(tmp_path / "run" / "metrics.csv")
    assert len(found) >= 8 and all(map(math.isfinite, found)) and capsys.readouterr().err == ""
    check_good(tmp_path / "run" / "checkpoint.pt", 1)


def test_one_image_a_class(tmp_path, refused):
    """Training can do with that, and a search cannot, which wants a half of each class."""
    save_images(tmp_path / "images", count=1)
    flags, more = f"{SMALL} --layers 1 --data {tmp_path / 'images'}", ["--save", tmp_path / "run"]
    do(train, f"{flags} --arch {NB201} --batch_size 2", *more)
    assert all(map(math.isfinite, numbers(tmp_path / "run" / "metrics.csv")))
    more[1] = tmp_path / "other"
    error = refused(search, f"{flags} --space nasbench201 --neighbors 1 --batch_size 1", *more)
    assert "do not fill a batch of 1" in error


def test_a_share_without_images(tmp_path, monkeypatch):
    """Of two processes that share one image the second has none, and reports what the first one does."""
    save_images(tmp_path / "images", count=1)
    images, labels, _ = utils.load_images("folder", tmp_path / "images", 8)
    norm = dict(mean=torch.zeros(3), std=torch.ones(3))
    network = train.NETWORKS["nasbench201"](2, 2, 1, False, NB201)
    data = utils.image_folder(tmp_path / "images" / "train", train.imagenet_transform(8, train=False))
    for kind in "memory", "files":
        totals, scores = [], []
        for index in [torch.arange(1)[slice(rank, None, 2)] for rank in range(2)]:
            batches = utils.InOrder(images, labels, index, 4, **norm)
            if kind == "files":
                batches = train.FileBatches(data, index, 4, 0, torch.device("cpu"), **norm)

            def add(total, totals=totals):
                """What the exchange does, once both have their sums."""
                totals.append(total.clone())
                total.copy_(sum(totals))

            monkeypatch.setattr(train, "dist", SimpleNamespace(all_reduce=add))
            scores.append(train.evaluate(network, batches, train.nullcontext, world=2))
        assert totals[1].tolist() == [0, 0, 0, 0] and scores[0] == scores[1]
        assert all(map(math.isfinite, scores[0].values()))
