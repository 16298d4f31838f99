"""Pictures of cells and searches, and of the basin that a search ends in.

    python visualize.py cell ARCH                        a cell: a name, a run, a string, ...
    python visualize.py curves RUN [RUN ...]             losses, accuracies, mixture; mean and band over seeds
    python visualize.py mixture RUN --epochs 0 10 50     softmax(alpha) as heat maps, and all of it as a GIF
    python visualize.py landscape RUN [RUN ...]          the validation loss around the found mixture
    python visualize.py landscape --bench T.csv --arch ARCH [ARCH ...]   the error by distance, on the table
    python visualize.py sharpness RUN [RUN ...]          the loss of every neighbor, and the Hessian

A RUN is the folder of a gradient search (search.py). `--out` names the picture, as .png, .svg or .pdf;
without it, it goes to the folder of the first run, or to the current one. Its numbers are written beside it
as .csv.

Losses around a found architecture are those of the supernet with its last weights, in nats, on `--images`
images of the half that alpha was trained on, not augmented. Batch norm uses the statistics of each batch, for
the center and for every point around it, as a pass for that point alone in training mode would; its running
statistics are those of the center alone, and stay as they are. So a center's loss here is not the
`arch_loss` of metrics.csv, which is in evaluation mode.

The landscape is a picture in the manner of Li, Xu, Taylor, Studer, Goldstein ("Visualizing the loss landscape
of neural nets", NeurIPS 2018), in the space of alpha instead of the weights. The dominant eigenvalue of the
Hessian over alpha as a measure of sharpness is that of Zela et al. ("Understanding and robustifying
differentiable architecture search", ICLR 2020). The paper on neighborhood-aware search has such pictures, but
their definition was not at hand: axes, scale and loss are this project's reading.
"""

import argparse
import csv
import io
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import utils
from genotypes import SPACES, Genotype, nasbench201_architectures, operations, parse_architecture, read_cell
from model_search import SUPERNETS, running_statistics_kept, weights_held
from neighborhood import ball_shifts, neighbors

# Safe for colour-blind readers (Okabe and Ito 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAP = "cividis"
# Color and dashes of an operation's edge. A new operation is drawn as the last entry.
CONVOLUTION, POOL = ("#0072B2", "-"), ("#009E73", "-.")
LINES = {
    "none": ("#999999", ":"),
    "skip_connect": ("#D55E00", "--"),
    "max_pool_3x3": POOL,
    "avg_pool_3x3": POOL,
    "sep_conv_3x3": CONVOLUTION,
    "sep_conv_5x5": CONVOLUTION,
    "sep_conv_7x7": CONVOLUTION,
    "dil_conv_3x3": CONVOLUTION,
    "dil_conv_5x5": CONVOLUTION,
    "conv_7x1_1x7": CONVOLUTION,
    "nor_conv_1x1": CONVOLUTION,
    "nor_conv_3x3": CONVOLUTION,
    "": ("#000000", "-"),
}


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, doc, runs=None):
        add = commands.add_parser(name, doc=doc, help=doc).add_argument
        if runs:
            add("runs", nargs=runs, metavar="RUN", help="folder of a gradient search")
        add("--out", help="the picture: .png, .svg or .pdf (default: a .png in the first run's folder)")
        return add

    # fmt: off
    add = command("cell", "draw the cells of an architecture")
    add("arch", metavar="ARCH", help="a name, a run folder or genotype.json, a printed Genotype, or a string")
    command("curves", "losses, accuracies and the mixture by epoch", "+")
    add = command("mixture", "softmax(alpha) by edge and operation: heat maps, and a GIF of all epochs", 1)
    add("--epochs", type=int, nargs="+", help="epochs to draw, 0 is the start (default: up to four)")
    for name, doc in (
        ("landscape", "the loss around the found mixture, or the table's error around an architecture"),
        ("sharpness", "the loss of every neighbor of the found mixture, and the Hessian over alpha"),
    ):
        add = command(name, doc, "*" if name == "landscape" else "+")
        add("--images", type=int, default=64, help="images of the architecture half to take the loss on")
        add("--data", help="where the data set lies (default: where the run had it)")
        add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU where there is one")
        if name == "landscape":
            add("--directions", choices=DIRECTIONS, default="hessian",
                help="axes: two dominant eigenvectors of the Hessian over alpha, two random orthonormal "
                "directions, or the two principal components of alpha's way")
            add("--points", type=int, default=11, help="points along an axis, an odd number")
            add("--extent", type=float, help="half the length of an axis, in units of alpha (default: the "
                "distance of alpha from its start to its end, the longest of all runs)")
            add("--seed", type=int, default=0, help="seed of the random directions")
            add("--bench", help="a table of NAS-Bench-201 accuracies instead of runs, as in search.py")
            add("--bench_metric", default="cifar10_valid_200", help="the table's column")
            add("--arch", nargs="+", help="NAS-Bench-201 architectures to look around, with --bench")
            add("--radius", type=int, default=3, help="farthest distance, with --bench")
    # fmt: on
    args = parser.parse_args(argv)
    if args.command == "landscape":
        if bool(args.runs) == bool(args.bench) or bool(args.bench) != bool(args.arch):
            parser.error("landscape takes runs, or --bench FILE and --arch ARCH")
        if args.points < 3 or args.points > 201 or args.points % 2 == 0:
            parser.error(f"--points {args.points} is out of range: an odd number from 3 to 201")
        if args.extent is not None and not 0 < args.extent <= 1e6:
            parser.error(f"--extent {args.extent} is out of range: it lies between 0 and 1000000")
        if not 0 <= args.radius <= 6:
            parser.error(f"--radius {args.radius} is out of range: it lies between 0 and 6")
        if not 0 <= args.seed <= 2**40:
            parser.error(f"--seed {args.seed} is out of range: it lies between 0 and {2**40}")
    if getattr(args, "images", 2) < 2:
        parser.error(f"--images {args.images} is out of range: it is at least 2")
    return args


# ------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------

SUFFIXES = (".png", ".svg", ".pdf")


def picture_path(args, folder=""):
    """Where the picture goes: --out, or <command>.png in a folder. Raises BadInput for a file type or folder
    that does not do."""
    path = args.out or os.path.join(folder, f"{args.command}.png")
    if os.path.splitext(path)[1] not in SUFFIXES:
        raise utils.BadInput(f"--out {path} has no known ending: expected {', '.join(SUFFIXES)}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise utils.BadInput(f"--out {path}: there is no folder {os.path.dirname(path)}, make it first")
    return path


def new_figure(width, height, **options):
    """A figure of a size in inches, drawn without a display and without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure((width, height), **options)


def save(figure, path, rows):
    """Write a picture, in the format of its ending, and its numbers as CSV beside it. rows: dicts. A PNG file
    has a palette of 256 colors, which makes it small."""
    picture, table, kind = io.BytesIO(), io.StringIO(), os.path.splitext(path)[1][1:]
    figure.savefig(picture, format=kind, dpi=110)
    if kind == "png":
        from PIL import Image

        with Image.open(picture) as image:
            small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        picture = io.BytesIO()
        small.save(picture, "png", optimize=True)
    utils.write_file(path, picture.getvalue())
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    utils.write_file(os.path.splitext(path)[0] + ".csv", table.getvalue())


def load_run(path):
    """The checkpoint of a gradient search. Its `trajectory` is alpha at the start and after each epoch, (1 +
    epochs, cells, E, O). Raises BadInput where it is none, or has not kept alpha."""
    file = os.path.join(path, "checkpoint.pt")
    if not os.path.isfile(file):
        raise utils.BadInput(
            f"{path} is not the folder of a gradient search: there is no checkpoint.pt in it; name a folder "
            "that search.py wrote"
        )
    checkpoint = utils.load_checkpoint(file)
    flags = checkpoint["args"]
    if "arch_learning_rate" not in flags or flags.get("space") not in SPACES:
        raise utils.BadInput(f"{path} is not a run of search.py: name a folder that a gradient search wrote")
    trajectory, space = checkpoint.get("trajectory"), SPACES[flags["space"]]
    if not isinstance(trajectory, dict) or not isinstance(trajectory.get("alpha"), torch.Tensor):
        raise utils.BadInput(
            f"{path} has not kept alpha: a search of an older version, which is to be run anew"
        )
    alpha = trajectory["alpha"]
    if alpha.shape != (checkpoint["epoch"] + 1, len(space.cells), len(space.edges), len(space.ops)):
        raise utils.BadInput(f"{path}/checkpoint.pt is damaged: alpha has the shape {tuple(alpha.shape)}")
    if checkpoint["epoch"] < 1:
        raise utils.BadInput(f"{path} has not done an epoch yet: wait for its first")
    return {**checkpoint, "trajectory": alpha}


def method_of(flags):
    return ("NA-DARTS" if flags["neighborhood"] else "DARTS") + (
        ", second order" if flags["unrolled"] else ""
    )


def title_of(path, run):
    return f"{method_of(run['args'])} ({os.path.basename(os.path.abspath(path))})"


def edge_names(space):
    """Names of the edges in the order of alpha's rows, such as `normal 0-2`."""
    return [f"{cell} {source}-{target}" for cell in space.cells for source, target in space.edges]


# ------------------------------------------------------------------------------------------------------------
# Cells
# ------------------------------------------------------------------------------------------------------------

# Inches: a row, the piece of an edge that carries its label, a node, the space in which edges change rows.
ROW, LABEL, NODE, GAP = 0.27, 1.15, 0.42, 0.55


def cells_of(arch):
    """The cells of an architecture as graphs: (title, names of nodes, input nodes, edges (source, target,
    operation)). The edges into the output of a DARTS cell have the operation None."""
    if not isinstance(arch, Genotype):
        pairs = zip(operations(arch), SPACES["nasbench201"].edges, strict=True)
        return [("cell", list("0123"), [0], [(s, t, op) for op, (s, t) in pairs])]
    cells = []
    for kind in SPACES["darts"].cells:
        pairs, concat = getattr(arch, kind), getattr(arch, f"{kind}_concat")
        out = len(pairs) // 2 + 2
        names = ["$c_{k-2}$", "$c_{k-1}$", *map(str, range(2, out)), "$c_k$"]
        edges = [(source, i // 2 + 2, op) for i, (op, source) in enumerate(pairs)]
        cells.append((f"{kind} cell", names, [0, 1], edges + [(node, out, None) for node in concat]))
    return cells


def cell_layout(nodes, inputs, edges):
    """Columns and rows of a cell's drawing, in which nothing lies on anything else.

    A node's column is the length of the longest path to it. An edge enters its target in a row of its own,
    which no other edge or node shares in that column, and there its label stands; an edge that passes a
    column passes it in a row of its own too, one for all edges of a source (Sugiyama's layered drawing). Rows
    are sorted so that edges are short, by repeated barycenters.

    nodes: how many. edges: (source, target, operation). Returns (column of each node; rows, a dict of
    (column, item) to the height of its row, where an item is ("edge", i), ("pass", source) or ("node", n)).
    """
    column = dict.fromkeys(inputs, 0)
    for node in range(nodes):
        sources = [s for s, t, _ in edges if t == node]
        column[node] = column.get(node, 1 + max((column[s] for s in sources), default=0))
    if edges[-1][2] is None:
        column[nodes - 1] = 1 + max(column[n] for n in range(nodes - 1))

    # Blocks of rows that stay together: what enters a node, or one passing line.
    blocks = [[] for _ in range(max(column.values()) + 1)]
    for node in range(nodes):
        entering = [("edge", i) for i, (_, t, op) in enumerate(edges) if t == node and op is not None]
        blocks[column[node]].append(entering or [("node", node)])
    for source in range(nodes):
        last = max((column[t] for s, t, _ in edges if s == source), default=0)
        # A line is needed up to the column before the last one that it enters.
        for c in range(column[source] + 1, last):
            blocks[c].append([("pass", source)])

    def place(order):
        rows = {}
        for c, column_blocks in enumerate(order):
            items = [item for block in column_blocks for item in block]
            for k, item in enumerate(items):
                rows[c, item] = ROW * ((len(items) - 1) / 2 - k)
        for node in range(nodes):
            heights = [rows[column[node], ("edge", i)] for i, e in enumerate(edges) if e[1] == node and e[2]]
            if heights:
                rows[column[node], ("node", node)] = sum(heights) / len(heights)
        return rows

    def links():
        """Pairs of (column, item) that a line joins, from one column to the next."""
        for i, (s, t, op) in enumerate(edges):
            for c in range(column[s], column[t]):
                start = ("node", s) if c == column[s] else ("pass", s)
                end = ("pass", s) if c + 1 < column[t] else ("node", t) if op is None else ("edge", i)
                yield (c, start), (c + 1, end)

    joined = sorted(set(links()))
    touching = {}
    for a, b in joined:
        touching.setdefault(a, []).append(b)
        touching.setdefault(b, []).append(a)

    def cost(rows):
        crossings = sum(
            a[0] == c[0] and (rows[a] - rows[c]) * (rows[b] - rows[d]) < 0
            for k, (a, b) in enumerate(joined)
            for c, d in joined[:k]
        )
        return crossings + sum(abs(rows[a] - rows[b]) for a, b in joined)

    def height(c, items, rows, side):
        found = []
        for item in items:
            own = [("node", edges[item[1]][1])] if item[0] == "edge" else []
            for one in [item, *own]:
                found += [rows[other] for other in touching.get((c, one), ()) if other[0] - c in side]
        return sum(found) / len(found) if found else rows[c, items[0]]

    best = rows = place(blocks)
    for sweep in range(12):
        forward = sweep % 2 == 0
        for c in range(len(blocks)) if forward else reversed(range(len(blocks))):
            side = ((-1,), (1,), (-1, 1))[sweep % 3]
            for block in blocks[c]:
                block.sort(key=lambda item, c=c, rows=rows: -height(c, [item], rows, (-1,)))
            blocks[c].sort(key=lambda block, c=c, rows=rows, side=side: -height(c, block, rows, side))
            rows = place(blocks)
        best = min(best, rows, key=cost)
    return column, best


def draw_cell(arch):
    """The cells of an architecture (a Genotype, or a NAS-Bench-201 string) as a matplotlib figure.

    From left to right; an edge's operation stands on it. Convolutions are drawn solid, pooling dash-dotted,
    skip connections dashed, `none` dotted, so that a print in black and white can be read. A node's box is as
    high as the edges that enter it; what leaves a node leaves as one line, which forks.
    """
    cells = cells_of(arch)
    layouts = [cell_layout(len(names), inputs, edges) for _, names, inputs, edges in cells]
    width = max(max(column.values()) for column, _ in layouts) * (LABEL + NODE + GAP) + NODE + 0.3
    if isinstance(arch, Genotype):  # the edges into the output have no labels
        width -= LABEL - 0.1
    heights = [max(rows.values()) - min(rows.values()) + 2.6 * ROW for _, rows in layouts]
    figure = new_figure(width, sum(heights))
    top = sum(heights)
    for (title, names, inputs, edges), (column, rows), height in zip(cells, layouts, heights, strict=True):
        top -= height
        axes = figure.add_axes((0, top / sum(heights), 1, height / sum(heights)))
        low = min(rows.values()) - 0.7 * ROW
        axes.set(xlim=(-0.15, width - 0.15), ylim=(low, low + height))
        axes.axis("off")
        axes.text(0, low + height - 0.6 * ROW, title, fontsize=10, va="center", weight="bold")
        last = max(column.values())
        plain = bool(edges) and edges[-1][2] is None  # the last column has no labels
        # For each column: where its labels begin, and where its nodes do.
        left = [c * (LABEL + NODE + GAP) - LABEL if c else 0.0 for c in range(last + 1)]
        at = [x + LABEL if c else 0.0 for c, x in enumerate(left)]
        if plain:
            left[last] = at[last] = left[last] + 0.1
        drawn = set()
        for i, (source, target, op) in enumerate(edges):
            color, dashes = LINES.get(op or "", LINES[""])
            for c in range(column[source], column[target]):
                start = rows[c, ("node" if c == column[source] else "pass", source)]
                x = at[c] + NODE
                if c + 1 < column[target]:
                    end, key = rows[c + 1, ("pass", source)], (c, source)
                    if key not in drawn:
                        bend(axes, x, start, left[c + 1], end, at[c + 1] + NODE, "black", "-")
                    drawn.add(key)
                elif op is None:
                    bend(axes, x, start, left[c + 1], rows[c + 1, ("node", target)], at[c + 1], "black", "-")
                else:
                    end = rows[c + 1, ("edge", i)]
                    bend(axes, x, start, left[c + 1], end, at[c + 1], color, dashes, op)
                    label = dict(boxstyle="square,pad=0.12", facecolor="white", edgecolor="none")
                    axes.text(
                        left[c + 1] + LABEL / 2 - 0.05, end, op,
                        ha="center", va="center", fontsize=8, bbox=label, zorder=3,
                    )  # fmt: skip
        from matplotlib.patches import FancyBboxPatch

        for node, name in enumerate(names):
            entering = [rows[column[node], ("edge", i)] for i, e in enumerate(edges) if e[1] == node and e[2]]
            y = rows[column[node], ("node", node)]
            tall = max(entering, default=y) - min(entering, default=y) + 0.72 * ROW
            if plain and node == len(names) - 1:
                tall = 1.5 * ROW
            shade = "#DDDDDD" if node in inputs or node == len(names) - 1 else "white"
            box = FancyBboxPatch(
                (at[column[node]], y - tall / 2), NODE, tall, boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=shade, edgecolor="black", linewidth=1, zorder=4, gid="node",
            )  # fmt: skip
            axes.add_patch(box)
            axes.text(
                at[column[node]] + NODE / 2,
                y,
                name,
                ha="center",
                va="center",
                fontsize=9,
                zorder=5,
                gid="name",
            )
    return figure


def bend(axes, x, start, left, end, right, color, dashes, op=None):
    """A line from (x, start), which changes to the height `end` before x = left and goes on to x = right."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    middle = (x + left) / 2
    path = Path(
        [(x, start), (middle, start), (middle, end), (left, end), (right, end)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO],
    )
    style = "-|>,head_length=3,head_width=1.6" if op else "-"
    axes.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle=style,
            color=color,
            linestyle=dashes,
            linewidth=1.3,
            shrinkA=0,
            shrinkB=0,
            mutation_scale=1.5,
            zorder=2,
            gid=op,
        )
    )


def cell_rows(arch):
    """A cell's picture as numbers: a dict an edge. The operation of an edge to a cell's output is empty."""
    return [
        {"cell": title.split()[0], "source": source, "target": target, "operation": op or ""}
        for title, _, _, edges in cells_of(arch)
        for source, target, op in edges
    ]


def cell(args):
    run = os.path.isdir(args.arch)
    path = picture_path(args, args.arch if run else "")
    try:
        arch = parse_architecture(args.arch)
    except ValueError as error:
        raise utils.BadInput(str(error)) from None
    save(draw_cell(arch), path, cell_rows(arch))
    print(path)


# ------------------------------------------------------------------------------------------------------------
# Curves, and the mixture over time
# ------------------------------------------------------------------------------------------------------------

# Quantities that metrics.csv has: (column, panel, dashes).
METRICS = (
    ("weight_loss", "loss", "-"),
    ("arch_loss", "loss", "--"),
    ("neighborhood_loss", "loss", ":"),
    ("weight_accuracy", "accuracy", "-"),
    ("arch_accuracy", "accuracy", "--"),
    ("skip_connects", "skips", "-"),
)
# Flags by which the runs of one method may differ, as seeds of it.
NOT_THE_METHOD = {"seed", "save", "resume", "data", "device", "report_freq", "sharpness_images", "quick"}


def entropy(p):
    """Entropy of each edge's mixture, in nats: p (..., O) probabilities, returns (...). A uniform mixture has
    log O, a discrete choice 0."""
    return -torch.special.xlogy(p, p).sum(-1)


def genotype_changes(space, alphas):
    """How many of a cell's edges, as (target, source, operation), were not in the cell of the epoch before:
    a list of ints for epochs 1 on. alphas: (1 + epochs, cells, E, O)."""
    found = []
    for alpha in alphas:
        cells = cells_of(read_cell(space, alpha.softmax(-1)))
        found.append({(title, *edge) for title, _, _, edges in cells for edge in edges})
    return [len(after - before) for before, after in zip(found, found[1:], strict=False)]


def run_curves(run):
    """What is drawn of one run: quantity to a float64 tensor (epochs,), or (epochs, edges) where it is one of
    each edge. What the mixture has before the first epoch has an epoch more."""
    space, alphas = SPACES[run["args"]["space"]], run["trajectory"].double()
    p = alphas.softmax(-1).flatten(1, 2)  # (1 + epochs, E, O)
    curves = {
        name: torch.tensor([row[name] for row in run["rows"]], dtype=torch.float64) for name, *_ in METRICS
    }
    return curves | {
        "entropy": entropy(p),
        "largest_weight": p.amax(-1),
        "changes": torch.tensor(genotype_changes(space, alphas), dtype=torch.float64),
    }


def grouped(runs):
    """Runs that differ in their seed alone, together: a dict of label to list of runs. The label names the
    method, and the flags in which the groups differ."""
    groups = {}
    for run in runs:
        key = tuple(sorted((k, str(v)) for k, v in run["args"].items() if k not in NOT_THE_METHOD))
        groups.setdefault(key, []).append(run)
    flags = [members[0]["args"] for members in groups.values()]
    names = dict.fromkeys(k for f in flags for k in f)  # an older run has fewer
    different = [k for k in names if k not in NOT_THE_METHOD and len({str(f.get(k)) for f in flags}) > 1]
    radii = {f["neighborhood"] for f in flags} - {0}
    different = [k for k in different if k != "unrolled" and (k != "neighborhood" or len(radii) > 1)]
    labels = [", ".join([method_of(f), *(f"{k} {f.get(k)}" for k in different)]) for f in flags]
    return dict(zip(labels, groups.values(), strict=True))


def mean_and_band(values):
    """Mean and standard deviation (of a sample, n - 1; 0 for one) over runs: values (runs, ...)."""
    return values.mean(0), values.std(0) if len(values) > 1 else torch.zeros_like(values[0])


def curves(args):
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    groups = grouped([load_run(folder) for folder in args.runs])
    path = picture_path(args, args.runs[0])
    figure = new_figure(11, 6.4)
    panels = {
        "loss": "Loss (nats)",
        "accuracy": "Accuracy (%)",
        "skips": "Skip connections in the cell (edges)",
        "entropy": "Entropy of the mixture, by edge (nats)",
        "largest_weight": "Largest weight of the mixture, by edge",
        "changes": "Changes of the cell in an epoch (edges)",
    }
    axes = dict(zip(panels, figure.subplots(2, 3).flat, strict=True))
    panel_of = {name: (panel, dashes) for name, panel, dashes in METRICS}
    table, handles = [], []
    for k, (label, runs) in enumerate(groups.items()):
        color = COLORS[k % len(COLORS)]
        seeds = "" if len(runs) == 1 else f" (mean and deviation of {len(runs)} runs)"
        handles.append(Line2D([], [], color=color, lw=2, label=label + seeds))
        epochs = min(run["epoch"] for run in runs)
        found = [run_curves(run) for run in runs]
        edges = edge_names(SPACES[runs[0]["args"]["space"]])
        for name in found[0]:
            first = 0 if name in ("entropy", "largest_weight") else 1
            values = torch.stack(
                [curve[name][: epochs + 1 - first] for curve in found]
            )  # (runs, epochs, ...)
            x = range(first, epochs + 1)
            panel, dashes = panel_of.get(name, (name, "-"))
            if values.dim() == 3:
                for e, edge in enumerate(edges):
                    mean, std = mean_and_band(values[..., e])
                    axes[panel].plot(x, mean, color=color, lw=0.6, alpha=0.35)
                    table += curve_rows(label, name, edge, x, mean, std, len(runs))
                values = values.mean(-1)
            mean, std = mean_and_band(values)
            axes[panel].plot(x, mean, dashes, color=color, lw=1.8)
            if len(runs) > 1:
                axes[panel].fill_between(x, mean - std, mean + std, color=color, alpha=0.2, lw=0)
            edge = "mean" if first == 0 else ""
            table += curve_rows(label, name, edge, x, mean, std, len(runs))
    for name, title in panels.items():
        axes[name].set_title(title, fontsize=10)
        axes[name].set_xlabel("epoch", fontsize=9)
        axes[name].tick_params(labelsize=8)
        axes[name].ticklabel_format(axis="y", useOffset=False)
        axes[name].grid(alpha=0.25)
        axes[name].xaxis.set_major_locator(MaxNLocator(integer=True))
    for name in ("skips", "changes"):
        axes[name].set_ylim(bottom=0)
        axes[name].yaxis.set_major_locator(MaxNLocator(integer=True))
    for text, dashes in (
        ("weight half, in training", "-"),
        ("architecture half, evaluated after the epoch", "--"),
        ("architecture half, over the neighborhood, in training", ":"),
    ):
        handles.append(Line2D([], [], color="#555555", ls=dashes, lw=1.5, label=text))
    handles.append(Line2D([], [], color="#555555", lw=0.6, label="single edges (thick: their mean)"))
    columns = 2
    bottom = (0.2 * math.ceil(len(handles) / columns) + 0.1) / 6.4
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=8.5, frameon=False)
    figure.tight_layout(rect=(0, bottom, 1, 1))
    save(figure, path, table)
    print(path)


def curve_rows(label, name, edge, epochs, mean, std, runs):
    return [
        {
            "group": label, "quantity": name, "edge": edge, "epoch": epoch,
            "mean": m, "std": s if runs > 1 else "", "runs": runs,
        }
        for epoch, m, s in zip(epochs, mean.tolist(), std.tolist(), strict=True)
    ]  # fmt: skip


def draw_mixtures(space, p, epochs, scale):
    """Heat maps side by side: p (n, E, O), one for each of n epochs. scale: its lowest and highest value."""
    names, (E, O) = edge_names(space), p.shape[1:]  # noqa: E741
    figure = new_figure(1.9 + (0.27 * O + 0.25) * len(p), 0.19 * E + 1.9, layout="constrained")
    axes = figure.subplots(1, len(p), sharey=True, squeeze=False)[0]
    for place, values, epoch in zip(axes, p, epochs, strict=True):
        image = place.imshow(
            values.numpy(), cmap=MAP, vmin=scale[0], vmax=scale[1], aspect="auto", interpolation="nearest"
        )
        place.set_title(f"epoch {epoch}", fontsize=9)
        place.set_xticks(range(O), space.ops, rotation=90, fontsize=8)
        place.set_yticks(range(E), names, fontsize=8)
    axes[0].set_ylabel("edge", fontsize=9)
    figure.colorbar(image, ax=axes, label="probability", fraction=0.05, aspect=30).ax.tick_params(labelsize=8)
    return figure


def mixture(args):
    from matplotlib.animation import PillowWriter

    run = load_run(args.runs[0])
    path = picture_path(args, args.runs[0])
    space, last = SPACES[run["args"]["space"]], run["epoch"]
    p = run["trajectory"].softmax(-1).flatten(1, 2)  # (1 + epochs, E, O)
    scale = p.min().item(), p.max().item()
    chosen = args.epochs or sorted({round(last * k / 3) for k in range(4)})
    for epoch in chosen:
        if not 0 <= epoch <= last:
            raise utils.BadInput(f"--epochs {epoch} is out of range: {args.runs[0]} has epochs 0 to {last}")
    rows = [
        {"epoch": epoch, "edge": edge, "operation": op, "probability": value}
        for epoch, values in enumerate(p.tolist())
        for edge, line in zip(edge_names(space), values, strict=True)
        for op, value in zip(space.ops, line, strict=True)
    ]
    save(draw_mixtures(space, p[chosen], chosen, scale), path, rows)
    # Every epoch is a frame, or every few where there are many.
    frames = list(range(0, last, math.ceil(last / 100))) + [last]
    figure, film = draw_mixtures(space, p[:1], [0], scale), os.path.splitext(path)[0] + ".gif"
    writer, place = PillowWriter(fps=max(2, len(frames) // 10)), figure.axes[0]
    with writer.saving(figure, f"{film}.tmp.gif", dpi=80):
        for epoch in frames:
            place.images[0].set_data(p[epoch].numpy())
            place.set_title(f"epoch {epoch}", fontsize=9)
            writer.grab_frame()
    os.replace(f"{film}.tmp.gif", film)
    print(f"{path}, {film}")


# ------------------------------------------------------------------------------------------------------------
# The basin of a supernet: losses around alpha, and the Hessian
# ------------------------------------------------------------------------------------------------------------


def loss_batches(images, labels, index, n, batch_size, seed, normalisation):
    """Batches (x, y) for the losses around an architecture: n of the images that `index` names, drawn with
    the seed, in equal batches of at most batch_size. All of them where there are fewer."""
    chosen = index[torch.randperm(len(index), generator=utils.generator(seed, 5))[:n]].to(images.device)
    parts = chosen.tensor_split(math.ceil(len(chosen) / batch_size))
    return [(utils.normalise(images[part], **normalisation), labels[part]) for part in parts]


def mixture_loss(model, p, batches):
    """The loss (nats, mean over the images) under mixture weights p (cells, E, O), differentiable in them.
    To be called in training mode with running statistics kept: batch norm has each batch's statistics."""
    total = sum(F.cross_entropy(model(x, p), y, reduction="sum") for x, y in batches)
    return total / sum(len(y) for _, y in batches)


@torch.no_grad()
def losses_at(model, mixtures, batches, progress):
    """The loss under each of the mixture weights (n, cells, E, O): a float64 tensor (n,). progress: the title
    of the bar. The model is as it was before, to the bit."""
    from tqdm import tqdm

    total = 0.0
    with (
        running_statistics_kept(model),
        tqdm(
            total=len(mixtures) * len(batches), desc=progress, unit="batch", disable=None, leave=False
        ) as bar,
    ):
        for x, y in batches:
            sums = []
            # Small batches under several mixtures at once, each a group of its own, which is the same.
            for q in mixtures.split(max(1, 128 // len(y))):
                logits = model(x.repeat(len(q), 1, 1, 1), q)
                losses = F.cross_entropy(logits, y.repeat(len(q)), reduction="none").view(len(q), -1)
                sums.append(losses.cpu().double().sum(1))
                bar.update(len(q))
            total = total + torch.cat(sums)
    return total / sum(len(y) for _, y in batches)


def neighborhood_losses(model, batches, perturb):
    """The loss of every member of the radius-1 neighborhood of the supernet's mixture, by the map of the
    simplex that --perturb names: shifts (n, E), the center first, and losses (n,) in nats."""
    p = model.mixture().detach()
    shifts = ball_shifts(p[..., 0].numel(), p.shape[-1], 1)
    mixtures = neighbors(p.flatten(0, 1), shifts, perturb).view(-1, *p.shape)
    return shifts, losses_at(model, mixtures, batches, "neighbors")


def hessian_product(model, batches):
    """The Hessian of the loss over alpha, as a function of vectors: (n,) to (n,), n = cells E O.

    By double backward, exactly, a batch at a time. With one batch its graph is kept between calls.
    To be called as mixture_loss is.
    """
    images = sum(len(y) for _, y in batches)
    alpha = model.alpha.detach().requires_grad_()

    def gradient(x, y):
        loss = mixture_loss(model, alpha.softmax(-1), [(x, y)]) * len(y) / images
        return torch.autograd.grad(loss, alpha, create_graph=True)[0].flatten()

    kept = [gradient(*batches[0])] if len(batches) == 1 else None

    def product(v):
        v = v.to(alpha)
        return sum(
            torch.autograd.grad(g @ v, alpha, retain_graph=kept is not None)[0].flatten()
            for g in kept or (gradient(x, y) for x, y in batches)
        )

    return product


def dominant_eigenpairs(product, n, count=1, tolerance=1e-3, most=60):
    """The `count` eigenvalues of largest magnitude, largest first, and orthonormal eigenvectors of a
    symmetric operator: values (count,), vectors (count, n), float64.

    product: v (n,) to the operator times v. Power iteration that keeps all its iterates: the best pairs in
    their span (Lanczos 1950, with full orthogonalisation). It ends when each pair's residual |H v - value v|,
    which bounds the error of the value, is below tolerance times the largest value; or after `most` products.
    nan where a product is not finite.
    """
    v = torch.randn(n, generator=utils.generator(0, 0), dtype=torch.float64)
    Q, HQ = [], []  # orthonormal iterates, and their products
    while len(Q) < min(most, n):
        Q.append(v / v.norm())
        HQ.append(product(Q[-1]).detach().cpu().double())
        basis, image = torch.stack(Q), torch.stack(HQ)
        if not image.isfinite().all():
            return torch.full((count,), math.nan), torch.full((count, n), math.nan)
        small = basis @ image.T
        values, inner = torch.linalg.eigh((small + small.T) / 2)
        order = values.abs().argsort(descending=True)[:count]
        values, vectors = values[order], inner[:, order].T @ basis
        residuals = (inner[:, order].T @ image - values[:, None] * vectors).norm(dim=1)
        v = HQ[-1]
        for _ in range(2):  # once is not enough in floating point
            v = v - basis.T @ (basis @ v)
        if v.norm() <= 1e-12 * max(1e-30, HQ[-1].norm().item()):  # all that the start contains is found
            v = torch.randn(n, generator=utils.generator(len(Q), 0), dtype=torch.float64)
            v = v - basis.T @ (basis @ v)
        if len(Q) >= 2 * count and (residuals <= tolerance * values[0].abs()).all():
            break
    return values, vectors


def sharpness(model, batches, perturb, losses=None):
    """How sharp the supernet's minimum is: a dict of plain numbers, losses in nats.

    center_loss, mean_loss, max_loss and loss_std (over the members, population) are over the whole radius-1
    neighborhood of its mixture, the center included. hessian_eigenvalue is the dominant one (largest
    magnitude, with its sign) of the Hessian of the loss over alpha at the center, in nats (Zela et al. 2020).
    None stands for a number that is not finite. batches: those of loss_batches. losses: what
    neighborhood_losses gave, where it is known. The model is as it was before, to the bit.
    """
    if losses is None:
        losses = neighborhood_losses(model, batches, perturb)[1]
    with running_statistics_kept(model), weights_held(model):
        values, _ = dominant_eigenpairs(hessian_product(model, batches), model.alpha.numel())
    numbers = {
        "center_loss": losses[0],
        "mean_loss": losses.mean(),
        "max_loss": losses.max(),
        "loss_std": losses.std(unbiased=False),
        "hessian_eigenvalue": values[0],
    }
    row = {"images": sum(len(y) for _, y in batches), "perturb": perturb, "members": len(losses)}
    return row | {k: v.item() if v.isfinite() else None for k, v in numbers.items()}


def sharpness_text(row):
    """The numbers of `sharpness` as one line."""
    center, mean, largest, std, value = (
        "not finite" if row[name] is None else f"{row[name]:.4f}"
        for name in ("center_loss", "mean_loss", "max_loss", "loss_std", "hessian_eigenvalue")
    )
    return (
        f"loss at the center {center}; over its neighborhood of {row['members']} mean {mean}, largest "
        f"{largest}, deviation {std} nats; dominant Hessian eigenvalue {value}; {row['images']} images"
    )


def load_supernet(path, run, args):
    """The supernet of a run in its last state, in training mode, and the batches to take losses on."""
    flags = argparse.Namespace(**{**run["args"], "data": args.data or run["args"]["data"]})
    device = utils.device_of(args.device)
    images, labels, classes, _, arch_half, normalisation = utils.load_halves(flags)
    model = SUPERNETS[flags.space](flags.init_channels, flags.layers, len(classes))
    # That the images are those of the run is seen by the state of its batches.
    seen = utils.Batches(images, labels, arch_half, flags.batch_size, torch.Generator())
    utils.restore({"model": model, "arch_batches": seen}, run)
    drawn = loss_batches(
        images.to(device), labels.to(device), arch_half, args.images, flags.batch_size, flags.seed,
        normalisation,
    )  # fmt: skip
    return model.to(device), drawn


def sharpness_command(args):
    runs = {folder: load_run(folder) for folder in args.runs}
    path = picture_path(args, args.runs[0])
    figure = new_figure(6.4, 4.2, layout="constrained")
    axes, table = figure.subplots(), []
    for k, (folder, run) in enumerate(runs.items()):
        model, batches = load_supernet(folder, run, args)
        perturb, space = run["args"]["perturb"], SPACES[run["args"]["space"]]
        shifts, losses = neighborhood_losses(model, batches, perturb)
        row = sharpness(model, batches, perturb, losses)
        write_sharpness(folder, row)
        label, names = title_of(folder, run), edge_names(space)
        print(f"{label}: {sharpness_text(row)}")
        for shift, loss in zip(shifts, losses.tolist(), strict=True):
            e = shift.argmax().item()
            table.append(
                {
                    "run": folder, "edge": names[e] if shift.any() else "center", "shift": shift.max().item(),
                    "loss": loss, **{name: "" if value is None else value for name, value in row.items()},
                }
            )  # fmt: skip
        color, dashes = COLORS[k % len(COLORS)], ("-", "--", "-.", ":")[k % 4]
        part = torch.linspace(0, 100, len(losses))
        axes.plot(part, losses.sort().values, color=color, ls=dashes, lw=1.8, label=label)
        axes.axhline(losses[0], color=color, ls=dashes, lw=0.8, alpha=0.7)
    axes.set_title("Validation loss of all neighbors within radius 1 (thin: the center)", fontsize=10)
    axes.set_xlabel("neighbors, sorted by loss (%)", fontsize=9)
    axes.set_ylabel("loss (nats)", fontsize=9)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False)
    save(figure, path, table)
    print(path)


def write_sharpness(folder, row):
    """Put the row into the result.json of a run, beside what is there."""
    import json

    path, result = os.path.join(folder, "result.json"), {}
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                result = dict(json.load(file))
        except (ValueError, TypeError):
            raise utils.BadInput(
                f"{path} cannot be read: put back what the run wrote, or remove it"
            ) from None
    utils.write_file(path, json.dumps({**result, "sharpness": row}, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------------------
# Landscapes
# ------------------------------------------------------------------------------------------------------------


def centered(alpha):
    """alpha less its mean on each edge, which the softmax does not see."""
    return alpha - alpha.mean(-1, keepdim=True)


def hessian_directions(run, model, batches, args):
    """The two dominant eigenvectors of the Hessian over alpha."""
    with running_statistics_kept(model), weights_held(model):
        values, vectors = dominant_eigenpairs(hessian_product(model, batches), model.alpha.numel(), 2)
    return vectors, [f"Hessian eigenvector {k}, value {value:.3g}" for k, value in enumerate(values, 1)]


def random_directions(run, model, batches, args):
    """Two random orthonormal directions, uniform among those that the softmax sees. One seed gives the same
    ones for all runs of a space."""
    drawn = torch.randn(2, *model.alpha.shape, generator=utils.generator(args.seed, 6), dtype=torch.float64)
    vectors = torch.linalg.qr(centered(drawn).flatten(1).T).Q.T
    return vectors, ["random direction 1", "random direction 2"]


def trajectory_directions(run, model, batches, args):
    """The two principal components of alpha's way, as Li et al. (2018, section 7) have it for weights: of
    the matrix whose rows are alpha after each epoch less the last alpha."""
    way = centered(run["trajectory"].double()).flatten(1)
    _, values, vectors = torch.linalg.svd(way[:-1] - way[-1], full_matrices=False)
    if len(values) < 2 or values[1] <= 1e-12 * values[0]:
        raise utils.BadInput(
            "the way of alpha has no two components: --directions trajectory takes a run of two epochs or "
            "more"
        )
    parts = 100 * values**2 / (values**2).sum()
    return vectors[:2], [f"component {k} of alpha's way, {part:.0f} %" for k, part in enumerate(parts[:2], 1)]


DIRECTIONS = {
    "hessian": hessian_directions,
    "random": random_directions,
    "trajectory": trajectory_directions,
}


def landscape_grid(model, vectors, steps, batches, progress="landscape"):
    """The loss at alpha + a u + b v for all a and b in steps: (len(steps), len(steps)) by b and a, float64.

    vectors: u and v, (2, n) orthonormal. steps: (k,) in units of alpha. Losses in nats.
    """
    b, a = torch.meshgrid(steps, steps, indexing="ij")
    alphas = model.alpha.detach() + (a.reshape(-1, 1) * vectors[0] + b.reshape(-1, 1) * vectors[1]).view(
        -1, *model.alpha.shape
    ).to(model.alpha)
    return losses_at(model, alphas.softmax(-1), batches, progress).view(a.shape)


def landscape(args):
    if args.bench:
        return table_landscape(args)
    runs = [load_run(folder) for folder in args.runs]
    path = picture_path(args, args.runs[0])
    ways = [centered(run["trajectory"].double()).flatten(1) for run in runs]
    extent = args.extent or max((way[-1] - way[0]).norm().item() for way in ways)
    if not extent:
        raise utils.BadInput("alpha has not moved in these runs: give --extent, half the length of the axes")
    steps = torch.linspace(-extent, extent, args.points, dtype=torch.float64)
    steps[args.points // 2] = 0.0
    grids, labels, lines, table = [], [], [], []
    for folder, run, way in zip(args.runs, runs, ways, strict=True):
        model, batches = load_supernet(folder, run, args)
        vectors, names = DIRECTIONS[args.directions](run, model, batches, args)
        grid = landscape_grid(model, vectors, steps, batches, title_of(folder, run))
        grids.append(grid)
        labels.append(names)
        lines.append((way - way[-1]) @ vectors.T if args.directions == "trajectory" else None)
        table += [
            {"run": folder, "direction_1": names[0], "direction_2": names[1], "a": a, "b": b, "loss": loss}
            for b, line in zip(steps.tolist(), grid.tolist(), strict=True)
            for a, loss in zip(steps.tolist(), line, strict=True)
        ]
        center = grid[args.points // 2, args.points // 2]
        print(
            f"{title_of(folder, run)}: loss at the center {center:.4f}; on the plane mean {grid.mean():.4f}, "
            f"largest {grid.max():.4f} nats"
        )
    titles = [title_of(folder, run) for folder, run in zip(args.runs, runs, strict=True)]
    save(draw_landscapes(grids, steps, titles, labels, lines), path, table)
    print(path)


def draw_landscapes(grids, steps, titles, labels, lines):
    """Surfaces above, contours below, all runs on one scale. grids: losses (k, k) in nats; lines: alpha's way
    in the plane, (epochs, 2), or None."""
    from matplotlib.ticker import MaxNLocator

    n, extent = len(grids), steps[-1].item()
    low = min(grid.min().item() for grid in grids)
    high = max(max(grid.max().item() for grid in grids), low + 1e-9)
    levels = MaxNLocator(18).tick_values(low, high)
    figure = new_figure(4.3 * n + 0.9, 7.4, layout="constrained")
    at = steps.numpy()
    a, b = np.meshgrid(at, at)
    for k, (grid, title, names, line) in enumerate(zip(grids, titles, labels, lines, strict=True)):
        surface = figure.add_subplot(2, n, 1 + k, projection="3d")
        surface.plot_surface(
            a, b, grid.numpy(), cmap=MAP, vmin=levels[0], vmax=levels[-1], rstride=1,
            cstride=1, linewidth=0.2, edgecolor="#00000040",
        )  # fmt: skip
        center = grid[len(steps) // 2, len(steps) // 2]
        surface.set_title(f"{title}\nloss at the center {center:.3f} nats", fontsize=10)
        surface.set_zlim(levels[0], levels[-1])
        surface.set_zlabel("loss (nats)", fontsize=8)
        surface.set_xlabel("direction 1", fontsize=8, labelpad=-4)
        surface.set_ylabel("direction 2", fontsize=8, labelpad=-4)
        surface.tick_params(labelsize=7, pad=-2)
        surface.tick_params(axis="z", pad=3)
        for axis in (surface.xaxis, surface.yaxis, surface.zaxis):
            axis.set_major_locator(MaxNLocator(5))
        flat = figure.add_subplot(2, n, 1 + n + k, aspect="equal")
        image = flat.contourf(at, at, grid.numpy(), levels, cmap=MAP)
        flat.contour(at, at, grid.numpy(), levels, colors="black", linewidths=0.35)
        if line is not None:
            flat.plot(*line.T.numpy(), color="white", lw=2.2)
            flat.plot(*line.T.numpy(), "o-", color="#D55E00", lw=1.2, ms=2.5)
        flat.plot(0, 0, "*", color="white", mec="black", ms=12)
        flat.set(xlim=(-extent, extent), ylim=(-extent, extent))
        flat.set_xlabel(f"{names[0]}\n(units of alpha)", fontsize=8.5)
        flat.set_ylabel(f"{names[1]}\n(units of alpha)", fontsize=8.5)
        flat.tick_params(labelsize=8)
    bar = figure.colorbar(image, ax=[axes for axes in figure.axes[1::2]], label="loss (nats)", shrink=0.9)
    bar.locator = MaxNLocator(8)
    bar.ax.tick_params(labelsize=8)
    return figure


def table_distances(errors, place, radius):
    """The errors around an architecture by distance 0 to radius: a list of tensors, a table's missing ones
    left out. errors: (15625,) in the order of nasbench201_architectures. place: where the architecture is."""
    E, O = len(SPACES["nasbench201"].edges), len(SPACES["nasbench201"].ops)  # noqa: E741
    powers = O ** torch.arange(E - 1, -1, -1)
    shifts = ball_shifts(E, O, radius)
    places = ((place // powers % O + shifts) % O) @ powers
    distance = (shifts > 0).sum(1)
    shells = [errors[places[distance == d]] for d in range(radius + 1)]
    return [shell[~shell.isnan()] for shell in shells]


def table_landscape(args):
    path = picture_path(args)
    table = utils.load_table(args.bench)
    if args.bench_metric not in table:
        raise utils.BadInput(
            f"--bench_metric {args.bench_metric} is no column of {args.bench}: it has {', '.join(table)}"
        )
    errors, names = 100 - table[args.bench_metric], nasbench201_architectures()
    figure, rows = new_figure(6.4, 4.6, layout="constrained"), []
    axes = figure.subplots()
    for k, text in enumerate(args.arch):
        try:
            arch = parse_architecture(text, SPACES["nasbench201"])
        except ValueError as error:
            raise utils.BadInput(str(error)) from None
        shells = table_distances(errors, names.index(arch), args.radius)
        if not len(shells[0]):
            raise utils.BadInput(f"{args.bench} has no {args.bench_metric} of {arch}: choose another column")
        shown = [d for d, shell in enumerate(shells) if len(shell)]
        mean = [shells[d].mean().item() for d in shown]
        std = [shells[d].std(unbiased=False).item() for d in shown]
        x = [d + 0.08 * (k - (len(args.arch) - 1) / 2) for d in shown]
        style = dict(color=COLORS[k % len(COLORS)], ls=("-", "--", "-.", ":")[k % 4], marker="os^Dv"[k % 5])
        axes.errorbar(x, mean, std, capsize=3, ms=5, lw=1.4, label=arch, **style)
        rows += [
            {
                "arch": arch, "metric": args.bench_metric, "distance": d, "members": len(shells[d]),
                "mean": m, "std": s, "min": shells[d].min().item(), "max": shells[d].max().item(),
            }
            for d, m, s in zip(shown, mean, std, strict=True)
        ]  # fmt: skip
    axes.set_title(f"Error by distance, mean and deviation: 100 - {args.bench_metric}", fontsize=10)
    axes.set_xlabel("distance (edges changed)", fontsize=9)
    axes.set_ylabel("error (%)", fontsize=9)
    axes.set_xticks(range(args.radius + 1))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=6.5, frameon=False)
    save(figure, path, rows)
    print(path)


COMMANDS = {
    "cell": cell,
    "curves": curves,
    "mixture": mixture,
    "landscape": landscape,
    "sharpness": sharpness_command,
}


def main(args):
    try:
        COMMANDS[args.command](args)
    except ImportError as error:
        raise utils.BadInput(f"pictures need matplotlib ({error}): pip install matplotlib") from None


if __name__ == "__main__":
    utils.run(main, parse_args())
