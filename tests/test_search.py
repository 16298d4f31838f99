"""The search step: gradients of DARTS and NA-DARTS, first and second order, and exact resuming."""

import csv
import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from plain import PLAIN, copy_weights
from sweep_kills import same

import search
import utils
import visualize
from genotypes import format_architecture, parse_architecture
from model_search import SUPERNETS
from neighborhood import AGGREGATE, ball_shifts, neighbors

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = (
    "--dataset shapes --space nasbench201 --init_channels 2 --layers 1 --image_size 8 --batch_size 496 "
    "--sharpness_images 0"
)


def tiny(space="nasbench201", batch=12, seed=0):
    """A small double-precision supernet, and a batch for the weights and one for the architecture."""
    torch.manual_seed(seed)
    model = SUPERNETS[space](2, 3 if space == "darts" else 1, 10).double()
    with torch.no_grad():
        model.alpha.normal_()
    batches = [
        (torch.randn(batch, 3, 8, 8, dtype=torch.float64), torch.randint(10, (batch,))) for _ in range(2)
    ]
    return model, *batches


def arguments(text=""):
    return search.parse_args(text.split())


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_radius_0_is_plain_darts(space):
    """The architecture gradient equals that of DARTS written out on the plain supernet."""
    model, _, (x, y) = tiny(space)
    args = arguments("--neighborhood 0 --neighbors 8")
    shifts = search.draw_shifts(model, args, utils.generator(0, 0))
    assert shifts.shape == (1, model.alpha[..., 0].numel()) and not shifts.any()
    loss = search.neighborhood_loss(model, x, y, shifts, args)
    (got,) = torch.autograd.grad(loss, model.alpha)

    plain = copy_weights(model, PLAIN[space](2, 3 if space == "darts" else 1, 10).double())
    alpha = model.alpha.detach().requires_grad_()
    expected_loss = F.cross_entropy(plain(x, alpha.softmax(-1)), y)
    (expected,) = torch.autograd.grad(expected_loss, alpha)
    assert torch.allclose(loss, expected_loss, rtol=1e-10)
    assert torch.allclose(got, expected, rtol=1e-8, atol=1e-12) and expected.abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["split", "repeat"])
@pytest.mark.parametrize("agg", AGGREGATE)
def test_neighborhood_loss_is_the_aggregate_of_separate_losses(agg, mode):
    model, _, (x, y) = tiny()
    args = arguments(f"--agg {agg} --neighbors 4 --neighbor_batch {mode} --batch_size 12 --perturb move")
    shifts = search.draw_shifts(model, args, utils.generator(5, 0))
    assert shifts.shape == (4, 6) and (shifts > 0).sum(1).max() == 1
    loss = search.neighborhood_loss(model, x, y, shifts, args)

    separate = []
    for k, shift in enumerate(shifts):
        q = neighbors(model.mixture()[0], shift[None], "move")
        part = slice(3 * k, 3 * k + 3) if mode == "split" else slice(None)
        separate.append(F.cross_entropy(model(x[part], q), y[part]))
    expected = AGGREGATE[agg](torch.stack(separate))
    a, b = (torch.autograd.grad(value, model.alpha)[0] for value in (loss, expected))
    assert torch.allclose(loss, expected, rtol=1e-10) and torch.allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("radius,weight_step", [(0, "center"), (1, "center"), (1, "neighbors")])
@pytest.mark.parametrize("momentum,steps", [(0.0, 0), (0.9, 2)])
def test_second_order_gradient_is_that_through_one_step(radius, weight_step, momentum, steps):
    """Against exact differentiation through one SGD step with momentum and weight decay, in double
    precision."""
    model, (x, y), (x_arch, y_arch) = tiny()
    args = arguments(f"--neighborhood {radius} --neighbors 3 --batch_size 12")
    g = utils.generator(1, 0)
    shifts = search.draw_shifts(model, args, g)
    weight_shifts = (
        search.draw_shifts(model, args, g) if weight_step == "neighbors" else torch.zeros(1, 6).long()
    )
    weights = model.weight_parameters()
    optimizer = torch.optim.SGD(weights, 0.05, momentum=momentum, weight_decay=0.01)
    for _ in range(steps):  # fill the momentum buffers
        optimizer.zero_grad()
        F.cross_entropy(model(x, model.mixture().detach()), y).backward(inputs=weights)
        optimizer.step()
    buffers = [optimizer.state[w].get("momentum_buffer", torch.zeros_like(w)).clone() for w in weights]
    train, valid = (x, y, weight_shifts), (x_arch, y_arch, shifts)
    # A short difference: a supernet this small has kinks (ReLU, pooling) close by.
    loss, got = search.unrolled_gradient(model, optimizer, train, valid, args, r=1e-6)

    names = [name for name, _ in model.named_parameters() if name != "alpha"]
    logits = model(x, search.mixtures(model, weight_shifts, args))
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), weights, create_graph=True)
    ahead = {
        name: w - 0.05 * (momentum * buffer + gradient + 0.01 * w)
        for name, w, buffer, gradient in zip(names, weights, buffers, gradients, strict=True)
    }
    logits = torch.func.functional_call(model, ahead, (x_arch, search.mixtures(model, shifts, args)))
    pairs = zip(logits.chunk(len(shifts)), y_arch.chunk(len(shifts)), strict=True)
    losses = torch.stack([F.cross_entropy(a, b) for a, b in pairs])
    (expected,) = torch.autograd.grad(losses.mean(), model.alpha)
    (first_order,) = torch.autograd.grad(search.neighborhood_loss(model, *valid, args), model.alpha)
    assert torch.allclose(loss, losses.mean(), rtol=1e-10)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    assert (
        first_order - expected
    ).norm() > 1e-2 * expected.norm()  # the second-order term is not negligible here
    for w, buffer in zip(weights, buffers, strict=True):  # the optimizer was only looked at
        assert torch.equal(optimizer.state[w].get("momentum_buffer", torch.zeros_like(w)), buffer)


def test_whole_neighborhood_in_one_pass():
    """Groups may enumerate the ball: 25 neighbors of a NAS-Bench-201 mixture, each with its own images."""
    model, _, _ = tiny()
    x, y = torch.randn(50, 3, 8, 8, dtype=torch.float64), torch.randint(10, (50,))
    loss = search.neighborhood_loss(model, x, y, ball_shifts(6, 5, 1), arguments())
    (gradient,) = torch.autograd.grad(loss, model.alpha)
    assert gradient.isfinite().all() and gradient.abs().min() > 0


@pytest.fixture
def few_shapes(monkeypatch):
    """A quarter of the synthetic set, for speed."""
    draw = utils.draw_shapes
    monkeypatch.setattr(utils, "draw_shapes", lambda n, size, seed: draw(n // 4, size, seed))


def run_search(folder, *flags):
    args = search.parse_args([*TINY.split(), "--device", "cpu", *map(str, flags)])
    if args.resume is None:
        args.save = str(folder)
    search.main(args)
    return outcome(folder)


def outcome(folder):
    """A run's checkpoint and its metrics without times."""
    checkpoint = torch.load(os.path.join(folder, "checkpoint.pt"), weights_only=True)
    with open(os.path.join(folder, "metrics.csv"), newline="") as file:
        rows = [
            {name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)
        ]
    return checkpoint, rows


@pytest.mark.parametrize(
    "flags",
    [
        ["--neighborhood", 1, "--train_portion", 0.6],
        ["--neighborhood", 2, "--weight_step", "neighbors", "--cutout"],
        ["--neighborhood", 0, "--unrolled"],
    ],
    ids=["na-darts", "weights on neighbors", "second order"],
)
def test_resumed_search_equals_an_uninterrupted_one(tmp_path, flags, few_shapes):
    whole, whole_rows = run_search(tmp_path / "whole", *flags, "--epochs", 3)
    run_search(tmp_path / "parts", *flags, "--epochs", 1)
    parts, part_rows = run_search(tmp_path / "parts", *flags, "--epochs", 3, "--resume", tmp_path / "parts")
    assert len(whole_rows) == 3 and whole_rows == part_rows
    for name in (
        "model",
        "weight_optimizer",
        "arch_optimizer",
        "weight_batches",
        "arch_batches",
        "neighbors",
        "trajectory",
    ):
        assert same(whole[name], parts[name]), name
    assert (tmp_path / "whole" / "genotype.json").read_text() == (
        tmp_path / "parts" / "genotype.json"
    ).read_text()
    other, _ = run_search(tmp_path / "other", *flags, "--epochs", 1, "--seed", 3)
    assert not same(
        other["model"], torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["model"]
    )


def test_which_mixture_trains_the_weights(tmp_path, few_shapes):
    """With alpha at rest, the architecture step leaves the weights and running statistics alone, and the
    weight step depends on the neighbors only where it is told to."""
    still = ["--arch_learning_rate", 0, "--epochs", 1]
    models = {}
    for name, flags in {
        "darts": ["--neighborhood", 0],
        "darts, neighbors": ["--neighborhood", 0, "--weight_step", "neighbors"],
        "center": ["--neighborhood", 2],
        "second order": ["--neighborhood", 2, "--unrolled"],
        "neighbors": ["--neighborhood", 2, "--weight_step", "neighbors"],
        "cutout": ["--neighborhood", 2, "--cutout", "--cutout_length", 4],
    }.items():
        models[name] = run_search(tmp_path / name, *still, *flags)[0]["model"]
    for name in ("darts, neighbors", "center", "second order"):
        assert same(models["darts"], models[name]), name
    for name in ("neighbors", "cutout"):
        assert not same(models["darts"], models[name]), name


def test_neighbors_that_share_statistics(tmp_path, monkeypatch):
    """A search whose neighbors all are the center is DARTS where batch norm takes them for one batch, and is
    not where each has its own statistics; the sharpness in the end is that of each neighbor for itself."""
    darts = run_search(tmp_path / "darts", "--neighborhood", 0, "--epochs", 1)[0]["trajectory"]["alpha"]
    monkeypatch.setattr(
        search, "sample_shifts", lambda edges, ops, radius, n, g: torch.zeros(n, edges).long()
    )
    alpha = {}
    for norm in ("shared", "own"):
        flags = ["--neighborhood", 1, "--neighbor_norm", norm, "--epochs", 1, "--sharpness_images", 64]
        alpha[norm] = run_search(tmp_path / norm, *flags)[0]["trajectory"]["alpha"]
    moved = (darts[1] - darts[0]).norm()
    assert (alpha["shared"] - darts).norm() < 0.05 * moved < (alpha["own"] - darts).norm()
    run = str(tmp_path / "shared")
    where = Namespace(device="cpu", data=None, images=64)
    again = visualize.sharpness(*visualize.load_supernet(run, visualize.load_run(run), where), "roll")
    with open(os.path.join(run, "result.json")) as file:
        assert json.load(file)["sharpness"] == again


@pytest.mark.parametrize("unrolled", [False, True])
def test_architecture_steps_ask_for_no_gradient_by_the_weights(tmp_path, monkeypatch, few_shapes, unrolled):
    """But the second order does, and the weight step after it gets all of its own."""
    seen, loss = [], search.neighborhood_loss

    def look(model, *args):
        seen.append({w.requires_grad for w in model.weight_parameters()})
        return loss(model, *args)

    monkeypatch.setattr(search, "neighborhood_loss", look)
    run_search(tmp_path / "run", "--epochs", 1, "--batch_size", 240, *["--unrolled"] * unrolled)
    assert len(seen) >= 2 and seen == [{unrolled}] * len(seen)


def test_warm_up_is_weight_steps_alone(tmp_path, capsys, few_shapes):
    """Until --arch_warmup epochs are over alpha rests where it started, and the weights are trained as they
    are beside an alpha at rest; then the architecture steps are the first of their generators."""
    flags = ["--neighborhood", 1, "--weight_step", "center"]
    warm, rows = run_search(tmp_path / "warm", *flags, "--epochs", 3, "--arch_warmup", 2)
    alpha = warm["trajectory"]["alpha"]
    assert torch.equal(alpha[1], alpha[0]) and torch.equal(alpha[2], alpha[0])
    assert not torch.equal(alpha[3], alpha[0])
    assert [row["neighborhood_loss"] for row in rows[:2]] == ["nan", "nan"]
    assert float(rows[2]["neighborhood_loss"]) > 0
    still, still_rows = run_search(tmp_path / "still", *flags, "--epochs", 3, "--arch_learning_rate", 0)
    assert same(warm["weight_batches"], still["weight_batches"])
    columns = "weight_loss weight_accuracy arch_loss arch_accuracy genotype".split()
    for one, other in zip(rows[:2], still_rows[:2], strict=True):
        assert [one[name] for name in columns] == [other[name] for name in columns]
    first, _ = run_search(tmp_path / "one", *flags, "--epochs", 1)
    for name in ("arch_batches", "neighbors"):
        assert same(warm[name], first[name]), name
    with pytest.raises(SystemExit):
        search.parse_args(["--epochs", "3", "--arch_warmup", "3"])
    assert "--arch_warmup 3 is out of range: it lies between 0 and 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "dies_in,more", [(3, []), (3, ["--arch_warmup", 2]), (2, ["--arch_warmup", 2, "--unrolled"])]
)
def test_interrupted_search_goes_on_from_the_last_epoch(tmp_path, monkeypatch, few_shapes, dies_in, more):
    """A run of 3 epochs that dies in one of them, right after or inside warm-up too, and is resumed without
    any other flag, equals an undisturbed one."""
    flags = ["--neighborhood", 1, "--epochs", 3, *more]
    whole, whole_rows = run_search(tmp_path / "whole", *flags)
    evaluate, calls = search.evaluate, []

    def dies(*args):
        calls.append(1)
        if len(calls) == dies_in:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "evaluate", dies)
        run_search(tmp_path / "parts", *flags)
    search.main(search.parse_args(["--resume", str(tmp_path / "parts")]))
    parts, part_rows = outcome(tmp_path / "parts")
    assert same(whole["model"], parts["model"]) and same(whole["trajectory"], parts["trajectory"])
    assert whole_rows == part_rows


def test_what_a_run_writes(tmp_path):
    _, rows = run_search(tmp_path / "run", "--epochs", 2, "--sharpness_images", 64)
    names = sorted(os.listdir(tmp_path / "run"))
    assert names == ["args.json", "cell.csv", "cell.png", "checkpoint.pt", "genotype.json", "log.txt",
                     "metrics.csv", "result.json"]  # fmt: skip
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0 <= float(rows[1]["arch_accuracy"]) <= 100 and float(rows[0]["learning_rate"]) == 0.025
    arch = parse_architecture(str(tmp_path / "run"))
    assert rows[-1]["genotype"] == format_architecture(arch)
    assert int(rows[-1]["skip_connects"]) == rows[-1]["genotype"].count("skip_connect")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sharpness"]["images"] == 64
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"train.py --arch {tmp_path / 'run'}" in log and format_architecture(arch) in log
    assert json.loads((tmp_path / "run" / "args.json").read_text())["neighborhood"] == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_search_that_has_no_memory_for_the_sharpness_is_complete(tmp_path, monkeypatch, few_shapes, error):
    def fails(*args):
        raise error

    monkeypatch.setattr(visualize, "sharpness", fails)
    run_search(tmp_path / "run", "--epochs", 1, "--sharpness_images", 64)
    assert (tmp_path / "run" / "cell.png").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sharpness"] is None
    text = f"out of memory: python visualize.py sharpness {tmp_path / 'run'} --images 16"
    assert text in (tmp_path / "run" / "log.txt").read_text()


def test_first_step_that_is_not_finite_is_named():
    losses = torch.tensor([[1.0, 2.0, float("inf")], [1.0, float("nan"), 3.0]])
    utils.check_finite(losses[:, :1], "epoch 1", "checkpoint.pt")
    with pytest.raises(
        utils.NotFinite, match="not finite at step 2 of epoch 1; last good checkpoint: checkpoint.pt"
    ):
        utils.check_finite(losses, "epoch 1", "checkpoint.pt")


@pytest.mark.parametrize("warm_up", ["0", "8"])
def test_loss_that_is_not_finite_stops_the_run(tmp_path, warm_up):
    flags = [
        "--arch_warmup",
        warm_up,
        "--learning_rate",
        "100",
        "--weight_decay",
        "1",
        "--epochs",
        "9",
        "--save",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, os.path.join(ROOT, "search.py"), *TINY.split(), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert "not finite" in message and "epoch" in message and "learning rate" in message
    assert message.endswith(os.path.join("run", "checkpoint.pt"))
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


def test_a_compiled_supernet_searches_alike(tmp_path, monkeypatch, few_shapes):
    """Traced as ever, but not turned into machine code, which takes minutes."""
    compiled = []

    def traced(network, compile=torch.compile):
        compiled.append(network)
        return compile(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    runs = []
    for more in ([], ["--compile"]):
        folder = tmp_path / str(len(more))
        flags = [*TINY.split(), "--epochs", "1", "--neighbors", "2", "--save", str(folder), *more]
        search.main(search.parse_args(flags))
        runs.append(outcome(folder))
    (a, a_rows), (b, b_rows) = runs
    assert len(compiled) == 1 and a["model"].keys() == b["model"].keys()
    assert torch.allclose(a["model"]["alpha"], b["model"]["alpha"], atol=1e-5)
    for name in ("weight_loss", "neighborhood_loss", "arch_loss"):
        assert float(a_rows[0][name]) == pytest.approx(float(b_rows[0][name]), rel=1e-3)


@pytest.mark.parametrize("space,layers,radius", [("nasbench201", 1, 1), ("darts", 3, 1), ("darts", 3, 0)])
def test_autocast_is_close_to_float32(tmp_path, few_shapes, space, layers, radius):
    flags = TINY.replace("nasbench201", space).split() + ["--epochs", "1", "--layers", str(layers)]
    flags += ["--neighborhood", str(radius)]
    rows = []
    for amp in ("none", "bf16"):
        folder = tmp_path / amp
        search.main(
            search.parse_args([*flags, "--learning_rate", "1e-3", "--save", str(folder), "--amp", amp])
        )
        rows.append(outcome(folder)[1][0])
    for name in ("weight_loss", "neighborhood_loss", "arch_loss"):
        assert float(rows[1][name]) == pytest.approx(float(rows[0][name]), rel=0.01)
    assert rows[0]["weight_loss"] != rows[1]["weight_loss"]
