"""The two search spaces as data, and architectures as text.

A search space lists the candidate operations, the edges of a cell and the cell kinds. An architecture of the
DARTS space is a `Genotype`; an architecture of NAS-Bench-201 is its string, such as
`|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|`.

    parse_architecture("DARTS_V2")                 a named cell
    parse_architecture("runs/my-search")           a run folder, or the genotype.json in it
    parse_architecture("Genotype(normal=[...)")    what DARTS code prints, `range(2, 6)` included
    parse_architecture("|none~0|+|...|")           a NAS-Bench-201 string

Sources: DARTS (Liu, Simonyan, Yang; ICLR 2019), NAS-Bench-201 (Dong, Yang; ICLR 2020), NASNet (Zoph et al.;
CVPR 2018) and AmoebaNet-A (Real et al.; AAAI 2019).
"""

import argparse
import ast
import difflib
import functools
import itertools
import json
import os
import re
import sys
import warnings
from collections import namedtuple

import torch

# normal, reduce: tuples of (operation, input node), two for each node, nodes in order; nodes 0 and 1 are the
# outputs of the two previous cells. normal_concat, reduce_concat: the nodes whose outputs are concatenated.
Genotype = namedtuple("Genotype", "normal normal_concat reduce reduce_concat")

# ops: candidate operations (O). cells: cell kinds. edges: (source, target) nodes of one cell, in the order of
# the rows of the architecture parameters, so a space has E = len(cells) * len(edges) edges in all.
Space = namedtuple("Space", "name ops cells edges")

SPACES = {
    "darts": Space(
        name="darts",
        ops=(
            "none",
            "max_pool_3x3",
            "avg_pool_3x3",
            "skip_connect",
            "sep_conv_3x3",
            "sep_conv_5x5",
            "dil_conv_3x3",
            "dil_conv_5x5",
        ),
        cells=("normal", "reduce"),
        edges=tuple((source, target) for target in range(2, 6) for source in range(target)),
    ),
    "nasbench201": Space(
        name="nasbench201",
        ops=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
        cells=("cell",),
        edges=tuple((source, target) for target in range(1, 4) for source in range(target)),
    ),
}

# Operations that a Genotype may hold: those of the DARTS space but `none`, and two more for NASNet and
# AmoebaNet.
GENOTYPE_OPS = SPACES["darts"].ops[1:] + ("sep_conv_7x7", "conv_7x1_1x7")

PARAMETER_FREE = ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3")

DARTS_V1 = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("skip_connect", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("skip_connect", 2), ("max_pool_3x3", 0),
        ("max_pool_3x3", 0), ("skip_connect", 2),
        ("skip_connect", 2), ("avg_pool_3x3", 0),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip

DARTS_V2 = Genotype(
    normal=(
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("skip_connect", 0),
        ("skip_connect", 0), ("dil_conv_3x3", 2),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("skip_connect", 2), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("skip_connect", 2),
        ("skip_connect", 2), ("max_pool_3x3", 1),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip

NASNet = Genotype(
    normal=(
        ("sep_conv_5x5", 1), ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 1), ("skip_connect", 0),
        ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1), ("skip_connect", 1),
    ),
    normal_concat=(2, 3, 4, 5, 6),
    reduce=(
        ("sep_conv_5x5", 1), ("sep_conv_7x7", 0),
        ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1), ("sep_conv_5x5", 0),
        ("skip_connect", 3), ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
    ),
    reduce_concat=(4, 5, 6),
)  # fmt: skip

AmoebaNet = Genotype(
    normal=(
        ("avg_pool_3x3", 0), ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("avg_pool_3x3", 3),
        ("sep_conv_3x3", 1), ("skip_connect", 1),
        ("skip_connect", 0), ("avg_pool_3x3", 1),
    ),
    normal_concat=(4, 5, 6),
    reduce=(
        ("avg_pool_3x3", 0), ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
        ("sep_conv_7x7", 0), ("avg_pool_3x3", 1),
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
    ),
    reduce_concat=(3, 4, 6),
)  # fmt: skip

# Found by this project's code in reduced searches, and not the cells of the papers' authors: NA_DARTS by
#   python search.py --neighborhood 1 --agg mean --dataset folder --data cifar10-10k --image_size 16
#       --init_channels 8 --layers 8 --epochs 40 --arch_learning_rate 3e-3 --seed 0
# and DARTS_HERE by the same command with --neighborhood 0, on 10,000 CIFAR-10 training images (the first
# 1,000 of each class, 16 x 16 pixels), on one CPU thread. The supernets' accuracies on the architecture half
# were 58.76 and 60.92 %. Both are of seed 0, which was settled before any cell was trained. How they do once
# trained, and what other seeds found, stands in RESULTS.md.
NA_DARTS = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("dil_conv_3x3", 0),
        ("dil_conv_5x5", 2), ("dil_conv_5x5", 0),
        ("sep_conv_3x3", 1), ("dil_conv_3x3", 3),
        ("sep_conv_3x3", 3), ("sep_conv_5x5", 4),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("avg_pool_3x3", 0), ("avg_pool_3x3", 1),
        ("dil_conv_5x5", 2), ("avg_pool_3x3", 1),
        ("dil_conv_3x3", 3), ("avg_pool_3x3", 1),
        ("sep_conv_5x5", 3), ("dil_conv_5x5", 2),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip

DARTS_HERE = Genotype(
    normal=(
        ("skip_connect", 0), ("dil_conv_3x3", 1),
        ("dil_conv_5x5", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("dil_conv_3x3", 2),
        ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("avg_pool_3x3", 0), ("skip_connect", 1),
        ("skip_connect", 0), ("skip_connect", 2),
        ("dil_conv_3x3", 3), ("max_pool_3x3", 0),
        ("avg_pool_3x3", 0), ("dil_conv_5x5", 4),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip

# What `--arch NAME` knows.
NAMED = {
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "NASNet": NASNet,
    "AmoebaNet": AmoebaNet,
    "NA_DARTS": NA_DARTS,
    "DARTS_HERE": DARTS_HERE,
}


def read_cell(space, p):
    """The discrete architecture that a mixture stands for.

    p: mixture weights softmax(alpha) as a tensor of shape (cells, E, O), E edges a cell.
    DARTS space: at each node the two incoming edges with the strongest operation other than `none`, strongest
    first, each with that operation (DARTS, section 2.4). Returns a Genotype.
    NAS-Bench-201: the strongest operation of each edge. Returns the architecture string.
    Of equal weights the first edge or operation wins. Raises ValueError for a wrong shape or weights that are
    not finite.
    """
    shape = (len(space.cells), len(space.edges), len(space.ops))
    if tuple(p.shape) != shape:
        raise ValueError(
            f"mixture weights of the space {space.name} have shape {shape}, not {tuple(p.shape)}"
        )
    if not p.isfinite().all():
        raise ValueError("mixture weights are not finite: no cell can be read off")
    p = p.detach().cpu().tolist()
    if space.name == "nasbench201":
        return nasbench201_string([space.ops[row.index(max(row))] for row in p[0]])
    none = space.ops.index("none")
    chosen = []
    for cell in p:
        best = [
            max((w, -o) for o, w in enumerate(row) if o != none) for row in cell
        ]  # (weight, -operation) an edge
        pairs = []
        for node in sorted({target for _, target in space.edges}):
            incoming = [e for e, (_, target) in enumerate(space.edges) if target == node]
            strongest = sorted(incoming, key=lambda e: -best[e][0])[:2]
            pairs += [(space.ops[-best[e][1]], space.edges[e][0]) for e in strongest]
        chosen.append(tuple(pairs))
    concat = tuple(sorted({target for _, target in space.edges}))
    return Genotype(normal=chosen[0], normal_concat=concat, reduce=chosen[1], reduce_concat=concat)


def random_architecture(space, generator):
    """An architecture drawn uniformly with a seeded torch.Generator: a Genotype or a NAS-Bench-201 string.

    It is read off a mixture of independent random weights. By symmetry every pair of inputs of a node, and
    every operation that `read_cell` can choose, is equally likely.
    """
    p = torch.rand(
        len(space.cells), len(space.edges), len(space.ops), generator=generator, dtype=torch.float64
    )
    return read_cell(space, p)


def operations(arch):
    """The operation names that an architecture uses, one for each of its edges: 16 in a DARTS cell pair, 6 in
    a NAS-Bench-201 cell."""
    if isinstance(arch, Genotype):
        return [op for op, _ in arch.normal + arch.reduce]
    return re.findall(r"([^|+~]+)~", arch)


def to_indices(arch):
    """A discrete architecture as a tuple of ints: the place of each edge's operation in `discrete_ops`, and
    for a genotype the input nodes behind them."""
    ops = discrete_ops(space_of(arch))
    places = tuple(ops.index(op) for op in operations(arch))
    if isinstance(arch, Genotype):
        places += tuple(source for _, source in arch.normal + arch.reduce)
    return places


def from_indices(space, indices):
    """The architecture that `to_indices` has written so: a Genotype or a NAS-Bench-201 string."""
    ops = discrete_ops(space)
    if space.name == "nasbench201":
        return nasbench201_string([ops[i] for i in indices])
    half = len(indices) // 2
    pairs = tuple((ops[i], source) for i, source in zip(indices[:half], indices[half:], strict=True))
    nodes = tuple(sorted({target for _, target in space.edges}))
    cells = pairs[: half // 2], nodes, pairs[half // 2 :], nodes
    return Genotype(*cells)


def discrete_ops(space):
    """The operations that an edge of a discrete architecture can carry: `none` is no choice of a genotype."""
    return space.ops if space.name == "nasbench201" else space.ops[1:]


def space_of(arch):
    """The space that an architecture belongs to."""
    return SPACES["darts" if isinstance(arch, Genotype) else "nasbench201"]


def nasbench201_string(ops):
    """The NAS-Bench-201 string of six operation names in the order of the space's edges."""
    edges = SPACES["nasbench201"].edges
    nodes = {}
    for op, (source, target) in zip(ops, edges, strict=True):
        nodes.setdefault(target, []).append(f"{op}~{source}")
    return "+".join("|" + "|".join(parts) + "|" for _, parts in sorted(nodes.items()))


@functools.cache
def nasbench201_architectures():
    """A tuple of the strings of all 15,625 NAS-Bench-201 architectures. Architecture `ops` (6,), one
    operation index an edge, stands at place sum_e ops[e] * 5 ** (5 - e)."""
    space = SPACES["nasbench201"]
    return tuple(nasbench201_string(ops) for ops in itertools.product(space.ops, repeat=len(space.edges)))


def format_architecture(arch):
    """An architecture as one line of text that `parse_architecture` reads back."""
    return repr(arch) if isinstance(arch, Genotype) else arch


def to_json(arch):
    """An architecture as the plain data of a genotype.json: {"space": NAME, "arch": {...} or "|...|"}."""
    data = arch._asdict() if isinstance(arch, Genotype) else arch
    return {"space": space_of(arch).name, "arch": data}


def parse_architecture(text, space=None):
    """The architecture that `text` names: a Genotype, or a NAS-Bench-201 string.

    text: a name of NAMED, a printed `Genotype(...)`, a NAS-Bench-201 string, a genotype.json or a folder that
    holds one.
    space: a Space that the architecture has to belong to, or None.
    Nothing in `text` is executed. Raises ValueError, with one line that says what is wrong and what would be
    right.
    """
    text = text.strip()
    if text in NAMED:
        arch = NAMED[text]
    elif text.startswith("Genotype"):
        arch = _parse_genotype(text)
    elif text.startswith("|"):
        arch = _parse_nasbench201(text)
    elif text and "\0" not in text and os.path.exists(text):
        arch = _read_json(os.path.join(text, "genotype.json") if os.path.isdir(text) else text)
    else:
        near = _nearest(text, NAMED, cutoff=0.4) or sorted(NAMED)
        raise ValueError(
            f"unknown architecture {_short(text)}: neither a name (as {', '.join(near)}), a run folder, "
            "a genotype.json, a printed Genotype(...) nor a NAS-Bench-201 string"
        )
    if space is not None and space_of(arch) is not space:
        raise ValueError(
            f"{_short(text)} is an architecture of the space {space_of(arch).name}, not of {space.name}"
        )
    return arch


def check_regular(path):
    """Raise OSError where a path names a pipe or a device, which may never end, or a folder. What does not
    exist is left to open()."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no regular file")


def printable(text):
    """A text as one line: line ends and control characters, of file names say, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _short(text, most=60):
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def _nearest(word, names, cutoff=0.6):
    """The names most like a word, whatever the case of either."""
    lower = {name.lower(): name for name in names}
    return [lower[near] for near in difflib.get_close_matches(word.lower(), lower, 3, cutoff)]


def _unknown_operation(op, names):
    near = _nearest(str(op), names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    return ValueError(f"unknown operation {_short(str(op))}: {hint}")


def _parse_genotype(text):
    """A printed Genotype(...), read through its syntax tree."""
    wrong = ValueError(
        f"{_short(text)} is not a printed genotype: expected Genotype(normal=[('sep_conv_3x3', 0), ...], "
        "normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))"
    )
    if len(text) > 10_000:
        raise wrong
    try:
        with warnings.catch_warnings():  # of odd escapes in strings
            warnings.simplefilter("ignore")
            call = ast.parse(text, mode="eval").body
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"
        ):
            raise wrong
        values = dict(zip(Genotype._fields, map(_literal, call.args)))  # noqa: B905  (a short call is seen below)
        values |= {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise wrong from None
    if len(call.args) + len(call.keywords) != len(Genotype._fields):
        raise wrong
    return _checked_genotype(values)


def _literal(node):
    """A literal, or range(a, b) of two literals, from a syntax tree."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        start, stop = map(ast.literal_eval, node.args + node.keywords)
        return list(range(start, min(stop, start + 100)))
    return ast.literal_eval(node)


def _checked_genotype(values):
    """A Genotype from a dict of plain lists, every entry checked."""
    if not isinstance(values, dict) or set(values) != set(Genotype._fields):
        raise ValueError(f"a genotype holds exactly {', '.join(Genotype._fields)}")
    fields = {}
    for kind in ("normal", "reduce"):
        pairs, concat = values[kind], values[f"{kind}_concat"]
        if not isinstance(pairs, (list, tuple)) or len(pairs) < 2 or len(pairs) % 2:
            raise ValueError(
                f"the {kind} cell of a genotype lists two (operation, input node) pairs for each node"
            )
        for i, pair in enumerate(pairs):
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
                raise ValueError(f"entry {i} of the {kind} cell is not an (operation, input node) pair")
            op, source = pair
            if op not in GENOTYPE_OPS:
                raise _unknown_operation(op, GENOTYPE_OPS)
            if type(source) is not int or not 0 <= source < i // 2 + 2:
                raise ValueError(
                    f"entry {i} of the {kind} cell takes its input from node {_short(str(source))}: "
                    f"node {i // 2 + 2} can take it from nodes 0 to {i // 2 + 1}"
                )
        nodes = len(pairs) // 2 + 2
        if not isinstance(concat, (list, tuple)) or not concat or len(set(map(str, concat))) != len(concat):
            raise ValueError(f"{kind}_concat lists the nodes to concatenate, each once")
        if any(type(node) is not int or not 2 <= node < nodes for node in concat):
            raise ValueError(f"{kind}_concat may name nodes 2 to {nodes - 1}")
        fields[kind] = tuple((op, source) for op, source in pairs)
        fields[f"{kind}_concat"] = tuple(concat)
    return Genotype(**fields)


def _parse_nasbench201(text):
    """A NAS-Bench-201 string, checked."""
    space = SPACES["nasbench201"]
    ops = re.findall(r"([^|+~]+)~", text[:1000])  # a whole architecture has at most 95 characters
    for op in ops:
        if op not in space.ops:
            raise _unknown_operation(op, space.ops)
    if len(ops) != len(space.edges) or nasbench201_string(ops) != text:
        raise ValueError(
            f"{_short(text)} is not a NAS-Bench-201 architecture: "
            "expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    return text


def _read_json(path):
    """The architecture in a genotype.json."""
    try:
        check_regular(path)
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file)
        space, arch = data["space"], data["arch"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it is not what a search writes"
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):
            reason = "it does not exist"
        raise ValueError(
            f"no genotype could be read from {_short(path, 200)}: {reason}; give the run folder of a search"
        ) from None
    if not isinstance(space, str) or space not in SPACES:
        raise ValueError(
            f"{_short(path, 200)} names the search space {_short(str(space))}: known are {', '.join(SPACES)}"
        )
    try:
        if space == "darts":
            return _checked_genotype(arch)
        if not isinstance(arch, str):
            raise ValueError("its arch is not a NAS-Bench-201 architecture: expected |op~0|+|op~0|op~1|+...")
        return _parse_nasbench201(arch)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_short(path, 200)}: {error}") from None


def main():
    """python genotypes.py ARCH [SPACE]: check an architecture and print it."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=main.__doc__)
    parser.add_argument("arch", help="a name, a run folder, a genotype.json, a printed genotype, a string")
    parser.add_argument("space", nargs="?", choices=SPACES, help="that it has to belong to (default: either)")
    args = parser.parse_args()
    try:
        print(format_architecture(parse_architecture(args.arch, SPACES.get(args.space))))
    except ValueError as error:
        print(f"genotypes.py: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
