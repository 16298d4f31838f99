"""Neighborhoods of architectures: distance, neighbors, aggregation.

Everything here is a pure function of tensors and an explicit torch.Generator; the file can be copied on its
own.

Neighborhood-aware search minimises `g(f(N(a)))` over architectures a: an error f, gathered over the
neighborhood N(a) and aggregated by g, in place of f(a) alone. The idea is that of "Neighborhood-Aware Neural
Architecture Search" (Wang, Cao, Li, Kitani; BMVC 2021, arXiv 2105.06369). The definitions below are this
project's reading of it.

An architecture is a set of E edges, each with a probability vector over O operations: p of shape (E, O), cell
kinds concatenated. A discrete architecture is one operation index an edge, or p with one-hot rows.

A neighbor is written as its shifts: one integer an edge, 0 for an edge left as it is and s in 1..O-1 for
"another operation, s further on in the list". The ball of radius d is every vector of E shifts with at most d
that are not 0, and one such vector serves both kinds of architecture:

    (ops + shifts) % O             the neighbor of a discrete architecture, ops of shape (E,)
    neighbors(p, shifts, "roll")   the neighbors of a mixture, differentiable in p
"""

import itertools
import math

import torch
import torch.nn.functional as F


def distance(p, q):
    """Total variation distance summed over the edges: sum_e 1/2 |p_e - q_e|_1.

    p, q: (..., E, O) probabilities. Returns (...). On one-hot rows it counts the edges whose operation
    differs.
    """
    return (p - q).abs().sum((-2, -1)) / 2


def ball_size(E, O, radius):  # noqa: E741  (O is the number of operations throughout)
    """Members of the ball of a radius around a discrete architecture: sum over k <= radius of C(E, k) (O -
    1)^k.

    Raises ValueError for a radius outside 0..E.
    """
    _check_radius(E, radius)
    return sum(math.comb(E, k) * (O - 1) ** k for k in range(radius + 1))


def ball_shifts(E, O, radius):  # noqa: E741
    """Every member of the ball as shifts: (ball_size, E) integers in 0..O-1, the center first, then by
    distance.

    Raises ValueError for a radius outside 0..E.
    """
    _check_radius(E, radius)
    blocks = [torch.zeros(1, E, dtype=torch.long)]
    for k in range(1, radius + 1):
        edges = torch.tensor(list(itertools.combinations(range(E), k)))  # (C(E, k), k)
        values = torch.tensor(list(itertools.product(range(1, O), repeat=k)), dtype=torch.long).view(
            -1, k
        )  # ((O - 1)^k, k)
        block = torch.zeros(len(edges), len(values), E, dtype=torch.long)
        block.scatter_(2, edges[:, None].expand(-1, len(values), -1), values.expand(len(edges), -1, -1))
        blocks.append(block.view(-1, E))
    return torch.cat(blocks)


def sample_shifts(E, O, radius, n, generator):  # noqa: E741
    """n members of the ball, drawn uniformly and independently: (n, E) integers in 0..O-1.

    The center counts as one member. Raises ValueError for a radius outside 0..E.
    """
    _check_radius(E, radius)
    shells = torch.tensor([math.comb(E, k) * (O - 1) ** k for k in range(radius + 1)], dtype=torch.float64)
    k = torch.multinomial(shells, n, replacement=True, generator=generator)  # how many edges change
    # Ranks of independent uniform numbers are a random order of the edges: the first k of it change.
    rank = torch.rand(n, E, generator=generator, dtype=torch.float64).argsort(1).argsort(1)
    shifts = (
        torch.randint(1, O, (n, E), generator=generator) if O > 1 else torch.zeros(n, E, dtype=torch.long)
    )
    return shifts * (rank < k[:, None])


def _check_radius(E, radius):
    if not 0 <= radius <= E:
        raise ValueError(
            f"the radius of a neighborhood lies between 0 and the number of edges, {E}: not {radius}"
        )


def roll(p, s):
    """The probabilities of an edge rolled by s places. Linear in p: the gradient reaches every edge."""
    O = p.shape[-1]  # noqa: E741
    index = (torch.arange(O, device=p.device) - s[..., None]) % O
    return p.expand(index.shape).gather(-1, index)


def move(p, s):
    """The mass of the most likely operation k moved to operation l = k + s: p + p_k (1_l - 1_k)."""
    O = p.shape[-1]  # noqa: E741
    k = p.argmax(-1)
    gain = F.one_hot((k + s) % O, O) - F.one_hot(k, O).expand(*s.shape, O)
    return p + p.gather(-1, k[..., None]) * gain


def replace(p, s):
    """All mass on operation k + s, k being the most likely one. No gradient on the changed edge itself."""
    O = p.shape[-1]  # noqa: E741
    return F.one_hot((p.argmax(-1) + s) % O, O).to(p)


# Maps of one edge's probabilities that are exactly "another operation here" on one-hot rows.
# Each takes p (..., O) and shifts s (...) in 1..O-1 of a broadcast shape, and returns probabilities (..., O).
PERTURB = {"roll": roll, "move": move, "replace": replace}


def neighbors(p, shifts, perturb="roll"):
    """The neighbors of an architecture, differentiable in it.

    p: (E, O) probabilities. shifts: (n, E) from `ball_shifts` or `sample_shifts`. perturb: a key of PERTURB.
    Returns (n, E, O): on edges with shift 0 the rows of p, on the others the perturbed rows.
    """
    shifts = shifts.to(p.device)
    return torch.where(shifts[..., None] == 0, p, PERTURB[perturb](p, shifts))


# Aggregations g over dimension 0: values (n, ...), errors or losses, lower is better. Returns (...).
# - median: the mean of the two middle values where n is even, as numpy has it.
# - logsumexp: log of the mean of exp(values), that is log-sum-exp less log n, so that one value alone is
#   itself and n does not shift the result. A smooth maximum, between mean and max. It is the log-partition
#   function behind the "local entropy" of flat-minima work (Baldassi et al. 2015; Entropy-SGD, Chaudhari et
#   al. 2017), with the sign that makes a bad neighbor count for more than a good one. Unlike the others it
#   depends on the unit: losses, or percent.
AGGREGATE = {
    "mean": lambda values: values.mean(0),
    "max": lambda values: values.amax(0),
    "median": lambda values: values.quantile(0.5, 0),
    "logsumexp": lambda values: values.logsumexp(0) - math.log(len(values)),
}
