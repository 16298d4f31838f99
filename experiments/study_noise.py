"""Where a neighborhood pays: sampling algorithms on the table, by the noise of an evaluation.

    python experiments/study_noise.py --bench T.csv --out noise.csv [--plot noise.png]

Runs sample.py for each algorithm, budget and noise, with repeats that draw another noise each, and writes the
test accuracy of what was found: mean and standard deviation, CIFAR-100 and ImageNet-16-120. What is in the
file already is not run again. The plot shows the gain over random search of equal budget, by noise.
"""

import argparse
import csv
import itertools
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import sample
import utils

ALGORITHMS = [(name, radius) for name in ("rs", "ls", "ea") for radius in (0, 1)]
BUDGETS, NOISE = (100, 400, 1600), (0, 1, 2, 4)
COLUMNS = ("cifar100_test_200", "imagenet16_test_200")


def run(args, algo, radius, budget, noise):
    """One row: what the repeats of one search found."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--algo {algo} --neighborhood {radius} --budget {budget} --noise {noise}".split()
        flags += ["--bench", args.bench, "--bench_metric", args.metric, "--repeats", str(args.repeats)]
        one = sample.parse_args([*flags, "--seed", str(args.seed), "--save", os.path.join(folder, "run")])
        sample.main(one)
        with open(os.path.join(folder, "run", "result.json")) as file:
            columns = json.load(file)["columns"]
    row = {"algorithm": sample.method_name(one), "budget": budget, "noise": noise, "repeats": args.repeats}
    for name in COLUMNS:
        row |= {name: round(columns[name]["mean"], 3), f"{name}_sd": round(columns[name]["std"], 3)}
    return row


def plot(rows, path):
    """Gain over random search by noise, one line an algorithm, one panel a budget."""
    from matplotlib.figure import Figure

    found = {(r["algorithm"], int(r["budget"]), float(r["noise"])): float(r[COLUMNS[0]]) for r in rows}
    figure = Figure((9, 3.2), layout="constrained")
    styles = dict(
        zip(("NA-RS", "LS", "NA-LS", "REA", "NA-REA"), ("C0--", "C1-", "C1--", "C2-", "C2--"), strict=True)
    )
    for axes, budget in zip(figure.subplots(1, 3, sharey=True), BUDGETS, strict=True):
        for name, style in styles.items():
            gains = [found[name, budget, n] - found["RS", budget, n] for n in NOISE]
            axes.plot(NOISE, gains, style, marker="o", ms=3, label=name)
        axes.axhline(0, color="black", lw=0.8)
        axes.set(title=f"{budget:,} evaluations", xlabel="noise of an evaluation (points)", xticks=NOISE)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("CIFAR-100, gain over RS (points)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", required=True, help="the NAS-Bench-201 table")
    parser.add_argument("--metric", default="cifar10_test_12", help="its column that is searched on")
    parser.add_argument("--out", required=True, help="the CSV file")
    parser.add_argument("--plot", help="a picture of it")
    parser.add_argument("--repeats", type=int, default=500, help="of each search, two or more")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    rows = []
    if os.path.exists(args.out):
        with open(args.out, newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(r["algorithm"], str(r["budget"]), str(r["noise"])) for r in rows}
    for budget, noise, (algo, radius) in itertools.product(BUDGETS, NOISE, ALGORITHMS):
        name = sample.method_name(argparse.Namespace(algo=algo, neighborhood=radius))
        if (name, str(budget), str(noise)) not in done:
            rows.append(run(args, algo, radius, budget, noise))
            utils.write_csv(args.out, rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
