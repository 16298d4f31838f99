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
from conftest import NB201 as STRING
from conftest import ROOT, SEARCH, read

import search
import utils
import visualize
from genotypes import (
    NAMED,
    SPACES,
    format_architecture,
    nasbench201_architectures,
    parse_architecture,
    read_cell,
)
from model_search import SUPERNETS, running_statistics_kept
from neighborhood import PERTURB


def do(*words):
    visualize.main(visualize.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three searches of three epochs: NA-DARTS with two seeds, and DARTS."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in {
        "na-0": "--seed 0 --perturb move",
        "na-1": "--seed 1 --perturb move",
        "darts": "--seed 0 --neighborhood 0",
    }.items():
        words = [*SEARCH.split(), *flags.split(), "--arch_learning_rate", "0.1", "--epochs", "3"]
        search.main(search.parse_args([*words, "--save", str(folder / name)]))
    return folder


def supernet(space, dtype, batch=10, seed=0):
    torch.manual_seed(seed)
    model = SUPERNETS[space](2, 3 if space == "darts" else 1, 4).to(dtype)
    with torch.no_grad():
        model.alpha.normal_()
    x, y = torch.randn(batch, 3, 8, 8, dtype=dtype), torch.randint(4, (batch,))
    return model, [(x[: batch // 2], y[: batch // 2]), (x[batch // 2 :], y[batch // 2 :])]


def test_a_cell_is_drawn_whole(tmp_path):
    """Each edge is in the CSV file, and each operation stands in the picture as often as in the cell."""
    for arch in [*NAMED.values(), STRING]:
        visualize.save(visualize.draw_cell(arch), str(tmp_path / "cell.svg"), visualize.cell_rows(arch))
        rows = read(tmp_path / "cell.csv")
        labels = [t.get_text() for axes in visualize.draw_cell(arch).axes for t in axes.texts]
        drawn = [row["operation"] for row in rows if row["operation"]]
        assert drawn == visualize.operations(arch)
        assert all(labels.count(op) == drawn.count(op) for op in set(drawn))
        if arch != STRING:
            pairs = [(row["operation"], int(row["source"])) for row in rows if row["cell"] == "reduce"]
            assert pairs[: len(arch.reduce)] == list(arch.reduce)
            assert [source for op, source in pairs if not op] == list(arch.reduce_concat)


@pytest.mark.parametrize("suffix,start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats(tmp_path, suffix, start):
    do("cell", "DARTS_V2", "--out", tmp_path / f"cell.{suffix}")
    assert (tmp_path / f"cell.{suffix}").read_bytes().startswith(start)
    assert len(read(tmp_path / "cell.csv")) == 24


def test_nothing_needs_a_display(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "visualize.py"), "cell", STRING],
        cwd=tmp_path, env={**environment, "MPLBACKEND": "TkAgg"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "cell.png\n", done.stderr
    assert sorted(os.listdir(tmp_path)) == ["cell.csv", "cell.png"]


def kept_alpha(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["trajectory"]["alpha"]


def test_alpha_of_every_epoch_is_kept(runs):
    checkpoint = torch.load(runs / "na-0" / "checkpoint.pt", weights_only=True)
    alphas = checkpoint["trajectory"]["alpha"]
    assert alphas.shape == (4, 1, 6, 5) and torch.equal(alphas[-1], checkpoint["model"]["alpha"])
    for row, alpha in zip(checkpoint["rows"], alphas[1:], strict=True):
        assert row["genotype"] == read_cell(SPACES["nasbench201"], alpha.softmax(-1))
    torch.manual_seed(0)  # the seed of the run
    assert torch.equal(alphas[0], SUPERNETS["nasbench201"](2, 1, 10).alpha)


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_lacks_a_flag_is_a_group_of_its_own(order):
    """As one does that is older than the flag, whichever of the two comes first."""
    flags = {"algo": "darts", "neighborhood": 1, "unrolled": False, "seed": 0}
    runs = [{"args": flags}, {"args": {**flags, "neighbor_norm": "own"}}][::order]
    groups = visualize.grouped(runs)
    assert [len(members) for members in groups.values()] == [1, 1]
    assert all("neighbor_norm" in label for label in groups)


def test_entropy_of_a_choice_and_of_none():
    p = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert torch.allclose(visualize.entropy(p), torch.tensor([0.0, math.log(3)]))


def test_mixture(runs, tmp_path):
    from PIL import Image

    do("mixture", runs / "na-0", "--epochs", 0, 3, "--out", tmp_path / "mixture.pdf")
    rows, alphas = read(tmp_path / "mixture.csv"), kept_alpha(runs / "na-0")
    assert len(rows) == 4 * 6 * 5
    expected = (alphas.exp() / alphas.exp().sum(-1, keepdim=True)).flatten().tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [rows[k]["edge"] for k in (0, 5, 10)] == ["cell 0-1", "cell 0-2", "cell 1-2"]
    assert [row["operation"] for row in rows[:5]] == list(SPACES["nasbench201"].ops)
    with Image.open(tmp_path / "mixture.gif") as film:
        assert film.format == "GIF" and film.n_frames == 4
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


def plain_loss(model, alpha, batches):
    """The loss with alpha in the supernet's own place, each image's loss added up."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        model.alpha.copy_(alpha)
        losses = [F.cross_entropy(model(x, model.mixture()), y, reduction="none") for x, y in batches]
    return torch.cat(losses).double().mean().item()


@pytest.mark.parametrize("perturb", PERTURB)
def test_sharpness(perturb):
    """Against a loop over edges and operations; and the model is as it was, to the bit."""
    model, batches = supernet("nasbench201", torch.float64)
    before = copy.deepcopy(model.state_dict())
    row = visualize.sharpness(model, batches, perturb)
    p = model.mixture().detach()
    mixtures = [p]
    for e in range(6):
        for shift in range(1, 5):
            q = p.clone()
            q[0, e] = PERTURB[perturb](p[0, e], torch.tensor(shift))
            mixtures.append(q)
    losses = [plain_loss(model, q.log().clamp(min=-1e9), batches) for q in mixtures]
    assert row["members"] == 25 and row["images"] == 10 and row["perturb"] == perturb
    expected = (losses[0], np.mean(losses), max(losses), np.std(losses))
    for name, value in zip(("center_loss", "mean_loss", "max_loss", "loss_std"), expected, strict=True):
        assert row[name] == pytest.approx(value, rel=1e-9), name
    if perturb == "roll":  # the Hessian has no neighbors
        assert row["hessian_eigenvalue"] == pytest.approx(explicit_hessian(model, batches)[0][0], rel=1e-3)
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def explicit_hessian(model, batches):
    """Eigenvalues by falling magnitude, and eigenvectors as rows, of the whole Hessian over alpha."""

    def loss(alpha):
        return visualize.mixture_loss(model, alpha.view_as(model.alpha).softmax(-1), batches)

    with running_statistics_kept(model):
        H = torch.autograd.functional.hessian(loss, model.alpha.detach().flatten()).double()
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    order = values.abs().argsort(descending=True)
    return values[order].tolist(), vectors.T[order]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("parts", [1, 2])
def test_hessian(dtype, parts):
    """Of a supernet with one batch, whose graph is kept, and with two, whose graphs are not."""
    model, batches = supernet("nasbench201", dtype, batch=6)
    batches = batches[:parts]
    expected, expected_vectors = explicit_hessian(model, batches)
    with running_statistics_kept(model):
        product = visualize.hessian_product(model, batches)
        values, vectors = visualize.dominant_eigenpairs(product, model.alpha.numel(), 2)
    assert values.tolist() == pytest.approx(expected[:2], rel=1e-3) and abs(expected[0]) > 1e-3
    assert torch.allclose(vectors @ vectors.T, torch.eye(2, dtype=torch.float64), atol=1e-6)
    assert abs((vectors[0] @ expected_vectors[0]).item()) > 0.99


@pytest.mark.parametrize("values", [[3, 2.9, 1, 0, -1], [-5, 4.9, 1, 1, 1], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
def test_dominant_eigenpairs(values):
    values = torch.tensor(values, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=utils.generator(3, 0))).Q
    H = Q @ values.diag() @ Q.T
    found, vectors = visualize.dominant_eigenpairs(lambda v: H @ v, 5, 2)
    assert torch.allclose(found, values[:2], rtol=1e-3, atol=1e-9)
    assert torch.allclose(vectors @ H, found[:, None] * vectors, atol=1e-2)


def test_a_hessian_that_is_not_finite():
    row = dict.fromkeys(("center_loss", "mean_loss", "max_loss", "loss_std"), 1.0)
    found, _ = visualize.dominant_eigenpairs(lambda v: v * math.nan, 5)
    assert found.isnan().all()
    assert "not finite" in visualize.sharpness_text(row | dict(hessian_eigenvalue=None, members=25, images=1))


def test_sharpness_of_a_run(runs, tmp_path, capsys):
    """A search ends with the row in result.json, and the command finds the same again and puts it there."""
    first = json.loads((runs / "na-0" / "result.json").read_text())
    assert first["algo"] == "NA-DARTS" and first["arch"] == first["metrics"]["genotype"]
    assert first["sharpness"]["images"] == 64 and first["sharpness"]["perturb"] == "move"
    before = (runs / "na-0" / "checkpoint.pt").read_bytes()
    do("sharpness", runs / "na-0", runs / "darts", "--out", tmp_path / "s.png", "--device", "cpu")
    assert json.loads((runs / "na-0" / "result.json").read_text()) == first
    other = json.loads((runs / "darts" / "result.json").read_text())
    assert other["sharpness"]["members"] == 25 and other["arch"]
    rows = read(tmp_path / "s.csv")
    assert len(rows) == 50 and rows[0]["edge"] == "center"
    losses = [float(row["loss"]) for row in rows[:25]]
    assert losses[0] == first["sharpness"]["center_loss"] and max(losses) == first["sharpness"]["max_loss"]
    assert np.mean(losses) == pytest.approx(first["sharpness"]["mean_loss"])
    assert f"{losses[0]:.4f}" in capsys.readouterr().out
    assert (runs / "na-0" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("directions", visualize.DIRECTIONS)
def test_landscape(runs, tmp_path, directions):
    """Every point of the grid against the supernet with that alpha in its place."""
    names = ["darts", "na-0"] if directions == "random" else ["na-0"]
    flags = ["--directions", directions, "--points", 3, "--images", 20, "--device", "cpu"]
    do("landscape", *(runs / name for name in names), *flags, "--out", tmp_path / "landscape.png")
    assert (tmp_path / "landscape.png").stat().st_size > 10_000
    rows, all_vectors = read(tmp_path / "landscape.csv"), []
    assert len(rows) == 9 * len(names)
    ways = [(kept_alpha(runs / name) - kept_alpha(runs / name).mean(-1, keepdim=True)) for name in names]
    extent = max((way[-1] - way[0]).norm().item() for way in ways)
    args = visualize.parse_args(["landscape", "RUN", *map(str, flags)])
    for name in names:
        run = visualize.load_run(str(runs / name))
        model, batches = visualize.load_supernet(str(runs / name), run, args)
        with running_statistics_kept(model):
            vectors, _ = visualize.DIRECTIONS[directions](run, model, batches, args)
        all_vectors.append(vectors)
        assert torch.allclose(vectors @ vectors.T, torch.eye(2, dtype=torch.float64), atol=1e-6)
        assert sum(len(y) for _, y in batches) == 20
        for row in [row for row in rows if row["run"] == str(runs / name)]:
            a, b = float(row["a"]), float(row["b"])
            assert abs(a) in (0, pytest.approx(extent)) and abs(b) in (0, pytest.approx(extent))
            alpha = model.alpha + (a * vectors[0] + b * vectors[1]).view_as(model.alpha)
            assert float(row["loss"]) == pytest.approx(plain_loss(model, alpha, batches), rel=1e-5)
    assert all(torch.equal(vectors, all_vectors[0]) for vectors in all_vectors)


def test_random_directions_are_seen_by_the_softmax():
    model, _ = supernet("nasbench201", torch.float32)
    args = visualize.parse_args(["landscape", "RUN", "--seed", "3"])
    vectors, _ = visualize.random_directions(None, model, None, args)
    assert vectors.view(2, 6, 5).sum(-1).abs().max() < 1e-12


def test_a_search_draws_its_cell(runs):
    for name in ("na-0", "darts"):
        assert (runs / name / "cell.png").read_bytes().startswith(b"\x89PNG")
        arch = parse_architecture(str(runs / name))
        assert [row["operation"] for row in read(runs / name / "cell.csv")] == visualize.operations(arch)


def test_a_search_does_without_matplotlib(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    flags = [*SEARCH.split(), "--epochs", "1", "--save", str(tmp_path / "run")]
    search.main(search.parse_args(flags))
    names = os.listdir(tmp_path / "run")
    assert "cell.png" not in names and "no cell.png" in (tmp_path / "run" / "log.txt").read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sharpness"]["images"] == search.SHARPNESS_IMAGES
    assert result["arch"] == format_architecture(parse_architecture(str(tmp_path / "run")))
    assert "pictures need matplotlib" in refused(
        visualize, "", "cell", STRING, "--out", tmp_path / "cell.png"
    )


def test_a_search_does_without_this_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "visualize", None)
    flags = [*SEARCH.split(), "--epochs", "1", "--save", str(tmp_path / "run")]
    search.main(search.parse_args(flags))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sharpness"] is None and result["metrics"]["epoch"] == 1


BAD = [
    ("", "the following arguments are required: COMMAND"),
    ("cells DARTS_V2", "invalid choice: 'cells'"),
    ("cell", "the following arguments are required: ARCH"),
    ("cell DARTS_V3", "unknown architecture 'DARTS_V3'"),
    ("cell |none~0|", "is not a NAS-Bench-201 architecture"),
    ("cell DARTS_V2 --out cell.jpg", "cell.jpg has no known ending: expected .png, .svg, .pdf"),
    ("cell DARTS_V2 --out no/such/place.png", "there is no folder no/such"),
    ("curves no-such-run", "no-such-run is not the folder of a gradient search"),
    ("landscape", "landscape takes runs, or --bench FILE and --arch ARCH"),
    ("landscape RUN --bench T.csv", "landscape takes runs, or --bench"),
    ("landscape RUN --points 10", "--points 10 is out of range: an odd number"),
    ("landscape RUN --extent -1", "--extent -1.0 is out of range"),
    ("landscape RUN --directions pca", "invalid choice: 'pca'"),
    ("landscape --bench T.csv --arch x --radius 7", "--radius 7 is out of range"),
    ("landscape --bench no-such-table.csv --arch x", "no table could be read from no-such-table.csv"),
    ("sharpness RUN --images 1", "--images 1 is out of range"),
]


@pytest.mark.parametrize("words,message", BAD, ids=[words for words, _ in BAD])
def test_bad_words(refused, words, message):
    assert message in refused(visualize, words)


def test_bad_tables(refused, tmp_path):
    (tmp_path / "t.csv").write_text(f"arch,cifar10_valid_200\n{STRING},90\n")
    flags = ["landscape", "--bench", tmp_path / "t.csv", "--out", tmp_path / "t.png", "--arch"]
    assert "is no column of" in refused(visualize, "", *flags, STRING, "--bench_metric", "cifar10_test_200")
    assert "of the space darts, not of nasbench201" in refused(visualize, "", *flags, "DARTS_V2")
    missing = nasbench201_architectures()[0]
    assert f"has no cifar10_valid_200 of {missing}" in refused(visualize, "", *flags, missing)
