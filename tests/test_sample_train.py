"""RS, NA-RS, LS and NA-LS whose evaluations are trainings: search.py --eval train."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_bad_input import refused
from test_train import PARTED, ROOT, torchrun

import search
import train
import utils
from genotypes import SPACES, discrete_ops, from_indices, parse_architecture, random_architecture, to_indices
from neighborhood import ball_shifts, discrete_neighbors

TINY = (
    "--eval train --dataset shapes --image_size 8 --init_channels 2 --batch_size 300 --eval_epochs 2 "
    "--device cpu"
)
NB201 = f"--algo rs --space nasbench201 --layers 1 --neighbors 3 --budget 9 {TINY}"
DARTS = f"--algo rs --space darts --layers 3 --neighbors 2 --samples 2 {TINY}"


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """A quarter of the synthetic set, for speed."""
    draw = utils.draw_shapes
    monkeypatch.setattr(utils, "draw_shapes", lambda n, size, seed: draw(n // 4, size, seed))


def run(folder, flags, *more):
    """Run the script in this process; returns its evaluations, in order, and its result."""
    search.main(search.parse_args([*flags.split(), "--save", str(folder), *map(str, more)]))
    return outcome(folder)


def outcome(folder):
    with open(folder / "evaluations.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["arch", "shapes_valid_2"] and len(dict(rows)) == len(rows)  # none doubled
    assert not [name for name in os.listdir(folder) if name.startswith("evaluating-") or ".tmp" in name]
    return rows, json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", SPACES)
def test_indices_of_architectures(name):
    space, g = SPACES[name], torch.Generator().manual_seed(0)
    for _ in range(50):
        arch = random_architecture(space, g)
        assert from_indices(space, to_indices(arch)) == arch
    E, O = search.edge_count(space), len(discrete_ops(space))  # noqa: E741
    assert (E, O) == {"nasbench201": (6, 5), "darts": (16, 7)}[name]
    around = discrete_neighbors(to_indices(arch), ball_shifts(E, O, 1).tolist(), O)
    assert len({from_indices(space, a) for a in around}) == 1 + E * (O - 1)


def test_neighbors_of_a_genotype_change_one_operation_and_no_input():
    space = SPACES["darts"]
    arch = random_architecture(space, torch.Generator().manual_seed(1))
    pairs = arch.normal + arch.reduce
    for neighbor in discrete_neighbors(to_indices(arch), ball_shifts(16, 7, 1).tolist(), 7)[1:]:
        changed = from_indices(space, neighbor)
        assert parse_architecture(repr(changed)) == changed
        theirs = changed.normal + changed.reduce
        assert [source for _, source in theirs] == [source for _, source in pairs]
        assert sum(a != b for a, b in zip(theirs, pairs, strict=True)) == 1
        assert changed.normal_concat == changed.reduce_concat == (2, 3, 4, 5)


@pytest.mark.parametrize("flags", [NB201, DARTS], ids=["nasbench201", "darts"])
def test_an_evaluation_is_a_training_of_train_py(tmp_path, flags):
    rows, result = run(tmp_path / "search", flags)
    assert result["evaluations"] == len(rows) and result["algo"] == "NA-RS"
    found = dict(rows).get(result["arch"])  # of sampled neighbors the center need not be one
    assert result["columns"]["shapes_valid_2"]["mean"] == (found and float(found))
    arch, accuracy = rows[1]
    same = (
        "--dataset shapes --image_size 8 --init_channels 2 --batch_size 300 --epochs 2 --device cpu --seed 2"
    )
    layers = 1 if flags == NB201 else 3
    more = [
        "--arch",
        arch,
        "--save",
        str(tmp_path / "train"),
        "--valid_portion",
        "0.5",
        "--layers",
        str(layers),
    ]
    train.main(train.parse_args([*same.split(), *more]))
    with open(tmp_path / "train" / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["valid_top1"]) == float(accuracy)
    log = (tmp_path / "search" / "log.txt").read_text()
    assert f"{arch}: {float(accuracy):.2f} %, training loss {float(last['train_loss']):.4f}, " in log
    # The folder is what train.py --arch takes.
    assert parse_architecture(str(tmp_path / "search")) == parse_architecture(result["arch"])


def test_the_file_is_a_table(tmp_path):
    rows, _ = run(tmp_path / "search", NB201)
    table = utils.load_table(tmp_path / "search" / "evaluations.csv")
    found = search.accuracies(table, rows[0][0])
    assert found == {"shapes_valid_2": float(rows[0][1])}
    assert table["shapes_valid_2"].isfinite().sum() == len(rows)


@pytest.mark.parametrize("algo", ["rs", "ls"])
def test_an_interrupted_search_goes_on(tmp_path, monkeypatch, algo):
    """Stopped inside a training, between one and its line, and after a line of which a part is written."""
    flags = NB201.replace("--algo rs", f"--algo {algo}") + " --repeats 2"
    whole = run(tmp_path / "whole", flags)
    epoch, append = train.train_epoch, utils.append_evaluation
    calls = {"epochs": 0, "lines": 0}

    def counted_epoch(*args):
        calls["epochs"] += 1
        if calls["epochs"] == 6:  # the second of the third training
            raise KeyboardInterrupt
        return epoch(*args)

    def counted_append(path, arch, value):
        calls["lines"] += 1
        if calls["lines"] == 4:
            raise KeyboardInterrupt
        append(path, arch, value)
        if calls["lines"] == 6:
            with open(path, "a") as file:
                file.write("|nor_conv_3x3~0|+|no")
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_epoch", counted_epoch)
    monkeypatch.setattr(utils, "append_evaluation", counted_append)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(folder, flags)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search.main(search.parse_args(["--resume", str(folder)]))
    search.main(search.parse_args(["--resume", str(folder)]))
    parts = outcome(folder)
    assert parts == whole
    assert calls["epochs"] == 2 * len(whole[0]) + 1  # no epoch was trained twice, but for the one cut short


def test_a_real_kill(tmp_path):
    flags = [*NB201.split(), "--save", str(tmp_path / "run"), "--eval_epochs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, os.path.join(ROOT, "search.py")]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    process = subprocess.Popen([*command, *flags], **quiet)
    lines, deadline = b"", time.time() + 120
    while lines.count(b"\n") < 4 and time.time() < deadline:
        time.sleep(0.02)
        if (tmp_path / "run" / "evaluations.csv").exists():
            lines = (tmp_path / "run" / "evaluations.csv").read_bytes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (tmp_path / "run" / "evaluations.csv").read_bytes()
    assert before.count(b"\n") >= 4 and not (tmp_path / "run" / "result.json").exists()
    subprocess.run([*command, "--resume", str(tmp_path / "run")], check=True, timeout=300, **quiet)
    rows, result = outcome(tmp_path / "run")
    assert (tmp_path / "run" / "evaluations.csv").read_bytes().startswith(before)
    assert len(rows) == result["evaluations"] == 9


def test_a_larger_budget_goes_on(tmp_path):
    run(tmp_path / "one", NB201.replace("--budget 9", "--budget 6"))
    search.main(search.parse_args(["--resume", str(tmp_path / "one"), "--budget", "9"]))
    assert outcome(tmp_path / "one") == run(tmp_path / "two", NB201)


SHARED = """
import os
import search, utils
draw = utils.draw_shapes
utils.draw_shapes = lambda n, size, seed: draw(n // 4, size, seed)
trained = search.trained_accuracy
def noted(*args):
    with open("who", "a") as file:
        file.write(os.environ["RANK"] + "\\n")
    return trained(*args)
search.trained_accuracy = noted
utils.run(search.main, search.parse_args())
"""


def test_processes_share_the_work(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED + PARTED)
    flags = NB201.replace("--neighbors 3", "--neighborhood 0")  # a center alone: waves keep both busy
    rows, result = run(tmp_path / "alone", flags)
    done = torchrun(tmp_path, "shared.py", *flags.split(), "--save", tmp_path / "together")
    assert done.returncode == 0, done.stderr
    theirs, their_result = outcome(tmp_path / "together")
    assert sorted(theirs) == sorted(rows) and their_result == result
    who = (tmp_path / "who").read_text().split()
    assert len(who) == len(rows) and abs(who.count("0") - who.count("1")) <= 1
    log = (tmp_path / "together" / "log.txt").read_text()
    assert all(log.count(f"{arch}: ") == 1 for arch, _ in rows) and "2 x cpu" in log
    refusal = torchrun(tmp_path, "shared.py", "--quick")
    assert refusal.returncode != 0 and "torchrun shares the work of --eval train alone" in refusal.stderr


def test_processes_do_not_share_a_batch(monkeypatch):
    """So their number need not divide it; train.py's does."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    args = search.parse_args("--algo rs --eval train --space nasbench201".split())
    assert args.batch_size == 256 and search.training_args(args, "DARTS_V2").batch_size == 256
    with pytest.raises(SystemExit):
        train.parse_args("--arch DARTS_V2 --batch_size 256".split())


def test_a_training_that_diverges_counts_as_zero(tmp_path, capsys, monkeypatch):
    build, built = train.build, []

    def second_is_bad(*args):
        model, *rest = build(*args)
        if len(built) == 1:
            model.classifier.bias.data[0] = float("nan")
        built.append(model)
        return model, *rest

    monkeypatch.setattr(train, "build", second_is_bad)
    rows, result = run(tmp_path / "run", NB201, "--samples", 1, "--neighborhood", 1)
    assert [float(value) == 0 for _, value in rows] == [False, True, False]
    assert f"{rows[1][0]}: 0 %, since the loss is not finite at step 1 of epoch 1" in capsys.readouterr().out
    mean = sum(100 - float(value) for _, value in rows) / 3
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["score"]) == pytest.approx(mean)


FLAGS = [
    ("--eval train", "--eval trains what --algo rs and ls draw"),
    (f"{NB201} --bench T.csv", "leave one of them out"),
    (f"{NB201} --eval_epochs 0", "--eval_epochs 0 is out of range"),
    (f"{NB201} --train_portion 0.05", "--train_portion 0.05 is out of range"),
    (f"{NB201} --budget 2", "does not cover a neighborhood of 3"),
    (f"{NB201} --init_channels 1", "--init_channels 1 is out of range: it lies between 2"),
    (f"{DARTS} --neighborhood 17", "between 0 and 16"),
    (f"{DARTS} --neighborhood 5 --neighbors 0", "has 36,449,665 members in the space darts"),
    (f"{DARTS} --budget 96 --neighbors 0 --samples 1", "does not cover a neighborhood of 97"),
    (f"{NB201} --batch_size 700", "625 training images do not fill a batch of 700"),
    ("--algo rs --space darts", "--bench FILE --space nasbench201, or --eval train"),
]


@pytest.mark.parametrize("flags,message", FLAGS)
def test_flags(capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *flags.split())
    assert not os.listdir(tmp_path)


DAMAGE = {
    "": "it is empty",
    "arch,shapes_valid_12\n": "its columns are arch, shapes_valid_12",
    "arch,shapes_valid_2\n|none~0|,3\n": "is not a NAS-Bench-201 architecture",
    "arch,shapes_valid_2\nDARTS_V2,3.0\n": "of the space darts",
    "arch,shapes_valid_2\n{0},nan\n": "has no percentage",
    "arch,shapes_valid_2\n{0},101\n": "has no percentage",
    "arch,shapes_valid_2\n{0},1\n{0},1\n": "twice",
    "arch,shapes_valid_2\n{0}\n": "cannot be read",
}


def test_resuming_what_does_not_fit(capsys, tmp_path):
    rows, _ = run(tmp_path / "run", NB201)
    path = tmp_path / "run" / "evaluations.csv"
    good = path.read_bytes()
    for text, message in DAMAGE.items():
        path.write_text(text.format(rows[0][0]))
        damaged = path.read_bytes()
        assert message in refused(capsys, "--resume", tmp_path / "run"), text
        assert path.read_bytes() == damaged
    path.write_bytes(bytes(range(256)))
    assert "cannot be read" in refused(capsys, "--resume", tmp_path / "run")
    path.unlink()
    assert "cannot be read" in refused(capsys, "--resume", tmp_path / "run")
    path.write_bytes(good)
    for flags in (["--eval_epochs", "3"], ["--seed", "3"], ["--algo", "ls"], ["--init_channels", "4"]):
        assert "another configuration" in refused(capsys, "--resume", tmp_path / "run", *flags)
    assert "holds a run already" in refused(capsys, *NB201.split(), "--save", tmp_path / "run")
    assert path.read_bytes() == good
