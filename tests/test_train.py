"""Training: recipes, resuming, the protocol, several processes, images from files."""

import json
import os
import shutil
import statistics
from types import SimpleNamespace

import forks
import pytest
import torch
import torch.nn.functional as F
from conftest import NB201, TRAIN, check_same, do, outcome, read, same, save_images, tree
from forks import PARTED, torchrun
from PIL import Image

import model
import train
import utils
from genotypes import NAMED, SPACES, Genotype, format_architecture, random_architecture, to_json

pytestmark = pytest.mark.usefixtures("few_shapes")


def run_train(folder, *flags):
    do(train, TRAIN, "--save", folder, *flags)
    return outcome(folder)


# What the field compares by: the DARTS code, its ImageNet recipe in large batches, the NAS-Bench-201 paper
RECIPE = """epochs init_channels layers batch_size base_batch learning_rate schedule warmup_epochs
    momentum nesterov weight_decay grad_clip auxiliary auxiliary_weight drop_path_prob cutout label_smooth
    image_size""".split()
RECIPES = {
    "--dataset cifar100": "600 36 20 96 0 0.025 cosine 0 0.9 False 0.0003 5.0 True 0.4 0.2 True 0.0 32",
    "--dataset imagenet": "250 48 14 1024 1024 0.5 linear 5 0.9 False 3e-05 5.0 True 0.4 0.0 False 0.1 224",
    f"--arch {NB201}": "200 16 5 256 0 0.1 cosine 0 0.9 True 0.0005 0.0 False 0.4 0.0 False 0.0 32",
}


def test_recipes_are_the_defaults():
    for flags, values in RECIPES.items():
        args = train.parse_args(flags.split())
        assert {name: str(getattr(args, name)) for name in RECIPE} == dict(
            zip(RECIPE, values.split(), strict=True)
        )
    assert train.parse_args([]).cutout_length == 16
    args = train.parse_args(["--no-auxiliary", "--no-cutout", "--epochs", "50"])
    assert (args.auxiliary, args.cutout, args.epochs, args.batch_size) == (False, False, 50, 96)


def test_what_arch_takes(tmp_path):
    genotype = random_architecture(SPACES["darts"], torch.Generator().manual_seed(0))
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "genotype.json").write_text(json.dumps(to_json(genotype)))
    printed = format_architecture(genotype)
    for text in (printed, str(tmp_path / "found"), str(tmp_path / "found" / "genotype.json")):
        assert train.parse_args(["--arch", text]).arch == printed
    args = train.parse_args(["--arch", str(tmp_path / "found")])
    assert args.name == "found"
    args = train.parse_args([])
    assert args.name == "NA_DARTS" and args.arch == format_architecture(NAMED["NA_DARTS"])
    assert train.parse_args(["--arch", NB201]).arch == NB201


def test_schedules():
    cosine, linear, exponential = (train.SCHEDULE[name] for name in ("cosine", "linear", "exponential"))
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for e in range(7):
        assert cosine(e, 7, None) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step(), reference.step()
    assert [linear(e, 4, None) for e in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [exponential(e, 4, 0.5) for e in range(4)] == [1, 0.5, 0.25, 0.125]


def test_learning_rates_of_a_run(tmp_path):
    """Scaled with the batch, warmed up, then decayed."""
    flags = "--base_batch 320 --learning_rate 0.1 --schedule linear --warmup_epochs 2 --epochs 4".split()
    rates = [float(row["learning_rate"]) for row in run_train(tmp_path / "run", *flags)[1]]
    assert rates == pytest.approx([0.1, 0.15, 0.1, 0.05])


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_a_plain_loop(tmp_path, nesterov):
    """Two epochs of one step: loss with smoothing and auxiliary head, clipping, SGD, cosine schedule."""
    flags = "--seed 4 --batch_size 1200 --epochs 2 --learning_rate 0.3 --weight_decay 0.01 --momentum 0.5 "
    flags += "--grad_clip 0.5 --label_smooth 0.2 --auxiliary_weight 0.7 --drop_path_prob 0 --arch DARTS_V2"
    flags = [*flags.split(), *(["--nesterov"] if nesterov else [])]
    checkpoint, rows, _ = run_train(tmp_path / "run", *flags)
    args = train.parse_args([*TRAIN.split(), *flags])
    batches, _, _ = train.load_train(args, torch.device("cpu"))
    torch.manual_seed(4)
    network = train.NETWORKS["cifar"](4, 10, 3, True, NAMED["DARTS_V2"])
    weights, velocity = list(network.parameters()), {}
    for row, rate in zip(rows, (0.3, 0.15), strict=True):
        [(x, y)] = next(batches)
        logits, auxiliary = network(x)
        loss = F.cross_entropy(logits, y, label_smoothing=0.2)
        assert float(row["train_loss"]) == pytest.approx(loss.item(), rel=1e-4)
        total = loss + 0.7 * F.cross_entropy(auxiliary, y, label_smoothing=0.2)
        gradients = torch.autograd.grad(total, weights)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert norm > 0.5  # it is clipped
        for w, gradient in zip(weights, gradients, strict=True):
            step = gradient * 0.5 / norm + 0.01 * w.detach()
            velocity[w] = 0.5 * velocity[w] + step if w in velocity else step
            w.data -= rate * (step + 0.5 * velocity[w] if nesterov else velocity[w])
    for name, w in network.named_parameters():
        assert torch.allclose(checkpoint["model"][name], w, rtol=1e-3, atol=1e-5), name


def test_which_augmentation_trains():
    for flags, expected in (
        ("", (1, 4, True)),
        ("--no-augment --cutout_length 2", (0, 2, False)),
        ("--no-cutout", (1, 0, True)),
    ):
        batches, _, _ = train.load_train(
            train.parse_args([*TRAIN.split(), *flags.split()]), torch.device("cpu")
        )
        assert tuple(batches.augmentation[name] for name in ("pad", "cutout", "flip")) == expected


def test_drop_path_grows_over_the_epochs(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(model, "drop_path", lambda x, probability: used.append(probability.item()) or x)
    run_train(tmp_path / "run", "--epochs", 3, "--drop_path_prob", 0.3)
    assert sorted(set(used)) == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("flags", ["--valid_portion 0.3 --accumulate 2", f"--arch {NB201} --layers 1"])
def test_interrupted_training_goes_on_to_the_same_result(tmp_path, monkeypatch, flags):
    """A run of 3 epochs that dies in the second, and is resumed without any other flag, equals an undisturbed
    one."""
    flags = [*flags.split(), "--epochs", "3"]
    whole = run_train(tmp_path / "whole", *flags)
    evaluate, calls = train.evaluate, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "evaluate", dies)
        run_train(tmp_path / "parts", *flags)
    assert not (tmp_path / "parts" / "result.json").exists()
    do(train, "", "--resume", tmp_path / "parts")
    check_same(whole, outcome(tmp_path / "parts"))
    assert len(whole[1]) == 3 and whole[0]["epoch"] == 3
    names = "args.json checkpoint.pt log.txt metrics.csv result.json"
    assert sorted(os.listdir(tmp_path / "parts")) == names.split()


@pytest.mark.parametrize("portion", [0, 0.3])
def test_eval_reproduces_the_test_accuracy(tmp_path, capsys, portion):
    _, _, result = run_train(tmp_path / "run", "--epochs", 2, "--valid_portion", portion)
    before = tree(tmp_path / "run")
    shutil.copy(tmp_path / "run" / "checkpoint.pt", tmp_path / "file.pt")
    for source in ("run", "file.pt"):
        capsys.readouterr()
        args = train.parse_args(["--eval", "--resume", str(tmp_path / source)])
        scores = train.train(args, 0, 1, torch.device("cpu"))
        assert scores == {name: result[f"test_{name}"] for name in ("loss", "top1", "top5")}
        assert f"test top-1 {result['test_top1']:.2f} %" in capsys.readouterr().out
    args = train.parse_args(["--eval", "--amp", "fp16", "--resume", str(tmp_path / "run")])
    scores = train.train(args, 0, 1, torch.device("cpu"))
    assert scores["loss"] == pytest.approx(result["test_loss"], abs=0.02)
    assert before == tree(tmp_path / "run")


def test_scores_are_those_of_a_plain_computation(monkeypatch):
    """And those of two processes that share the set, once both have their sums."""
    torch.manual_seed(0)
    table, labels, totals = torch.randn(50, 7), torch.randint(7, (50,)), []

    class Lookup(torch.nn.Linear):
        def forward(self, x):
            assert not self.training
            return table[x], None

    def all_reduce(total):
        totals.append(total.clone())
        total.copy_(sum(totals))

    network, batches = Lookup(1, 1), [(part, labels[part]) for part in torch.arange(50).split(8)]
    scores = train.evaluate(network, batches, train.nullcontext)
    rank = (table > table.gather(1, labels[:, None])).sum(1)
    assert scores["top1"] == 100 * (rank == 0).sum().item() / 50
    assert scores["top5"] == 100 * (rank < 5).sum().item() / 50
    assert scores["loss"] == pytest.approx(F.cross_entropy(table, labels).item(), rel=1e-6)
    monkeypatch.setattr(train, "dist", SimpleNamespace(all_reduce=all_reduce))
    shared = [train.evaluate(network, batches[k::2], train.nullcontext, world=2) for k in range(2)]
    assert shared[1] == pytest.approx(scores, rel=1e-9) and shared[0] != shared[1]


def test_held_out_part_chooses_the_epoch_and_the_test_set_is_used_once(tmp_path, monkeypatch):
    used, tops = [], iter([10.0, 30.0, 20.0, 30.0, 99.0])

    def evaluate(network, batches, autocast, world):
        used.append(sum(len(y) for _, y in batches))
        return dict(loss=1.0, top1=next(tops), top5=50.0)

    monkeypatch.setattr(train, "evaluate", evaluate)
    checkpoint, rows, result = run_train(tmp_path / "run", "--epochs", 4, "--valid_portion", 0.3)
    held_out, test = 1250 - checkpoint["data"]["images"][0], 250
    assert used == [held_out] * 4 + [test] and held_out == checkpoint["data"]["images"][1]
    assert (result["epoch"], result["valid_top1"], result["test_top1"]) == (2, 30.0, 99.0)
    assert "test_top1" not in rows[0] and rows[1]["valid_top1"] == "30.0"
    assert checkpoint["best"]["epoch"] == 2
    assert not same(checkpoint["best"]["model"], checkpoint["model"])


def test_no_training_image_is_held_out_or_left_out(tmp_path):
    args = train.parse_args([*TRAIN.split(), "--valid_portion", "0.3", "--batch_size", "50"])
    batches, valid, data = train.load_train(args, torch.device("cpu"))
    held_out = torch.cat(valid.parts)
    both = torch.cat([held_out, batches.index])
    assert torch.equal(both.sort().values, torch.arange(1250)) and abs(len(held_out) - 375) < 10
    assert data["images"] == [len(batches.index), len(held_out)]


def test_seeds(tmp_path, monkeypatch):
    """Each is a training of its own. A run that died between two goes on, and has no mean until then."""
    whole, parts, flags = tmp_path / "whole", tmp_path / "parts", f"{TRAIN} --epochs 2 --seeds 3 1"
    do(train, flags, "--save", whole)
    result = read(whole / "result.json")
    runs = {seed: outcome(whole / f"seed-{seed}") for seed in (3, 1)}
    tops = [run.result["test_top1"] for run in runs.values()]
    assert result["seeds"] == [3, 1] and result["test_top1"]["values"] == tops and tops[0] != tops[1]
    assert result["test_top1"]["mean"] == pytest.approx(sum(tops) / 2)
    assert result["test_top1"]["std"] == pytest.approx(statistics.stdev(tops))
    check_same(runs[1], run_train(tmp_path / "alone", "--epochs", 2, "--seed", 1))
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "seed-1")
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(train, "train", None)
        do(train, "", "--resume", parts)
    assert not (parts / "result.json").exists()
    do(train, "", "--resume", parts)
    check_same(runs[1], outcome(parts / "seed-1"))
    assert read(parts / "result.json") == result
    with pytest.raises(utils.BadInput, match="holds a run already"):
        do(train, flags, "--learning_rate", 1, "--save", whole)
    assert read(whole / "args.json")["learning_rate"] == 0.025  # as it was


def test_what_a_run_reports(tmp_path, capsys):
    _, rows, result = run_train(tmp_path / "run", "--epochs", 1, "--arch", "DARTS_V2")
    printed = capsys.readouterr().out
    network = train.NETWORKS["cifar"](4, 10, 3, True, NAMED["DARTS_V2"])
    head = sum(w.numel() for w in network.auxiliary.parameters())
    size = sum(w.numel() for w in network.parameters())
    assert (result["parameters"], result["parameters_with_auxiliary"]) == (size - head, size)
    assert result["macs"] == train.count_macs(network, 8)
    assert f"{size - head:,} parameters" in printed and f"{result['macs']:,} MACs" in printed
    names = "epoch learning_rate train_loss train_top1 test_loss test_top1 test_top5"
    assert list(rows[0]) == names.split()
    assert result["test_top5"] > result["test_top1"] and result["name"] == "DARTS_V2"


# The script in float64, where rounding does not grow to something visible, and on a quarter of the pictures.
DOUBLE = """
import torch
import train, utils
torch.set_default_dtype(torch.float64)
normalise, draw = utils.normalise, utils.draw_shapes
utils.normalise = lambda *args, **more: normalise(*args, **more).double()
utils.draw_shapes = lambda n, size, seed: draw(n // 4, size, seed)
utils.run(train.main, train.parse_args())
"""


def test_two_processes_equal_one_that_accumulates(tmp_path):
    """Two processes with two pieces of a batch each, against one process with four."""
    script, together, alone = (tmp_path / name for name in ("double.py", "together", "alone"))
    script.write_text(DOUBLE + PARTED)
    flags = [*TRAIN.split(), "--batch_size", 300, "--drop_path_prob", 0, "--epochs", 2, "--arch", "DARTS_V1"]
    both = torchrun(tmp_path, script, *flags, "--save", together, "--accumulate", 2)
    assert both.returncode == 0, both.stderr
    done = forks.run(str(script), *flags, "--save", alone, "--accumulate", 4, cwd=tmp_path)
    assert done.status == 0, done.err
    (a, a_rows, _), (b, b_rows, _) = outcome(together), outcome(alone)
    for x, y in zip(a_rows, b_rows, strict=True):
        assert float(x["train_loss"]) == pytest.approx(float(y["train_loss"]), rel=1e-9)
        assert x["train_top1"] == y["train_top1"]
    network = train.NETWORKS["cifar"](4, 10, 3, True, NAMED["DARTS_V1"])
    for name, _ in network.named_parameters():  # running statistics are the mean over processes instead
        assert torch.allclose(a["model"][name], b["model"][name], rtol=1e-7, atol=1e-9), name
    # One process alone writes: a line an epoch, and no file but those of a run.
    log = (together / "log.txt").read_text().splitlines()
    assert len(log) == 4 and both.stdout.count("epoch 1:") == 1
    assert sorted(os.listdir(together)) == sorted(os.listdir(alone))


def test_parts_that_get_no_gradient():
    assert train.some_parts_are_unused(NB201)
    dead = NAMED["DARTS_V2"]._replace(normal_concat=(2, 3, 4))
    assert train.some_parts_are_unused(dead)
    one_input = Genotype((("skip_connect", 1),) * 2, (2,), (("skip_connect", 0), ("skip_connect", 1)), (2,))
    assert train.some_parts_are_unused(one_input)
    for arch in (dead, one_input, NAMED["NASNet"], NAMED["DARTS_V1"]):
        network = train.NETWORKS["cifar"](4, 10, 3, False, arch)
        network(torch.randn(2, 3, 8, 8))[0].sum().backward()
        assert train.some_parts_are_unused(arch) == any(w.grad is None for w in network.parameters())


def test_a_compiled_network_trains_alike(tmp_path, monkeypatch):
    """With dropped paths too, whose probability changes each epoch: one graph for training, and one for
    evaluation. Traced as ever, but not turned into machine code, which takes minutes."""
    compiled, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def traced(network, compile=torch.compile, **options):
        compiled.append(network)
        return compile(network, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", traced)
    small = Genotype((("skip_connect", 0), ("sep_conv_3x3", 1)), (2,), (("skip_connect", 0),) * 2, (2,))
    flags = ["--epochs", 2, "--drop_path_prob", 0.3, "--no-auxiliary", "--arch", format_architecture(small)]
    plain, fast = (run_train(tmp_path / str(len(more)), *flags, *more) for more in ([], ["--compile"]))
    assert len(compiled) == 1 and len(graphs) <= 3  # evaluation's last batch is smaller
    assert plain[0]["model"].keys() == fast[0]["model"].keys()
    for a, b in zip(plain[1], fast[1], strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_is_close_to_float32(tmp_path, amp):
    flags = ["--epochs", 1, "--learning_rate", 1e-4, "--drop_path_prob", 0]
    exact, low = (run_train(tmp_path / name, *flags, "--amp", name)[1][0] for name in ("none", amp))
    assert exact != low
    assert float(low["train_loss"]) == pytest.approx(float(exact["train_loss"]), rel=0.01)


def test_pixels_of_files(tmp_path):
    """A test image is its center, 7/8 of the shorter side, by ImageNet's mean and deviation. Training images
    are cropped at random, flipped and changed in color, as DARTS does it."""
    save_images(tmp_path, count=4, size=(112, 80))
    flags = f"--dataset imagenet --image_size 70 --batch_size 4 --workers 0 --data {tmp_path}"
    args, device = train.parse_args(flags.split()), torch.device("cpu")
    batches, _, data = train.load_train(args, device)
    x, y = next(iter(train.load_test(args, device, data, 0, 1)))
    mean, std = (torch.tensor(v) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for i, image in enumerate(x):
        path = tmp_path / "val" / ("dark", "light")[i // 4] / f"{i % 4}.png"
        pixels = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).view(80, 112, 3)
        expected = (pixels[5:75, 21:91] / 255 - mean) / std
        assert torch.allclose(image, expected.permute(2, 0, 1), atol=1e-5) and y[i] == i // 4
    crop, flip, colors, _ = batches.data.transform.transforms
    assert (type(crop).__name__, crop.size, crop.scale) == ("RandomResizedCrop", (70, 70), (0.08, 1.0))
    assert (type(flip).__name__, flip.p) == ("RandomHorizontalFlip", 0.5)
    assert (colors.brightness, colors.contrast, colors.saturation) == 3 * ((0.6, 1.4),)
    assert colors.hue == (-0.2, 0.2)


FILES = "--dataset imagenet --image_size 64 --init_channels 4 --layers 3 --device cpu"


@pytest.fixture
def image_folder(tmp_path):
    save_images(tmp_path / "images", ("cat", "dog", "owl"), count=6, test_count=6, size=(90, 70))
    return tmp_path / "images"


def test_batches_from_files(image_folder, monkeypatch):
    """Each image once an epoch, in an order that the epoch's number gives, whatever the number of workers,
    pieces and processes; the same pixels for the same number of workers."""
    data = utils.ImageFolder(image_folder / "train", train.imagenet_transform(64, train=True))
    index = torch.arange(1, 18)
    norm = dict(device=torch.device("cpu"), mean=torch.zeros(3), std=torch.ones(3))
    names = [path for path, _ in data.samples]
    load = utils._load_image
    monkeypatch.setattr(utils, "_load_image", lambda path: seen.append(names.index(path)) or load(path))

    def epoch(number, size, workers=0, seed=4, **more):
        """The images that are read, if it is without workers, and the batches."""
        seen.clear()
        torch.manual_seed(number)  # as training does: without workers what is drawn is drawn here
        batches = train.FileBatches(data, index, size, workers, seed=seed, **norm, **more)
        assert len(batches) == 17 // 8
        batches.start_epoch(number)
        return seen, [next(batches) for _ in range(len(batches))]

    seen = []
    first, whole = list(epoch(1, 8)[0]), epoch(1, 8)[1]
    assert len(set(first)) == 16 and set(first) <= set(index.tolist())
    assert [y.tolist() for [(_, y)] in whole] == [[data.targets[i] for i in first[k : k + 8]] for k in (0, 8)]
    assert whole[0][0][0].shape == (8, 3, 64, 64)
    assert list(epoch(2, 8)[0]) != first != list(epoch(0, 8, seed=5)[0])
    again, spread, other = epoch(1, 8)[1], epoch(1, 8, workers=1)[1], epoch(1, 8, workers=1)[1]
    for one, same_one, two, same_two in zip(whole, again, spread, other, strict=True):
        assert torch.equal(one[0][0], same_one[0][0]) and torch.equal(two[0][0], same_two[0][0])
        assert torch.equal(one[0][1], two[0][1])
    assert list(epoch(1, 4, pieces=2)[0]) == first
    pieces = epoch(1, 4, pieces=2)[1]
    assert [len(batch) for batch in pieces] == [2, 2] and torch.equal(pieces[1][1][1], whole[1][0][1][4:])
    shares = [list(epoch(1, 4, shard=slice(rank, None, 2))[0]) for rank in (0, 1)]
    assert set(shares[0][:4] + shares[1][:4]) == set(first[:8]) and not set(shares[0]) & set(shares[1])
    data.transform = lambda image: torch.rand(3, 2, 2)
    drawn = [epoch(1, 4, workers=1, shard=slice(rank, None, 2))[1][0][0][0] for rank in (0, 1)]
    assert not torch.equal(*drawn)  # processes augment apart


def test_training_from_files_and_resuming(image_folder, tmp_path):
    flags = f"{FILES} --data {image_folder} --workers 1 --batch_size 4 --valid_portion 0.3 --epochs"
    do(train, f"{flags} 3", "--save", tmp_path / "whole")
    do(train, f"{flags} 1", "--save", tmp_path / "parts")
    # The schedule of the first epoch is the same: no decay yet, and warming up.
    do(train, "--epochs 3", "--resume", tmp_path / "parts")
    check_same(outcome(tmp_path / "whole"), outcome(tmp_path / "parts"))


def test_a_broken_image_is_named(image_folder, tmp_path, refused):
    (image_folder / "train" / "dog" / "1.png").write_bytes(b"no image")
    for workers in (0, 1):
        flags = f"{FILES} --data {image_folder} --epochs 1 --batch_size 18 --workers {workers}"
        error = refused(train, flags, "--save", tmp_path / f"run{workers}")
        assert "dog/1.png is not an image that can be read" in error


def test_resume_with_other_labels(image_folder, tmp_path, refused):
    """Files of the same names under classes of other names, or in another order."""
    resume = ["--resume", tmp_path / "run", "--epochs", 2]
    flags = f"{FILES} --data {image_folder} --workers 0 --batch_size 4 --epochs 1"
    do(train, flags, "--save", tmp_path / "run")
    for part in ("train", "val"):
        os.rename(image_folder / part / "owl", image_folder / part / "yak")
    assert "has other classes than the run" in refused(train, "", *resume)
    for part in ("train", "val"):
        os.rename(image_folder / part / "yak", image_folder / part / "owl")
    os.rename(image_folder / "train" / "cat" / "0.png", image_folder / "train" / "dog" / "9.png")
    assert "its images are not those of --data" in refused(train, "", *resume)


def test_refused_commands_leave_the_runs_of_seeds_alone(refused, tmp_path):
    do(train, f"{TRAIN} --epochs 2 --seeds 0", "--save", tmp_path / "seeds")
    run_train(tmp_path / "run", "--epochs", 1)
    before = tree(tmp_path)
    for words, message in (
        (["--resume", tmp_path / "seeds", "--learning_rate", 1], "--learning_rate 1.0 (there: 0.025)"),
        (["--resume", tmp_path / "seeds", "--epochs", 1], "--epochs 1 is less than the 2"),
        (["--resume", tmp_path / "seeds", "--seeds", 5, "--no-cutout"], "--cutout False (there: True)"),
        ([*TRAIN.split(), "--save", tmp_path / "seeds"], "holds a run already"),
        ([*TRAIN.split(), "--seeds", 5, "--save", tmp_path / "seeds"], "holds a run already"),
        ([*TRAIN.split(), "--seeds", 5, "--save", tmp_path / "run"], "holds a run already"),
        (["--resume", tmp_path / "run", "--seeds", 5], "is the run of one seed"),
        (["--resume", tmp_path / "run", "--arch", "DARTS_V2"], "another configuration: --arch Genotype("),
        (["--resume", tmp_path / "run" / "checkpoint.pt"], "only --eval takes a checkpoint file"),
    ):
        assert message in refused(train, "", *words)
        changed = {str(path) for path, data in tree(tmp_path).items() if data != before.get(path)}
        assert changed == set()
