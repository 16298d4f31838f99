"""The experiments run from their place, and the studies measure what they say. Times are not judged here."""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys

import exact
import forks
import pytest
import study_flatness
import study_gradients
import study_nasbench201
import study_noise
import study_supernet
import torch
import torch.nn.functional as F
from conftest import ROOT, SEARCH, do, read, save_images

import nats_bench
import sample
import search
import utils
import visualize
from genotypes import SPACES, from_indices, nasbench201_architectures, operations
from model_search import SUPERNETS, running_statistics_kept
from neighborhood import (
    PERTURB,
    ball_shifts,
    neighbors,
    roll,
    sample_shifts,
    table_neighborhoods,
)

NAMES = nasbench201_architectures()
RESULTS = {
    "bench_supernet.py": "supernet_darts search_step na_step_8 supernet_nasbench201 na_repeat_4",
    "bench_data.py": "batches",
    "bench_train.py": "fixed_cell",
}


@pytest.mark.parametrize("script", RESULTS)
def test_a_benchmark_runs(script, tmp_path):
    command = [sys.executable, os.path.join(ROOT, "experiments", script), "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^RESULT (\w+) ratio=([\d.]+)", done.stdout, re.MULTILINE))
    assert set(RESULTS[script].split()) <= set(found)
    assert all(float(value) > 0 for value in found.values())


def test_a_longer_search_keeps_its_files_in_order(tmp_path):
    done = forks.run("experiments/long_run.py", "--epochs", 15, "--save", "run", cwd=tmp_path)
    assert done.status == 0 and done.out.endswith("; all right\n"), done
    rows = read(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 16)]
    assert all(value for row in rows for value in row.values())


@pytest.mark.parametrize("perturb", PERTURB)
def test_neighbors_of_a_batch_are_those_of_each(perturb):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(7, 6, 5, generator=g, dtype=torch.float64).softmax(-1)
    shifts = sample_shifts(6, 5, 2, 7 * 9, g).view(7, 9, 6)
    together = neighbors(p[:, None], shifts, perturb)
    for one, s, q in zip(p, shifts, together, strict=True):
        assert torch.equal(neighbors(one, s, perturb), q)


def run_exact(table, folder, flags):
    do(exact, flags, "--bench", table, "--save", folder)
    return read(folder / "result.json"), read(folder / "metrics.csv")


EXACT = {
    "DARTS": "--neighborhood 0",
    "NA-DARTS": "--neighborhood 1",
    "sampled": "--neighborhood 2 --neighbors 5 --perturb move --agg max",
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_gradient_search(table, tmp_path, name):
    """On a table whose error grows with the distance from one architecture, that one is found."""
    result, rows = run_exact(table, tmp_path / "run", f"{EXACT[name]} --repeats 4 --steps 150")
    best = [SPACES["nasbench201"].ops[o] for o in (3, 1, 3, 2, 3, 0)]
    if name != "sampled":
        assert all(operations(row["arch"]) == best for row in rows)
    assert (result["repeats"], result["evaluations"]) == (4, 15_625)
    values = nats_bench.load_table(table)
    for row in rows:
        place = NAMES.index(row["arch"])
        assert all(float(row[column]) == value[place].item() for column, value in values.items())


def test_exact_gradient_search_takes_the_plain_steps(table, tmp_path):
    """Against one repeat at a time, one neighbor at a time, in plain loops."""
    flags = "--repeats 2 --steps 3 --perturb roll --agg median --alpha_scale 2"
    _, rows = run_exact(table, tmp_path / "run", flags)
    errors = (100 - nats_bench.load_table(table)["cifar10_valid_200"]).view(*[5] * 6)
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


def test_the_flatness_study_on_a_table_with_a_known_answer(tmp_path, capsys):
    """Accuracy on the other data set is made of that of the neighborhood: full correlation. And of noise."""
    g = torch.Generator().manual_seed(0)
    accuracy = 80 + 2 * torch.rand(len(NAMES), generator=g, dtype=torch.float64)
    every = torch.tensor(list(itertools.product(range(5), repeat=6)))
    around = accuracy[table_neighborhoods(every, ball_shifts(6, 5, 1), 5)].mean(1)
    noise = 100 * torch.rand(len(NAMES), generator=g, dtype=torch.float64)
    columns = {"cifar10_valid_200": accuracy, "cifar100_test_200": around, "noise_test_1": noise}
    rows = study_flatness.study(columns, "cifar10_valid_200", 1, "mean", 0.5, 80.0, 40)
    assert {row["column"] for row in rows} == {"cifar100_test_200", "noise_test_1"}
    for name, correlation in (("cifar100_test_200", 1), ("noise_test_1", 0)):
        part = [row for row in rows if row["column"] == name]
        assert [row["bin"] for row in part] == ["80", "80.5", "81", "81.5", "all"]
        assert sum(row["count"] for row in part[:-1]) == part[-1]["count"] == len(NAMES)
        for kind in ("correlation", "given_accuracy"):
            assert all(row[kind] == pytest.approx(correlation, abs=0.06) for row in part)
    low = rows[0]
    inside = around[(accuracy >= 80) & (accuracy < 80.5)].sort().values
    quarter = len(inside) // 4
    assert low["count"] == len(inside)
    assert low["flattest"] == pytest.approx(inside[-quarter:].mean().item())
    assert low["sharpest"] == pytest.approx(inside[:quarter].mean().item())
    lines = [f"{name},{a:.5f},{b:.5f}" for name, a, b in zip(NAMES, accuracy, around, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["arch,cifar10_valid_200,cifar100_test_200", *lines]) + "\n")
    flags = ["--bench", tmp_path / "t.csv", "--save", tmp_path / "rows.csv"]
    do(study_flatness, "", *flags)
    assert "cifar100_test_200" in capsys.readouterr().out
    bins = [row["bin"] for row in read(tmp_path / "rows.csv")]
    assert bins == ["80", "80.5", "81", "81.5", "all"]
    with pytest.raises(utils.BadInput, match="no bin has enough"):
        do(study_flatness, "--lowest 95", *flags)
    common, *own = torch.randn(3, 20_000, generator=g)  # two that share a part, and nothing but it
    x, y = common + own[0], common + own[1]
    assert sample.spearman(x, y) > 0.4 and abs(study_flatness.given(x, y, common)) < 0.03


def test_the_study_of_noise_runs_what_sample_runs(table, tmp_path, capsys, monkeypatch):
    """Its rows are those of sample.py, and what is in the file is not run again."""
    for name, values in dict(BUDGETS=(60,), NOISE=(0, 2)).items():
        monkeypatch.setattr(study_noise, name, values)
    monkeypatch.setattr(study_noise, "COLUMNS", ("cifar10_valid_200", "cifar100_test_200"))
    flags = f"--bench {table} --metric cifar10_valid_200 --repeats 2 --seed 3"
    monkeypatch.setattr(sys, "argv", ["study_noise.py", *flags.split(), "--out", str(tmp_path / "noise.csv")])
    study_noise.main()
    rows = read(tmp_path / "noise.csv")
    names = ["RS", "NA-RS", "LS", "NA-LS", "REA", "NA-REA"]
    assert [row["algorithm"] for row in rows] == 2 * names and [row["noise"] for row in rows] == 6 * [
        "0"
    ] + 6 * ["2"]
    do(sample, f"--algo ls --budget 60 --noise 2 --repeats 2 --seed 3 --save {tmp_path}/run --bench", table)
    found = read(tmp_path / "run" / "result.json")["columns"]["cifar100_test_200"]
    row = rows[9]
    assert float(row["cifar100_test_200"]) == pytest.approx(found["mean"], abs=1e-3)
    assert float(row["cifar100_test_200_sd"]) == pytest.approx(found["std"], abs=1e-3)
    monkeypatch.setattr(sample, "main", None)  # which a second call does not ask for
    study_noise.main()
    assert read(tmp_path / "noise.csv") == rows


def test_twists_of_the_study(monkeypatch):
    """Each changes the mixtures or the neighbors of a step as it says, and nothing at the center."""
    model, g = SUPERNETS["nasbench201"](2, 1, 10), torch.Generator().manual_seed(0)
    args = search.parse_args("--space nasbench201 --neighborhood 3 --neighbors 64 --epochs 15".split())
    with torch.no_grad():
        model.alpha.normal_()
    p, shifts = model.mixture()[0], sample_shifts(6, 5, 1, 64, g)
    center, changed = torch.zeros(1, 6).long(), (shifts != 0)[..., None]
    monkeypatch.setattr(search, "draw_shifts", search.draw_shifts)  # so that both are put back in the end
    monkeypatch.setattr(search, "mixtures", search.mixtures)
    monkeypatch.setitem(PERTURB, "roll", roll)

    def twisted(name):
        search.draw_shifts, search.mixtures = study_nasbench201.draw_shifts, study_nasbench201.mixtures
        PERTURB["roll"] = roll
        study_nasbench201.TWISTS[name]()
        assert torch.equal(search.mixtures(model.alpha, center, args, g)[:, 0], p[None])
        return search.mixtures(model.alpha, shifts, args, g)[:, 0]

    without = twisted("without none")
    assert torch.equal(without[..., 0], p[:, 0].expand(64, 6))
    assert torch.equal((without != p).any(-1, keepdim=True), changed)
    assert torch.equal(without.sort(-1).values, p.sort(-1).values.expand(64, 6, 5))
    sharp = (4 * p.log()).softmax(-1)
    assert torch.allclose(twisted("sharpened"), neighbors(sharp, shifts), atol=1e-6)
    assert torch.equal(twisted("no neighbors"), p.expand(64, 6, 5))
    assert torch.equal(twisted("center in the batch"), neighbors(p, shifts))
    drawn = search.draw_shifts(model, args, 1, g)
    assert not drawn[0].any() and drawn[1:].any()
    twisted("radius shrinks")
    radii = [(search.draw_shifts(model, args, e, g) != 0).sum(1).max().item() for e in (1, 5, 6, 10, 11, 15)]
    assert radii == [3, 3, 2, 2, 1, 1]


def test_without_dead_edges_an_architecture_computes_the_same():
    model, space, x = SUPERNETS["nasbench201"](4, 1, 10), SPACES["nasbench201"], torch.randn(8, 3, 8, 8)
    less = {ops: study_supernet.without_dead_edges(ops) for ops in study_supernet.ARCHS}
    assert len(set(less.values())) == 9445
    for ops in [(3, 1, 2, 3, 0, 0), (0, 1, 3, 2, 2, 1), (2, 0, 3, 1, 0, 0), (2, 4, 0, 0, 3, 0)]:
        assert less[ops].count(0) > ops.count(0) and less[less[ops]] == less[ops]
        passes = [sample.one_hot(from_indices(space, one), space) for one in (ops, less[ops])]
        assert torch.equal(*(model(x, *one) for one in passes))


def test_errors_that_neighbors_share():
    """None of independent ones. Where each edge's operation adds its own, a neighbor has 5 of 6 of them, and
    the other half of the errors in rank are ranks of the truth, which is independent here."""
    g, archs = torch.Generator().manual_seed(0), torch.tensor(study_supernet.ARCHS)
    truth, own = torch.rand(2, len(archs), generator=g).double()
    by_edge = torch.rand(6, 5, generator=g).double()[torch.arange(6), archs].sum(1)
    for errors, low, high in ((truth + own, -0.02, 0.02), (truth + 20 * by_edge, 0.3, 0.5)):
        found = study_supernet.correlations(errors, truth)
        assert low < found["shared_with_a_neighbor"] < high, found
        assert found["single"] == pytest.approx(sample.spearman(errors, truth))


def test_the_study_of_searches_goes_on_and_compares_by_seed(table, tmp_path, capsys, monkeypatch):
    """Two methods and two seeds; the control sees no other mixture than DARTS does, only other groups."""
    save_images(tmp_path / "images", count=16)
    tiny = f"{SEARCH} --dataset folder --batch_size 16 --epochs 1"
    monkeypatch.setitem(study_nasbench201.SETTINGS, "healthy", tiny)

    def run(command, **options):
        """A search, forked, which takes less time to start than a process of its own."""
        return argparse.Namespace(returncode=forks.run(*command[1:], cwd=tmp_path).status)

    monkeypatch.setattr(study_nasbench201, "subprocess", argparse.Namespace(run=run, DEVNULL=None))
    monkeypatch.setattr(study_nasbench201, "COLUMNS", ("cifar10_valid_200", "cifar100_test_200"))
    flags = [str(tmp_path), "--bench", str(table), "--only", "DARTS", "DARTS, batch norm in 16 groups"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["study_nasbench201.py", *flags, "--data", str(tmp_path / "images"), "--seeds", "2", "--jobs", "1"],
    )
    study_nasbench201.main()
    first = capsys.readouterr().out
    assert first.count(", seed ") == 4
    path = str(tmp_path / "healthy" / "{}-seed{}" / "result.json")
    names = "DARTS", "DARTS-batch_norm_in_16_groups"
    runs = {name: [read(path.format(name, seed)) for seed in (0, 1)] for name in names}
    values = {name: [run["metrics"]["cifar100_test_200"] for run in both] for name, both in runs.items()}
    (a, b), (c, d) = values["DARTS"], values["DARTS-batch_norm_in_16_groups"]
    mean, half = (c - a + d - b) / 2, 12.71 * abs((c - a) - (d - b)) / 2  # of two: their spread over sqrt(2)
    assert f"| {mean:+.2f} ({half:.2f}) |" in first
    for both in runs.values():
        eigenvalue = statistics.mean(run["sharpness"]["hessian_eigenvalue"] for run in both)
        assert f" {eigenvalue:.3f} |" in first
    assert [run["sharpness"]["loss_std"] for run in runs["DARTS-batch_norm_in_16_groups"]] == [0, 0]
    os.remove(path.format("DARTS", 1))  # as if killed before it was written
    study_nasbench201.main()
    again = capsys.readouterr().out
    assert (
        again.count(", seed ") == 1 and again[again.index("\nhealthy") :] == first[first.index("\nhealthy") :]
    )
    os.remove(path.format("DARTS", 1))
    monkeypatch.setitem(study_nasbench201.SETTINGS, "healthy", f"{tiny} --learning_rate 0.1")
    with pytest.raises(SystemExit, match="status 2"):  # a begun run is not taken for one of other flags
        study_nasbench201.main()


def test_what_steps_ask_of_operations(tmp_path, capsys, few_shapes, no_sharpness):
    """The study of gradients against finite differences; one share is the whole batch."""
    run = str(tmp_path / "run")
    do(search, f"{SEARCH} --batch_size 64 --epochs 1 --seed 0 --save {run}")
    capsys.readouterr()
    do(study_gradients, f"{run} --operations --images 128 --neighbors 1 2")
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in lines if len(line) == 8 and "step" not in line]
    one, two = (
        {line[0]: [float(value) for value in line[1:]] for line in part} for part in (lines[:5], lines[5:])
    )
    assert one["center, whole batches"] == one["center, 1 shares"]
    assert one["1 neighbors, whole batches"] == one["1 neighbors"] == one["1 neighbors, shared"]
    assert one["1 neighbors"][1] == two["2 neighbors, whole batches"][1] == 1  # the cosine with itself
    assert two["center, whole batches"] != two["center, 2 shares"]
    assert len({tuple(row) for row in two.values()}) == 5
    asked = {**one, **two}
    assert len(lines) == 10
    where = argparse.Namespace(device="cpu", data=None, images=128)
    model, batches = visualize.load_supernet(visualize.load_run(run), where)
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
