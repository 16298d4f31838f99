"""Data, augmentation and checkpoints."""

import os

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.transforms import v2

import utils


def train(model, x, y, epochs, batch, learning_rate):
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
    statistics = utils.channel_statistics(images)
    x, test_x = (utils.normalise(part, *statistics) for part in (images, test_images))
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in ((3, 16), (16, 32), (32, 64))
    ]
    convnet = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 16, 10)).to(
        memory_format=torch.channels_last
    )
    accuracy = {}
    for name, model, epochs in (("linear", linear, 10), ("convnet", convnet, 10)):
        train(model, x, y, epochs, 100, 2e-3 if name == "convnet" else 1e-3)
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


def test_augmentation_is_uniform():
    """A single white pixel lands on each of the 25 places that a padding of 2 and a flip allow equally
    often."""
    images = torch.zeros(1, 5, 5, 3, dtype=torch.uint8)
    images[0, 2, 2] = 255
    n = 10_000
    draws = torch.rand(5, n, generator=utils.generator(0, 0))
    batch = utils.augment(images, torch.zeros(n).long(), draws, torch.zeros(3), torch.ones(3), 2)
    counts = (batch[:, 0] > 0.5).sum(0)
    assert counts.sum() == n and (counts - n / 25).abs().max() < 5 * (n / 25) ** 0.5


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


def save_images(root, classes=("cat", "dog"), count=3, size=(10, 12)):
    from PIL import Image

    for split in ("train", "val"):
        for i, name in enumerate(classes):
            os.makedirs(root / split / name)
            for k in range(count):
                Image.new("RGB", size, (50 * i, 80, 20 * k)).save(root / split / name / f"{k}.png")


def test_folder_of_images(tmp_path):
    save_images(tmp_path)
    images, labels, classes = utils.load_images("folder", tmp_path, 8)
    assert (
        images.shape == (6, 8, 8, 3) and labels.tolist() == [0, 0, 0, 1, 1, 1] and classes == ["cat", "dog"]
    )
    assert images[4, 0, 0].tolist() == [50, 80, 20]


def test_broken_image_is_named(tmp_path):
    save_images(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(utils.BadInput, match="dog.1.png is not an image"):
        utils.load_images("folder", tmp_path, 8)


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "file"
    utils.write_file(path, "one")
    utils.write_file(path, b"two")
    assert path.read_text() == "two" and os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    utils.write_file(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        utils.write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_run_folders_are_new_each_time():
    """Before they are made, too: a run makes its folder seconds after it has named it."""
    assert len({utils.new_run_path("search", "darts") for _ in range(10)}) == 10
