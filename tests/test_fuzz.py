"""The parsers on arbitrary and on nearly right input: ValueError or BadInput and nothing else, in bounded
time and without running anything; and round trips. The examples are the same each time.
"""

import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nats_bench
import utils
from genotypes import (
    GENOTYPE_OPS,
    NAMED,
    SPACES,
    Genotype,
    format_architecture,
    nasbench201_architectures,
    parse_architecture,
    to_json,
)

NAMES = nasbench201_architectures()
V2 = repr(NAMED["DARTS_V2"])
BY_NODE = [[cell[i : i + 2] for i in range(0, 8, 2)] for cell in NAMED["DARTS_V2"][::2]]
TEXTS = [
    *map(repr, NAMED.values()), NAMES[0], NAMES[-1], "DARTS_V2", "15624", "(0, 3, 1, 4, 2, 0)",
    f"best = {V2}  # here", V2.replace("_3x3', 0)", "_3x3', np.int64(0), 0.1)"), f"Structure({NAMES[3]})",
    f"Genotype({BY_NODE[0]}, range(2, 6, 1), {BY_NODE[1]}, list(range(2, 6)))",
    "[(('none', 0),), (('none', 0), ('none', 1)), (('none', 0), ('none', 1), ('nor_conv_3x3', 2))]",
]  # fmt: skip
FUZZ = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FEW = settings(FUZZ, max_examples=50)  # of what takes longer


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Relative paths name nothing, and what an input runs has to leave a trace here."""
    monkeypatch.chdir(tmp_path)
    yield
    assert "evil" not in os.listdir(tmp_path)


@st.composite
def changed(draw, good):
    """A text or bytes of `good` in which some pieces are taken out, doubled or replaced."""
    data = draw(st.sampled_from(good))
    some = st.text(max_size=8) if isinstance(data, str) else st.binary(max_size=8)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 12)))
        data = data[:start] + draw(st.one_of(some, st.just(data[start:stop] * 2))) + data[stop:]
    return data


# Calls, attributes, operators and names where a genotype has literals
PIECES = st.sampled_from(
    [
        "__import__('os').system('touch evil')", "open('evil', 'w')", "(lambda: 1)()", "range(2, 6)",
        "range(0, 100000000)", "range('a', 'b')", "range(0, None)", "range('a')", "range(1, 2, 3)",
        "range(start=1)", "9" * 5000, "-" * 9000 + "1", "[" * 300, "1" + "**9" * 50, "f'{1}'", "...", "None",
        "nan", "[('none', 0)]", "{}", "*[1]", "**{}", "'\\d'", "b'x'", "'\\ud800'", "('sep_conv_3x3', 0)",
        "[('sep_conv_3x3', 0)] * 8", "print", "(x := 1)", "np.int64(1)", "np.load('evil')", "array([2])",
        "range(2, 6, 1)", "range(2, 6, 0)", "list(range(2, 6))", "Genotype([], [2], [], [2])", "{1: 2}",
    ]
)  # fmt: skip


def parses_or_is_refused(text):
    try:
        arch = parse_architecture(text)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    assert parse_architecture(format_architecture(arch)) == arch
    assert isinstance(arch, Genotype) or arch in NAMES


@FUZZ
@given(st.one_of(st.text(), changed(TEXTS), st.text(alphabet="|~+0123noeskip_cta", max_size=100)))
def test_any_text(text):
    parses_or_is_refused(text)


@FUZZ
@given(st.lists(PIECES, max_size=4), st.lists(st.sampled_from(Genotype._fields), max_size=4))
def test_code_in_a_genotype(pieces, names):
    names += [None] * len(pieces)
    parts = [piece if name is None else f"{name}={piece}" for name, piece in zip(names, pieces, strict=False)]
    parses_or_is_refused(f"Genotype({', '.join(parts)})")


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(GENOTYPE_OPS),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)
GOOD_JSON = [json.dumps(to_json(arch)) for arch in (*NAMED.values(), NAMES[5])]


@FUZZ
@given(
    st.one_of(
        st.binary(max_size=200),
        changed(GOOD_JSON).map(lambda text: text.encode(errors="replace")),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.tuples(st.sampled_from([*SPACES, 7]), JSON).map(
            lambda pair: json.dumps(dict(zip(("space", "arch"), pair, strict=True))).encode()
        ),
        st.dictionaries(st.sampled_from(Genotype._fields), JSON, min_size=3).map(
            lambda arch: json.dumps({"space": "darts", "arch": arch}).encode()
        ),
    )
)
def test_any_genotype_file(data):
    with open("genotype.json", "wb") as file:
        file.write(data)
    parses_or_is_refused("genotype.json")


TABLE = "arch,cifar10_valid_200,x_test_1\n" + "".join(
    f"{name},{i},{i / 7!r}\n" for i, name in enumerate(NAMES[:9])
)
PERCENT = st.one_of(st.none(), st.floats(0, 100))


@FEW
@given(
    st.one_of(
        st.binary(max_size=200),
        changed([TABLE]).map(lambda text: text.encode(errors="replace")),
        changed([TABLE.encode(), TABLE.replace("\n", "\r\n").encode()]),
        st.lists(st.text(alphabet='arch,"\n\r\0|~5', max_size=30)).map(
            lambda lines: "\n".join(lines).encode()
        ),
    )
)
def test_any_table(data):
    with open("t.csv", "wb") as file:
        file.write(data)
    try:
        table = nats_bench.load_table("t.csv")
    except utils.BadInput as error:
        assert len(str(error)) < 600
        return
    for name, column in table.items():
        assert nats_bench.COLUMN.fullmatch(name) and column.shape == (len(NAMES),)
        known = column[~column.isnan()]
        assert ((known >= 0) & (known <= 100)).all()


@FEW
@given(st.dictionaries(st.integers(0, len(NAMES) - 1), st.tuples(PERCENT, PERCENT), max_size=30))
def test_tables_come_back(rows):
    """Whatever the order of its rows and columns, and to the bit; as Windows writes them too."""
    rows |= {0: (50.0, 1.5)}  # with a value above 1, which a column of percentages has
    lines = [f"{b!r},{NAMES[i]},{a!r}".replace("None", "") for i, (a, b) in rows.items()]
    with open("t.csv", "w", newline="", encoding="utf-8-sig") as file:
        file.write("\r\n".join(["x_test_1,arch,cifar10_valid_200", *lines]) + "\r\n")
    table = nats_bench.load_table("t.csv")
    assert table.keys() == {"x_test_1", "cifar10_valid_200"}
    for place, values in enumerate(("cifar10_valid_200", "x_test_1")):
        column = table[values].tolist()
        assert sum(not math.isnan(value) for value in column) == sum(
            v[place] is not None for v in rows.values()
        )
        assert all(column[i] == v[place] for i, v in rows.items() if v[place] is not None)
