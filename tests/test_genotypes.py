"""The spaces as data, cells read off mixtures, and architectures as text: what is read, what is refused."""

import collections
import json

import pytest
import torch
from conftest import STRINGS

from genotypes import (
    NAMED,
    SPACES,
    format_architecture,
    operations,
    parse_architecture,
    random_architecture,
    read_cell,
    space_of,
    to_json,
)

DARTS, NB201 = SPACES["darts"], SPACES["nasbench201"]
V2 = NAMED["DARTS_V2"]

# The published cells, normal / reduction: operation and input node of each pair, then the concatenated nodes.
SHORT = dict(mp="max_pool_3x3", ap="avg_pool_3x3", sk="skip_connect", c7="conv_7x1_1x7")
SHORT |= {f"{kind[0]}{k}": f"{kind}_conv_{k}x{k}" for kind in ("sep", "dil") for k in (3, 5, 7)}
CELLS = {
    "DARTS_V1": "s31 s30 sk0 s31 sk0 s31 s30 sk2 2345 / mp0 mp1 sk2 mp0 mp0 sk2 sk2 ap0 2345",
    "DARTS_V2": "s30 s31 s30 s31 s31 sk0 sk0 d32 2345 / mp0 mp1 sk2 mp1 mp0 sk2 sk2 mp1 2345",
    "NA_DARTS": "s31 sk0 mp0 s52 mp0 s53 s50 mp1 2345 / mp0 d51 mp0 mp1 mp0 d52 mp0 s54 2345",
    "DARTS_HERE": "sk0 s51 s30 sk2 mp0 s52 mp0 mp1 2345 / mp0 s31 mp0 s31 d52 mp0 s54 mp0 2345",
    "NASNet": "s51 s30 s50 s30 ap1 sk0 ap0 ap0 s31 sk1 23456 / s51 s70 mp1 s70 ap1 s50 sk3 ap2 s32 mp1 456",
    "AmoebaNet": "ap0 mp1 s30 s52 s30 ap3 s31 sk1 sk0 ap1 456 / ap0 s31 mp0 s72 s70 ap1 mp0 mp1 c70 s35 346",
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def mixture(space, seed, boost_none=0, levels=0):
    """A random mixture. With `levels`, the weights are rounded to that many values and often tie."""
    g = torch.Generator().manual_seed(seed)
    alpha = 2 * torch.randn(len(space.cells), len(space.edges), len(space.ops), generator=g)
    alpha[..., 0] += boost_none
    p = alpha.double().softmax(-1)
    return (p * levels).round() / levels if levels else p


def refused(text, space=None):
    """The message with which a text is refused: one line of bounded length."""
    with pytest.raises(ValueError) as info:
        parse_architecture(text, space)
    message = str(info.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    return message


@pytest.mark.parametrize("name", CELLS)
def test_named_cells_are_the_published_ones_and_those_of_our_results(name):
    arch, fields = NAMED[name], []
    for cell in CELLS[name].split(" / "):
        *pairs, concat = cell.split()
        fields += [tuple((SHORT[pair[:2]], int(pair[2])) for pair in pairs), tuple(map(int, concat))]
    assert tuple(arch) == tuple(fields) and set(NAMED) == set(CELLS)
    assert operations(arch) == [op for op, _ in fields[0] + fields[2]]


def plain_cell(p):
    """One DARTS cell read off weights (14, 8): at each node the strongest pair of operation and input, then
    the strongest of another input. `max` takes the first of equal weights."""
    rows, pairs = iter(p), []
    for node in range(2, 6):
        weight = {(op, i): w for i in range(node) for op, w in zip(DARTS.ops, next(rows), strict=True)}
        weight = {(op, i): w for (op, i), w in weight.items() if op != "none"}
        first = max(weight, key=weight.get)
        pairs += [first, max((pair for pair in weight if pair[1] != first[1]), key=weight.get)]
    return tuple(pairs)


@pytest.mark.parametrize("boost_none,levels", [(0, 0), (8, 0), (0, 5), (8, 5)])
def test_read_cell_of_darts(boost_none, levels):
    for seed in range(50):
        p = mixture(DARTS, seed, boost_none, levels)
        arch = read_cell(DARTS, p.requires_grad_())
        assert (arch.normal, arch.reduce) == (plain_cell(p[0].tolist()), plain_cell(p[1].tolist()))
        assert arch.normal_concat == arch.reduce_concat == (2, 3, 4, 5)
        assert "none" not in operations(arch)


def test_read_cell_of_nasbench201():
    seen = set()
    for seed in range(100):
        p = mixture(NB201, seed, levels=4 if seed % 2 else 0)
        ops = [NB201.ops[min(o for o in range(5) if row[o] == max(row))] for row in p[0].tolist()]
        a, b, c, d, e, f = ops
        assert read_cell(NB201, p) == f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        assert operations(read_cell(NB201, p)) == ops
        seen |= set(ops)
    assert seen == set(NB201.ops)  # `none` too


@each_space
def test_read_cell_refuses_wrong_weights(space):
    p = mixture(space, 0)
    for wrong in (p[0], p[:, 1:], p[..., 1:], p[None], torch.cat([p, p])):
        with pytest.raises(ValueError, match="shape"):
            read_cell(space, wrong)
    for value in ("nan", "inf", "-inf"):
        p[0, 3, 2] = float(value)
        with pytest.raises(ValueError, match="not finite"):
            read_cell(space, p)


def check_round_trip(arch, space, folder):
    assert space_of(arch) is space
    text = format_architecture(arch)
    assert "\n" not in text
    file = folder / "genotype.json"
    file.write_text(json.dumps(to_json(arch)))
    for source in (text, f" {text}\n", str(file), str(folder)):
        back = parse_architecture(source, space)
        assert back == arch and type(back) is type(arch)
        assert hash(back) == hash(arch)  # tuples all the way down, whatever JSON made of them


@pytest.mark.parametrize("arch", [*NAMED.values(), *STRINGS], ids=[*NAMED, 0, 11, 284])
def test_known_architectures_round_trip(arch, tmp_path):
    check_round_trip(arch, NB201 if arch in STRINGS else DARTS, tmp_path)
    assert all(parse_architecture(name) is NAMED[name] for name in NAMED)


@each_space
def test_random_architectures_round_trip(space, tmp_path):
    g = torch.Generator().manual_seed(0)
    archs = {random_architecture(space, g) for _ in range(100)}
    assert len(archs) > 95
    for arch in archs:
        check_round_trip(arch, space, tmp_path)


@pytest.mark.parametrize(
    "form",
    [
        "Genotype(normal={0}, normal_concat=range(2, 6), reduce={1}, reduce_concat=range(2, 6))",
        "Genotype(\n  reduce_concat = (2, 3, 4, 5), reduce = {1},\n  normal_concat=[2,3,4,5], normal={0},\n)",
        "Genotype({0}, range(2, 6), {1}, [2, 3, 4, 5])",
        "Genotype({0}, range(2, 6), reduce_concat=range(2, 6), reduce={1})",
    ],
)
def test_printed_genotypes_of_darts(form):
    assert parse_architecture(form.format(list(V2.normal), [list(pair) for pair in V2.reduce])) == V2


@pytest.mark.parametrize(
    "form",
    [
        "{0}",
        "({0}, 0)[1]",
        "Genotype(normal={0}, normal_concat=range(2, 6), reduce=[], reduce_concat=range(2, 6))",
        "Genotype([({0}, 0), ('skip_connect', 1)], [2], [('skip_connect', 0), ('skip_connect', 1)], [2])",
        "Genotype([], range(2, {0}), [], [2])",
        "Genotype(*[{0}])",
        "Genotype(**dict(normal={0}))",
        "Genotype([x for x in [{0}]], (lambda: {0})(), {0} or 1, f'{{{0}}}')",
        "|{0}~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    ],
)
def test_nothing_is_evaluated(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in ("__import__('os').system('touch X')", 'open("X", "w")'):
        refused(form.format(call))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text,hint",
    [
        ("DARTS_V3", "(as DARTS_V2, DARTS_V1, DARTS_HERE)"),
        ("darts_v2", "DARTS_V2"),
        ("", "neither a name"),
        ("no\nsuch\0name", "neither a name"),
        (STRINGS[0].replace("avg_pool_3x3", "avg_pool3x3"), "'avg_pool3x3': did you mean avg_pool_3x3"),
        (STRINGS[0].replace("skip_connect~2", "skip_connect~3"), "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"),
        (repr(V2)[:-1], "expected Genotype(normal="),
        ("Genotype(1, 2, 3)", "expected Genotype(normal="),
        (repr(V2).replace("reduce=", "other="), "may hold normal_concat and reduce_concat"),
    ],
)
def test_errors_say_what_would_be_right(text, hint):
    assert hint in refused(text)


@pytest.mark.parametrize(
    "old,new,hint",
    [
        ("sep_conv_3x3", "sep_conv3x3", "'sep_conv3x3': did you mean sep_conv_3x3"),
        ("sep_conv_3x3", "none", "unknown operation 'none'"),
        ("sep_conv_3x3", "a\\nb", "known are max_pool_3x3"),
        ("'sep_conv_3x3', 1", "'sep_conv_3x3', 2", "entry 1 of the normal cell"),
        ("'max_pool_3x3', 0", "'max_pool_3x3', -1", "nodes 0 to 1"),
        (", 0)", ", False)", "nodes 0 to 1"),
        ("(2, 3, 4, 5)", "range(2, 7)", "normal_concat may name nodes 2 to 5"),
        ("(2, 3, 4, 5)", "(2, 2, 3)", "normal_concat lists the nodes to concatenate, each once"),
        ("(('sep_conv_3x3', 0), ", "(", "the normal cell of a genotype lists two"),
        ("('sep_conv_3x3', 0)", "'sep_conv_3x3'", "entry 0 of the normal cell is not"),
    ],
)
def test_errors_say_where_a_genotype_is_wrong(old, new, hint):
    assert old in repr(V2)
    assert hint in refused(repr(V2).replace(old, new, 1))


@pytest.mark.parametrize(
    "content,hint",
    [
        (None, "does not exist"),
        ('{"space": "darts", "arch": {', "not what a search writes"),
        ('{"space": "nasbench101", "arch": ""}', "known are darts, nasbench201"),
        ('{"space": ["darts"], "arch": ""}', "known are darts, nasbench201"),
        ('{"space": "darts", "arch": "DARTS_V2"}', "may hold normal_concat and reduce_concat"),
        (json.dumps(to_json(V2)).replace("sep_conv_3x3", "sep_conv3x3", 1), "did you mean sep_conv_3x3"),
        ('{"space": "nasbench201", "arch": null}', "not a NAS-Bench-201 architecture"),
    ],
)
def test_broken_genotype_json(content, hint, tmp_path):
    if content is not None:
        (tmp_path / "genotype.json").write_text(content)
    message = refused(str(tmp_path))
    assert hint in message and str(tmp_path / "genotype.json") in message


@each_space
def test_random_architectures_are_seeded(space):
    a, b, c = (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    a, b, c = ([random_architecture(space, g) for _ in range(5)] for g in (a, b, c))
    assert a == b and len({*a, *c}) == 10


def uniform(draws, cells):
    """Whether draws fill that many cells evenly: chi-square within 5 standard deviations of its mean."""
    counts = [*collections.Counter(draws).values()]
    expected = len(draws) / cells
    chi_square = sum((n - expected) ** 2 / expected for n in counts + [0] * (cells - len(counts)))
    return len(counts) <= cells and chi_square < (cells - 1) + 5 * (2 * (cells - 1)) ** 0.5


def test_random_architectures_are_uniform():
    g = torch.Generator().manual_seed(0)
    node4 = [random_architecture(DARTS, g).reduce[4:6] for _ in range(3000)]  # two of the inputs 0 to 3
    assert all(i != j for (_, i), (_, j) in node4)
    assert uniform([(i, j) for (_, i), (_, j) in node4], 4 * 3)
    assert uniform([(a, b) for (a, _), (b, _) in node4], 7 * 7)
    cells = [operations(random_architecture(NB201, g)) for _ in range(3000)]
    for e in range(6):
        assert uniform([ops[e] for ops in cells], 5)
    assert uniform([(ops[0], ops[5]) for ops in cells], 25)
