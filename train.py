"""Train the network built from a fixed cell, and evaluate it.

    python train.py --arch NA_DARTS                               CIFAR-10, downloaded on first use
    python train.py --arch runs/SEARCH --dataset cifar100         the cell that a search found
    python train.py --arch "|nor_conv_3x3~0|+|none~0|..."         the network of NAS-Bench-201
    torchrun --nproc_per_node 8 train.py --arch NA_DARTS --dataset imagenet --data DIR
    python train.py --dataset folder --data DIR --image_size 32 --valid_portion 0.1 --seeds 0 1 2
    python train.py --resume FOLDER                               go on; flags as they were
    python train.py --eval --resume FOLDER|FILE                   test a checkpoint; --export FILE.pt2: export
    python train.py --quick                                       a minute on a CPU, without any data

The defaults depend on the network, see RECIPES: DARTS's for CIFAR (Liu, Simonyan, Yang; ICLR 2019), DARTS's
for ImageNet in the large-batch variant that later work uses (such as PC-DARTS; Xu et al., ICLR 2020), and
NAS-Bench-201's (Dong, Yang; ICLR 2020).

What is reported: without --valid_portion, the test accuracy after the last epoch, never that of the best one;
with it, part of the training set is held out, the best epoch is chosen on that part, and the test set is used
once, at the end.

--batch_size is the whole batch of a step. Processes under torchrun, and the pieces of --accumulate, share it,
so a recipe means the same on any number of GPUs, except that batch norm sees one piece at a time. A run
writes one folder: args.json, log.txt, metrics.csv, checkpoint.pt, result.json.

Deviations from the original DARTS code: images are normalised by the mean and deviation of the training set
at hand (ImageNet: by the usual constants); batches are always full; random crops are padded by an eighth of
the side, which is DARTS's 4 pixels at 32 x 32. From PC-DARTS's ImageNet code: the linear schedule falls
evenly over all epochs, without another slope in the last five.
"""

import copy
import inspect
import io
import json
import math
import os
import statistics
import time
import zlib
from argparse import BooleanOptionalAction, Namespace
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset

import utils
from genotypes import NAMED, Genotype, format_architecture, parse_architecture
from model import NETWORKS, count_macs
from utils import within

RECIPES = {
    "cifar": dict(
        init_channels=36, layers=20, auxiliary=True, drop_path_prob=0.2, cutout=True, label_smooth=0.0,
        epochs=600, batch_size=96, base_batch=0, learning_rate=0.025, schedule="cosine", warmup_epochs=0,
        nesterov=False, weight_decay=3e-4, grad_clip=5.0,
    ),
    "imagenet": dict(
        init_channels=48, layers=14, auxiliary=True, drop_path_prob=0.0, cutout=False, label_smooth=0.1,
        epochs=250, batch_size=1024, base_batch=1024, learning_rate=0.5, schedule="linear", warmup_epochs=5,
        nesterov=False, weight_decay=3e-5, grad_clip=5.0,
    ),
    "nasbench201": dict(
        init_channels=16, layers=5, auxiliary=False, drop_path_prob=0.0, cutout=False, label_smooth=0.0,
        epochs=200, batch_size=256, base_batch=0, learning_rate=0.1, schedule="cosine", warmup_epochs=0,
        nesterov=True, weight_decay=5e-4, grad_clip=0.0,
    ),
}  # fmt: skip
QUICK = dict(
    dataset="shapes", image_size=16, init_channels=8, epochs=3, batch_size=64, learning_rate=0.05,
    auxiliary=False, drop_path_prob=0.0, cutout=False,
)  # fmt: skip

# The learning rate as a fraction of the first, after e of E epochs. gamma: the factor of an epoch.
SCHEDULE = {
    "cosine": lambda e, E, gamma: (1 + math.cos(math.pi * e / E)) / 2,
    "linear": lambda e, E, gamma: 1 - e / E,
    "exponential": lambda e, E, gamma: gamma**e,
}
# Flags that may change on --resume: epochs changes the schedule, workers what augmentation draws.
MAY_DIFFER = "epochs name seeds data device workers compile report_freq save resume eval export quick".split()
EVAL_MAY_DIFFER = "batch_size accumulate amp seed".split()  # those that a test depends on by rounding at most
TESTED = "test top-1 {top1:.2f} %, top-5 {top5:.2f} %, loss {loss:.4f}, after epoch {epoch}"
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_args(argv=None, world=None, **defaults):
    """world: the processes that share a batch, where it is not those of torchrun. defaults: of flags, in
    place of the recipe's."""
    parser = utils.Parser(__doc__)
    parser.set_defaults(script="train.py")
    add, recipe = parser.add_argument, "(default: the recipe's)"
    # fmt: off
    # The network
    add("--arch", default="NA_DARTS",
        help="a name, a search's run folder, a genotype.json, a printed genotype, a NAS-Bench-201 string")
    add("--init_channels", type=within(int, 2, 4096), help=f"channels of the first cells {recipe}")
    add("--layers", type=within(int, 1, 1000),
        help=f"cells, or cells in each stage of a NAS-Bench-201 network {recipe}")
    add("--auxiliary", action=BooleanOptionalAction, help=f"an auxiliary head at 2/3 of the depth {recipe}")
    add("--auxiliary_weight", type=within(float, 0, 100), default=0.4, help="weight of the auxiliary loss")
    add("--drop_path_prob", type=within(float, 0, 0.99),
        help=f"drop path probability, towards which it rises from 0 over the epochs {recipe}")
    # The data
    add("--dataset", choices=(*utils.DATASETS, "imagenet"), default="cifar10",
        help="folder: images held in memory, fitted to --image_size; imagenet: any folder of large ones, "
        "read as it goes; shapes is synthetic and needs no files")
    add("--data", default="data", help="where the data set lies, or is downloaded to")
    add("--image_size", type=within(int, 8, 1024), help="side of the images (default: 32, for imagenet 224)")
    add("--valid_portion", type=within(float, 0, 0.9), default=0.0,
        help="part of the training set that is held out to choose the epoch")
    add("--augment", action=BooleanOptionalAction, default=True,
        help="augment small images with random crops and flips")
    add("--cutout", action=BooleanOptionalAction, help=f"augment with cutout {recipe}")
    add("--cutout_length", type=within(int, 1, 1024),
        help="side of the cutout, pixels, an even number or rounded down to one (default: half the image's)")
    add("--workers", type=within(int, 0, 256), default=min(4, utils.cores()),
        help="processes that read imagenet's files, beside each one that trains (default: 4, or all cores)")
    # Optimisation
    add("--epochs", type=within(int, 1, 100_000), help=f"epochs {recipe}")
    add("--batch_size", type=within(int, 2, 1_000_000),
        help=f"images a step, over all processes and pieces {recipe}")
    add("--accumulate", type=within(int, 1, 65_536), default=1,
        help="pieces in which a process computes its share of a batch")
    add("--learning_rate", type=within(float, 1e-8, 100), help=f"learning rate at the start {recipe}")
    add("--base_batch", type=within(int, 0, 1_000_000),
        help=f"the learning rate is for this batch, and scaled with --batch_size; 0: not scaled {recipe}")
    add("--schedule", choices=SCHEDULE, help=f"decay of the learning rate {recipe}")
    add("--gamma", type=within(float, 1e-3, 1), default=0.97, help="factor of an epoch, if exponential")
    add("--warmup_epochs", type=within(int, 0, 100_000),
        help=f"epochs in which the learning rate rises linearly {recipe}")
    add("--momentum", type=within(float, 0, 0.9999), default=0.9, help="momentum of SGD")
    add("--nesterov", action=BooleanOptionalAction, help=f"Nesterov momentum {recipe}")
    add("--weight_decay", type=within(float, 0, 1), help=f"weight decay {recipe}")
    add("--grad_clip", type=within(float, 0, 1e8),
        help=f"norm to which the gradient is clipped; 0: not clipped {recipe}")
    add("--label_smooth", type=within(float, 0, 0.99), help=f"label smoothing {recipe}")
    # The run
    add("--seed", type=within(int, 0, 2**31), default=0, help="seed of everything random")
    add("--seeds", type=within(int, 0, 2**31), nargs="+",
        help="train once with each of these, and report mean and deviation")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU where there is one")
    add("--amp", choices=AMP, default="none", help="autocast to this type")
    add("--compile", action=BooleanOptionalAction, default=False, help="torch.compile the network")
    add("--report_freq", type=within(int, 1, 1_000_000), default=50, help="steps between looks at the loss")
    add("--save", help="run folder (default: runs/train-<arch>-<dataset>-<time>)")
    add("--resume", help="go on with the run in this folder; flags are as they were")
    add("--eval", action="store_true", help="test the checkpoint, folder or file, that --resume names")
    add("--export", metavar="FILE.pt2",
        help="with --eval: write the network, as torch.export does, for use without this code")
    add("--quick", action="store_true",
        help="a small synthetic run: " + ", ".join(f"{name} {value}" for name, value in QUICK.items())
        + ", layers 5, of NAS-Bench-201 1")
    # fmt: on
    try:
        first = parser.parse_known_args(argv)[0]
        saved = utils.saved_args(first.resume, "train.py") if first.resume else {}
        parser.set_defaults(**saved)  # the flags that are not given are those of the run
        first = parser.parse_known_args(argv)[0]
        arch = parse_architecture(first.arch)
        network = network_of(arch, first.dataset)
        size = dict(image_size=224 if network == "imagenet" else 32)
        quick = QUICK | {"layers": 1 if network == "nasbench201" else 5} if first.quick else {}
        parser.set_defaults(**RECIPES[network] | size | defaults | quick | saved)
        args = parser.parse_args(argv)
    except (ValueError, utils.BadInput) as error:
        parser.error(str(error))
    args.cutout_length = args.cutout_length or max(1, args.image_size // 2)
    check_args(parser, args, network, world or utils.processes()[1])
    # The cell itself, since a name may stand for another cell one day, and a file may change.
    args.name = saved.get("name", "cell")
    if args.arch in NAMED or os.path.exists(args.arch):
        args.name = os.path.basename(os.path.abspath(args.arch).removesuffix("/genotype.json"))
    args.arch = format_architecture(arch)
    return args


def network_of(arch, dataset):
    """The network, a key of NETWORKS, that an architecture is trained in."""
    if not isinstance(arch, Genotype):
        return "nasbench201"
    return "imagenet" if dataset == "imagenet" else "cifar"


def check_args(parser, args, network, world):
    """End with one line where a flag contradicts another. world: processes that share a batch."""
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {' '.join(map(str, args.seeds))}: give each seed once")
    if network != "nasbench201" and args.layers < 3:
        parser.error(f"--layers {args.layers}: a network of such a cell has at least 3")
    if network == "imagenet" and args.image_size < 64:
        parser.error(f"--image_size {args.image_size}: the ImageNet network takes images of at least 64")
    if network == "nasbench201" and args.dataset == "imagenet":
        parser.error("a NAS-Bench-201 network takes small images: use --dataset folder --image_size 16, say")
    if network == "nasbench201" and (args.auxiliary or args.drop_path_prob):
        flag = "auxiliary" if args.auxiliary else "drop_path_prob"
        parser.error(f"--{flag}: a NAS-Bench-201 network has neither an auxiliary head nor drop path")
    if args.dataset == "imagenet" and (args.cutout or not args.augment):
        parser.error("--cutout and --no-augment are for small images, which those of imagenet are not")
    if args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs a --momentum above 0")
    if args.eval and not args.resume:
        parser.error("--eval tests the checkpoint that --resume names: give --resume FOLDER or FILE")
    if args.export and not (args.eval and args.export.endswith(".pt2")):
        parser.error(f"--export {args.export}: give --eval --resume FOLDER, and a file that ends in .pt2")
    if args.eval and args.seeds:
        parser.error("--eval tests one checkpoint: give the folder of one seed to --resume")
    if args.resume and args.save not in (None, args.resume):
        parser.error("--resume goes on in its own folder: leave --save out")
    if args.resume and not args.eval and not os.path.isdir(args.resume):
        parser.error(f"--resume {args.resume} is not a run folder: only --eval takes a checkpoint file")
    pieces = args.accumulate * world
    if not args.eval and (args.batch_size % pieces or args.batch_size < 2 * pieces):
        parser.error(
            f"--batch_size {args.batch_size} cannot be cut into {pieces} equal pieces of two images or more: "
            "choose a multiple"
        )


# ------------------------------------------------------------------------------------------------------------
# Data
# ------------------------------------------------------------------------------------------------------------


def imagenet_transform(image_size, train):
    """PIL image to uint8 (3, S, S). train: DARTS's ImageNet augmentation (crop of random size and shape,
    flip, colors); otherwise the center, at 7/8 of the resized shorter side."""
    from torchvision.transforms import v2

    if train:
        steps = [
            v2.RandomResizedCrop(image_size),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
        ]
    else:
        steps = [v2.Resize(round(image_size * 8 / 7)), v2.CenterCrop(image_size)]
    return v2.Compose([*steps, v2.PILToTensor()])


class FileBatches:
    """Batches (x, y), on the device and normalised, of images that a DataLoader reads.

    data: an image folder of imagenet_transform. index: those of its images that count. size: images of a
    batch. With a seed they are training batches, as those of utils.Batches: shuffled anew each epoch, this
    process's share, in lists of `pieces`. shard: the slice of the images that is this process's, of training
    batches; otherwise index is its share already. Which images they hold does not depend on the number of
    workers; what the augmentation draws does.
    """

    def __init__(self, data, index, size, workers, device, mean, std, pieces=1, seed=None, shard=slice(None)):
        rank, world = shard.start or 0, shard.step or 1
        self.data, self.device, self.norm = data, device, dict(mean=mean, std=std)
        self.pieces, self.seed, self.g = pieces, seed, torch.Generator()
        subset, self.sampler = Subset(data, index.tolist()), None
        if seed is not None:
            # It adds the epoch to this seed: so far apart, no two runs share an order.
            self.sampler = DistributedSampler(subset, world, rank, seed=seed * 100_003, drop_last=True)
        # Workers start anew each epoch, so that what they draw follows from its number alone.
        self.loader = DataLoader(
            subset, size, sampler=self.sampler, num_workers=workers, pin_memory=device.type == "cuda",
            generator=self.g, drop_last=seed is not None,
        )  # fmt: skip

    def __len__(self):
        """Batches in an epoch."""
        return len(self.loader) // self.pieces

    def __iter__(self):
        try:
            for x, y in self.loader:
                x = x.to(self.device, non_blocking=True).permute(0, 2, 3, 1)
                yield utils.normalise(x, **self.norm), y.to(self.device, non_blocking=True)
        except utils.BadInput as error:  # a worker sends its whole traceback along: the last line is ours
            message = str(error).strip().splitlines()[-1].removeprefix("utils.BadInput: ")
            raise utils.BadInput(message) from None
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            raise utils.BadInput(
                "too little shared memory for --workers: give a container more (--shm-size 8g), or take fewer"
            ) from None

    def start_epoch(self, epoch):
        self.sampler.set_epoch(epoch)
        number = self.seed * 100_003 + epoch
        self.g.manual_seed(number * self.sampler.num_replicas + self.sampler.rank)  # processes augment apart
        self.batches = iter(self)

    def __next__(self):
        return [next(self.batches) for _ in range(self.pieces)]

    def state_dict(self):
        names = [os.path.relpath(path, self.data.root) for path, _ in self.data.samples]
        return {"checksum": zlib.crc32(repr(names).encode())}

    load_state_dict = utils.InOrder.load_state_dict


def load_train(args, device, rank=0, world=1):
    """What a run learns from: training batches, validation batches (None without --valid_portion), and a dict
    of class names and normalisation. rank, world: of the processes that share a batch."""
    files = args.dataset == "imagenet"
    if files:
        transform = imagenet_transform(args.image_size, train=True)
        train_set = utils.ImageFolder(os.path.join(args.data, "train"), transform)
        labels, classes = torch.tensor(train_set.targets), train_set.classes
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    else:
        images, labels, classes = utils.load_images(args.dataset, args.data, args.image_size)
        mean, std = utils.channel_statistics(images)
    held_out, kept = utils.split_balanced(labels, args.valid_portion, utils.generator(args.seed, 0))
    if len(kept) < args.batch_size:
        raise utils.BadInput(
            f"{len(kept)} training images do not fill a batch of {args.batch_size}: choose a smaller "
            "--batch_size"
        )
    lost = set(range(len(classes))) - set(labels[kept].tolist())
    if lost or (args.valid_portion and not len(held_out)):
        what = f"leaves none of the class {classes[min(lost)]} to train on" if lost else "holds out none"
        raise utils.BadInput(
            f"--valid_portion {args.valid_portion} of {len(labels)} images {what}: change it"
        )
    pieces, shard, norm = args.accumulate, slice(rank, None, world), dict(mean=mean, std=std)
    size, g = args.batch_size // (world * pieces), utils.generator(args.seed, 1)
    if files:
        plain_set = copy.copy(train_set)  # the same files, without another look at the folder
        plain_set.transform = imagenet_transform(args.image_size, train=False)
        reading = dict(workers=args.workers, device=device, **norm)
        train = FileBatches(train_set, kept, size, pieces=pieces, seed=args.seed, shard=shard, **reading)
        valid = FileBatches(plain_set, held_out[shard], size, **reading)
    else:
        images, labels = images.to(device), labels.to(device)
        parts = [slice(i * size, (i + 1) * size) for i in range(rank * pieces, (rank + 1) * pieces)]
        pad, cutout = images.shape[1] // 8 if args.augment else 0, args.cutout_length if args.cutout else 0
        augmentation = dict(pad=pad, cutout=cutout, flip=args.augment)
        train = utils.Batches(images, labels, kept, args.batch_size, g, parts, **augmentation, **norm)
        valid = utils.InOrder(images, labels, held_out[shard], size, **norm)
    data = dict(classes=classes, mean=mean.tolist(), std=std.tolist(), images=[len(kept), len(held_out)])
    return train, valid if args.valid_portion else None, data


def load_test(args, device, data, rank, world):
    """The test batches of this process. data: as load_train gives it; raises BadInput where the test set has
    other classes."""
    size = max(1, args.batch_size // (world * args.accumulate))
    norm = dict(mean=torch.tensor(data["mean"]), std=torch.tensor(data["std"]))
    if args.dataset == "imagenet":
        transform = imagenet_transform(args.image_size, train=False)
        test_set = utils.ImageFolder(os.path.join(args.data, "val"), transform)
        labels, classes = test_set.targets, test_set.classes
    else:
        images, labels, classes = utils.load_images(args.dataset, args.data, args.image_size, train=False)
    if classes != data["classes"]:
        odd = sorted(set(classes) ^ set(data["classes"]))
        raise utils.BadInput(
            f"the training and the test set have different classes ({', '.join(map(str, odd[:3]))} in one of "
            "them alone): give both the same folders"
        )
    index = torch.arange(len(labels))[rank::world]
    if args.dataset == "imagenet":
        return FileBatches(test_set, index, size, args.workers, device, **norm)
    return utils.InOrder(images.to(device), labels.to(device), index, size, **norm)


# ------------------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model, batches, autocast, world=1):
    """Loss (nats), top-1 and top-5 accuracy (percent) of a network in evaluation mode.

    batches: (x, y) on the network's device, this process's share of the set. world: the processes that share
    it. With at most five classes, top-5 is 100 %.
    """
    model.eval()
    total = torch.zeros(4, dtype=torch.float64)  # loss, top-1, top-5, images
    for x, y in batches:
        with autocast():
            logits = model(x)[0]
        logits = logits.float()
        loss = F.cross_entropy(logits, y, reduction="sum").item()
        hits = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
        total += torch.tensor([loss, hits[:, 0].sum().item(), hits.sum().item(), len(y)], dtype=torch.float64)
    model.train()
    if world > 1:
        total = total.to(next(model.parameters()).device)
        dist.all_reduce(total)
    loss, top1, top5, images = total.tolist()
    return dict(loss=loss / images, top1=100 * top1 / images, top5=100 * top5 / images)


def build(args, classes, device):
    """What a training works with: the network of args.arch on a device, its SGD, and --amp's autocast and
    scaler."""
    torch.backends.cudnn.benchmark = device.type == "cuda"  # its kernels are timed, as in DARTS
    torch.manual_seed(args.seed)  # the first weights
    arch = parse_architecture(args.arch)
    network = NETWORKS[network_of(arch, args.dataset)]
    model = network(args.init_channels, classes, args.layers, args.auxiliary, arch)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), args.learning_rate, args.momentum, weight_decay=args.weight_decay,
        nesterov=args.nesterov,
    )  # fmt: skip
    autocast = partial(torch.autocast, device.type, AMP[args.amp]) if AMP[args.amp] else nullcontext
    return model, optimizer, autocast, torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")


def train_epoch(net, optimizer, batches, args, epoch, bar, checkpoint, autocast, scaler, rank=0, world=1):
    """One epoch, numbered from 1: returns the learning rate, the mean loss (nats) and top-1 accuracy
    (percent).

    net: network, or what compiles or distributes it. batches: those of load_train. bar: tqdm's, moved on a
    step at a time. checkpoint: path of the last good one, which a NotFinite names. rank, world: of the
    processes that share a batch.
    """
    torch.manual_seed((args.seed * 100_003 + epoch) * 4096 + rank)  # what drop path draws from
    batches.start_epoch(epoch)
    device, steps = next(net.parameters()).device, len(batches)
    # Of this epoch, as a tensor: a compiled network is one graph for all of them.
    p = args.drop_path_prob
    drop_path = torch.tensor(p * (epoch - 1) / args.epochs, device=device) if p else None
    lr = args.learning_rate * (args.batch_size / args.base_batch if args.base_batch else 1)
    lr *= SCHEDULE[args.schedule](epoch - 1, args.epochs, args.gamma)
    if epoch < args.warmup_epochs:
        lr *= epoch / args.warmup_epochs
    optimizer.param_groups[0]["lr"] = lr
    losses, correct, seen = [], 0, 0  # losses of each step: the main head's, and what is minimised
    for step in range(1, steps + 1):
        pieces = next(batches)
        loss = torch.zeros(2, device=device)
        for i, (x, y) in enumerate(pieces, 1):
            # Gradients are exchanged with the last piece.
            with net.no_sync() if world > 1 and i < len(pieces) else nullcontext():
                with autocast():
                    logits, auxiliary = net(x, drop_path)
                    main_loss = total = F.cross_entropy(logits, y, label_smoothing=args.label_smooth)
                    if auxiliary is not None:
                        auxiliary = F.cross_entropy(auxiliary, y, label_smoothing=args.label_smooth)
                        total = total + args.auxiliary_weight * auxiliary
                scaler.scale(total / len(pieces)).backward()
            loss += torch.stack([main_loss, total]).detach() / len(pieces)
            correct += (logits.argmax(1) == y).sum()
            seen += len(y)
        scaler.unscale_(optimizer)
        if args.grad_clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), args.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

        losses.append(loss)
        bar.update()
        if step % args.report_freq == 0 or step == steps:  # not each step: a look makes a GPU wait
            where = f"epoch {epoch}, learning rate {lr:.3g}"
            (means,) = utils.over_processes([torch.stack(losses, 1)], world)
            utils.check_finite(means, where, checkpoint)
            utils.report(bar, where, step, steps, loss=means[0, -1].item())
    (correct,) = utils.over_processes([correct.float()], world)
    return lr, means[0].mean().item(), 100 * correct.item() / seen


def some_parts_are_unused(arch):
    """Whether an architecture has a part on which its output does not depend, so that no gradient arrives."""
    if not isinstance(arch, Genotype):
        return "none~" in arch
    cells = (arch.normal, arch.normal_concat), (arch.reduce, arch.reduce_concat)
    return any(
        node not in concat and all(source != node for _, source in pairs)
        for pairs, concat in cells
        for node in range(len(pairs) // 2 + 2)
    )


def train(args, rank, world, device):
    """One training, or what is left of one: returns the contents of result.json."""
    from tqdm import tqdm

    # The checkpoint to go on from or to test, and the images
    checkpoint = utils.load_checkpoint(args.resume) if args.resume else None
    if checkpoint:
        may_differ = MAY_DIFFER + (EVAL_MAY_DIFFER if args.eval else [])
        utils.check_same_run(args, checkpoint["args"], may_differ, checkpoint["epoch"])
    if args.eval:
        data = checkpoint.get("data")
        if not isinstance(data, dict) or not {"classes", "mean", "std"} <= data.keys():
            raise utils.BadInput(f"{args.resume} is not a checkpoint of train.py: it names no classes")
    else:
        train_batches, valid_batches, data = load_train(args, device, rank, world)
        if checkpoint and checkpoint["data"]["classes"] != data["classes"]:
            raise utils.BadInput(f"--data {args.data} has other classes than the run {args.resume}")
    test_batches = load_test(args, device, data, rank, world)

    # The network; compilation and processes are decided here once.
    model, optimizer, autocast, scaler = build(args, len(data["classes"]), device)
    macs = count_macs(model, args.image_size)
    head = 0 if not args.auxiliary else sum(w.numel() for w in model.auxiliary.parameters())
    parameters = sum(w.numel() for w in model.parameters()) - head
    net = model
    if world > 1:
        unused = some_parts_are_unused(parse_architecture(args.arch))
        # Running statistics are averaged at the end of an epoch instead. The flag's name depends on torch.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        net = DistributedDataParallel(net, find_unused_parameters=unused, **{sync: False})
    if args.compile:
        net = torch.compile(net, dynamic=False)

    # The run folder, and what a checkpoint holds besides its epoch
    best = utils.State(epoch=0, valid_top1=-1.0, model=None)  # of --valid_portion
    parts = dict(model=model, data=utils.State(data), best=best)
    if not args.eval:  # of the test images a checksum
        parts |= dict(optimizer=optimizer, scaler=scaler, batches=train_batches, test=test_batches)
    start, rows = 0, []
    if checkpoint:
        utils.restore(parts, checkpoint)
        start, rows = checkpoint["epoch"], checkpoint["rows"]
    if args.eval:
        if best["model"] is not None:  # of the best epoch on the held-out part
            model.load_state_dict(best["model"])
        scores = evaluate(model, test_batches, autocast, world)
        if rank == 0:
            print(TESTED.format(epoch=best["epoch"] or start, **scores))
        if args.export and rank == 0:
            export(model, data, args, next(iter(test_batches))[0])
        return scores
    utils.wait_for_processes()  # no process looks for a checkpoint that another has just written
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    if checkpoint:
        folder.log_resumed(checkpoint, args)
        if start == args.epochs and os.path.exists(folder.file("result.json")):
            folder.log(f"{args.save} is complete; a larger --epochs goes on")
            with open(folder.file("result.json"), encoding="utf-8") as file:
                return json.load(file)
    else:
        folder.save(parts, 0, rows, args)
        heads = f" ({parameters + head:,} with auxiliary head)" if head else ""
        folder.log(
            f"{args.name}: {parameters:,} parameters{heads}, {macs:,} MACs; {args.dataset}: "
            f"{data['images'][0]:,} training and {data['images'][1]:,} validation images, "
            f"{len(data['classes'])} classes; {world} x {device}, {torch.get_num_threads()} threads; "
            f"seed {args.seed}; run folder {folder.path}"
        )

    steps, held_out = len(train_batches), valid_batches is not None
    bar = tqdm(total=args.epochs * steps, initial=start * steps, unit="step", disable=True if rank else None)
    for epoch in range(start + 1, args.epochs + 1):
        started = time.perf_counter()
        lr, train_loss, train_top1 = train_epoch(
            net, optimizer, train_batches, args, epoch, bar, folder.file("checkpoint.pt"), autocast, scaler,
            rank, world,
        )  # fmt: skip

        # The held-out part, or the test set; a checkpoint
        utils.average_buffers(model, world)
        part = "valid" if held_out else "test"
        scores = evaluate(model, valid_batches if held_out else test_batches, autocast, world)
        where = f"epoch {epoch}, learning rate {lr:.3g}"
        utils.check_finite_state(model, scores["loss"], where, folder.file("checkpoint.pt"))
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": lr,
                "train_loss": train_loss,
                "train_top1": train_top1,
                **{f"{part}_{name}": value for name, value in scores.items()},
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        if held_out and scores["top1"] > best["valid_top1"]:
            best.update(epoch=epoch, valid_top1=scores["top1"], model=copy.deepcopy(model.state_dict()))
        folder.save(parts, epoch, rows, args)
        folder.log(
            f"epoch {epoch}: learning rate {lr:.4f}, train loss {train_loss:.4f} "
            f"top-1 {train_top1:.2f} %, {part} loss {scores['loss']:.4f} top-1 {scores['top1']:.2f} % "
            f"top-5 {scores['top5']:.2f} %, {rows[-1]['seconds']:.1f} s"
        )
    bar.close()

    # The epoch that counts: the best one on the held-out part, or the last.
    counts = best["epoch"] if held_out else args.epochs
    if held_out:
        model.load_state_dict(best["model"])
        scores = evaluate(model, test_batches, autocast, world)
    else:
        scores = {name: rows[-1][f"test_{name}"] for name in ("loss", "top1", "top5")}
    result = {
        "name": args.name,
        "arch": args.arch,
        "dataset": args.dataset,
        "parameters": parameters,
        "parameters_with_auxiliary": parameters + head,
        "macs": macs,
        "epochs": args.epochs,
        "epoch": counts,
        "seed": args.seed,
        **{name: value for name, value in rows[counts - 1].items() if name.startswith("valid_")},
        **{f"test_{name}": value for name, value in scores.items()},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "device": f"{world} x {device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    folder.write_json("result.json", result)
    chosen = "best on the held-out part" if held_out else "the last"
    folder.log(f"{TESTED.format(epoch=counts, **scores)} ({chosen}); {folder.path}")
    return result


class Exported(torch.nn.Module):
    """What --export writes: images (B, 3, S, S), with pixels from 0 to 1, to logits (B, classes)."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x):
        return self.model((x - self.mean) / self.std)[0]


@torch.no_grad()
def export(model, data, args, x):
    """Write a network, in evaluation mode and on the CPU, to the file --export. x: test images, normalised.
    Raises BadInput where what loads from the file gives other logits."""
    net = Exported(model, data["mean"], data["std"]).eval().to("cpu", memory_format=torch.contiguous_format)
    example, images = torch.zeros(2, 3, args.image_size, args.image_size), torch.export.Dim("images")
    program = torch.export.export(net, (example,), dynamic_shapes=({0: images},), strict=False)
    torch.export.save(program, buffer := io.BytesIO())
    x = x.cpu() * net.std + net.mean
    difference = (torch.export.load(buffer).module()(x) - net(x)).abs().max().item()
    if not difference < 1e-3:
        raise utils.BadInput(f"--export {args.export}: what it holds gives other logits, by {difference:.1g}")
    utils.write_file(args.export, buffer.getvalue())
    print(f"wrote {args.export}; its logits of {len(x)} test images differ by {difference:.1g} at most")


def train_seeds(args, rank, world, device):
    """One training for each seed, in a folder of its own, and their mean and standard deviation."""
    runs = []
    for seed in args.seeds:
        path = os.path.join(args.save, f"seed-{seed}")
        started = args.resume and os.path.exists(os.path.join(path, "checkpoint.pt"))
        more = {"seed": seed, "seeds": None, "save": path, "resume": path if started else None}
        runs.append(Namespace(**{**vars(args), **more}))
    if args.resume and os.path.exists(os.path.join(args.save, "checkpoint.pt")):
        raise utils.BadInput(f"{args.save} is the run of one seed: leave --seeds out, or give another --save")
    if args.resume:
        done = [utils.load_checkpoint(one.resume)["epoch"] for one in runs if one.resume]
        saved = utils.saved_args(args.resume, "train.py")
        utils.check_same_run(args, saved, MAY_DIFFER, max(done, default=0))
    utils.wait_for_processes()  # no process looks for a run that another has just begun
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    folder.drop_result()
    results = []
    for one in runs:
        with utils.claimed(one.save, one.resume):
            results.append(train(one, rank, world, device))
    summary = {k: results[0][k] for k in ("name", "arch", "dataset", "parameters", "macs", "epochs")}
    summary["seeds"] = args.seeds
    for name in ("test_top1", "test_top5", "test_loss"):
        values = [result[name] for result in results]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": statistics.mean(values), "std": deviation, "values": values}
    folder.write_json("result.json", summary)
    top1 = summary["test_top1"]
    spread = "" if top1["std"] is None else f" +- {top1['std']:.2f}"
    folder.log(
        f"test top-1 {top1['mean']:.2f}{spread} % over seeds {' '.join(map(str, args.seeds))}; {folder.path}"
    )


def main(args):
    rank, world, device = utils.join_processes(args.device)
    path = args.resume or args.save or utils.new_run_path("train", f"{args.name}-{args.dataset}")
    args.save = utils.from_the_first(path)  # its time is that of the first process
    with nullcontext() if args.eval else utils.claimed(args.save, args.resume):
        (train_seeds if args.seeds else train)(args, rank, world, device)
    utils.leave_processes()


if __name__ == "__main__":
    utils.run(main, parse_args())
