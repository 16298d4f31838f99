"""Where a neighborhood pays on a real evaluator: sampling algorithms on supernets, the table being the truth.

    python experiments/study_supernet.py RUN [RUN ...] --bench T.csv --values DIR --out supernet.csv

RUN: folders of `sample.py --eval supernet --space nasbench201`, a seed each. A supernet evaluates all 15,625
architectures as sample.py does: loss and top-1 accuracy, in DIR/<seed>.csv. Then sample.py's searches run on
these errors, 100 times each: supernet.csv has means and standard deviations of the true test accuracies of
what they found, and supernet_ranks.csv the rank correlations with the table, of architectures and of means
over neighborhoods. What the files have is not computed again.
"""

import csv
import itertools
import os
import sys
from argparse import Namespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import nats_bench
import sample
import train
import utils
from genotypes import SPACES, from_indices, nasbench201_architectures
from model_search import SUPERNETS
from neighborhood import ball_shifts, table_neighborhoods

ALGORITHMS = {"RS": ("rs", 0), "NA-RS": ("rs", 1), "LS": ("ls", 0), "NA-LS": ("ls", 1)}
ALGORITHMS |= {"REA": ("ea", 0), "NA-REA": ("ea", 1)}
BUDGETS = (10, 30, 100, 300, 1000, 3000)  # NA-RS compares two neighborhoods of 25 or more
COLUMNS = ("cifar10_test_200", "cifar100_test_200", "imagenet16_test_200")
BEST = 1000  # architectures by the table, among which the correlations are reported too
ARCHS = list(itertools.product(range(5), repeat=6))  # as indices, in the order of the table


def read(path):
    with open(path if os.path.exists(path) else os.devnull, newline="") as file:
        return list(csv.DictReader(file))


def without_dead_edges(ops):
    """An architecture's operations by edge, `none` on edges from a node that is zero, or to one that the
    output does not see: what is computed is the same. 9,445 of the 15,625 are left."""
    ops, edges = list(ops), SPACES["nasbench201"].edges
    not_zero, seen = {0}, {3}
    for e, (source, target) in enumerate(edges):  # by target
        ops[e] = ops[e] if source in not_zero else 0
        not_zero |= {target} if ops[e] else set()
    for e, (source, target) in reversed(list(enumerate(edges))):
        ops[e] = ops[e] if target in seen else 0
        seen |= {source} if ops[e] else set()
    return tuple(ops)


def evaluate_all(run, path):
    """Losses (nats) and top-1 accuracies (percent) of all on a run's supernet, (2, 15625), kept in a file."""
    rows, names = read(path), nasbench201_architectures()
    if len(rows) < len(ARCHS):
        checkpoint, space = utils.load_checkpoint(run), SPACES["nasbench201"]
        flags, device = Namespace(**checkpoint["args"]), utils.device_of(checkpoint["args"]["device"])
        batches, held_out, data = train.load_train(flags, device)
        supernet = SUPERNETS["nasbench201"](flags.init_channels, flags.layers, len(data["classes"]))
        utils.restore({"model": supernet.to(device), "batches": batches}, checkpoint)  # checks the images
        measure = sample.on_held_out(supernet, held_out, flags.seed)
        found = {without_dead_edges(ARCHS[i]): (row["loss"], row["top1"]) for i, row in enumerate(rows)}
        for i in range(len(rows), len(ARCHS)):
            if (ops := without_dead_edges(ARCHS[i])) not in found:
                found[ops] = measure(from_indices(space, ops))
            rows.append(dict(zip(("arch", "loss", "top1"), (names[i], *found[ops]), strict=True)))
            if (i + 1) % 500 == 0 or i + 1 == len(ARCHS):
                utils.write_csv(path, rows)
                print(f"{run}: {i + 1} evaluated", flush=True)
    return torch.tensor([[float(row[name]) for row in rows] for name in ("loss", "top1")]).double()


def correlations(errors, truth):
    """Rank correlations with the true errors, of errors and of means over neighborhoods, (15625,) all; and
    the correlation of an architecture's error in rank with that of a neighbor, which averaging leaves."""
    near = table_neighborhoods(torch.tensor(ARCHS), ball_shifts(6, 5, 1), 5)
    around, wrong = errors[near].mean(1), sample.ranks(errors) - sample.ranks(truth)
    wrong = (wrong - wrong.mean()) / wrong.std()
    best, kinds = truth.argsort()[:BEST], {"single": errors, "neighborhood": around}
    of_all = {name: sample.spearman(values, truth) for name, values in kinds.items()}
    of_all |= {f"{name}_best": sample.spearman(v[best], truth[best]) for name, v in kinds.items()}
    return of_all | {"shared_with_a_neighbor": (wrong[:, None] * wrong[near[:, 1:]]).mean().item()}


def search(args, table, errors, algo, radius, budget):
    """The true accuracies of what the repeats of one search found, means and standard deviations."""
    place = {arch: i for i, arch in enumerate(ARCHS)}
    words = ["--algo", algo, "--neighborhood", str(radius), "--budget", str(budget), "--bench", args.bench]
    flags, rngs = sample.parse_args(words), [utils.generator(seed, 4) for seed in range(args.repeats)]
    f = lambda archs: errors[[place[a] for a in archs]].tolist()
    found = [place[sample.search(flags, f, g)[0]] for g in rngs]
    row = {"repeats": args.repeats}
    for name in COLUMNS:
        values = table[name][found]
        row |= {name: round(values.mean().item(), 3), f"{name}_sd": round(values.std().item(), 3)}
    return row


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, one a seed of the supernet")
    parser.add_argument("--bench", required=True, help="the NAS-Bench-201 table")
    parser.add_argument("--values", required=True, help="folder of what the supernets say")
    parser.add_argument("--out", required=True, help="the CSV file of the searches")
    parser.add_argument("--repeats", type=utils.within(int, 2, 100_000), default=100, help="of each search")
    return parser.parse_args(argv)


def main(args):
    table, rows, found = nats_bench.load_table(args.bench), read(args.out), []
    truth, signal = 100 - table[COLUMNS[0]], 100 - table["cifar10_test_12"]
    for sd in (0, 4):  # to compare with: 12 epochs of training, and Gaussian errors besides
        errors = signal + sd * torch.randn(len(ARCHS), generator=utils.generator(0, 5))
        found.append({"supernet": "", "error": f"12 epochs, noise {sd}"} | correlations(errors, truth))
    done = {tuple(map(str, list(row.values())[:4])) for row in rows}
    os.makedirs(args.values, exist_ok=True)
    for run in args.runs:
        seed = utils.saved_args(run, "sample.py")["seed"]
        loss, top1 = evaluate_all(run, os.path.join(args.values, f"{seed}.csv"))
        kinds = {"loss": loss, "top1": 100 - top1}
        found += [{"supernet": seed, "error": k} | correlations(v, truth) for k, v in kinds.items()]
        utils.write_csv(args.out.removesuffix(".csv") + "_ranks.csv", found)
        for error, algorithm, budget in itertools.product(kinds, ALGORITHMS, BUDGETS):
            head = {"supernet": seed, "error": error, "algorithm": algorithm, "budget": budget}
            too_few = algorithm == "NA-RS" and budget < 50
            if not too_few and tuple(map(str, head.values())) not in done:
                rows.append(head | search(args, table, kinds[error], *ALGORITHMS[algorithm], budget))
                utils.write_csv(args.out, rows)


if __name__ == "__main__":
    utils.run(main, parse_args())
