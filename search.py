"""Search for a cell: DARTS and NA-DARTS, random and local search and their neighborhood-aware forms.

    python search.py --neighborhood 1 --agg mean       NA-DARTS on CIFAR-10, downloaded on first use
    python search.py --neighborhood 0                  plain DARTS, first order
    python search.py --neighborhood 0 --unrolled       plain DARTS, second order
    python search.py --dataset folder --data DIR --image_size 32
    python search.py --space nasbench201
    python search.py --algo rs --space nasbench201 --bench T.csv                  NA-RS on the table
    python search.py --algo ls --space nasbench201 --bench T.csv --budget 200     NA-LS on the table
    python search.py --algo rs --neighborhood 0 --budget 100 --repeats 500 ...    RS, mean and deviation
    python search.py --algo rs --eval train --space nasbench201 --budget 50       NA-RS by training, no table
    torchrun --nproc_per_node 8 search.py --algo rs --eval train ...              the same, in 8 processes
    python search.py --exact --space nasbench201 --bench T.csv --repeats 500      NA-DARTS without a supernet
    python search.py --quick                           two minutes on a CPU, without any data

DARTS (Liu, Simonyan, Yang; ICLR 2019) trains the weights of a supernet on one half of the training set, and
its architecture parameters on the other half, in alternating steps. NA-DARTS replaces the validation loss of
the architecture step by `g(f(N(a)))`, an aggregate over neighbors of the current mixture that share the
supernet's weights; see neighborhood.py. The neighbors run in one pass, each on its share of the batch, so
NA-DARTS costs what DARTS costs.

NA-RS draws architectures and keeps the one with the best g over its neighborhood; NA-LS is a best-first local
search; with --neighborhood 0 they are RS and LS. They search on a column of a table of NAS-Bench-201
accuracies, --bench, and report the others; or, with --eval train, in either space, each architecture is
trained for a few epochs on one half of the images with the networks, recipes and loop of train.py, and its
error is that on the other half.

A run writes one folder: args.json, log.txt, metrics.csv, genotype.json, result.json; a gradient search also
checkpoint.pt and cell.png, and --eval train evaluations.csv, itself a table for --bench. `--resume FOLDER`
goes on from the last epoch, to the same result bit for bit on a CPU.

Deviations from the original DARTS code: the halves hold the same number of images of each class; images are
normalised by the mean and deviation of the training set at hand; batches are always full, and those of the
architecture step come from one iterator that cycles; the architecture half is evaluated without augmentation;
random crops are padded by an eighth of the side, which is DARTS's 4 pixels at 32 x 32; the architecture step
leaves the running statistics of batch norm alone, which only evaluation reads; and the second-order step does
not scale the optimizer's momentum in passing.
"""

import functools
import math
import os
import statistics
import time
import zlib
from argparse import BooleanOptionalAction, Namespace
from contextlib import nullcontext, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.func import functional_call

import train
import utils
from genotypes import (
    PARAMETER_FREE,
    SPACES,
    discrete_ops,
    format_architecture,
    from_indices,
    nasbench201_architectures,
    operations,
    parse_architecture,
    random_architecture,
    read_cell,
    to_indices,
)
from model_search import SUPERNETS, running_statistics_kept, weights_held
from neighborhood import (
    AGGREGATE,
    PERTURB,
    Evaluations,
    ball_shifts,
    ball_size,
    discrete_neighbors,
    expected_error,
    local_search,
    neighbors,
    random_search,
    sample_shifts,
    table_neighborhoods,
)

LAYERS = {"darts": 8, "nasbench201": 5}
QUICK = dict(
    dataset="shapes", image_size=16, init_channels=4, layers=3, epochs=2, batch_size=128, learning_rate=0.1,
    sharpness_images=16,
)  # fmt: skip
# What --eval train takes from train.py's recipe of the space where no flag says otherwise
RECIPE = "init_channels layers cutout batch_size learning_rate weight_decay grad_clip".split()
# What may change on --resume, in a search by training and in one by gradient
EVAL_MAY_DIFFER = "samples budget data device report_freq save resume quick".split()
MAY_DIFFER = "resume save device data report_freq compile sharpness_images".split()


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    add = parser.add_argument
    # fmt: off
    # The method
    add("--algo", choices=("darts", "rs", "ls"), default="darts",
        help="gradient, random or local search; neighborhood-aware unless --neighborhood is 0")
    add("--neighborhood", type=int, default=1, help="radius d of the neighborhood; 0 is plain DARTS")
    add("--agg", choices=AGGREGATE, default="mean", help="aggregation g of the neighbors' losses")
    add("--neighbors", type=int, help="neighbors n, sampled anew each time (default: 16; rs, ls: 0, the "
        "whole neighborhood)")
    add("--neighbor_batch", choices=("split", "repeat"), default="split",
        help="split: each neighbor has its share of the batch; repeat: all of it, at n times the cost")
    add("--neighbor_norm", choices=("own", "shared"),
        help="batch norm statistics of a neighbor: own, those of its images; shared, those of all neighbors "
        "(default: shared in the darts space where the batch is split, otherwise own)")
    add("--perturb", choices=PERTURB, default="roll", help="what a neighbor does to a changed edge")
    add("--weight_step", choices=("center", "neighbors"), default="center", help="what trains the weights")
    add("--unrolled", action="store_true", help="second order: look one weight step ahead")
    # Sampling algorithms, and what they search on
    add("--eval", choices=("train",), help="rs, ls: no table; train each architecture, and score it on the "
        "other part of the images. Flags of network and weights then have train.py's recipe as defaults")
    add("--eval_epochs", type=int, default=12, help="epochs of each such training")
    add("--bench", help="NAS-Bench-201 accuracies: a CSV file, or a folder of official NATS-Bench files")
    add("--bench_metric", default="cifar10_valid_200", help="the table's column that rs and ls search on")
    add("--samples", type=int, help="architectures to draw (rs) or to expand (ls) (default: rs 1000)")
    add("--budget", type=int, help="most evaluations, each architecture paid once (default: ls 200, "
        "and 100 with --eval)")
    add("--starts", type=int, help="random architectures that ls begins with (default: 2/5 of the budget)")
    add("--ls_score", choices=("known", "whole"), default="known",
        help="what NA-LS compares in the end: all it evaluated, or those whose neighborhood it has in full")
    add("--repeats", type=int, default=1, help="independent repeats of rs, ls or --exact")
    add("--exact", action="store_true",
        help="darts: no supernet; minimise the table's expected error over alpha (Adam, rate 0.1, no decay)")
    add("--alpha_scale", type=float, default=1.0, help="deviation of the normal starts of alpha in --exact")
    add("--steps", type=int, default=300, help="steps of --exact")
    # The supernet
    add("--space", choices=SPACES, default="darts", help="search space")
    add("--init_channels", type=int, default=16, help="channels of the first cells")
    add("--layers", type=int, help="cells, or cells in each stage of nasbench201 (default: 8, 5)")
    # The data
    add("--dataset", choices=utils.DATASETS, default="cifar10", help="shapes is synthetic and needs no files")
    add("--data", default="data", help="where the data set lies, or is downloaded to")
    add("--image_size", type=int, default=32, help="side of the images")
    add("--train_portion", type=float, default=0.5, help="part of the training set that trains the weights")
    add("--cutout", action=BooleanOptionalAction, default=False, help="augment with cutout")
    add("--cutout_length", type=int, help="side of the cutout, pixels (default: half that of the image)")
    # Optimisation
    add("--epochs", type=int, default=50, help="epochs")
    add("--batch_size", type=int, default=64, help="batch size")
    add("--learning_rate", type=float, default=0.025, help="learning rate of the weights, cosine schedule")
    add("--learning_rate_min", type=float,
        help="learning rate at the end of the schedule (default: 0.001, or --learning_rate if less)")
    add("--momentum", type=float, default=0.9, help="momentum of the weights' SGD")
    add("--weight_decay", type=float, default=3e-4, help="weight decay of the weights")
    add("--grad_clip", type=float, default=5.0, help="norm to which the weights' gradient is clipped")
    add("--arch_learning_rate", type=float, default=3e-4, help="learning rate of Adam on alpha")
    add("--arch_weight_decay", type=float, default=1e-3, help="weight decay of Adam on alpha")
    add("--arch_warmup", type=int, default=0, help="epochs of weight steps alone, before the first "
        "architecture step")
    # The run
    add("--seed", type=int, default=2, help="seed of everything random")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU where there is one")
    add("--amp", choices=("none", "bf16"), default="none", help="darts: autocast the supernet to this type")
    add("--compile", action="store_true", help="darts: torch.compile the supernet; pays on a GPU")
    add("--report_freq", type=int, default=50, help="steps between looks at the loss")
    add("--sharpness_images", type=int, default=64,
        help="images on which the sharpness of what is found is measured in the end; 0 to leave it out")
    add("--save", help="run folder (default: runs/search-<method>-<space>-<time>)")
    add("--resume", help="go on with the run in this folder; flags are as they were")
    add("--quick", action="store_true",
        help=f"a small synthetic run: {' '.join(f'--{name} {value}' for name, value in QUICK.items())}")
    # fmt: on
    first = parser.parse_known_args(argv)[0]
    if first.eval:
        recipe = train.RECIPES["nasbench201" if first.space == "nasbench201" else "cifar"]
        parser.set_defaults(**{name: recipe[name] for name in RECIPE})
    if first.exact:
        parser.set_defaults(arch_learning_rate=0.1, arch_weight_decay=0.0)
    if first.quick:
        parser.set_defaults(**QUICK)
    if first.resume:  # the flags that are not given are those of the run
        if first.save not in (None, first.resume):
            parser.error("--resume goes on in its own folder: leave --save out")
        try:
            parser.set_defaults(**utils.saved_args(first.resume, parser))
        except utils.BadInput as error:
            parser.error(str(error))
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.neighbors is None:
        args.neighbors = 16 if args.algo == "darts" and not args.exact else 0
    if args.neighbor_norm is None:
        split = args.neighbor_batch == "split"
        args.neighbor_norm = "shared" if split and args.space == "darts" else "own"
    if args.algo != "darts" and args.samples is None and args.budget is None:
        args.samples, args.budget = (1000, None) if args.algo == "rs" else (None, 200)
        if args.eval:
            args.samples, args.budget = None, 100
    if args.algo == "ls" and args.starts is None:
        args.starts = max(1, 2 * args.budget // 5) if args.budget else 10
    if args.learning_rate_min is None:
        args.learning_rate_min = min(0.001, args.learning_rate)
    if args.layers is None:
        args.layers = LAYERS[args.space]
    if args.cutout_length is None:
        args.cutout_length = max(1, args.image_size // 2)
    check_args(parser, args, given)
    if args.eval:
        training_args(args, "DARTS_V2" if args.space == "darts" else nasbench201_architectures()[0])
    return args


def check_args(parser, args, given):
    """End with one line where a flag is out of range, contradicts another or is not read. given: names of the
    flags that are not at their defaults."""
    space = SPACES[args.space]
    edges = len(space.cells) * len(space.edges)
    if args.algo != "darts":  # of a discrete architecture
        edges = edge_count(space)
    gradient = args.algo == "darts" and not args.exact
    table_alone = args.exact or (args.algo != "darts" and not args.eval)  # no images, no supernet
    most = 1_000_000 if args.eval else 15_625
    ranges = dict(
        neighborhood=(0, edges), neighbors=(0 if table_alone or args.eval else 1, 4096),
        samples=(1, 1_000_000), budget=(1, most), starts=(1, args.budget or most), repeats=(1, 100_000),
        alpha_scale=(0, 1000), steps=(1, 1_000_000),
        init_channels=(1, 4096), image_size=(8, 1024),
        layers=(3 if args.space == "darts" else 1, 1000), train_portion=(0.1 if args.eval else 0.01, 0.99),
        cutout_length=(2, args.image_size), epochs=(1, 100_000), batch_size=(1, 65_536),
        learning_rate=(1e-8, 100),
        learning_rate_min=(0, math.inf if args.eval else args.learning_rate), momentum=(0, 0.9999),
        weight_decay=(0, 1), grad_clip=(0 if args.eval else 1e-8, 1e8), eval_epochs=(1, 100_000),
        arch_learning_rate=(0, 100), arch_weight_decay=(0, 1), arch_warmup=(0, args.epochs - 1),
        seed=(0, 2**40),
        report_freq=(1, 1_000_000), sharpness_images=(0, 1_000_000),
    )  # fmt: skip
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name} {value} is out of range: it lies between {low} and {high}")
    if args.bench and args.space != "nasbench201":
        parser.error("--bench holds NAS-Bench-201 architectures: give --space nasbench201")
    if args.exact and args.algo != "darts":
        parser.error(f"--exact is gradient search: leave --algo {args.algo} out")
    if args.eval and args.algo == "darts":
        parser.error("--eval trains what --algo rs and ls draw: give one of them")
    if args.eval and args.bench:
        parser.error("--eval train and --bench are two ways to an error: leave one of them out")
    way = "--exact" if args.exact else "--eval train" if args.eval else f"--algo {args.algo}"
    read_by = {
        "neighbor_batch neighbor_norm weight_step unrolled epochs arch_warmup amp compile": gradient,
        "learning_rate_min sharpness_images": gradient,
        "dataset data image_size train_portion cutout cutout_length": not table_alone,
        "init_channels layers batch_size learning_rate momentum weight_decay grad_clip": not table_alone,
        "perturb arch_learning_rate arch_weight_decay": args.algo == "darts",
        "bench_metric": table_alone,
        "alpha_scale steps": args.exact,
        "eval_epochs": args.eval,
        "samples budget": args.algo != "darts",
        "starts ls_score": args.algo == "ls",
    }
    for names, read in read_by.items():
        for name in names.split():
            if name in given and not read:
                parser.error(f"--{name} has no meaning with {way}: leave it out")
    if args.unrolled and (args.compile or args.amp != "none"):
        # bf16 drowns the finite difference of the second order.
        other = "--compile" if args.compile else f"--amp {args.amp}"
        parser.error(f"{other} does not go with --unrolled: leave one of them out")
    if train.processes()[1] > 1 and not args.eval:
        parser.error("torchrun shares the work of --eval train alone: run this in one process")
    if table_alone:
        if not args.bench:
            also = "" if args.exact else ", or --eval train"
            parser.error(f"{way} searches on a table: give --bench FILE --space nasbench201{also}")
        if args.resume:
            parser.error(f"{way} on a table takes seconds and is not resumed: run it anew")
    if args.algo != "darts":
        ball = args.neighbors or ball_size(edges, len(discrete_ops(space)), args.neighborhood)
        if ball > 1_000_000:
            parser.error(
                f"--neighborhood {args.neighborhood} has {ball:,} members in the space {args.space}: sample "
                "some with --neighbors, or choose a smaller radius"
            )
        if args.algo == "rs" and args.budget and args.budget < ball:
            parser.error(
                f"--budget {args.budget} does not cover a neighborhood of {ball}: raise it, or sample fewer "
                "--neighbors"
            )
    if args.algo == "darts" and args.repeats > 1 and not args.exact:
        parser.error("--repeats is a flag of --algo rs, ls and --exact: give other seeds instead")
    if table_alone or args.eval:
        return
    cut = args.neighbor_batch == "split" or args.weight_step == "neighbors"
    if args.neighborhood and cut and args.batch_size % args.neighbors:
        parser.error(
            f"--batch_size {args.batch_size} cannot be cut into {args.neighbors} equal groups: choose a "
            "number of --neighbors that divides it"
        )


def draw_shifts(model, args, g):
    """The neighbors of one step, drawn uniformly from the ball: (n, E) shifts. With radius 0 the center
    alone."""
    cells, edges, ops = model.alpha.shape
    return sample_shifts(cells * edges, ops, args.neighborhood, args.neighbors if args.neighborhood else 1, g)


def mixtures(model, shifts, args):
    """The neighbors' mixture weights, differentiable in alpha: (n, cells, E, O)."""
    p = model.mixture()
    return neighbors(p.flatten(0, 1), shifts, args.perturb).view(-1, *p.shape)


def neighborhood_loss(model, x, y, shifts, args, weights=None):
    """g(f(N(a))): the loss of each neighbor on its share of the batch, aggregated.

    x (B, 3, H, W), y (B,), shifts (n, E). weights: a dict to use in place of the supernet's own. Returns a
    scalar, in nats.
    """
    q = mixtures(model, shifts, args)
    if args.neighbor_batch == "repeat":
        x, y = x.repeat(len(q), 1, 1, 1), y.repeat(len(q))
    logits = model(x, q) if weights is None else functional_call(model, weights, (x, q))
    losses = F.cross_entropy(logits, y, reduction="none").view(len(q), -1).mean(1)
    return AGGREGATE[args.agg](losses)


def unrolled_gradient(model, optimizer, train, valid, args, r=0.01):
    """Second order: the gradient by alpha of the neighborhood loss after one weight step (DARTS, equations 6
    to 8).

    train, valid: (x, y, shifts) of the weight step and of the architecture step. optimizer: the weights' SGD,
    whose momentum and weight decay the step ahead includes. r: length of the finite difference that stands
    for the product of the Hessian and a vector. Returns (loss, gradient of alpha's shape).
    """
    names = [name for name, _ in model.named_parameters() if name != "alpha"]
    weights = model.weight_parameters()
    group = optimizer.param_groups[0]

    def train_gradient(values, by):
        x, y, shifts = train
        q = mixtures(model, shifts, args)
        logits = functional_call(model, dict(zip(names, values, strict=True)), (x, q))
        return torch.autograd.grad(F.cross_entropy(logits, y), by)

    ahead = []  # w' = w - lr (momentum * buffer + grad L_train(w) + weight_decay * w)
    for w, gradient in zip(weights, train_gradient(weights, weights), strict=True):
        buffer = optimizer.state[w].get("momentum_buffer", 0.0)
        step = group["momentum"] * buffer + gradient + group["weight_decay"] * w.detach()
        ahead.append((w.detach() - group["lr"] * step).requires_grad_())
    loss = neighborhood_loss(model, *valid, args, dict(zip(names, ahead, strict=True)))
    *v, by_alpha = torch.autograd.grad(loss, [*ahead, model.alpha])
    h = r / torch.cat([part.flatten() for part in v]).norm()
    plus, minus = (
        train_gradient([w.detach() + side * part for w, part in zip(weights, v, strict=True)], model.alpha)[0]
        for side in (h, -h)
    )
    return loss, by_alpha - group["lr"] * (plus - minus) / (2 * h)


@torch.no_grad()
def evaluate(model, images, labels, index, batch_size, normalisation):
    """Loss (nats) and accuracy (percent) of the supernet at its own mixture, in evaluation mode, not
    augmented."""
    model.eval()
    p, loss, correct = model.mixture(), 0.0, 0
    for part in index.to(images.device).split(batch_size):
        logits = model(utils.normalise(images[part], **normalisation), p)
        loss += F.cross_entropy(logits, labels[part], reduction="sum").item()
        correct += (logits.argmax(1) == labels[part]).sum().item()
    model.train()
    return loss / len(index), 100 * correct / len(index)


def accuracies(table, arch):
    """The columns of a table for an architecture string, in percent; None where it has no value."""
    if not table:
        return {}
    place = nasbench201_architectures().index(arch)
    return {name: None if column[place].isnan() else column[place].item() for name, column in table.items()}


def edge_count(space):
    """Edges of a discrete architecture, each with an operation: 6 in NAS-Bench-201, 16 in a genotype."""
    return len(operations(random_architecture(space, torch.Generator())))


@functools.cache
def whole_neighborhood(E, O, radius):  # noqa: E741
    """Every member of a ball as lists of shifts, made once for all repeats of a search."""
    return ball_shifts(E, O, radius).tolist()


def sample(args, f, rng, wave=1):
    """One repeat of RS, NA-RS, LS or NA-LS on the evaluator f: the architecture, a tuple as to_indices has
    it, its score, and how many evaluations were paid. wave: centers that NA-RS has evaluated at once."""
    space, g = SPACES[args.space], AGGREGATE[args.agg]
    E, O = edge_count(space), len(discrete_ops(space))  # noqa: E741
    # LS moves to neighbors with radius 0 too.
    radius = max(1, args.neighborhood) if args.algo == "ls" else args.neighborhood

    def draw():
        if space.name == "darts":
            return to_indices(random_architecture(space, rng))
        return tuple(torch.randint(O, (E,), generator=rng).tolist())

    def neighborhood(arch):
        if args.neighbors and radius:
            shifts = sample_shifts(E, O, radius, args.neighbors, rng).tolist()
        else:
            shifts = whole_neighborhood(E, O, radius)
        return discrete_neighbors(arch, shifts, O)

    evaluations = Evaluations(f, args.budget)
    if args.algo == "rs":
        found = random_search(evaluations, draw, neighborhood, g, args.samples, wave)
    else:
        g = g if args.neighborhood else None
        found = local_search(evaluations, draw, neighborhood, g, args.starts, args.samples, args.ls_score)
    if not found:
        raise utils.BadInput(
            f"--budget {args.budget} is spent before any neighborhood is whole: raise it, or lower "
            f"--starts {args.starts}"
        )
    arch = min(found, key=found.get)
    return arch, found[arch], len(evaluations.known)


def search_table(args):
    """RS, NA-RS, LS and NA-LS on a table of accuracies: independent repeats, with mean and deviation of all
    columns of the architectures found."""
    from tqdm import tqdm

    table = table_to_search(args)
    errors, g = 100 - table[args.bench_metric], AGGREGATE[args.agg]
    names, space, rng = nasbench201_architectures(), SPACES[args.space], utils.generator(args.seed, 4)
    E, O = len(space.edges), len(space.ops)  # noqa: E741
    powers = O ** torch.arange(E - 1, -1, -1)  # an architecture's place in the table is ops @ powers

    def f(archs):
        places = torch.tensor(archs) @ powers
        found = errors[places]
        check_found(found, places)
        return found.tolist()

    def check_found(found, places):
        missing = places[found.isnan()].flatten()
        if len(missing):
            raise utils.BadInput(
                f"{args.bench} has no {args.bench_metric} of {names[missing[0]]}: complete the table, or "
                "search on another column"
            )

    whole = args.algo == "rs" and args.budget is None and not (args.neighbors and args.neighborhood)
    if whole:  # every architecture's score is known before any is drawn
        members = table_neighborhoods(O, ball_shifts(E, O, args.neighborhood))
        scores = g(errors[members].T)
    rows = []
    for repeat in tqdm(range(1, args.repeats + 1), unit="repeat", disable=None, leave=False):
        if whole:
            drawn = torch.randint(O, (args.samples, E), generator=rng) @ powers
            check_found(errors[members[drawn]], members[drawn])
            place = drawn[scores[drawn].argmin()].item()  # the first of the lowest
            seen = torch.zeros(len(errors), dtype=torch.bool)
            seen[members[drawn]] = True
            arch, score, paid = names[place], scores[place].item(), seen.sum().item()
        else:
            found, score, paid = sample(args, f, rng)
            arch = from_indices(space, found)
        row = {"repeat": repeat, "arch": arch, "score": score, "evaluations": paid}
        rows.append(row | accuracies(table, arch))
    report_found(args, method_name(args), args.bench_metric, table, rows)


def training_args(args, arch):
    """The flags of train.py with which --eval trains an architecture, given as text."""
    flags = {name: getattr(args, name) for name in RECIPE if name != "cutout"}
    flags |= {name: getattr(args, name) for name in "dataset data image_size cutout_length".split()}
    flags |= {name: getattr(args, name) for name in "momentum seed device report_freq".split()}
    flags |= dict(arch=arch, epochs=args.eval_epochs, valid_portion=1 - args.train_portion)
    return train.parse_args(
        [f"--{name}={value}" for name, value in flags.items()]
        + ["--cutout" if args.cutout else "--no-cutout"],
        world=1,  # processes share the architectures, and not their batches
    )


def search_trained(args):
    """RS, NA-RS, LS and NA-LS by training: an architecture's error is that on the held-out part of the images
    after --eval_epochs of training on the other. Processes under torchrun share the architectures.

    A resumed search is played again from its seed, and evaluations.csv answers for what was finished.
    """
    rank, world, device = train.join_processes(args.device, timedelta(days=30))
    space, column = SPACES[args.space], f"{args.dataset}_valid_{args.eval_epochs}"
    args.save = (
        args.resume or args.save or utils.new_run_path("search", f"{method_name(args).lower()}-{args.space}")
    )
    args.save = train.from_the_first(args.save, world)
    path = os.path.join(args.save, "evaluations.csv")
    if args.resume:
        # All flags as they were saved; parse_args has checked them.
        saved = utils.saved_args(args.resume, utils.Parser(""), ())
        utils.check_same_run(args, {"args": saved, "epoch": 0}, EVAL_MAY_DIFFER)
        known = utils.read_evaluations(path, column, space)
    else:
        utils.check_free(args.save)
        known = {}
    flags = training_args(args, format_architecture(random_architecture(space, torch.Generator())))
    batches, held_out, data = train.load_train(
        flags, device, [slice(0, args.batch_size)], utils.generator(args.seed, 1), slice(None)
    )
    first_batch = batches.state_dict()
    if world > 1:
        dist.barrier()  # all have read what the first now writes
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    if rank == 0:
        utils.write_evaluations(path, column, known)  # without what a kill has cut short
    if world > 1:
        dist.barrier()
    folder.log(
        f"{method_name(args)}, space {args.space}, by {args.eval_epochs} epochs of training: {args.dataset}: "
        f"{data['images'][0]:,} + {data['images'][1]:,} images, {len(data['classes'])} classes; {world} x "
        f"{device}, {torch.get_num_threads()} threads; {len(known)} evaluations done; run folder {args.save}"
    )

    def f(archs):
        texts = [format_architecture(from_indices(space, arch)) for arch in archs]
        for text in [text for text in texts if text not in known][rank::world]:
            one = Namespace(**{**vars(flags), "arch": text})
            batches.load_state_dict(first_batch)  # the same batches for each architecture
            unfinished = folder.file(f"evaluating-{zlib.crc32(text.encode()):08x}.pt")
            known[text] = trained_accuracy(one, batches, held_out, data, device, folder, unfinished, rank)
            utils.append_evaluation(path, text, known[text])
            with suppress(FileNotFoundError):
                os.remove(unfinished)
        if world > 1:
            everyones = [None] * world
            dist.all_gather_object(everyones, {text: known[text] for text in texts if text in known})
            for theirs in everyones:
                known.update(theirs)
        return [100 - known[text] for text in texts]

    rows, rng = [], utils.generator(args.seed, 4)
    for repeat in range(1, args.repeats + 1):
        found, score, paid = sample(args, f, rng, wave=world)
        arch = format_architecture(from_indices(space, found))
        rows.append({"repeat": repeat, "arch": arch, "score": score, "evaluations": paid})
        rows[-1][column] = known.get(arch)  # of sampled neighbors the center need not be one
    report_found(args, method_name(args), column, [column], rows, folder)
    for name in os.listdir(args.save) if rank == 0 else ():
        if name.startswith("evaluating-"):  # finished, but killed before it was removed
            os.remove(folder.file(name))
    if world > 1:
        dist.destroy_process_group()


def trained_accuracy(args, batches, held_out, data, device, folder, path, rank):
    """Top-1 accuracy (percent) on the held-out images of the network of args.arch, trained from scratch; 0
    where its loss does not stay finite.

    args: flags of train.py. batches, held_out, data: of train.load_train. path: checkpoint after each epoch,
    with which an interrupted training goes on.
    """
    from tqdm import tqdm

    model, optimizer, autocast, scaler = train.build(args, len(data["classes"]), device)
    parts = dict(model=model, optimizer=optimizer, scaler=scaler, batches=batches)
    rows = []
    if os.path.exists(path):
        checkpoint = utils.load_checkpoint(path)
        utils.restore(parts, checkpoint)
        rows = checkpoint["rows"]
    total, done = args.epochs * len(batches), len(rows) * len(batches)
    try:
        with tqdm(total=total, initial=done, unit="step", disable=rank > 0 or None, leave=False) as bar:
            for epoch in range(len(rows) + 1, args.epochs + 1):
                started = time.perf_counter()
                _, loss, _ = train.train_epoch(
                    model, optimizer, batches, args, epoch, bar, path, autocast, scaler
                )
                rows.append({"train_loss": loss, "seconds": time.perf_counter() - started})
                utils.save_checkpoint(path, parts, epoch, rows, args)
        scores = train.evaluate(model, held_out, autocast)
        utils.check_finite_state(model, scores["loss"], f"epoch {args.epochs}", path)
    except utils.NotFinite as error:
        folder.log(f"{args.arch}: 0 %, since {error}", anyway=True)
        return 0.0
    folder.log(
        f"{args.arch}: {scores['top1']:.2f} %, training loss {rows[-1]['train_loss']:.4f}, "
        f"{sum(row['seconds'] for row in rows):.1f} s",
        anyway=True,
    )
    return scores["top1"]


def search_exact(args):
    """DARTS and NA-DARTS on a table, without a supernet: the expected error of a product distribution is
    minimised over alpha by Adam, all repeats at once from random starts."""
    from tqdm import tqdm

    table = table_to_search(args)
    errors, g, space = 100 - table[args.bench_metric], AGGREGATE[args.agg], SPACES[args.space]
    if errors.isnan().any():
        raise utils.BadInput(
            f"--exact needs {args.bench_metric} of all architectures, and {args.bench} lacks some: complete "
            "the table, or search on another column"
        )
    E, O, rng = len(space.edges), len(space.ops), utils.generator(args.seed, 4)  # noqa: E741
    R, n = args.repeats, args.neighbors if args.neighborhood else 0
    alpha = args.alpha_scale * torch.randn(R, E, O, generator=rng, dtype=torch.float64)
    alpha.requires_grad_()
    optimizer = torch.optim.Adam(
        [alpha], args.arch_learning_rate, betas=(0.5, 0.999), weight_decay=args.arch_weight_decay
    )
    ball = ball_shifts(E, O, args.neighborhood)

    def loss():
        """g over the neighborhood, or over a sample of it, of each repeat: (R,)."""
        shifts = ball.expand(R, -1, -1)
        if n:
            shifts = sample_shifts(E, O, args.neighborhood, R * n, rng).view(R, n, E)
        q = neighbors(alpha.softmax(-1)[:, None], shifts, args.perturb)  # (R, n, E, O)
        return g(expected_error(errors, q).T)

    for _ in tqdm(range(args.steps), unit="step", disable=None, leave=False):
        (alpha.grad,) = torch.autograd.grad(loss().sum(), alpha)
        optimizer.step()
    with torch.no_grad():
        scores = loss().tolist()
    names, rows = nasbench201_architectures(), []
    places = alpha.argmax(-1) @ (O ** torch.arange(E - 1, -1, -1))
    for repeat, (place, score) in enumerate(zip(places.tolist(), scores, strict=True), 1):
        row = {"repeat": repeat, "arch": names[place], "score": score, "evaluations": len(errors)}
        rows.append(row | accuracies(table, row["arch"]))
    report_found(args, f"{method_name(args)}, exact", args.bench_metric, table, rows)


def table_to_search(args):
    """The table of --bench, checked to have the column that is searched on."""
    if args.save:
        utils.check_free(args.save)
    table = utils.load_table(args.bench)
    if args.bench_metric not in table:
        raise utils.BadInput(
            f"--bench_metric {args.bench_metric} is no column of {args.bench}: it has {', '.join(table)}"
        )
    return table


def method_name(args):
    return ("NA-" if args.neighborhood else "") + args.algo.upper()


def report_found(args, method, metric, names, rows, folder=None):
    """Write and print what repeats of a search found.

    metric: the column that was searched on. names: all columns. rows: a dict for each repeat, with its
    `arch`, the `evaluations` that it paid and the columns (percent, or None). folder: the run's, where there
    is one yet.
    """
    if folder is None:
        what = method.lower().replace(", ", "-")
        args.save = args.save or utils.new_run_path("search", f"{what}-{args.space}")
        folder = utils.RunFolder(args.save, args)
    folder.write_metrics(rows)
    folder.write_genotype(parse_architecture(rows[0]["arch"]))
    columns = {}  # over the repeats whose architecture has a value
    for name in names:
        values = [row[name] for row in rows if row[name] is not None]
        mean = statistics.mean(values) if values else None
        columns[name] = {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None}
    result = {
        "algo": method,
        "arch": rows[0]["arch"],
        "row": {name: rows[0][name] for name in names},
        "repeats": args.repeats,
        "evaluations": sum(row["evaluations"] for row in rows) / len(rows),
        "columns": columns,
    }
    folder.write_json("result.json", result)
    folder.log(
        f"{method} on {metric}: {args.repeats} repeats, {result['evaluations']:.1f} evaluations "
        "each\n"
        f"  {result['arch']} (first repeat): "
        + ", ".join(f"{n} {v:.2f}" for n, v in result["row"].items() if v is not None)
    )
    for name, column in columns.items():
        if column["mean"] is not None:
            spread = "" if column["std"] is None else f" +- {column['std']:.2f}"
            folder.log(f"  {name} {column['mean']:.2f}{spread} %")
    folder.log(f"seed {args.seed}, {torch.get_num_threads()} threads; run folder {folder.path}")


def report_search(folder, args, method, arch, rows, model, arch_set, normalisation):
    """The end of a gradient search: its cell as a picture, where matplotlib is installed, and result.json
    with the architecture, the last epoch's metrics, and how sharp its surroundings are (or None). arch_set:
    images, labels, and the index of the half that alpha was trained on."""
    sharpness = None
    try:
        import visualize  # here, since a search does without matplotlib

        if args.sharpness_images:
            drawn = visualize.loss_batches(
                *arch_set, args.sharpness_images, args.batch_size, args.seed, normalisation
            )
            model.share_statistics(False)  # each neighbor for itself
            try:
                sharpness = visualize.sharpness(model, drawn, args.perturb)
                folder.log(visualize.sharpness_text(sharpness))
            except (RuntimeError, MemoryError) as error:  # the Hessian takes a few times what a step does
                if not utils.out_of_memory(error):
                    raise
                mend = f"python visualize.py sharpness {folder.path} --images 16"
                folder.log(f"no sharpness, out of memory: {mend}")
        visualize.save(visualize.draw_cell(arch), folder.file("cell.png"), visualize.cell_rows(arch))
    except ImportError as error:
        folder.log(f"no cell.png: {error}")
    result = {"algo": method, "arch": format_architecture(arch), "metrics": rows[-1], "sharpness": sharpness}
    folder.write_json("result.json", result)


def main(args):
    from tqdm import tqdm

    if args.exact:
        return search_exact(args)
    if args.algo != "darts":
        return search_trained(args) if args.eval else search_table(args)

    # Device, data, generators. Each source of random numbers is its own seeded stream.
    device = utils.device_of(args.device)
    checkpoint = utils.load_checkpoint(os.path.join(args.resume, "checkpoint.pt")) if args.resume else None
    if checkpoint:
        utils.check_same_run(args, checkpoint, MAY_DIFFER)
    elif args.save:
        utils.check_free(args.save)
    torch.manual_seed(args.seed)  # the supernet's first weights
    weight_g, arch_g, neighbor_g = (utils.generator(args.seed, stream) for stream in range(1, 4))
    table = utils.load_table(args.bench) if args.bench else None
    images, labels, classes, weight_half, arch_half, normalisation = utils.load_halves(args)
    images, labels = images.to(device), labels.to(device)
    pad = images.shape[1] // 8  # 4 pixels at 32 x 32, as DARTS has it
    augmentation = dict(**normalisation, pad=pad, cutout=args.cutout_length if args.cutout else 0)
    weight_batches = utils.Batches(images, labels, weight_half, args.batch_size, weight_g, **augmentation)
    arch_batches = utils.Batches(images, labels, arch_half, args.batch_size, arch_g, **augmentation)

    # Supernet and optimizers
    space = SPACES[args.space]
    model = SUPERNETS[args.space](args.init_channels, args.layers, len(classes)).to(device)
    model.share_statistics(args.neighbor_norm == "shared")
    weights = model.weight_parameters()
    weight_optimizer = torch.optim.SGD(
        weights, args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
    )
    arch_optimizer = torch.optim.Adam(
        model.arch_parameters(),
        args.arch_learning_rate,
        betas=(0.5, 0.999),
        weight_decay=args.arch_weight_decay,
    )

    # Precision and compilation are decided here once.
    net = torch.compile(model) if args.compile else model
    autocast = (
        functools.partial(torch.autocast, device.type, torch.bfloat16) if args.amp == "bf16" else nullcontext
    )

    # The run folder, and what a checkpoint holds besides its epoch
    method = method_name(args) + (", second order" if args.unrolled else "")
    args.save = (
        args.resume
        or args.save
        or utils.new_run_path("search", f"{method.split(',')[0].lower()}-{args.space}")
    )
    # alpha at the start and after each epoch, (1 + epochs, cells, E, O), which visualize.py draws
    trajectory = utils.State(alpha=model.alpha.detach().cpu()[None].clone())
    parts = dict(
        model=model, weight_optimizer=weight_optimizer, arch_optimizer=arch_optimizer,
        weight_batches=weight_batches, arch_batches=arch_batches, neighbors=utils.GeneratorState(neighbor_g),
        trajectory=trajectory,
    )  # fmt: skip
    start, rows = 0, []
    if checkpoint:
        utils.restore(parts, checkpoint)
        start, rows = checkpoint["epoch"], checkpoint["rows"]
    folder = utils.RunFolder(args.save, args)
    if checkpoint:
        folder.log_resumed(checkpoint, args)
    else:
        folder.save(parts, 0, rows, args)
        folder.log(
            f"{method}, space {args.space}: supernet of {sum(w.numel() for w in weights):,} weights; "
            f"{args.dataset}: {len(weight_half):,} + {len(arch_half):,} images, {len(classes)} classes; "
            f"{device}, {torch.get_num_threads()} threads; run folder {folder.path}"
        )

    steps = len(weight_batches)
    # The architecture itself as shifts: none on any edge.
    center = torch.zeros(1, model.alpha[..., 0].numel(), dtype=torch.long)
    bar = tqdm(total=args.epochs * steps, initial=start * steps, unit="step", disable=None)
    for epoch in range(start + 1, args.epochs + 1):
        started = time.perf_counter()
        cosine = (1 + math.cos(math.pi * (epoch - 1) / args.epochs)) / 2
        learning_rate = args.learning_rate_min + (args.learning_rate - args.learning_rate_min) * cosine
        weight_optimizer.param_groups[0]["lr"] = learning_rate
        weight_losses, arch_losses, correct = [], [], 0
        for step in range(1, steps + 1):
            [(x, y)] = next(weight_batches)
            weight_shifts = center
            if args.weight_step == "neighbors":
                weight_shifts = draw_shifts(model, args, neighbor_g)

            # Architecture step: the loss over the neighborhood, on images that the weights do not train on.
            if epoch > args.arch_warmup:
                [(x_arch, y_arch)], shifts = next(arch_batches), draw_shifts(model, args, neighbor_g)
                with running_statistics_kept(model), autocast():
                    if args.unrolled:
                        ahead, valid = (x, y, weight_shifts), (x_arch, y_arch, shifts)
                        arch_loss, gradient = unrolled_gradient(model, weight_optimizer, ahead, valid, args)
                    else:
                        with weights_held(model):
                            arch_loss = neighborhood_loss(net, x_arch, y_arch, shifts, args)
                            (gradient,) = torch.autograd.grad(arch_loss, model.alpha)
                model.alpha.grad = gradient
                arch_optimizer.step()
                arch_losses.append(arch_loss.detach())

            # Weight step: at the center, or on neighbors, each with its share of the batch.
            with autocast():
                logits = net(x, mixtures(model, weight_shifts, args).detach())
                weight_loss = F.cross_entropy(logits, y)
            weight_optimizer.zero_grad()
            weight_loss.backward(inputs=weights)
            torch.nn.utils.clip_grad_norm_(weights, args.grad_clip)
            weight_optimizer.step()

            weight_losses.append(weight_loss.detach())
            correct += (logits.argmax(1) == y).sum()
            bar.update()
            if step % args.report_freq == 0 or step == steps:
                # Not each step, since a look at the loss makes a GPU wait.
                where = f"epoch {epoch}, learning rate {learning_rate:.3g}"
                losses = torch.stack([torch.stack(kind) for kind in (weight_losses, arch_losses) if kind])
                utils.check_finite(losses, where, folder.file("checkpoint.pt"))
                last = {"weight_loss": weight_losses[-1]}
                if arch_losses:
                    last["arch_loss"] = arch_losses[-1]
                bar.set_postfix({name: f"{loss:.3f}" for name, loss in last.items()})

        # The architecture half at the center, the cell so far, a checkpoint
        arch_set = (images, labels, arch_half)
        valid_loss, valid_accuracy = evaluate(model, *arch_set, args.batch_size, normalisation)
        utils.check_finite_state(model, valid_loss, where, folder.file("checkpoint.pt"))
        arch = read_cell(space, model.mixture())
        chosen = operations(arch)
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": learning_rate,
                "weight_loss": torch.stack(weight_losses).mean().item(),
                "weight_accuracy": 100 * correct.item() / (steps * args.batch_size),
                "neighborhood_loss": torch.stack(arch_losses).mean().item() if arch_losses else math.nan,
                "arch_loss": valid_loss,
                "arch_accuracy": valid_accuracy,
                "skip_connects": chosen.count("skip_connect"),
                "parameter_free": sum(op in PARAMETER_FREE for op in chosen),
                "seconds": round(time.perf_counter() - started, 3),
                "genotype": format_architecture(arch),
                **accuracies(table, arch),
            }
        )
        trajectory["alpha"] = torch.cat([trajectory["alpha"], model.alpha.detach().cpu()[None]])
        folder.save(parts, epoch, rows, args)
        folder.write_genotype(arch)
        neighborhood = f"neighborhood loss {rows[-1]['neighborhood_loss']:.4f}" if arch_losses else "warm-up"
        folder.log(
            "epoch {epoch}: learning rate {learning_rate:.4f}, weight half loss {weight_loss:.4f} accuracy "
            "{weight_accuracy:.2f} %, architecture half loss {arch_loss:.4f} accuracy {arch_accuracy:.2f} %, "
            "{neighborhood}, {skip_connects} skip connections, {parameter_free} parameter-free, "
            "{seconds:.1f} s\n  {genotype}".format(neighborhood=neighborhood, **rows[-1])
        )
        if table:
            found = accuracies(table, arch).items()
            folder.log("  table: " + ", ".join(f"{n} {v:.2f}" for n, v in found if v is not None))
    bar.close()
    arch = read_cell(space, model.mixture())
    folder.write_genotype(arch)
    report_search(folder, args, method, arch, rows, model, (images, labels, arch_half), normalisation)
    folder.log(f"found {format_architecture(arch)}\ntrain it with: python train.py --arch {folder.path}")


if __name__ == "__main__":
    utils.run(main, parse_args())
