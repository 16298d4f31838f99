"""Search for a cell by sampling: random and local search, and their neighborhood-aware forms.

    python sample.py --algo rs --bench T.csv                       NA-RS on the NAS-Bench-201 table
    python sample.py --algo ls --bench T.csv --budget 200          NA-LS; --algo ea: NA-REA
    python sample.py --algo rs --neighborhood 0 --budget 100 --repeats 500 --bench T.csv    RS, mean and sd
    python sample.py --algo rs --eval train --space darts --budget 400 [flags of train.py]  by training
    torchrun --nproc_per_node 8 sample.py --algo rs --eval train ...    the same, in 8 processes
    python sample.py --algo ls --eval supernet --space darts [flags of train.py]            by weight sharing

NA-RS draws architectures and keeps the one with the best g over its neighborhood; NA-LS is a best-first local
search, and NA-REA regularised evolution; with --neighborhood 0 they are RS, LS and REA. They never pay for an
architecture twice. Neighbors and mutations change operations alone: in the DARTS space the edges keep the
inputs that were drawn, unlike in REA as published.

On a table, --bench, they search one column, whose error is 100 less the accuracy, and report the others. By
training, --eval train, each architecture is trained by train.py's loop on one part of the images, and its
error is that on the rest: all other flags are train.py's, with --epochs 12 and --valid_portion 0.5 as
defaults. Each finished training adds a line to evaluations.csv, itself a table for --bench; --resume FOLDER
plays the search again and takes from that file what was finished. With --eval supernet, one supernet is
trained so, each piece of a batch (--accumulate) on another architecture; training_args below has its
defaults. An architecture's error is then its loss on the rest, with these weights.

A run writes one folder: args.json, log.txt, metrics.csv (a row a repeat), genotype.json, result.json; by
training evaluations.csv, with a supernet checkpoint.pt.
"""

import csv
import os
import shlex
import statistics
import sys
import time
from argparse import Namespace
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F

import nats_bench
import train
import utils
from genotypes import (
    SPACES,
    Genotype,
    discrete_ops,
    format_architecture,
    from_indices,
    nasbench201_architectures,
    operations,
    parse_architecture,
    random_architecture,
    space_of,
    space_with,
    to_indices,
    to_json,
)
from model_search import SUPERNETS, running_statistics_kept
from neighborhood import (
    AGGREGATE,
    Evaluations,
    ball_shifts,
    ball_size,
    discrete_neighbors,
    evolution,
    local_search,
    random_search,
    sample_shifts,
    table_neighborhoods,
)
from utils import within

# What may change on --resume
MAY_DIFFER = "samples budget save resume training bench".split()
LAYERS = {"darts": 8, "nasbench201": 1}  # of a supernet
BUDGETS = {"darts": 400, "nasbench201": 100}  # with --eval: four whole neighborhoods
# On the supernet: held-out images of an evaluation; neighborhoods that are compared with the table
IMAGES, CENTERS = 500, 50


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    parser.set_defaults(script="sample.py")
    add = parser.add_argument
    # fmt: off
    # The method
    add("--algo", choices=("rs", "ls", "ea"), default="rs",
        help="random search, local search, evolution; neighborhood-aware unless --neighborhood is 0")
    add("--neighborhood", type=within(int, 0, 16), default=1,
        help="radius d of the neighborhood; 0 is RS, LS or REA")
    add("--agg", choices=AGGREGATE, default="mean", help="aggregation g of the neighbors' errors")
    add("--neighbors", type=within(int, 0, 4096), default=0,
        help="neighbors to sample; 0: the whole neighborhood")
    add("--samples", type=within(int, 1, 1_000_000), help="architectures to draw (rs), to expand (ls) or "
        "children (ea) (default: 1000 for rs on a table)")
    add("--budget", type=within(int, 1, 1_000_000), help="most evaluations, each architecture paid once "
        "(default: 200 for ls and ea on a table; with --eval 100, in the space darts 400)")
    add("--starts", type=within(int, 1, 1_000_000),
        help="random architectures that ls begins with (default: 2/5 of the budget, or 10)")
    # The evaluator
    add("--space", choices=SPACES, help="search space (default: darts; with --bench nasbench201)")
    add("--ops", nargs="+", metavar="OP", help="candidate operations, of those of the space (default: all)")
    add("--bench", help="NAS-Bench-201 accuracies: a CSV file, or a folder of official NATS-Bench files")
    add("--bench_metric", default="cifar10_valid_200", help="the table's column that is searched on")
    add("--noise", type=within(float, 0, 100), default=0.0,
        help="standard deviation (points) of an error added to each accuracy that is searched on, drawn anew "
        "for each repeat; what is reported is without it")
    add("--eval", choices=EVALUATORS, help="train each architecture, or one supernet on which all "
        "are evaluated; all other flags are train.py's (default: the table)")
    add("--supernet", metavar="RUN", help="a run whose supernet to use (default: train one)")
    add("--supernet_error", choices=("loss", "top1"), default="loss",
        help="error on the supernet: loss, or top-1 error on held-out images")
    # The run
    add("--repeats", type=within(int, 1, 100_000), default=1, help="independent repeats")
    add("--seed", type=within(int, 0, 2**31), default=2, help="seed of everything random")
    add("--save", help="run folder (default: runs/sample-<method>-<space>-<time>)")
    add("--resume", help="go on with the search by training in this folder; flags are as they were")
    # fmt: on
    words = list(sys.argv[1:] if argv is None else argv)
    resume = parser.parse_known_args(words)[0].resume
    try:
        saved = utils.saved_args(resume, "sample.py") if resume else {}
    except utils.BadInput as error:
        parser.error(str(error))
    parser.set_defaults(**saved)  # the flags that are not given are those of the run
    args, args.training = parser.parse_known_args(saved.get("training", []) + words)
    if args.eval and any(word.partition("=")[0] == "--arch" for word in args.training):
        parser.error("--arch: a search draws its architectures itself; leave it out")
    if args.training and not args.eval:
        parser.error(f"unrecognized arguments: {shlex.join(args.training)}")
    args.space = args.space or ("nasbench201" if args.bench else "darts")
    if args.samples is None and args.budget is None:
        args.samples, args.budget = (1000, None) if args.algo == "rs" else (None, 200)
        if args.eval:
            args.samples, args.budget = None, BUDGETS[args.space]
    if args.algo == "ls" and args.starts is None:
        args.starts = max(1, 2 * args.budget // 5) if args.budget else 10
    check_args(parser, args)
    if args.eval:
        flags = training_args(args)
        unused = ["seeds", "compile"] + ["amp", "auxiliary", "drop_path_prob"] * (args.eval == "supernet")
        for name in unused:
            if getattr(flags, name) not in (None, False, 0.0, "none"):
                parser.error(f"--{name} does nothing with --eval {args.eval}: leave it out")
        if not flags.valid_portion:
            parser.error("--valid_portion 0 leaves no images to evaluate architectures on: raise it")
        if args.eval == "supernet" and flags.dataset == "imagenet":
            parser.error("--eval supernet keeps its images in memory: take --dataset folder")
        if saved:
            try:
                utils.check_same_run(args, saved, MAY_DIFFER)
                before = training_args(Namespace(**saved))
                utils.check_same_run(flags, vars(before), {*train.MAY_DIFFER, "arch"} - {"epochs"})
            except utils.BadInput as error:
                parser.error(str(error))
    return args


def check_args(parser, args):
    """End with one line where a flag contradicts another."""
    try:
        space = space_with(args.space, args.ops)
    except ValueError as error:
        parser.error(f"--ops: {error}")
    edges = edge_count(space)
    if args.neighborhood > edges:
        parser.error(f"--neighborhood {args.neighborhood}: an architecture of {args.space} has {edges} edges")
    if not args.bench and not args.eval or args.bench and args.eval == "train":
        parser.error("give one evaluator: --bench FILE, a table, or --eval train or supernet")
    if args.noise and args.eval:
        parser.error(f"--noise is for tables, and --eval {args.eval} errs by itself: leave it out")
    if args.supernet and args.eval != "supernet":
        parser.error("--supernet goes with --eval supernet")
    if args.bench and args.space != "nasbench201":
        parser.error("--bench holds NAS-Bench-201 architectures: give --space nasbench201")
    if args.resume and not args.eval:
        parser.error("a search on a table takes seconds and is not resumed: run it anew")
    if args.resume and args.save not in (None, args.resume):
        parser.error("--resume goes on in its own folder: leave --save out")
    if utils.processes()[1] > 1 and (args.eval != "train" or args.algo == "ea"):
        parser.error("torchrun shares the work of --eval train with rs or ls alone: run this in one process")
    if args.starts and args.budget and args.starts > args.budget:
        parser.error(f"--starts {args.starts} is more than the --budget {args.budget}")
    sampled = args.neighbors if args.neighborhood else 0
    ball = sampled or ball_size(edges, len(discrete_ops(space)), args.neighborhood)
    if ball > 1_000_000:
        parser.error(
            f"--neighborhood {args.neighborhood} has {ball:,} members in the space {args.space}: sample some "
            "with --neighbors, or choose a smaller radius"
        )
    if args.algo == "rs" and args.budget and args.neighborhood and args.budget < 2 * ball:
        parser.error(
            f"--budget {args.budget} does not cover two neighborhoods of {ball}, to compare: raise it, or "
            "sample fewer --neighbors"
        )


def training_args(args):
    """The flags of train.py with which --eval trains an architecture of the space, or a supernet: of that,
    each of the pieces of a batch (--accumulate) trains an architecture."""
    arch = format_architecture(random_architecture(SPACES[args.space], torch.Generator()))
    defaults = dict(epochs=12, valid_portion=0.5)
    if args.eval == "supernet":
        defaults |= dict(epochs=50, batch_size=128, accumulate=4, learning_rate=0.1, auxiliary=False)
        defaults |= dict(drop_path_prob=0.0, layers=LAYERS[args.space], init_channels=16, cutout=False)
    # Processes share the architectures, and not their batches.
    return train.parse_args([f"--arch={arch}", f"--seed={args.seed}", *args.training], 1, **defaults)


def edge_count(space):
    """Edges of a discrete architecture, each with an operation: 6 in NAS-Bench-201, 16 in a genotype."""
    return len(operations(random_architecture(space, torch.Generator())))


def method_name(args):
    return ("NA-" if args.neighborhood else "") + {"ea": "REA"}.get(args.algo, args.algo.upper())


def search(args, f, rng, wave=1):
    """One repeat of --algo on the evaluator f: the architecture, a tuple as to_indices has
    it, its score, and how many evaluations were paid. wave: centers that NA-RS has evaluated at once."""
    space, g = space_with(args.space, args.ops), AGGREGATE[args.agg]
    E, O = edge_count(space), len(discrete_ops(space))  # noqa: E741
    # LS moves to neighbors with radius 0 too.
    radius = max(1, args.neighborhood) if args.algo == "ls" else args.neighborhood
    sampled = args.neighbors if radius else 0
    whole = None if sampled else ball_shifts(E, O, radius)

    def draw():
        if space.name == "darts":
            return to_indices(random_architecture(space, rng), space)
        return tuple(torch.randint(O, (E,), generator=rng).tolist())

    def neighborhood(arch):
        shifts = sample_shifts(E, O, radius, sampled, rng) if sampled else whole
        return discrete_neighbors(arch, shifts, O)

    def mutate(arch):
        shift = torch.zeros(1, E, dtype=torch.long)
        shift[0, torch.randint(E, (1,), generator=rng)] = torch.randint(1, O, (1,), generator=rng)
        return discrete_neighbors(arch, shift, O)[0]

    def choose(items, k):
        return [items[i] for i in torch.randint(len(items), (k,), generator=rng).tolist()]

    evaluations, score = Evaluations(f, args.budget), g if args.neighborhood else None
    if args.algo == "rs":
        found = random_search(evaluations, draw, neighborhood, g, args.samples, wave)
    elif args.algo == "ls":
        found = local_search(evaluations, draw, neighborhood, score, args.starts, args.samples)
    else:
        found = evolution(evaluations, draw, mutate, choose, neighborhood, score, args.samples)
    arch = min(found, key=found.get)
    return arch, found[arch], len(evaluations.known)


# ------------------------------------------------------------------------------------------------------------
# On a table
# ------------------------------------------------------------------------------------------------------------


def search_table(args):
    """Independent repeats on a table of accuracies."""
    from tqdm import tqdm

    table = nats_bench.load_table(args.bench, args.bench_metric)
    g, rng, space = AGGREGATE[args.agg], utils.generator(args.seed, 4), space_with(args.space, args.ops)
    names, errors = errors_of(table, args.bench_metric, space)
    E, O = len(space.edges), len(space.ops)  # noqa: E741
    powers = O ** torch.arange(E - 1, -1, -1)  # an architecture's place among these is ops @ powers

    def errors_at(places):
        found = searched[places]
        if found.isnan().any():
            raise utils.BadInput(
                f"{args.bench} has no {args.bench_metric} of {names[places[found.isnan()][0]]}: complete the "
                "table, or search on another column"
            )
        return found

    whole = args.algo == "rs" and args.budget is None and not (args.neighbors and args.neighborhood)
    shifts = ball_shifts(E, O, args.neighborhood)
    rows = []
    noise_g = utils.generator(args.seed, 5)
    for repeat in tqdm(range(1, args.repeats + 1), unit="repeat", disable=None, leave=False):
        noise = torch.randn(len(errors), generator=noise_g, dtype=torch.float64) if args.noise else 0.0
        searched = errors + args.noise * noise
        if whole:  # all draws at once
            drawn = torch.randint(O, (args.samples, E), generator=rng)
            members = table_neighborhoods(drawn, shifts, O)  # (samples, n)
            scores = g(errors_at(members).T)
            best = scores.argmin().item()  # the first of the lowest
            arch, score, paid = names[drawn[best] @ powers], scores[best].item(), len(members.unique())
        else:
            found, score, paid = search(args, lambda a: errors_at(torch.tensor(a) @ powers).tolist(), rng)
            arch = from_indices(space, found)
        row = {"repeat": repeat, "arch": arch, "score": score, "evaluations": paid}
        rows.append(row | nats_bench.accuracies(table, arch))
    report_found(args, args.bench_metric, table, rows, utils.RunFolder(args.save, args))


def errors_of(table, column, space):
    """The architectures of a table that have operations of the space alone, in order, and their errors by a
    column (percent)."""
    names = nasbench201_architectures()
    kept = [i for i, arch in enumerate(names) if set(operations(arch)) <= set(space.ops)]
    return [names[i] for i in kept], 100 - table[column][kept]


def report_found(args, metric, names, rows, folder, flags=None):
    """Write and print what repeats of a search found.

    metric: the column that was searched on. names: all columns. rows: a dict for each repeat, with its
    `arch`, the `evaluations` that it paid and the columns (percent, or None). flags: those of train.py.
    """
    folder.write_metrics(rows)
    folder.write_json("genotype.json", to_json(parse_architecture(rows[0]["arch"])))
    columns = {}  # over the repeats whose architecture has a value
    for name in names:
        values = [row[name] for row in rows if row[name] is not None]
        mean = statistics.mean(values) if values else None
        columns[name] = {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None}
    result = {
        "algo": method_name(args),
        "arch": rows[0]["arch"],
        "row": {name: rows[0][name] for name in names},
        "repeats": args.repeats,
        "evaluations": sum(row["evaluations"] for row in rows) / len(rows),
        "columns": columns,
    }
    folder.write_json("result.json", result)
    folder.log(
        f"{result['algo']} on {metric}, seed {args.seed}: {args.repeats} repeats, "
        f"{result['evaluations']:.1f} evaluations each\n  found {result['arch']} (first repeat)"
    )
    for name, column in columns.items():
        if column["mean"] is not None:
            digits, unit = (4, "nats") if name.endswith("loss") else (2, "%")
            spread = "" if column["std"] is None else f" +- {column['std']:.{digits}f}"
            folder.log(f"  {name} {column['mean']:.{digits}f}{spread} {unit}")
    words = ["python", "train.py", "--arch", folder.path]
    if flags:
        words += ["--dataset", flags.dataset, "--data", flags.data, "--image_size", str(flags.image_size)]
        words += ["--quick"] * flags.quick
    folder.log(f"train it with: {shlex.join(words)}")


# ------------------------------------------------------------------------------------------------------------
# By training
# ------------------------------------------------------------------------------------------------------------


def search_trained(args):
    """Repeats by training. Processes under torchrun share the architectures."""
    flags = training_args(args)
    rank, world, device = utils.join_processes(flags.device, "gloo", timedelta(days=30))
    space, column = space_with(args.space, args.ops), f"{flags.dataset}_valid_{flags.epochs}"
    args.save = utils.from_the_first(args.save)
    path = os.path.join(args.save, "evaluations.csv")
    known = read_evaluations(path, column, space) if args.resume else {}
    batches, held_out, data = train.load_train(flags, device)
    first_batch = batches.state_dict()
    before = getattr(args, "checksum", None)
    args.checksum = first_batch["checksum"]
    if before not in (None, args.checksum):
        raise utils.BadInput(f"--data {flags.data} has other images than the run {args.resume}")
    utils.wait_for_processes()  # all have read what the first now writes
    folder = utils.RunFolder(args.save, args, writes=rank == 0)
    folder.drop_result()
    if rank == 0:  # without what a kill has cut short
        lines = [f'"{text}",{value!r}\n' for text, value in known.items()]
        utils.write_file(path, f"arch,{column}\n" + "".join(lines))
    utils.wait_for_processes()
    folder.log(
        f"{method_name(args)}, space {args.space}, by {flags.epochs} epochs of training: {flags.dataset}: "
        f"{data['images'][0]:,} + {data['images'][1]:,} images, {len(data['classes'])} classes; {world} x "
        f"{device}, {torch.get_num_threads()} threads; {len(known)} evaluations done; run folder {args.save}"
    )

    def f(archs):
        texts = [format_architecture(from_indices(space, arch)) for arch in archs]
        for text in [text for text in texts if text not in known][rank::world]:
            batches.load_state_dict(first_batch)  # the same batches for each architecture
            one = Namespace(**{**vars(flags), "arch": text})
            known[text] = trained_accuracy(one, batches, held_out, data, device, folder)
            try:
                with open(path, "a", encoding="utf-8") as file:
                    # One short write, which others' cannot come into
                    file.write(f'"{text}",{known[text]!r}\n')
            except OSError as error:
                raise utils.cannot_write(path, error) from None
        if world > 1:
            everyones = [None] * world
            dist.all_gather_object(everyones, {text: known[text] for text in texts if text in known})
            for theirs in everyones:
                known.update(theirs)
        return [100 - known[text] for text in texts]

    rows, rng = [], utils.generator(args.seed, 4)
    for repeat in range(1, args.repeats + 1):
        found, score, paid = search(args, f, rng, wave=world)
        arch = format_architecture(from_indices(space, found))
        rows.append({"repeat": repeat, "arch": arch, "score": score, "evaluations": paid})
        rows[-1][column] = known.get(arch)  # of sampled neighbors the center need not be one
    report_found(args, column, [column], rows, folder, flags)
    utils.leave_processes()


def trained_accuracy(flags, batches, held_out, data, device, folder):
    """Top-1 accuracy (percent) on the held-out images of the network of flags.arch, trained from scratch; 0
    where its loss does not stay finite. flags: of train.py. batches, held_out, data: of train.load_train."""
    from tqdm import tqdm

    started = time.perf_counter()
    model, optimizer, autocast, scaler = train.build(flags, len(data["classes"]), device)
    total = flags.epochs * len(batches)
    try:
        with tqdm(total=total, unit="step", disable=None if folder.writes else True, leave=False) as bar:
            for epoch in range(1, flags.epochs + 1):
                _, loss, _ = train.train_epoch(
                    model, optimizer, batches, flags, epoch, bar, "none", autocast, scaler
                )
        scores = train.evaluate(model, held_out, autocast)
        utils.check_finite_state(model, scores["loss"], f"epoch {flags.epochs}", "none")
    except utils.NotFinite as error:
        folder.log(f"{flags.arch}: 0 %, since {error}")
        return 0.0
    seconds = time.perf_counter() - started
    folder.log(f"{flags.arch}: {scores['top1']:.2f} %, training loss {loss:.4f}, {seconds:.1f} s")
    return scores["top1"]


# ------------------------------------------------------------------------------------------------------------
# On a supernet
# ------------------------------------------------------------------------------------------------------------


def one_hot(arch, space):
    """An architecture as the supernet takes it: weights (1, cells, E, O), and the operations used."""
    p = torch.zeros(1, len(space.cells), len(space.edges), len(space.ops))
    if isinstance(arch, Genotype):
        for cell, pairs in enumerate((arch.normal, arch.reduce)):
            for i, (op, source) in enumerate(pairs):
                p[0, cell, space.edges.index((source, i // 2 + 2)), space.ops.index(op)] = 1
    else:
        for edge, op in enumerate(operations(arch)):
            p[0, 0, edge, space.ops.index(op)] = 1
    return p, (p[0] > 0).tolist()


class OnePath(torch.nn.Module):
    """A supernet, each pass of which trains an architecture drawn uniformly with g."""

    def __init__(self, supernet, g):
        super().__init__()
        self.supernet, self.g = supernet, g

    def forward(self, x, drop_path=None):
        p, used = one_hot(random_architecture(self.supernet.space, self.g), self.supernet.space)
        return self.supernet(x, p.to(x.device), used), None


def search_supernet(args):
    """Repeats on one supernet, whose weights are shared by all architectures: their error is that on held-out
    images with these weights and the statistics of the batch."""
    checkpoint = utils.load_checkpoint(args.supernet) if args.supernet else None
    flags = flags_of(checkpoint, args) if checkpoint else training_args(args)
    flags.ops = checkpoint["args"]["ops"] if checkpoint else args.ops
    device, space = utils.device_of(flags.device), space_with(args.space, args.ops)
    table = nats_bench.load_table(args.bench, args.bench_metric) if args.bench else None
    batches, held_out, data = train.load_train(flags, device)
    torch.manual_seed(args.seed)  # the first weights
    supernet = SUPERNETS[args.space](flags.init_channels, flags.layers, len(data["classes"]), flags.ops)
    supernet.to(device)
    if not set(space.ops) <= set(supernet.space.ops):
        raise utils.BadInput(
            f"--supernet {args.supernet} has --ops {' '.join(flags.ops)}: give these or fewer"
        )
    if checkpoint is None:
        checkpoint = train_supernet(args, flags, supernet, batches)
    utils.restore({"model": supernet, "batches": batches}, checkpoint)
    folder = utils.RunFolder(args.save, args)
    folder.drop_result()
    known = {}  # loss (nats) and top-1 accuracy (percent) by architecture, as tuples of indices
    measure = on_held_out(supernet, held_out, args.seed)

    def f(archs):
        known.update((arch, measure(from_indices(space, arch))) for arch in archs if arch not in known)
        return [known[a][0] if args.supernet_error == "loss" else 100 - known[a][1] for a in archs]

    rows, rng, columns = [], utils.generator(args.seed, 4), ["supernet_loss", "supernet_top1"]
    for repeat in range(1, args.repeats + 1):
        found, score, paid = search(args, f, rng)
        f([found])  # of sampled neighbors the center need not be one
        arch = format_architecture(from_indices(space, found))
        row = {"repeat": repeat, "arch": arch, "score": score, "evaluations": paid}
        rows.append(row | dict(zip(columns, known[found], strict=True)) | nats_bench.accuracies(table, arch))
    report_found(args, args.supernet_error, [*columns, *(table or ())], rows, folder, flags)
    if table:
        folder.log(rank_correlations(args, f, table))


def flags_of(checkpoint, args):
    """The flags with which the supernet of --supernet was trained; where the images lie and the device may be
    others. Raises BadInput where it cannot be used."""
    run, saved = f"--supernet {args.supernet}", checkpoint["args"]
    if "paths" not in checkpoint:
        raise utils.BadInput(f"{run}: that is no run of sample.py --eval supernet")
    if checkpoint["epoch"] < saved["epochs"]:
        mend = f"go on with: python sample.py --resume {args.supernet}"
        raise utils.BadInput(f"{run} has done {checkpoint['epoch']} epochs of {saved['epochs']}: {mend}")
    if (space := space_of(parse_architecture(saved["arch"])).name) != args.space:
        raise utils.BadInput(f"{run} is of the space {space}: give --space {space}")
    file = os.path.join(args.supernet, "checkpoint.pt") if os.path.isdir(args.supernet) else args.supernet
    flags = train.parse_args([*args.training, "--eval", f"--resume={file}"], 1)
    utils.check_same_run(flags, saved, ["eval", "resume", "name", "data", "device", "workers"])
    return flags


def on_held_out(supernet, held_out, seed):
    """A function that gives the loss (nats) and top-1 accuracy (percent) of an architecture on IMAGES of the
    held-out ones, all in one batch."""
    chosen = torch.cat(held_out.parts)
    chosen = chosen[torch.randperm(len(chosen), generator=utils.generator(seed, 6))[:IMAGES]]
    x, y = utils.normalise(held_out.images[chosen], **held_out.normalisation), held_out.labels[chosen]

    @torch.no_grad()
    def measure(arch):
        p, used = one_hot(arch, supernet.space)
        with running_statistics_kept(supernet):
            logits = supernet(x, p.to(x.device), used)
        return F.cross_entropy(logits, y).item(), 100 * (logits.argmax(1) == y).float().mean().item()

    return measure


def train_supernet(args, flags, supernet, batches):
    """Train a supernet on architectures drawn uniformly, or what is left of it: returns its checkpoint."""
    from tqdm import tqdm

    g = utils.generator(args.seed, 7)
    net = OnePath(supernet, g)
    optimizer = torch.optim.SGD(
        supernet.weight_parameters(), flags.learning_rate, flags.momentum,
        weight_decay=flags.weight_decay, nesterov=flags.nesterov,
    )  # fmt: skip
    parts = dict(model=supernet, optimizer=optimizer, batches=batches, paths=utils.GeneratorState(g))
    rows, path = [], os.path.join(args.save, "checkpoint.pt")
    if args.resume and os.path.exists(path):
        checkpoint = utils.load_checkpoint(path)
        utils.restore(parts, checkpoint)
        rows = checkpoint["rows"]
    folder = utils.RunFolder(args.save, args)
    if rows:
        folder.log(f"resumed after epoch {len(rows)} of {flags.epochs} of the supernet")
    scaler, total = torch.amp.GradScaler(enabled=False), flags.epochs * len(batches)
    with tqdm(total=total, initial=len(rows) * len(batches), unit="step", disable=None) as bar:
        for epoch in range(len(rows) + 1, flags.epochs + 1):
            lr, loss, top1 = train.train_epoch(
                net, optimizer, batches, flags, epoch, bar, path, nullcontext, scaler
            )
            utils.check_finite_state(supernet, loss, f"epoch {epoch}, learning rate {lr:.3g}", path)
            rows.append({"epoch": epoch, "learning_rate": lr, "train_loss": loss, "train_top1": top1})
            folder.save(parts, epoch, rows, flags)
            folder.log(f"epoch {epoch} of the supernet: train loss {loss:.4f} top-1 {top1:.2f} %")
    return utils.load_checkpoint(path)


def rank_correlations(args, f, table):
    """How the supernet ranks architectures of the table, as text: Spearman's correlation of its errors with
    the table's, and for centers of neighborhoods that of their own error and of g over the neighborhood."""
    space, rng = space_with(args.space, args.ops), utils.generator(args.seed, 8)
    E, O = len(space.edges), len(space.ops)  # noqa: E741
    shifts, g = ball_shifts(E, O, 1), AGGREGATE[args.agg]
    truth = errors_of(table, args.bench_metric, space)[1]
    place = lambda arch: (torch.tensor(arch) @ (O ** torch.arange(E - 1, -1, -1))).item()
    centers = [tuple(torch.randint(O, (E,), generator=rng).tolist()) for _ in range(CENTERS)]
    balls = [discrete_neighbors(arch, shifts, O) for arch in centers]
    errors = torch.tensor([f(ball) for ball in balls], dtype=torch.float64)  # (CENTERS, 25)
    members = [a for a in {a for ball in balls for a in ball} if not truth[place(a)].isnan()]

    def correlation(values, archs):
        true = truth[[place(arch) for arch in archs]]
        return spearman(values[~true.isnan()], true[~true.isnan()])  # the table may be partial

    of_all = correlation(torch.tensor(f(members), dtype=torch.float64), members)
    return (
        f"rank correlation with {args.bench_metric}: {of_all:.3f} over {len(members)} architectures; over "
        f"{CENTERS} centers {correlation(errors[:, 0], centers):.3f} by their own error, "
        f"{correlation(g(errors.T), centers):.3f} by g over their neighborhoods of radius 1"
    )


def spearman(a, b):
    """Spearman's rank correlation of two vectors."""
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def ranks(values):
    """The ranks of a vector's values. Equal values share their mean rank."""
    ordered, values = values.sort().values, values.contiguous()
    first, behind = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (first + behind).double() / 2


def read_evaluations(path, column, space):
    """The finished evaluations of a search by training: a dict of percentages by architecture, as text. A
    last line that a kill has cut short does not count. Raises BadInput where it is no such file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file.read().rpartition("\n")[0].splitlines())
        if header != ["arch", column]:
            raise ValueError(f"its columns are {', '.join(header)[:80]}")
        return {format_architecture(parse_architecture(arch, space)): float(value) for arch, value in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise utils.BadInput(
            f"{path} cannot be read ({utils.one_line(error)[:160]}): put back what the run wrote, or start "
            "the run anew"
        ) from None


EVALUATORS = {"train": search_trained, "supernet": search_supernet}  # besides the table


def main(args):
    kind = f"{method_name(args).lower()}-{args.space}{'-supernet' if args.eval == 'supernet' else ''}"
    args.save = args.resume or args.save or utils.new_run_path("sample", kind)
    with utils.claimed(args.save, args.resume):
        EVALUATORS.get(args.eval, search_table)(args)


if __name__ == "__main__":
    utils.run(main, parse_args())
