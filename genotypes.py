"""The two search spaces as data, and architectures as text.

A search space lists the candidate operations, the edges of a cell and the cell kinds. An architecture of the
DARTS space is a `Genotype`; an architecture of NAS-Bench-201 is its string, such as
`|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|`.

    python genotypes.py ARCH [SPACE]    check an architecture and print it

ARCH, also --arch of the scripts, is read as data and never run. It is one of
    DARTS_V2                    a named cell
    runs/my-search, FILE        a run folder, its genotype.json, or a text file that holds one architecture
    Genotype(normal=[...], ...) what DARTS code prints, also in a line of a log or behind `name =`; nested by
                                node, with weights (op, i, w), numpy's numbers, range(2, 6, 1), list(...)
    {"normal": [...], ...}      the same as JSON; without concats all nodes are concatenated
    |none~0|+|...|              a NAS-Bench-201 string, also within Structure(4 nodes with |...|)
    284                         the same as the official index in NAS-Bench-201 and NATS-Bench

Sources: DARTS (Liu, Simonyan, Yang; ICLR 2019), NAS-Bench-201 (Dong, Yang; ICLR 2020), NASNet (Zoph et al.;
CVPR 2018) and AmoebaNet-A (Real et al.; AAAI 2019).
"""

import argparse
import ast
import contextlib
import difflib
import functools
import itertools
import json
import os
import random
import re
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
            "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
            "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
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
}  # fmt: skip

# Operations that a Genotype may hold: those of the DARTS space but `none`, and two more for NASNet and
# AmoebaNet.
GENOTYPE_OPS = tuple(op for op in SPACES["darts"].ops if op != "none") + ("sep_conv_7x7", "conv_7x1_1x7")

# Of architectures in other code's text: what a printed genotype has at most, in characters; a NAS-Bench-201
# string among other text; calls around plain data, such as np.int64(1) and list(range(2, 6))
LONGEST = 10_000
NASBENCH201 = r"\|\w+~\d\|\+\|\w+~\d\|\w+~\d\|\+\|\w+~\d\|\w+~\d\|\w+~\d\|"
WRAPPERS = "int32 int64 float32 float64 str_ array tensor list tuple".split()

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
#   python search.py --relax dirichlet --neighborhood 1 --dataset folder --data cifar10 --image_size 16
#       --init_channels 8 --layers 8 --batch_size 32 --epochs 3 --arch_warmup 1 --arch_learning_rate 4e-3
#       --seed 0
# and DARTS_HERE by the same command with --neighborhood 0, that is by NA-DrNAS and DrNAS, on the 50,000
# training images of CIFAR-10 at 16 x 16 pixels, an hour on one CPU thread. Each is the best of four seeds, 0
# to 3, by accuracy on 5,000 held-out images after two trainings of 10 epochs: 56.67 and 55.24 %
# (experiments/study_cells.py, `search` and `choose`). How they do on test images stands in RESULTS.md.
NA_DARTS = Genotype(
    normal=(
        ("sep_conv_3x3", 1), ("skip_connect", 0),
        ("max_pool_3x3", 0), ("sep_conv_5x5", 2),
        ("max_pool_3x3", 0), ("sep_conv_5x5", 3),
        ("sep_conv_5x5", 0), ("max_pool_3x3", 1),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("dil_conv_5x5", 1),
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0), ("sep_conv_5x5", 4),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip

DARTS_HERE = Genotype(
    normal=(
        ("skip_connect", 0), ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0), ("skip_connect", 2),
        ("max_pool_3x3", 0), ("sep_conv_5x5", 2),
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce=(
        ("max_pool_3x3", 0), ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0), ("sep_conv_3x3", 1),
        ("dil_conv_5x5", 2), ("max_pool_3x3", 0),
        ("sep_conv_5x5", 4), ("max_pool_3x3", 0),
    ),
    reduce_concat=(2, 3, 4, 5),
)  # fmt: skip

# What `--arch NAME` knows.
NAMED = {name: value for name, value in dict(globals()).items() if isinstance(value, Genotype)}


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
        raise ValueError(f"mixture weights of {space.name} have shape {shape}, not {tuple(p.shape)}")
    if not p.isfinite().all():
        raise ValueError("mixture weights are not finite: no cell can be read off")
    p = p.detach().cpu().tolist()
    if space.name == "nasbench201":
        return nasbench201_string([space.ops[row.index(max(row))] for row in p[0]])
    chosen = []
    for cell in p:
        # (weight, -operation) an edge
        best = [max((w, -o) for o, w in enumerate(row) if space.ops[o] != "none") for row in cell]
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
    shape = len(space.cells), len(space.edges), len(space.ops)
    return read_cell(space, torch.rand(shape, generator=generator, dtype=torch.float64))


def operations(arch):
    """The operation names that an architecture uses, one for each of its edges: 16 in a DARTS cell pair, 6 in
    a NAS-Bench-201 cell."""
    if isinstance(arch, Genotype):
        return [op for op, _ in arch.normal + arch.reduce]
    return re.findall(r"([^|+~]+)~", arch)


def to_indices(arch, space=None):
    """A discrete architecture as a tuple of ints: the place of each edge's operation in `discrete_ops`, and
    for a genotype the input nodes behind them. space: one with a part of the operations, or None."""
    ops = discrete_ops(space or space_of(arch))
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
    return Genotype(pairs[: half // 2], nodes, pairs[half // 2 :], nodes)


def discrete_ops(space):
    """The operations that an edge of a discrete architecture can carry: `none` is no choice of a genotype."""
    return space.ops if space.name == "nasbench201" else tuple(op for op in space.ops if op != "none")


def space_with(name, ops=None):
    """The space of this name; with ops, these of its operations alone, in its order. Raises ValueError where
    they leave nothing to choose, or one is unknown or doubled."""
    space = SPACES[name]
    for op in ops or ():
        if op not in space.ops:
            raise _unknown_operation(op, space.ops)
        if ops.count(op) > 1:
            raise ValueError(f"the operation {op} is given twice")
    space = space._replace(ops=tuple(op for op in space.ops if ops is None or op in ops))
    if len(discrete_ops(space)) < 2:
        raise ValueError(f"with {' and '.join(space.ops)} alone there is no choice: give more operations")
    return space


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


@functools.cache
def official_order():
    """The architectures of `nasbench201_architectures` in the order of their official indices: its authors
    shuffled the list with this seed. tests/ compares it with the metadata file of NATS-Bench."""
    archs = list(nasbench201_architectures())
    random.Random(88).shuffle(archs)
    return tuple(archs)


def format_architecture(arch):
    """An architecture as one line of text that `parse_architecture` reads back."""
    return repr(arch) if isinstance(arch, Genotype) else arch


def to_json(arch):
    """An architecture as the plain data of a genotype.json: {"space": NAME, "arch": {...} or "|...|"}."""
    data = arch._asdict() if isinstance(arch, Genotype) else arch
    return {"space": space_of(arch).name, "arch": data}


def parse_architecture(text, space=None):
    """The architecture that `text` names: a Genotype, or a NAS-Bench-201 string.

    text: one of the forms listed at the top of this file. space: a Space that the architecture has to belong
    to, or None. Nothing in `text` is executed. Raises ValueError, with one line that says what is wrong and
    what would be right.
    """
    text = text.strip()
    if text in NAMED:
        arch = NAMED[text]
    elif os.path.exists(text):
        arch = _read_file(os.path.join(text, "genotype.json") if os.path.isdir(text) else text)
    else:
        arch = _parse_text(text)
    if arch is None:
        near = _nearest(text, NAMED, cutoff=0.4) or sorted(NAMED)
        raise ValueError(
            f"unknown architecture {_short(text)}: neither a name (as {', '.join(near)}), a run folder, "
            "a genotype.json, a printed Genotype(...) nor a NAS-Bench-201 string"
        )
    if space is not None and space_of(arch).name != space.name:
        raise ValueError(f"{_short(text)} is of the space {space_of(arch).name}, not of {space.name}")
    return arch


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


def _parse_text(text):
    """The one architecture that a text is or holds; None where there is none."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        if len(official_order()) != 15625 or int(text) >= 15625:  # the space may have been changed
            raise ValueError(
                f"{text} is no official index of NAS-Bench-201's five operations: they are 0 to 15624"
            )
        return official_order()[int(text)]
    if text.startswith("|"):
        return _parse_nasbench201(text)
    if re.match(r"Genotype\s*\(", text):
        if not isinstance(data := _data(text), dict):
            raise ValueError(
                f"{_short(text)} is not a printed genotype: expected Genotype(normal=[('sep_conv_3x3', 0), "
                "...], normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6))"
            )
        return _checked_genotype(data)
    if text.startswith("{") and isinstance(data := _data(text), dict):
        if {"space", "arch"} <= data.keys():
            return _of_search(data)
        if {"normal", "reduce"} <= data.keys():
            return _checked_genotype(data)
    # What a longer text holds; of the printed genotypes those that are whole, if any is
    parts = re.findall(NASBENCH201, text) + list(_printed_genotypes(text))
    parts = [part for part in parts if part[0] == "|" or _data(part)] or parts[:1]
    found = {_parse_text(part) for part in parts}
    if len(found) > 1:
        raise ValueError(f"{_short(text)} holds {len(found)} architectures: give one of them")
    return found.pop() if found else None


def _printed_genotypes(text):
    """Every `Genotype(...)` in a text, up to the parenthesis that closes it."""
    for part in re.split(r"\b(?=Genotype\s*\()", text)[1:]:
        depth = 0
        for end, c in enumerate(part[:LONGEST], 1):
            depth += (c == "(") - (c == ")")
            if c == ")" and not depth:
                yield part[:end]
                break


def _data(text):
    """The lists, dicts, strings and numbers that a text stands for, as JSON or as Python prints them; a tuple
    is a list, and Genotype(...) a dict. None where it is anything else."""
    if len(text) > LONGEST:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        return _plain(ast.parse(text, mode="eval").body)
    return None


def _plain(node):
    """The plain data of a syntax tree. Raises ValueError, TypeError or AttributeError where it holds more."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        return {_plain(key): _plain(value) for key, value in zip(node.keys, node.values, strict=True)}
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    args = [_plain(arg) for arg in node.args]
    if name == "range":
        return list(range(*args)[:100])
    if name in WRAPPERS and len(args) == 1:
        return args[0]
    if name != "Genotype" or len(args) + len(node.keywords) != len(Genotype._fields):
        raise ValueError(f"{name}(...) is no plain data")
    by_name = {keyword.arg: _plain(keyword.value) for keyword in node.keywords}
    return dict(zip(Genotype._fields, args)) | by_name  # noqa: B905  (the rest is in by_name)


def _of_search(data):
    """The architecture of a dict as to_json gives it."""
    space = str(data["space"])
    if space not in SPACES:
        raise ValueError(f"it names the search space {_short(space)}: known are {', '.join(SPACES)}")
    return _checked_genotype(data["arch"]) if space == "darts" else _parse_nasbench201(str(data["arch"]))


def _checked_genotype(values):
    """A Genotype from a dict of plain lists, every entry checked."""
    if not isinstance(values, dict) or not {"normal", "reduce"} <= set(values) <= set(Genotype._fields):
        raise ValueError("a genotype holds normal and reduce, and may hold normal_concat and reduce_concat")
    fields = {}
    for kind in ("normal", "reduce"):
        pairs = values[kind]
        if isinstance(pairs, list) and all(
            isinstance(node, list) and len(node) == 2 and isinstance(node[0], list) for node in pairs
        ):  # nested by node
            pairs = [pair for node in pairs for pair in node]
        if not isinstance(pairs, list) or len(pairs) < 2 or len(pairs) % 2:
            raise ValueError(
                f"the {kind} cell of a genotype lists two (operation, input) pairs for each node"
            )
        for i, pair in enumerate(pairs):
            if not isinstance(pair, list) or len(pair) not in (2, 3):  # the third is a weight
                raise ValueError(f"entry {i} of the {kind} cell is not an (operation, input node) pair")
            op, source = pair[:2]
            if op not in GENOTYPE_OPS:
                raise _unknown_operation(op, GENOTYPE_OPS)
            if type(source) is not int or not 0 <= source < i // 2 + 2:
                raise ValueError(
                    f"entry {i} of the {kind} cell takes its input from node {_short(str(source))}: "
                    f"node {i // 2 + 2} can take it from nodes 0 to {i // 2 + 1}"
                )
        nodes = len(pairs) // 2 + 2
        concat = values.get(f"{kind}_concat", list(range(2, nodes)))
        if not isinstance(concat, list) or not concat or len(set(map(str, concat))) != len(concat):
            raise ValueError(f"{kind}_concat lists the nodes to concatenate, each once")
        if any(type(node) is not int or not 2 <= node < nodes for node in concat):
            raise ValueError(f"{kind}_concat may name nodes 2 to {nodes - 1}")
        fields[kind] = tuple((op, source) for op, source, *_ in pairs)
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
        expected = "expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        raise ValueError(f"{_short(text)} is not a NAS-Bench-201 architecture: {expected}")
    return text


def _read_file(path):
    """The one architecture that a text file, such as a genotype.json, is or holds."""
    reason = "it is not what a search writes, and holds no architecture"
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            if arch := _parse_text(file.read(1_000_000).strip()):
                return arch
    except OSError as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    except ValueError as error:
        raise ValueError(f"{_short(path, 200)}: {error}") from None
    raise ValueError(f"no genotype could be read from {_short(path, 200)}: {reason}; give a search's folder")


def main():
    """python genotypes.py ARCH [SPACE]: check an architecture and print it."""
    forms = "\n\n".join([main.__doc__, __doc__.split("\n\n")[3]])
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=forms, formatter_class=kind)
    parser.add_argument("arch", help="in one of the forms above")
    parser.add_argument("space", nargs="?", choices=SPACES, help="that it has to belong to (default: either)")
    args = parser.parse_args()
    try:
        print(format_architecture(parse_architecture(args.arch, SPACES.get(args.space))))
    except ValueError as error:
        parser.error(printable(str(error)))


if __name__ == "__main__":
    main()
