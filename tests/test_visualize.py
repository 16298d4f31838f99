"""Pictures: the numbers behind each against a plain computation, the drawing of cells, files, bad input."""

import copy
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NB201, ROOT, SEARCH, draw_few_shapes, read
from conftest import do as run_script
from matplotlib.backends.backend_agg import FigureCanvasAgg

import search
import train
import utils
import visualize
from genotypes import NAMED, SPACES, operations, parse_architecture
from genotypes import random_architecture as random_cell
from model_search import SUPERNETS, running_statistics_kept
from neighborhood import PERTURB, RELAX


def do(*words):
    run_script(visualize, "", *words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of searches of three epochs, NA-DARTS with two seeds and DARTS, and of a training of two."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    draw_few_shapes(patch, 2)
    flags = f"{SEARCH} --perturb move --arch_learning_rate 0.1 --epochs 3"
    for name, more in {"na-0": "", "na-1": "--seed 1", "darts": "--neighborhood 0"}.items():
        run_script(search, f"{flags} {more}", "--save", folder / name)
    words = "--dataset shapes --init_channels 2 --layers 1 --image_size 8 --batch_size 1000 --epochs 2"
    run_script(train, f"{words} --seeds 0 1 --device cpu --arch {NB201}", "--save", folder / "train")
    yield folder
    patch.undo()


def supernet(space, batch=10):
    torch.manual_seed(0)
    model = SUPERNETS[space](2, 3 if space == "darts" else 1, 4).double()
    model.alpha.data.normal_()
    x, y = torch.randn(batch, 3, 8, 8, dtype=torch.float64), torch.randint(4, (batch,))
    return model, [(x[: batch // 2], y[: batch // 2]), (x[batch // 2 :], y[batch // 2 :])]


def overlapping(figure):
    """What overlaps in a picture of cells: labels, boxes of nodes, lines out of place, the border."""
    renderer, found = FigureCanvasAgg(figure).get_renderer(), []
    [axes] = figure.axes
    labels = {text.get_gid(): text.get_window_extent(renderer) for text in axes.texts if text.get_gid()}
    names = [text.get_window_extent(renderer) for text in axes.texts if not text.get_gid()]
    boxes = [box.get_window_extent(renderer) for box in axes.patches]
    for things in ([*labels.values(), *names], [*labels.values(), *boxes]):
        found += [(a, b) for i, a in enumerate(things) for b in things[:i] if a.overlaps(b)]
    assert sum(name.overlaps(box) for name in names for box in boxes) == len(boxes)
    for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        points = [np.linspace(a, b, 50) for a, b in zip(points, points[1:], strict=False)]
        if points:  # a line, and not the head of an arrow, touches its own label alone, and enters no box
            points = np.concatenate(points)
            touched = {gid for gid, label in labels.items() if label.count_contains(points)}
            found += touched ^ ({line.get_gid()} & labels.keys())
            found += [box for box in boxes if box.padded(-2).count_contains(points)]
    right, top = figure.bbox.max
    found += [a for a in [*labels.values(), *names, *boxes] if not 0 < a.x0 < a.x1 < right or a.y1 > top]
    return found


def test_nothing_overlaps_in_cells():
    g = torch.Generator().manual_seed(7)
    cells = [random_cell(SPACES[space], g) for space in ["darts"] * 9 + ["nasbench201"] * 2]
    for arch in [*NAMED.values(), NB201, *cells]:
        assert not overlapping(visualize.draw_cell(arch)), arch
    figure = visualize.draw_cell(NAMED["DARTS_V2"])
    for text in figure.axes[0].texts:
        text.set_fontsize(24)
    assert len(overlapping(figure)) > 5


@pytest.mark.parametrize("suffix,start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_cell_is_drawn_whole(tmp_path, suffix, start):
    """Each edge is in the CSV file, and each operation stands in the picture as often as in the cell."""
    for arch in [*NAMED, NB201]:
        do("cell", arch, "--out", tmp_path / f"cell.{suffix}")
        assert (tmp_path / f"cell.{suffix}").read_bytes().startswith(start)
        rows, arch = read(tmp_path / "cell.csv"), parse_architecture(arch)
        labels = [text.get_text() for text in visualize.draw_cell(arch).axes[0].texts]
        drawn = [row["operation"] for row in rows if row["operation"]]
        assert drawn == operations(arch) and all(labels.count(op) == drawn.count(op) for op in set(drawn))
        if arch != NB201:
            pairs = [(row["operation"], int(row["source"])) for row in rows if row["cell"] == "reduce"]
            assert pairs == [*arch.reduce, *(("", source) for source in arch.reduce_concat)]


def test_pictures_of_no_run_have_a_folder_and_need_no_display(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    command = [sys.executable, os.path.join(ROOT, "visualize.py"), "cell", NB201]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "pictures-out/cell.png\n", done.stderr
    assert os.listdir(tmp_path) == ["pictures-out"]
    assert sorted(os.listdir(tmp_path / "pictures-out")) == ["cell.csv", "cell.png"]


def kept_alpha(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["trajectory"]["alpha"]


@pytest.mark.parametrize("order", [1, -1])
def test_runs_in_groups(order):
    """A run that is older than a flag is a group of its own; networks of one name differ by their cells."""
    flags = {"neighborhood": 1, "unrolled": False, "seed": 0}
    groups = visualize.grouped([{"args": flags}, {"args": {**flags, "neighbor_norm": "own"}}][::order])
    assert [len(members) for members in groups.values()] == [1, 1]
    assert all("neighbor_norm" in label for label in groups)
    runs = [dict(zip(("name", "arch", "seed"), flags, strict=True)) for flags in ("ax0", "ax1", "ay0", "bz0")]
    groups = visualize.grouped([{"args": args} for args in runs[::order]])
    assert [len(members) for members in groups.values()] == [2, 1, 1][::order]
    assert set(groups) == {"a, arch x", "a, arch y", "b, arch z"}
    for words, name in {"--neighborhood 0": "DARTS", "--unrolled": "NA-DARTS, second order"}.items():
        assert visualize.method_of(vars(search.parse_args(words.split()))) == name


def check_curves(rows, metrics):
    for row in rows:
        values = [float(run[int(row["epoch"]) - 1][row["quantity"]]) for run in metrics]
        assert float(row["mean"]) == pytest.approx(np.mean(values)) and int(row["runs"]) == len(values)
        if row["std"] or len(values) > 1:
            assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-5, abs=1e-7)


def test_curves_of_searches(runs, tmp_path):
    do("curves", runs / "na-0", runs / "na-1", runs / "darts", "--out", tmp_path / "curves.svg")
    rows, left = read(tmp_path / "curves.csv"), 2 * 8 * 3
    groups = {"NA-DARTS": ["na-0", "na-1"], "DARTS": ["darts"]}
    for group, names in groups.items():
        metrics = [read(runs / name / "metrics.csv") for name in names]
        for name, run in zip(names, metrics, strict=True):
            p = kept_alpha(runs / name)[1:].double().softmax(-1)
            for row, q in zip(run, p, strict=True):
                row["entropy"] = torch.distributions.Categorical(q).entropy().mean().item()
        check_curves([row for row in rows if row["group"] == group], metrics)
        left -= sum(row["group"] == group for row in rows)
    assert left == 0 and len(rows) == len({(r["group"], r["quantity"], r["epoch"]) for r in rows})


def test_curves_of_a_training(runs):
    """A folder of several seeds stands for the runs in it."""
    do("curves", runs / "train")
    rows = read(runs / "train" / "curves.csv")
    check_curves(rows, [read(runs / "train" / f"seed-{seed}" / "metrics.csv") for seed in (0, 1)])
    drawn = {"train_loss", "test_loss", "train_top1", "test_top1", "learning_rate"}
    assert {row["quantity"] for row in rows} == drawn and len(rows) == 10


def test_curves_of_a_run_that_hardly_moved_have_short_read(runs, monkeypatch):
    run = visualize.load_run(str(runs / "na-0"))
    for i, row in enumerate(run["rows"]):
        row.update(weight_loss=2.3025851 + 1e-6 * i, arch_loss=2.3025851, neighborhood_loss=2.3025852)
    monkeypatch.setattr(visualize, "load_run", lambda *words, **options: run)
    figure, _ = visualize.curves(visualize.parse_args(["curves", str(runs / "na-0")]))
    FigureCanvasAgg(figure).draw()
    assert all(len(text.get_text()) <= 5 for axes in figure.axes[:5] for text in axes.get_yticklabels())


def test_mixture(runs, tmp_path):
    do("mixture", runs / "na-0", "--epochs", 0, 3, "--out", tmp_path / "mixture.pdf")
    rows, p = read(tmp_path / "mixture.csv"), kept_alpha(runs / "na-0").softmax(-1).flatten().tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(p, rel=1e-5)
    assert [rows[k]["edge"] for k in (0, 5, 10)] == ["cell 0-1", "cell 0-2", "cell 1-2"]
    figure, _ = visualize.mixture(visualize.parse_args(["mixture", str(runs / "na-0")]))
    assert figure.axes[0].images[0].get_clim() == (0, pytest.approx(max(0.4, *p)))


def plain_loss(model, alpha, batches):
    """The mean loss of the images, with each batch's own statistics."""
    with running_statistics_kept(model):
        p = alpha.softmax(-1)
        return torch.cat([F.cross_entropy(model(x, p), y, reduction="none") for x, y in batches]).mean()


@pytest.mark.parametrize("perturb", PERTURB)
def test_sharpness(perturb):
    """Against a loop over edges and operations; and the model is as it was, to the bit."""
    model, batches = supernet("nasbench201")
    before = copy.deepcopy(model.state_dict())
    row = visualize.sharpness(model, batches, perturb)
    p = model.mixture().detach()
    losses = [plain_loss(model, p.log(), batches).item()]
    for e, shift in [(e, shift) for e in range(6) for shift in range(1, 5)]:
        q = p.clone()
        q[0, e] = PERTURB[perturb](p[0, e], torch.tensor(shift))
        losses.append(plain_loss(model, q.log().clamp(min=-1e9), batches).item())
    assert "eigenvalue none;" in visualize.sharpness_text(row | {"hessian_eigenvalue": None})
    assert row["members"] == 25 and row["images"] == 10 and row["perturb"] == perturb
    expected = losses[0], np.mean(losses), max(losses), np.std(losses)
    assert [row[name] for name in visualize.NUMBERS[:4]] == pytest.approx(expected, rel=1e-9)
    if perturb == "roll":  # the Hessian has no neighbors
        product = visualize.hessian_product(model, batches)
        values = torch.linalg.eigvalsh(torch.stack([product(v) for v in torch.eye(30)]))
        assert row["hessian_eigenvalue"] == pytest.approx(max(values.tolist(), key=abs), rel=1e-3)
        assert visualize.sharpness(model, batches, "ascent") == row  # whose members these are
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_sharpness_is_that_of_what_a_relaxation_settles_on():
    model, batches = supernet("nasbench201")
    for relax, (_, settled, _) in RELAX.items():
        row = visualize.sharpness(model, batches, "roll", relax)
        loss = plain_loss(model, settled(model.alpha).log().clamp(min=-1e9), batches).item()
        assert row["center_loss"] == pytest.approx(loss, rel=1e-9)
        assert (row["hessian_eigenvalue"] is None) == (relax == "gumbel")


@pytest.mark.parametrize("parts,space", [(1, "nasbench201"), (2, "nasbench201"), (2, "darts")])
def test_hessian(parts, space):
    """Against a difference of gradients. With one batch, whose graph is kept, and with two, whose are not."""
    model, batches = supernet(space, batch=6)
    v = torch.randn(model.alpha.numel(), dtype=torch.float64, generator=utils.generator(2, 0))

    def gradient(step):
        alpha = (model.alpha + step * v.view_as(model.alpha)).detach().requires_grad_()
        return torch.autograd.grad(plain_loss(model, alpha, batches[:parts]), alpha)[0].flatten()

    expected = (gradient(1e-6) - gradient(-1e-6)) / 2e-6
    product = visualize.hessian_product(model, batches[:parts])
    for _ in range(2):
        assert (product(v) - expected).norm() < 1e-4 * expected.norm() and expected.norm() > 1e-4


@pytest.mark.parametrize("values", [[3, 2.9, 1, 0, -1], [-5, 4.9, 1, 1, 1], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
def test_dominant_eigenpairs(values):
    values = torch.tensor(values, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=utils.generator(3, 0))).Q
    H = Q @ values.diag() @ Q.T
    found, vectors = visualize.dominant_eigenpairs(lambda v: H @ v, 5, 2)
    assert torch.allclose(found, values[:2], rtol=1e-3, atol=1e-9)
    assert torch.allclose(vectors @ vectors.T, torch.eye(2, dtype=torch.float64), atol=1e-9)
    assert (vectors @ H - found[:, None] * vectors).norm(dim=1).max() <= 1e-2 * abs(values[0]) + 1e-9


@pytest.mark.parametrize("floor,products", [(1e-4, 2), (0.0, 60)])
def test_a_hessian_that_is_nearly_0_takes_few_products(floor, products):
    """Rounding keeps the residual above any fraction of the value, as float32 does where alpha is decided."""
    g, calls = utils.generator(4, 0), []
    rounded = lambda v: calls.append(v) or 1e-9 * torch.randn(224, dtype=torch.float64, generator=g)
    found, _ = visualize.dominant_eigenpairs(rounded, 224, floor=floor)
    assert len(calls) == products and found.abs().item() < 1e-7
    assert visualize.dominant_eigenpairs(lambda v: v * math.nan, 5)[0].isnan().all()


def test_sharpness_of_a_run(runs, tmp_path, capsys):
    """A search ends with the row in result.json, and the command finds the same again and puts it there."""
    assert (runs / "na-0" / "cell.png").exists() and len(read(runs / "na-0" / "cell.csv")) == 6
    results = [runs / name / "result.json" for name in ("na-0", "darts")]
    before, first = (runs / "na-0" / "checkpoint.pt").read_bytes(), json.loads(results[0].read_text())
    assert first["sharpness"]["images"] == search.SHARPNESS_IMAGES
    assert first["sharpness"]["perturb"] == "move"
    do("sharpness", runs / "na-0", runs / "darts", "--out", tmp_path / "s.png", "--device", "cpu")
    assert json.loads(results[0].read_text()) == first
    assert json.loads(results[1].read_text())["sharpness"]["members"] == 25
    rows = read(tmp_path / "s.csv")
    losses = [float(row["loss"]) for row in rows[:25]]
    assert len(rows) == 50 and rows[0]["edge"] == "center" and f"{losses[0]:.4f}" in capsys.readouterr().out
    assert losses[0] == first["sharpness"]["center_loss"] and max(losses) == first["sharpness"]["max_loss"]
    assert (runs / "na-0" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("directions", ["hessian", "random"])
def test_landscape(runs, tmp_path, directions):
    """Every point of the grid against the supernet with that alpha in its place."""
    names = ["darts", "na-0"] if directions == "random" else ["na-0"]
    flags = ["--directions", directions, "--points", 4, "--images", 20, "--device", "cpu", "--seed", 3]
    do("landscape", *(runs / name for name in names), *flags, "--out", tmp_path / "landscape.png")
    rows, found = read(tmp_path / "landscape.csv"), []
    moved = [kept_alpha(runs / name)[-1] - kept_alpha(runs / name)[0] for name in names]
    extent = max((by - by.mean(-1, keepdim=True)).norm().item() for by in moved)
    assert len(rows) == 25 * len(names) and max(float(row["a"]) for row in rows) == pytest.approx(extent)
    args = visualize.parse_args(["landscape", "RUN", *map(str, flags)])
    for folder in [str(runs / name) for name in names]:
        model, batches = visualize.load_supernet(visualize.load_run(folder), args)
        found.append(visualize.directions(directions, model, batches, 3, "softmax")[0])
        assert torch.allclose(found[-1] @ found[-1].T, torch.eye(2, dtype=torch.float64), atol=1e-6)
        assert found[-1].view(2, 6, 5).sum(-1).abs().max() < 0.01  # a direction that the softmax does not see
        for row in [row for row in rows if row["run"] == folder]:
            by = float(row["a"]) * found[-1][0] + float(row["b"]) * found[-1][1]
            expected = plain_loss(model, model.alpha + by.view_as(model.alpha).float(), batches).item()
            assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(vectors, found[0]) for vectors in found)


BAD = [
    ("cell DARTS_V3 --out cell.png", "unknown architecture 'DARTS_V3'"),
    ("cell DARTS_V2 --out cell.jpg", "cell.jpg has no known ending: expected .png, .svg or .pdf"),
    ("cell DARTS_V2 --out no/such/place.png", "there is no folder no/such"),
    ("cell DARTS_V2 --out metrics.png", "metrics.png: its numbers would go to a file that a run writes"),
    ("cell DARTS_V3", "unknown architecture"),
    (f"curves {ROOT}", f"{ROOT} is not the folder of a run: name a folder that search.py or train.py wrote"),
    ("landscape RUN --points 2", "argument --points: 2 is out of range: it lies between 3 and 201"),
    ("landscape RUN --extent nan", "argument --extent: nan is out of range"),
    ("landscape RUN --seed -1", "argument --seed: -1 is out of range"),
    ("sharpness RUN --images 1", "argument --images: 1 is out of range"),
]


@pytest.mark.parametrize("words,message", BAD, ids=[words for words, _ in BAD])
def test_bad_words(refused, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(visualize, words) and not os.listdir()


def test_a_picture_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "folder.png").mkdir()
    error = refused(visualize, "cell DARTS_V2 --out", tmp_path / "folder.png")
    assert "folder.png cannot be written (Is a directory)" in error


def test_bad_runs(refused, runs, tmp_path):
    one = runs / "na-0"
    whole = torch.load(one / "checkpoint.pt", weights_only=True)
    still = {"alpha": whole["trajectory"]["alpha"][:1].repeat(4, 1, 1, 1)}
    images = dict(whole["arch_batches"], checksum=1)
    gumbel = dict(args=whole["args"] | {"relax": "gumbel"})
    changes = [("start", dict(epoch=0, rows=[])), ("still", dict(trajectory=still)), ("gumbel", gumbel)]
    for name, parts in [*changes, ("images", dict(arch_batches=images))]:
        os.makedirs(tmp_path / name)
        torch.save({**whole, **parts}, tmp_path / name / "checkpoint.pt")
    for words, message in [
        (("mixture", one, "--epochs", 9), "--epochs 9 is out of range"),
        (("curves", one, runs / "train"), "draw them apart"),
        (("mixture", runs / "train" / "seed-0"), "is not the folder of a gradient search"),
        (("curves", tmp_path / "start"), "has not done an epoch yet"),
        (("landscape", tmp_path / "still"), "alpha has not moved"),
        (("landscape", tmp_path / "gumbel"), "has no landscape over alpha"),
        (("sharpness", tmp_path / "images"), "its images are not those"),
    ]:
        assert message in refused(visualize, "", *words), words
