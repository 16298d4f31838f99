"""Do architectures with better neighborhoods transfer better? A study on a NAS-Bench-201 table.

    python experiments/study_flatness.py --bench T.csv
    python experiments/study_flatness.py --bench T.csv --bench_metric cifar10_test_12 --neighborhood 2

Architectures are put into bins of equal search performance, a column of the table. Within a bin, g over the
neighborhood says how flat the basin is: an architecture whose neighbors are good is flatter than one of the
same performance whose neighbors are bad. Printed for each bin and each column of another data set: the number
of architectures, the rank correlation (Spearman) of flatness and accuracy, the same with what both owe to
the search performance taken out (given), and the mean accuracy of the flattest and of the sharpest quarter,
in percent. Bins are half-open, [low, low + width).
"""

import itertools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import nats_bench
import sample
import utils
from neighborhood import AGGREGATE, ball_shifts, table_neighborhoods
from utils import within


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--bench", required=True, help="a CSV file, or a folder of official NATS-Bench files")
    add("--bench_metric", default="cifar10_valid_200", help="column of the search performance")
    add("--neighborhood", type=within(int, 1, 6), default=1, help="radius")
    add("--agg", choices=AGGREGATE, default="mean", help="aggregation g of the neighbors' errors")
    add("--width", type=within(float, 0.01, 100), default=0.5, help="width of a bin, points of accuracy")
    add("--lowest", type=within(float, 0, 100), default=80.0,
        help="search performance at which the bins begin, percent")
    add("--fewest", type=within(int, 8, 15_625), default=40,
        help="fewest architectures in a bin that is shown")
    add("--save", help="write the rows to this CSV file")
    # fmt: on
    return parser.parse_args(argv)


def given(x, y, z):
    """The partial rank correlation of x and y: without what both owe to z."""
    xy, xz, yz = (sample.spearman(*pair) for pair in ((x, y), (x, z), (y, z)))
    return (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5


def study(table, metric, radius, agg, width, lowest, fewest):
    """The rows of the study, dicts; `all` stands for the mean over bins, weighted by their counts."""
    every = torch.tensor(list(itertools.product(range(5), repeat=6)))
    accuracy, members = table[metric], table_neighborhoods(every, ball_shifts(6, 5, radius), 5)
    flatness = -AGGREGATE[agg](100 - accuracy[members].T)  # nan where the table lacks a neighbor
    columns = [name for name in table if name.split("_")[0] != metric.split("_")[0]]
    rows = []
    for k in range(round((100 - lowest) / width) + 1):
        low = lowest + k * width
        inside = (accuracy >= low) & (accuracy < low + width) & ~flatness.isnan()
        for name in columns:
            known = inside & ~table[name].isnan()
            if known.sum() < fewest:
                continue
            x, y = flatness[known], table[name][known]
            order = x.argsort(stable=True)
            quarter = len(order) // 4
            rows.append(
                {
                    "column": name,
                    "bin": f"{low:g}",
                    "count": len(order),
                    "correlation": sample.spearman(x, y),
                    "given_accuracy": given(x, y, accuracy[known]),
                    "flattest": y[order[-quarter:]].mean().item(),
                    "sharpest": y[order[:quarter]].mean().item(),
                }
            )
    for name in columns:
        part = [row for row in rows if row["column"] == name and row["bin"] != "all"]
        total = sum(row["count"] for row in part)
        if total:
            means = {
                key: sum(row["count"] * row[key] for row in part) / total
                for key in ("correlation", "given_accuracy", "flattest", "sharpest")
            }
            rows.append({"column": name, "bin": "all", "count": total, **means})
    return rows


def main(args):
    table = nats_bench.load_table(args.bench, args.bench_metric)
    rows = study(table, args.bench_metric, args.neighborhood, args.agg, args.width, args.lowest, args.fewest)
    if not rows:
        raise utils.BadInput("no bin has enough architectures: widen --width, or lower --lowest or --fewest")
    rows.sort(key=lambda row: row["column"])
    print(
        f"{'column':22}{'bin':>6}{'count':>7}{'corr.':>7}{'given':>7}{'flattest':>10}{'sharpest':>10}{'gain':>7}"
    )
    shown = (
        "{column:22}{bin:>6}{count:7}{correlation:7.2f}{given_accuracy:7.2f}{flattest:10.2f}{sharpest:10.2f}"
    )
    for row in rows:
        print(shown.format(**row) + f"{row['flattest'] - row['sharpest']:7.2f}")
    if args.save:
        utils.write_csv(args.save, rows)


if __name__ == "__main__":
    utils.run(main, parse_args())
