"""Where a neighborhood pays on a real evaluator: sampling algorithms on supernets, the table being the truth.

    python experiments/study_supernet.py RUN... --bench T.csv --values DIR --out supernet.csv

RUN: folders of `sample.py --eval supernet --space nasbench201`. Each supernet evaluates all 15,625
architectures as sample.py does. Their loss and top-1 accuracy lie in DIR/<seed>.csv, from which a study that
was stopped goes on. Then sample.py's searches run on these errors, 100 times each; a row of the CSV file has
the mean and standard deviation of the true test accuracies of what they found. The rank correlations with the
table, of architectures and of means over their neighborhoods, go to <out>_ranks.csv.
"""

import csv
import itertools
import os
import statistics
import sys
import time
from argparse import Namespace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import nats_bench
import sample
import train
import utils
from genotypes import nasbench201_architectures
from model import LAYOUT
from model_search import SUPERNETS
from neighborhood import ball_shifts, table_neighborhoods

ALGORITHMS = [(name, radius) for name in ("rs", "ls", "ea") for radius in (0, 1)]
BUDGETS = (10, 30, 100, 300, 1000, 3000)
COLUMNS = ("cifar10_test_200", "cifar100_test_200", "imagenet16_test_200")
BEST = 1000  # architectures by the table, among which the correlations are reported too
ARCHS = list(itertools.product(range(5), repeat=6))  # as indices, in the order of the table


def evaluate_all(run, path):
    """Losses (nats) and top-1 accuracies (percent) of all architectures on the supernet of a run, (2, 15625).
    path: the CSV file that holds what is done."""
    rows = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    if len(rows) < len(ARCHS):
        checkpoint, names = utils.load_checkpoint(run), nasbench201_architectures()
        flags, device = Namespace(**checkpoint["args"]), utils.device_of(checkpoint["args"]["device"])
        pieces, g = [slice(0, flags.batch_size)], utils.generator(flags.seed, 1)
        _, held_out, data = train.load_train(flags, device, pieces, g, slice(None))
        supernet = SUPERNETS["nasbench201"](flags.init_channels, flags.layers, len(data["classes"]))
        utils.restore({"model": supernet.to(device)}, checkpoint)
        LAYOUT["cpu"] = torch.channels_last  # half the time of one path
        measure, started = sample.on_held_out(supernet, held_out, flags.seed), time.time()
        for i in range(len(rows), len(ARCHS)):
            rows.append({"arch": names[i], **dict(zip(("loss", "top1"), measure(ARCHS[i]), strict=True))})
            if (i + 1) % 500 == 0 or i + 1 == len(ARCHS):
                utils.write_csv(path, rows)
                print(f"{run}: {i + 1} evaluated, {time.time() - started:.0f} s", flush=True)
    return torch.tensor([[float(row[name]) for row in rows] for name in ("loss", "top1")]).double()


def correlations(errors, truth):
    """Rank correlations with the true errors (15625,), of errors and of their means over neighborhoods, among
    all and among the best."""
    around = errors[table_neighborhoods(torch.tensor(ARCHS), ball_shifts(6, 5, 1), 5)].mean(1)
    best = truth.argsort()[:BEST]
    kinds = {"single": errors, "neighborhood": around}
    of_all = {name: sample.spearman(values, truth) for name, values in kinds.items()}
    return of_all | {f"{name}_best": sample.spearman(v[best], truth[best]) for name, v in kinds.items()}


def search(args, table, errors, algo, radius, budget):
    """The true accuracies of what the repeats of one search found, means and standard deviations."""
    known, place = dict(zip(ARCHS, errors.tolist(), strict=True)), {a: i for i, a in enumerate(ARCHS)}
    words = ["--algo", algo, "--neighborhood", str(radius), "--budget", str(budget), "--bench", args.bench]
    flags, rngs = sample.parse_args(words), [utils.generator(seed, 4) for seed in range(args.repeats)]
    found = [place[sample.search(flags, lambda archs: [known[a] for a in archs], g)[0]] for g in rngs]
    row = {"algorithm": sample.method_name(flags), "budget": budget, "repeats": args.repeats}
    for name in COLUMNS:
        values = table[name][found].tolist()
        row |= {name: round(statistics.mean(values), 3), f"{name}_sd": round(statistics.stdev(values), 3)}
    return row


def main(argv=None):
    parser = utils.Parser(__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, one a seed of the supernet")
    parser.add_argument("--bench", required=True, help="the NAS-Bench-201 table")
    parser.add_argument("--values", required=True, help="folder of what the supernets say")
    parser.add_argument("--out", required=True, help="the CSV file of the searches")
    parser.add_argument("--repeats", type=utils.within(int, 2, 100_000), default=100, help="of each search")
    args = parser.parse_args(argv)
    table, rows, ranks = nats_bench.load_table(args.bench), [], []
    os.makedirs(args.values, exist_ok=True)
    for run in args.runs:
        seed = utils.saved_args(run, "sample.py")["seed"]
        loss, top1 = evaluate_all(run, os.path.join(args.values, f"{seed}.csv"))
        for error, errors in (("loss", loss), ("top1", 100 - top1)):
            head = {"supernet": seed, "error": error}
            ranks.append(head | correlations(errors, 100 - table[COLUMNS[0]]))
            print(ranks[-1], flush=True)
            for (algo, radius), budget in itertools.product(ALGORITHMS, BUDGETS):
                if budget > 24 or algo != "rs" or not radius:  # NA-RS begins with a neighborhood of 25
                    rows.append(head | search(args, table, errors, algo, radius, budget))
        utils.write_csv(args.out, rows)
        utils.write_csv(args.out.removesuffix(".csv") + "_ranks.csv", ranks)


if __name__ == "__main__":
    main()
