"""Runs that meet in one folder, that are resumed with other data, in odd places and in threads."""

import os
import re
import shutil
import signal
import threading
from argparse import Namespace

import pytest
from conftest import NB201, do, outcome, save_images, tree

import sample
import search
import train
import utils

SMALL = "--dataset folder --data images --image_size 8 --init_channels 2 --layers 1 --epochs 1 --device cpu"
SEARCH = f"{SMALL} --space nasbench201 --batch_size 4 --neighbors 2"
TRAIN = f"{SMALL} --arch {NB201} --batch_size 4"
SAMPLE = "--algo rs --neighborhood 0 --space nasbench201 --eval"
TRAINED = f"{SAMPLE} train --budget 2 {SMALL} --batch_size 4"
SUPERNET = f"{SAMPLE} supernet --budget 2 {SMALL} --batch_size 4 --accumulate 2"
SCRIPTS = dict(
    search=(search, SEARCH), train=(train, TRAIN), trained=(sample, TRAINED), supernet=(sample, SUPERNET)
)


@pytest.fixture
def here(tmp_path, monkeypatch, no_sharpness):
    """A folder with images, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images", count=5)
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_runs_in_one_folder(here, monkeypatch, refused, name):
    """The second is refused before data are read, and changes nothing."""
    script, flags = SCRIPTS[name]
    monkeypatch.setattr(utils, "load_images", None)
    with utils.claimed("r"):
        utils.RunFolder("r", Namespace(**vars(script.parse_args(flags.split()))))
        before = tree(here)
        assert "r holds a run already, which is going on" in refused(script, flags, "--save", "r")
        assert "r holds a run already, which is going on" in refused(script, "--resume r")
        assert tree(here) == before


def test_each_seed_has_a_claim(here, refused):
    do(train, f"{TRAIN} --seeds 1 2 --save r")
    with utils.claimed("r/seed-2", "r/seed-2"):
        error = refused(train, "--resume r --epochs 2 --seeds 1 2")
    assert "r/seed-2 holds a run already, which is going on: wait for it" in error
    assert len(outcome("r/seed-1").rows) == 2 and len(outcome("r/seed-2").rows) == 1


def test_a_claim_ends_with_a_kill(tmp_path):
    """Even where a process that it has forked, as a DataLoader does, lives on."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with utils.claimed(tmp_path / "r"):
            if worker := os.fork():
                os.write(writing, str(worker).encode())
            signal.pause()
        os._exit(1)
    worker = int(os.read(reading, 20))
    try:
        with pytest.raises(utils.BadInput, match="is going on"), utils.claimed(tmp_path / "r"):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.kill(worker, 0)  # there still
        with utils.claimed(tmp_path / "r"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_is_not_filled_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "new" / "run", tmp_path / "mine"):
        with pytest.raises(utils.BadInput, match="bad"), utils.claimed(path):
            utils.RunFolder(path, Namespace(x=1))
            raise utils.BadInput("bad")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with utils.claimed(tmp_path / "mine"):
        utils.RunFolder(tmp_path / "mine", Namespace(x=1)).log("begun")
    assert (tmp_path / "mine" / "log.txt").exists()


@pytest.mark.parametrize("name,part", [*((name, "train") for name in SCRIPTS), ("train", "val")])
def test_resume_on_other_images(here, refused, name, part):
    script, flags = SCRIPTS[name]
    do(script, f"{flags} --save r")
    shutil.copyfile("images/train/light/4.png", f"images/{part}/dark/0.png")
    before = tree(here)
    error = refused(script, "--resume r", "--budget" if script is sample else "--epochs", 3)
    assert "images are not those of --data" in error or "images has other images than the run r" in error
    assert tree(here) == before


def test_resume_on_other_files(here, refused):
    """Of large images, which are read as it goes, the names are compared."""
    flags = f"{SMALL} --dataset imagenet --image_size 64 --layers 3 --workers 0 --batch_size 4 --no-auxiliary"
    do(train, f"{flags} --save r")
    os.remove("images/val/dark/0.png")
    assert "its images are not those of --data" in refused(train, "--resume r --epochs 2")


@pytest.mark.parametrize("name", SCRIPTS)
def test_paths_that_are_not_utf8(here, capsys, name):
    script, flags = SCRIPTS[name]
    odd = os.fsdecode(b"r\xe9\xff")
    try:
        os.rename("images", odd)
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    utils.run(script.main, script.parse_args([*flags.split(), "--data", odd, "--save", f"{odd}.run"]))
    longer = "--budget" if script is sample else "--epochs"
    utils.run(script.main, script.parse_args(["--resume", f"{odd}.run", longer, "3"]))
    assert "r??.run" in open(f"{odd}.run/log.txt", encoding="utf-8").read()
    assert "r??.run" in capsys.readouterr().out


def test_a_run_in_a_thread(here):
    """As in a notebook or a web tool; of the signals of the process it changes nothing."""
    handler = signal.getsignal(signal.SIGTERM)
    args = train.parse_args(f"{TRAIN} --save r".split())
    thread = threading.Thread(target=utils.run, args=(train.main, args))
    thread.start()
    thread.join()
    assert outcome("r").result and signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("name, lines", [("search", 1), ("train", 4), ("trained", 0)])
def test_without_a_terminal_losses_are_printed(here, capsys, name, lines):
    """At each look but the last of an epoch, whose line follows; not for each of many trainings."""
    script, flags = SCRIPTS[name]
    do(script, f"{flags.replace('--batch_size 4', '--batch_size 2')} --report_freq 1 --save run")
    printed = [line for line in capsys.readouterr().out.splitlines() if ", step " in line]
    assert len(printed) == lines
    assert all(
        re.match(r"epoch 1, learning rate [\d.]+, step \d+ of \d+: (weight_)?loss \d", x) for x in printed
    )


def test_too_little_shared_memory(here, refused, monkeypatch):
    """As Docker gives it to the workers that read image files."""

    def ends(loader):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        )

    monkeypatch.setattr(train.DataLoader, "__iter__", ends)
    flags = f"{SMALL} --dataset imagenet --image_size 64 --layers 3 --batch_size 4 --no-auxiliary --save run"
    message = refused(train, flags)
    assert "too little shared memory for --workers" in message
