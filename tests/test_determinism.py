"""Two runs of one command give the same files, byte for byte but for times and folders; another seed gives
others. And numbers: what is not finite stops a run, and small or lopsided sets are right or refused."""

import math
import re

import forks
import pytest
from conftest import NB201, do, read, same, save_images, without_times
from sweep_kills import COMMANDS, TINY

import search
import train

RUNS = {
    "search": COMMANDS["search"],
    "second order": COMMANDS["search"] + " --unrolled --cutout --weight_step neighbors",
    "cell": f"train.py {TINY} --arch DARTS_V1 --layers 3 --batch_size 16 --epochs 1 --drop_path_prob 0.3",
    "files": COMMANDS["files"],
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


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_training(root, amp, bad):
    """From the first batch of the second epoch on the images are not finite, and so is the loss."""
    script, *flags = COMMANDS["train"].split()
    save = f"{amp}-{bad}"
    before = ["forks.bad_images_after", 1, bad]
    done = forks.run(script, *flags, "--amp", amp, "--save", save, cwd=root, before=before)
    assert done.status == 1 and done.err == (
        "train.py: error: the loss is not finite at step 1 of epoch 2, learning rate 0.075; last good: "
        f"{save}/checkpoint.pt\n"
    )
    check_good(root / save / "checkpoint.pt", 1)


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
