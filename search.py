"""Search for a cell by gradient: DARTS and NA-DARTS.

    python search.py --neighborhood 1 --agg mean         NA-DARTS on CIFAR-10, downloaded on first use
    python search.py --neighborhood 0 [--unrolled]       plain DARTS, first or second order
    python search.py --dataset folder --data DIR         your images, DIR/train/<class>/
    python search.py --space nasbench201 --bench T.csv   with the table's accuracies of the cell by epoch
    python search.py --algo rs|ls|ea ...                 random and local search, evolution: sample.py
    torchrun --nproc_per_node 4 search.py ...            each process runs its share of neighbors and images
    python search.py --quick                             a minute on a CPU, without any data

DARTS (Liu, Simonyan, Yang; ICLR 2019) trains the weights of a supernet on one half of the training set, and
its architecture parameters alpha on the other half, in alternating steps. NA-DARTS replaces the validation
loss of the architecture step by `g(f(N(a)))`, an aggregate over neighbors of the current mixture that share
the supernet's weights; see neighborhood.py. By default the neighbors run in one pass, each on its share of
the batch, so NA-DARTS costs what DARTS costs.

A run writes one folder: args.json, log.txt, metrics.csv, checkpoint.pt, genotype.json, result.json and the
cell as a picture. `--resume FOLDER` goes on from the last epoch, to the same result bit for bit on a CPU.

Deviations from the original DARTS code: the halves hold the same number of images of each class; images are
normalised by the mean and deviation of the training set at hand; batches are always full, and those of the
architecture step come from one iterator that cycles; the architecture half is evaluated without augmentation;
random crops are padded by an eighth of the side, which is DARTS's 4 pixels at 32 x 32; the architecture step
leaves the running statistics of batch norm alone, which only evaluation reads; and the second-order step does
not scale the optimizer's momentum in passing. Under torchrun, batch norm sees a process's share of the batch;
only a neighbor's own statistics do not depend on the number of processes. With first-order GDAS on one CPU
process, an operation that a step does not sample stays as it is; elsewhere momentum and weight decay still
move it, and its running statistics go on.
"""

import argparse
import math
import os
import shlex
import time

import torch
import torch.nn.functional as F
from torch.func import functional_call

import nats_bench
import utils
from genotypes import PARAMETER_FREE, SPACES, format_architecture, operations, read_cell, space_with, to_json
from model_search import SUPERNETS, running_statistics_kept, weights_held
from neighborhood import AGGREGATE, PERTURB, RELAX, neighbors, sample_shifts, uphill
from utils import within

LAYERS = {"darts": 8, "nasbench201": 5}
QUICK = dict(
    dataset="shapes", image_size=16, space="nasbench201", init_channels=8, epochs=4, batch_size=64,
    learning_rate=0.1, arch_learning_rate=0.03,
)  # fmt: skip
# What may change on --resume
MAY_DIFFER = "epochs resume save device data bench graph report_freq quick".split()
SHARPNESS_IMAGES = 64


# ------------------------------------------------------------------------------------------------------------
# The two steps
# ------------------------------------------------------------------------------------------------------------


def draw_shifts(model, args, epoch, g):
    """The neighbors of one step as shifts (n, E), drawn uniformly from the ball; with radius 0 the center. An
    experiment may put another function in its place."""
    cells, edges, ops = model.alpha.shape
    n = args.neighbors if args.neighborhood else 1
    return sample_shifts(cells * edges, ops, args.neighborhood, n, g)


def mixtures(alpha, shifts, args, g, t=0.0):
    """What neighbors (n, E), as shifts, evaluate: mixture weights (n, cells, E, O), differentiable in alpha.
    g: generator of what --relax draws. t: the fraction of the search that is done."""
    p = RELAX[args.relax].draw(alpha, len(shifts), g, t)
    # Ascent has no shifts: they are all 0 there, for which every perturbation leaves p as it is.
    perturb = "roll" if args.perturb == "ascent" else args.perturb
    return neighbors(p.flatten(1, 2), shifts, perturb).view(p.shape)


def by_alpha(alpha, q, by_q, args):
    """The gradient by alpha that follows from one by mixtures q. As in GDAS, of a sampled architecture only
    the operations that it has pass a gradient on."""
    by_q = by_q * (q != 0) if args.relax == "gumbel" else by_q
    return torch.autograd.grad(q, alpha, by_q)[0]


def neighborhood_loss(model, x, y, q, args, weights=None):
    """g(f(N(a))): the loss of each neighbor on its share of the batch, aggregated.

    x (B, 3, H, W), y (B,); q (n, cells, E, O): the neighbors' mixture weights. weights: a dict to use in
    place of the supernet's own. Returns a scalar, in nats. Of several processes each gives its own images and
    neighbors; the mean of their gradients is that of all.
    """
    if args.neighbor_batch == "repeat":
        x, y = x.repeat(len(q), 1, 1, 1), y.repeat(len(q))
    used = operations_used(q, args)
    logits = model(x, q, used) if weights is None else functional_call(model, weights, (x, q, used))
    losses = F.cross_entropy(logits, y, reduction="none").view(len(q), -1).mean(1)
    if args.neighborhood and args.agg != "mean" and args.perturb != "ascent":
        losses = utils.from_all_processes(losses)
    return AGGREGATE[args.agg](losses)


def operations_used(q, args):
    """Which operations to compute for sampled architectures q, as the supernet takes it. None, for all: on a
    GPU, where a step is one graph, where processes exchange gradients, and in second order."""
    if args.relax != "gumbel" or args.unrolled or q.device.type != "cpu" or utils.processes()[1] > 1:
        return None
    return (q != 0).any(0).tolist()


def autocast(args, x):
    return torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp == "bf16")


def arch_gradient(model, x, y, q, args):
    """First order: the neighborhood loss (nats), and its gradient by the mixtures q."""
    q = q.detach().requires_grad_()
    with running_statistics_kept(model), weights_held(model):
        with autocast(args, x):
            loss = neighborhood_loss(model, x, y, q, args)
        if not loss.requires_grad:  # sampled architectures of nothing but `none`
            return loss, torch.zeros_like(q)
        return loss.detach(), *torch.autograd.grad(loss, q)


def unrolled_gradient(model, optimizer, train, valid, args, lr, r=0.01):
    """Second order: the neighborhood loss after one weight step, and its gradients by the mixtures of the
    weight step and of the architecture step (DARTS, equations 6 to 8).

    train, valid: (x, y, q) of the weight step and of the architecture step. optimizer: the weights' SGD,
    whose momentum and weight decay the step ahead includes. lr: its learning rate, a tensor. r: length of the
    finite difference that stands for the product of the Hessian and a vector.
    """
    names = [name for name, _ in model.named_parameters() if name != "alpha"]
    weights, group = model.weight_parameters(), optimizer.param_groups[0]
    held = [w.detach() for w in weights]
    (x, y, q_train), (x_valid, y_valid, q_valid) = train, valid
    q_train, q_valid = q_train.detach().requires_grad_(), q_valid.detach().requires_grad_()

    def train_gradient(values, by):
        values = dict(zip(names, values, strict=True))
        logits = functional_call(model, values, (x, q_train))
        return torch.autograd.grad(F.cross_entropy(logits, y), by)

    with running_statistics_kept(model):
        # w' = w - lr (momentum * buffer + grad L_train(w) + weight_decay * w)
        step = torch._foreach_mul([optimizer.state[w]["momentum_buffer"] for w in weights], group["momentum"])
        torch._foreach_add_(step, utils.over_processes(train_gradient(weights, weights)))
        torch._foreach_add_(step, held, alpha=group["weight_decay"])
        ahead = [w.requires_grad_() for w in torch._foreach_sub(held, torch._foreach_mul(step, lr))]
        loss = neighborhood_loss(model, x_valid, y_valid, q_valid, args, dict(zip(names, ahead, strict=True)))
        by_valid, *v = torch.autograd.grad(loss, [q_valid, *ahead])
        v = utils.over_processes(v)
        h = r / torch.cat([part.flatten() for part in v]).norm()
        plus, minus = (
            train_gradient(torch._foreach_add(held, torch._foreach_mul(v, side)), q_train)[0]
            for side in (h, -h)
        )
    return loss.detach(), lr * (minus - plus) / (2 * h), by_valid


def weight_gradient(model, x, y, q, args):
    """The training loss (nats) under mixtures q, each with its share of the batch, and how many images are
    right, means over the processes. Its gradients by the weights are left in their .grad."""
    weights = model.weight_parameters()
    for w in weights:
        w.grad = None
    with autocast(args, x):
        logits = model(x, q, operations_used(q, args))
        loss = F.cross_entropy(logits, y)
    loss.backward(inputs=weights)
    right = (logits.argmax(1) == y).sum(dtype=loss.dtype)
    weights = [w for w in weights if w.grad is not None]  # of operations that were not used, none arrives
    loss, right, *gradients = utils.over_processes([loss.detach(), right, *(w.grad for w in weights)])
    for w, gradient in zip(weights, gradients, strict=True):
        w.grad = gradient
    return loss, right


@torch.no_grad()
def evaluate(model, batches, args):
    """Loss (nats) and accuracy (percent) of the supernet at what it has settled on, in evaluation mode."""
    model.eval()
    p, loss, correct, images = RELAX[args.relax].settled(model.alpha), 0.0, 0, 0
    used = operations_used(p[None], args)
    for x, y in batches:
        with autocast(args, x):
            logits = model(x, p, used)
        loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
        images += len(y)
    model.train()
    total = torch.tensor([loss, correct, images], dtype=torch.float64, device=model.alpha.device)
    loss, correct, images = utils.over_processes([total])[0].tolist()
    return loss / images, 100 * correct / images


# ------------------------------------------------------------------------------------------------------------
# Flags
# ------------------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    parser.set_defaults(script="search.py")
    add = parser.add_argument
    # fmt: off
    # The method
    add("--algo", choices=("darts", "rs", "ls", "ea"), default="darts",
        help="darts: by gradient, neighborhood-aware unless --neighborhood is 0; others: sample.py's flags")
    add("--neighborhood", type=within(int, 0, 28), default=1,
        help="radius d of the neighborhood; 0 is plain DARTS")
    add("--agg", choices=AGGREGATE, default="mean", help="aggregation g of the neighbors' losses")
    add("--neighbors", type=within(int, 1, 4096),
        help="neighbors n, sampled anew each step, or steps of ascent (default: 16; 1 with --perturb ascent; "
        "one a process with --relax gumbel or dirichlet)")
    add("--neighbor_batch", choices=("split", "repeat"), default="split",
        help="split: each neighbor has its share of the batch; repeat: all of it, at n times the cost")
    add("--neighbor_norm", choices=("own", "shared"),
        help="batch norm statistics of each neighbor's images, or of all neighbors' (default: shared in the "
        "darts space where the batch is split, otherwise own)")
    add("--perturb", choices=(*PERTURB, "ascent"), default="roll", help="what a neighbor does to a changed "
        "edge; ascent: it moves up the loss, by the radius in all, in --neighbors steps")
    add("--relax", choices=RELAX, default="softmax", help="what a step evaluates: the mixture, as DARTS; "
        "sampled architectures, as GDAS; sampled mixtures, as DrNAS")
    add("--weight_step", choices=("center", "neighbors"), default="center", help="what trains the weights")
    add("--unrolled", action="store_true", help="second order: look one weight step ahead")
    # The supernet
    add("--space", choices=SPACES, help="search space (default: darts; with --bench nasbench201)")
    add("--ops", nargs="+", metavar="OP", help="candidate operations, of those of the space (default: all)")
    add("--bench", help="NAS-Bench-201 accuracies, to report the cell's: a CSV file or NATS-Bench folder")
    add("--init_channels", type=within(int, 1, 4096), default=16, help="channels of the first cells")
    add("--layers", type=within(int, 1, 1000), help="cells, or cells a stage of nasbench201 (default: 8, 5)")
    # The data
    add("--dataset", choices=utils.DATASETS, default="cifar10",
        help="folder: images of any size, fitted to --image_size; shapes is synthetic and needs no files")
    add("--data", default="data", help="where the data set lies, or is downloaded to")
    add("--image_size", type=within(int, 8, 1024), default=32, help="side of the images")
    add("--train_portion", type=within(float, 0.01, 0.99), default=0.5,
        help="part of the training set that trains the weights")
    add("--cutout", action=argparse.BooleanOptionalAction, default=False,
        help="augment with cutout of half the side")
    # Optimisation
    add("--epochs", type=within(int, 1, 100_000), default=50, help="epochs")
    add("--batch_size", type=within(int, 1, 65_536), default=64, help="batch size")
    add("--learning_rate", type=within(float, 1e-8, 100), default=0.025,
        help="learning rate of the weights, cosine schedule")
    add("--learning_rate_min", type=within(float, 0, 100),
        help="learning rate at the end of the schedule (default: 0.001, or --learning_rate if less)")
    add("--momentum", type=within(float, 0, 0.9999), default=0.9, help="momentum of the weights' SGD")
    add("--weight_decay", type=within(float, 0, 1), default=3e-4, help="weight decay of the weights")
    add("--grad_clip", type=within(float, 1e-8, 1e8), default=5.0,
        help="norm to which the weights' gradient is clipped")
    add("--arch_learning_rate", type=within(float, 0, 100), default=3e-4,
        help="learning rate of Adam on alpha")
    add("--arch_weight_decay", type=within(float, 0, 1), default=1e-3, help="weight decay of Adam on alpha")
    add("--arch_warmup", type=within(int, 0, 100_000), default=0,
        help="epochs of weight steps alone, before the first architecture step")
    # The run
    add("--seed", type=within(int, 0, 2**40), default=2, help="seed of everything random")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU where there is one")
    add("--amp", choices=("none", "bf16"), default="none", help="autocast the supernet to this type")
    add("--graph", action=argparse.BooleanOptionalAction, default=True,
        help="on CUDA, record each step as a graph and replay it; --no-graph to debug")
    add("--report_freq", type=within(int, 1, 1_000_000), default=50, help="steps between looks at the loss")
    add("--save", help="run folder (default: runs/search-<method>-<space>-<time>)")
    add("--resume", help="go on with the run in this folder; flags are as they were")
    add("--quick", action="store_true",
        help="a small synthetic run: " + ", ".join(f"{name} {value}" for name, value in QUICK.items())
        + ", layers 1, of the darts space 3")
    # fmt: on
    first = parser.parse_known_args(argv)[0]
    try:
        if first.resume:  # the flags that are not given are those of the run
            parser.set_defaults(**utils.saved_args(first.resume, "search.py"))
        elif first.quick:
            parser.set_defaults(**QUICK, layers=3 if first.space == "darts" else 1)
    except utils.BadInput as error:
        parser.error(str(error))
    args = parser.parse_args(argv)
    args.space = args.space or ("nasbench201" if args.bench else "darts")
    sampled = 16 if args.relax == "softmax" else utils.processes()[1]
    args.neighbors = args.neighbors or (1 if args.perturb == "ascent" else sampled)
    shared = args.neighbor_batch == "split" and args.space == "darts"
    args.neighbor_norm = args.neighbor_norm or ("shared" if shared else "own")
    if args.learning_rate_min is None:
        args.learning_rate_min = min(0.001, args.learning_rate)
    args.layers = args.layers or LAYERS[args.space]
    check_args(parser, args)
    return args


def method_name(args):
    if args.perturb == "ascent" and args.neighborhood:
        return "DARTS-ascent"
    return ("NA-" if args.neighborhood else "") + RELAX[args.relax].method


def check_args(parser, args):
    """End with one line where a flag contradicts another."""
    try:
        space = space_with(args.space, args.ops)
    except ValueError as error:
        parser.error(f"--ops: {error}")
    edges = len(space.cells) * len(space.edges)
    if args.neighborhood > edges:
        parser.error(f"--neighborhood {args.neighborhood}: the space {args.space} has {edges} edges")
    if args.bench and args.space != "nasbench201":
        parser.error("--bench holds NAS-Bench-201 architectures: give --space nasbench201")
    if args.space == "darts" and args.layers < 3:
        parser.error(f"--layers {args.layers}: a network of the darts space has at least 3")
    if args.arch_warmup >= args.epochs:
        parser.error(f"--arch_warmup {args.arch_warmup} leaves no architecture step in {args.epochs} epochs")
    if args.unrolled and args.amp != "none":
        parser.error("--amp bf16 drowns the finite difference of --unrolled: leave one of them out")
    if args.resume and args.save not in (None, args.resume):
        parser.error("--resume goes on in its own folder: leave --save out")
    if args.resume and not os.path.isdir(args.resume):
        parser.error(f"--resume {args.resume} is not a run folder: give the folder that it lies in")
    if args.neighborhood and args.agg != "mean" and (args.neighbors == 1 or args.perturb == "ascent"):
        one = "where a step evaluates one neighbor: leave it out, or see --neighbors"
        parser.error(f"--agg {args.agg} does nothing {one}")
    plain = not args.unrolled and args.relax == "softmax" and args.weight_step == "center"
    if args.perturb == "ascent" and not plain:
        parser.error("--perturb ascent goes with --relax softmax, first order and --weight_step center")
    world, sampled = utils.processes()[1], args.neighborhood and args.perturb != "ascent"
    if args.batch_size % world or (sampled and args.neighbors % world):
        parser.error(
            f"{world} processes cannot share --batch_size {args.batch_size} and --neighbors {args.neighbors} "
            "evenly: choose multiples"
        )
    cut = args.neighbor_batch == "split" or args.weight_step == "neighbors"
    if sampled and cut and args.batch_size % args.neighbors:
        parser.error(
            f"--batch_size {args.batch_size} cannot be cut into {args.neighbors} equal groups: choose a "
            "number of --neighbors that divides it"
        )


# ------------------------------------------------------------------------------------------------------------
# The search
# ------------------------------------------------------------------------------------------------------------


def main(args):
    # Device and precision are decided here once. TF32 would spoil the second order's finite difference.
    rank, world, device = utils.join_processes(args.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = not args.unrolled

    path = utils.new_run_path("search", f"{method_name(args).lower()}-{args.space}")
    args.save = utils.from_the_first(args.resume or args.save or path)
    with utils.claimed(args.save, args.resume):
        search(args, rank, world, device)


def search(args, rank, world, device):
    """A search, or what is left of one, in the run folder that is claimed for it."""
    from tqdm import tqdm

    # Data, generators. Each source of random numbers is its own seeded stream.
    checkpoint = utils.load_checkpoint(args.resume) if args.resume else None
    if checkpoint:
        utils.check_same_run(args, checkpoint["args"], MAY_DIFFER, checkpoint["epoch"])
    torch.manual_seed(args.seed)  # the supernet's first weights
    weight_g, arch_g, neighbor_g = (utils.generator(args.seed, stream) for stream in range(1, 4))
    table = nats_bench.load_table(args.bench) if args.bench else None
    images, labels, classes, weight_half, arch_half, norm = utils.load_halves(args)
    images, labels = images.to(device), labels.to(device)
    size = args.batch_size // world
    share, all_of_it = [slice(rank * size, (rank + 1) * size)], [slice(None)]
    augmentation = dict(pad=args.image_size // 8, cutout=args.image_size // 2 if args.cutout else 0, **norm)
    arch_share = all_of_it if args.neighbor_batch == "repeat" else share
    weight_batches, arch_batches = (
        utils.Batches(images, labels, half, args.batch_size, g, part, **augmentation)
        for half, g, part in ((weight_half, weight_g, share), (arch_half, arch_g, arch_share))
    )
    evaluated = size * (16 if device.type == "cuda" else 1)  # which takes less memory than a step
    arch_set = utils.InOrder(images, labels, arch_half[rank::world], evaluated, **norm)

    # Supernet and optimizers
    model = SUPERNETS[args.space](args.init_channels, args.layers, len(classes), args.ops).to(device)
    model.share_statistics(args.neighbor_norm == "shared")
    weights = model.weight_parameters()
    decay, arch_decay = dict(weight_decay=args.weight_decay), dict(weight_decay=args.arch_weight_decay)
    optimizer = torch.optim.SGD(weights, args.learning_rate, momentum=args.momentum, **decay)
    arch_optimizer = torch.optim.Adam(
        [model.alpha], args.arch_learning_rate, betas=(0.5, 0.999), **arch_decay
    )
    for w in weights:  # there from the start, for the second order
        optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)

    # The steps as functions of tensors, which a GPU replays
    first_order = lambda *batch: arch_gradient(model, *batch, args)
    second_order = lambda lr, *both: unrolled_gradient(model, optimizer, both[:3], both[3:], args, lr)
    weight_step = lambda *batch: weight_gradient(model, *batch, args)
    if device.type == "cuda" and args.graph:
        pool = torch.cuda.graph_pool_handle()  # of memory, which they share: they run one after the other
        first_order, second_order = utils.Replayed(first_order, pool), utils.Replayed(second_order, pool)
        weight_step = utils.Replayed(weight_step, pool, model.buffers())

    # The run folder, and what a checkpoint holds besides its epoch: alpha at the start and after each epoch,
    # (1 + epochs, cells, E, O), is what visualize.py draws
    trajectory = utils.State(alpha=model.alpha.detach().cpu()[None].clone())
    parts = dict(
        model=model, weight_optimizer=optimizer, arch_optimizer=arch_optimizer, weight_batches=weight_batches,
        arch_batches=arch_batches, neighbors=utils.GeneratorState(neighbor_g), trajectory=trajectory,
    )  # fmt: skip
    start, rows = 0, []
    if checkpoint:
        utils.restore(parts, checkpoint)
        start, rows = checkpoint["epoch"], checkpoint["rows"]
    method = method_name(args) + (", second order" if args.unrolled else "")
    utils.wait_for_processes()  # no process looks for a checkpoint that another has just written
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    if checkpoint:
        folder.log_resumed(checkpoint, args)
        if start == args.epochs and os.path.exists(folder.file("result.json")):
            folder.log(f"{args.save} is complete; a larger --epochs goes on")
            return utils.leave_processes()
    else:
        folder.save(parts, 0, rows, args)
        folder.log(
            f"{method}, space {args.space}: supernet of {sum(w.numel() for w in weights):,} weights; "
            f"{args.dataset}: {len(weight_half):,} + {len(arch_half):,} images, {len(classes)} classes; "
            f"{world} x {device}, {torch.get_num_threads()} threads; run folder {folder.path}"
        )

    steps, alpha, ascent = len(weight_batches), model.alpha, args.perturb == "ascent" and args.neighborhood
    center = torch.zeros(1, model.alpha[..., 0].numel(), dtype=torch.long, device=device)  # as shifts

    def draw(epoch):
        return center if ascent else utils.to_device(draw_shifts(model, args, epoch, neighbor_g), device)

    def mix(shifts, epoch):
        """The mixtures of this process's share of the neighbors, or that of the center."""
        q = mixtures(alpha, shifts, args, neighbor_g, (epoch - 1) / max(1, args.epochs - 1))
        return q.chunk(world)[rank] if len(q) > 1 else q

    bar = tqdm(total=args.epochs * steps, initial=start * steps, unit="step", disable=True if rank else None)
    for epoch in range(start + 1, args.epochs + 1):
        started = time.perf_counter()
        cosine = (1 + math.cos(math.pi * (epoch - 1) / args.epochs)) / 2
        lr = args.learning_rate_min + (args.learning_rate - args.learning_rate_min) * cosine
        optimizer.param_groups[0]["lr"] = lr
        lr_tensor = torch.tensor(lr, device=device)
        weight_losses, arch_losses, right = [], [], []
        for step in range(1, steps + 1):
            [(x, y)] = next(weight_batches)
            shifts = draw(epoch) if args.weight_step == "neighbors" else center

            # ---- Architecture step: the loss over the neighborhood, on images of the other half ----
            if epoch > args.arch_warmup:
                [(x_arch, y_arch)], near = next(arch_batches), mix(draw(epoch), epoch)
                moved_alpha = alpha.detach()
                for _ in range(args.neighbors if ascent else 0):  # the neighbor some steps up the loss
                    gradient = by_alpha(alpha, near, first_order(x_arch, y_arch, near)[1], args)
                    (gradient,) = utils.over_processes([gradient])
                    moved_alpha = uphill(moved_alpha, gradient, args.neighborhood / args.neighbors)
                    # Its gradient goes to alpha, as if the way up were constant.
                    near = (alpha + (moved_alpha - alpha.detach())).softmax(-1)[None]
                if args.unrolled:
                    q = mix(shifts, epoch)
                    arch_loss, by_q, by_near = second_order(lr_tensor, x, y, q, x_arch, y_arch, near)
                    gradient = by_alpha(alpha, q, by_q, args) + by_alpha(alpha, near, by_near, args)
                else:
                    arch_loss, by_near = first_order(x_arch, y_arch, near)
                    gradient = by_alpha(alpha, near, by_near, args)
                arch_loss, alpha.grad = utils.over_processes([arch_loss, gradient])
                arch_optimizer.step()
                arch_losses.append(arch_loss.clone())

            # ---- Weight step: at the center, or on neighbors ----
            weight_loss, correct = weight_step(x, y, mix(shifts, epoch).detach())
            torch.nn.utils.clip_grad_norm_(weights, args.grad_clip)
            optimizer.step()
            weight_losses.append(weight_loss.clone())
            right.append(correct.clone())

            bar.update()
            if step % args.report_freq == 0 or step == steps:  # not each step: a look makes a GPU wait
                where = f"epoch {epoch}, learning rate {lr:.3g}"
                losses = torch.stack([torch.stack(kind) for kind in (weight_losses, arch_losses) if kind])
                utils.check_finite(losses, where, folder.file("checkpoint.pt"))
                last = dict(zip(("weight_loss", "arch_loss"), losses[:, -1].tolist(), strict=False))
                utils.report(bar, where, step, steps, **last)

        # ---- The architecture half at the center, the cell so far, a checkpoint ----
        utils.average_buffers(model)
        valid_loss, valid_accuracy = evaluate(model, arch_set, args)
        utils.check_finite_state(model, valid_loss, where, folder.file("checkpoint.pt"))
        arch = read_cell(model.space, model.mixture())
        chosen = operations(arch)
        row = {
            "epoch": epoch,
            "learning_rate": lr,
            "weight_loss": torch.stack(weight_losses).mean().item(),
            "weight_accuracy": 100 * torch.stack(right).double().mean().item() / size,
            "neighborhood_loss": torch.stack(arch_losses).mean().item() if arch_losses else math.nan,
            "arch_loss": valid_loss,
            "arch_accuracy": valid_accuracy,
            "skip_connects": chosen.count("skip_connect"),
            "parameter_free": sum(op in PARAMETER_FREE for op in chosen),
            "seconds": round(time.perf_counter() - started, 3),
            "genotype": format_architecture(arch),
            **nats_bench.accuracies(table, arch),
        }
        rows.append(row)
        trajectory["alpha"] = torch.cat([trajectory["alpha"], model.alpha.detach().cpu()[None]])
        folder.save(parts, epoch, rows, args)
        folder.write_json("genotype.json", to_json(arch))
        shown = f"{row['neighborhood_loss']:.4f}" if arch_losses else "not yet, in warm-up"
        folder.log(
            f"epoch {epoch}: learning rate {lr:.4f}, weight half loss {row['weight_loss']:.4f} accuracy "
            f"{row['weight_accuracy']:.2f} %, architecture half loss {valid_loss:.4f} accuracy "
            f"{valid_accuracy:.2f} %, neighborhood loss {shown}, "
            f"{row['skip_connects']} skip connections, {row['parameter_free']} parameter-free, "
            f"{row['seconds']:.1f} s\n  {row['genotype']}"
        )
        if table:
            folder.log("  table: " + ", ".join(f"{n} {row[n]:.2f}" for n in table if row[n] is not None))
    bar.close()
    first_order = second_order = weight_step = None  # NCCL's end waits for graphs that hold its calls
    utils.leave_processes()
    if rank:
        return
    arch = read_cell(model.space, model.mixture())
    folder.write_json("genotype.json", to_json(arch))
    result = {"algo": method, "arch": format_architecture(arch), "metrics": rows[-1]}
    result["sharpness"] = sharpness_and_picture(folder, args, arch, model, (images, labels, arch_half), norm)
    folder.write_json("result.json", result)
    words = ["--dataset", args.dataset, "--data", args.data, "--image_size", str(args.image_size)]
    command = shlex.join(["python", "train.py", "--arch", folder.path, *words, *["--quick"] * args.quick])
    folder.log(f"found {result['arch']}\ntrain it with: {command}")


def sharpness_and_picture(folder, args, arch, model, arch_set, norm):
    """cell.png, and how sharp the surroundings of what was found are: a dict, or None where memory does not
    suffice. arch_set: images, labels, and the index of the half that alpha was trained on."""
    import visualize  # here, since it takes a second

    visualize.save(visualize.draw_cell(arch), folder.file("cell.png"), visualize.cell_rows(arch))
    drawn = visualize.loss_batches(*arch_set, SHARPNESS_IMAGES, args.batch_size, args.seed, norm)
    model.share_statistics(False)  # each neighbor for itself
    torch.backends.cudnn.allow_tf32 = False  # losses are compared to their fourth digit
    try:
        sharpness = visualize.sharpness(model, drawn, args.perturb, args.relax)
        folder.log(visualize.sharpness_text(sharpness))
        return sharpness
    except (RuntimeError, MemoryError) as error:  # the Hessian takes a few times what a step does
        if not utils.out_of_memory(error):
            raise
        mend = f"python visualize.py sharpness {shlex.quote(folder.path)} --images 16"
        folder.log(f"no sharpness, out of memory: {mend}")


if __name__ == "__main__":
    algo = utils.Parser(__doc__, add_help=False)
    algo.add_argument("--algo", default="darts")
    if algo.parse_known_args()[0].algo in ("rs", "ls", "ea"):  # sampling
        import sample

        utils.run(sample.main, sample.parse_args())
    else:
        utils.run(main, parse_args())
