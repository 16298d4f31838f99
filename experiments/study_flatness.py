"""Do architectures with better neighborhoods transfer better? A study on a NAS-Bench-201 table.

    python tests/study_flatness.py --bench T.csv
    python tests/study_flatness.py --bench T.csv --bench_metric cifar10_test_12 --neighborhood 2 --agg max

Architectures are put into bins of equal search performance, a column of the table. Within a bin, g over the
neighborhood says how flat the basin is: an architecture whose neighbors are good is flatter than one of the
same performance whose neighbors are bad. Printed for each bin and each column of another data set: the number
of architectures, the rank correlation (Spearman) of flatness and accuracy, and the mean accuracy of the
flattest and of the sharpest quarter, in percent. Bins are half-open, [low, low + width).
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import utils
from neighborhood import AGGREGATE, ball_shifts, table_neighborhoods


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("--bench", required=True, help="a CSV file, or a folder of official NATS-Bench files")
    add("--bench_metric", default="cifar10_valid_200", help="column of the search performance")
    add("--neighborhood", type=int, default=1, help="radius")
    add("--agg", choices=AGGREGATE, default="mean", help="aggregation g of the neighbors' errors")
    add("--width", type=float, default=0.5, help="width of a bin, points of accuracy")
    add("--lowest", type=float, default=80.0, help="search performance at which the bins begin, percent")
    add("--fewest", type=int, default=40, help="fewest architectures in a bin that is shown")
    add("--save", help="write the rows to this CSV file")
    # fmt: on
    args = parser.parse_args(argv)
    ranges = dict(neighborhood=(1, 6), width=(0.01, 100), lowest=(0, 100), fewest=(8, 15_625))
    for name, (low, high) in ranges.items():
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} {getattr(args, name)} is out of range: it lies between {low} and {high}")
    return args


def rank_correlation(x, y):
    """Spearman's: the correlation of ranks, equal values sharing their mean rank."""
    ranks = []
    for values in (x, y):
        _, group, count = values.unique(return_inverse=True, return_counts=True)
        ranks.append((count.cumsum(0) - (count - 1) / 2)[group].double())
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def study(table, metric, radius, agg, width, lowest, fewest):
    """The rows of the study, dicts; `all` stands for the mean over bins, weighted by their counts."""
    accuracy, members = table[metric], table_neighborhoods(5, ball_shifts(6, 5, radius))
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
                    "correlation": rank_correlation(x, y),
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
                for key in ("correlation", "flattest", "sharpest")
            }
            rows.append({"column": name, "bin": "all", "count": total, **means})
    return rows


def main(args):
    table = utils.load_table(args.bench)
    if args.bench_metric not in table:
        raise utils.BadInput(f"{args.bench} has no column {args.bench_metric}: it has {', '.join(table)}")
    rows = study(table, args.bench_metric, args.neighborhood, args.agg, args.width, args.lowest, args.fewest)
    if not rows:
        raise utils.BadInput("no bin has enough architectures: widen --width, or lower --lowest or --fewest")
    rows.sort(key=lambda row: row["column"])
    print(f"{'column':22}{'bin':>6}{'count':>7}{'corr.':>8}{'flattest':>10}{'sharpest':>10}{'gain':>7}")
    for row in rows:
        gain = row["flattest"] - row["sharpest"]
        print(
            "{column:22}{bin:>6}{count:7}{correlation:8.2f}{flattest:10.2f}{sharpest:10.2f}".format(**row),
            end="",
        )
        print(f"{gain:7.2f}")
    if args.save:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        utils.write_file(args.save, "\n".join(lines) + "\n")


if __name__ == "__main__":
    utils.run(main, parse_args())
