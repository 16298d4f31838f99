"""The supernets: sizes, groups, and agreement with the plain reference."""

import copy

import plain
import pytest
import torch
import torch.nn.functional as F
from plain import PLAIN, copy_weights, operation

from genotypes import SPACES, format_architecture, parse_architecture, read_cell
from model import NETWORKS, OPS
from model_search import SUPERNETS, DartsSupernet, running_statistics_kept, weights_held

CASES = [("darts", 4, 3, 8), ("darts", 2, 4, 7), ("nasbench201", 4, 1, 8), ("nasbench201", 3, 2, 7)]


def build(space, C, layers, dtype=torch.float64):
    torch.manual_seed(0)
    model = SUPERNETS[space](C, layers, 10).to(dtype)
    with torch.no_grad():
        model.alpha.normal_()
    return model


def images(batch, size, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=g).to(dtype), torch.randint(10, (batch,), generator=g)


def drawn_mixtures(model, n):
    """Mixtures for n groups, each another one: (n, cells, E, O)."""
    alpha = model.alpha + torch.randn(n, *model.alpha.shape, dtype=torch.float64)
    return alpha.softmax(-1).detach().requires_grad_()


def close(a, b, tolerance=1e-10):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_published_sizes():
    model = DartsSupernet(16, 8, 10)
    assert sum(w.numel() for w in model.weight_parameters()) == 1_930_618  # quark0/darts, C=16, 8 cells
    assert model.alpha.shape == (2, 14, 8)
    assert SUPERNETS["nasbench201"]().alpha.shape == (1, 6, 5)


@pytest.mark.parametrize("space", SPACES)
def test_parameters_are_split_in_two(space):
    model = SUPERNETS[space](4, 3)
    weights, arch = map(id, model.weight_parameters()), [id(model.alpha)]
    assert sorted([*weights, *arch]) == sorted(map(id, model.parameters()))
    assert isinstance(model.alpha, torch.nn.Parameter)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space,C,layers,size", CASES)
def test_supernet_equals_the_plain_one(space, C, layers, size, training):
    model = build(space, C, layers)
    slow = copy_weights(model, PLAIN[space](C, layers, 10).double())
    x, y = images(6, size)
    model(x, model.mixture()), slow(x, model.mixture())  # running statistics of their own
    model.train(training), slow.train(training)
    results = []
    for net, weights in ((model, model.weight_parameters()), (slow, list(slow.parameters()))):
        logits = net(x, model.mixture())
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, y), [model.alpha, *weights])])
    assert all(close(a, b) for a, b in zip(*results, strict=True))
    assert results[0][1].abs().max() > 1e-4  # the comparison of alpha's gradients is not one of zeros


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("space,C,layers,size", CASES[1:])
def test_groups_equal_separate_passes(space, C, layers, size, training):
    n = 3
    model = build(space, C, layers)
    x, y = images(6, size)
    model(x, model.mixture())
    separate = copy.deepcopy(model)
    model.train(training), separate.train(training)
    q = drawn_mixtures(model, n)
    together = model(x, q)
    one_by_one = torch.cat([separate(part, q[k]) for k, part in enumerate(x.chunk(n))])
    assert close(together, one_by_one)
    a = torch.autograd.grad(F.cross_entropy(together, y), [q, *model.weight_parameters()])
    b = torch.autograd.grad(F.cross_entropy(one_by_one, y), [q, *separate.weight_parameters()])
    assert all(close(i, j) for i, j in zip(a, b, strict=True))
    buffers = zip(model.buffers(), separate.buffers(), strict=True)
    assert all(close(i, j) for i, j in buffers)  # the running statistics were updated alike
    if training:  # groups do not share statistics: another second group leaves the first one's output alone
        x[len(x) // n :] += 1
        assert close(model(x, q)[: len(x) // n], together[: len(x) // n])


@pytest.mark.parametrize("space,C,layers,size", CASES[1:])
def test_groups_that_share_statistics(space, C, layers, size):
    """They are one batch in which each image has its own mixture: outputs, gradients, running statistics."""
    n = 3
    model = build(space, C, layers)
    slow = copy_weights(model, PLAIN[space](C, layers, 10).double())
    x, y = images(6, size)
    model.share_statistics(True)
    q = drawn_mixtures(model, n)
    by_image = q.repeat_interleave(6 // n, 0).permute(1, 2, 3, 0)[..., None, None, None]
    results = []
    for net, p, weights in ((model, q, model.weight_parameters()), (slow, by_image, slow.parameters())):
        logits = net(x, p)
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, y), [q, *weights])])
    assert all(close(a, b) for a, b in zip(*results, strict=True))
    model.share_statistics(False)
    with running_statistics_kept(model):
        assert not close(model(x, q), results[0][0])
    model.eval(), slow.eval()  # what the running statistics have become
    assert close(model(x, q[0]), slow(x, q[0]))


class Square(torch.nn.Module):
    """An operation without weights that is no pooling, and knows nothing of groups."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        assert x.shape[1] in (2, 4, 8)  # the channels of one group
        return x[..., :: self.stride, :: self.stride].square()


def test_weights_outside_a_ConvOp_are_refused(monkeypatch):
    """The edges that leave a node would share them."""
    monkeypatch.setitem(OPS, "mine", lambda C, stride, affine: torch.nn.Conv2d(C, C, 1, stride))
    monkeypatch.setitem(SPACES, "darts", SPACES["darts"]._replace(ops=("skip_connect", "mine")))
    with pytest.raises(TypeError, match="mine in OPS of model.py has weights: write it as a ConvOp"):
        SUPERNETS["darts"](4, 3)


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_another_number_of_nodes(monkeypatch, nodes):
    """The edges of the space alone say it: in the supernet, in the cell that is read off, in the network."""
    edges = tuple((i, j) for j in range(2, 2 + nodes) for i in range(j))
    monkeypatch.setitem(SPACES, "darts", SPACES["darts"]._replace(edges=edges))
    model = build("darts", 2, 3)
    x, _ = images(4, 8)
    assert model(x, drawn_mixtures(model, 2)).shape == (4, 10)
    arch = read_cell(model.space, model.mixture())
    assert len(arch.normal) == len(arch.reduce) == 2 * nodes
    assert parse_architecture(format_architecture(arch)) == arch
    assert NETWORKS["cifar"](2, 10, 3, False, arch).double()(x, 0.0)[0].shape == (4, 10)


@pytest.mark.parametrize(
    "space,name", [("darts", "conv_7x1_1x7"), ("darts", "square"), ("nasbench201", "square")]
)
def test_an_operation_is_added_by_its_name(monkeypatch, space, name):
    """One line in OPS and its name in the space: four groups are four passes of the plain supernet."""
    layers = 3 if space == "darts" else 1
    if name == "square":
        monkeypatch.setitem(OPS, "square", lambda C, stride, affine: Square(stride))
        ordinary = operation
        monkeypatch.setattr(
            plain,
            "operation",
            lambda name, C, stride, *more: (
                Square(stride) if name == "square" else ordinary(name, C, stride, *more)
            ),
        )
    monkeypatch.setitem(SPACES, space, SPACES[space]._replace(ops=(*SPACES[space].ops, name)))
    model = build(space, 2, layers)
    assert model.alpha.shape[-1] == len(SPACES[space].ops)
    slow = copy_weights(model, PLAIN[space](2, layers, 10).double())
    x, y = images(8, 9)
    q = drawn_mixtures(model, 4)
    results = []
    for logits, weights in (
        (model(x, q), model.weight_parameters()),
        (torch.cat([slow(part, p) for part, p in zip(x.chunk(4), q, strict=True)]), list(slow.parameters())),
    ):
        results.append([logits, *torch.autograd.grad(F.cross_entropy(logits, y), [q, *weights])])
    assert all(close(a, b) for a, b in zip(*results, strict=True))
    assert results[0][1][..., -1].abs().min() > 0  # the new operation takes part on every edge


@pytest.mark.parametrize("space,layers", [("darts", 2), ("nasbench201", 1)])
def test_held_weights_get_no_gradient(space, layers):
    """alpha's is the same to the bit; afterwards the weights ask for theirs again, whatever happened."""
    model = SUPERNETS[space](2, layers, 10)
    x = torch.randn(4, 3, 8, 8)

    def gradient():
        return torch.autograd.grad(model(x, model.mixture()).square().sum(), model.alpha)[0]

    with running_statistics_kept(model):
        free = gradient()
        with pytest.raises(KeyboardInterrupt), weights_held(model):
            assert model.alpha.requires_grad and not any(w.requires_grad for w in model.weight_parameters())
            assert torch.equal(gradient(), free) and free.abs().max() > 0
            raise KeyboardInterrupt
    assert all(w.requires_grad for w in model.weight_parameters())
