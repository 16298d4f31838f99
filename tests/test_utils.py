"""Data and augmentation, files, flags that are read back, and how a run ends."""

import argparse
import json
import os
import shlex
import urllib.error
import urllib.request

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import NB201
from torchvision import datasets
from torchvision.transforms import v2

import sample
import search
import train
import utils


def fit(model, x, y, epochs, batch, learning_rate):
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    g = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=g).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model.eval()


def test_shapes_are_hard_for_a_linear_model_and_easy_for_a_convnet():
    images, y, classes = utils.load_images("shapes", "", 32)
    test_images, test_y, _ = utils.load_images("shapes", "", 32, train=False)
    assert len(classes) == 10 and y.bincount().min() > 400 and not torch.equal(images[:1000], test_images)
    images, y, test_images, test_y = images[:2500], y[:2500], test_images[:500], test_y[:500]
    statistics = utils.channel_statistics(images)
    x, test_x = (utils.normalise(part, *statistics) for part in (images, test_images))
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in ((3, 8), (8, 16), (16, 32))
    ]
    convnet = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 16, 10))
    convnet = convnet.to(memory_format=torch.channels_last)
    accuracy = {}
    for name, model, *fitting in (("linear", linear, 10, 100, 1e-3), ("convnet", convnet, 6, 50, 3e-3)):
        fit(model, x, y, *fitting)
        with torch.no_grad():
            accuracy[name] = 100 * (model(test_x).argmax(1) == test_y).float().mean().item()
    assert accuracy["linear"] < 50 and accuracy["convnet"] > 80, accuracy


def test_shapes_are_the_same_each_time():
    (a, b, _), (c, d, _), (e, _, _) = (utils.draw_shapes(50, 32, seed) for seed in (3, 3, 4))
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, e)
    assert a.dtype == torch.uint8 and a.shape == (50, 32, 32, 3)


def test_halves_are_balanced_disjoint_and_seeded():
    labels = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 30]))
    a, b = utils.split_balanced(labels, 0.5, utils.generator(0, 0))
    assert labels[a].bincount().tolist() == [5, 10, 15]
    assert sorted([*a.tolist(), *b.tolist()]) == list(range(60))
    assert torch.equal(a, utils.split_balanced(labels, 0.5, utils.generator(0, 0))[0])
    assert not torch.equal(a, utils.split_balanced(labels, 0.5, utils.generator(1, 0))[0])


def test_augmentation_equals_torchvision_on_each_image():
    """Crop, flip, normalisation and cutout, given the same random numbers."""
    pad, cutout, side = 2, 4, 9
    images = torch.randint(256, (6, side, side, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    index, draws = torch.randint(6, (40,)), torch.rand(5, 40, generator=utils.generator(0, 0))
    plain = utils.augment(images, index, draws, mean, std, pad)
    cut = utils.augment(images, index, draws, mean, std, pad, cutout)
    normalise = v2.Normalize(mean.tolist(), std.tolist())
    seen = set()
    for k, i in enumerate(index):
        top, left = (int(draws[j, k] * (2 * pad + 1)) for j in (0, 2))
        flip, (row, column) = draws[1, k] < 0.5, (int(draws[j, k] * side) for j in (3, 4))
        padded = v2.functional.pad(images[i].permute(2, 0, 1), [pad])
        x = v2.functional.crop(padded, top, left, side, side)
        x = v2.functional.horizontal_flip(x) if flip else x
        x = normalise(x / 255)
        assert torch.allclose(plain[k], x, atol=1e-5)
        y, z = max(0, row - cutout // 2), max(0, column - cutout // 2)
        height, width = min(side, row + cutout // 2) - y, min(side, column + cutout // 2) - z
        x = v2.functional.erase(x, y, z, height, width, torch.zeros(1))
        assert torch.allclose(cut[k], x, atol=1e-5)
        seen.add((top, left, bool(flip)))
    assert len(seen) > 20
    bare = utils.augment(images, index, draws, mean, std, 0, flip=False)
    assert torch.equal(bare, utils.normalise(images[index], mean, std))


def test_statistics_and_normalisation():
    images = torch.randint(256, (30, 4, 4, 3), dtype=torch.uint8)
    mean, std = utils.channel_statistics(images)
    flat = images.view(-1, 3).double() / 255
    assert torch.allclose(mean.double(), flat.mean(0), atol=1e-6)
    assert torch.allclose(std.double(), flat.std(0, correction=0), atol=1e-6)
    x = utils.normalise(images, mean, std)
    assert x.shape == (30, 3, 4, 4) and x.mean().abs() < 1e-4 and (x.std(correction=0) - 1).abs() < 1e-4


def batches(seed=0):
    g = torch.Generator().manual_seed(0)
    images, labels = torch.randint(256, (25, 8, 8, 3), generator=g, dtype=torch.uint8), torch.arange(25)
    norm = dict(mean=torch.zeros(3), std=torch.ones(3))
    return utils.Batches(images, labels, torch.arange(2, 25), 5, utils.generator(seed, 1), **norm)


def test_batches_go_round_without_repeats_and_resume_in_the_middle():
    source = batches()
    assert len(source) == 4
    rounds = [torch.cat([next(source)[0][1] for _ in range(4)]) for _ in range(3)]
    for labels in rounds:
        assert len(set(labels.tolist())) == 20 and labels.min() >= 2
    assert not torch.equal(rounds[0], rounds[1])
    next(source)
    state = source.state_dict()
    again = batches()
    again.load_state_dict(state)
    for _ in range(6):
        [(a, b)], [(c, d)] = next(source), next(again)
        assert torch.equal(a, c) and torch.equal(b, d)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_failed_download_leaves_no_folder(tmp_path, monkeypatch, refused, name):
    """Whatever the machine's network, the request fails as it does without one. A folder that was there
    before stays."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for data, before in ((tmp_path / "new", False), (tmp_path, True)):
        error = refused(search, f"--dataset {name}", "--data", data, "--save", tmp_path / "run")
        assert f"{name} is not in {data} and could not be downloaded" in error and "--dataset folder" in error
        assert data.exists() == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_downloads(tmp_path, monkeypatch, rank):
    """And each part is that which was asked for, resized where another size was."""
    events = []

    class Fake:
        def __init__(self, root, train, download=False):
            events.append("downloads" if download else "reads")
            self.data = torch.full((2, 32, 32, 3), 9 if train else 5, dtype=torch.uint8).numpy()
            self.targets = [0, 1]
            self.classes = ["a", "b"]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    monkeypatch.setattr(utils, "processes", lambda: (rank, 2))
    monkeypatch.setattr(utils, "wait_for_processes", lambda: events.append("waits"))
    for train_part, size in ((True, 32), (False, 16)):
        images, labels, _ = utils.load_images("cifar10", tmp_path, size, train=train_part)
        assert torch.equal(images, torch.full((2, size, size, 3), 9 if train_part else 5, dtype=torch.uint8))
        assert labels.tolist() == [0, 1]
    assert events == 2 * ["downloads", "waits", "reads"][rank:]


def test_streams_of_all_seeds_differ():
    draws = [
        torch.rand(1, generator=utils.generator(seed, stream)).item()
        for seed in range(9)
        for stream in range(9)
    ]
    assert len(set(draws)) == len(draws)


COMMANDS = [
    (search, "--neighborhood 2 --unrolled --cutout --learning_rate 0.3 --data=-odd"),
    (search, "--quick --space darts --layers 3 --batch_size 16 --agg max"),
    (train, "--seeds 3 0 7 --no-auxiliary --cutout --drop_path_prob 0 --dataset cifar100"),
    (train, f"--arch {NB201} --nesterov --grad_clip 0 --compile"),
    (sample, "--eval train --space nasbench201 --algo ls --starts 7 --budget 30 --epochs 3 --no-augment"),
]


@pytest.mark.parametrize("script,flags", COMMANDS)
def test_saved_flags_are_those_of_the_run(script, flags, tmp_path):
    """Whatever their kind, they come back; one that is given comes first, an unknown one does no harm."""
    name = script.__name__ + ".py"
    args = vars(script.parse_args(flags.split()))
    (tmp_path / "args.json").write_text(json.dumps(args | {"script": name, "older": 1}))
    args |= {"script": name, "older": 1, "resume": str(tmp_path)}
    assert vars(script.parse_args(["--resume", str(tmp_path)])) == args
    if script is not sample:  # which refuses it at once
        assert vars(script.parse_args(["--seed", "9", "--resume", str(tmp_path)])) == args | {"seed": 9}
    utils.check_same_run(argparse.Namespace(new=1, epochs=2), {"epochs": 1, "older": 3}, ["epochs"])


class Ends:
    """Stands for a script whose main raises an error."""

    def __init__(self, error, script=None, **args):
        self.error, self.args, self.script = error, args, script

    def parse_args(self, words):
        return self.script.parse_args(words) if self.script else argparse.Namespace(**self.args)

    def main(self, args):
        raise self.error


@pytest.mark.parametrize(
    "script,flags,advice",
    [
        (search, "", "start anew with a smaller --batch_size, --image_size, --init_channels; or"),
        (
            train,
            "",
            "--image_size, --init_channels, or a larger --accumulate; or with more memory, no checkp",
        ),
        (sample, "--bench T.csv", "out of memory (no more); ask for less at a time;"),
        (None, "", "start anew with a smaller --images;"),  # such as visualize.py sharpness
    ],
)
def test_out_of_memory_names_flags_that_the_script_has(refused, script, flags, advice):
    cudnn = RuntimeError("FIND was unable to find an engine to execute this computation")
    for error in (torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError("no more"), cudnn):
        message = refused(Ends(error, script, images=9), flags)
        assert "out of memory (" in message and advice.replace("no more", str(error).rstrip(".")) in message
        for flag in [word.strip(",;") for word in message.split() if word.startswith("--")] if script else ():
            assert hasattr(script.parse_args(flags.split()), flag[2:])


def test_a_file_of_the_run_that_cannot_be_written_gives_one_line(refused, tmp_path):
    """An error in a researcher's own code keeps its traceback, whatever its kind."""
    full = utils.cannot_write("run/log.txt", OSError(28, "No space left on device"))
    assert "run/log.txt cannot be written (No space left on device): make room" in refused(Ends(full))
    closed = utils.cannot_write("run/log.txt", OSError(13, "Permission denied"))
    assert "Permission denied): choose another place" in refused(Ends(closed))
    for error in (
        FileNotFoundError(2, "No such file", "mine.txt"),
        OSError(28, "No space left"),
        KeyError(1),
    ):
        with pytest.raises(type(error)):
            utils.run(Ends(error).main, argparse.Namespace())


def test_the_command_to_go_on_with_can_be_typed(tmp_path, monkeypatch):
    folder = tmp_path / "a run"
    args = argparse.Namespace(save=str(folder), script="sample.py")
    assert utils.how_to_go_on(args) == "no checkpoint was written: give the same command again"
    os.makedirs(folder / "seed-3")
    (folder / "seed-3" / "checkpoint.pt").write_bytes(b"")
    before, command = utils.how_to_go_on(args).split("; go on with: ")
    assert before == f"last checkpoint: {folder / 'seed-3' / 'checkpoint.pt'}"
    assert shlex.split(command) == ["python", "sample.py", "--resume", str(folder)]
