"""One supernet as an evaluator, noise, evolution and the score of NA-LS, against plain versions."""

import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import check_same, do, outcome, read, save_images
from plain import PLAIN, copy_weights

import nats_bench
import sample
import train
import utils
from genotypes import SPACES, nasbench201_architectures, random_architecture, read_cell
from model_search import SUPERNETS
from neighborhood import AGGREGATE, Evaluations, ball_shifts, discrete_neighbors, evolution

NAMES, PLACES = nasbench201_architectures(), list(itertools.product(range(5), repeat=6))


@pytest.mark.parametrize("space,n", [("darts", 3), ("nasbench201", 1), ("nasbench201", 3)])
def test_one_path_is_the_mixture_with_one_hot_weights(space, n):
    torch.manual_seed(0)
    net = SUPERNETS[space](4, 3 if space == "darts" else 1, 10).double()
    x, y, g = torch.randn(6, 3, 8, 8).double(), torch.randint(10, (6,)), utils.generator(0, 0)
    pairs = lambda a: a if space != "darts" else [{*c[i : i + 2]} for c in a[::2] for i in (0, 2, 4, 6)]
    for _ in range(3):
        archs = [random_architecture(SPACES[space], g) for _ in range(n)]
        p = torch.cat([sample.one_hot(arch, SPACES[space])[0] for arch in archs]).double().requires_grad_()
        assert [pairs(read_cell(SPACES[space], q)) for q in p] == list(map(pairs, archs))
        passes = []
        for used in (None, (p != 0).any(0).tolist()):
            loss = F.cross_entropy(net(x, p, used), y)
            by_p, *by_weights = torch.autograd.grad(loss, [p, *net.weight_parameters()], allow_unused=True)
            passes.append([loss, by_p * (p != 0), *by_weights])
        assert any(b is None for b in passes[1])  # what no group uses is not computed
        for a, b in zip(*passes, strict=True):
            assert torch.allclose(a, torch.zeros_like(a) if b is None else b, rtol=1e-7, atol=1e-9)


RUN = "--algo ls --eval supernet --space nasbench201 --budget 20 --repeats 2 --dataset folder --image_size 8"
RUN += " --device cpu --batch_size 12 --accumulate 2 --epochs 3 --init_channels 4 --seed 3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, and an uninterrupted search on a supernet, `whole`: 2 steps an epoch."""
    folder = tmp_path_factory.mktemp("supernet")
    save_images(folder / "images")
    do(sample, RUN, "--data", folder / "images", "--save", folder / "whole")
    return folder


@pytest.mark.parametrize("dies_at", [3, 4])
def test_a_killed_supernet_goes_on(folder, tmp_path, monkeypatch, dies_at):
    """It dies in an epoch, or after the end of one."""
    step, left = torch.optim.SGD.step, iter(range(dies_at))
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(torch.optim.SGD, "step", lambda *args, **more: (next(left), step(*args, **more))[1])
        do(sample, RUN, "--data", folder / "images", "--save", tmp_path / "parts")
    do(sample, "", "--resume", tmp_path / "parts")
    check_same(outcome(folder / "whole"), outcome(tmp_path / "parts"))


def test_a_supernet_whose_last_step_went_wrong_is_not_kept(folder, tmp_path, monkeypatch):
    """Its losses were finite, since the step came after the last of them."""
    train_epoch = train.train_epoch

    def broken(net, optimizer, batches, flags, epoch, *more):
        found = train_epoch(net, optimizer, batches, flags, epoch, *more)
        if epoch == 2:
            net.supernet.classifier.weight.data.fill_(torch.inf)
        return found

    monkeypatch.setattr(train, "train_epoch", broken)
    with pytest.raises(utils.NotFinite, match="not finite after epoch 2"):
        do(sample, RUN, "--data", folder / "images", "--save", tmp_path / "run")
    assert read(tmp_path / "run" / "checkpoint.pt")["epoch"] == 1


def test_a_supernet_is_used_again(folder, tmp_path, monkeypatch, table, capsys):
    """Nothing is trained, the loss is that of the plain supernet, and the table's columns are reported."""
    monkeypatch.setattr(sample, "train_supernet", None)
    monkeypatch.setattr(sample, "CENTERS", 3)
    do(sample, RUN, "--supernet", folder / "whole", "--bench", table, "--save", tmp_path / "run")
    supernet = SUPERNETS["nasbench201"](4, 1, 2)
    supernet.load_state_dict(read(folder / "whole" / "checkpoint.pt")["model"])
    images, labels, _ = utils.load_images("folder", str(folder / "images"), 8)
    held_out = utils.split_balanced(labels, 0.5, utils.generator(3, 0))[0]
    x, y = utils.normalise(images[held_out], *utils.channel_statistics(images)), labels[held_out]
    rows, values = read(tmp_path / "run" / "metrics.csv"), nats_bench.load_table(table)
    for row, first in zip(rows, read(folder / "whole" / "metrics.csv"), strict=True):
        p = F.one_hot(torch.tensor(PLACES[NAMES.index(row["arch"])]), 5).float()
        logits = copy_weights(supernet, PLAIN["nasbench201"](4, 1, 2))(x, p[None])
        expected = {name: column[NAMES.index(row["arch"])].item() for name, column in values.items()}
        expected["supernet_loss"] = F.cross_entropy(logits, y).item()
        expected["supernet_top1"] = 100 * (logits.argmax(1) == y).double().mean().item()
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-4)
        assert row.items() > first.items()
    assert "rank correlation with cifar10_valid_200: " in capsys.readouterr().out


def test_a_supernet_that_does_not_fit(folder, tmp_path, refused):
    """Its images may lie elsewhere; its space, its end and its flags have to be those of the search."""
    run, moved = folder / "whole", tmp_path / "moved"
    (folder / "images").rename(moved)
    try:
        do(sample, RUN, "--supernet", run, "--data", moved, "--save", tmp_path / "run")
    finally:
        moved.rename(folder / "images")
    half = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save({**half, "epoch": 2}, tmp_path / "half.pt")
    for words, message in [
        (["--supernet", run, "--space", "darts"], f"--supernet {run} is of the space nasbench201: give"),
        (["--supernet", tmp_path / "half.pt"], "has done 2 epochs of 3: go on with"),
        (["--supernet", run, "--init_channels", "6"], "another configuration: --init_channels 6 (there: 4)"),
        (["--noise", "1"], "--noise is for tables"),
        (["--amp", "bf16"], "--amp does nothing with --eval supernet"),
    ]:
        assert message in refused(sample, RUN, "--save", tmp_path / "other", *words)


def test_rank_correlations_on_a_partial_table(table, monkeypatch):
    values = nats_bench.load_table(table)["cifar10_valid_200"]
    errors = dict(zip(PLACES, (100 - values).tolist(), strict=True))
    part = values.clone()
    part[::2] = torch.nan
    args = sample.parse_args(["--eval", "supernet", "--space", "nasbench201", "--bench", str(table)])
    text = sample.rank_correlations(args, lambda archs: [errors[a] for a in archs], {args.bench_metric: part})
    assert text.count("1.000 ") == 2 and "nan" not in text and 300 < int(text.split()[6]) < 700, text


def test_rank_correlation_with_ties():
    a, b = torch.randint(6, (2, 40), generator=utils.generator(0, 0))
    ranks = [(v[:, None] > v).sum(1) + (v[:, None] == v).sum(1).double() / 2 for v in (a, b)]
    assert sample.spearman(a, b) == pytest.approx(torch.corrcoef(torch.stack(ranks))[0, 1].item(), abs=1e-9)


def test_noise(table, tmp_path, monkeypatch):
    """Of the stated deviation, fixed in a repeat, another in the next, the same for a seed."""
    seen, runs, search = [], [tmp_path / name for name in "abc"], sample.search
    truth = 100 - nats_bench.load_table(table)["cifar10_valid_200"]

    def spy(args, f, rng):
        seen.append(torch.tensor(f(PLACES)) - truth)
        assert f(PLACES[9::-1]) == f(PLACES[:10])[::-1]
        return search(args, f, rng)

    monkeypatch.setattr(sample, "search", spy)
    for run, seed in zip(runs, "112", strict=True):
        flags = f"--algo ea --noise 2 --repeats 2 --budget 50 --seed {seed}"
        do(sample, flags, "--bench", table, "--save", run)
    rows, again, _ = (read(run / "metrics.csv") for run in runs)
    assert rows == again and torch.equal(seen[0], seen[2])
    for row in rows:  # what is reported is true
        assert 100 - float(row["cifar10_valid_200"]) == pytest.approx(truth[NAMES.index(row["arch"])].item())
    noise = torch.stack([seen[0], seen[1], seen[4]]) / 2
    products, size = noise @ noise.T / len(PLACES), 5 / len(PLACES) ** 0.5
    assert (noise.mean(1).abs() < size).all() and ((products - torch.eye(3)).abs() < 1.5 * size).all()


ARCHS = list(itertools.product(range(3), repeat=3))
ERROR = dict(zip(ARCHS, torch.rand(27, generator=utils.generator(0, 0)).double().tolist(), strict=True))
f = lambda archs: [ERROR[a] for a in archs]
ball = lambda a: [b for b in ARCHS if sum(x != y for x, y in zip(a, b, strict=True)) <= 1]


def known_score(a, paid):
    near = f([b for b in ball(a) if b in paid])
    return (ERROR[a] + (sum(near) + 5 * sum(f(paid)) / len(paid)) / (len(near) + 5)) / 2


def draws(seed):  # functions that draw an architecture, a neighbor, and some of a list
    g = utils.generator(seed, 0)
    some = lambda items, k: [items[i] for i in torch.randint(len(items), (k,), generator=g).tolist()]
    return lambda: some(ARCHS, 1)[0], lambda a: some([b for b in ball(a) if b != a], 1)[0], some


@pytest.mark.parametrize("g", [None, AGGREGATE["mean"]])
@pytest.mark.parametrize("samples,budget", [(30, None), (None, 15), (None, 5)])
def test_evolution_is_the_plain_one(samples, budget, g):
    for seed in range(20):
        draw, mutate, choose = draws(seed)
        population, paid, parent = [], [], None
        for i in range(10 + (samples or 1000)):
            if len(paid) == budget:
                break
            population.append(draw() if i < 10 else mutate(parent))
            if len(population) > 10:
                del population[0]  # the oldest
            paid += [a for a in population[-1:] if a not in paid]
            parent = min(choose(population, 3), key=ERROR.get)
        got = evolution(Evaluations(f, budget), *draws(seed), ball, g, samples)
        assert got == pytest.approx({a: known_score(a, paid) if g else ERROR[a] for a in paid})


@pytest.mark.parametrize("space", SPACES)
def test_a_mutation_is_a_neighbor_drawn_uniformly(space, monkeypatch):
    seen, spy = [], lambda evaluations, draw, mutate, *more: seen.extend([draw(), mutate]) or {0: 0.0}
    monkeypatch.setattr(sample, "evolution", spy)
    args = sample.parse_args(["--algo", "ea", "--eval", "supernet", "--space", space])
    sample.search(args, None, utils.generator(0, 0))
    arch, mutate = seen
    edges, ops = (16, 7) if space == "darts" else (6, 5)
    near = set(discrete_neighbors(arch, ball_shifts(edges, ops, 1), ops)) - {arch}
    found = Counter(mutate(arch) for _ in range(100 * len(near)))
    assert set(found) == near and all(abs(count - 100) < 50 for count in found.values())
