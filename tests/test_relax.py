"""Relaxations: samples against their distributions, gradients against those of GDAS and DrNAS written out,
and A2M's step up the loss."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SEARCH, do, read
from plain import PLAIN, copy_weights

import search
import utils
from genotypes import SPACES
from model_search import SUPERNETS
from neighborhood import RELAX, distance, uphill

N = 20_000
some_alpha = lambda *shape, seed=0: torch.randn(*shape, generator=utils.generator(seed, 0)).double()


@pytest.mark.parametrize("t", [0.0, 0.9])
def test_gumbel_samples_have_the_frequencies_of_softmax(t):
    alpha = some_alpha(2, 3, 4)
    q = RELAX["gumbel"].draw(alpha, N, utils.generator(0, 0), t)
    assert torch.allclose(q, F.one_hot(q.argmax(-1), 4).double(), atol=1e-12)
    p = alpha.softmax(-1)
    assert ((q.mean(0) - p).abs() < 5 * (p * (1 - p) / N).sqrt()).all()
    both = (q[:, 0, 0, :, None] * q[:, 1, 2, None, :]).mean(0)  # edges are drawn independently
    p = p[0, 0, :, None] * p[1, 2]
    assert ((both - p).abs() < 5 * (p * (1 - p) / N).sqrt()).all()


@pytest.mark.parametrize("t,temperature", [(0.0, 10.0), (0.5, 5.05), (1.0, 0.1)])
def test_the_straight_through_gradient_is_that_of_the_soft_sample(t, temperature):
    """So it is not that of the expected loss: it is biased."""
    alpha, by_q = some_alpha(2, 3, 4).requires_grad_(), some_alpha(5, 2, 3, 4, seed=1)
    q = RELAX["gumbel"].draw(alpha, 5, utils.generator(0, 0), t)
    noise = -(-torch.rand(5, 2, 3, 4, generator=utils.generator(0, 0)).log()).log().double()
    soft = ((alpha.softmax(-1).log() + noise) / temperature).softmax(-1)
    assert torch.equal(q.argmax(-1), soft.argmax(-1))
    got, expected = (torch.autograd.grad((by_q * value).sum(), alpha)[0] for value in (q, soft))
    assert torch.allclose(got, expected, rtol=1e-6) and expected.abs().max() > 1e-3


def test_what_softmax_and_gumbel_settle_on():
    alpha = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.9]])
    assert torch.equal(RELAX["gumbel"].settled(alpha), torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    assert torch.equal(RELAX["softmax"].settled(alpha), alpha.softmax(-1))


def test_dirichlet_samples_have_its_moments():
    alpha = some_alpha(2, 3, 4)
    q = RELAX["dirichlet"].draw(alpha, N, utils.generator(0, 0), 0.0)
    c = torch.where(alpha > 0, alpha + 1, alpha.exp())
    mean, total = c / c.sum(-1, keepdim=True), c.sum(-1, keepdim=True)
    variance = mean * (1 - mean) / (total + 1)
    assert q.shape == (N, 2, 3, 4) and torch.allclose(q.sum(-1), torch.ones(()).double()) and q.min() >= 0
    assert ((q.mean(0) - mean).abs() < 5 * (variance / N).sqrt()).all()
    assert torch.allclose(q.var(0), variance, rtol=0.1)
    assert torch.allclose(RELAX["dirichlet"].settled(alpha), mean)


def test_dirichlet_is_finite_where_an_operation_has_nothing_left():
    alpha = torch.tensor([-200.0, -20.0, 0.0, 1.0], requires_grad=True)  # elu(-20) + 1 rounds to 0
    q = RELAX["dirichlet"].draw(alpha, 1000, utils.generator(0, 0), 0.0)
    (gradient,) = torch.autograd.grad(q[..., 3].sum(), alpha)
    assert q.isfinite().all() and gradient.isfinite().all() and gradient[3] > 0 > gradient[2]


def test_the_pathwise_gradient_of_dirichlet_is_that_of_the_expectation():
    """Of a quadratic form, whose expectation has a closed form, by finite differences."""
    alpha, form = some_alpha(4), some_alpha(4, 4, seed=1)

    def expectation(alpha):
        c = F.elu(alpha) + 1
        return ((c[:, None] * c + c.diag()) * form).sum() / (c.sum() * (c.sum() + 1))

    steps = 1e-5 * torch.eye(4).double()
    expected = torch.stack([expectation(alpha + h) - expectation(alpha - h) for h in steps]) / 2e-5
    many = alpha.expand(10 * N, 4).clone().requires_grad_()  # a gradient each
    q = RELAX["dirichlet"].draw(many, 1, utils.generator(0, 0), 0.0)[0]
    (gradients,) = torch.autograd.grad(torch.einsum("ni,ij,nj", q, form, q), many)
    error = gradients.std(0) / len(many) ** 0.5
    assert ((gradients.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.05 * expected.abs().max()).all()


def drawn(relax, alpha, n, g, t):
    """What GDAS and DrNAS evaluate, written out, (n, cells, E, O). Of GDAS's architectures only the
    operations that are there have a gradient: the others are 0 without one."""
    if relax == "gumbel":
        noise = -(-torch.rand(n, *alpha.shape, generator=g).log()).log().to(alpha)
        soft = ((alpha.log_softmax(-1) + noise) / (10 - 9.9 * t)).softmax(-1)
        return F.one_hot(soft.argmax(-1), alpha.shape[-1]) * (1 + soft - soft.detach())
    c = (F.elu(alpha) + 1).expand(n, *alpha.shape)
    gamma = torch._standard_gamma(c.detach(), generator=g)
    gamma = gamma + (c - c.detach()) * torch._standard_gamma_grad(c.detach(), gamma)
    return gamma / gamma.sum(-1, keepdim=True)


@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("relax", ["gumbel", "dirichlet"])
@pytest.mark.parametrize("space", SPACES)
def test_the_architecture_gradient_is_the_one_written_out(space, relax, radius):
    """Of radius 0: GDAS and DrNAS. Of radius 1: each group its own sample, with one edge rolled."""
    torch.manual_seed(0)
    size = (2, 3 if space == "darts" else 1, 10)
    model, t = SUPERNETS[space](*size).double(), 0.7
    with torch.no_grad():
        model.alpha.normal_()
    x, y = torch.randn(12, 3, 8, 8).double(), torch.randint(10, (12,))
    words = f"--neighborhood {radius} --neighbors 3 --batch_size 12 --relax {relax} --space {space}"
    args = search.parse_args(words.split())
    shifts = search.draw_shifts(model, args, 1, utils.generator(3, 0))
    q = search.mixtures(model.alpha, shifts, args, utils.generator(1, 0), t)
    loss, by_q = search.arch_gradient(model, x, y, q, args)
    got = search.by_alpha(model.alpha, q, by_q, args)

    plain = copy_weights(model, PLAIN[space](*size).double())
    alpha = model.alpha.detach().requires_grad_()
    losses, groups = [], drawn(relax, alpha, len(shifts), utils.generator(1, 0), t)
    for p, shift, *batch in zip(groups, shifts, x.chunk(len(groups)), y.chunk(len(groups)), strict=True):
        edges = zip(p.flatten(0, 1), shift.tolist(), strict=True)
        p = torch.stack([edge.roll(s) for edge, s in edges]).view(p.shape)
        losses.append(F.cross_entropy(plain(batch[0], p), batch[1]))
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), alpha)
    assert len(groups) == (3 if radius else 1) and torch.allclose(loss, sum(losses) / len(losses), rtol=1e-9)
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-10) and expected.abs().max() > 1e-4


def test_sampled_architectures_of_nothing_but_none_have_a_gradient_of_zero():
    model = SUPERNETS["nasbench201"](2, 1, 10)
    with torch.no_grad():
        model.alpha[..., 0] = 100.0  # `none`, on every edge
    args = search.parse_args("--neighborhood 0 --relax gumbel --space nasbench201".split())
    q = search.mixtures(model.alpha, torch.zeros(1, 6, dtype=torch.long), args, utils.generator(0, 0))
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    loss, by_q = search.arch_gradient(model, x, y, q, args)
    assert torch.allclose(loss, F.cross_entropy(model(x, q), y)) and not loss.requires_grad
    assert torch.equal(search.by_alpha(model.alpha, q, by_q, args), torch.zeros_like(model.alpha))


def test_uphill_is_a_step_up_the_loss_of_the_length_stated():
    alpha, cost = some_alpha(12, 5).requires_grad_(), some_alpha(12, 5, seed=1)
    loss = (cost * alpha.softmax(-1)).sum()
    (gradient,) = torch.autograd.grad(loss, alpha)
    for length in (0.1, 0.5, 1.0, 2.0):
        place = uphill(alpha.detach(), gradient, length)
        assert distance(alpha.softmax(-1), place.softmax(-1)).item() == pytest.approx(length, abs=1e-3)
        assert (cost * place.softmax(-1)).sum() > loss + 0.3 * length * gradient.norm()
        assert F.cosine_similarity((place - alpha).flatten(), gradient.flatten(), 0) > 0.9999
    assert distance(alpha.softmax(-1), uphill(alpha.detach(), gradient, 12.0).softmax(-1)) < 12
    assert torch.equal(uphill(alpha.detach(), torch.zeros_like(gradient), 1.0), alpha)


def test_ascent_climbs_in_each_architecture_step(tmp_path, monkeypatch, few_shapes, no_sharpness):
    """Two steps of half the radius each, and the gradient is that at the last place."""
    seen, first = [], search.arch_gradient

    def spy(model, x, y, q, args):
        seen.append((q.detach()[0], *first(model, x, y, q, args), model.alpha.detach().clone()))
        return seen[-1][1:3]

    monkeypatch.setattr(search, "arch_gradient", spy)
    words = f"{SEARCH} --perturb ascent --neighborhood 1 --neighbors 2 --epochs 1 --batch_size 248"
    do(search, words, "--save", tmp_path / "run")
    assert read(tmp_path / "run" / "result.json")["algo"] == "DARTS-ascent"
    assert len(seen) == 3 * (1250 // 2 // 248)
    for step in zip(*[iter(seen)] * 3, strict=True):
        places, losses = [q for q, *_ in step], [loss for _, loss, *_ in step]
        assert torch.allclose(places[0], step[0][3].softmax(-1))
        moved = [distance(a, b).item() for a, b in zip(places, places[1:], strict=False)]
        assert moved == pytest.approx([0.5, 0.5], abs=1e-3) and losses[0] < losses[1] < losses[2]


def test_names():
    flags = [["--relax", relax, "--neighborhood", radius] for relax in RELAX for radius in "01"]
    names = [search.method_name(search.parse_args(words)) for words in flags]
    assert names == ["DARTS", "NA-DARTS", "GDAS", "NA-GDAS", "DrNAS", "NA-DrNAS"]
