"""Architectures and tables as other people's code prints and saves them: read as data, or refused by name."""

import bz2
import io
import json

import pytest
from conftest import NB201, STRINGS, data

import genotypes
import nats_bench
import utils
from genotypes import DARTS_V2, official_order, parse_architecture

NORMAL, REDUCE = list(DARTS_V2.normal), list(DARTS_V2.reduce)
PRINTED = "Genotype(normal={}, normal_concat={}, reduce={}, reduce_concat={})"
PLAIN = PRINTED.format(NORMAL, "range(2, 6)", REDUCE, "range(2, 6)")


def by_node(pairs):
    return [pairs[i : i + 2] for i in range(0, len(pairs), 2)]


def with_numpy(pairs):
    return "[" + ", ".join(f"({op!r}, np.int64({source}))" for op, source in pairs) + "]"


FORMS = {
    "by node": PRINTED.format(by_node(NORMAL), "range(2, 6)", by_node(REDUCE), "range(2, 6)"),
    "weights": PRINTED.format(
        [(op, i, 0.125) for op, i in NORMAL], "[2, 3, 4, 5]", [(*p, 1) for p in REDUCE], "(2, 3, 4, 5)"
    ),
    "numpy": PRINTED.format(
        with_numpy(NORMAL), "array([2, 3, 4, 5])", with_numpy(REDUCE), "[numpy.int64(2), 3, 4, 5]"
    ),
    "ranges": PRINTED.format(NORMAL, "range(2, 6, 1)", REDUCE, "list(range(2, 6))"),
    "assignment": f"P_DARTS = {PLAIN}",
    "log line": f"2019-05-04 10:00:00,123 genotype = {PLAIN}",
    "log": f"epoch 1 lr 1e-3\n(train) {PLAIN}\nagain: {PLAIN} (valid)\n",
    "module": f"Genotype = namedtuple('Genotype', 'normal normal_concat')\n\nX = {PLAIN}  # the best\n",
    "JSON": json.dumps({"normal": NORMAL, "reduce": REDUCE}),
    "dict": str(DARTS_V2._asdict()),
}


@pytest.mark.parametrize("kind", FORMS)
def test_genotypes(tmp_path, kind):
    assert parse_architecture(FORMS[kind]) == DARTS_V2
    (tmp_path / "cell.txt").write_text(FORMS[kind])
    assert parse_architecture(str(tmp_path / "cell.txt"), genotypes.SPACES["darts"]) == DARTS_V2
    with pytest.raises(ValueError, match="unknown operation 'noise': known are max_pool_3x3"):
        parse_architecture(FORMS[kind].replace("skip_connect", "noise"))


def test_several_genotypes_in_a_text():
    with pytest.raises(ValueError, match="holds 2 architectures: give one of them"):
        parse_architecture(f"first: {PLAIN}\nsecond: {PLAIN.replace('sep_conv_3x3', 'sep_conv_5x5')}")


STRING_FORMS = {
    "Structure": f"Structure(4 nodes with {NB201})",
    "log line": f"[01-01] arch: {NB201} valid 91.2",
}


@pytest.mark.parametrize("kind", STRING_FORMS)
def test_nasbench201(kind):
    assert parse_architecture(str(STRING_FORMS[kind])) == NB201


@pytest.mark.parametrize(
    "text,message",
    [
        ("(3, 0, 1, 4, 0, 2)", "unknown architecture"),  # whose places could be those of another order
        ("15625", "they are 0 to 15624"),
        ("-1", "unknown architecture"),
    ],
)
def test_what_is_no_architecture(text, message):
    with pytest.raises(ValueError, match=message):
        parse_architecture(text)


def test_official_indices():
    assert [parse_architecture(str(i)) for i in (0, 11, 284)] == STRINGS
    assert sorted(official_order()) == sorted(genotypes.nasbench201_architectures())


def test_a_changed_space_has_no_official_indices(monkeypatch):
    monkeypatch.setattr(genotypes, "official_order", lambda: range(6**6))
    with pytest.raises(ValueError, match="no official index of NAS-Bench-201's five operations"):
        parse_architecture("284")


def test_official_indices_are_those_of_the_metadata():
    with bz2.open(data("nats_tss_sample/meta.pickle.pbz2")) as file:
        meta = nats_bench.Unpickler(io.BytesIO(file.read())).load()
    assert list(official_order()) == meta["meta_archs"]


def table_of(path, rows):
    path.write_text("\n".join(rows))
    return nats_bench.load_table(path)


def test_other_columns_and_blank_lines(tmp_path):
    rows = [f"{i},{arch},{i + 2}.5,1.5,text" for i, arch in enumerate(STRINGS)]
    table = table_of(tmp_path / "t.csv", [",arch,cifar10_test_200,params,params", *rows, "", ",,,,", ""])
    assert list(table) == ["cifar10_test_200"]
    assert nats_bench.accuracies(table, STRINGS[1]) == {"cifar10_test_200": 3.5}
    assert (~table["cifar10_test_200"].isnan()).sum() == 3


@pytest.mark.parametrize("best", ["0.9155", "1"])
def test_fractions_are_refused(tmp_path, best):
    rows = ["arch,cifar10_test_200,cifar10_valid_200", f"{STRINGS[0]},{best},50", f"{STRINGS[1]},0.1,"]
    with pytest.raises(utils.BadInput, match="no cifar10_test_200 in .* is above 1: are these percent?"):
        table_of(tmp_path / "t.csv", rows)
    rows[2] = f"{STRINGS[1]},1.1,"  # a bad architecture may have little
    assert table_of(tmp_path / "t.csv", rows)["cifar10_test_200"].nan_to_num().max() == 1.1


def test_a_column_without_values(tmp_path):
    table = table_of(tmp_path / "t.csv", ["arch,cifar10_test_200,cifar10_valid_200", f"{STRINGS[0]},,50"])
    assert table["cifar10_test_200"].isnan().all() and len(table) == 2
