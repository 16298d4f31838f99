"""The search step: gradients of DARTS and NA-DARTS, first and second order; searches whole, and resumed."""

import gc
import json
import os
import shlex
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import SEARCH, check_same, do, outcome, same, tree
from plain import PLAIN, copy_weights

import search
import train
import utils
import visualize
from genotypes import format_architecture, nasbench201_architectures, parse_architecture
from model_search import SUPERNETS
from neighborhood import AGGREGATE, neighbors


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


def mixed(model, shifts, args):
    """The mixtures of a step whose neighbors are these."""
    return search.mixtures(model.alpha, shifts, args, None)


def test_the_defaults_are_those_of_darts():
    args = vars(arguments())
    expected = dict(
        epochs=50, batch_size=64, learning_rate=0.025, learning_rate_min=0.001, momentum=0.9,
        weight_decay=3e-4, grad_clip=5, arch_learning_rate=3e-4, arch_weight_decay=1e-3, init_channels=16,
        layers=8, seed=2, train_portion=0.5, cutout=False, unrolled=False, report_freq=50,
        # and those of this project
        neighborhood=1, neighbors=16, agg="mean", perturb="roll", relax="softmax", neighbor_batch="split",
        neighbor_norm="shared", weight_step="center", arch_warmup=0, space="darts",
    )  # fmt: skip
    assert {name: args[name] for name in expected} == expected


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_radius_0_is_plain_darts(space):
    """The architecture gradient equals that of DARTS written out on the plain supernet."""
    model, _, (x, y) = tiny(space)
    args = arguments("--neighborhood 0 --neighbors 8")
    shifts = search.draw_shifts(model, args, 1, utils.generator(0, 0))
    assert shifts.shape == (1, model.alpha[..., 0].numel()) and not shifts.any()
    before = [buffer.clone() for buffer in model.buffers()]
    q = mixed(model, shifts, args)
    loss, by_q = search.arch_gradient(model, x, y, q, args)
    got = search.by_alpha(model.alpha, q, by_q, args)
    assert same(before, list(model.buffers()))  # the running statistics are the weight step's

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
    shifts = search.draw_shifts(model, args, 1, utils.generator(5, 0))
    assert shifts.shape == (4, 6) and (shifts > 0).sum(1).max() == 1
    loss = search.neighborhood_loss(model, x, y, mixed(model, shifts, args), args)

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
    shifts = search.draw_shifts(model, args, 1, g)
    weight_shifts = (
        search.draw_shifts(model, args, 1, g) if weight_step == "neighbors" else torch.zeros(1, 6).long()
    )
    weights = model.weight_parameters()
    optimizer = torch.optim.SGD(weights, 0.05, momentum=momentum, weight_decay=0.01)
    for _ in range(steps):  # fill the momentum buffers
        optimizer.zero_grad()
        F.cross_entropy(model(x, model.mixture().detach()), y).backward(inputs=weights)
        optimizer.step()
    for w in weights:  # as search.py has it from the start
        optimizer.state[w].setdefault("momentum_buffer", torch.zeros_like(w))
    buffers = [optimizer.state[w]["momentum_buffer"].clone() for w in weights]
    q, q_arch = mixed(model, weight_shifts, args), mixed(model, shifts, args)
    # A short difference: a supernet this small has kinks (ReLU, pooling) close by.
    lr = torch.tensor(0.05, dtype=torch.float64)
    loss, by_q, by_arch = search.unrolled_gradient(
        model, optimizer, (x, y, q), (x_arch, y_arch, q_arch), args, lr, r=1e-6
    )
    got = search.by_alpha(model.alpha, q, by_q, args) + search.by_alpha(model.alpha, q_arch, by_arch, args)

    names = [name for name, _ in model.named_parameters() if name != "alpha"]
    logits = model(x, mixed(model, weight_shifts, args))
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), weights, create_graph=True)
    ahead = {
        name: w - 0.05 * (momentum * buffer + gradient + 0.01 * w)
        for name, w, buffer, gradient in zip(names, weights, buffers, gradients, strict=True)
    }
    q_arch = mixed(model, shifts, args)
    logits = torch.func.functional_call(model, ahead, (x_arch, q_arch))
    pairs = zip(logits.chunk(len(shifts)), y_arch.chunk(len(shifts)), strict=True)
    losses = torch.stack([F.cross_entropy(a, b) for a, b in pairs])
    (expected,) = torch.autograd.grad(losses.mean(), model.alpha)
    first = search.neighborhood_loss(model, x_arch, y_arch, mixed(model, shifts, args), args)
    (first_order,) = torch.autograd.grad(first, model.alpha)
    assert torch.allclose(loss, losses.mean(), rtol=1e-10)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    # The second-order term is not negligible here
    assert (first_order - expected).norm() > 1e-2 * expected.norm()
    for w, buffer in zip(weights, buffers, strict=True):  # the optimizer was only looked at
        assert torch.equal(optimizer.state[w]["momentum_buffer"], buffer)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
@pytest.mark.parametrize("radius", [0, 2])
def test_weight_gradient(space, radius):
    """At the center that of the plain supernet, and on neighbors that of each on its share of the batch."""
    model, (x, y), _ = tiny(space)
    args = arguments(f"--neighborhood {radius} --neighbors 3 --batch_size 12")
    shifts = search.draw_shifts(model, args, 1, utils.generator(4, 0))
    q = mixed(model, shifts, args).detach()
    loss, right = search.weight_gradient(model, x, y, q, args)
    plain = copy_weights(model, PLAIN[space](2, 3 if space == "darts" else 1, 10).double())
    logits = torch.cat([plain(part, p) for part, p in zip(x.chunk(len(q)), q, strict=True)])
    expected = F.cross_entropy(logits, y)
    gradients = torch.autograd.grad(expected, list(plain.parameters()))
    assert (
        torch.allclose(loss, expected) and right == (logits.argmax(1) == y).sum() and model.alpha.grad is None
    )
    for w, gradient in zip(model.weight_parameters(), gradients, strict=True):
        assert torch.allclose(w.grad, gradient, rtol=1e-8, atol=1e-10)


def test_evaluation_is_in_the_precision_of_the_run():
    model, (x, y), _ = tiny("darts")
    model, x = model.float(), x.float()
    scores = {}
    for amp in ("none", "bf16"):
        scores[amp] = search.evaluate(model, [(x[:8], y[:8]), (x[8:], y[8:])], arguments(f"--amp {amp}"))
        assert model.training
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model(x[:8], model.mixture()), model(x[8:], model.mixture())])
    assert logits.dtype == torch.bfloat16
    assert scores["bf16"][0] == pytest.approx(F.cross_entropy(logits.float(), y).item(), rel=1e-6)
    assert scores["bf16"][1] == pytest.approx(100 * (logits.argmax(1) == y).float().mean().item())
    assert scores["none"] != scores["bf16"] and scores["none"][0] == pytest.approx(
        scores["bf16"][0], rel=0.02
    )


quick = pytest.mark.usefixtures("few_shapes", "no_sharpness")


def run_search(folder, *flags):
    do(search, SEARCH, "--save", folder, *flags)
    return outcome(folder)


@quick
@pytest.mark.parametrize(
    "dies_in,flags",
    [
        (3, "--neighborhood 1 --train_portion 0.6"),
        (2, "--neighborhood 2 --weight_step neighbors --cutout"),
        (3, "--neighborhood 1 --arch_warmup 2"),
        (2, "--neighborhood 0 --arch_warmup 2 --unrolled"),
    ],
)
def test_interrupted_search_goes_on_from_the_last_epoch(tmp_path, monkeypatch, dies_in, flags):
    """A run of 3 epochs that dies in one of them, right after or inside warm-up too, and is resumed without
    any other flag, equals an undisturbed one."""
    flags = [*flags.split(), "--epochs", 3]
    whole = run_search(tmp_path / "whole", *flags)
    evaluate, calls = search.evaluate, []

    def dies(*args):
        calls.append(1)
        if len(calls) == dies_in:
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "evaluate", dies)
        run_search(tmp_path / "parts", *flags)
    do(search, "", "--resume", tmp_path / "parts")
    check_same(whole, outcome(tmp_path / "parts"))
    assert len(whole.rows) == 3 and {"model", "weight_optimizer", "arch_batches"} < whole.checkpoint.keys()
    genotypes = [(tmp_path / name / "genotype.json").read_text() for name in ("whole", "parts")]
    assert genotypes[0] == genotypes[1]


@quick
def test_what_may_differ_on_resume(tmp_path):
    """The place of the data, the table and --quick, which change nothing in the search."""
    names = nasbench201_architectures()
    for name, value in (("one", 10), ("two", 20)):
        rows = [f"{arch},{value}" for arch in names]
        (tmp_path / f"{name}.csv").write_text("\n".join(["arch,cifar10_valid_200", *rows]) + "\n")
    steady = ["--learning_rate_min", 0.025]  # a schedule that does not depend on --epochs
    whole = run_search(tmp_path / "whole", "--epochs", 3, *steady)
    run_search(tmp_path / "run", "--epochs", 1, *steady)
    for epochs, table in ((2, "one"), (3, "two")):
        more = ["--quick", "--data", "elsewhere", "--bench", tmp_path / f"{table}.csv"]
        do(search, f"--epochs {epochs}", "--resume", tmp_path / "run", *more)
    run = outcome(tmp_path / "run")
    assert [row.pop("cifar10_valid_200") for row in run.rows] == ["", "10.0", "20.0"]
    assert run.rows == whole.rows and same(run.checkpoint["model"], whole.checkpoint["model"])


@pytest.mark.usefixtures("few_shapes")
def test_a_finished_search_is_complete(tmp_path, monkeypatch, capsys):
    """Resuming it measures nothing and changes no result; with more epochs it goes on."""
    run_search(tmp_path / "run", "--epochs", 1)
    before, calls = tree(tmp_path / "run"), []
    measure = search.sharpness_and_picture
    monkeypatch.setattr(search, "sharpness_and_picture", lambda *args: calls.append(1) or measure(*args))
    capsys.readouterr()
    do(search, "", "--resume", tmp_path / "run")
    assert (
        f"{tmp_path / 'run'} is complete; a larger --epochs goes on" in capsys.readouterr().out and not calls
    )
    after = tree(tmp_path / "run")
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"log.txt", "args.json"} and before.keys() == after.keys()
    do(search, "--epochs 2", "--resume", tmp_path / "run")
    assert calls == [1] and outcome(tmp_path / "run").result["metrics"]["epoch"] == 2


@pytest.mark.usefixtures("few_shapes")
def test_processes_part_without_their_steps(tmp_path, monkeypatch):
    """On several GPUs these are CUDA graphs with calls of NCCL, whose end waits until they are gone."""
    found, evaluate = [], search.evaluate

    def count(*args):
        functions = [x for x in gc.get_objects() if type(x) is types.FunctionType]
        found.append(sum(f.__qualname__ == "search.<locals>.<lambda>" for f in functions))
        return evaluate(*args) if args else None

    monkeypatch.setattr(search, "evaluate", count)
    monkeypatch.setattr(utils, "leave_processes", count)
    run_search(tmp_path / "run", "--epochs", 1)
    assert found == [3, 0]  # first and second order, and the weights'; none


@pytest.mark.usefixtures("few_shapes")
def test_a_search_that_was_stopped_after_its_last_epoch_is_not_complete(tmp_path, monkeypatch):
    """Neither by the result of fewer epochs, nor by what visualize.py adds."""
    run_search(tmp_path / "run", "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(search, "sharpness_and_picture", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            do(search, "--epochs 2", "--resume", tmp_path / "run")
    do(visualize, "sharpness --images 16", tmp_path / "run", "--out", tmp_path / "sharpness.png")
    do(search, "", "--resume", tmp_path / "run")
    result = outcome(tmp_path / "run").result
    assert result["metrics"]["epoch"] == 2 and result["sharpness"]["images"] == 64


@quick
def test_which_mixture_trains_the_weights(tmp_path):
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
        "cutout": ["--neighborhood", 2, "--cutout"],
    }.items():
        models[name] = run_search(tmp_path / name, *still, *flags).checkpoint["model"]
    for name in ("darts, neighbors", "center", "second order"):
        assert same(models["darts"], models[name]), name
    for name in ("neighbors", "cutout"):
        assert not same(models["darts"], models[name]), name


@pytest.mark.usefixtures("few_shapes")
def test_neighbors_that_share_statistics(tmp_path, monkeypatch):
    """A search whose neighbors all are the center is DARTS where batch norm takes them for one batch, and is
    not where each has its own statistics; the sharpness in the end is that of each neighbor for itself."""
    alpha = {}
    for norm in ("darts", "shared", "own"):
        flags = ["--neighborhood", 0] if norm == "darts" else ["--neighborhood", 1, "--neighbor_norm", norm]
        run = run_search(tmp_path / norm, *flags, "--batch_size", 160, "--epochs", 1)
        alpha[norm] = run.checkpoint["trajectory"]["alpha"]
        monkeypatch.setattr(
            search, "sample_shifts", lambda edges, ops, radius, n, g: torch.zeros(n, edges).long()
        )
    moved = (alpha["darts"][1] - alpha["darts"][0]).norm()
    assert (alpha["shared"] - alpha["darts"]).norm() < 0.05 * moved < (alpha["own"] - alpha["darts"]).norm()
    run = str(tmp_path / "shared")
    where = Namespace(device="cpu", data=None, images=search.SHARPNESS_IMAGES)
    again = visualize.sharpness(*visualize.load_supernet(visualize.load_run(run), where), "roll")
    assert outcome(run).result["sharpness"] == again


@quick
def test_warm_up_is_weight_steps_alone(tmp_path):
    """Until --arch_warmup epochs are over alpha rests where it started, and the weights are trained as they
    are beside an alpha at rest; then the architecture steps are the first of their generators."""
    flags = ["--neighborhood", 1, "--weight_step", "center"]
    warm, rows, _ = run_search(tmp_path / "warm", *flags, "--epochs", 3, "--arch_warmup", 2)
    alpha = warm["trajectory"]["alpha"]
    assert torch.equal(alpha[1], alpha[0]) and torch.equal(alpha[2], alpha[0])
    assert not torch.equal(alpha[3], alpha[0])
    assert [row["neighborhood_loss"] for row in rows[:2]] == ["nan", "nan"]
    assert float(rows[2]["neighborhood_loss"]) > 0
    still = run_search(tmp_path / "still", *flags, "--epochs", 3, "--arch_learning_rate", 0)
    assert same(warm["weight_batches"], still.checkpoint["weight_batches"])
    columns = "weight_loss weight_accuracy arch_loss arch_accuracy genotype".split()
    for one, other in zip(rows[:2], still.rows[:2], strict=True):
        assert [one[name] for name in columns] == [other[name] for name in columns]
    first = run_search(tmp_path / "one", *flags, "--epochs", 1)
    for name in ("arch_batches", "neighbors"):
        assert same(warm[name], first.checkpoint[name]), name


@pytest.mark.usefixtures("few_shapes")
def test_what_a_run_writes(tmp_path):
    folder = tmp_path / "a run"
    assert search.parse_args(["--quick", "--space", "darts"]).layers == 3
    more = "--quick", "--learning_rate", 0.025  # given flags come before those of --quick
    _, rows, result = run_search(folder, "--epochs", 2, "--data", "my data", *more)
    names = "args.json cell.csv cell.png checkpoint.pt genotype.json log.txt metrics.csv result.json"
    assert sorted(os.listdir(folder)) == names.split()
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0 <= float(rows[1]["arch_accuracy"]) <= 100 and float(rows[0]["learning_rate"]) == 0.025
    arch = parse_architecture(str(folder))
    assert rows[-1]["genotype"] == format_architecture(arch)
    assert int(rows[-1]["skip_connects"]) == rows[-1]["genotype"].count("skip_connect")
    assert result["sharpness"]["images"] == search.SHARPNESS_IMAGES
    log = (folder / "log.txt").read_text()
    assert format_architecture(arch) in log
    assert json.loads((folder / "args.json").read_text())["neighborhood"] == 1
    # The command that it prints trains the cell on the same images, whatever the folders are called.
    [command] = [line.partition("train it with: ")[2] for line in log.splitlines() if "train it with" in line]
    python, script, *words = shlex.split(command)
    args = train.parse_args(words)
    assert (python, script, args.arch) == ("python", "train.py", format_architecture(arch))
    assert (args.dataset, args.data, args.image_size) == ("shapes", "my data", 8)


@pytest.mark.usefixtures("few_shapes")
@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_search_that_has_no_memory_for_the_sharpness_is_complete(tmp_path, monkeypatch, error):
    def fails(*args):
        raise error

    monkeypatch.setattr(visualize, "sharpness", fails)
    folder = tmp_path / "a run"
    run = run_search(folder, "--epochs", 1)
    assert (folder / "cell.png").exists() and run.result["sharpness"] is None
    text = f"out of memory: python visualize.py sharpness '{folder}' --images 16"
    assert text in (folder / "log.txt").read_text()


@quick
@pytest.mark.parametrize("warm_up", [0, 8])
def test_loss_that_is_not_finite_stops_the_run(tmp_path, refused, warm_up):
    flags = f"{SEARCH} --arch_warmup {warm_up} --learning_rate 100 --weight_decay 1 --epochs 40"
    message = refused(search, flags, "--save", tmp_path / "run", status=1)
    assert "not finite" in message and "epoch" in message and "learning rate" in message
    assert message.endswith(f"{Path('run', 'checkpoint.pt')}\n")
    model = outcome(tmp_path / "run").checkpoint["model"]
    assert all(value.isfinite().all() for value in model.values())


@quick
@pytest.mark.parametrize("space,layers,radius", [("nasbench201", 1, 0), ("darts", 3, 1)])
def test_autocast_is_close_to_float32(tmp_path, monkeypatch, space, layers, radius):
    draw = utils.draw_shapes  # bfloat16 is slow on a CPU
    monkeypatch.setattr(utils, "draw_shapes", lambda n, size, seed: draw(n // 10, size, seed))
    flags = ["--space", space, "--layers", layers, "--neighborhood", radius, "--epochs", 1]
    flags += ["--batch_size", 48, "--learning_rate", 1e-3, "--amp"]
    plain, low = (run_search(tmp_path / amp, *flags, amp).rows[0] for amp in ("none", "bf16"))
    for name in ("weight_loss", "neighborhood_loss", "arch_loss"):
        assert float(low[name]) == pytest.approx(float(plain[name]), rel=0.01)
    assert plain["weight_loss"] != low["weight_loss"]
