"""DARTS and NA-DARTS on the NAS-Bench-201 table, without a supernet.

    python experiments/exact.py --bench T.csv --neighborhood 1 --perturb move --alpha_scale 5 --repeats 500

The expected error of an architecture drawn from softmax(alpha) is a sum over the table, differentiable in
alpha. Adam minimises it, or g over its neighborhood, all repeats at once from random starts. This tests the
differentiable neighborhood free of a supernet's noise. Reported are the accuracies of the cells read off.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import nats_bench
import sample
import utils
from genotypes import SPACES, nasbench201_architectures
from neighborhood import AGGREGATE, PERTURB, ball_shifts, neighbors, sample_shifts
from utils import within


def expected_error(errors, p):
    """The error expected of an architecture drawn from a product distribution, F(p) = sum_a f(a) prod_e
    p_e[a_e]: multilinear in p, and f(a) itself on one-hot rows.

    errors: (O ** E,), in the order of `table_neighborhoods`. p: (..., E, O) probabilities. Returns (...).
    """
    E, O = p.shape[-2:]  # noqa: E741

    def products(rows):  # (..., k, O) -> (..., O ** k)
        result = rows[..., 0, :]
        for k in range(1, rows.shape[-2]):
            result = (result[..., :, None] * rows[..., k, None, :]).flatten(-2)
        return result

    # Half of the edges at a time: with all of them there would be O ** E numbers for each p.
    first, second = products(p[..., : E // 2, :]), products(p[..., E // 2 :, :])
    return ((first @ errors.view(O ** (E // 2), -1)) * second).sum(-1)


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    parser.set_defaults(script="exact.py", algo="darts", space="nasbench201")
    add = parser.add_argument
    # fmt: off
    add("--bench", required=True, help="NAS-Bench-201 accuracies: a CSV file or NATS-Bench folder")
    add("--bench_metric", default="cifar10_valid_200", help="the table's column that is searched on")
    add("--neighborhood", type=within(int, 0, 6), default=1, help="radius d of the neighborhood; 0 is DARTS")
    add("--neighbors", type=within(int, 0, 4096), default=0, help="neighbors a step; 0: all of them")
    add("--agg", choices=AGGREGATE, default="mean", help="aggregation g of the neighbors' errors")
    add("--perturb", choices=PERTURB, default="roll", help="what a neighbor does to a changed edge")
    add("--alpha_scale", type=within(float, 0, 1000), default=1.0, help="deviation of alpha's normal starts")
    add("--steps", type=within(int, 1, 1_000_000), default=300, help="steps of Adam")
    add("--arch_learning_rate", type=within(float, 0, 100), default=0.1, help="learning rate of Adam")
    add("--repeats", type=within(int, 1, 100_000), default=1, help="independent repeats")
    add("--seed", type=within(int, 0, 2**40), default=2, help="seed of everything random")
    add("--save", help="run folder (default: runs/exact-<method>-<time>)")
    # fmt: on
    return parser.parse_args(argv)


def main(args):
    args.save = args.save or utils.new_run_path("exact", sample.method_name(args).lower())
    with utils.claimed(args.save):
        search(args)


def search(args):
    from tqdm import tqdm

    table = nats_bench.load_table(args.bench, args.bench_metric)
    errors, g, space = 100 - table[args.bench_metric], AGGREGATE[args.agg], SPACES[args.space]
    if errors.isnan().any():
        raise utils.BadInput(f"{args.bench} has no {args.bench_metric} of some architectures: complete it")
    E, O, rng = len(space.edges), len(space.ops), utils.generator(args.seed, 4)  # noqa: E741
    R, n = args.repeats, args.neighbors if args.neighborhood else 0
    alpha = args.alpha_scale * torch.randn(R, E, O, generator=rng, dtype=torch.float64)
    alpha.requires_grad_()
    optimizer = torch.optim.Adam([alpha], args.arch_learning_rate, betas=(0.5, 0.999))
    ball = ball_shifts(E, O, args.neighborhood)

    def loss():
        """g over the neighborhood, or over a sample of it, of each repeat: (R,)."""
        shifts = ball.expand(R, -1, -1)
        if n:
            shifts = sample_shifts(E, O, args.neighborhood, R * n, rng).view(R, n, E)
        q = neighbors(alpha.softmax(-1)[:, None], shifts, args.perturb)  # (R, n, E, O)
        return g(expected_error(errors, q).T)

    for _ in tqdm(range(args.steps), unit="step", disable=None, leave=False):
        (alpha.grad,) = torch.autograd.grad(loss().sum(), alpha)
        optimizer.step()
    with torch.no_grad():
        scores = loss().tolist()
    names, rows = nasbench201_architectures(), []
    places = alpha.argmax(-1) @ (O ** torch.arange(E - 1, -1, -1))
    for repeat, (place, score) in enumerate(zip(places.tolist(), scores, strict=True), 1):
        row = {"repeat": repeat, "arch": names[place], "score": score, "evaluations": len(errors)}
        rows.append(row | nats_bench.accuracies(table, row["arch"]))
    sample.report_found(args, args.bench_metric, table, rows, utils.RunFolder(args.save, args))


if __name__ == "__main__":
    utils.run(main, parse_args())
