"""Train the network built from a fixed cell, and evaluate it.

    python train.py --arch NA_DARTS                               CIFAR-10, downloaded on first use
    python train.py --arch runs/SEARCH --dataset cifar100         the cell that a search found
    python train.py --arch "|nor_conv_3x3~0|+|none~0|..."         the network of NAS-Bench-201
    torchrun --nproc_per_node 8 train.py --arch NA_DARTS --dataset imagenet --data DIR
    python train.py --dataset folder --data DIR --image_size 32 --valid_portion 0.1 --seeds 0 1 2
    python train.py --resume FOLDER                               go on; flags as they were
    python train.py --eval --resume FOLDER|FILE                   test a checkpoint
    python train.py --quick                                       two minutes on a CPU, without any data

The defaults depend on the network, see RECIPES: DARTS's for CIFAR (Liu, Simonyan, Yang; ICLR 2019), DARTS's
for ImageNet in the large-batch variant that later work uses (such as PC-DARTS; Xu et al., ICLR 2020), and
NAS-Bench-201's (Dong, Yang; ICLR 2020).

What is reported: without --valid_portion, the test accuracy after the last epoch, never that of the best one;
with it, part of the training set is held out, the best epoch is chosen on that part, and the test set is used
once, at the end.

--batch_size is the whole batch of a step. Processes under torchrun, and the pieces of --accumulate, share it,
so a recipe means the same on any number of GPUs, but that batch norm sees the pieces one at a time. A run
writes one folder: args.json, log.txt, metrics.csv, checkpoint.pt, result.json.

Deviations from the original DARTS code: images are normalised by the mean and deviation of the training set
at hand (ImageNet: by the usual constants); batches are always full; random crops are padded by an eighth of
the side, which is DARTS's 4 pixels at 32 x 32. From PC-DARTS's ImageNet code: the linear schedule falls
evenly over all epochs, without another slope in the last five.
"""

import copy
import inspect
import math
import os
import statistics
import time
from argparse import BooleanOptionalAction, Namespace
from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import utils
from genotypes import NAMED, Genotype, format_architecture, parse_architecture
from model import NETWORKS, count_macs

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
QUICK = dict(dataset="shapes", image_size=16, init_channels=8, layers=5, epochs=5, batch_size=64)

# The learning rate as a fraction of the first, after e of E epochs. gamma: the factor of an epoch.
SCHEDULE = {
    "cosine": lambda e, E, gamma: (1 + math.cos(math.pi * e / E)) / 2,
    "linear": lambda e, E, gamma: 1 - e / E,
    "exponential": lambda e, E, gamma: gamma**e,
}
# Flags that may change when a run is resumed, since they change nothing in it.
MAY_DIFFER = "name seeds data device workers compile report_freq save resume eval quick".split()
EVAL_MAY_DIFFER = "batch_size accumulate amp seed".split()  # those that a test depends on by rounding at most
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_args(argv=None, world=None):
    """world: the processes that share a batch, where it is not those of torchrun."""
    parser = utils.Parser(__doc__)
    add, recipe = parser.add_argument, "(default: the recipe's)"
    # fmt: off
    # The network
    add("--arch", default="NA_DARTS",
        help="a name, a search's run folder, a genotype.json, a printed genotype, a NAS-Bench-201 string")
    add("--init_channels", type=int, help=f"channels of the first cells {recipe}")
    add("--layers", type=int, help=f"cells, or cells in each stage of a NAS-Bench-201 network {recipe}")
    add("--auxiliary", action=BooleanOptionalAction, help=f"an auxiliary head at 2/3 of the depth {recipe}")
    add("--auxiliary_weight", type=float, default=0.4, help="weight of the auxiliary head's loss")
    add("--drop_path_prob", type=float, help=f"drop path probability, reached at the last epoch {recipe}")
    # The data
    add("--dataset", choices=(*utils.DATASETS, "imagenet"), default="cifar10",
        help="folder: small images, held in memory; imagenet: any folder of large ones, read as it goes; "
        "shapes is synthetic and needs no files")
    add("--data", default="data", help="where the data set lies, or is downloaded to")
    add("--image_size", type=int, help="side of the images (default: 32, for imagenet 224)")
    add("--valid_portion", type=float, default=0.0,
        help="part of the training set that is held out to choose the epoch")
    add("--cutout", action=BooleanOptionalAction, help=f"augment with cutout {recipe}")
    add("--cutout_length", type=int, help="side of the cutout, pixels (default: half that of the image)")
    add("--workers", type=int, default=min(4, utils.cores()),
        help="processes that read imagenet's files, beside each one that trains (default: 4, or all cores)")
    # Optimisation
    add("--epochs", type=int, help=f"epochs {recipe}")
    add("--batch_size", type=int, help=f"images a step, over all processes and pieces {recipe}")
    add("--accumulate", type=int, default=1, help="pieces in which a process computes its share of a batch")
    add("--learning_rate", type=float, help=f"learning rate at the start {recipe}")
    add("--base_batch", type=int,
        help=f"the learning rate is for this batch, and scaled with --batch_size; 0: not scaled {recipe}")
    add("--schedule", choices=SCHEDULE, help=f"decay of the learning rate {recipe}")
    add("--gamma", type=float, default=0.97, help="the factor of an epoch in the exponential schedule")
    add("--warmup_epochs", type=int, help=f"epochs in which the learning rate rises linearly {recipe}")
    add("--momentum", type=float, default=0.9, help="momentum of SGD")
    add("--nesterov", action=BooleanOptionalAction, help=f"Nesterov momentum {recipe}")
    add("--weight_decay", type=float, help=f"weight decay {recipe}")
    add("--grad_clip", type=float, help=f"norm to which the gradient is clipped; 0: not clipped {recipe}")
    add("--label_smooth", type=float, help=f"label smoothing {recipe}")
    # The run
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--seeds", type=int, nargs="+", help="train once with each of these, and report mean and deviation")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU where there is one")
    add("--amp", choices=AMP, default="none", help="autocast to this type")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--report_freq", type=int, default=50, help="steps between looks at the loss")
    add("--save", help="run folder (default: runs/train-<arch>-<dataset>-<time>)")
    add("--resume", help="go on with the run in this folder; flags are as they were")
    add("--eval", action="store_true", help="test the checkpoint, folder or file, that --resume names")
    add("--quick", action="store_true",
        help=f"a small synthetic run: {' '.join(f'--{name} {value}' for name, value in QUICK.items())}")
    # fmt: on
    try:
        first = parser.parse_known_args(argv)[0]
        if first.resume:  # the flags that are not given are those of the run
            parser.set_defaults(**utils.saved_args(first.resume, parser, ("resume", "save", "eval")))
        elif first.quick:
            parser.set_defaults(**QUICK)
        first = parser.parse_known_args(argv)[0]
        arch = parse_architecture(first.arch)
        network = network_of(arch, first.dataset)
        if not first.resume:
            size = 224 if network == "imagenet" else 32
            parser.set_defaults(**RECIPES[network], image_size=size)
            if first.quick:
                parser.set_defaults(**QUICK)
        args = parser.parse_args(argv)
    except (ValueError, utils.BadInput) as error:
        parser.error(str(error))
    if args.cutout_length is None:
        args.cutout_length = max(1, args.image_size // 2)
    check_args(parser, args, network, processes()[1] if world is None else world)
    # The cell itself, since a name may stand for another cell one day, and a file may change.
    if args.arch in NAMED:
        args.name = args.arch
    elif not hasattr(args, "name"):
        args.name = os.path.basename(os.path.abspath(args.arch)) if os.path.exists(args.arch) else "cell"
    args.arch = format_architecture(arch)
    return args


def processes():
    """This process's rank, and how many there are: one, unless torchrun has started more."""
    if not dist.is_torchelastic_launched():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def join_processes(device, timeout=None):
    """This process's rank, how many there are, and its device, once they are connected. device: a --device
    flag. timeout: a timedelta that one may wait for another, or torch's."""
    rank, world = processes()
    if world > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    device = utils.device_of(device)
    if world > 1:
        # Loaded later (by the first optimizer), its functions would keep the group as a default, and the
        # group's threads would outlive destroy_process_group: a process could abort as it ends.
        from torch.distributed.nn import functional  # noqa: F401

        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    return rank, world, device


def from_the_first(value, world):
    """A plain value of the first process, in all of them."""
    values = [value]
    if world > 1:
        dist.broadcast_object_list(values)
    return values[0]


def network_of(arch, dataset):
    """The network, a key of NETWORKS, that an architecture is trained in."""
    if not isinstance(arch, Genotype):
        return "nasbench201"
    return "imagenet" if dataset == "imagenet" else "cifar"


def check_args(parser, args, network, world):
    """End with one line where a flag is out of range or contradicts another."""
    ranges = dict(
        init_channels=(2, 4096), layers=(1 if network == "nasbench201" else 3, 1000),
        auxiliary_weight=(0, 100), drop_path_prob=(0, 0.99), valid_portion=(0, 0.9),
        image_size=(64 if network == "imagenet" else 8, 1024), cutout_length=(2, args.image_size),
        workers=(0, 256), epochs=(1, 100_000), batch_size=(1, 1_000_000),
        accumulate=(1, 65_536), learning_rate=(1e-8, 100), base_batch=(0, 1_000_000), gamma=(1e-3, 1),
        warmup_epochs=(0, 100_000), momentum=(0, 0.9999), weight_decay=(0, 1), grad_clip=(0, 1e8),
        label_smooth=(0, 0.99), seed=(0, 2**31), report_freq=(1, 1_000_000),
    )  # fmt: skip
    for name, (low, high) in ranges.items():
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} {getattr(args, name)} is out of range: it lies between {low} and {high}")
    if args.seeds and (
        len(set(args.seeds)) < len(args.seeds) or not all(0 <= s <= 2**31 for s in args.seeds)
    ):
        parser.error(f"--seeds {' '.join(map(str, args.seeds))}: give each seed once, from 0 to {2**31}")
    if network == "nasbench201" and args.dataset == "imagenet":
        parser.error("a NAS-Bench-201 network takes small images: use --dataset folder --image_size 16, say")
    if network == "nasbench201" and args.auxiliary:
        parser.error("--auxiliary: a NAS-Bench-201 network has no auxiliary head")
    if network == "nasbench201" and args.drop_path_prob:
        parser.error("--drop_path_prob: a NAS-Bench-201 network has no drop path")
    if args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs a --momentum above 0")
    if args.eval and not args.resume:
        parser.error("--eval tests the checkpoint that --resume names: give --resume FOLDER or FILE")
    if args.eval and args.seeds:
        parser.error("--eval tests one checkpoint: give the folder of one seed to --resume")
    if args.resume and args.save not in (None, args.resume):
        parser.error("--resume goes on in its own folder: leave --save out")
    if args.resume and not args.eval and not os.path.isdir(args.resume):
        parser.error(f"--resume {args.resume} is not a run folder: only --eval takes a checkpoint file")
    pieces = args.accumulate * world
    if args.eval:
        return
    if args.batch_size % pieces:
        parser.error(
            f"--batch_size {args.batch_size} cannot be cut into {pieces} equal pieces: choose a multiple"
        )
    if args.batch_size < 2 * pieces:
        parser.error(
            f"--batch_size {args.batch_size} in {pieces} pieces: batch norm wants two images in a piece, so "
            "choose more"
        )


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


def load_train(args, device, parts, g, shard):
    """What a run learns from: training batches, validation batches (None without --valid_portion), and a dict
    of class names and normalisation.

    parts: the slices of a batch that this process computes. g: the generator that draws the batches. shard:
    the slice of the validation set that this process evaluates.
    """
    files = args.dataset == "imagenet"
    if files:
        folder = os.path.join(args.data, "train")
        train_set, plain_set = (utils.ImageFiles(folder, args.image_size, train) for train in (True, False))
        labels, classes = torch.tensor(train_set.data.targets), train_set.data.classes
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
    if args.valid_portion and not len(held_out):
        raise utils.BadInput(
            f"--valid_portion {args.valid_portion} of {len(labels)} images holds out none: choose more"
        )
    lost = set(range(len(classes))) - set(labels[kept].tolist())
    if lost:
        raise utils.BadInput(
            f"--valid_portion {args.valid_portion} leaves no image of the class {classes[min(lost)]} to "
            "train on: choose less, or add images"
        )
    size, norm = parts[0].stop - parts[0].start, dict(mean=mean, std=std)
    if files:
        reading = dict(workers=args.workers, device=device, **norm)
        train = utils.FileBatches(train_set, kept, args.batch_size, g, parts, **reading)
        valid = utils.FilesInOrder(plain_set, held_out[shard], size, **reading)
    else:
        images, labels = images.to(device), labels.to(device)
        augmentation = dict(pad=images.shape[1] // 8, cutout=args.cutout_length if args.cutout else 0)
        train = utils.Batches(images, labels, kept, args.batch_size, g, parts, **augmentation, **norm)
        valid = utils.InOrder(images, labels, held_out[shard], size, **norm)
    data = dict(classes=classes, mean=mean.tolist(), std=std.tolist(), images=[len(kept), len(held_out)])
    return train, valid if args.valid_portion else None, data


def load_test(args, device, size, shard, data):
    """The test batches, of this size and of the images in this slice. data: as load_train gives it; raises
    BadInput where the test set has other classes."""
    norm = dict(mean=torch.tensor(data["mean"]), std=torch.tensor(data["std"]))
    if args.dataset == "imagenet":
        files = utils.ImageFiles(os.path.join(args.data, "val"), args.image_size, train=False)
        utils.check_same_classes(data["classes"], files.data.classes)
        index = torch.arange(len(files))[shard]
        return utils.FilesInOrder(files, index, size, args.workers, device, **norm)
    images, labels, classes = utils.load_images(args.dataset, args.data, args.image_size, train=False)
    utils.check_same_classes(data["classes"], classes)
    index = torch.arange(len(labels))[shard]
    return utils.InOrder(images.to(device), labels.to(device), index, size, **norm)


@torch.no_grad()
def evaluate(model, batches, autocast, world=1):
    """Loss (nats), top-1 and top-5 accuracy (percent) of a network in evaluation mode, over all processes.

    batches: (x, y) on the network's device, this process's share of the set. world: the processes that share
    it. With fewer than five classes, top-5 is 100 %.
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
    step at a time. checkpoint: path of the last good one, which a NotFinite names.
    """
    torch.manual_seed((args.seed * 100_003 + epoch) * 4096 + rank)  # what drop path draws from
    drop_path = args.drop_path_prob * (epoch - 1) / args.epochs
    learning_rate = args.learning_rate * (args.batch_size / args.base_batch if args.base_batch else 1)
    learning_rate *= SCHEDULE[args.schedule](epoch - 1, args.epochs, args.gamma)
    if epoch < args.warmup_epochs:
        learning_rate *= epoch / args.warmup_epochs
    optimizer.param_groups[0]["lr"] = learning_rate
    device, steps = next(net.parameters()).device, len(batches)
    losses, correct, seen = [], 0, 0  # losses of each step: the main head's, and what is minimised
    for step in range(1, steps + 1):
        pieces = next(batches)
        loss = torch.zeros(2, device=device)
        for i, (x, y) in enumerate(pieces, 1):
            # Gradients are exchanged with the last piece.
            alone = net.no_sync() if world > 1 and i < len(pieces) else nullcontext()
            with alone:
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
        if step % args.report_freq == 0 or step == steps:
            # Not each step, since a look at the loss makes a GPU wait.
            where = f"epoch {epoch}, learning rate {learning_rate:.3g}"
            means = over_processes(torch.stack(losses, 1), world)
            utils.check_finite(means, where, checkpoint)
            bar.set_postfix(loss=f"{means[0, -1]:.3f}")
    top1 = 100 * over_processes(correct.float(), world).item() / seen
    return learning_rate, means[0].mean().item(), top1


def train(args, rank, world, device):
    """One training, or what is left of one: returns the contents of result.json."""
    from tqdm import tqdm

    # The checkpoint to go on from or to test, this process's share of the work
    checkpoint = utils.load_checkpoint(utils.checkpoint_path(args.resume)) if args.resume else None
    if checkpoint:
        utils.check_same_run(args, checkpoint, MAY_DIFFER + (EVAL_MAY_DIFFER if args.eval else []))
    else:
        utils.check_free(args.save)
    size = max(1, args.batch_size // (world * args.accumulate))
    first = rank * args.accumulate
    parts = [slice(i * size, (i + 1) * size) for i in range(first, first + args.accumulate)]
    shard = slice(rank, None, world)
    g = utils.generator(args.seed, 1)
    if args.eval:
        data = checkpoint.get("data")
        lists = [data.get(name) for name in ("classes", "mean", "std")] if isinstance(data, dict) else [None]
        if not all(isinstance(item, list) for item in lists) or not len(lists[1]) == len(lists[2]) == 3:
            raise utils.BadInput(f"{args.resume} is not a checkpoint of train.py: it names no classes")
    else:
        train_batches, valid_batches, data = load_train(args, device, parts, g, shard)
        if checkpoint and checkpoint.get("data", {}).get("classes") != data["classes"]:
            raise utils.BadInput(f"--data {args.data} has other classes than the run {args.resume}")
    test_batches = load_test(args, device, size, shard, data)

    # The network; compilation and processes are decided here once.
    model, optimizer, autocast, scaler = build(args, len(data["classes"]), device)
    macs = count_macs(model, args.image_size)
    head = 0 if not args.auxiliary else sum(w.numel() for w in model.auxiliary.parameters())
    parameters = sum(w.numel() for w in model.parameters()) - head
    net = torch.compile(model) if args.compile else model
    if world > 1:
        unused = some_parts_are_unused(parse_architecture(args.arch))
        # Running statistics are averaged at the end of an epoch instead. The flag's name depends on torch.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        net = DistributedDataParallel(net, find_unused_parameters=unused, **{sync: False})

    # The run folder, and what a checkpoint holds besides its epoch
    best = utils.State(epoch=0, valid_top1=-1.0, model=None)  # of --valid_portion
    parts = dict(model=model, optimizer=optimizer, scaler=scaler, data=utils.State(data), best=best)
    if not args.eval:
        parts["batches"] = train_batches
    start, rows = 0, []
    if checkpoint:
        utils.restore(parts, checkpoint)
        start, rows = checkpoint["epoch"], checkpoint["rows"]
    if args.eval:
        return test_checkpoint(model, best, start, test_batches, autocast, rank, world)
    if world > 1:
        dist.barrier()  # no process looks for a checkpoint that another has just written
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    if checkpoint:
        folder.log_resumed(checkpoint, args)
    else:
        folder.save(parts, 0, rows, args)
        folder.log(
            f"{args.name}: {parameters:,} parameters ({parameters + head:,} with auxiliary head), {macs:,} "
            f"MACs; {args.dataset}: {data['images'][0]:,} training and {data['images'][1]:,} validation "
            f"images, {len(data['classes'])} classes; {world} x {device}, {torch.get_num_threads()} threads; "
            f"seed {args.seed}; run folder {folder.path}"
        )

    steps = len(train_batches)
    bar = tqdm(total=args.epochs * steps, initial=start * steps, unit="step", disable=True if rank else None)
    for epoch in range(start + 1, args.epochs + 1):
        started = time.perf_counter()
        learning_rate, train_loss, train_top1 = train_epoch(
            net, optimizer, train_batches, args, epoch, bar, folder.file("checkpoint.pt"), autocast, scaler,
            rank, world,
        )  # fmt: skip

        # The held-out part, or the test set; a checkpoint
        for buffer in model.buffers():  # running statistics: each process has seen its own images
            buffer.copy_(over_processes(buffer, world))
        part = "valid" if valid_batches else "test"
        scores = evaluate(model, valid_batches or test_batches, autocast, world)
        where = f"epoch {epoch}, learning rate {learning_rate:.3g}"
        utils.check_finite_state(model, scores["loss"], where, folder.file("checkpoint.pt"))
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": learning_rate,
                "train_loss": train_loss,
                "train_top1": train_top1,
                **{f"{part}_{name}": value for name, value in scores.items()},
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        if valid_batches and scores["top1"] > best["valid_top1"]:
            best.update(epoch=epoch, valid_top1=scores["top1"], model=copy.deepcopy(model.state_dict()))
        folder.save(parts, epoch, rows, args)
        folder.log(
            f"epoch {epoch}: learning rate {learning_rate:.4f}, train loss {train_loss:.4f} "
            f"top-1 {train_top1:.2f} %, {part} loss {scores['loss']:.4f} top-1 {scores['top1']:.2f} % "
            f"top-5 {scores['top5']:.2f} %, {rows[-1]['seconds']:.1f} s"
        )
    bar.close()

    # The epoch that counts: the best one on the held-out part, or the last.
    counts = best["epoch"] if valid_batches else args.epochs
    if valid_batches:
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
    folder.log(
        f"test top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, loss {scores['loss']:.4f}, after "
        f"epoch {counts} ({'best on the held-out part' if valid_batches else 'the last'}); {folder.path}"
    )
    return result


def over_processes(value, world):
    """The mean of a tensor over the processes."""
    if world == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world


def test_checkpoint(model, best, epoch, test_batches, autocast, rank, world):
    """Print the test accuracy of a checkpoint: of its best epoch on the held-out part, where it has one."""
    if best["model"] is not None:
        model.load_state_dict(best["model"])
        epoch = best["epoch"]
    scores = evaluate(model, test_batches, autocast, world)
    if rank == 0:
        print(
            f"test top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, loss {scores['loss']:.4f}, "
            f"after epoch {epoch}"
        )
    return scores


def main(args):
    rank, world, device = join_processes(args.device)
    args.save = args.resume or args.save or utils.new_run_path("train", f"{args.name}-{args.dataset}")
    args.save = from_the_first(args.save, world)  # its time is that of the first process
    if args.seeds is None:
        train(args, rank, world, device)
    else:
        train_seeds(args, rank, world, device)
    if world > 1:
        dist.destroy_process_group()


def train_seeds(args, rank, world, device):
    """One training for each seed, in a folder of its own, and their mean and standard deviation."""
    runs = []
    for seed in args.seeds:
        path = os.path.join(args.save, f"seed-{seed}")
        started = args.resume and os.path.exists(os.path.join(path, "checkpoint.pt"))
        more = {"seed": seed, "seeds": None, "save": path, "resume": path if started else None}
        runs.append(Namespace(**{**vars(args), **more}))
        if started:
            utils.check_same_run(runs[-1], utils.load_checkpoint(utils.checkpoint_path(path)), MAY_DIFFER)
    if not args.resume:
        utils.check_free(args.save)
    elif os.path.exists(os.path.join(args.save, "checkpoint.pt")):
        raise utils.BadInput(f"{args.save} is the run of one seed: leave --seeds out, or give another --save")
    if world > 1:
        dist.barrier()  # no process looks for a run that another has just begun
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    results = []
    for one in runs:
        results.append(train(one, rank, world, device))
    summary = {
        **{name: results[0][name] for name in ("name", "arch", "dataset", "parameters", "macs", "epochs")}
    }
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


if __name__ == "__main__":
    utils.run(main, parse_args())
