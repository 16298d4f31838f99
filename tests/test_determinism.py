"""Two runs of one command give the same files, byte for byte but for times and folders; another seed gives
others; the number of processes that read images changes nothing. And numbers: what is not finite stops a run,
and small or lopsided sets are right or refused."""

import json
import math
import re
from types import SimpleNamespace

import forks
import pytest
import sweep_kills
import torch
from sweep_kills import COMMANDS, NB201, TINY
from test_hostile import save_images

import train
import utils

TABLE = "search.py --space nasbench201 --bench t.csv --repeats 5 --algo"
RUNS = {
    "search": COMMANDS["search"],
    "second order": COMMANDS["search"] + " --unrolled --cutout --weight_step neighbors",
    "train": COMMANDS["train"] + " --cutout",
    "cell": f"train.py {TINY} --arch DARTS_V1 --layers 3 --batch_size 16 --epochs 1 --drop_path_prob 0.3",
    "files": COMMANDS["files"],
    "trained": COMMANDS["trained"],
    "rs": f"{TABLE} rs --budget 60",
    "ls": f"{TABLE} ls --budget 60",
    "exact": f"{TABLE} darts --exact --steps 5",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    sweep_kills.save_images(folder / "images", count=12)
    names = utils.nasbench201_architectures()
    rows = [f"{name},{(i * 7919) % 10007 / 101!r}" for i, name in enumerate(names)]
    (folder / "t.csv").write_text("\n".join(["arch,cifar10_valid_200", *rows]) + "\n")
    return folder


def files(root, name, *more):
    """The files of a run, as bytes without times and without the folder's name."""
    script, *flags = RUNS[name].split()
    save = f"{name} {len(list(root.iterdir()))}"
    done = forks.run(script, *flags, *more, "--save", save, cwd=root)
    assert done.status == 0 and done.err == "", done.err
    found = {}
    for path in (root / save).iterdir():
        data = path.read_bytes()
        if path.suffix == ".pt":
            continue
        data = data.replace(save.encode(), b"FOLDER").replace(f"'{save}'".encode(), b"FOLDER")
        data = re.sub(rb"[\d.]+ s\n", b"TIME s\n", data)  # the log
        data = re.sub(rb'"seconds": [\d.]+', b'"seconds": TIME', data)  # result.json
        if path.suffix == ".csv":
            place = data.split(b"\n")[0].split(b",").index(b"seconds") if b"seconds" in data else None
            lines = [line.split(b",") for line in data.split(b"\n")]
            data = b"\n".join(b",".join(line[:place] + line[place:][1:]) for line in lines)
        found[path.name] = data
    checkpoint = root / save / "checkpoint.pt"
    if checkpoint.exists():
        found["checkpoint.pt"] = sweep_kills.without_times(torch.load(checkpoint, weights_only=True))
    return found


@pytest.mark.parametrize("name", RUNS)
def test_one_seed_one_result(root, name):
    first, second, other = files(root, name), files(root, name), files(root, name, "--seed", 77)
    assert first.keys() == second.keys() == other.keys()
    for file in first:
        assert sweep_kills.same(first[file], second[file]), file
    assert first["metrics.csv"] != other["metrics.csv"]
    if "checkpoint.pt" in first:
        assert not sweep_kills.same(first["checkpoint.pt"]["model"], other["checkpoint.pt"]["model"])
    assert re.search(rb"\b1 threads\b", first["log.txt"])  # the only thing that a CPU's result may depend on


def test_the_number_of_workers_changes_nothing(root):
    alone, shared = (files(root, "files", "--workers", workers) for workers in (0, min(2, utils.cores())))
    assert alone.keys() == shared.keys()
    for name in alone.keys() - {"args.json", "checkpoint.pt"}:
        assert alone[name] == shared[name], name
    args = [json.loads(one["args.json"]) for one in (alone, shared)]
    assert {key for key in args[0] if args[0][key] != args[1][key]} == {"workers"}
    for part in alone["checkpoint.pt"].keys() - {"args"}:
        assert sweep_kills.same(alone["checkpoint.pt"][part], shared["checkpoint.pt"][part]), part


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
    checkpoint = torch.load(path, weights_only=True)
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
    scale = torch.load(root / "scaled" / "checkpoint.pt", weights_only=True)["scaler"]["scale"]
    assert 0 < scale < 2.0**40
    rows = sweep_kills.read(root / "scaled" / "metrics.csv")
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)


def numbers(path):
    return [
        float(value) for row in sweep_kills.read(path) for name, value in row.items() if name != "genotype"
    ]


@pytest.mark.parametrize(
    "command",
    [
        # A batch of one, and of one for each neighbor
        "search.py --space nasbench201 --layers 1 --batch_size 1 --neighbors 1",
        "search.py --space nasbench201 --layers 1 --batch_size 4 --neighbors 4",
        "search.py --space darts --layers 3 --batch_size 1 --neighbors 1",
        # The least that batch norm takes, with an auxiliary head and without
        f"train.py --arch {NB201} --layers 1 --batch_size 2",
        "train.py --arch DARTS_V2 --layers 3 --batch_size 2 --auxiliary",
        # Test images of which the last batch has one alone, and a held-out part of one image
        f"train.py --arch {NB201} --layers 1 --batch_size 3",
        f"train.py --arch {NB201} --layers 1 --batch_size 2 --valid_portion 0.2",
    ],
)
def test_small_batches_give_finite_numbers(tmp_path, command):
    save_images(tmp_path / "images", count=4)
    script, *flags = command.split()
    flags += "--dataset folder --data images --image_size 8 --init_channels 2 --epochs 1 --device cpu".split()
    done = forks.run(script, *flags, "--save", "run", cwd=tmp_path)
    assert done.status == 0 and done.err == "", done.err
    found = numbers(tmp_path / "run" / "metrics.csv")
    assert len(found) >= 8 and all(map(math.isfinite, found))
    check_good(tmp_path / "run" / "checkpoint.pt", 1)


def test_one_image_a_class(tmp_path):
    """Training can do with that, and a search cannot, which wants a half of each class."""
    save_images(tmp_path / "images", count=1)
    more = "--dataset folder --data images --image_size 8 --init_channels 2 --epochs 1 --device cpu"
    flags = [*more.split(), "--layers", 1, "--save", "run"]
    done = forks.run("train.py", *flags, "--arch", NB201, "--batch_size", 2, cwd=tmp_path)
    assert done.status == 0 and all(map(math.isfinite, numbers(tmp_path / "run" / "metrics.csv")))
    flags[-1] = "other"
    space = ["--space", "nasbench201", "--neighbors", 1]
    done = forks.run("search.py", *flags, *space, "--batch_size", 1, cwd=tmp_path)
    assert done.status == 2 and "do not fill a batch of 1" in done.err


def test_a_share_without_images(tmp_path, monkeypatch):
    """Of two processes that share one image the second has none, and reports what the first one does."""
    save_images(tmp_path / "images", count=1)
    images, labels, _ = utils.load_images("folder", tmp_path / "images", 8)
    norm = dict(mean=torch.zeros(3), std=torch.ones(3))
    network = train.NETWORKS["nasbench201"](2, 2, 1, False, NB201)
    files = utils.ImageFiles(tmp_path / "images" / "train", 8, train=False)
    for kind in "memory", "files":
        shares, totals = [torch.arange(1)[slice(rank, None, 2)] for rank in range(2)], []
        for index in shares:
            batches = utils.InOrder(images, labels, index, 4, **norm)
            if kind == "files":
                batches = utils.FilesInOrder(files, index, 4, 0, torch.device("cpu"), **norm)

            def add(total, totals=totals):
                """What the exchange does, once both have their sums."""
                totals.append(total.clone())
                total.copy_(sum(totals))

            monkeypatch.setattr(train, "dist", SimpleNamespace(all_reduce=add))
            scores = train.evaluate(network, batches, train.nullcontext, world=2)
            if index is shares[0]:
                alone = scores
        assert totals[1].tolist() == [0, 0, 0, 0] and scores == alone
        assert all(map(math.isfinite, scores.values()))


# ------------------------------------------------------------------------------------------------------------
# Long runs, in short
# ------------------------------------------------------------------------------------------------------------


def test_a_longer_search_keeps_its_files_in_order(tmp_path):
    done = forks.run("tests/long_run.py", "--epochs", 15, "--save", "run", cwd=tmp_path)
    assert done.status == 0 and done.out.endswith("; all right\n"), done
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(tmp_path / "run" / "metrics.csv")
    assert len(table) == 15 and table["epoch"].tolist() == list(range(1, 16))
    assert not table.isna().any().any() and table["weight_loss"].dtype == float
