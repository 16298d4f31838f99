"""Neighborhoods: the ball, its sampling, the differentiable neighbors and the aggregations."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neighborhood import AGGREGATE, PERTURB, ball_shifts, ball_size, distance, neighbors, sample_shifts

each_perturbation = pytest.mark.parametrize("perturb", PERTURB)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(E, ops, seed=0):
    return (2 * torch.randn(E, ops, generator=generator(seed), dtype=torch.float64)).softmax(-1)


def by_hand(p, shifts, perturb):
    """One neighbor, edge by edge, on lists of numbers."""
    q = []
    for row, s in zip(p.tolist(), shifts.tolist(), strict=True):
        ops = len(row)
        k = row.index(max(row))
        if s and perturb == "roll":
            row = row[-s:] + row[:-s]
        if s and perturb == "move":
            row[(k + s) % ops] += row[k]
            row[k] = 0.0
        if s and perturb == "replace":
            row = [float(o == (k + s) % ops) for o in range(ops)]
        assert perturb in ("roll", "move", "replace"), "add its form on lists"
        q.append(row)
    return torch.tensor(q, dtype=p.dtype)


@pytest.mark.parametrize("E,ops,radii", [(6, 5, range(4)), (3, 4, range(4)), (4, 2, range(5))])
def test_ball_equals_brute_force(E, ops, radii):
    everything = list(itertools.product(range(ops), repeat=E))
    for radius in radii:
        members = {s for s in everything if sum(x != 0 for x in s) <= radius}
        shifts = ball_shifts(E, ops, radius)
        assert len(shifts) == len(members) == ball_size(E, ops, radius)
        assert set(map(tuple, shifts.tolist())) == members
        assert ((shifts != 0).sum(1).diff() >= 0).all()  # the center first, then by distance
    assert ball_size(E, ops, E) == ops**E
    assert [ball_size(28, 8, radius) for radius in range(4)] == [1, 197, 18_719, 1_142_387]


@pytest.mark.parametrize("radius", [-1, 7])
def test_radius_out_of_range(radius):
    with pytest.raises(ValueError, match="between 0 and the number of edges, 6"):
        ball_shifts(6, 5, radius)
    with pytest.raises(ValueError, match="between 0 and the number of edges, 6"):
        sample_shifts(6, 5, radius, 3, generator())


@each_perturbation
@pytest.mark.parametrize("E,ops,radius", [(6, 5, 1), (6, 5, 2), (28, 8, 1), (3, 2, 3)])
def test_one_hot_neighbors_are_the_discrete_ones(E, ops, radius, perturb):
    arch = torch.randint(ops, (E,), generator=generator(E))
    shifts = ball_shifts(E, ops, radius)
    q = neighbors(F.one_hot(arch, ops).double(), shifts, perturb)
    assert torch.equal(q, F.one_hot((arch + shifts) % ops, ops).double())
    found = [tuple(member) for member in q.argmax(-1).tolist()]
    assert len(set(found)) == len(found) == ball_size(E, ops, radius)
    assert max(sum(a != b for a, b in zip(member, arch.tolist(), strict=True)) for member in found) == radius


def test_distance_counts_edges_that_differ():
    ops = torch.randint(5, (40, 6), generator=generator())
    p = F.one_hot(ops, 5).double()
    table = distance(p[:, None], p)  # (40, 40)
    for i, j in itertools.product(range(40), repeat=2):
        assert table[i, j] == sum(a != b for a, b in zip(ops[i].tolist(), ops[j].tolist(), strict=True))
    p, q = mixture(6, 5, 1), mixture(6, 5, 2)
    total = sum(
        abs(a - b) / 2 for x, y in zip(p.tolist(), q.tolist(), strict=True) for a, b in zip(x, y, strict=True)
    )
    assert abs(distance(p, q) - total) < 1e-12 and distance(p, q) == distance(q, p)


@each_perturbation
@pytest.mark.parametrize("E,ops,radius", [(6, 5, 1), (6, 5, 2), (28, 8, 1), (3, 4, 3)])
def test_soft_neighbors(E, ops, radius, perturb):
    shifts = ball_shifts(E, ops, radius)
    for seed in range(5):
        p = mixture(E, ops, seed)
        q = neighbors(p, shifts, perturb)
        assert torch.allclose(q, torch.stack([by_hand(p, s, perturb) for s in shifts]), rtol=0, atol=1e-12)
        assert torch.equal(q[0], p)
        assert (q >= 0).all() and torch.allclose(q.sum(-1), q.new_ones(()), rtol=0, atol=1e-12)
        far = distance(q, p)
        changed = (shifts != 0).sum(1)
        assert (far <= changed + 1e-12).all() and (far[1:] > 0).all()
    q = neighbors(p.float(), shifts, perturb)
    assert q.dtype == torch.float32 and torch.allclose(q.double(), neighbors(p, shifts, perturb), atol=1e-6)


@each_perturbation
def test_gradients(perturb):
    p = mixture(4, 3, 5)
    two = p.topk(2).values
    assert (two[:, 0] - two[:, 1]).min() > 1e-3  # finite differences do not cross a change of the argmax
    shifts = ball_shifts(4, 3, 2)
    assert torch.autograd.gradcheck(lambda p: neighbors(p, shifts, perturb), p.requires_grad_())


@pytest.mark.parametrize("name", AGGREGATE)
@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (8,), (1, 3), (4, 3), (7, 2, 3)])
def test_aggregations_equal_numpy(name, shape):
    plain = {
        "mean": lambda v: np.mean(v, 0),
        "max": lambda v: np.max(v, 0),
        "median": lambda v: np.median(v, 0),
        "logsumexp": lambda v: np.log(np.mean(np.exp(v), 0)),
    }
    assert name in plain, "add its form in numpy"
    values = torch.randn(shape, generator=generator(), dtype=torch.float64).requires_grad_()
    result = AGGREGATE[name](values)
    assert result.shape == shape[1:]
    np.testing.assert_allclose(
        result.detach().numpy(), plain[name](values.detach().numpy()), rtol=0, atol=1e-12
    )
    if shape[0] == 1:
        assert torch.equal(result, values[0])
    assert torch.autograd.gradcheck(AGGREGATE[name], values)


@pytest.mark.parametrize("radius", [1, 2])
def test_sampling_is_uniform_over_the_ball(radius):
    draws, E, ops = 50_000, 6, 5
    shifts = sample_shifts(E, ops, radius, draws, generator(radius))
    assert shifts.shape == (draws, E) and shifts.dtype == ball_shifts(E, ops, radius).dtype
    code = ops ** torch.arange(E)
    counts = torch.bincount((shifts * code).sum(1), minlength=ops**E)
    members = (ball_shifts(E, ops, radius) * code).sum(1)
    assert counts[members].sum() == draws  # nothing outside the ball
    size = ball_size(E, ops, radius)
    expected = draws / size
    chi_square = ((counts[members] - expected) ** 2 / expected).sum()
    assert abs(chi_square - (size - 1)) < 5 * math.sqrt(2 * (size - 1))  # 5 standard deviations
    sigma = math.sqrt(expected * (1 - 1 / size))
    assert ((counts[members] - expected).abs() < 5 * sigma).all()


def test_sampling_is_seeded_and_radius_0_is_the_center():
    for E, ops, radius in ((28, 8, 3), (3, 2, 3)):
        a, b, c = (sample_shifts(E, ops, radius, 50, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
    g = generator()
    assert not torch.equal(sample_shifts(28, 8, 3, 50, g), sample_shifts(28, 8, 3, 50, g))
    assert sample_shifts(28, 8, 0, 50, g).tolist() == [[0] * 28] * 50
    changed = (sample_shifts(28, 8, 28, 2000, g) != 0).double()  # the whole space: every edge uniform
    assert abs(changed.mean() - 7 / 8) < 5 * math.sqrt(7 / 64 / (2000 * 28))
