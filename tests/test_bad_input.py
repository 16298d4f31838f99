"""Bad input, as a user would give it: one line that names cause and mend, exit status 2, no traceback, no
file changed or added. Tables have their own tests, and so has text that is to be an architecture."""

import json
import os
import shutil
import subprocess
import sys

import forks
import pytest
import torch
from conftest import NB201, ROOT, do, read, save_images, tree

import sample
import search
import train
from genotypes import parse_architecture

SMALL = "--dataset folder --data images --image_size 8 --init_channels 2 --layers 1 --epochs 1 --device cpu"
SEARCH = f"{SMALL} --space nasbench201 --batch_size 4 --neighbors 2"
TRAIN = f"{SMALL} --arch {NB201} --batch_size 4"
FILES = f"{SMALL} --dataset imagenet --image_size 64 --layers 3 --workers 0 --batch_size 4"
SCRIPTS = {"search": (search, SEARCH), "train": (train, TRAIN)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with images and a finished run of each script."""
    root = tmp_path_factory.mktemp("world")
    save_images(root / "images", count=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(search, "sharpness_and_picture", lambda *args: None)
        for name, (script, flags) in SCRIPTS.items():
            do(script, flags, "--save", name)
    return root


@pytest.fixture
def world(runs, tmp_path, monkeypatch):
    """A copy of that folder, in which the test runs."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SEARCH_FLAGS = [
    # Of the wrong kind, out of range, no choice, unknown
    ("--neighborhood one", "--neighborhood: invalid int value: 'one'; "),
    ("--neighborhood -1", "--neighborhood: -1 is out of range: it lies between 0 and 28"),
    ("--learning_rate nan", "--learning_rate: nan is out of range"),
    ("--agg min", "--agg: invalid choice: 'min'"),
    ("--neighborhod 1", "unrecognized arguments: --neighborhod 1"),
    ("--dataset shapes --device tpu9", "--device tpu9 is not available"),
    # Against each other
    ("--space nasbench201 --neighborhood 7", "the space nasbench201 has 6 edges"),
    ("--neighbors 7", "--batch_size 64 cannot be cut into 7 equal groups"),
    ("--layers 2", "a network of the darts space has at least 3"),
    ("--epochs 3 --arch_warmup 3", "--arch_warmup 3 leaves no architecture step in 3 epochs"),
    ("--agg max --relax dirichlet", "--agg max does nothing where a step evaluates one neighbor"),
    ("--unrolled --amp bf16", "--amp bf16 drowns the finite difference of --unrolled"),
    ("--bench T.csv --space darts", "give --space nasbench201"),
    ("--bench nowhere.csv", "no table could be read from nowhere.csv"),
    ("--quick --batch_size 3200", "do not fill a batch of 3200"),
]
TRAIN_FLAGS = [
    ("--drop_path_prob 1", "--drop_path_prob: 1 is out of range"),
    ("--seeds 1 1", "--seeds 1 1: give each seed once"),
    ("--arch images", "no genotype could be read from 'images/genotype.json': it does not exist"),
    ("--layers 2", "a network of such a cell has at least 3"),
    ("--dataset imagenet --image_size 32", "takes images of at least 64"),
    ("--dataset imagenet --cutout", "--cutout and --no-augment are for small images"),
    ("--batch_size 8 --accumulate 8", "cannot be cut into 8 equal pieces of two images or more"),
    ("--accumulate 7", "--batch_size 96 cannot be cut into 7 equal pieces"),
    ("--nesterov --momentum 0", "--nesterov needs a --momentum"),
    (f"--arch {NB201} --dataset imagenet", "takes small images"),
    (f"--arch {NB201} --auxiliary", "--auxiliary: a NAS-Bench-201 network has neither"),
    ("--eval", "give --resume FOLDER"),
    ("--dataset shapes --batch_size 5002", "do not fill a batch of 5002"),
    ("--dataset shapes --valid_portion 0.0001", "holds out none"),
]


@pytest.mark.parametrize(
    "script,flags,message",
    [(search, *case) for case in SEARCH_FLAGS] + [(train, *case) for case in TRAIN_FLAGS],
)
def test_flags(refused, tmp_path, monkeypatch, script, flags, message):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert message in refused(script, flags)
    assert sorted(tmp_path.rglob("*")) == before


def test_flags_that_follow_from_others():
    for flags, norm in (
        ("", "shared"),
        ("--neighbor_batch repeat", "own"),
        ("--space nasbench201", "own"),
        ("--bench T.csv", "own"),
        ("--neighbor_norm own", "own"),
    ):
        assert search.parse_args(flags.split()).neighbor_norm == norm
    # Neighbors need not divide a batch that is not cut.
    assert search.parse_args("--neighbors 7 --neighbor_batch repeat".split()).neighbors == 7
    assert search.parse_args("--neighbors 7 --neighborhood 0".split()).neighbors == 7
    assert search.parse_args("--learning_rate 1e-4".split()).learning_rate_min == 1e-4


IMAGES = {
    "no folder": (lambda root: shutil.rmtree(root / "train"), "there is no folder"),
    "an empty class": (lambda root: [p.unlink() for p in (root / "train/dark").iterdir()], "no images in"),
    "one class": (lambda root: shutil.rmtree(root / "train/dark"), "has one class, light: a classifier"),
    "noise": (
        lambda root: (root / "train/dark/3.png").write_bytes(bytes(range(256))),
        "train/dark/3.png is not an image that can be read",
    ),
}
TESTS = {  # seen by train.py alone
    "missing": (lambda root: shutil.rmtree(root / "val"), "there is no folder images/val"),
    "another class": (
        lambda root: os.rename(root / "val/dark", root / "val/fox"),
        "different classes (dark, fox in one of them alone): give both the same folders",
    ),
}


@pytest.mark.parametrize("kind", [*IMAGES, *TESTS])
def test_images(world, refused, kind):
    damage, message = (IMAGES | TESTS)[kind]
    damage(world / "images")
    readers = [(search, SEARCH)] if kind in IMAGES else []
    for i, (script, flags) in enumerate([*readers, (train, TRAIN), (train, FILES)]):
        assert message in refused(script, flags, "--save", f"new{i}")


def test_too_few_images(world, refused):
    shutil.rmtree(world / "images")
    save_images(world / "images", ("cat",), count=8)
    save_images(world / "images", ("dog",), count=1)
    few = "--batch_size 3 --neighbors 3"
    assert "the class dog has too few images" in refused(search, f"{SEARCH} {few}", "--save", "new")
    for flags in (TRAIN, FILES):
        error = refused(train, f"{flags} --batch_size 2 --valid_portion 0.6", "--save", "new")
        assert "leaves none of the class dog to train on" in error
    assert "do not fill a batch of 4" in refused(train, f"{TRAIN} --valid_portion 0.9", "--save", "new")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path):
    """Of a weight, which torch.load takes without a word."""
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["classifier.weight"].numpy().tobytes()
    data[data.index(weight) + 1] ^= 4
    path.write_bytes(data)


def changed(path, **parts):
    torch.save({**torch.load(path, weights_only=True), **parts}, path)


CHECKPOINTS = {
    "gone": (lambda path: path.unlink(), "there is no checkpoint"),
    "cut": (cut, "is damaged or not a checkpoint"),
    "one bit": (one_bit, "do not match their checksums"),
    "code": (lambda path: changed(path, more=os.system), "it is not all tensors and plain data"),
    "no model": (lambda path: changed(path, model={}), "the checkpoint does not fit this run"),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_damaged_checkpoints(world, refused, name, kind):
    damage, message = CHECKPOINTS[kind]
    damage(world / name / "checkpoint.pt")
    before = tree(world)
    for more in ("", "--eval") if name == "train" else ("",):
        error = refused(SCRIPTS[name][0], f"--resume {name} {more}")
        assert message in error and "start the run anew" in error
    assert tree(world) == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_damaged_flags(world, refused, name):
    path = world / name / "args.json"
    saved = json.loads(path.read_text())
    script = SCRIPTS[name][0]
    path.write_text(path.read_text()[:50])
    assert "args.json cannot be read" in refused(script, f"--resume {name}")
    path.write_text(json.dumps({**saved, "momentum": 7}))
    assert "another configuration: --momentum 7 (there: 0.9)" in refused(script, f"--resume {name}")
    path.write_text(json.dumps({**saved, "momentum": "7"}))
    assert "--momentum: 7 is out of range" in refused(script, f"--resume {name}")
    path.unlink()
    assert f"{name} is not a run folder: there is no args.json in it" in refused(script, f"--resume {name}")


def test_runs_of_another_kind(world, refused):
    before = tree(world)
    for name, (script, flags) in SCRIPTS.items():
        assert "holds a run already: choose another --save" in refused(script, flags, "--save", name)
        error = refused(script, f"--resume {name} --momentum 0.5 --seed 9")
        assert "another configuration: --momentum 0.5 (there: 0.9), --seed 9 (there: " in error
        assert "--epochs: 0 is out of range" in refused(script, f"--resume {name} --epochs 0")
        assert f"is a run of {name}.py, not of sample.py" in refused(sample, f"--resume {name}")
        error = refused(script, f"--resume {name}/checkpoint.pt")
        assert "checkpoint.pt is not a run folder: " in error
        assert "there is no checkpoint nowhere" in refused(script, "--resume nowhere")
        assert "--resume goes on in its own folder: leave --save out" in refused(
            script, f"--resume {name} --save two"
        )
    assert "give the folder of one seed" in refused(train, "--eval --resume train --seeds 0")
    assert "is a run of search.py, not of train.py" in refused(train, "--resume search")
    assert "is a run of train.py, not of search.py" in refused(search, "--resume train")
    assert tree(world) == before


def test_fewer_epochs_than_done(world, refused):
    for name, (script, _) in SCRIPTS.items():
        do(script, f"--resume {name} --epochs 2")
        before = tree(world)
        error = refused(script, f"--resume {name} --epochs 1")
        assert "--epochs 1 is less than the 2 that are done" in error and tree(world) == before


def test_places_that_cannot_be_written(world, refused):
    (world / "file").write_text("")
    os.makedirs(world / "new" / "log.txt")
    for script, flags in SCRIPTS.values():
        assert "file cannot be written" in refused(script, flags, "--save", "file")
        assert "log.txt cannot be written (Is a directory)" in refused(script, flags, "--save", "new")
        shutil.rmtree(world / "new")
        os.makedirs(world / "new" / "log.txt")


@pytest.mark.parametrize(
    "command,status,message",
    [
        ("search.py --epochs 0", 2, "search.py: error: argument --epochs: 0 is out of range"),
        ("train.py --resume nowhere", 2, "train.py: error: there is no checkpoint nowhere"),
        ("search.py --algo", 2, "search.py: error: argument --algo: expected one argument"),
        ("search.py --algo rs", 2, "search.py: error: give one evaluator: --bench FILE"),
        ("genotypes.py", 2, "genotypes.py: error: the following arguments are required: arch"),
        ("genotypes.py DARTS_V2 nasbench201", 2, "of the space darts, not of nasbench201"),
        ("genotypes.py search", 0, ""),
    ],
)
def test_scripts(world, command, status, message):
    before = tree(world)
    script, *flags = command.split()
    done = forks.run(script, *flags, cwd=world)
    assert (done.status, done.err.count("\n")) == (status, 1 if status else 0) and message in done.err
    if not status:
        assert parse_architecture(done.out) == parse_architecture("search")
    assert tree(world) == before


def test_a_process_that_is_not_forked(world):
    command = [sys.executable, os.path.join(ROOT, "search.py"), "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=world)
    forked = forks.run("search.py", "--epochs", "0", cwd=world)
    assert (done.returncode, done.stdout, done.stderr) == tuple(forked) and done.returncode == 2


def test_too_little_memory(world):
    """Half a gigabyte more than the process has is too little for what this asks for."""
    flags = f"{SEARCH} --save new --dataset shapes --image_size 1024 --batch_size 64".split()
    done = forks.run("search.py", *flags, cwd=world, before=["forks.little_memory", 2**29])
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    assert "out of memory" in done.err and "start anew with a smaller --batch_size" in done.err
    assert not (world / "new").exists()


def test_search_hands_over_to_sample(tmp_path, table):
    flags = ["--algo", "rs", "--bench", table, "--samples", 5, "--save"]
    for script in ("search.py", "sample.py"):
        done = forks.run(script, *flags, script, cwd=tmp_path)
        assert done.status == 0, done.err
    assert read(tmp_path / "search.py" / "result.json") == read(tmp_path / "sample.py" / "result.json")
