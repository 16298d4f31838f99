"""Runs that are killed, interrupted or out of disk: nothing that was saved is lost, and they go on to the
same result. `python experiments/sweep_kills.py` tries 30 moments, and `--every` all moments of writing."""

import os
import random
import re
import shlex
import signal
import subprocess
import time

import forks
import pytest
import sweep_kills
import torch
from conftest import read, save_images
from sweep_kills import COMMANDS

LONG = {name: command.replace("epochs 3", "epochs 1000") for name, command in COMMANDS.items()}
LONG["trained"] = COMMANDS["trained"].replace("--budget 8", "--budget 5000")
SIGNALS = pytest.mark.parametrize("number,status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with images, and the uninterrupted run of each command: moments of writing, seconds."""
    folder = tmp_path_factory.mktemp("kills")
    save_images(folder / "images")
    forks.run("genotypes.py", "DARTS_V2", cwd=folder)
    return folder, {name: sweep_kills.measure(folder, name) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(root, name):
    folder, whole = root
    g = random.Random(name)
    _, wrong = sweep_kills.try_moment(folder, name, g, "random", *whole[name], again=True)
    assert wrong == []


# Of a search: before anything is written; args.json half written; the first checkpoint half written, written
# and not renamed, renamed; a later one half written; the last moment. Of a local search by training: in the
# middle of a line of evaluations.csv, and the last moment.
@pytest.mark.parametrize(
    "name,place", [*(("search", at) for at in (1, 3, 7, 8, 9, 17, -1)), ("trained", 15), ("trained", -1)]
)
def test_killed_as_it_writes(root, name, place):
    folder, whole = root
    moments, seconds = whole[name]
    place = place if place > 0 else moments
    words, wrong = sweep_kills.try_moment(
        folder, name, None, f"writing-{place}", moments, seconds, place=place
    )
    assert wrong == [] and str(place) in words


HALF = [".lock", "args.json", "checkpoint.pt.tmp"]


def test_a_kill_leaves_the_file_before(root):
    """What the comparisons above rest on: the kill strikes with a temporary file half written."""
    folder, _ = root
    script, *flags = COMMANDS["search"].split()
    place = ["forks.kill_at_write", 7, str(folder / "moments")]
    done = forks.run(script, *flags, "--save", "half", cwd=folder, before=place)
    assert done.status == -9 and sorted(os.listdir(folder / "half")) == HALF
    half, whole = (folder / name for name in ("half/checkpoint.pt.tmp", "search-whole/checkpoint.pt"))
    assert 0 < half.stat().st_size < 0.8 * whole.stat().st_size
    done = forks.run(script, "--resume", "half", cwd=folder)
    assert done.status == 2 and "there is no checkpoint half/checkpoint.pt: " in done.err
    assert forks.run(script, *flags, "--save", "half", cwd=folder).status == 0
    assert sweep_kills.differences(folder / "search-whole", folder / "half") == []


def wait_for(path, text):
    end = time.monotonic() + 600
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"no {text} in {path}"
        time.sleep(0.01)


@SIGNALS
@pytest.mark.parametrize("name", ["search", "train", "seeds", "trained"])
def test_signals_end_a_run(root, name, number, status):
    """In the middle: what is left to do would take hours. Not of `files`, whose tiny epochs mostly start and
    stop worker processes: Python drops what a signal raises in the destructor that does so. It is sent again
    where a progress bar's destructor, of the tiny trainings of `trained`, has dropped it."""
    folder, _ = root
    script, *flags = LONG[name].split()
    save = f"{name} {status}"
    run = forks.Script(script, *flags, "--save", save, cwd=folder)
    last = folder / save / ("seed-3" if name == "seeds" else "")
    wait_for(last / "log.txt", "epoch 1:" if name != "trained" else "%, training loss")
    run.kill(number)
    while name == "trained" and not run.ended(30):
        run.kill(number)
    done = run.wait()
    assert done.status == status, done.err
    said = done.err[done.err.index(f"{script}: error") :] if name == "trained" else done.err
    line = re.fullmatch(
        rf"{script}: error: interrupted; last checkpoint: (.*); go on with: python {script} (--resume .*)\n",
        said,
    )
    assert line, done.err
    assert not list(folder.rglob(f"{save}/**/*.tmp"))
    if name == "trained":
        assert folder / line[1] == last / "evaluations.csv"
        return
    assert folder / line[1] == last / "checkpoint.pt"
    epoch = read(last / "checkpoint.pt")["epoch"]
    assert 1 <= epoch < 1000
    if name == "search":  # the command works as it is printed
        done = forks.run(script, *shlex.split(line[2]), "--epochs", epoch + 1, cwd=folder)
        assert done.status == 0, done.err


@SIGNALS
def test_a_signal_before_the_first_checkpoint(root, number, status):
    """Python is slow to start, so the moment is made: at the first look at the data."""
    folder, _ = root
    script, *flags = COMMANDS["train"].split()
    before = ["forks.signal_at_data", int(number)]
    done = forks.run(script, *flags, "--save", "early", cwd=folder, before=before)
    assert done.status == status and not (folder / "early").exists()
    assert done.err == (
        "train.py: error: interrupted; no checkpoint was written: give the same command again\n"
    )


def test_sigterm_under_torchrun(root):
    """It goes to the launcher, which hands it on to both processes: one line, from the first of them."""
    folder, _ = root
    script, *flags = LONG["train"].split()
    command = [*forks.TORCHRUN, os.path.join(forks.ROOT, script), *flags, "--save", "together"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    with subprocess.Popen(command, cwd=folder, **quiet) as process:
        wait_for(folder / "together" / "log.txt", "epoch 1:")
        process.terminate()
        errors = process.communicate(timeout=600)[1]
    assert process.returncode != 0
    assert errors.count("train.py: error: ") == 1 and "go on with: torchrun ... train.py --resume" in errors
    assert 'train.py", line' not in errors  # no traceback of ours; the launcher prints its own
    assert read(folder / "together" / "checkpoint.pt")["epoch"] >= 1
    assert not list((folder / "together").glob("*.tmp"))


@pytest.mark.parametrize("name,file", [("search", "checkpoint.pt"), ("train", "log.txt")])
def test_a_full_disk(root, name, file):
    """One line, the last good checkpoint and no piece of a file; with room again the run goes on."""
    folder, _ = root
    script, *flags = COMMANDS[name].split()
    save = f"{name}-full-{file}"
    size = ["forks.full_disk", file, 1]
    done = forks.run(script, *flags, "--save", save, cwd=folder, before=size)
    assert done.status == 2 and done.err == (
        f"{script}: error: {save}/{file} cannot be written (File too large): make room there, or lift "
        f"the limit on the size of files; last checkpoint: {save}/checkpoint.pt; go on with: python {script} "
        f"--resume {save}\n"
    )
    assert torch.load(folder / save / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert not list((folder / save).glob("*.tmp"))
    assert sweep_kills.go_on(folder, COMMANDS[name], save) == []
    assert sweep_kills.differences(folder / f"{name}-whole", folder / save) == []
