"""RS, NA-RS, LS and NA-LS on made-up tables: against slow plain versions, and as sample.py runs them."""

import itertools
import math
import os
import re

import forks
import pytest
import torch
from conftest import data, do, read, tree

import nats_bench
import sample
import utils
from genotypes import SPACES, nasbench201_architectures, operations, parse_architecture, to_indices
from neighborhood import (
    AGGREGATE,
    Evaluations,
    ball_shifts,
    discrete_neighbors,
    local_search,
    random_search,
)

E, O = 3, 3  # noqa: E741
ARCHS = list(itertools.product(range(O), repeat=E))
MEAN = AGGREGATE["mean"]
# A sharp minimum at (0, 0, 0), whose neighbors are bad, and a flat one around (2, 2, 2).
ERROR = {a: 30.0 + 7 * a[0] + 3 * a[1] + a[2] for a in ARCHS}
for a in ARCHS:
    changes = sum(op != 2 for op in a)
    if changes <= 1:
        ERROR[a] = 10.0 + changes
    if sum(op != 0 for op in a) == 1:
        ERROR[a] = 90.0
ERROR[0, 0, 0] = 5.0


def f(archs):
    return [ERROR[a] for a in archs]


def ball(a, radius=1):
    """Slow: every architecture that differs on at most so many edges, the center first."""
    return sorted((b for b in ARCHS if differ(a, b) <= radius), key=lambda b: b != a)


def differ(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


def around(a, radius=1):
    return discrete_neighbors(a, ball_shifts(E, O, radius), O)


def drawer(seed):
    g = torch.Generator().manual_seed(seed)
    return lambda: tuple(torch.randint(O, (E,), generator=g).tolist())


def best(scores):
    return min(scores, key=scores.get)


@pytest.mark.parametrize("radius", [0, 1, 2, 3])
def test_discrete_neighbors_are_the_ball(radius):
    for a in ARCHS:
        got = around(a, radius)
        assert got[0] == a and sorted(got) == sorted(ball(a, radius))
    carried = discrete_neighbors((0, 1, 2, 7, 8), torch.tensor([[0, 0, 0], [1, 0, 2]]), O)
    assert carried == [(0, 1, 2, 7, 8), (1, 1, 1, 7, 8)]  # what rides along stays


def test_the_memory_pays_once_and_within_the_budget():
    asked = []
    evaluations = Evaluations(lambda archs: asked.extend(archs) or f(archs), budget=3)
    a, b, c, d = ARCHS[:4]
    assert evaluations([a, b, a]).tolist() == f([a, b, a]) and asked == [a, b]
    assert (evaluations.left(), evaluations.left([a, b, c]), evaluations.left([c, d])) == (1, 0, -1)
    with pytest.raises(ValueError, match="a budget of 3 evaluations is exceeded"):
        evaluations([c, d])
    assert evaluations([b, c]).tolist() == f([b, c]) and asked == [a, b, c]
    assert list(evaluations.known) == [a, b, c]
    with pytest.raises(ValueError, match=re.escape(f"the error of {b} is NaN")):  # it could win
        Evaluations(lambda archs: [1, math.nan])([a, b])


def test_flat_and_sharp_minima():
    """With enough centers RS finds the sharp minimum, and NA-RS and NA-LS the flat one."""
    assert best(random_search(Evaluations(f), drawer(0), lambda a: [a], MEAN, 500)) == (0, 0, 0)
    assert best(random_search(Evaluations(f), drawer(0), around, MEAN, 500)) == (2, 2, 2)
    assert best(local_search(Evaluations(f), drawer(0), around, None, 27, 27)) == (0, 0, 0)
    assert best(local_search(Evaluations(f), drawer(0), around, MEAN, 5, 27)) == (2, 2, 2)


@pytest.mark.parametrize("wave", [1, 2, 5])
@pytest.mark.parametrize("samples,budget", [(6, None), (None, 20), (4, 15), (None, 7), (None, 27), (None, 6)])
def test_random_search_equals_a_plain_one(samples, budget, wave):
    for seed in range(20):
        draw, paid, scores = drawer(seed), [], {}  # a budget of 7 is one whole neighborhood
        for _ in range(samples or 10_000):
            if len(paid) == budget:
                break
            a = draw()
            new = [b for b in ball(a) if b not in paid]
            if budget and len(paid) + len(new) > budget:
                break
            paid += new
            scores.setdefault(a, sum(f(ball(a))) / len(ball(a)))
        evaluations, draw_too = Evaluations(f, budget), drawer(seed)
        got = random_search(evaluations, draw_too, around, MEAN, samples, wave)
        assert list(got) == list(scores) and got == pytest.approx(scores)
        assert sorted(evaluations.known) == sorted(paid)
        assert [draw(), draw()] == [draw_too(), draw_too()]  # the generator stands where it stood


@pytest.mark.parametrize("samples,budget", [(4, None), (None, 20), (3, None), (2, 15), (None, 27)])
@pytest.mark.parametrize("aware", [False, True])
def test_local_search_equals_a_plain_one(samples, budget, aware):
    """Scores are those of whole neighborhoods where four or more were expanded, otherwise of known ones."""
    kinds = set()
    for seed in range(20):
        draw, paid, expanded = drawer(seed), [], []
        for _ in range(4):
            a = draw()
            if a not in paid:
                paid.append(a)
        while samples is None or len(expanded) < samples:
            left = [a for a in paid if a not in expanded]
            if not left or len(paid) == budget:
                break
            a = sorted(left, key=lambda a: (ERROR[a], paid.index(a)))[0]
            new = [b for b in around(a) if b not in paid]
            if budget and len(paid) + len(new) > budget:
                paid += new[: budget - len(paid)]
                break
            paid += new
            expanded.append(a)
        mean = sum(f(paid)) / len(paid)
        kind = "plain" if not aware else "whole" if len(expanded) >= 4 else "known"
        kinds.add(kind)
        scores = {}
        for a in paid:
            known = [ERROR[b] for b in ball(a) if b in paid]
            if kind == "plain":
                scores[a] = ERROR[a]
            elif kind == "known":
                scores[a] = (ERROR[a] + (sum(known) + 5 * mean) / (len(known) + 5)) / 2
            elif a in expanded:
                scores[a] = sum(known) / len(known)
        evaluations = Evaluations(f, budget)
        got = local_search(evaluations, drawer(seed), around, MEAN if aware else None, 4, samples)
        assert got == pytest.approx(scores) and list(evaluations.known) == paid
    assert kinds == ({"plain"} if not aware else {"whole"} if samples == 4 else {"known"}) or samples is None


def test_a_budget_of_one_evaluation():
    assert len(local_search(Evaluations(f, 1), drawer(0), around, None, 3)) == 1


NAMES = nasbench201_architectures()


def run(table, folder, flags):
    do(sample, flags, "--bench", table, "--save", folder)
    return read(folder / "result.json"), read(folder / "metrics.csv")


RUNS = {
    "RS": "--algo rs --neighborhood 0 --budget 50",
    "NA-RS": "--algo rs --samples 40",
    "NA-RS, sampled": "--algo rs --samples 40 --neighbors 5",
    "NA-RS, budget": "--algo rs --budget 60 --agg median",
    "LS": "--algo ls --neighborhood 0 --budget 80",
    "NA-LS": "--algo ls --budget 80",
    "NA-LS, whole": "--algo ls --samples 4 --starts 3",
    "REA": "--algo ea --neighborhood 0 --budget 60",
    "NA-REA": "--algo ea --budget 60",
    "NA-LS, radius 2": "--algo ls --samples 2 --neighborhood 2 --neighbors 30 --starts 5",
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_reports(table, tmp_path, name):
    result, rows = run(table, tmp_path / "run", RUNS[name] + " --repeats 3")
    assert result["algo"] == name.split(",")[0] and len(rows) == result["repeats"] == 3
    values = nats_bench.load_table(table)
    for row in rows:
        place = NAMES.index(row["arch"])
        assert all(float(row[column]) == value[place].item() for column, value in values.items())
    for column in values:
        found = torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
        assert result["columns"][column]["mean"] == pytest.approx(found.mean().item())
        assert result["columns"][column]["std"] == pytest.approx(found.std().item())
    paid = [int(row["evaluations"]) for row in rows]
    assert result["evaluations"] == pytest.approx(sum(paid) / 3)
    budget = read(tmp_path / "run" / "args.json")["budget"]
    assert budget is None or max(paid) <= budget
    assert result["arch"] == rows[0]["arch"] == parse_architecture(str(tmp_path / "run"))
    assert result["row"] == {column: float(rows[0][column]) for column in values}
    assert len({row["arch"] for row in rows}) > 1 or name.startswith(("LS", "NA-LS"))
    assert run(table, tmp_path / "again", RUNS[name] + " --repeats 3") == (result, rows)
    assert run(table, tmp_path / "other", RUNS[name] + " --repeats 3 --seed 9")[1] != rows


@pytest.mark.parametrize("algo", ["rs", "ls", "ea"])
@pytest.mark.parametrize("agg", ["mean", "max"])
def test_what_a_budget_is_searched_for(table, tmp_path, algo, agg):
    """What is found is scored by its error with radius 0, and by g over its neighborhood with radius 1."""
    errors = 100 - nats_bench.load_table(table)["cifar10_valid_200"]
    error_of = lambda arch: errors[sum(o * 5 ** (5 - e) for e, o in enumerate(arch))].item()
    for radius in (0, 1):
        flags = f"--algo {algo} --neighborhood {radius} --agg {agg} --budget 300"
        _, [row] = run(table, tmp_path / f"run-{radius}", flags)
        arch = to_indices(row["arch"], SPACES["nasbench201"])
        around = [error_of(a) for a in discrete_neighbors(arch, ball_shifts(6, 5, 1), 5)]
        of_all = AGGREGATE[agg](torch.tensor(around)).item()
        assert (float(row["score"]) == pytest.approx(error_of(arch), rel=1e-6)) == (radius == 0)
        if radius and algo != "ea":  # whose score knows a part of the neighborhood
            assert float(row["score"]) == pytest.approx(of_all, rel=1e-6)


@pytest.mark.parametrize("radius,agg", [(0, "mean"), (1, "mean"), (1, "max"), (2, "median")])
def test_fast_random_search_equals_the_plain_one(table, tmp_path, radius, agg):
    """--samples with whole neighborhoods, whose errors the script looks up all at once."""
    flags = f"--algo rs --samples 30 --repeats 4 --neighborhood {radius} --agg {agg}"
    _, rows = run(table, tmp_path / "run", flags)
    errors = 100 - nats_bench.load_table(table)["cifar10_valid_200"]
    g, shifts = utils.generator(2, 4), ball_shifts(6, 5, radius)
    powers = 5 ** torch.arange(5, -1, -1)
    for row in rows:
        evaluations = Evaluations(lambda archs: errors[torch.tensor(archs) @ powers].tolist())
        scores = random_search(
            evaluations,
            lambda: tuple(torch.randint(5, (6,), generator=g).tolist()),
            lambda a: discrete_neighbors(a, shifts, 5),
            AGGREGATE[agg],
            30,
        )
        ops = [SPACES["nasbench201"].ops.index(op) for op in operations(row["arch"])]
        assert best(scores) == tuple(ops)
        assert float(row["score"]) == pytest.approx(scores[best(scores)])
        assert int(row["evaluations"]) == len(evaluations.known)


def test_few_draws_of_a_large_radius_are_cheap(table, tmp_path):
    """Ten neighborhoods that are the whole table, in half a gigabyte: those of all architectures, as numbers
    of 64 bits, would take four times that."""
    flags = f"--algo rs --samples 10 --neighborhood 6 --bench {table} --save run".split()
    done = forks.run("sample.py", *flags, cwd=tmp_path, before=["forks.little_memory", 2**29])
    assert done.status == 0, done.err
    [row] = read(tmp_path / "run" / "metrics.csv")
    errors = 100 - nats_bench.load_table(table)["cifar10_valid_200"]
    assert float(row["score"]) == pytest.approx(errors.mean().item()) and row["evaluations"] == "15625"


FLAGS = [
    ("--algo rs", "give one evaluator: --bench FILE, a table, or --eval train"),
    ("--bench t.csv --eval train", "give one evaluator"),
    ("--bench t.csv --space darts", "give --space nasbench201"),
    ("--algo ls --bench t.csv --budget 0", "0 is out of range"),
    ("--bench t.csv --budget 49", "does not cover two neighborhoods of 25"),
    ("--algo ls --bench t.csv --budget 50 --starts 51", "--starts 51 is more than the --budget 50"),
    ("--bench t.csv --neighborhood 7", "has 6 edges"),
    ("--bench t.csv --resume r", "there is no checkpoint r: give --resume a folder that a run wrote"),
]


@pytest.mark.parametrize("flags,message", FLAGS)
def test_flags(refused, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(sample, flags)
    assert os.listdir(tmp_path) == []


def test_tables_that_do_not_serve(refused, tmp_path, table):
    flags = ["--save", tmp_path / "run", "--bench"]
    error = refused(sample, "--bench_metric cifar10_test_12", *flags, table)
    assert "is no column of" in error and "cifar10_valid_200, cifar100_test_200" in error
    partial = tmp_path / "partial.csv"
    partial.write_text("\n".join(table.read_text().splitlines()[:100]) + "\n")
    for algo in ("rs", "ls"):
        assert "has no cifar10_valid_200 of |" in refused(sample, f"--algo {algo}", *flags, partial)
    assert not (tmp_path / "run").exists()
    run(table, tmp_path / "run", "--algo rs")
    before = tree(tmp_path / "run")
    assert "holds a run already" in refused(sample, "--algo ls", *flags, table)
    assert before == tree(tmp_path / "run")


def test_published_random_search(tmp_path):
    """RS under about 100 evaluations is published as 93.70 +- 0.36 / 71.04 +- 1.07 / 44.57 +- 1.25."""
    path = data("nasbench201.csv")
    flags = "--neighborhood 0 --samples 100 --bench_metric cifar10_test_12 --repeats 500"
    result, _ = run(path, tmp_path / "run", flags)
    for name, mean in {"cifar10": 93.70, "cifar100": 71.04, "imagenet16": 44.57}.items():
        assert result["columns"][f"{name}_test_200"]["mean"] == pytest.approx(mean, abs=0.3)
