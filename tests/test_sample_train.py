"""RS, NA-RS, LS and NA-LS whose evaluations are trainings: sample.py --eval train."""

import builtins
import shlex

import pytest
import torch
from conftest import do, outcome, read
from forks import PARTED, torchrun

import sample
import train
from genotypes import SPACES, from_indices, parse_architecture, random_architecture, to_indices
from neighborhood import ball_shifts, discrete_neighbors

pytestmark = pytest.mark.usefixtures("few_shapes")
TINY = (
    "--eval train --dataset shapes --image_size 8 --init_channels 2 --batch_size 300 --epochs 2 --device cpu"
)
NB201 = f"--algo rs --space nasbench201 --layers 1 --neighbors 3 --budget 9 {TINY}"
DARTS = f"--algo rs --space darts --layers 3 --neighbors 2 --samples 2 {TINY}"


def run(folder, flags, *more):
    do(sample, flags, "--save", folder, *more)
    return evaluations(folder)


def evaluations(folder):
    """The evaluations of a search, in order: (architecture, accuracy) as text; and its result."""
    rows = [tuple(row.values()) for row in read(folder / "evaluations.csv")]
    assert list(read(folder / "evaluations.csv")[0]) == ["arch", "shapes_valid_2"]
    assert len(dict(rows)) == len(rows)  # none doubled
    return rows, outcome(folder).result


def test_neighbors_of_a_genotype_change_one_operation_and_no_input():
    space = SPACES["darts"]
    arch = random_architecture(space, torch.Generator().manual_seed(1))
    pairs = arch.normal + arch.reduce
    for neighbor in discrete_neighbors(to_indices(arch), ball_shifts(16, 7, 1), 7)[1:]:
        changed = from_indices(space, neighbor)
        assert parse_architecture(repr(changed)) == changed
        theirs = changed.normal + changed.reduce
        assert [source for _, source in theirs] == [source for _, source in pairs]
        assert sum(a != b for a, b in zip(theirs, pairs, strict=True)) == 1
        assert changed.normal_concat == changed.reduce_concat == (2, 3, 4, 5)


@pytest.mark.parametrize("flags", [f"{NB201} --accumulate 2", DARTS], ids=["nasbench201", "darts"])
def test_an_evaluation_is_a_training_of_train_py(tmp_path, flags):
    rows, result = run(tmp_path / "a search", flags)
    assert result["evaluations"] == len(rows) and result["algo"] == "NA-RS"
    found = dict(rows).get(result["arch"])  # of sampled neighbors the center need not be one
    assert result["columns"]["shapes_valid_2"]["mean"] == (found and float(found))
    arch, accuracy = rows[1]
    words = ["--arch", arch, "--save", tmp_path / "train", *flags[flags.index("--layers") :].split()[:2]]
    cut = "--accumulate 2" if "accumulate" in flags else ""
    do(train, f"{TINY.removeprefix('--eval train')} {cut} --seed 2 --valid_portion 0.5", *words)
    last = outcome(tmp_path / "train").rows[-1]
    assert float(last["valid_top1"]) == float(accuracy)
    log = (tmp_path / "a search" / "log.txt").read_text()
    assert f"{arch}: {float(accuracy):.2f} %, training loss {float(last['train_loss']):.4f}, " in log
    assert ", 0.0 s" not in log
    # The command that it prints trains what was found, on the same images.
    [command] = [line.partition("train it with: ")[2] for line in log.splitlines() if "train it with" in line]
    args = train.parse_args(shlex.split(command)[2:])
    assert parse_architecture(args.arch) == parse_architecture(result["arch"])
    assert (args.dataset, args.image_size) == ("shapes", 8)


def test_all_other_flags_are_those_of_train_py(refused):
    args = sample.parse_args("--eval train --space nasbench201".split())
    flags = sample.training_args(args)
    assert (flags.epochs, flags.valid_portion) == (12, 0.5)
    assert (flags.batch_size, flags.learning_rate, flags.nesterov) == (256, 0.1, True)  # the space's recipe
    words = "--epochs 40 --valid_portion 0.2 --schedule linear --label_smooth 0.1 --no-cutout --seed 5"
    flags = sample.training_args(sample.parse_args(f"--eval train --space darts {words}".split()))
    assert (flags.epochs, flags.valid_portion, flags.schedule) == (40, 0.2, "linear")
    assert (flags.label_smooth, flags.cutout, flags.seed, flags.init_channels) == (0.1, False, 5, 36)
    assert "--arch: a search draws" in refused(sample, "--eval train --arch DARTS_V2")
    assert "unrecognized arguments: --epoch 40" in refused(sample, "--eval train --epoch 40")
    assert "unrecognized arguments: --epochs 40" in refused(sample, "--bench T.csv --epochs 40")


@pytest.mark.parametrize("algo", ["rs", "ls"])
def test_an_interrupted_search_goes_on(tmp_path, monkeypatch, algo):
    """Stopped inside a training, between one and its line, and where a part of a line is written."""
    flags = NB201.replace("--algo rs", f"--algo {algo}") + " --repeats 2"
    whole = run(tmp_path / "whole", flags)
    epoch, calls = train.train_epoch, {"epochs": 0, "lines": 0}

    def counted_epoch(*args):
        calls["epochs"] += 1
        if calls["epochs"] == 6:  # the second of the third training
            raise KeyboardInterrupt
        return epoch(*args)

    def counted_open(path, mode="r", **more):
        file = builtins.open(path, mode, **more)
        if mode == "a" and str(path).endswith("evaluations.csv"):
            calls["lines"] += 1
            if calls["lines"] == 4:
                raise KeyboardInterrupt
            if calls["lines"] == 6:
                file.write("|nor_conv_3x3~0|+|no")
                file.close()
                raise KeyboardInterrupt
        return file

    monkeypatch.setattr(train, "train_epoch", counted_epoch)
    monkeypatch.setattr(sample, "open", counted_open, raising=False)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(folder, flags)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            do(sample, "", "--resume", folder)
    do(sample, "", "--resume", folder)
    assert evaluations(folder) == whole
    # None was trained twice but for those cut short: 2 epochs of the first, and all of two whose line was.
    assert calls["epochs"] == 2 * len(whole[0]) + 2 + 4


def test_a_larger_budget_goes_on(tmp_path, monkeypatch):
    """And the old result does not stand for the new search."""
    run(tmp_path / "one", NB201.replace("--budget 9", "--budget 6"))
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(sample, "search", None)
        do(sample, "--budget 9", "--resume", tmp_path / "one")
    assert not (tmp_path / "one" / "result.json").exists()
    do(sample, "--budget 9", "--resume", tmp_path / "one")
    assert evaluations(tmp_path / "one") == run(tmp_path / "two", NB201)


SHARED = """
import os
import sample, utils
draw = utils.draw_shapes
utils.draw_shapes = lambda n, size, seed: draw(n // 4, size, seed)
trained = sample.trained_accuracy
def noted(*args):
    with open("who", "a") as file:
        file.write(os.environ["RANK"] + "\\n")
    return trained(*args)
sample.trained_accuracy = noted
utils.run(sample.main, sample.parse_args())
"""


def test_processes_share_the_work(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED + PARTED)
    flags = NB201.replace("--neighbors 3", "--neighborhood 0")  # a center alone: waves keep both busy
    rows, result = run(tmp_path / "alone", flags)
    done = torchrun(tmp_path, "shared.py", *flags.split(), "--save", tmp_path / "together")
    assert done.returncode == 0, done.stderr
    theirs, their_result = evaluations(tmp_path / "together")
    assert sorted(theirs) == sorted(rows) and their_result == result
    who = (tmp_path / "who").read_text().split()
    assert len(who) == len(rows) and abs(who.count("0") - who.count("1")) <= 1
    assert "2 x cpu" in (tmp_path / "together" / "log.txt").read_text()


def test_processes_do_not_share_a_batch(refused, monkeypatch):
    """So their number need not divide it; train.py's does. A table is searched by one process."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    args = sample.parse_args("--algo rs --eval train --space nasbench201".split())
    assert sample.training_args(args).batch_size == 256
    assert "cannot be cut into 3 equal pieces" in refused(train, "--batch_size 256")
    for flags in ("--bench T.csv", "--algo ea --eval train --space nasbench201"):
        assert "torchrun shares the work of --eval train with rs or ls alone" in refused(sample, flags)


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
    assert float(outcome(tmp_path / "run").rows[0]["score"]) == pytest.approx(mean)


FLAGS = [
    (f"{NB201} --epochs 0", "--epochs: 0 is out of range: it lies between 1"),
    (f"{NB201} --budget 5", "does not cover two neighborhoods of 3"),
    (f"{DARTS} --neighborhood 17", "17 is out of range: it lies between 0 and 16"),
    (f"{DARTS} --neighborhood 5 --neighbors 0", "has 36,449,665 members in the space darts"),
    (f"{NB201} --batch_size 700", "625 training images do not fill a batch of 700"),
]


@pytest.mark.parametrize("flags,message", FLAGS)
def test_flags(refused, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(sample, flags)
    assert not list(tmp_path.iterdir())


def test_resuming_what_does_not_fit(refused, tmp_path):
    run(tmp_path / "run", NB201)
    path = tmp_path / "run" / "evaluations.csv"
    good = path.read_bytes()
    damage = {
        "arch,shapes_valid_12\n": "its columns are arch, shapes_valid_12",
        "arch,shapes_valid_2\n|none~0|,3\n": "is not a NAS-Bench-201 architecture",
        "arch,shapes_valid_2\nDARTS_V2,3.0\n": "of the space darts",
    }
    for text, message in damage.items():
        path.write_text(text)
        assert message in refused(sample, "", "--resume", tmp_path / "run")
        assert path.read_text() == text
    path.write_bytes(good)
    for flags in ("--epochs 3", "--seed 3", "--algo ls", "--init_channels 4"):
        assert "another configuration" in refused(sample, flags, "--resume", tmp_path / "run")
    assert "holds a run already" in refused(sample, NB201, "--save", tmp_path / "run")
    assert path.read_bytes() == good
