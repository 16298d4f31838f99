"""Gradient search in the NAS-Bench-201 space with and without neighborhoods: searches on images, accuracies
from the table.

    python experiments/study_nasbench201.py RUNS --bench T.csv --data DIR [--setting deep] [--jobs 2]
    python experiments/study_nasbench201.py RUNS --bench T.csv --data DIR --setting relax
    python experiments/study_nasbench201.py RUNS --bench T.csv --report

Runs the grid of METHODS, or of RELAXED, each with its number of seeds, as commands of search.py, with a
folder each under RUNS, and prints the table; --out keeps a row a search. Some have a twist that is no flag of
search.py: another function in the place of one of its own, see TWISTS. Run again, it goes on where it
stopped: what is finished is kept, what is not is resumed. args.json of a run does not hold its twist: go on
with it by this script.
--only picks methods by name; --seeds raises or lowers the number of seeds. Each job runs on one thread.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import search
import utils
from neighborhood import PERTURB, roll

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IMAGES = "--space nasbench201 --dataset folder --image_size 16 --batch_size 64 --arch_learning_rate 3e-3"
SETTINGS = {  # reduced: a supernet in which DARTS mostly does well, and one deep enough for it to suffer
    "healthy": f"{IMAGES} --init_channels 8 --layers 1 --epochs 15",
    "deep": f"{IMAGES} --init_channels 8 --layers 3 --epochs 15",
    # Of RELAXED, on all 50,000 images: 780 steps of warm-up, 5,070 steps of both
    "relax": f"{IMAGES} --init_channels 8 --layers 1 --epochs 15 --arch_warmup 2 --arch_learning_rate 1e-3",
}
NEAR = "--neighborhood 1 --agg mean --neighbors 8 --neighbor_norm own"
METHODS = {  # flags, seeds; some with a twist, see below
    "DARTS": ("--neighborhood 0", 4),
    "roll": (f"{NEAR} --perturb roll", 4),
    "move": (f"{NEAR} --perturb move", 2),
    "replace": (f"{NEAR} --perturb replace", 2),
    "roll, radius 2": (f"{NEAR} --perturb roll --neighborhood 2", 2),
    "roll, radius 3": (f"{NEAR} --perturb roll --neighborhood 3", 4),
    "roll, logsumexp": (f"{NEAR} --perturb roll --agg logsumexp", 2),
    "roll, 4 neighbors": (f"{NEAR} --perturb roll --neighbors 4", 2),
    "roll, 16 neighbors": (f"{NEAR} --perturb roll --neighbors 16", 4),
    "roll, 32 neighbors": (f"{NEAR} --perturb roll --neighbors 32", 2),
    "roll, weight step on the neighbors": (f"{NEAR} --perturb roll --weight_step neighbors", 2),
    "roll, radius 3, 16 neighbors": (f"{NEAR} --perturb roll --neighborhood 3 --neighbors 16", 4),
    "roll, radius 3, weight step on the neighbors": (
        f"{NEAR} --perturb roll --neighborhood 3 --weight_step neighbors",
        2,
    ),
    "roll, 16 neighbors, shared statistics": (
        f"{NEAR} --perturb roll --neighbors 16 --neighbor_norm shared",
        4,
    ),
    "DARTS, warm-up": ("--neighborhood 0 --arch_warmup 5", 4),
    "roll, 16 neighbors, warm-up": (f"{NEAR} --perturb roll --neighbors 16 --arch_warmup 5", 4),
    "roll, 16 neighbors, center in the batch": (
        f"{NEAR} --perturb roll --neighbors 16",
        2,
        "center in the batch",
    ),
    "roll, 16 neighbors, radius 3 to 1": (
        f"{NEAR} --perturb roll --neighborhood 3 --neighbors 16",
        2,
        "radius shrinks",
    ),
    "roll, 16 neighbors, sharpened": (f"{NEAR} --perturb roll --neighbors 16", 2, "sharpened"),
    "roll, 16 neighbors, without none": (f"{NEAR} --perturb roll --neighbors 16", 2, "without none"),
    "DARTS, batch norm in 16 groups": (f"{NEAR} --neighbors 16", 2, "no neighbors"),
    "DARTS, a third of the architecture learning rate": ("--neighborhood 0 --arch_learning_rate 1e-3", 2),
}
RELAXED = {  # sampled relaxations draw one a step, as GDAS and DrNAS do: with --neighbors 1 its neighbor
    "DARTS": ("--neighborhood 0", 4),
    "NA-DARTS": ("--neighborhood 1", 4),
    "NA-DARTS, 1 neighbor": ("--neighborhood 1 --neighbors 1", 4),
    "GDAS": ("--neighborhood 0 --relax gumbel", 4),
    "NA-GDAS": ("--neighborhood 1 --neighbors 1 --relax gumbel", 4),
    "DrNAS": ("--neighborhood 0 --relax dirichlet", 4),
    "NA-DrNAS": ("--neighborhood 1 --neighbors 1 --relax dirichlet", 4),
    "DARTS-ascent": ("--neighborhood 1 --perturb ascent", 4),
}
COLUMNS = ("cifar10_test_200", "cifar100_test_200", "imagenet16_test_200")
# Two-sided 95 % quantiles of Student's t by degrees of freedom, from 1 on, for the paired differences
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


# ------------------------------------------------------------------------------------------------------------
# What was tried and is no flag of search.py
# ------------------------------------------------------------------------------------------------------------

draw_shifts, mixtures = search.draw_shifts, search.mixtures


def center_in_the_batch(model, args, epoch, g):
    shifts = draw_shifts(model, args, epoch, g)
    shifts[0] = 0
    return shifts


def radius_shrinks(model, args, epoch, g):
    radius = args.neighborhood - 3 * (epoch - 1) // args.epochs
    return draw_shifts(model, argparse.Namespace(**{**vars(args), "neighborhood": radius}), epoch, g)


def sharpened(alpha, shifts, args, g, t=0.0):
    """The neighbors of softmax(4 alpha), a temperature of a quarter; the center, which trains the weights, is
    that of DARTS."""
    return mixtures(4 * alpha if shifts.any() else alpha, shifts, args, g, t)


def without_none(p, s):
    """`none`, the first operation, keeps what it has, and the other four are rolled: by 1, 2, 3 or 1."""
    return torch.cat([p[..., :1].expand(*s.shape, 1), roll(p[..., 1:], 1 + (s - 1) % 3)], -1)


TWISTS = {
    "center in the batch": lambda: setattr(search, "draw_shifts", center_in_the_batch),
    "radius shrinks": lambda: setattr(search, "draw_shifts", radius_shrinks),
    "sharpened": lambda: setattr(search, "mixtures", sharpened),
    "without none": lambda: PERTURB.update(roll=without_none),
    "no neighbors": lambda: PERTURB.update(roll=lambda p, s: p),
}


def twisted(name, *words):
    """search.py with a twist, on its command line."""
    TWISTS[name]()
    utils.run(search.main, search.parse_args(words))


# ------------------------------------------------------------------------------------------------------------
# The grid
# ------------------------------------------------------------------------------------------------------------


def methods(args):
    return RELAXED if args.setting == "relax" else METHODS


def folder(args, method, seed):
    name = method.replace(", ", "-").replace(" ", "_")
    return os.path.join(args.runs, args.setting, f"{name}-seed{seed}")


def rows(path):
    """The rows of metrics.csv of a run, or none."""
    try:
        with open(os.path.join(path, "metrics.csv"), newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def finished(path):
    return os.path.exists(os.path.join(path, "result.json"))  # which a search writes last


def run_to_the_end(program, flags, path):
    """A run, or what is left of it, in its own folder on one thread. program: the script and what comes first
    on its command line. flags: its words, which a run that has begun must have been given too."""
    if finished(path):
        return
    begun = os.path.exists(os.path.join(path, "checkpoint.pt"))
    words = [*flags, "--resume" if begun else "--save", path]
    quiet = dict(stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    status = subprocess.run([sys.executable, *program, *words], **quiet).returncode
    if status:
        sys.exit(f"{path}: the run ended with status {status}; run this again to go on")


def run_search(args, method, seed):
    flags, _, *named = methods(args)[method]
    program = [os.path.abspath(__file__), "--twist"] if named else [os.path.join(ROOT, "search.py")]
    words = [*SETTINGS[args.setting].split(), *flags.split(), "--seed", str(seed)]
    words += ["--data", args.data, "--bench", args.bench]
    path = folder(args, method, seed)
    if not finished(path):
        run_to_the_end([*program, *named], words, path)
        print(f"{method}, seed {seed}: {rows(path)[-1]['genotype']}", flush=True)


def mean_sd(values):
    sd = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{sd}"


def result(path):
    with open(os.path.join(path, "result.json")) as file:
        return json.load(file)


def largest_weight(path):
    """The largest weight of softmax(alpha) on an edge at the end of a search, mean over the edges."""
    alpha = utils.load_checkpoint(path)["trajectory"]["alpha"][-1]
    return round(alpha.softmax(-1).amax(-1).mean().item(), 3)


def paired(runs, other):
    """Mean difference of CIFAR-100 accuracy over the seeds that both have, its 95 % interval, in points."""
    pairs = [
        float(runs[seed][-1][COLUMNS[1]]) - float(other[seed][-1][COLUMNS[1]])
        for seed in runs
        if seed in other
    ]
    if len(pairs) < 2:
        return ""
    t = T95[min(len(pairs) - 1, len(T95)) - 1]  # of more pairs than the table has, a little wide
    half = t * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{statistics.mean(pairs):+.2f} ({half:.2f})"


def report(args, grid):
    """The tables: accuracies of the last cell, differences from DARTS; sharpness; accuracy by epoch."""
    last = {}
    for method, seed in grid:
        path = folder(args, method, seed)
        if finished(path):
            last.setdefault(method, {})[seed] = rows(path)
    sharp = lambda method, seed: result(folder(args, method, seed))["sharpness"]
    print(f"\n{args.setting}: {SETTINGS[args.setting]}\n")
    print("| method | seeds | CIFAR-10 | CIFAR-100 | ImageNet-16-120 | against radius 0 | skip | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for method, runs in last.items():
        cells = [mean_sd([float(run[-1][column]) for run in runs.values()]) for column in COLUMNS]
        plain = method[3:].partition(",")[0] if method.startswith("NA-") else "DARTS"
        cells.append(paired(runs, last.get(plain, {})) if method != plain else "")
        skips = statistics.mean(float(run[-1]["skip_connects"]) for run in runs.values())
        seconds = statistics.median(float(row["seconds"]) for run in runs.values() for row in run)
        print(f"| {method} | {len(runs)} | {' | '.join(cells)} | {skips:.1f} | {seconds:.0f} |")
    if args.out:
        names = ("genotype", *COLUMNS, "skip_connects", "parameter_free")
        utils.write_csv(
            args.out,
            [
                {"setting": args.setting, "method": method, "seed": seed}
                | {name: run[-1][name] for name in names}
                | {"largest_weight": largest_weight(folder(args, method, seed))}
                | {k: round(sharp(method, seed)[k], 4) for k in ("center_loss", "mean_loss", "max_loss")}
                | {"epoch_seconds": statistics.median(float(row["seconds"]) for row in run)}
                for method, runs in last.items()
                for seed, run in runs.items()
            ],
        )
    print("\nLosses of the supernet in the end: at the center, and over radius 1 less that\n")
    print("| method | center | mean | largest | spread | Hessian eigenvalue |")
    print("|---|---|---|---|---|---|")
    for method, runs in last.items():
        ends = [sharp(method, seed) for seed in runs]
        columns = [
            [one["center_loss"] for one in ends],
            [one["mean_loss"] - one["center_loss"] for one in ends],
            [one["max_loss"] - one["center_loss"] for one in ends],
            [one["loss_std"] for one in ends],
            [one["hessian_eigenvalue"] for one in ends],
        ]
        means = ("" if None in one else f"{statistics.mean(one):.3f}" for one in columns)  # GDAS: no Hessian
        print(f"| {method} | {' | '.join(means)} |")
    print("\nCIFAR-100 by epoch")
    for method, runs in last.items():
        epochs = zip(*([float(row[COLUMNS[1]]) for row in run] for run in runs.values()), strict=True)
        print(f"{method}: {', '.join(mean_sd(values) for values in epochs)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", help="folder of the runs")
    parser.add_argument("--bench", required=True, help="the NAS-Bench-201 table")
    parser.add_argument("--data", help="image folder, see --dataset folder of search.py")
    parser.add_argument("--setting", choices=SETTINGS, default="healthy", help="the reduced setting")
    parser.add_argument("--only", nargs="+", choices=METHODS | RELAXED, help="methods to run (default: all)")
    parser.add_argument("--seeds", type=int, help="seeds of each, 0 to N - 1 (default: 4, or 2)")
    parser.add_argument("--jobs", type=utils.within(int, 1, 256), default=utils.cores(), help="side by side")
    parser.add_argument(
        "--report", action="store_true", help="print the table of what is finished, run nothing"
    )
    parser.add_argument("--out", help="a CSV file, a row a search")
    args = parser.parse_args()
    if unknown := set(args.only or ()) - methods(args).keys():
        parser.error(f"--only: --setting {args.setting} has no {', '.join(sorted(unknown))}")
    most = max(seeds for _, seeds, *_ in methods(args).values())
    grid = [  # seed by seed, so that what is finished early compares all methods
        (method, seed)
        for seed in range(args.seeds or most)
        for method in args.only or methods(args)
        if seed < (args.seeds or methods(args)[method][1])
    ]
    if not args.report:
        if not args.data:
            parser.error("--data DIR is needed to search")
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda one: run_search(args, *one), grid))
    report(args, grid)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--twist"]:  # for itself: --twist NAME and flags of search.py
        twisted(*sys.argv[2:])
    else:
        main()
