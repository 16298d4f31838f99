"""What the scripts share: data, run folders, checkpoints, processes, and how a run ends.

Small images live in memory (or on the GPU) as one uint8 tensor of shape (N, H, W, 3), and are augmented a
whole batch at a time, without worker processes.
"""

import argparse
import contextlib
import csv
import errno
import functools
import glob
import io
import json
import math
import os
import pathlib
import pickle
import shlex
import signal
import sys
import threading
import time
import zipfile
import zlib

import torch
import torch.distributed as dist
import torch.nn.functional as F

from genotypes import printable

# ------------------------------------------------------------------------------------------------------------
# Flags, and how a run ends
# ------------------------------------------------------------------------------------------------------------


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one line: what is wrong, what was expected, how
    to mend it."""


class CannotWrite(BadInput):
    """A file of the run could not be written, for want of room or rights."""


class NotFinite(Exception):
    """A loss is not finite. The message is one line that names the step and the last good checkpoint."""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of every flag whose help does not name one."""

    def _get_help_string(self, action):
        return action.help if "default" in action.help else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit status 2, and whose help shows the first two
    paragraphs of the module's docstring and every default."""

    def __init__(self, doc, **options):
        options.setdefault("description", "\n\n".join(doc.split("\n\n")[:2]))
        shape = functools.partial(_Help, max_help_position=28, width=110)
        super().__init__(formatter_class=shape, allow_abbrev=False, **options)

    def error(self, message):
        if message.startswith(("argument ", "unrecognized arguments", "the following arguments")):
            message += f"; {self.prog} -h lists the flags"  # argparse's own words
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def within(kind, low, high):
    """An argparse type: a number of this kind, int or float, from low to high."""

    def number(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is out of range: it lies between {low} and {high}")
        return value

    number.__name__ = kind.__name__  # for argparse's message about what is no number
    return number


def run(main, args):
    """Call main(args) as a script: what goes wrong as foreseen ends it with one line and an exit status, 2
    for bad input, a full disk or too little memory, 1 for a loss that is not finite, 130 for SIGINT (Ctrl-C)
    and 143 for SIGTERM. Any other error keeps its traceback. In a thread that is not the main one, signals
    are left alone."""
    terminated = []

    def stop(number, frame):
        terminated.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
    if hasattr(sys.stdout, "reconfigure"):  # a path, or the terminal, need not be UTF-8
        sys.stdout.reconfigure(errors="replace")
    try:
        main(args)
    except KeyboardInterrupt:
        status, message = 143 if terminated else 130, f"interrupted; {how_to_go_on(args)}"
    except CannotWrite as error:
        status, message = 2, f"{error}; {how_to_go_on(args)}"
    except (BadInput, NotFinite) as error:
        status, message = 2 if isinstance(error, BadInput) else 1, str(error)
    except Exception as error:
        if not out_of_memory(error):
            raise
        flags = [name for name in ("batch_size", "image_size", "init_channels", "images") if name in args]
        mend = f"start anew with a smaller --{', --'.join(flags)}" if flags else "ask for less at a time"
        mend += ", or a larger --accumulate" * ("accumulate" in args) + "; or with more memory, "
        status, message = 2, f"out of memory ({one_line(error)[:120]}); {mend}{how_to_go_on(args)}"
    else:
        return
    if status < 128 or processes()[0] == 0:  # of several that are stopped, the first one speaks
        print(f"{os.path.basename(sys.argv[0])}: error: {printable(message)}", file=sys.stderr)
    sys.exit(status)


def how_to_go_on(args):
    """The last checkpoint of a run and the command that resumes it, as text; or that there is none yet."""
    if getattr(args, "eval", None) is True:  # a test of train.py is not a run
        return "give the same command again"
    folder = getattr(args, "save", None) or getattr(args, "resume", None)
    names = "checkpoint.pt", "seed-*/checkpoint.pt", "evaluations.csv"
    found = [p for name in names if folder for p in glob.glob(os.path.join(glob.escape(folder), name))]
    if not found:
        return "no checkpoint was written: give the same command again"
    start = "torchrun ..." if dist.is_torchelastic_launched() else "python"
    script = getattr(args, "script", None) or os.path.basename(sys.argv[0])  # search.py runs sample.py too
    last = max(found, key=os.path.getmtime)
    return f"last checkpoint: {last}; go on with: {start} {script} --resume {shlex.quote(folder)}"


def one_line(error):
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__


def out_of_memory(error):
    """Whether an exception says that memory, of the CPU or of a GPU, did not suffice."""
    words = (
        "out of memory", "t allocate memory", "not enough memory",  # CUDA, Linux and macOS, Windows
        "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
        "unable to find an engine",  # cuDNN, when none of its kernels had the memory it wanted
    )  # fmt: skip
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, MemoryError)


# ------------------------------------------------------------------------------------------------------------
# Device, processes, random numbers
# ------------------------------------------------------------------------------------------------------------


def cores():
    """How many CPU cores this process may use; a cluster's node may have more than it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(name):
    """The torch device of a --device flag; `auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, dtype=torch.float64, device=name)  # of which Apple's mps has none
        device.item()  # which a device without memory cannot do
        return device.device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise BadInput(f"--device {name} is not available: {one_line(error)}; try --device cpu") from None


def processes():
    """This process's rank, and how many there are: one, unless torchrun has started more."""
    if not dist.is_torchelastic_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join_processes(device, backend=None, timeout=None):
    """This process's rank, how many there are, and its device, once they are connected. device: a --device
    flag. backend: gloo, where processes exchange plain values alone and may share a card; or that of the
    device. timeout: a timedelta that one may wait for another, or torch's."""
    rank, world = processes()
    cards = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if cards and dist.is_torchelastic_launched():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % cards}"
        if backend is None and int(os.environ["LOCAL_WORLD_SIZE"]) > cards:
            raise BadInput(f"{os.environ['LOCAL_WORLD_SIZE']} processes for {cards} GPUs: start one for each")
    elif world > 1 and ":" in device:
        raise BadInput(f"--device {device} is one card for {world} processes: leave its number out")
    device = device_of(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        # Loaded later (by the first optimizer), its functions would keep the group as a default, and the
        # group's threads would outlive destroy_process_group: a process could abort as it ends.
        from torch.distributed.nn import functional  # noqa: F401

        backend = backend or ("nccl" if device.type == "cuda" else "gloo")
        dist.init_process_group(backend, timeout=timeout, device_id=device if backend == "nccl" else None)
    return rank, world, device


def leave_processes():
    if dist.is_initialized():
        dist.destroy_process_group()


def from_the_first(value):
    """A plain value of the first process, in all of them."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def over_processes(tensors, world=None):
    """The means of tensors over the processes, in one exchange: a list. world: 1 where this one is alone."""
    if world == 1 or not dist.is_initialized():
        return list(tensors)
    flat = torch.cat([x.flatten() for x in tensors])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([x.numel() for x in tensors])
    return [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]


def average_buffers(model, world=None):
    """Running statistics become their means over the processes, each of which has seen its own images."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    for buffer, mean in zip(buffers, over_processes(buffers, world), strict=True):
        buffer.copy_(mean)


def from_all_processes(values):
    """The values (n,) of each process, one after the other, differentiable in this one's, so that the mean of
    the gradients of all processes is the gradient of what is made of them."""
    if not dist.is_initialized():
        return values
    world = dist.get_world_size()
    parts = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(parts, values.detach())
    # The same values, but world times their gradient, by which the mean over the processes divides
    parts[dist.get_rank()] = world * values - (world - 1) * values.detach()
    return torch.cat(parts)


def wait_for_processes():
    if dist.is_initialized():
        dist.barrier()


class Replayed:
    """A function of tensors that is recorded as a CUDA graph at its first call, and replayed from then on:
    its thousands of kernels start without Python between them.

    f(*tensors) returns tensors and may change others in place; it must not wait for the device. pool: of
    memory, of torch.cuda.graph_pool_handle. state: those tensors which the runs that warm up would change.
    What a call returns is overwritten by the next.
    """

    def __init__(self, f, pool, state=()):
        self.f, self.pool, self.state, self.graph = f, pool, list(state), None

    def __call__(self, *inputs):
        if self.graph is None:
            self.record(inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given.detach())
        self.graph.replay()
        return self.outputs

    def record(self, inputs):
        self.inputs = [x.detach().clone() for x in inputs]
        saved = [x.clone() for x in self.state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries choose their kernels and take their workspace
                self.f(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for x, old in zip(self.state, saved, strict=True):
            x.data.copy_(old)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=self.pool):
            self.outputs = self.f(*self.inputs)


def to_device(x, device):
    """A tensor of the CPU on a device; a GPU is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def generator(seed, stream):
    """A seeded CPU generator. Draws are made on the CPU, so a seed gives the same ones on every device.

    stream: a small number; generators of one seed and different streams are independent.
    """
    return torch.Generator().manual_seed(seed * 1000 + stream)


# ------------------------------------------------------------------------------------------------------------
# Small images, in memory
# ------------------------------------------------------------------------------------------------------------

DATASETS = ("cifar10", "cifar100", "folder", "shapes")  # those that are held in memory
# Beside those that begin with a dot, folders of systems and programs, which are no classes
SYSTEM_FOLDERS = "@eaDir", "__MACOSX", "lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information"


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
        from torchvision.transforms.v2.functional import resize

        images = resize(images.permute(0, 3, 1, 2), [image_size, image_size]).permute(0, 2, 3, 1).contiguous()
    return images, labels, classes


def _load_cifar(dataset, root, train):
    from torchvision import datasets

    made = None if os.path.isdir(root) else root
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    try:
        if processes()[0] == 0:  # one process downloads, and the others find it there
            kind(root, train=train, download=True)
        wait_for_processes()
        data = kind(root, train=train)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(made)  # empty, since nothing came
        raise BadInput(
            f"{dataset} is not in {root} and could not be downloaded ({one_line(error)}): put its "
            "archive from https://www.cs.toronto.edu/~kriz/cifar.html there, or use --dataset folder --data "
            "DIR, or --dataset shapes"
        ) from None
    return torch.from_numpy(data.data), torch.tensor(data.targets), data.classes


def _load_folder(root, image_size):
    """An image folder root/<class>/<image>. Images are resized by their shorter side and cropped to the
    center."""
    from torchvision.transforms import v2
    from tqdm import tqdm

    fit = [v2.Resize(image_size), v2.CenterCrop(image_size), v2.PILToTensor()]
    data = ImageFolder(root, v2.Compose(fit))
    images = torch.empty(len(data), image_size, image_size, 3, dtype=torch.uint8)
    for i in tqdm(range(len(data)), desc=f"reading {root}", disable=None, leave=False):
        images[i] = data[i][0].permute(1, 2, 0)
    return images, torch.tensor(data.targets), data.classes


class ImageFolder(torch.utils.data.Dataset):
    """torchvision's ImageFolder, root/<class>/<image>, without hidden files and the folders that systems and
    programs leave there. Other files that are left out are counted in a line on stderr. An item is an image,
    as _load_image reads it and the transform makes it, and its label. Raises BadInput where there are no two
    classes, or a class has no image."""

    def __init__(self, root, transform):
        from torchvision.datasets import folder

        self.root, self.transform, endings = os.fspath(root), transform, []
        hidden = lambda name: name.startswith(".") or name in SYSTEM_FOLDERS
        if not os.path.isdir(root):
            expected = "--data takes one with train/<class>/ and val/<class>/"
            raise BadInput(f"there is no folder {root}: {expected}")

        def is_image(path):
            if any(map(hidden, path[len(self.root) :].split(os.sep))):
                return False
            endings.append(os.path.splitext(path)[1].lower())
            return endings[-1] in folder.IMG_EXTENSIONS

        try:
            self.classes = [name for name in folder.find_classes(root)[0] if not hidden(name)]
            if not self.classes:
                raise FileNotFoundError("it has no class folder")
            places = {name: i for i, name in enumerate(self.classes)}
            self.samples = folder.make_dataset(self.root, places, is_valid_file=is_image)
        except OSError as error:
            expected = f"expected {root}/<class>/<image>.png or .jpg"
            raise BadInput(f"no images in {root} ({one_line(error)}): {expected}") from None
        finally:
            others = [ending or "no ending" for ending in endings if ending not in folder.IMG_EXTENSIONS]
            if others and processes()[0] == 0:
                line = f"{root}: {len(others)} of {len(endings)} files left out: "
                print(printable(line + ", ".join(sorted(set(others)))[:100]), file=sys.stderr)
        if len(self.classes) < 2:
            raise BadInput(f"{root} has one class, {self.classes[0]}: a classifier needs at least two")
        self.targets = [label for _, label in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        path, label = self.samples[i]
        return self.transform(_load_image(path)), label


def _load_image(path):
    """An image file as RGB, as a viewer shows it: turned as its EXIF orientation says, transparent parts on
    white, 16-bit grey scaled by 1/257. Raises BadInput where it cannot be read, or the range of its values is
    not defined, as that of floats and 32-bit integers."""
    import numpy
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            with contextlib.suppress(Exception):  # damaged EXIF data turns nothing, and photographs have it
                ImageOps.exif_transpose(image, in_place=True)
            wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
            if image.mode in ("I", "F") and not wide:
                raise ValueError(f"the range of its values, of mode {image.mode}, is not defined")
            if wide:
                image = Image.fromarray((numpy.asarray(image) / 257).round().astype("uint8"))
            if image.mode.endswith(("A", "a")) or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # each image format has errors of its own
        raise BadInput(f"{path} is not an image that can be read: {one_line(error)}; remove it") from None


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
        x, y = column - uniform(-0.35, 0.35, 1, 1), row - uniform(-0.35, 0.35, 1, 1)
        return (x * tilt.cos() + y * tilt.sin()) / scale, (y * tilt.cos() - x * tilt.sin()) / scale

    for _ in range(4):  # clutter
        u, v = place(0.05, 0.18)
        offset = uniform(-0.8, 0.8, 2, 1, 1) / 0.15
        scrap = (torch.maximum((u - offset[:, 0]).abs(), 2 * (v - offset[:, 1]).abs()) < 1)[..., None]
        images = torch.where(scrap, uniform(0, 1, 1, 1, 3), images)
    u, v = place(0.4, 0.7)
    inside = torch.stack([shape(u, v) for shape in SHAPES.values()], 1)[torch.arange(n), labels]
    # A color that differs from the background's by at least 0.4 in one channel.
    color = (background + torch.where(background < 0.5, 1, -1) * uniform(0.4, 0.9, 1, 1, 3)).clamp(0, 1)
    images = torch.where(inside[..., None], color, images)
    images = images + 0.1 * torch.randn(n, size, size, 3, generator=g)
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
    deviation, for `normalise`. Raises BadInput where there are too few."""
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


def augment(images, index, draws, mean, std, pad=4, cutout=0, flip=True):
    """A training batch: random crop after zero padding, random horizontal flip, normalisation, cutout.

    images: uint8 (N, H, W, 3), of which `index` (B,), on their device, is taken. draws: uniform numbers in
    [0, 1), (5, B): row of the crop, flip, column of the crop, row and column of the cutout. pad: pixels of
    padding; 0 for no crop. cutout: side of the square that is set to zero after normalisation, around a
    random pixel and clipped at the border (DeVries and Taylor 2017); 0 for none. flip: whether to flip.
    Returns float (B, 3, H, W).
    """
    H, W = images.shape[1:3]
    choices = torch.tensor([2 * pad + 1, 2, 2 * pad + 1, H, W])[:, None]
    top, unflipped, left, *center = to_device((draws * choices).long()[..., None], images.device)  # (B, 1)
    rows, columns = (torch.arange(side, device=images.device) for side in (H, W))
    batch = F.pad(images[index], (0, 0, pad, pad, pad, pad))
    batch = batch[torch.arange(len(index), device=images.device)[:, None], top + rows]
    chosen = left + (torch.where(unflipped > 0, columns, columns.flip(0)) if flip else columns)
    batch = batch.gather(2, chosen[:, None, :, None].expand(-1, H, W, 3))
    batch = normalise(batch, mean, std)
    if cutout:
        first, last = center[0] - cutout // 2, center[1] - cutout // 2
        hole = ((rows >= first) & (rows < first + 2 * (cutout // 2)))[:, :, None]
        hole = hole & ((columns >= last) & (columns < last + 2 * (cutout // 2)))[:, None]
        batch.masked_fill_(hole[:, None], 0)
    return batch


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
        self.checksum = checksum(images, labels)

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
        chosen = to_device(chosen, self.images.device)
        return [
            (
                augment(self.images, chosen[part], draws[:, part], **self.augmentation),
                self.labels[chosen[part]],
            )
            for part in self.parts
        ]

    def start_epoch(self, epoch):
        """Nothing to do: the place in the round is part of the state."""

    def state_dict(self):
        return dict(order=self.order, place=self.place, generator=self.g.get_state(), checksum=self.checksum)

    def load_state_dict(self, state):
        if state["checksum"] != self.checksum:
            raise ValueError("its images are not those of --data")
        self.order, self.place = state["order"], state["place"]
        self.g.set_state(state["generator"])


def checksum(images, labels):
    """A number that tells a set of images from others."""
    return zlib.crc32(labels.cpu().numpy(), zlib.crc32(images.cpu().numpy()))


class InOrder:
    """Batches (x, y) of the images that `index` names, in order and not augmented, for evaluation."""

    def __init__(self, images, labels, index, batch_size, mean, std):
        self.images, self.labels, self.parts = images, labels, index.to(images.device).split(batch_size)
        self.normalisation, self.checksum = dict(mean=mean, std=std), checksum(images, labels)

    def state_dict(self):
        return {"checksum": self.checksum}

    def load_state_dict(self, state):
        if state != self.state_dict():
            raise ValueError("its images are not those of --data")

    def __iter__(self):
        for part in self.parts:
            yield normalise(self.images[part], **self.normalisation), self.labels[part]


# ------------------------------------------------------------------------------------------------------------
# Run folders
# ------------------------------------------------------------------------------------------------------------


def write_file(path, data):
    """Write a text or bytes file beside `path` and rename it over, so that a kill leaves the old one or the
    new one. Raises CannotWrite."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode(errors="replace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # a full disk or an interrupt: leave the old file and nothing else
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from None
        raise


def cannot_write(path, error):
    """The CannotWrite for an OSError at this path."""
    room = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    mend = "make room there, or lift the limit on the size of files" if room else "choose another place"
    return CannotWrite(f"{path} cannot be written ({error.strerror or one_line(error)}): {mend}")


class RunFolder:
    """The folder of one run: args.json, log.txt, metrics.csv, checkpoint.pt, and what the script adds.

    writes: False for a process that shares the run but leaves the writing to another.
    """

    def __init__(self, path, args, writes=True):
        self.path, self.writes = path, writes
        self.write_json("args.json", vars(args))

    def file(self, name):
        return os.path.join(self.path, name)

    def log(self, text):
        """Print a line, above the progress bar if there is one, and add it to log.txt."""
        if not self.writes:
            return
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        path = self.file("log.txt")
        try:
            with open(path, "a", encoding="utf-8", errors="replace") as file:
                file.write(text + "\n")
        except OSError as error:
            raise cannot_write(path, error) from None

    def save(self, parts, epoch, rows, args):
        """Save checkpoint.pt, which load_checkpoint and restore read, and metrics.csv. An older result goes.

        parts: name to anything with a state_dict. epoch: epochs done. rows: a dict of plain values for each
        of them.
        """
        if self.writes:
            self.drop_result()
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"epoch": epoch, "rows": rows, "args": vars(args)}
            torch.save(state, buffer := io.BytesIO())
            write_file(self.file("checkpoint.pt"), buffer.getvalue())
            self.write_metrics(rows)

    def drop_result(self):
        """Remove the result.json of a run that goes on."""
        if self.writes:
            pathlib.Path(self.file("result.json")).unlink(missing_ok=True)

    def log_resumed(self, checkpoint, args):
        """Bring metrics.csv to the checkpoint's epoch, and log where the run goes on."""
        self.write_metrics(checkpoint["rows"])
        self.log(f"resumed after epoch {checkpoint['epoch']} of {args.epochs}")
        before = checkpoint["args"]["epochs"]
        if args.epochs != before:
            self.log(f"--epochs was {before}: the schedule follows the new number from here on")

    def write_json(self, name, data):
        if self.writes:
            write_file(self.file(name), json.dumps(data, indent=2) + "\n")

    def write_metrics(self, rows):
        """metrics.csv, a line a row; it is made anew from the rows in the checkpoint, so no row is lost or
        doubled."""
        if self.writes:
            write_csv(self.file("metrics.csv"), rows)


def write_csv(path, rows):
    """A CSV file of dicts; a value that one of them lacks is empty."""
    table = io.StringIO()
    if rows:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(table, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_file(path, table.getvalue())


def new_run_path(script, what):
    """runs/<script>-<what>-<time>-<random>, since runs may be started in the same second."""
    return f"runs/{script}-{what}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}"


def report(bar, where, step, steps, **losses):
    """Losses beside a run's progress bar; where it is off, for want of a terminal, in a line, as DARTS prints
    them. Bars that do not stay, such as those of sample.py's many trainings, get no lines."""
    losses = {name: f"{loss:.4f}" for name, loss in losses.items()}
    if not bar.disable:
        bar.set_postfix(**losses)
    elif bar.leave and step < steps and processes()[0] == 0:
        print(f"{where}, step {step} of {steps}: {', '.join(map(' '.join, losses.items()))}", flush=True)


@contextlib.contextmanager
def claimed(path, resume=None):
    """Hold the run folder at `path` for this run alone, and make it where there is none. Raises BadInput
    where it holds a run and is not to `resume` it, or where that run is still going on. Of several processes
    the first one claims.

    The claim is a lock on an open file, which the system drops when the process ends, however it does. A run
    that ends before it has written more than args.json removes the folders it made.
    """
    if processes()[0]:
        yield
        return
    names = () if resume or not os.path.isdir(path) else os.listdir(path)
    signs = "checkpoint.pt", "result.json", "genotype.json", "evaluations.csv"
    if any(name in signs or name.startswith("seed-") for name in names):
        raise BadInput(f"{path} holds a run already: choose another --save, or give --resume {path} to go on")
    here = pathlib.Path(path).absolute()
    made = [folder for folder in (here, *here.parents) if not folder.exists()]
    try:
        os.makedirs(path, exist_ok=True)
        lock = open(here / ".lock", "a")
    except OSError as error:
        raise cannot_write(f"the run folder {path}", error) from None
    with lock:
        try:
            import fcntl  # which Windows lacks

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.register_at_fork(after_in_child=lock.close)  # or workers hold it beyond the end of the run
        except BlockingIOError:
            mend = "wait for it, or stop it first" if resume else "choose another --save"
            raise BadInput(f"{path} holds a run already, which is going on: {mend}") from None
        except (ImportError, OSError):  # Windows, or a disk without locks
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(here / ".lock")
                if not resume and set(os.listdir(path)) <= {"args.json"}:
                    (here / "args.json").unlink(missing_ok=True)
                    for folder in made:
                        folder.rmdir()


# ------------------------------------------------------------------------------------------------------------
# Resuming
# ------------------------------------------------------------------------------------------------------------


def saved_args(path, script):
    """The flags of a run but --save and --resume, a dict to be an argument parser's defaults: from a run
    folder's args.json, or from a checkpoint file. Raises BadInput where they cannot be read, or are those of
    another script."""
    try:
        if os.path.isdir(path):
            with open(os.path.join(path, "args.json"), encoding="utf-8") as file:
                saved = dict(json.load(file))
        else:
            saved = load_checkpoint(path)["args"]
    except FileNotFoundError:
        raise BadInput(f"{path} is not a run folder: there is no args.json in it") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}/args.json cannot be read ({one_line(error)[:80]}): put it back") from None
    if saved.get("script") != script:
        raise BadInput(f"{path} is a run of {saved.get('script')}, not of {script}")
    return {name: value for name, value in saved.items() if name not in ("save", "resume")}


def load_checkpoint(path):
    """A checkpoint file, or that of a run folder, as a dict. Only tensors and plain data are admitted. Raises
    BadInput where it is damaged."""
    path = os.path.join(path, "checkpoint.pt") if os.path.isdir(path) else path
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("its contents do not match their checksums")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["args"]["epochs"], checkpoint["epoch"], checkpoint["rows"]
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"there is no checkpoint {path}: give --resume a folder that a run wrote, or start the run anew "
            "if it ended before its first epoch"
        ) from None
    except Exception as error:  # what reading arbitrary bytes can raise is not a closed list
        reason = one_line(error)[:80]
        if isinstance(error, pickle.UnpicklingError):  # torch's own words are about its versions
            reason = "it is not all tensors and plain data"
        raise BadInput(
            f"the checkpoint {path} is damaged or not a checkpoint ({reason}): "
            "start the run anew, with another --save"
        ) from None
    return checkpoint


def restore(parts, checkpoint):
    """Load a checkpoint's states into parts, as RunFolder.save took them. Raises BadInput where they do not
    fit."""
    try:
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError, TypeError) as error:
        reason = f"the checkpoint does not fit this run ({one_line(error)})"
        raise BadInput(f"{reason}: give the data of the run, or start the run anew") from None


class State(dict):
    """Plain values with the state_dict of a module or optimizer."""

    state_dict, load_state_dict = dict.copy, dict.update


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
        raise NotFinite(f"the loss is not finite at step {step} of {where}; last good: {checkpoint}")


def check_finite_state(model, loss, where, checkpoint):
    """Raise NotFinite, as above, unless an evaluation's loss and every weight and statistic of the model are
    finite: what is saved as good has to be."""
    if not (math.isfinite(loss) and all(value.isfinite().all() for value in model.state_dict().values())):
        raise NotFinite(f"the loss or the weights are not finite after {where}; last good: {checkpoint}")


def check_same_run(args, saved, may_differ, done=0):
    """Raise BadInput unless the flags are those of the run to resume, as it saved them, those in may_differ
    apart, and --epochs is not less than the epochs done."""
    now = vars(args)
    if now.get("epochs", done) < done:
        raise BadInput(f"--epochs {now['epochs']} is less than the {done} that are done: give more")
    different = [
        f"--{name} {now[name]} (there: {saved[name]})"
        for name in sorted(now.keys() & saved.keys() - set(may_differ))
        if now[name] != saved[name]
    ]
    if different:
        raise BadInput(f"--resume names a run of another configuration: {', '.join(different)}")
