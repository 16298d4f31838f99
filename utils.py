"""Data, run folders, checkpoints and other plumbing of the scripts.

Small images live in memory (or on the GPU) as one uint8 tensor of shape (N, H, W, 3), and are augmented a
whole batch at a time, without worker processes. Large ones are read from their files by worker processes.
Both give the same batches whatever the number of processes that share the work.
"""

import argparse
import bz2
import contextlib
import csv
import errno
import functools
import glob
import io
import itertools
import json
import math
import os
import pickle
import re
import shlex
import signal
import sys
import threading
import time
import zipfile
import zlib

import torch
import torch.nn.functional as F

from genotypes import (
    check_regular,
    format_architecture,
    nasbench201_architectures,
    parse_architecture,
    printable,
    to_json,
)


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one line: what is wrong, what was expected, how
    to mend it."""

    status = 2


class NotFinite(Exception):
    """A loss is not finite. The message is one line that names the step and the last good checkpoint."""

    status = 1


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit status 2."""

    def __init__(self, doc, **options):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message):
        if message.startswith(("argument ", "unrecognized arguments")):  # argparse's own words
            message += f"; {self.prog} -h lists the flags"
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")

    def parse_known_args(self, args=None, namespace=None):
        known, others = super().parse_known_args(args, namespace)
        for name, value in vars(known).items():
            if value == "":
                self.error(f"--{name} is empty: give it a value, or leave it out")
        return known, others


def within(kind, low, high):
    """An argparse type: a number of this kind, int or float, from low to high."""

    def number(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is out of range: it lies between {low} and {high}")
        return value

    number.__name__ = kind.__name__  # argparse's message for what is no number
    return number


def run(main, args):
    """Call main(args) as a script: what goes wrong as foreseen ends it with one line and an exit status, 2
    for bad input, a full disk or too little memory, 1 for a loss that is not finite, 130 for SIGINT (Ctrl-C)
    and 143 for SIGTERM."""
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        raise KeyboardInterrupt

    def again(dropped):
        """Python drops what is raised in a destructor, such as that of a progress bar; an interrupt that this
        befalls comes once more when the destructor is over."""
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            number = signal.SIGTERM if stopped else signal.SIGINT
            threading.Timer(0.01, signal.raise_signal, [number]).start()
        else:
            sys.__unraisablehook__(dropped)

    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = again
    try:
        main(args)
    except BaseException as error:
        if stopped or isinstance(error, KeyboardInterrupt):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # it ends now in any case
            status, message = 143 if stopped else 130, f"interrupted; {how_to_go_on(args)}"
        elif isinstance(error, (BadInput, NotFinite)):
            status, message = error.status, str(error)
        elif isinstance(error, OSError):
            status, message = 2, f"{_one_line(error)}; {_mend(error)}; {how_to_go_on(args)}"
        elif out_of_memory(error):
            mend = "choose a smaller --batch_size, --image_size or --init_channels"
            status, message = 2, f"out of memory ({_one_line(error)[:120]}); {mend}; {how_to_go_on(args)}"
        else:
            raise
        # Of several processes that are stopped, the first one speaks.
        if not (status > 128 and os.environ.get("RANK", "0") != "0"):
            print(f"{os.path.basename(sys.argv[0])}: error: {printable(message)}", file=sys.stderr)
        sys.exit(status)


def how_to_go_on(args):
    """The last checkpoint of a run and the command that resumes it, as text; or that there is none yet."""
    folder = getattr(args, "save", None) or getattr(args, "resume", None)
    found = [
        path
        for name in ("checkpoint.pt", "seed-*/checkpoint.pt", "evaluations.csv")
        for path in (glob.glob(os.path.join(glob.escape(folder), name)) if folder else ())
    ]
    if not found or getattr(args, "eval", None) is True:  # of train.py, which only reads
        return "no checkpoint was written: give the same command again"
    script = os.path.basename(sys.argv[0])
    start = "torchrun ..." if "TORCHELASTIC_RUN_ID" in os.environ else "python"
    return (
        f"last checkpoint: {max(found, key=os.path.getmtime)}; go on with: {start} {script} --resume "
        f"{shlex.quote(folder)}"
    )


def _mend(error):
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return "make room on that disk, or lift the limit on the size of files"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make it readable and writable"
    return "see to that file"


def cores():
    """How many CPU cores this process may use; a cluster's node may have more than it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def out_of_memory(error):
    """Whether an exception says that memory, of the CPU or of a GPU, did not suffice."""
    words = "out of memory", "t allocate memory", "not enough memory"  # CUDA, Linux and macOS, Windows
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    )


def device_of(name):
    """The torch device of a --device flag; `auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        value = torch.zeros(1, device=name)
        value.item()  # which a device without memory cannot do
        return value.device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise BadInput(f"--device {name} is not to be had: {_one_line(error)}; try --device cpu") from None


def _one_line(error):
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def generator(seed, stream):
    """A seeded CPU generator. Draws are made on the CPU, so a seed gives the same ones on every device.

    stream: a small number; generators of one seed and different streams are independent.
    """
    return torch.Generator().manual_seed(seed * 1000 + stream)


# ------------------------------------------------------------------------------------------------------------
# Data
# ------------------------------------------------------------------------------------------------------------

DATASETS = ("cifar10", "cifar100", "folder", "shapes")  # those that are held in memory


def load_images(dataset, root, image_size, train=True):
    """A set of small images in memory: images uint8 (N, S, S, 3), labels int64 (N,), class names.

    dataset: one of DATASETS. root: where it lies, or is to be downloaded to. image_size: S. train: the
    training set; otherwise the test set (`val` of a folder). Raises BadInput where the set is missing, empty,
    broken or cannot be downloaded.
    """
    if dataset == "shapes":
        return draw_shapes(5000 if train else 1000, image_size, seed=0 if train else 1)
    if dataset == "folder":
        return _load_folder(os.path.join(root, "train" if train else "val"), image_size)
    images, labels, classes = _load_cifar(dataset, root, train)
    if image_size != images.shape[1]:
        small = [_resized(images[i : i + 10_000], image_size) for i in range(0, len(images), 10_000)]
        images = torch.cat(small)
    return images, labels, classes


def _load_cifar(dataset, root, train):
    from torchvision import datasets

    try:
        data = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset](
            root, train=train, download=True
        )
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise BadInput(
            f"{dataset} is not in {root} and could not be downloaded ({_one_line(error)}): put its "
            "archive from https://www.cs.toronto.edu/~kriz/cifar.html there, or use --dataset folder --data "
            "DIR, or --dataset shapes"
        ) from None
    return torch.from_numpy(data.data), torch.tensor(data.targets), data.classes


def _load_folder(root, image_size):
    """An image folder root/<class>/<image>. Images are resized by their shorter side and cropped to the
    center."""
    from torchvision.transforms import v2
    from tqdm import tqdm

    fit = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size)])
    data = image_folder(root, fit)
    images = torch.empty(len(data), image_size, image_size, 3, dtype=torch.uint8)
    for i in tqdm(range(len(data)), desc=f"reading {root}", disable=None, leave=False):
        try:
            images[i] = v2.functional.pil_to_tensor(data[i][0]).permute(1, 2, 0)
        except Exception as error:  # each image format has errors of its own
            raise BadInput(
                f"{data.samples[i][0]} is not an image that can be read: {_one_line(error)}; mend or remove "
                "it"
            ) from None
    return images, torch.tensor(data.targets), data.classes


def image_folder(root, transform):
    """torchvision's ImageFolder, root/<class>/<image>. Raises BadInput where there are no two classes."""
    from torchvision.datasets import ImageFolder

    if not os.path.isdir(root):
        raise BadInput(
            f"there is no folder {root}: --data takes a folder with train/<class>/ and val/<class>/ in it"
        )
    for folder, inside, _ in os.walk(root):
        for path in (os.path.join(folder, name) for name in inside):
            if os.path.islink(path) and f"{os.path.realpath(folder)}/".startswith(
                f"{os.path.realpath(path)}/"
            ):
                raise BadInput(f"{path} is a link to a folder that it lies in, without an end: remove it")
    try:
        data = ImageFolder(root, transform=transform, loader=_load_image)
    except (FileNotFoundError, OSError) as error:
        raise BadInput(
            f"no images in {root} ({_one_line(error)}): expected {root}/<class>/<image>.png or .jpg"
        ) from None
    if len(data.classes) < 2:
        raise BadInput(f"{root} has one class, {data.classes[0]}: a classifier needs at least two")
    return data


def _load_image(path):
    from torchvision.datasets.folder import pil_loader

    check_regular(path)
    return pil_loader(path)


def check_same_classes(train, test):
    """Raise BadInput unless both parts of a data set have the same class names, and so the same labels."""
    if train != test:
        odd = sorted(set(train) ^ set(test))
        raise BadInput(
            f"the training and the test set have different classes ({', '.join(map(str, odd[:3]))}"
            f"{', ...' if len(odd) > 3 else ''} in one of them alone): give both the same folders"
        )


def _resized(images, size):
    """uint8 (N, H, W, 3) images at another size, smoothed as they shrink."""
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
    return x.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


SHAPES = {
    "disc": lambda u, v: u**2 + v**2 < 0.8,
    "ring": lambda u, v: ((u**2 + v**2) < 1) & ((u**2 + v**2) > 0.4),
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.8,
    "frame": lambda u, v: (torch.maximum(u.abs(), v.abs()) - 0.72).abs() < 0.2,
    "triangle": lambda u, v: (v < 0.75) & (v > 2 * u.abs() - 0.95),
    "plus": lambda u, v: (torch.minimum(u.abs(), v.abs()) < 0.28) & (torch.maximum(u.abs(), v.abs()) < 1),
    "cross": lambda u, v: ((u.abs() - v.abs()).abs() < 0.35) & (torch.maximum(u.abs(), v.abs()) < 0.9),
    "bar": lambda u, v: (v.abs() < 0.35) & (u.abs() < 1),
    "pole": lambda u, v: (u.abs() < 0.35) & (v.abs() < 1),
    "pair": lambda u, v: ((u.abs() - 0.6) ** 2 + v**2) < 0.2,
}


def draw_shapes(n, size, seed):
    """A synthetic set for tests and demonstrations: colored shapes on noise and clutter, ten classes.

    Each picture has one shape, in a random place, size, tilt and color, over smaller scraps of other colors
    and noise. Returns images uint8 (n, size, size, 3), labels (n,), class names. The same for a seed, always.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=g)

    labels = torch.randint(len(SHAPES), (n,), generator=g)
    row, column = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    background = uniform(0, 1, 1, 1, 3)
    images = background.repeat(1, size, size, 1)

    def place(scale_low, scale_high):
        """Coordinates (u, v) of every pixel in the frame of an object of random place, size and tilt."""
        scale = uniform(scale_low, scale_high, 1, 1)
        tilt = uniform(-0.3, 0.3, 1, 1)
        x, y = column - uniform(-0.5, 0.5, 1, 1), row - uniform(-0.5, 0.5, 1, 1)
        return (x * tilt.cos() + y * tilt.sin()) / scale, (y * tilt.cos() - x * tilt.sin()) / scale

    for _ in range(6):  # clutter
        u, v = place(0.05, 0.18)
        offset = uniform(-0.8, 0.8, 2, 1, 1) / 0.15
        scrap = (torch.maximum((u - offset[:, 0]).abs(), 2 * (v - offset[:, 1]).abs()) < 1)[..., None]
        images = torch.where(scrap, uniform(0, 1, 1, 1, 3), images)
    u, v = place(0.3, 0.55)
    inside = torch.stack([shape(u, v) for shape in SHAPES.values()], 1)[torch.arange(n), labels]
    # A color that differs from the background's by at least 0.4 in one channel.
    color = (background + torch.where(background < 0.5, 1, -1) * uniform(0.4, 0.9, 1, 1, 3)).clamp(0, 1)
    images = torch.where(inside[..., None], color, images)
    images = images + 0.15 * torch.randn(n, size, size, 3, generator=g)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels, list(SHAPES)


def split_balanced(labels, portion, g):
    """Two disjoint index tensors that hold `portion` and the rest of each class, in random order drawn from
    g."""
    first, second = [], []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=g)]
        cut = round(portion * len(members))
        first.append(members[:cut])
        second.append(members[cut:])
    return torch.cat(first), torch.cat(second)


def load_halves(args):
    """The training images of a search, cut in two: images uint8 (N, S, S, 3), labels (N,), class names, the
    indices of the half that trains the weights and of the half that trains alpha, and the channels' mean and
    deviation, for normalise. Raises BadInput where there are too few."""
    images, labels, classes = load_images(args.dataset, args.data, args.image_size)
    mean, std = channel_statistics(images)
    weight_half, arch_half = split_balanced(labels, args.train_portion, generator(args.seed, 0))
    if min(len(weight_half), len(arch_half)) < args.batch_size:
        raise BadInput(
            f"{len(images)} training images give halves of {len(weight_half)} and {len(arch_half)}, which do "
            f"not fill a batch of {args.batch_size}: choose a smaller --batch_size"
        )
    for label, name in enumerate(classes):
        if not all((labels[half] == label).any() for half in (weight_half, arch_half)):
            raise BadInput(f"the class {name} has too few images for one in each half: add some or drop it")
    return images, labels, classes, weight_half, arch_half, dict(mean=mean, std=std)


def channel_statistics(images):
    """Mean and standard deviation of each channel, as fractions of 1, for normalisation: two tensors (3,)."""
    total, squares = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for part in images.split(10_000):
        x = part.view(-1, 3).double() / 255
        total += x.sum(0).cpu()
        squares += (x**2).sum(0).cpu()
    pixels = images.numel() / 3
    mean = total / pixels
    std = (squares / pixels - mean**2).clamp(min=1e-6).sqrt()
    return mean.float(), std.float()


def normalise(images, mean, std):
    """uint8 (B, H, W, 3) to normalised float (B, 3, H, W), channels last in memory."""
    B, H, W, _ = images.shape
    scale, shift = _scale_and_shift(tuple(mean.tolist()), tuple(std.tolist()), W, images.device)
    return (images.reshape(B, H, 3 * W) * scale).sub_(shift).view(B, H, W, 3).permute(0, 3, 1, 2)


@functools.lru_cache
def _scale_and_shift(mean, std, W, device):
    """What normalises a row of W pixels: two tensors (3 W,), as a loop over three numbers would be slow."""
    mean, std = torch.tensor(mean), torch.tensor(std)
    return [value.repeat(W).to(device) for value in (1 / (255 * std), mean / std)]


def augment(images, index, draws, mean, std, pad=4, cutout=0):
    """A training batch: random crop after zero padding, random horizontal flip, normalisation, cutout.

    images: uint8 (N, H, W, 3), of which `index` (B,) is taken. draws: uniform numbers in [0, 1), (5, B): row
    of the crop, flip, column of the crop, row and column of the cutout. pad: pixels of padding. cutout: side
    of the square that is set to zero after normalisation, around a random pixel and clipped at the border
    (DeVries and Taylor 2017); 0 for none. Returns float (B, 3, H, W).
    """
    device, B = images.device, len(index)
    H, W = images.shape[1:3]
    choices, rows, columns, *outside = _tables(B, H, W, pad, cutout, device)
    top, unflipped, left, *center = (draws.to(device) * choices).long()
    batch = F.pad(images.index_select(0, index.to(device)).view(B, H, 3 * W), (3 * pad, 3 * pad, pad, pad))
    # Rows are copied whole; columns are shifted, or shifted and flipped.
    rows = (rows + top[:, None]).view(-1)
    batch = batch.view(-1, batch.shape[2]).index_select(0, rows).view(B, H, -1)
    columns = columns.index_select(0, left.add(unflipped, alpha=2 * pad + 1))[:, None]
    batch = batch.gather(2, columns.expand(B, H, 3 * W)).view(B, H, W, 3)
    batch = normalise(batch, mean, std)
    if cutout:
        row, column = (table.index_select(0, at) for table, at in zip(outside, center, strict=True))
        batch.permute(0, 2, 3, 1).view(B, H, 3 * W).mul_(torch.maximum(row[:, :, None], column[:, None]))
    return batch


@functools.lru_cache
def _tables(B, H, W, pad, cutout, device):
    """What augment looks up: how many choices each draw has, (5, 1); where the rows of the uppermost crop of
    each picture lie among all padded rows, (B, H); the columns of each crop, flipped ones first, three
    numbers a pixel, (2 (2 pad + 1), 3 W); for a hole around each row and each column 0 in it and 1 elsewhere,
    (H, H) and (W, 3 W)."""
    crops = 2 * pad + 1
    choices = torch.tensor([crops, 2, crops, H, W], dtype=torch.float)[:, None]
    rows = (H + 2 * pad) * torch.arange(B)[:, None] + torch.arange(H)
    columns = torch.arange(W)
    columns = torch.stack([columns.flip(0), columns])[:, None] + torch.arange(crops)[:, None]
    columns = (3 * columns[..., None] + torch.arange(3)).view(2 * crops, 3 * W)
    outside = []
    for side in (H, W):
        line, center = torch.arange(side), torch.arange(side)[:, None]
        outside.append(((line < center - cutout // 2) | (line >= center + cutout // 2)).float())
    outside[1] = outside[1].repeat_interleave(3, 1)
    return [table.to(device) for table in (choices, rows, columns, *outside)]


class Batches:
    """Endless augmented batches of the images that `index` names, each image once before any comes again.

    Each batch is a list of (x, y) pieces, one for each slice in `parts`: those that this process computes,
    one after the other. Images and random numbers are drawn for the whole batch, so the batches do not depend
    on how many processes share them. A round's last images that do not fill a batch are left out of that
    round. The state, the place in the round included, goes into the checkpoint.
    """

    def __init__(self, images, labels, index, batch_size, g, parts=(slice(None),), **augmentation):
        self.images, self.labels, self.index, self.batch_size = images, labels, index, batch_size
        self.g, self.parts, self.augmentation = g, parts, augmentation
        self.order = torch.empty(0, dtype=torch.long)
        self.place = 0
        self.checksum = zlib.crc32(labels.cpu().numpy(), zlib.crc32(images.cpu().numpy()))

    def __len__(self):
        """Batches in a round."""
        return len(self.index) // self.batch_size

    def __iter__(self):
        return self

    def __next__(self):
        if self.place + self.batch_size > len(self.order):
            self.order, self.place = torch.randperm(len(self.index), generator=self.g), 0
        chosen = self.index[self.order[self.place : self.place + self.batch_size]]
        self.place += self.batch_size
        draws = torch.rand(5, self.batch_size, generator=self.g)
        return [
            (
                augment(self.images, chosen[part], draws[:, part], **self.augmentation),
                self.labels[chosen[part].to(self.labels.device)],
            )
            for part in self.parts
        ]

    def state_dict(self):
        generator = self.g.get_state()
        return {"order": self.order, "place": self.place, "generator": generator, "checksum": self.checksum}

    def load_state_dict(self, state):
        if state["checksum"] != self.checksum:
            raise ValueError("its images are not those of --data")
        self.order, self.place = state["order"], state["place"]
        self.g.set_state(state["generator"])


class InOrder:
    """Batches (x, y) of the images that `index` names, in order and not augmented, for evaluation."""

    def __init__(self, images, labels, index, batch_size, mean, std):
        self.images, self.labels, self.parts = images, labels, index.to(images.device).split(batch_size)
        self.normalisation = dict(mean=mean, std=std)

    def __iter__(self):
        for part in self.parts:
            yield normalise(self.images[part], **self.normalisation), self.labels[part]


class ImageFiles(torch.utils.data.Dataset):
    """The images of a folder, read one at a time: item (index, seed) is (uint8 (3, S, S), label).

    The transform draws from a generator with that seed, so that it does not matter which process reads what.
    train: DARTS's ImageNet augmentation (crop of random size and shape, flip, colors); otherwise the center,
    at 7/8 of the resized shorter side.
    """

    def __init__(self, root, image_size, train):
        from torchvision.transforms import v2

        if train:
            steps = [
                v2.RandomResizedCrop(image_size),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
            ]
        else:
            steps = [v2.Resize(round(image_size * 8 / 7)), v2.CenterCrop(image_size)]
        self.data = image_folder(root, v2.Compose([*steps, v2.PILToTensor()]))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, item):
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                return self.data[index]
            except Exception as error:  # each image format has errors of its own
                path = self.data.samples[index][0]
                raise BadInput(
                    f"{path} is not an image that can be read: {_one_line(error)}; mend or remove it"
                ) from None


def _quiet(worker):
    """For processes that read: their errors travel with the data, and what a thread of theirs would print as
    they end with a run that is stopped says nothing."""
    sys.excepthook = lambda *error: None


def _read(loader, device, normalisation):
    """Batches (x, y) of a DataLoader over ImageFiles, on the device and normalised."""
    batches = iter(loader)
    while True:
        try:
            x, y = next(batches)
        except StopIteration:
            return
        except BadInput as error:  # a worker sends its whole traceback along: the last line is ours
            raise BadInput(str(error).strip().splitlines()[-1].removeprefix("utils.BadInput: ")) from None
        x = x.to(device, non_blocking=True).permute(0, 2, 3, 1)
        yield normalise(x, **normalisation), y.to(device, non_blocking=True)


class FileBatches:
    """What Batches is, for images that worker processes read from their files: the same interface."""

    def __init__(self, files, index, batch_size, g, parts, workers, device, mean, std):
        self.files, self.index, self.batch_size, self.g, self.parts = files, index, batch_size, g, parts
        self.device, self.normalisation, self.pieces = device, dict(mean=mean, std=std), iter(())
        root, samples = files.data.root, files.data.samples
        names = [(os.path.relpath(path, root), label) for path, label in samples]
        self.checksum = zlib.crc32(repr(names).encode())
        # The loader wants a generator of its own, or it would draw from the global one.
        self.loader = torch.utils.data.DataLoader(
            files, batch_sampler=self, num_workers=workers, pin_memory=device.type == "cuda",
            persistent_workers=workers > 0, generator=torch.Generator(), worker_init_fn=_quiet,
        )  # fmt: skip

    def __len__(self):
        """Batches in a round."""
        return len(self.index) // self.batch_size

    def __iter__(self):
        """The loader's plan of a round: the items of each piece, (index, seed) an image."""
        order = self.index[torch.randperm(len(self.index), generator=self.g)]
        seeds = torch.randint(2**62, (len(order),), generator=self.g)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            for part in self.parts:
                yield list(zip(order[batch][part].tolist(), seeds[batch][part].tolist(), strict=True))

    def __next__(self):
        pieces = list(itertools.islice(self.pieces, len(self.parts)))
        if not pieces:
            self.pieces = _read(self.loader, self.device, self.normalisation)
            pieces = list(itertools.islice(self.pieces, len(self.parts)))
        return pieces

    def state_dict(self):
        """Of the end of a round."""
        return {"generator": self.g.get_state(), "checksum": self.checksum}

    def load_state_dict(self, state):
        if state["checksum"] != self.checksum:
            raise ValueError("its images are not those of --data")
        self.g.set_state(state["generator"])


class FilesInOrder:
    """What InOrder is, for images that worker processes read from their files."""

    def __init__(self, files, index, batch_size, workers, device, mean, std):
        self.device, self.normalisation = device, dict(mean=mean, std=std)
        items = [(i, 0) for i in index.tolist()]
        self.loader = torch.utils.data.DataLoader(
            files, batch_size, sampler=items, num_workers=workers, pin_memory=device.type == "cuda",
            generator=torch.Generator(), worker_init_fn=_quiet,
        )  # fmt: skip

    def __iter__(self):
        return _read(self.loader, self.device, self.normalisation)


# ------------------------------------------------------------------------------------------------------------
# The NAS-Bench-201 table
# ------------------------------------------------------------------------------------------------------------

# The columns of a converted table, less the epochs: data set and part of the official NATS-Bench files.
# CIFAR-10's `valid` is that of networks trained on half of the training set, its `test` of those trained on
# all of it, as the official API has it.
NATS_COLUMNS = {
    "cifar10_valid": ("cifar10-valid", "x-valid"),
    "cifar10_test": ("cifar10", "ori-test"),
    "cifar100_valid": ("cifar100", "x-valid"),
    "cifar100_test": ("cifar100", "x-test"),
    "imagenet16_valid": ("ImageNet16-120", "x-valid"),
    "imagenet16_test": ("ImageNet16-120", "x-test"),
}
COLUMN = re.compile(r"\w+_(valid|test)_[1-9]\d*")  # <dataset>_<split>_<epochs>


def load_table(path):
    """The accuracies of NAS-Bench-201 architectures: a dict of column name to float64 tensor (15625,), in
    percent, in the order of `nasbench201_architectures`, nan where the table has no value.

    path: a CSV file with a column `arch` and columns <dataset>_<split>_<epochs>, or a folder of official
    NATS-Bench topology files, which is converted to such a file beside it first. Raises BadInput where it
    cannot be read, an architecture is unknown or doubled, or a value is no percentage.
    """
    path = str(path)
    if os.path.isdir(path):
        path = convert_nats_bench(path)
    place = {arch: i for i, arch in enumerate(nasbench201_architectures())}
    try:
        check_regular(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"no table could be read from {path} ({_one_line(error)}): --bench takes a CSV file, or a folder "
            "of NATS-Bench files"
        ) from None
    if not rows or rows[0].count("arch") != 1 or len(set(rows[0])) < len(rows[0]):
        raise BadInput(f"{path} is not a table: its first line names a column arch, and each column once")
    header, at = rows[0], rows[0].index("arch")
    bad = [name for name in header if name != "arch" and not COLUMN.fullmatch(name)]
    if bad or len(header) < 2:
        raise BadInput(
            f"{path} has the columns {', '.join(map(repr, bad or header))}: expected names such as "
            "cifar10_valid_200"
        )
    table = [[math.nan] * len(place) for _ in header]
    seen = set()
    for number, row in enumerate(rows[1:], 2):
        where = f"line {number} of {path}"
        if len(row) != len(header):
            raise BadInput(f"{where} has {len(row)} values: expected {len(header)}, as in the first line")
        i = place.get(row[at])
        if i is None or i in seen:
            what = "stands there twice: keep one of the lines"
            if i is None:
                what = "is no NAS-Bench-201 architecture: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
            raise BadInput(f"{where}: {row[at][:100]!r} {what}")
        seen.add(i)
        for c, (column, text) in enumerate(zip(table, row, strict=True)):
            if text and c != at:
                try:
                    column[i] = float(text)
                except ValueError:
                    column[i] = -1.0
                if not 0 <= column[i] <= 100:
                    raise BadInput(f"{where}: {text[:40]!r} is no percentage: expected 0 to 100")
    return {
        name: torch.tensor(column, dtype=torch.float64)
        for name, column in zip(header, table, strict=True)
        if name != "arch"
    }


class _NatsUnpickler(pickle.Unpickler):
    """Admits what the official files hold, and nothing that could run code."""

    def find_class(self, module, name):
        import collections

        import numpy

        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("numpy", "dtype"):
            return numpy.dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return numpy.float64(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_nats_file(path):
    """One official NATS-Bench topology file: (architecture string, accuracies in percent by column name).

    Values are means over the seeds, as the official API's get_more_info(..., is_random=False) gives them.
    What the file does not hold is left out. Raises BadInput where it is no such file.
    """
    try:
        check_regular(path)
        with bz2.open(path) as file:
            data = file.read(2**26 + 1)
        if len(data) > 2**26:
            raise ValueError("it unpacks to more than 64 MiB")
        runs = _NatsUnpickler(io.BytesIO(data)).load()
        arch, values = runs["200"]["arch_str"], {}
        if not arch.startswith("|"):
            raise ValueError(f"unknown architecture {arch[:100]!r}")
        parse_architecture(arch)
        for epochs in ("200", "12"):
            for name, (dataset, part) in NATS_COLUMNS.items():
                results = [
                    runs[epochs]["all_results"][dataset, seed]["eval_acc1es"].get(f"{part}@{int(epochs) - 1}")
                    for seed in runs[epochs]["dataset_seed"].get(dataset, ())
                ]
                if results and None not in results:
                    values[f"{name}_{epochs}"] = float(sum(results) / len(results))
        if not values or not all(0 <= value <= 100 for value in values.values()):
            raise ValueError("its accuracies are missing or no percentages")
    except Exception as error:  # what reading arbitrary bytes can raise is not a closed list
        raise BadInput(
            f"{path} is not a NATS-Bench topology file ({_one_line(error)[:120]}): take it from the official "
            "archive anew"
        ) from None
    return arch, values


def _start_to_read():
    """What a process that reads NATS-Bench files does first: it leaves Ctrl-C to the one that started it, and
    has no more than 8 GiB, for which a damaged file of a few bytes can ask as the place of a memo."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError):  # not on Windows; not above a lower limit
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (2**33, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _read_nats_file(path):
    try:
        return path, read_nats_file(path), None
    except BadInput as error:
        return path, None, str(error)


def convert_nats_bench(folder):
    """Convert a folder of official NATS-Bench topology files, NNNNNN.pickle.pbz2, to FOLDER.csv beside it.
    Returns that file's path.

    The files are read one at a time by each core. What is done is kept in FOLDER.csv.part, so that an
    interrupted conversion goes on where it stopped. A finished FOLDER.csv is used as it is.
    """
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    target = f"{os.path.abspath(folder)}.csv"
    if os.path.exists(target):
        for rest in (f"{target}.part", f"{target}.tmp"):  # of a conversion that was killed at its very end
            with contextlib.suppress(OSError):
                os.remove(rest)
        return target
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"\d{6}\.pickle\.pbz2", name))
    if not names:
        raise BadInput(f"{folder} holds no NATS-Bench files: expected NNNNNN.pickle.pbz2")
    columns = [f"{name}_{epochs}" for epochs in (200, 12) for name in NATS_COLUMNS]
    done, known = {}, set(nasbench201_architectures())
    try:
        with open(f"{target}.part", "a+", newline="", encoding="utf-8", errors="replace") as part:
            part.seek(0)
            for line in part.read().split("\n")[:-1]:  # what a kill cut short has no end, and is done again
                name, *row = line.split(",")
                if name in names and len(row) == len(columns) + 1 and row[0] in known:
                    done[name] = row
            part.truncate(0)
            part.writelines(",".join([name, *row]) + "\n" for name, row in done.items())
            left = [os.path.join(folder, name) for name in names if name not in done]
            workers = min(cores(), 61)  # more than Windows allows
            with ProcessPoolExecutor(workers, initializer=_start_to_read) as pool:
                try:
                    results = pool.map(_read_nats_file, left, chunksize=8)
                    for path, result, error in tqdm(
                        results, "converting", len(left), disable=None, leave=False
                    ):
                        if error:
                            raise BadInput(error)
                        arch, values = result
                        name = os.path.basename(path)
                        done[name] = [arch, *(repr(values[c]) if c in values else "" for c in columns)]
                        part.write(",".join([name, *done[name]]) + "\n")
                        part.flush()
                except BaseException:  # an interrupt too does not wait for what is left
                    pool.shutdown(cancel_futures=True)
                    raise
        rows = [",".join(done[name]) for name in names]
        write_file(target, "\n".join([",".join(["arch", *columns]), *rows]) + "\n")
        os.remove(f"{target}.part")
    except OSError as error:
        raise BadInput(
            f"{target} cannot be written ({_one_line(error)}): put the folder where files can be written"
        ) from None
    finally:
        if not done:  # of a conversion that ended before its first file nothing is left
            with contextlib.suppress(OSError):
                os.remove(f"{target}.part")
    return target


# ------------------------------------------------------------------------------------------------------------
# Run folders and checkpoints
# ------------------------------------------------------------------------------------------------------------


def write_file(path, data):
    """Write a text or bytes file beside `path` and rename it over, so that a kill leaves the old one or the
    new one."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # a full disk or an interrupt: leave the old file and nothing else
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


RUN_FILES = "args.json metrics.csv checkpoint.pt genotype.json result.json evaluations.csv".split()


class RunFolder:
    """The folder of one run: args.json, log.txt, metrics.csv, checkpoint.pt, and what the script adds.

    writes: False for a process that shares the run but leaves the writing to another.
    """

    def __init__(self, path, args, writes=True):
        self.path, self.writes = path, writes
        if not writes:
            return
        try:
            os.makedirs(path, exist_ok=True)
            for name in os.listdir(path):  # of a run that was killed as it wrote
                if name.endswith(".tmp") and (name[:-4] in RUN_FILES or name.startswith("evaluating-")):
                    os.remove(self.file(name))
            write_file(self.file("args.json"), json.dumps(vars(args), indent=2) + "\n")
            self.end_log_line()
        except OSError as error:
            raise BadInput(
                f"the run folder {path} cannot be written ({_one_line(error)}): choose another --save, or "
                "make room"
            ) from None

    def file(self, name):
        return os.path.join(self.path, name)

    def log(self, text, anyway=False):
        """Print a line, above the progress bar if there is one, and add it to log.txt. anyway: in a process
        that otherwise leaves the writing to another, too."""
        if not (self.writes or anyway):
            return
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        path = self.file("log.txt")
        before = os.path.getsize(path) if os.path.isfile(path) else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:  # a full disk: no piece of a line
            with contextlib.suppress(OSError):
                os.truncate(path, before)
            error.filename = path
            raise

    def end_log_line(self):
        """End the line that a kill has cut short."""
        if os.path.isfile(self.file("log.txt")):
            with open(self.file("log.txt"), "rb+") as file:
                if file.read()[-1:] not in (b"", b"\n"):
                    file.write(b"\n")

    def save(self, parts, epoch, rows, args):
        """Save checkpoint.pt, and its rows of metrics as metrics.csv. Arguments are those of
        save_checkpoint."""
        if self.writes:
            save_checkpoint(self.file("checkpoint.pt"), parts, epoch, rows, args)
            self.write_metrics(rows)

    def log_resumed(self, checkpoint, args):
        """Bring metrics.csv to the checkpoint's epoch, and log where the run goes on."""
        self.write_metrics(checkpoint["rows"])
        self.log(f"resumed after epoch {checkpoint['epoch']} of {args.epochs}")
        before = checkpoint["args"]["epochs"]
        if args.epochs != before:
            self.log(f"--epochs was {before}: the schedule follows the new number from here on")

    def write_json(self, name, data):
        if self.writes:
            write_file(self.file(name), json.dumps(data, indent=2, allow_nan=False) + "\n")

    def write_genotype(self, arch):
        """genotype.json, which `--arch` of the training script takes."""
        self.write_json("genotype.json", to_json(arch))

    def write_metrics(self, rows):
        """metrics.csv, a line a row; it is made anew from the rows in the checkpoint, so no row is lost or
        doubled."""
        if not self.writes:
            return
        table = io.StringIO()
        if rows:
            writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_file(self.file("metrics.csv"), table.getvalue())


def save_checkpoint(path, parts, epoch, rows, args):
    """Write a checkpoint, which load_checkpoint and restore read.

    parts: name to anything with a state_dict. epoch: epochs done. rows: a dict of plain values for each of
    them.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    buffer = io.BytesIO()
    torch.save({**state, "epoch": epoch, "rows": rows, "args": vars(args)}, buffer)
    write_file(path, buffer.getvalue())


def read_evaluations(path, column, space):
    """The finished evaluations in a file that a search has appended to: a dict of percentages by
    architecture, as text.

    column: the file's other column. space: the Space of the architectures. A last line that a kill has cut
    short does not count. Raises BadInput where it is no such file.
    """
    try:
        check_regular(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        if "\n" not in text:
            raise ValueError("it is empty")
        header, *rows = csv.reader(text[: text.rindex("\n") + 1].splitlines())
        if header != ["arch", column]:
            raise ValueError(f"its columns are {', '.join(header)[:80]}")
        found = {}
        for arch, value in rows:
            arch = format_architecture(parse_architecture(arch, space))
            if arch in found or not 0 <= float(value) <= 100:
                raise ValueError(f"{arch} stands there twice or has no percentage")
            found[arch] = float(value)
        return found
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(
            f"{path} cannot be read ({_one_line(error)[:160]}): put back what the run wrote, or start "
            "the run anew"
        ) from None


def write_evaluations(path, column, found):
    """Write a file of evaluations, which append_evaluation adds to. found: as read_evaluations has it."""
    lines = [f"arch,{column}\n", *(_evaluation(arch, value) for arch, value in found.items())]
    write_file(path, "".join(lines))


def append_evaluation(path, arch, value):
    """Add an evaluation to a file that several processes may add to. arch: text. value: percent."""
    with open(path, "ab", buffering=0) as file:  # one write a line: another process's cannot come between
        line = _evaluation(arch, value).encode()
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, "it is cut short, for want of room", path)
        os.fsync(file.fileno())


def _evaluation(arch, value):
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([arch, repr(value)])
    return line.getvalue()


def new_run_path(script, what):
    """runs/<script>-<what>-<time>-<random>, since runs may be started in the same second."""
    return os.path.join("runs", f"{script}-{what}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}")


def checkpoint_path(path):
    """The checkpoint of a run folder, or the file itself."""
    return os.path.join(path, "checkpoint.pt") if os.path.isdir(path) else path


# Flags that may have no value in a run.
MAY_BE_NONE = ("seeds", "bench", "samples", "budget", "starts", "eval")


def saved_args(path, parser, without=("resume", "save")):
    """The flags of a run but those in `without`, as a dict: from a run folder's args.json, or from a
    checkpoint file. Raises BadInput where they cannot be read, or are not those of the parser's script."""
    try:
        if os.path.isdir(path):
            check_regular(os.path.join(path, "args.json"))
            with open(os.path.join(path, "args.json"), encoding="utf-8-sig") as file:
                saved = json.load(file)
            saved = saved if isinstance(saved, dict) else {}
        else:
            saved = load_checkpoint(path)["args"]
        saved = {name: saved[name] for name in saved if name not in without}
    except FileNotFoundError:
        raise BadInput(
            f"{path} is not a run folder: there is no args.json in it; give a folder that a run wrote, or "
            "start the run anew with its command"
        ) from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{path}/args.json cannot be read ({_one_line(error)[:80]}): put back what the run wrote"
        ) from None
    for action in parser._actions:
        if action.dest not in ("help", *without):
            if not _fits(saved.get(action.dest), action):
                raise BadInput(
                    f"{path} is not a run of {parser.prog} as it is now, or its flags are damaged "
                    f"({action.dest}): give a folder that it wrote, as it wrote it"
                )
    return saved


def _fits(value, action):
    """Whether a saved value is one that a flag can have."""
    if value is None:
        return action.dest in MAY_BE_NONE
    if action.nargs == "+":
        return isinstance(value, list) and all(type(item) is action.type for item in value)
    if action.nargs == 0:
        return isinstance(value, bool)
    if action.type in (int, float):
        return type(value) in (int, action.type)
    return isinstance(value, str) and (action.choices is None or value in action.choices)


def check_free(path):
    """Raise BadInput where a folder that is to be written already holds a run, or cannot be written."""
    names = os.listdir(path) if os.path.isdir(path) else ()
    if any(
        name in ("checkpoint.pt", "result.json", "genotype.json", "evaluations.csv") or name[:5] == "seed-"
        for name in names
    ):
        more = any(name in ("checkpoint.pt", "evaluations.csv") or name[:5] == "seed-" for name in names)
        raise BadInput(
            f"{path} holds a run already: choose another --save"
            + (f", or give --resume {path} to go on" if more else "")
        )
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # a name too long, a file above it, links in a circle
        above = os.path.abspath(path)
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if not os.path.isdir(above):
            raise OSError(f"{above} is no folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise OSError(f"nothing may be written in {above}")
    except OSError as error:
        raise BadInput(
            f"the run folder {path} cannot be written ({_one_line(error)}): choose another --save"
        ) from None


def load_checkpoint(path, device="cpu"):
    """A checkpoint file as a dict. Only tensors and plain data are admitted. Raises BadInput where it is
    damaged."""
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("its contents do not match their checksums")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, NotADirectoryError):
        begun = os.path.exists(os.path.join(os.path.dirname(path), "args.json"))
        raise BadInput(
            f"there is no checkpoint {path}: "
            + ("the run ended before its first, so start the run anew with its command" if begun else "")
            + ("" if begun else "--resume takes a folder that a run wrote")
        ) from None
    except Exception as error:  # what reading arbitrary bytes can raise is not a closed list
        reason = _one_line(error)[:80]
        if isinstance(error, pickle.UnpicklingError):  # torch's own words are about its versions
            reason = "it is not all tensors and plain data"
        raise BadInput(
            f"the checkpoint {path} is damaged or not a checkpoint ({reason}): "
            "start the run anew, with another --save"
        ) from None
    kinds = {"args": dict, "epoch": int, "rows": list}
    if (
        not isinstance(checkpoint, dict)
        or any(not isinstance(checkpoint.get(name), kind) for name, kind in kinds.items())
        or checkpoint["epoch"] != len(rows := checkpoint["rows"])
        or not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows)
        or not isinstance(checkpoint["args"].get("epochs"), int)
    ):
        raise BadInput(f"{path} is not a checkpoint of these scripts: give --resume what a run wrote")
    return checkpoint


def restore(parts, checkpoint):
    """Load a checkpoint's states into parts, as RunFolder.save took them. Raises BadInput where they do not
    fit."""
    try:
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        raise BadInput(
            f"the checkpoint does not fit this run ({_one_line(error)}): start the run anew"
        ) from None


class State(dict):
    """Plain values with the state_dict of a module or optimizer."""

    def state_dict(self):
        return dict(self)

    def load_state_dict(self, state):
        self.clear()
        self.update(state)


class GeneratorState:
    """A torch.Generator with the state_dict of a module or optimizer."""

    def __init__(self, g):
        self.g = g

    def state_dict(self):
        return {"state": self.g.get_state()}

    def load_state_dict(self, state):
        self.g.set_state(state["state"])


def check_finite(losses, where, checkpoint):
    """Raise NotFinite, naming the first such step and the last good checkpoint, unless all losses (kinds,
    steps) are finite. where: epoch and learning rate, as text. checkpoint: its path."""
    bad = (~losses.isfinite()).any(0)
    if bad.any():
        step = bad.int().argmax().item() + 1
        raise NotFinite(
            f"the loss is not finite at step {step} of {where}; last good checkpoint: {checkpoint}"
        )


def check_finite_state(model, loss, where, checkpoint):
    """Raise NotFinite, as above, unless an evaluation's loss and every weight and statistic of the model are
    finite: what is saved as good has to be."""
    if not (math.isfinite(loss) and all(value.isfinite().all() for value in model.state_dict().values())):
        raise NotFinite(
            f"the loss or the weights are not finite after {where}; last good checkpoint: {checkpoint}"
        )


def check_same_run(args, checkpoint, may_differ):
    """Raise BadInput unless the flags are those of the run to resume, those in may_differ apart, and --epochs
    is no less than what it has done."""
    saved = checkpoint["args"]
    may_differ = {*may_differ, "epochs"}
    if args.epochs < checkpoint["epoch"]:
        raise BadInput(
            f"--epochs {args.epochs} is less than the {checkpoint['epoch']} that {args.resume} has done"
        )
    now = {name: value for name, value in vars(args).items() if name not in may_differ}
    before = {name: value for name, value in saved.items() if name not in may_differ}
    different = [
        f"--{name} {now.get(name)} (there: {before.get(name)})"
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name)
    ]
    if different:
        raise BadInput(
            f"--resume names a run of another configuration: {', '.join(different)}; give the same flags"
        )
