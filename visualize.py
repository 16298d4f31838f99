"""Pictures of cells and runs, and of the basin that a search ends in.

    python visualize.py cell ARCH                        a cell: a name, a run, a string, ...
    python visualize.py curves RUN [RUN ...]             losses and more by epoch; mean and band over seeds
    python visualize.py mixture RUN --epochs 0 10 50     softmax(alpha) as heat maps
    python visualize.py landscape RUN [RUN ...]          the validation loss around the found mixture
    python visualize.py sharpness RUN [RUN ...]          the loss of every neighbor, and the Hessian

A RUN is the folder of a gradient search (search.py); `curves` takes those of train.py too. `--out` names the
picture, as .png, .svg or .pdf; without it, it goes to the folder of the first run, or to pictures-out. Its
numbers are written beside it as .csv.

Losses around a found architecture are those of the supernet with its last weights, in nats, on `--images`
images of the half that alpha was trained on, not augmented. Batch norm uses the statistics of each batch, for
the center and around it: a center's loss is not the `arch_loss` of metrics.csv, which is in evaluation mode.

The landscape is in the manner of Li et al. ("Visualizing the loss landscape of neural nets", NeurIPS 2018),
over alpha instead of the weights. The dominant eigenvalue of the Hessian over alpha as a measure of sharpness
is that of Zela et al. ("Understanding and robustifying differentiable architecture search", ICLR 2020). The
paper on neighborhood-aware search has such pictures, but their definition was not at hand: axes, scale and
loss are this project's reading.
"""

import argparse
import glob
import io
import itertools
import json
import math
import os
import textwrap
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation, UniformTriRefiner
from tqdm import tqdm

import utils
from genotypes import SPACES, Genotype, operations, parse_architecture, printable, space_with
from model_search import SUPERNETS, running_statistics_kept, weights_held
from neighborhood import PERTURB, RELAX, ball_shifts, neighbors

PICTURES = "pictures-out"  # the folder of pictures that belong to no run
# Colors safe for colour-blind readers (Okabe and Ito 2008); dashes, for print in black and white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_LINES = [dict(color=c, ls=s) for c, s in zip(COLORS, "- -- -. : - -- -.".split(), strict=True)]
FONTS = {"font.size": 9, "axes.titlesize": 10, "xtick.labelsize": 8, "ytick.labelsize": 8}
STYLE = {**FONTS, "image.cmap": "cividis", "legend.frameon": False, "axes.grid": True, "grid.alpha": 0.25}
# Inches: a row, the piece of an edge that carries its label, a node, the space in which edges change rows.
ROW, LABEL, NODE, GAP = 0.27, 1.2, 0.42, 0.7
# Color and dashes of an edge by its operation; all others are convolutions, a solid blue
LINES = {None: ("black", "-"), "none": ("#999999", ":"), "skip_connect": ("#D55E00", "--")}
LINES |= dict.fromkeys(("max_pool_3x3", "avg_pool_3x3"), ("#009E73", "-."))
# Panels of the curves, with columns of metrics.csv and what is made of the mixture; those drawn dashed
PANELS = {
    "Loss (nats)": "weight_loss train_loss arch_loss valid_loss test_loss neighborhood_loss".split(),
    "Accuracy (%)": "weight_accuracy train_top1 arch_accuracy valid_top1 test_top1".split(),
    "Learning rate": ["learning_rate"],
    "Skip connections in the cell (edges)": ["skip_connects"],
    "Entropy of softmax(alpha) (nats, mean of edges)": ["entropy"],
}
HELD_OUT = "arch_loss valid_loss test_loss arch_accuracy valid_top1 test_top1".split()
# Flags by which the runs of one method may differ, as seeds of it, and those that its name tells
NOT_THE_METHOD = "seed seeds save resume data device workers report_freq quick eval".split()
NOT_THE_METHOD += "bench graph name neighborhood unrolled".split()
NUMBERS = ("center_loss", "mean_loss", "max_loss", "loss_std", "hessian_eigenvalue")


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flags = {}
    # fmt: off
    for name, function in COMMANDS.items():
        doc, number = function.__doc__, 1 if name == "mixture" else "+"
        flags[name] = add = commands.add_parser(name, doc=doc, help=doc).add_argument
        if name != "cell":
            add("runs", nargs=number, metavar="RUN", help="folder of a run")
        add("--out", help=f"a .png, .svg or .pdf (default: COMMAND.png in the run's folder or {PICTURES})")
    flags["cell"]("arch", metavar="ARCH", help="a name, a run, a genotype.json, a printed Genotype, a string")
    flags["mixture"]("--epochs", type=int, nargs="+", help="0 is the start (default: up to four)")
    for name in ("landscape", "sharpness"):
        add = flags[name]
        add("--images", type=utils.within(int, 2, 10**6), default=64, help="to take losses on (default: 64)")
        add("--data", help="where the data set lies (default: where the run had it)")
        add("--device", default="auto", help="cpu, cuda, ...; the GPU where there is one (default: auto)")
    add = flags["landscape"]
    add("--directions", choices=("hessian", "random"), default="hessian",
        help="axes: dominant eigenvectors of the Hessian over alpha, or random directions (default: hessian)")
    add("--points", type=utils.within(int, 3, 201), default=15, help="along an axis, made odd (default: 15)")
    add("--extent", type=utils.within(float, 1e-6, 1e6), help="half the length of an axis, in units of alpha "
        "(default: how far alpha has moved, each edge's mean aside, the longest of all runs)")
    add("--seed", type=utils.within(int, 0, 2**40), default=0, help="of random directions (default: 0)")
    # fmt: on
    return parser.parse_args(argv)


def picture_path(args):
    """Where the picture goes. Raises BadInput for a file type or folder that does not do."""
    folder = [*getattr(args, "runs", ()), PICTURES][0]
    if args.command == "cell" and os.path.isdir(args.arch):
        folder = args.arch
    path = args.out or os.path.join(folder, f"{args.command}.png")
    if not path.endswith((".png", ".svg", ".pdf")):
        raise utils.BadInput(f"--out {path} has no known ending: expected .png, .svg or .pdf")
    if not os.path.isdir(os.path.dirname(path) or ".") and (args.out or folder != PICTURES):
        raise utils.BadInput(f"there is no folder {os.path.dirname(path)} for {path}")
    if Path(path).stem in ("metrics", "evaluations"):
        raise utils.BadInput(f"--out {path}: its numbers would go to a file that a run writes: name another")
    return path


def save(figure, path, rows):
    """Write a picture, in the format of its ending, and its numbers as CSV beside it. rows: dicts."""
    figure.savefig(buffer := io.BytesIO(), format=path[-3:], dpi=110)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    utils.write_file(path, buffer.getvalue())
    utils.write_csv(os.path.splitext(path)[0] + ".csv", rows)


def load_run(path, training=False):
    """The checkpoint of a gradient search, or with `training` one of train.py too. A search's `trajectory` is
    alpha at the start and after each epoch, (1 + epochs, cells, E, O). Raises BadInput where it is none."""
    file = os.path.join(path, "checkpoint.pt")
    run = utils.load_checkpoint(file) if os.path.isfile(file) else {}
    if "trajectory" not in run and not (training and run):
        kind, script = ("run", "search.py or train.py") if training else ("gradient search", "search.py")
        raise utils.BadInput(f"{path} is not the folder of a {kind}: name a folder that {script} wrote")
    if run["epoch"] < 1:
        raise utils.BadInput(f"{path} has not done an epoch yet: wait for its first")
    return {**run, "trajectory": run["trajectory"]["alpha"]} if "trajectory" in run else run


def method_of(flags):
    """The name of a search's method, or of the network that a training trains."""
    if "neighborhood" not in flags:
        return flags["name"]
    radius = f", radius {flags['neighborhood']}" if flags["neighborhood"] > 1 else ""
    name = "NA-" * (flags["neighborhood"] > 0) + RELAX[flags.get("relax", "softmax")].method
    name = "DARTS-ascent" if flags.get("perturb") == "ascent" and flags["neighborhood"] else name
    return name + radius + ", second order" * flags["unrolled"]


def title_of(path, run, width=80):
    """A run's method and folder, in lines of a width in letters."""
    name = printable(os.path.basename(os.path.abspath(path)))
    return textwrap.fill(f"{method_of(run['args'])} ({name})", width)


def edge_names(run):
    """Names of the edges in the order of alpha's rows, such as `normal 0-2`."""
    space = SPACES[run["args"]["space"]]
    return [f"{cell} {source}-{target}" for cell in space.cells for source, target in space.edges]


def operations_of(run):
    """The candidate operations of a run, in the order of alpha's columns."""
    return space_with(run["args"]["space"], run["args"].get("ops")).ops


def cells_of(arch):
    """The cells of an architecture as graphs: (title, names of nodes, edges (source, target, operation) by
    target). The edges into the output of a DARTS cell, its last node, have the operation None."""
    if not isinstance(arch, Genotype):
        pairs = zip(operations(arch), SPACES["nasbench201"].edges, strict=True)
        return [("cell", ["in", "1", "2", "out"], [(s, t, op) for op, (s, t) in pairs])]
    cells = []
    for kind in SPACES["darts"].cells:
        pairs, concat = getattr(arch, kind), getattr(arch, f"{kind}_concat")
        out = len(pairs) // 2 + 2
        names = ["$c_{k-2}$", "$c_{k-1}$", *map(str, range(2, out)), "$c_k$"]
        edges = [(source, i // 2 + 2, op) for i, (op, source) in enumerate(pairs)]
        cells.append((f"{kind} cell", names, edges + [(node, out, None) for node in concat]))
    return cells


def cell_layout(nodes, edges):
    """Columns and rows of a cell's drawing: (column of each node, rows at which each node's edges enter).

    A node's column is the length of the longest path to it. Each operation has a row of its own; so an edge
    that changes to its row right after its source passes no other node or label. A second input is below all:
    its edges rise, those of the first fall.
    """
    column, rows = [0] * nodes, [[] for _ in range(nodes)]
    two_inputs = edges[-1][2] is None
    rows[0], rows[1] = [0], [1 + sum(op is not None for *_, op in edges)] if two_inputs else []
    for row, (source, target, op) in enumerate(edges, 1):
        column[target] = max(column[target], column[source] + 1)
        # An edge to the output has no row of its own: it comes in at the mean row of its source.
        rows[target].append(row if op else sum(rows[source]) / len(rows[source]))
    if two_inputs:
        column[-1] = 1 + max(column[:-1])
    return column, rows


def draw_cell(arch):
    """The cells of an architecture (a Genotype, or a NAS-Bench-201 string) as a matplotlib figure.

    From left to right; an edge's operation stands on it where it enters its node. Convolutions are solid,
    pooling is dash-dotted, skip connections are dashed, `none` is dotted; inputs and outputs are shaded.
    """
    figure, darts = Figure((1, 1)), isinstance(arch, Genotype)
    axes, top, right = figure.add_axes((0, 0, 1, 1)), 0.0, 0.0
    t, center = torch.linspace(0, 1, 30), dict(ha="center", va="center")
    for title, names, edges in cells_of(arch):
        edges = sorted(edges, key=lambda edge: (edge[1], darts and edge[0] == 1, edge[0]))
        column, rows = cell_layout(len(names), edges)
        left = [c * (GAP + LABEL + NODE) for c in column]
        left[-1] -= (LABEL - 0.1) * darts  # there, nothing stands on the edges into the output
        axes.text(0, top + 0.6 * ROW, title, fontsize=10, va="center", weight="bold")
        top += 1.7 * ROW
        middle = [top + ROW * (used[0] + used[-1]) / 2 for used in rows]
        for i, (source, target, op) in enumerate(edges):
            x, y, end, row = left[source] + NODE, middle[source], left[target], top + ROW * (i + 1)
            bend = y + (row - y) * t**2 * (3 - 2 * t) if op else y + 0 * t
            (color, dashes), group = LINES.get(op, ("#0072B2", "-")), f"{title} edge {i}"
            axes.plot([*(x + GAP * t), end], [*bend, bend[-1]], dashes, color=color, lw=1.3, gid=group)
            if op:
                axes.plot(end - 0.05, row, ">", color=color, ms=5)
                white = dict(boxstyle="square,pad=0.12", facecolor="white", edgecolor="none")
                axes.text(end - LABEL / 2 - 0.05, row, op, fontsize=8, bbox=white, gid=group, **center)
        for node, name in enumerate(names):
            x, y, tall = left[node], middle[node], ROW * (rows[node][-1] - rows[node][0] + 0.72)
            shade = "#DDDDDD" if column[node] == 0 or node == len(names) - 1 else "white"
            axes.bar(x, tall, NODE, y - tall / 2, align="edge", color=shade, edgecolor="black", zorder=4)
            axes.text(x + NODE / 2, y, name, fontsize=9, zorder=5, **center)
        top += ROW * (0.7 + max(map(max, rows)))
        right = max(right, left[-1] + NODE)
    axes.set(xlim=(-0.15, right + 0.15), ylim=(top, 0))
    axes.axis("off")
    figure.set_size_inches(right + 0.3, top)
    return figure


def cell_rows(arch):
    """A cell's picture as numbers: a dict an edge. The operation of an edge to a cell's output is empty."""
    return [
        {"cell": title.split()[0], "source": source, "target": target, "operation": op or ""}
        for title, _, edges in cells_of(arch)
        for source, target, op in edges
    ]


def cell(args):
    """the cells of an architecture as graphs"""
    try:
        arch = parse_architecture(args.arch)
    except ValueError as error:
        raise utils.BadInput(str(error)) from None
    return draw_cell(arch), cell_rows(arch)


def run_curves(run):
    """What is drawn of one run: a dict of quantity to float64 tensor (epochs,)."""
    names = [name for names in PANELS.values() for name in names if name in run["rows"][0]]
    curves = {name: torch.tensor([row[name] for row in run["rows"]], dtype=torch.float64) for name in names}
    if "trajectory" in run:
        p = run["trajectory"][1:].double().softmax(-1)  # (epochs, cells, E, O)
        curves["entropy"] = torch.special.entr(p).sum(-1).mean((1, 2))
    return curves


def grouped(runs):
    """Runs that differ in their seed alone, together: a dict of label to runs. The label names the method or
    network, and the flags in which the groups differ."""
    names = dict.fromkeys(k for run in runs for k in run["args"] if k not in NOT_THE_METHOD)
    different = {k for k in names if len({str(run["args"].get(k)) for run in runs}) > 1}
    if len({run["args"].get("arch") for run in runs}) == len({method_of(run["args"]) for run in runs}):
        different.discard("arch")  # since the names of the networks tell them apart
    groups = {}
    for run in runs:
        flags = [f"{k} {run['args'].get(k)}" for k in names if k in different]  # an older run has fewer
        groups.setdefault(", ".join([method_of(run["args"]), *flags]), []).append(run)
    return groups


def curves(args):
    """losses, accuracies and more by epoch, of searches or trainings; mean and deviation over seeds"""
    folders = []
    for path in args.runs:  # a training with --seeds has a run for each in its folder
        folders += sorted(glob.glob(os.path.join(glob.escape(path), "seed-*"))) or [path]
    runs = [load_run(folder, training=True) for folder in folders]
    if len({"trajectory" in run for run in runs}) > 1:
        raise utils.BadInput("some of these runs are searches and some are trainings: draw them apart")
    groups = grouped(runs)
    names = {name for run in runs for name in run_curves(run)}
    panels = [title for title in PANELS if names.intersection(PANELS[title])]
    figure = Figure((12, 6.2), layout="constrained")
    places = figure.subplots(2, 3 if len(panels) > 3 else 2).flatten()
    axes, rows = dict(zip(panels, places, strict=False)), []
    for (label, members), color in zip(groups.items(), itertools.cycle(COLORS), strict=False):
        many, epochs = len(members) > 1, min(run["epoch"] for run in members)
        band = f" (mean and deviation of {len(members)} runs)" if many else ""
        places[-1].plot([], [], color=color, label=textwrap.fill(label + band, 50))
        found = [run_curves(run) for run in members]
        for title, name in [(t, n) for t in panels for n in PANELS[t] if n in found[0]]:
            values = torch.stack([curve[name][:epochs] for curve in found])  # (runs, epochs)
            mean, std, x = values.mean(0), values.std(0, unbiased=many), range(1, epochs + 1)
            dashes = "--" if name in HELD_OUT else ":" if name == "neighborhood_loss" else "-"
            axes[title].plot(x, mean, dashes, color=color, marker="." if epochs < 10 else "")
            axes[title].fill_between(x, mean - std, mean + std, color=color, alpha=0.2, lw=0)
            for epoch, m, s in zip(x, mean.tolist(), std.tolist(), strict=True):
                row = {"group": label, "quantity": name, "epoch": epoch, "mean": m}
                rows.append(row | {"std": s if many else "", "runs": len(members)})
    for title, place in axes.items():
        place.set(title=title, xlabel="epoch")
        # Other axes than those of losses and accuracies start at 0, and what hardly moves looks so.
        low, high = place.get_ylim() if title in ("Loss (nats)", "Accuracy (%)") else (0, place.get_ylim()[1])
        place.set_ylim(low, max(high, 1.02 * low) if low else 1.05 * high)
        place.locator_params(axis="x", nbins=6, integer=True)
        place.locator_params(axis="y", nbins=6, integer="(edges)" in title)
    for place in places[len(panels) :]:
        place.axis("off")
    key = "solid: training or weight half; dashed: test, held-out or architecture half; dotted: neighborhood"
    places[-1].legend(title=textwrap.fill(key, 56), loc="center")
    return figure, rows


def mixture(args):
    """softmax(alpha) by edge and operation: heat maps"""
    run = load_run(args.runs[0])
    names, ops, last = edge_names(run), operations_of(run), run["epoch"]
    p = run["trajectory"].softmax(-1).flatten(1, 2)  # (1 + epochs, E, O)
    epochs = args.epochs or sorted({round(last * k / 3) for k in range(4)})
    for epoch in epochs:
        if not 0 <= epoch <= last:
            raise utils.BadInput(f"--epochs {epoch} is out of range: {args.runs[0]} has epochs 0 to {last}")
    figure = Figure((2 + 0.3 * len(ops) * len(epochs), 1.9 + 0.19 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(epochs), sharey=True, squeeze=False)[0]
    high = max(p.max().item(), 2 / len(ops))  # twice a uniform weight at least: small differences look small
    for place, epoch in zip(axes, epochs, strict=True):
        image = place.imshow(p[epoch].numpy(), aspect="auto", vmin=0, vmax=high)
        place.set_title(f"epoch {epoch}")
        place.grid(False)
        place.set_xticks(range(len(ops)), ops, rotation=90)
        place.set_yticks(range(len(names)), names)
    axes[0].set_ylabel("edge")
    figure.colorbar(image, ax=axes, label="probability", fraction=0.05, aspect=30)
    keys = itertools.product(range(last + 1), names, ops)
    rows = [
        {"epoch": epoch, "edge": edge, "operation": op, "probability": value}
        for (epoch, edge, op), value in zip(keys, p.flatten().tolist(), strict=True)
    ]
    return figure, rows


def loss_batches(images, labels, index, n, batch_size, seed, normalisation):
    """Batches (x, y) for the losses around an architecture: n of the images that `index` names, drawn with
    the seed, in equal batches of at most batch_size. All of them where there are fewer."""
    chosen = index[torch.randperm(len(index), generator=utils.generator(seed, 5))[:n]].to(images.device)
    parts = chosen.tensor_split(math.ceil(len(chosen) / batch_size))
    return [(utils.normalise(images[part], **normalisation), labels[part]) for part in parts]


def load_supernet(run, args):
    """The supernet of a run in its last state, in training mode, and the batches to take losses on."""
    flags = argparse.Namespace(**{**run["args"], "data": args.data or run["args"]["data"]})
    device = utils.device_of(args.device)
    torch.backends.cudnn.allow_tf32 = False  # losses are compared to their fourth digit
    images, labels, classes, _, half, normalisation = utils.load_halves(flags)
    model = SUPERNETS[flags.space](flags.init_channels, flags.layers, len(classes), operations_of(run))
    # That the images are those of the run is seen by the state of its batches.
    seen = utils.Batches(images, labels, half, flags.batch_size, torch.Generator())
    utils.restore({"model": model, "arch_batches": seen}, run)
    drawn = images.to(device), labels.to(device), half, args.images, flags.batch_size, flags.seed
    return model.to(device), loss_batches(*drawn, normalisation)


@torch.no_grad()
def losses_at(model, mixtures, batches, progress):
    """The loss under each of the mixture weights (n, cells, E, O): a float64 tensor (n,), nats. progress: the
    title of the bar. The model is as it was before, to the bit."""
    found = []
    # Small batches under several mixtures at once, each a group of its own, which is the same.
    parts = mixtures.split(max(1, 128 // max(len(y) for _, y in batches)))
    with running_statistics_kept(model):
        for q in tqdm(parts, desc=progress, disable=None, leave=False):
            total = torch.zeros(len(q), dtype=torch.float64)
            for x, y in batches:
                logits = model(x.repeat(len(q), 1, 1, 1), q)
                losses = F.cross_entropy(logits, y.repeat(len(q)), reduction="none")
                total += losses.view(len(q), -1).cpu().double().sum(1)
            found.append(total)
    return torch.cat(found) / sum(len(y) for _, y in batches)


def neighborhood_losses(model, batches, perturb, relax="softmax"):
    """The loss of every member of the radius-1 neighborhood of what the search has settled on, by the map of
    the simplex that --perturb names: shifts (n, E), the center first, and losses (n,) in nats."""
    p = RELAX[relax].settled(model.alpha.detach())
    shifts = ball_shifts(p[..., 0].numel(), p.shape[-1], 1)
    perturb = perturb if perturb in PERTURB else "roll"  # ascent has no such members
    mixtures = neighbors(p.flatten(0, 1), shifts, perturb).view(-1, *p.shape)
    return shifts, losses_at(model, mixtures, batches, "neighbors")


def hessian_product(model, batches, relax="softmax"):
    """The Hessian over alpha of the loss (nats, mean over the images), as a function of vectors: (n,) to
    (n,), n = cells E O. By double backward, exactly, a batch at a time; the graph of a single one is kept.
    The model is to be in training mode."""
    images, alpha = sum(len(y) for _, y in batches), model.alpha.detach().requires_grad_()

    def gradient(x, y):
        with running_statistics_kept(model), weights_held(model):
            loss = F.cross_entropy(model(x, RELAX[relax].settled(alpha)), y, reduction="sum") / images
            return torch.autograd.grad(loss, alpha, create_graph=True)[0].flatten()

    kept = [gradient(*batches[0])] if len(batches) == 1 else None

    def product(v):
        parts = kept or (gradient(x, y) for x, y in batches)
        by = [torch.autograd.grad(g, alpha, v.to(g), retain_graph=bool(kept))[0] for g in parts]
        return sum(by).flatten()

    return product


def dominant_eigenpairs(product, n, count=1, tolerance=1e-2, floor=1e-4, most=60):
    """The `count` eigenvalues of largest magnitude, largest first, and orthonormal eigenvectors of a
    symmetric operator: values (count,), vectors (count, n), float64. nan where a product is not finite.

    product: v (n,) to the operator times v. Power iteration that keeps all its iterates: the best pairs in
    their span (Lanczos 1950, with full orthogonalisation). It ends when each pair's residual |H v - value v|,
    which bounds the error of the value (that goes with its square), is below tolerance times the largest
    value, or below floor; or after `most` products. floor: in the operator's unit, nats for a Hessian over
    alpha. The Hessian vanishes where alpha is all but decided, and float32 leaves residuals of about 1e-9.
    1e-4 is the last digit that `sharpness_text` shows, and 0.00005 nats of the loss at a distance of 1.
    """
    v = torch.randn(n, generator=utils.generator(0, 0), dtype=torch.float64)
    Q, HQ = [v / v.norm()], []  # orthonormal iterates, and their products
    while True:
        HQ.append(product(Q[-1]).detach().cpu().double())
        basis, image = torch.stack(Q), torch.stack(HQ)
        if not image.isfinite().all():
            return torch.full((count,), math.nan), torch.full((count, n), math.nan)
        small = basis @ image.T
        values, inner = torch.linalg.eigh((small + small.T) / 2)
        order = values.abs().argsort(descending=True)[:count]
        values, vectors = values[order], inner[:, order].T @ basis
        residuals = (inner[:, order].T @ image - values[:, None] * vectors).norm(dim=1)
        done = len(Q) >= 2 * count and (residuals <= max(tolerance * values[0].abs(), floor)).all()
        if done or len(Q) == min(most, n):
            return values, vectors
        # The last column of Q is orthogonal to all before, also where they span the product already.
        Q.append(torch.linalg.qr(torch.stack([*Q, HQ[-1]]).T).Q[:, -1])


def sharpness(model, batches, perturb, relax="softmax", losses=None):
    """How sharp the supernet's minimum is: a dict of plain numbers, losses in nats.

    center_loss, mean_loss, max_loss and loss_std (over the members, population) are over the whole radius-1
    neighborhood of what the search has settled on, the center included. hessian_eigenvalue is the dominant
    one (largest magnitude, with its sign) of the Hessian of the loss over alpha at the center, in nats (Zela
    et al. 2020). None stands for a number that is not finite, and for the eigenvalue of a search of discrete
    architectures, which has none. batches: those of loss_batches. losses: what neighborhood_losses gave,
    where it is known. The model is as it was before, to the bit.
    """
    losses = neighborhood_losses(model, batches, perturb, relax)[1] if losses is None else losses
    value = torch.tensor(math.nan)
    if relax != "gumbel":
        (value,), _ = dominant_eigenpairs(hessian_product(model, batches, relax), model.alpha.numel())
    numbers = losses[0], losses.mean(), losses.max(), losses.std(unbiased=False), value
    row = {"images": sum(len(y) for _, y in batches), "perturb": perturb if perturb in PERTURB else "roll"}
    row["members"] = len(losses)
    return row | {k: v.item() if v.isfinite() else None for k, v in zip(NUMBERS, numbers, strict=True)}


def sharpness_text(row):
    """The numbers of `sharpness` as one line."""
    shown = ["none" if row[name] is None else f"{row[name]:.4f}" for name in NUMBERS]
    return (
        "loss at the center {}; over its neighborhood of {members} mean {}, largest {}, deviation {} nats; "
        "dominant Hessian eigenvalue {}; {images} images".format(*shown, **row)
    )


def sharpness_command(args):
    """the loss of every neighbor of the found mixture, and the Hessian over alpha; also to result.json"""
    runs, rows = {folder: load_run(folder) for folder in args.runs}, []
    figure = Figure((6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (folder, run), style in zip(runs.items(), itertools.cycle(RUN_LINES), strict=False):
        (model, batches), names = load_supernet(run, args), edge_names(run)
        how = run["args"]["perturb"], run["args"].get("relax", "softmax")
        shifts, losses = neighborhood_losses(model, batches, *how)
        numbers = sharpness(model, batches, *how, losses)
        print(f"{folder}: {sharpness_text(numbers)}")
        path = Path(folder, "result.json")
        if path.exists():  # a search that was stopped has none, and is not to look finished
            result = json.loads(path.read_text(encoding="utf-8")) | {"sharpness": numbers}
            utils.write_file(path, json.dumps(result, indent=2) + "\n")
        for shift, loss in zip(shifts, losses.tolist(), strict=True):
            edge = names[shift.argmax()] if shift.any() else "center"
            rows.append({"run": folder, "edge": edge, "shift": shift.max().item(), "loss": loss, **numbers})
        axes.plot(torch.linspace(0, 100, len(losses)), losses.sort()[0], label=title_of(folder, run), **style)
        axes.axhline(losses[0], lw=0.8, alpha=0.7, **style)
    axes.set(xlabel="neighbors, sorted by loss (%)", ylabel="loss (nats)")
    axes.set_title("Validation loss of all neighbors within radius 1 (thin: the center)")
    figure.legend(loc="outside lower center")
    return figure, rows


def directions(kind, model, batches, seed, relax):
    """Two orthonormal directions over alpha, (2, n) float64, and their names: dominant eigenvectors of the
    Hessian; or random ones, uniform among those that the softmax sees, the same for all runs of a space."""
    if kind == "hessian":
        values, vectors = dominant_eigenpairs(hessian_product(model, batches, relax), model.alpha.numel(), 2)
        return vectors, [f"Hessian eigenvector {k}, value {value:.3g}" for k, value in enumerate(values, 1)]
    drawn = torch.randn(2, *model.alpha.shape, generator=utils.generator(seed, 6), dtype=torch.float64)
    drawn -= drawn.mean(-1, keepdim=True)
    return torch.linalg.qr(drawn.flatten(1).T).Q.T, ["random direction 1", "random direction 2"]


def landscape(args):
    """the loss around the found mixture"""
    runs, drawn, rows = {folder: load_run(folder) for folder in args.runs}, [], []
    moved = [run["trajectory"][-1] - run["trajectory"][0] for run in runs.values()]
    extent = args.extent or max((by - by.mean(-1, keepdim=True)).norm().item() for by in moved)
    if not extent:
        raise utils.BadInput("alpha has not moved in these runs: give --extent, half the length of the axes")
    if "gumbel" in {run["args"].get("relax") for run in runs.values()}:
        raise utils.BadInput("a search of discrete architectures has no landscape over alpha: see sharpness")
    half = args.points // 2
    steps = torch.arange(-half, half + 1, dtype=torch.float64) * (extent / half)
    points = torch.cartesian_prod(steps, steps)  # (b, a) of each, a along the first axis
    for folder, run in runs.items():
        model, batches = load_supernet(run, args)
        relax = run["args"].get("relax", "softmax")
        vectors, names = directions(args.directions, model, batches, args.seed, relax)  # (2, n) orthonormal
        alphas = model.alpha + (points @ vectors.flip(0)).view(-1, *model.alpha.shape).to(model.alpha)
        losses = losses_at(model, RELAX[relax].settled(alphas.detach()), batches, folder)
        text = f"loss at the center {losses[len(losses) // 2]:.4f}"
        print(f"{folder}: {text}; on the plane mean {losses.mean():.4f}, largest {losses.max():.4f} nats")
        drawn.append((losses, f"{title_of(folder, run, 38)}\n{text} nats", names))
        for (b, a), loss in zip(points.tolist(), losses.tolist(), strict=True):
            row = {"run": folder, "direction_1": names[0], "direction_2": names[1], "a": a, "b": b}
            rows.append(row | {"loss": loss})
    return draw_landscapes(drawn, points), rows


def draw_landscapes(drawn, points):
    """Surfaces above, contours below, all runs on one scale. Between the measured points, the surface is
    interpolated, piecewise cubic. drawn: for each run its losses (k,) in nats, title, names of the axes.
    points: (b, a) of each loss, (k, 2)."""
    finer, n, flats = UniformTriRefiner(Triangulation(*points.T.flip(0))), len(drawn), []
    surfaces = [finer.refine_field(losses, subdiv=2) for losses, *_ in drawn]
    low, high = min(z.min() for _, z in surfaces), max(z.max() for _, z in surfaces)
    levels = MaxNLocator(18).tick_values(low, max(high, low + 1e-9))
    half = float(f"{points.max() / 2:.1g}")
    ticks = dict.fromkeys(("xticks", "yticks"), (-half, 0, half))  # not at the ends, where they would meet
    figure = Figure((4.3 * n + 0.9, 7.6), layout="constrained")
    for k, ((where, z), (_, title, names)) in enumerate(zip(surfaces, drawn, strict=True), 1):
        axes = figure.add_subplot(2, n, k, projection="3d", title=title, zlim=levels[[0, -1]], **ticks)
        axes.plot_trisurf(where, z, cmap="cividis", vmin=levels[0], vmax=levels[-1], lw=0, antialiased=False)
        axes.set_box_aspect((4, 4, 3), zoom=0.88)  # room for the names of the axes
        for axis, name in zip("xyz", ("direction 1", "direction 2", "loss (nats)"), strict=True):
            getattr(axes, f"set_{axis}label")(name, labelpad=9)
        axes = figure.add_subplot(2, n, n + k, aspect="equal")
        image = axes.tricontourf(where, z, levels)
        axes.tricontour(where, z, levels, colors="black", linewidths=0.35)
        axes.plot(0, 0, "*", color="white", mec="black", ms=12)
        axes.set(xlabel=f"{names[0]}\n(units of alpha)", ylabel=f"{names[1]}\n(units of alpha)")
        flats.append(axes)
    figure.colorbar(image, ax=flats, label="loss (nats)", shrink=0.9, ticks=MaxNLocator(8))
    return figure


COMMANDS = dict(cell=cell, curves=curves, mixture=mixture, landscape=landscape, sharpness=sharpness_command)


def main(args):
    path = picture_path(args)
    with rc_context(STYLE):
        figure, rows = COMMANDS[args.command](args)
        save(figure, path, rows)
    print(path)


if __name__ == "__main__":
    utils.run(main, parse_args())
