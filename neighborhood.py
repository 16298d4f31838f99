"""Neighborhoods of architectures: distance, neighbors, aggregation.

Pure functions of tensors and an explicit torch.Generator, and the samplers of NA-RS, NA-LS and NA-REA; the
file can be copied on its own.

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

NA-RS with an error of your own, a function f of a list of architectures that returns their errors:

    shifts = ball_shifts(E, O, 1)
    draw = lambda: tuple(torch.randint(O, (E,), generator=g).tolist())
    around = lambda arch: discrete_neighbors(arch, shifts, O)
    scores = random_search(Evaluations(f, budget=1000), draw, around, AGGREGATE["mean"])
    found = min(scores, key=scores.get)
"""

import itertools
import math
from collections import namedtuple

import torch
import torch.nn.functional as F


def distance(p, q):
    """Total variation distance summed over the edges: sum_e 1/2 |p_e - q_e|_1.

    p, q: (..., E, O) probabilities. Returns (...). On one-hot rows it counts the edges whose operation
    differs.
    """
    return (p - q).abs().sum((-2, -1)) / 2


def ball_size(E, O, radius):  # noqa: E741  (O is the number of operations throughout)
    """Members of the ball around a discrete architecture: sum over k <= radius of C(E, k) (O - 1)^k."""
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
        values = torch.tensor(list(itertools.product(range(1, O), repeat=k)))  # ((O - 1)^k, k)
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
    shifts = torch.randint(1, O, (n, E), generator=generator)
    return shifts * (rank < k[:, None])


def _check_radius(E, radius):
    if not 0 <= radius <= E:
        raise ValueError(f"a radius lies between 0 and the number of edges, {E}: not {radius}")


def roll(p, s):
    """The probabilities of an edge rolled by s places. Linear in p: the gradient reaches every edge."""
    O = p.shape[-1]  # noqa: E741
    index = (torch.arange(O, device=p.device) - s[..., None]) % O
    return p.expand(index.shape).gather(-1, index)


def move(p, s):
    """The mass of the most likely operation k moved to operation l = k + s: p + p_k (1_l - 1_k)."""
    O = p.shape[-1]  # noqa: E741
    k = p.argmax(-1)
    gain = F.one_hot((k + s) % O, O) - F.one_hot(k, O)
    return p + p.gather(-1, k[..., None]) * gain


def replace(p, s):
    """All mass on operation k + s, k being the most likely one. No gradient on the changed edge itself."""
    O = p.shape[-1]  # noqa: E741
    return F.one_hot((p.argmax(-1) + s) % O, O).to(p)


# Maps of one edge's probabilities that are exactly "another operation here" on one-hot rows.
# Each takes p (..., O) and shifts s (...) in 1..O-1, and returns probabilities (..., O) of the shape to which
# both broadcast. It draws nothing itself: s says which neighbor it makes.
PERTURB = {"roll": roll, "move": move, "replace": replace}


def neighbors(p, shifts, perturb="roll"):
    """The neighbors of an architecture, differentiable in it.

    p: (E, O) probabilities, or (n, E, O), one for each neighbor. shifts: (n, E) from `ball_shifts` or
    `sample_shifts`; or a batch of both, (B, 1, E, O) and (B, n, E). perturb: a key of PERTURB. Returns (n, E,
    O), or (B, n, E, O): on edges with shift 0 the rows of p, on the others the perturbed rows.
    """
    shifts = shifts.to(p.device)
    return torch.where(shifts[..., None] == 0, p, PERTURB[perturb](p, shifts))


# Relaxations: what a step evaluates in place of the architecture parameters alpha (..., E, O). Each draws n
# mixtures (n, ..., E, O), differentiable in alpha. generator: of the CPU. t: the fraction of the search that
# is done, from 0 to 1.


def softmax(alpha, n, generator, t):
    """DARTS (Liu et al., ICLR 2019): the mixture softmax(alpha) itself, n times."""
    return alpha.softmax(-1).expand(n, *alpha.shape)


def gumbel(alpha, n, generator, t):
    """GDAS (Dong, Yang; CVPR 2019): architectures drawn from softmax(alpha), one-hot, by Gumbel's trick. The
    gradient is straight-through: that of the soft sample at a temperature which falls from 10 to 0.1, as
    there. It is biased. On a GPU, the draws' copy is waited for."""
    noise = -(-torch.rand(n, *alpha.shape, generator=generator).clamp(1e-20).log()).log()
    soft = ((alpha.log_softmax(-1) + noise.to(alpha)) / (10 - 9.9 * t)).softmax(-1)
    return F.one_hot(soft.argmax(-1), alpha.shape[-1]).to(soft) + (soft - soft.detach())


def dirichlet(alpha, n, generator, t):
    """DrNAS (Chen et al., ICLR 2021): mixtures drawn from Dirichlet(elu(alpha) + 1), with the pathwise
    gradient through the gamma variables that make it up. On a GPU, alpha is waited for."""
    c = (F.elu(alpha) + 1).clamp(min=1e-6)  # which float32 rounds to 0 far below
    gamma = torch._standard_gamma(c.cpu().expand(n, *alpha.shape), generator=generator)
    return (gamma / gamma.sum(-1, keepdim=True)).to(alpha)


# draw: the function. settled: what a search has settled on, (..., E, O): the mixture, the likeliest
# architecture, the mean mixture. method: the name of the search with radius 0.
Relaxation = namedtuple("Relaxation", "draw settled method")
RELAX = {
    "softmax": Relaxation(softmax, lambda alpha: alpha.softmax(-1), "DARTS"),
    "gumbel": Relaxation(gumbel, lambda a: F.one_hot(a.argmax(-1), a.shape[-1]).to(a), "GDAS"),
    "dirichlet": Relaxation(dirichlet, lambda alpha: F.normalize(F.elu(alpha) + 1, 1, -1), "DrNAS"),
}


def uphill(alpha, gradient, length, halvings=20):
    """alpha moved along a gradient until softmax(alpha) has moved by a total variation distance of `length`,
    as found by bisection; less where a step of size 1,000 does not get so far. alpha, gradient: (..., E, O).

    The neighbor of A2M (Gambella et al., 2026): to first order the worst one of a ball.
    """
    p, direction = alpha.softmax(-1), gradient / gradient.norm().clamp(min=1e-30)
    low, high = torch.zeros_like(direction.sum()), torch.full_like(direction.sum(), 1000.0)
    for _ in range(halvings):
        middle = (low + high) / 2
        far = (p - (alpha + middle * direction).softmax(-1)).abs().sum() / 2 > length
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return alpha + low * direction


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


# ------------------------------------------------------------------------------------------------------------
# Samplers
# ------------------------------------------------------------------------------------------------------------
#
# An architecture is a tuple of ints here: one operation index an edge, and whatever rides along (the input
# nodes of a genotype). An evaluator f takes a list of architectures and returns their errors, lower is
# better.


class Evaluations:
    """An evaluator with a memory: what was evaluated once is never paid again.

    f: evaluator. budget: most architectures that may be paid, or None. known: errors of all that are paid, in
    order.
    """

    def __init__(self, f, budget=None):
        self.f, self.budget, self.known = f, math.inf if budget is None else budget, {}

    def new(self, archs):
        """Those of the architectures that are not paid yet, each once."""
        return [a for a in dict.fromkeys(archs) if a not in self.known]

    def left(self, archs=()):
        """What is left of the budget once these are paid too; negative where it does not cover them."""
        return self.budget - len(self.known) - len(self.new(archs))

    def __call__(self, archs):
        """Errors of the architectures, a float64 tensor. Raises ValueError beyond the budget, and where an
        error is NaN, which has no rank."""
        new = self.new(archs)
        if len(new) > self.left():
            raise ValueError(f"a budget of {self.budget} evaluations is exceeded")
        if new:
            self.known.update(zip(new, map(float, self.f(new)), strict=True))
        errors = torch.tensor([self.known[a] for a in archs], dtype=torch.float64)
        if errors.isnan().any():
            raise ValueError(f"the error of {archs[errors.isnan().nonzero()[0]]} is NaN")
        return errors


def discrete_neighbors(arch, shifts, O):  # noqa: E741
    """The neighbors of an architecture, a list of tuples. shifts: (n, E); entries of arch beyond E ride
    along."""
    ops, rest = torch.tensor(arch[: shifts.shape[1]]), arch[shifts.shape[1] :]
    return [(*near, *rest) for near in ((ops + shifts) % O).tolist()]


def random_search(evaluations, draw, neighborhood, g, samples=None, wave=1):
    """NA-RS: random architectures, each scored with g over its neighborhood; RS where that is itself alone.

    evaluations: Evaluations, whose budget ends the search at the first architecture that it does not cover.
    draw: function that draws an architecture. neighborhood: function of an architecture that lists those
    which are its neighborhood. g: aggregation, of AGGREGATE. samples: how many to draw, or None with a
    budget. wave: how many are drawn before their neighborhoods are evaluated, all at once; it changes nothing
    else. Returns a dict of scores by architecture, in order of drawing: the first of the lowest is the
    answer. It is empty where the budget does not cover one neighborhood.
    """
    scores, drawn = {}, 0
    # In a small space a budget may never be spent, so the number of draws is bounded too.
    most = 100 * evaluations.budget if samples is None else samples
    while drawn < most and evaluations.left():
        wanted, members = [], []
        while drawn < most and len(wanted) < wave and evaluations.left(members):
            arch = draw()
            drawn += 1
            around = neighborhood(arch)
            if evaluations.left(members + around) < 0:
                most = drawn  # no more draws, once those in hand are scored
                break
            wanted.append((arch, around))
            members += around
        evaluations(members)
        for arch, around in wanted:
            scores.setdefault(arch, g(evaluations(around)).item())
    return scores


def local_search(evaluations, draw, neighborhood, g, starts, samples=None):
    """NA-LS: best-first local search. A few random starts are evaluated; then, again and again, the best
    architecture not yet expanded is expanded: all its neighborhood is evaluated.

    Arguments as those of random_search; neighborhood may not be the architecture alone. g: None is plain LS,
    whose scores are the errors of all that was evaluated. starts: how many random architectures to begin
    with. samples: how many to expand, or None with a budget. The rest of a budget goes to a part of the last
    neighborhood. Of equal errors the first evaluated is expanded first. Where four or more were expanded,
    their scores are g over their neighborhoods, which are whole; where fewer were, those of `known_scores`.
    Returns a dict of scores by architecture, in order: the first of the lowest is the answer.
    """
    known, expanded = evaluations.known, {}
    first = [draw() for _ in range(starts)]
    while evaluations.left(first) < 0:
        first.pop()
    evaluations(first)
    while samples is None or len(expanded) < samples:
        rest = [a for a in known if a not in expanded]
        if not rest or not evaluations.left():
            break
        arch = min(rest, key=known.get)
        around = neighborhood(arch)
        if evaluations.left(around) < 0:
            evaluations(evaluations.new(around)[: evaluations.left()])
            break
        evaluations(around)
        expanded[arch] = around
    if g is None:
        return dict(known)
    if len(expanded) >= 4:
        return {a: g(evaluations(around)).item() for a, around in expanded.items()}
    return known_scores(known, lambda a: expanded.get(a) or neighborhood(a), g)


def evolution(evaluations, draw, mutate, choose, neighborhood, g, samples=None, population=10, tournament=3):
    """NA-REA: regularised evolution (Real et al., AAAI 2019; sizes as AutoDL-Projects has them for
    NAS-Bench-201). A population of random architectures; then, again and again, the best of a few drawn from
    it has a mutated child, which takes the place of the oldest.

    Arguments as those of random_search. mutate: function that draws a neighbor of an architecture.
    choose: function of a list and a number that draws so many of it, with replacement. g: None is
    plain REA, whose scores are the errors of all that was evaluated; otherwise they are `known_scores`.
    samples: how many children, or None with a budget. Returns a dict of scores by architecture, in order.
    """
    alive, known, made, parent = [], evaluations.known, 0, None
    most = 100 * evaluations.budget if samples is None else population + samples
    while made < most and evaluations.left():
        arch = draw() if made < population else mutate(parent)
        alive, made = [*alive, arch][-population:], made + 1
        evaluations([arch])
        parent = min(choose(alive, tournament), key=known.get)
    return dict(known) if g is None else known_scores(known, neighborhood, g)


def known_scores(known, neighborhood, g):
    """Scores of all that was evaluated: half its error, and half g over the known part of its neighborhood,
    to which five times the mean of all known errors is added, so that few known neighbors say little.

    known: dict of errors by architecture. Returns a dict of the same keys.
    """
    prior = [sum(known.values()) / len(known)] * 5
    around = lambda a: [known[b] for b in neighborhood(a) if b in known] + prior
    scored = lambda a: g(torch.tensor(around(a), dtype=torch.float64)).item()
    return {a: (error + scored(a)) / 2 for a, error in known.items()}


def table_neighborhoods(ops, shifts, O):  # noqa: E741
    """The neighborhoods of discrete architectures, as places in a table of all O ** E: (T, n).

    ops: (T, E) operation indices; architecture `ops` (E,) stands at place sum_e ops[e] * O ** (E - 1 - e).
    shifts: (n, E) from ball_shifts. With errors (O ** E,), `g(errors[table_neighborhoods(...)].T)` is
    g(f(N(a))) of each architecture.
    """
    powers = O ** torch.arange(shifts.shape[1] - 1, -1, -1)
    return torch.stack([((ops + shift) % O) @ powers for shift in shifts], 1)
