"""RS, NA-RS, LS and NA-LS on small made-up tables, against slow plain versions, and as the script runs
them."""

import argparse
import csv
import itertools
import json
import os
import statistics
import sys

import pytest
import study_flatness
import study_gradients
import study_nasbench201
import torch
import torch.nn.functional as F
from test_bad_input import refused
from test_table import data

import neighborhood
import search
import utils
import visualize
from genotypes import SPACES, nasbench201_architectures, operations, parse_architecture
from model_search import running_statistics_kept
from neighborhood import (
    AGGREGATE,
    PERTURB,
    Evaluations,
    ball_shifts,
    discrete_neighbors,
    expected_error,
    local_search,
    neighbors,
    random_search,
    sample_shifts,
    table_neighborhoods,
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
    return discrete_neighbors(a, ball_shifts(E, O, radius).tolist(), O)


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
    carried = discrete_neighbors((0, 1, 2, 7, 8), [[0, 0, 0], [1, 0, 2]], O)
    assert carried == [(0, 1, 2, 7, 8), (1, 1, 1, 7, 8)]  # what rides along stays


@pytest.mark.parametrize("agg", AGGREGATE)
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_neighborhoods_of_a_whole_table(agg, radius):
    errors = torch.tensor(f(ARCHS), dtype=torch.float64)
    places = table_neighborhoods(O, ball_shifts(E, O, radius))
    scores = AGGREGATE[agg](errors[places].T)
    for a, score in zip(ARCHS, scores, strict=True):
        members = torch.tensor(f(ball(a, radius)), dtype=torch.float64)
        assert score.item() == pytest.approx(AGGREGATE[agg](members).item())


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


def test_flat_and_sharp_minima():
    """With enough centers RS finds the sharp minimum, and NA-RS and NA-LS the flat one."""
    assert best(random_search(Evaluations(f), drawer(0), lambda a: [a], MEAN, 500)) == (0, 0, 0)
    assert best(random_search(Evaluations(f), drawer(0), around, MEAN, 500)) == (2, 2, 2)
    assert best(local_search(Evaluations(f), drawer(0), around, None, 27, 27)) == (0, 0, 0)
    assert best(local_search(Evaluations(f), drawer(0), around, MEAN, 5, 27, "whole")) == (2, 2, 2)


@pytest.mark.parametrize("wave", [1, 2, 5])
@pytest.mark.parametrize("samples,budget", [(6, None), (None, 20), (4, 15), (None, 7)])
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


@pytest.mark.parametrize("samples,budget", [(4, None), (None, 20), (2, 15)])
@pytest.mark.parametrize("kind", ["plain", "whole", "known"])
def test_local_search_equals_a_plain_one(samples, budget, kind):
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
        g = None if kind == "plain" else MEAN
        got = local_search(evaluations, drawer(seed), around, g, 4, samples, kind)
        assert got == pytest.approx(scores) and list(evaluations.known) == paid


def test_a_budget_is_never_exceeded_and_small_spaces_end():
    for budget in (1, 6, 7, 26, 27):
        for search_ in (
            lambda ev: random_search(ev, drawer(0), around, MEAN),
            lambda ev: local_search(ev, drawer(0), around, MEAN, 3),
            lambda ev: local_search(ev, drawer(0), around, None, 3),
        ):
            evaluations = Evaluations(f, budget)
            search_(evaluations)
            assert len(evaluations.known) <= budget
    assert random_search(Evaluations(f, 6), drawer(0), around, MEAN) == {}


def test_of_equal_scores_the_first_is_the_answer():
    scores = random_search(Evaluations(lambda archs: [1.0] * len(archs)), drawer(3), around, MEAN, 9)
    draw = drawer(3)
    assert best(scores) == draw()


# ------------------------------------------------------------------------------------------------------------
# The script
# ------------------------------------------------------------------------------------------------------------

NAMES = nasbench201_architectures()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A made-up table: the error grows with distance from one architecture, with some noise."""
    g = torch.Generator().manual_seed(0)
    ops = torch.tensor(list(itertools.product(range(5), repeat=6)))
    value = 90 - 10 * (ops != torch.tensor([3, 1, 3, 2, 3, 0])).sum(1) + torch.rand(len(ops), generator=g)
    other = (value + 5 * torch.rand(len(ops), generator=g)).tolist()
    path = tmp_path_factory.mktemp("table") / "t.csv"
    rows = [f"{name},{v:.4f},{o:.4f}" for name, v, o in zip(NAMES, value.tolist(), other, strict=True)]
    path.write_text("\n".join(["arch,cifar10_valid_200,cifar100_test_200", *rows]) + "\n")
    return path


def run_search(table, folder, flags):
    flags = f"--space nasbench201 --bench {table} --save {folder} {flags}"
    search.main(search.parse_args(flags.split()))
    with open(folder / "metrics.csv", newline="") as file:
        return json.loads((folder / "result.json").read_text()), list(csv.DictReader(file))


RUNS = {
    "RS": "--algo rs --neighborhood 0 --budget 50",
    "NA-RS": "--algo rs --samples 40",
    "NA-RS, sampled": "--algo rs --samples 40 --neighbors 5",
    "NA-RS, budget": "--algo rs --budget 60 --agg median",
    "LS": "--algo ls --neighborhood 0 --budget 80",
    "NA-LS": "--algo ls --budget 80",
    "NA-LS, whole": "--algo ls --budget 80 --ls_score whole --starts 10",
    "NA-LS, radius 2": "--algo ls --samples 2 --neighborhood 2 --neighbors 30 --starts 5",
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_reports(table, tmp_path, name):
    result, rows = run_search(table, tmp_path / "run", RUNS[name] + " --repeats 3")
    assert result["algo"] == name.split(",")[0] and len(rows) == result["repeats"] == 3
    values = utils.load_table(table)
    for row in rows:
        place = NAMES.index(row["arch"])
        assert all(float(row[column]) == value[place].item() for column, value in values.items())
    for column in values:
        found = torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
        assert result["columns"][column]["mean"] == pytest.approx(found.mean().item())
        assert result["columns"][column]["std"] == pytest.approx(found.std().item())
    paid = [int(row["evaluations"]) for row in rows]
    assert result["evaluations"] == pytest.approx(sum(paid) / 3)
    budget = json.loads((tmp_path / "run" / "args.json").read_text())["budget"]
    assert budget is None or max(paid) <= budget
    assert result["arch"] == rows[0]["arch"] == parse_architecture(str(tmp_path / "run"))
    assert result["row"] == {column: float(rows[0][column]) for column in values}
    assert len({row["arch"] for row in rows}) > 1 or name.startswith(("LS", "NA-LS"))
    again, again_rows = run_search(table, tmp_path / "again", RUNS[name] + " --repeats 3")
    assert (again, again_rows) == (result, rows)
    other, other_rows = run_search(table, tmp_path / "other", RUNS[name] + " --repeats 3 --seed 9")
    assert other_rows != rows


@pytest.mark.parametrize("radius,agg", [(0, "mean"), (1, "mean"), (1, "max"), (2, "median")])
def test_fast_random_search_equals_the_plain_one(table, tmp_path, radius, agg):
    """--samples with whole neighborhoods, which the script looks up in the whole table at once."""
    flags = f"--algo rs --samples 30 --repeats 4 --neighborhood {radius} --agg {agg}"
    _, rows = run_search(table, tmp_path / "run", flags)
    errors = 100 - utils.load_table(table)["cifar10_valid_200"]
    g, shifts = utils.generator(2, 4), ball_shifts(6, 5, radius).tolist()
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


FLAGS = [
    ("--algo rs", "searches on a table: give --bench"),
    ("--algo rs --bench t.csv", "give --space nasbench201"),
    ("--algo ls --space nasbench201 --bench t.csv --budget 0", "--budget 0 is out of range"),
    ("--algo rs --space nasbench201 --bench t.csv --budget 24", "does not cover a neighborhood of 25"),
    ("--algo rs --space nasbench201 --bench t.csv --samples -1", "--samples -1 is out of range"),
    ("--algo ls --space nasbench201 --bench t.csv --budget 50 --starts 51", "--starts 51 is out of range"),
    ("--algo rs --space nasbench201 --bench t.csv --neighborhood 7", "between 0 and 6"),
    ("--algo rs --space nasbench201 --bench t.csv --resume r", "there is no checkpoint r"),
    ("--space nasbench201 --budget 50", "--budget has no meaning with --algo darts"),
    ("--repeats 2", "--repeats is a flag of --algo rs, ls and --exact"),
    ("--exact", "searches on a table: give --bench"),
    ("--exact --space nasbench201 --bench t.csv --budget 9", "--budget has no meaning with --exact"),
    ("--exact --space nasbench201 --bench t.csv --epochs 9", "--epochs has no meaning with --exact"),
    ("--algo rs --space nasbench201 --bench t.csv --perturb move", "--perturb has no meaning with --algo rs"),
    ("--algo rs --space nasbench201 --bench t.csv --starts 3", "--starts has no meaning with --algo rs"),
    ("--algo rs --space nasbench201 --bench t.csv --layers 9", "--layers has no meaning with --algo rs"),
    ("--exact --space nasbench201 --bench t.csv --cutout", "--cutout has no meaning with --exact"),
    ("--space nasbench201 --bench t.csv --bench_metric x", "--bench_metric has no meaning with --algo darts"),
    ("--algo ls --eval train --learning_rate_min 0", "--learning_rate_min has no meaning with --eval train"),
    ("--unrolled --amp bf16", "--amp bf16 does not go with --unrolled"),
    ("--unrolled --compile", "--compile does not go with --unrolled"),
    ("--algo ls --eval train --unrolled", "--unrolled has no meaning with --eval train"),
    ("--algo rs --eval train --arch_warmup 3", "--arch_warmup has no meaning with --eval train"),
    ("--steps 9", "--steps has no meaning with --algo darts"),
    ("--eval_epochs 3", "--eval_epochs has no meaning with --algo darts"),
    ("--exact --algo rs --space nasbench201 --bench t.csv", "leave --algo rs out"),
    ("--exact --space nasbench201 --bench t.csv --steps 0", "--steps 0 is out of range"),
    ("--algo rs --space nasbench201 --bench no.csv", "no table could be read from no.csv"),
]


@pytest.mark.parametrize("flags,message", FLAGS, ids=[flags for flags, _ in FLAGS])
def test_flags(capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *flags.split())
    assert os.listdir(tmp_path) == []


def test_tables_that_do_not_serve(capsys, tmp_path, table):
    flags = ["--space", "nasbench201", "--save", tmp_path / "run", "--bench"]
    error = refused(capsys, *flags, table, "--algo", "rs", "--bench_metric", "cifar10_test_12")
    assert "is no column of" in error and "cifar10_valid_200, cifar100_test_200" in error
    partial = tmp_path / "partial.csv"
    partial.write_text("\n".join(table.read_text().splitlines()[:100]) + "\n")
    for algo in ("rs", "ls"):
        assert "has no cifar10_valid_200 of |" in refused(capsys, *flags, partial, "--algo", algo)
    assert "--exact needs cifar10_valid_200 of all" in refused(capsys, *flags, partial, "--exact")
    error = refused(
        capsys, *flags, table, "--algo", "ls", "--budget", 30, "--starts", 30, "--ls_score", "whole"
    )
    assert "is spent before any neighborhood is whole" in error
    assert not (tmp_path / "run").exists()
    run_search(table, tmp_path / "done", "--algo rs")
    before = {name: (tmp_path / "done" / name).read_bytes() for name in os.listdir(tmp_path / "done")}
    for more in (["--algo", "rs"], ["--exact"], []):
        again = ["--space", "nasbench201", "--bench", table, "--save", tmp_path / "done", *more]
        assert "holds a run already" in refused(capsys, *again)
    assert before == {name: (tmp_path / "done" / name).read_bytes() for name in os.listdir(tmp_path / "done")}


def test_columns_without_a_value(tmp_path):
    """A search on a column that is whole; others lack values."""
    lines = [f"{name},{i % 97},{'50' if i % 3 else ''}," for i, name in enumerate(NAMES)]
    header = "arch,cifar10_valid_200,cifar100_test_200,imagenet16_test_200"
    (tmp_path / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    flags = "--algo rs --neighborhood 0 --samples 3 --repeats 30"
    result, rows = run_search(tmp_path / "t.csv", tmp_path / "run", flags)
    assert result["columns"]["imagenet16_test_200"] == {"mean": None, "std": None}
    assert result["columns"]["cifar100_test_200"] == {"mean": 50, "std": 0}
    assert {row["cifar100_test_200"] for row in rows} == {"", "50.0"}
    assert result["row"]["imagenet16_test_200"] is None


def test_gradient_search_reports_the_table(table, tmp_path, capsys):
    flags = "--dataset shapes --image_size 8 --init_channels 2 --layers 1 --batch_size 496 --epochs 1"
    flags = f"{flags} --device cpu --space nasbench201 --bench {table} --save {tmp_path / 'run'}"
    search.main(search.parse_args(flags.split()))
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        [row] = csv.DictReader(file)
    place = NAMES.index(row["genotype"])
    printed = capsys.readouterr().out
    for column, value in utils.load_table(table).items():
        assert float(row[column]) == value[place].item()
        assert f"{column} {value[place].item():.2f}" in printed


def test_published_random_search(tmp_path):
    """RS under about 100 evaluations is published as 93.70 +- 0.36 / 71.04 +- 1.07 / 44.57 +- 1.25."""
    path = data("nasbench201.csv")
    flags = "--algo rs --neighborhood 0 --samples 100 --bench_metric cifar10_test_12 --repeats 500"
    result, _ = run_search(path, tmp_path / "run", flags)
    for name, mean in {"cifar10": 93.70, "cifar100": 71.04, "imagenet16": 44.57}.items():
        assert result["columns"][f"{name}_test_200"]["mean"] == pytest.approx(mean, abs=0.3)


# ------------------------------------------------------------------------------------------------------------
# Gradient search on the table
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges,ops", [(3, 3), (6, 2), (5, 2)])
def test_expected_error_is_the_sum_over_all_architectures(edges, ops):
    g = torch.Generator().manual_seed(0)
    errors = torch.rand(ops**edges, generator=g, dtype=torch.float64)
    p = torch.rand(4, 2, edges, ops, generator=g, dtype=torch.float64).softmax(-1)
    expected = torch.zeros(4, 2, dtype=torch.float64)
    for error, arch in zip(errors, itertools.product(range(ops), repeat=edges), strict=True):
        expected += error * torch.stack([p[..., e, op] for e, op in enumerate(arch)]).prod(0)
    assert torch.allclose(expected_error(errors, p), expected)
    one_hot = torch.nn.functional.one_hot(
        torch.tensor(list(itertools.product(range(ops), repeat=edges))), ops
    )
    assert torch.allclose(expected_error(errors, one_hot.double()), errors)


@pytest.mark.parametrize("perturb", PERTURB)
def test_neighbors_of_a_batch_are_those_of_each(perturb):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(7, 6, 5, generator=g, dtype=torch.float64).softmax(-1)
    shifts = sample_shifts(6, 5, 2, 7 * 9, g).view(7, 9, 6)
    together = neighbors(p[:, None], shifts, perturb)
    for one, s, q in zip(p, shifts, together, strict=True):
        assert torch.equal(neighbors(one, s, perturb), q)


EXACT = {
    "DARTS": "--neighborhood 0",
    "NA-DARTS": "--neighborhood 1",
    "sampled": "--neighborhood 2 --neighbors 5 --perturb move --agg max",
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_gradient_search(table, tmp_path, name):
    """On a table whose error grows with the distance from one architecture, that one is found."""
    flags = f"--exact {EXACT[name]} --repeats 4 --steps 150"
    result, rows = run_search(table, tmp_path / "run", flags)
    best_ops = [SPACES["nasbench201"].ops[o] for o in (3, 1, 3, 2, 3, 0)]
    if name != "sampled":
        assert all(operations(row["arch"]) == best_ops for row in rows)
    assert result["repeats"] == 4 and result["evaluations"] == 15_625
    values = utils.load_table(table)
    for row in rows:
        place = NAMES.index(row["arch"])
        assert all(float(row[column]) == value[place].item() for column, value in values.items())
    assert run_search(table, tmp_path / "again", flags)[1] == rows
    assert [r["score"] for r in run_search(table, tmp_path / "other", flags + " --seed 5")[1]] != [
        r["score"] for r in rows
    ]


def test_exact_gradient_search_takes_the_plain_steps(table, tmp_path):
    """Against one repeat at a time, one neighbor at a time, in plain loops."""
    flags = "--exact --repeats 2 --steps 3 --perturb roll --agg median --alpha_scale 2"
    _, rows = run_search(table, tmp_path / "run", flags)
    errors = (100 - utils.load_table(table)["cifar10_valid_200"]).view(*[5] * 6)
    starts = 2 * torch.randn(2, 6, 5, generator=utils.generator(2, 4), dtype=torch.float64)
    for start, row in zip(starts, rows, strict=True):
        alpha = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([alpha], 0.1, betas=(0.5, 0.999))
        for step in range(4):
            losses = []
            for edge, shift in [(None, 0), *itertools.product(range(6), range(1, 5))]:
                p = list(alpha.softmax(-1).unbind(0))
                if edge is not None:
                    p[edge] = p[edge].roll(shift)
                losses.append(torch.einsum("abcdef,a,b,c,d,e,f->", errors, *p))
            loss = torch.stack(losses).median()
            if step < 3:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert float(row["score"]) == pytest.approx(loss.item())  # of the alpha that it ends with


# ------------------------------------------------------------------------------------------------------------
# The flatness study
# ------------------------------------------------------------------------------------------------------------


def test_rank_correlation():
    x = torch.tensor([1.0, 5.0, 2.0, 9.0, 2.0])
    assert study_flatness.rank_correlation(x, x.exp()) == pytest.approx(1)
    assert study_flatness.rank_correlation(x, -x) == pytest.approx(-1)
    y = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    ranks = [torch.tensor([1, 4, 2.5, 5, 2.5]), torch.tensor([3, 1.5, 4, 1.5, 5])]
    assert study_flatness.rank_correlation(x, y) == pytest.approx(
        torch.corrcoef(torch.stack(ranks))[0, 1].item()
    )


def test_the_flatness_study_on_a_table_with_a_known_answer(tmp_path, capsys):
    """Accuracy on the other data set is made of that of the neighborhood: full correlation. And of noise."""
    g = torch.Generator().manual_seed(0)
    accuracy = 80 + 2 * torch.rand(len(NAMES), generator=g, dtype=torch.float64)
    around = accuracy[table_neighborhoods(5, ball_shifts(6, 5, 1))].mean(1)
    noise = 100 * torch.rand(len(NAMES), generator=g, dtype=torch.float64)
    columns = {"cifar10_valid_200": accuracy, "cifar100_test_200": around, "noise_test_1": noise}
    rows = study_flatness.study(columns, "cifar10_valid_200", 1, "mean", 0.5, 80.0, 40)
    assert {row["column"] for row in rows} == {"cifar100_test_200", "noise_test_1"}
    for name, correlation in (("cifar100_test_200", 1), ("noise_test_1", 0)):
        part = [row for row in rows if row["column"] == name]
        assert [row["bin"] for row in part] == ["80", "80.5", "81", "81.5", "all"]
        assert sum(row["count"] for row in part[:-1]) == part[-1]["count"] == len(NAMES)
        assert all(row["correlation"] == pytest.approx(correlation, abs=0.06) for row in part)
    low = rows[0]
    inside = around[(accuracy >= 80) & (accuracy < 80.5)].sort().values
    quarter = len(inside) // 4
    assert low["count"] == len(inside)
    assert low["flattest"] == pytest.approx(inside[-quarter:].mean().item())
    assert low["sharpest"] == pytest.approx(inside[:quarter].mean().item())
    lines = [f"{name},{a:.5f},{b:.5f}" for name, a, b in zip(NAMES, accuracy, around, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["arch,cifar10_valid_200,cifar100_test_200", *lines]) + "\n")
    flags = ["--bench", str(tmp_path / "t.csv"), "--save", str(tmp_path / "rows.csv")]
    study_flatness.main(study_flatness.parse_args(flags))
    assert "cifar100_test_200" in capsys.readouterr().out
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [row["bin"] for row in csv.DictReader(file)] == ["80", "80.5", "81", "81.5", "all"]
    with pytest.raises(utils.BadInput, match="no bin has enough"):
        study_flatness.main(study_flatness.parse_args([*flags, "--lowest", "95"]))


def test_twists_of_the_study(monkeypatch):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(6, 5, generator=g, dtype=torch.float64).softmax(-1)
    shifts = neighborhood.sample_shifts(6, 5, 1, 64, g)
    changed = (shifts != 0)[..., None]

    def twisted(name):
        with monkeypatch.context() as patch:
            for attribute in ("sample_shifts", "neighbors"):
                patch.setattr(neighborhood, attribute, getattr(neighborhood, attribute))
            patch.setitem(neighborhood.PERTURB, "roll", neighborhood.roll)
            study_nasbench201.twist(name)
            return neighborhood.neighbors(p, shifts), neighborhood.sample_shifts(6, 5, 3, 8, g)

    plain, _ = twisted("")
    assert torch.equal(plain, neighborhood.neighbors(p, shifts))
    without, _ = twisted("without none")
    assert torch.equal(without[..., 0], p[:, 0].expand(64, 6))
    assert torch.equal((without != p).any(-1, keepdim=True), changed)
    assert torch.equal(without.sort(-1).values, p.sort(-1).values.expand(64, 6, 5))
    sharp, _ = twisted("sharpened")
    expected = (4 * p.log()).softmax(-1)
    assert torch.allclose(sharp, neighborhood.neighbors(expected, shifts), atol=1e-12)
    _, drawn = twisted("center in the batch")
    assert not drawn[0].any() and drawn[1:].any()
    assert torch.equal(twisted("no neighbors")[0], p.expand(64, 6, 5))

    def draw_shifts():
        return neighborhood.sample_shifts(6, 5, 3, 200, g)

    def main(epoch, args):  # stands for that of search.py
        return draw_shifts()

    monkeypatch.setattr(neighborhood, "sample_shifts", neighborhood.sample_shifts)
    study_nasbench201.twist("radius shrinks")
    args = argparse.Namespace(epochs=15)
    radii = [(main(epoch, args) != 0).sum(1).max().item() for epoch in (1, 5, 6, 10, 11, 15)]
    assert radii == [3, 3, 2, 2, 1, 1]


def test_the_study_of_searches_goes_on_and_compares_by_seed(table, tmp_path, capsys, monkeypatch):
    """Two methods and two seeds; the control sees no other mixture than DARTS does, only other groups."""
    tiny = "--space nasbench201 --dataset shapes --image_size 8 --init_channels 2 --layers 1 --batch_size 480"
    monkeypatch.setitem(study_nasbench201.SETTINGS, "healthy", f"{tiny} --epochs 1 --sharpness_images 16")
    monkeypatch.setattr(study_nasbench201, "COLUMNS", ("cifar10_valid_200", "cifar100_test_200"))
    flags = [str(tmp_path), "--bench", str(table), "--only", "DARTS", "DARTS, batch norm in 16 groups"]
    monkeypatch.setattr(sys, "argv", ["study_nasbench201.py", *flags, "--data", "unused", "--seeds", "2"])
    study_nasbench201.main()
    first = capsys.readouterr().out
    assert first.count(", seed ") == 4
    runs = {
        name: [
            json.loads((tmp_path / "healthy" / f"{name}-seed{seed}" / "result.json").read_text())
            for seed in (0, 1)
        ]
        for name in ("DARTS", "DARTS-batch_norm_in_16_groups")
    }
    values = {name: [run["metrics"]["cifar100_test_200"] for run in both] for name, both in runs.items()}
    (a, b), (c, d) = values["DARTS"], values["DARTS-batch_norm_in_16_groups"]
    mean, half = (c - a + d - b) / 2, 12.71 * abs((c - a) - (d - b)) / 2  # of two: their spread over sqrt(2)
    assert f"| {mean:+.2f} ({half:.2f}) |" in first
    for both in runs.values():
        eigenvalue = statistics.mean(run["sharpness"]["hessian_eigenvalue"] for run in both)
        assert f" {eigenvalue:.3f} |" in first
    assert [run["sharpness"]["loss_std"] for run in runs["DARTS-batch_norm_in_16_groups"]] == [0, 0]
    (tmp_path / "healthy" / "DARTS-seed1" / "result.json").unlink()  # as if killed before it was written
    study_nasbench201.main()
    again = capsys.readouterr().out
    assert (
        again.count(", seed ") == 1 and again[again.index("\nhealthy") :] == first[first.index("\nhealthy") :]
    )


def test_what_steps_ask_of_operations(tmp_path, capsys):
    """The study of gradients against finite differences; one share is the whole batch."""
    run = str(tmp_path / "run")
    flags = "--space nasbench201 --dataset shapes --image_size 8 --init_channels 2 --layers 1 --epochs 1"
    more = f"--batch_size 480 --sharpness_images 0 --seed 0 --save {run}"
    search.main(search.parse_args([*flags.split(), *more.split()]))
    capsys.readouterr()
    study_gradients.main(
        study_gradients.parse_args([run, "--operations", "--images", "960", "--neighbors", "1", "2"])
    )
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in lines if len(line) == 8 and "step" not in line]
    assert [line[0] for line in lines] == [
        name
        for n in (1, 2)
        for name in (
            "center, whole batches",
            f"{n} neighbors, whole batches",
            f"center, {n} shares",
            f"{n} neighbors",
            f"{n} neighbors, shared",
        )
    ]
    one, two = (
        {line[0]: [float(value) for value in line[1:]] for line in part} for part in (lines[:5], lines[5:])
    )
    assert one["center, whole batches"] == one["center, 1 shares"]
    assert one["1 neighbors, whole batches"] == one["1 neighbors"] == one["1 neighbors, shared"]
    assert one["1 neighbors"][1] == two["2 neighbors, whole batches"][1] == 1  # the cosine with itself
    assert two["center, whole batches"] != two["center, 2 shares"]
    assert len({tuple(row) for row in two.values()}) == 5
    asked = {**one, **two}
    where = argparse.Namespace(device="cpu", data=None, images=960)
    model, batches = visualize.load_supernet(run, visualize.load_run(run), where)
    model.double()

    def loss(alpha, shares):
        p = alpha.softmax(-1).expand(shares, -1, -1, -1)
        with torch.no_grad(), running_statistics_kept(model):
            losses = [F.cross_entropy(model(x.double(), p), y) for x, y in batches]
        return sum(losses).item() / len(losses)

    for shares in (1, 2):
        row, alpha, h = asked[f"center, {shares} shares"], model.alpha.detach(), 1e-4
        assert row[0] == pytest.approx(loss(alpha, shares), abs=2e-3)
        for o, value in enumerate(row[2:]):
            step = h * F.one_hot(torch.tensor(o), 5)
            slope = (loss(alpha - step, shares) - loss(alpha + step, shares)) / (2 * h)
            assert value == pytest.approx(10_000 * slope / 6, abs=0.1 + 0.02 * abs(value))
