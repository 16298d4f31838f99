"""Bad input, as a user would give it: one line that names the cause, exit status 2, no traceback."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import search
import utils
from genotypes import SPACES, parse_architecture

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = (
    "--dataset shapes --image_size 8 --space nasbench201 --init_channels 2 --layers 1 "
    "--batch_size 496 --epochs 1 --sharpness_images 0"
)


def refused(capsys, *flags, script=search, most=600):
    """Run a script's own entry in this process; return its one line of error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        utils.run(script.main, script.parse_args([str(flag) for flag in flags]))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "error: " in error and len(error) < most
    return error


FLAGS = [
    ("--neighborhood -1", "--neighborhood -1 is out of range: it lies between 0 and 28"),
    ("--neighborhood 29", "between 0 and 28"),
    ("--space nasbench201 --neighborhood 7", "between 0 and 6"),
    ("--neighborhood one", "invalid int value: 'one'"),
    ("--neighbors 7", "--batch_size 64 cannot be cut into 7 equal groups"),
    ("--neighbors 0", "--neighbors 0 is out of range"),
    ("--neighbors 7 --neighbor_batch repeat --weight_step neighbors", "cannot be cut into 7"),
    ("--agg min", "invalid choice: 'min'"),
    ("--perturb swap", "invalid choice: 'swap'"),
    ("--weight_step both", "invalid choice"),
    ("--exact --space nasbench201 --neighbor_norm shared", "--neighbor_norm has no meaning with --exact"),
    ("--space nasnet", "invalid choice: 'nasnet'"),
    ("--dataset mnist", "invalid choice: 'mnist'"),
    ("--epochs 0", "--epochs 0 is out of range"),
    ("--batch_size 0", "--batch_size 0 is out of range"),
    ("--learning_rate nan", "--learning_rate nan is out of range"),
    ("--learning_rate 0.01 --learning_rate_min 0.02", "between 0 and 0.01"),
    ("--momentum 1", "--momentum 1.0 is out of range"),
    ("--train_portion 1", "--train_portion 1.0 is out of range"),
    ("--layers 2", "--layers 2 is out of range: it lies between 3"),
    ("--image_size 4", "--image_size 4 is out of range"),
    ("--seed -1", "--seed -1 is out of range"),
    ("--neighborhod 1", "unrecognized arguments: --neighborhod 1"),
    ("--resume one --save two", "leave --save out"),
    ("--device tpu9", "--device tpu9 is not to be had"),
]


@pytest.mark.parametrize("flags,message", FLAGS, ids=[flags for flags, _ in FLAGS])
def test_flags(capsys, flags, message):
    assert message in refused(capsys, *flags.split())


def test_neighbors_need_not_divide_the_batch_where_it_is_not_cut():
    assert search.parse_args("--neighbors 7 --neighbor_batch repeat".split()).neighbors == 7
    assert search.parse_args([]).neighbors == 16  # and whole neighborhoods where nothing is trained together
    assert search.parse_args("--algo ls --eval train".split()).neighbors == 0
    assert search.parse_args("--neighbors 7 --neighborhood 0".split()).neighbors == 7


def test_default_statistics_of_neighbors():
    for flags, norm in (
        ("", "shared"),
        ("--neighbor_batch repeat", "own"),
        ("--space nasbench201", "own"),
        ("--neighbor_norm own", "own"),
    ):
        assert search.parse_args(flags.split()).neighbor_norm == norm


def test_data_folders(capsys, tmp_path):
    flags = ["--dataset", "folder", "--save", tmp_path / "run", "--data"]
    assert f"there is no folder {tmp_path / 'none' / 'train'}" in refused(capsys, *flags, tmp_path / "none")
    os.makedirs(tmp_path / "empty" / "train")
    assert "no images in" in refused(capsys, *flags, tmp_path / "empty")
    os.makedirs(tmp_path / "hollow" / "train" / "cat")
    assert "no images in" in refused(capsys, *flags, tmp_path / "hollow")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_network_for_a_download(capsys, tmp_path, monkeypatch, name):
    """Whatever the machine's network, the download's own request fails as it does without one."""
    import urllib.error
    import urllib.request

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    error = refused(capsys, "--dataset", name, "--data", tmp_path, "--save", tmp_path / "run")
    assert f"{name} is not in {tmp_path} and could not be downloaded" in error and "--dataset folder" in error


def test_too_few_images(capsys):
    assert "do not fill a batch of 3200" in refused(capsys, "--quick", "--batch_size", 3200)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "done"
    search.main(search.parse_args([*TINY.split(), "--device", "cpu", "--save", str(folder)]))
    return folder


def test_resume_of_another_configuration(capsys, run):
    before = {name: (run / name).read_bytes() for name in os.listdir(run)}
    error = refused(capsys, *TINY.split(), "--resume", run, "--seed", 9, "--agg", "max")
    assert "another configuration" in error and "--agg max (there: mean), --seed 9 (there: 2)" in error
    assert "holds a run already" in refused(capsys, *TINY.split(), "--save", run)
    assert before == {name: (run / name).read_bytes() for name in os.listdir(run)}


def test_resume_with_fewer_epochs_than_done(capsys, tmp_path):
    flags = ["--device", "cpu"]
    search.main(search.parse_args([*TINY.split(), *flags, "--epochs", "2", "--save", str(tmp_path / "run")]))
    capsys.readouterr()
    error = refused(capsys, *TINY.split(), *flags, "--resume", tmp_path / "run")
    assert "--epochs 1 is less than the 2 that" in error


def test_resume_on_other_images(capsys, tmp_path):
    from PIL import Image

    for data, shade in (("one", 10), ("two", 90)):
        for name in ("cat", "dog"):
            os.makedirs(tmp_path / data / "train" / name)
            for k in range(6):
                Image.new("RGB", (8, 8), (shade + k, 0, 0)).save(
                    tmp_path / data / "train" / name / f"{k}.png"
                )
    flags = "--dataset folder --image_size 8 --space nasbench201 --init_channels 2 --layers 1 --epochs 1"
    flags = [*flags.split(), "--batch_size", "4", "--neighbors", "2", "--data", str(tmp_path / "one")]
    search.main(search.parse_args([*flags, "--save", str(tmp_path / "run")]))
    capsys.readouterr()
    flags[-1] = str(tmp_path / "two")
    assert "its images are not those of --data" in refused(capsys, *flags, "--resume", tmp_path / "run")
    os.remove(tmp_path / "two" / "train" / "cat" / "0.png")
    for k in range(1, 5):
        os.remove(tmp_path / "two" / "train" / "cat" / f"{k}.png")
    assert "the class cat has too few images" in refused(capsys, *flags, "--batch_size", 3, "--neighbors", 3)


def test_a_log_that_cannot_be_written(capsys, tmp_path):
    os.makedirs(tmp_path / "run" / "log.txt")
    assert "log.txt" in refused(capsys, *TINY.split(), "--save", tmp_path / "run")


def damage_cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_bit(path):
    """One bit of alpha, which torch.load takes without a word."""
    data = bytearray(path.read_bytes())
    alpha = torch.load(path, weights_only=True)["model"]["alpha"].numpy().tobytes()
    data[data.index(alpha) + 1] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "one bit": damage_bit,
    "old pickle": lambda path: path.write_text(".hello world"),
    "parts of other kinds": lambda path: torch.save({"args": [], "epoch": 1, "rows": []}, path),
    "empty": lambda path: path.write_bytes(b""),
    "cut": damage_cut,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "other data": lambda path: torch.save([1, 2], path),
    "parts missing": lambda path: torch.save(
        {name: value for name, value in torch.load(path, weights_only=True).items() if name != "model"}, path
    ),
    "code": lambda path: torch.save({"epoch": os.system}, path),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoint(capsys, run, tmp_path, kind):
    shutil.copytree(run, tmp_path / "copy")
    DAMAGE[kind](tmp_path / "copy" / "checkpoint.pt")
    error = refused(capsys, *TINY.split(), "--resume", tmp_path / "copy")
    assert "checkpoint" in error and (
        "start the run anew" in error or "--resume takes" in error or "is not a" in error
    )


def test_genotype_files(run, tmp_path):
    with pytest.raises(ValueError, match="architecture of the space nasbench201, not of darts"):
        parse_architecture(str(run), SPACES["darts"])
    data = json.loads((run / "genotype.json").read_text())
    data["arch"] = "|nor_conv_3x3~0|+|nor_conv3x3~0|none~1|+|none~0|none~1|none~2|"
    (tmp_path / "genotype.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="unknown operation 'nor_conv3x3': did you mean nor_conv_3x3"):
        parse_architecture(str(tmp_path))


def test_as_a_real_process(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "search.py"), "--resume", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and os.listdir(tmp_path) == []
    assert done.stderr.startswith("search.py: error: there is no checkpoint") and done.stderr.count("\n") == 1


BAD_GENOTYPES = [
    ([], "usage: genotypes.py ARCH"),
    (["DARTS_V2", "nasbench201"], "'DARTS_V2' is an architecture of the space darts, not of nasbench201"),
    (["genotype.json", "darts"], "an architecture of the space nasbench201, not of darts"),
    (["DARTS_V3"], "DARTS_V2"),
    (["|nor_conv3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|"], "did you mean nor_conv_3x3"),
]


@pytest.mark.parametrize("words,message", BAD_GENOTYPES, ids=[str(i) for i in range(len(BAD_GENOTYPES))])
def test_genotypes_as_a_real_process(run, words, message):
    command = [sys.executable, os.path.join(ROOT, "genotypes.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=run, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_genotypes_prints_what_a_search_found(run):
    command = [sys.executable, os.path.join(ROOT, "genotypes.py"), str(run), "nasbench201"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and parse_architecture(done.stdout) == parse_architecture(str(run))
