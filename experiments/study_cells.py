"""NA_DARTS and DARTS_HERE, chosen as DARTS chooses its cells: search with several seeds, train each cell
briefly, keep the one that is best on held-out images, then train and test it beside known and random cells.

    python experiments/study_cells.py RUNS --data DIR --part DIR [--jobs 2]

Both are image folders, see --dataset folder of search.py: --data holds what is searched on, --part what cells
are trained on, with the test images in val. Every job is a command of search.py or train.py with a folder
under RUNS. Run again, it goes on where it stopped: what is finished is kept, what is not is resumed. Each job
runs on one thread. After each step, it prints its table and writes RUNS/<step>.csv, a row a job.

search      four seeds of each method in the DARTS space
choose      each cell, and random ones to compare with, two seeds, with a part of the training images held
            out; the test accuracy, which train.py reports at the end, is not looked at
test        the best cell of each method, published cells and random ones, three seeds
equal       the first four of these, each with the channels that bring its multiply-accumulates closest to
            those of the largest
robust      S2 and S3 of RobustDARTS, where plain DARTS is known to collapse: three seeds of it and of
            NA-DARTS, and their cells trained once, for 6 epochs and otherwise as in choose
"""

import argparse
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from study_nasbench201 import ROOT, result, run_to_the_end

import genotypes
import model
import sample
import utils

# Reduced settings. A search has 781 steps of warm-up, then 1,562 steps of weights and alpha. Steps times the
# learning rate of alpha are 6.2, with DARTS's defaults 5.9.
IMAGES = "--dataset folder --image_size 16 --layers 8"
SEARCH = f"{IMAGES} --init_channels 8 --batch_size 32 --epochs 3 --arch_warmup 1 --arch_learning_rate 4e-3"
METHODS = {"DrNAS": "--relax dirichlet --neighborhood 0", "NA-DrNAS": "--relax dirichlet --neighborhood 1"}
SOFTMAX = {"DARTS": "--neighborhood 0", "NA-DARTS": "--neighborhood 1"}
ROBUST = {"S2": "--ops skip_connect sep_conv_3x3", "S3": "--ops none skip_connect sep_conv_3x3"}
CHOOSE = f"{IMAGES} --epochs 10 --valid_portion 0.2"
TEST = f"{IMAGES} --epochs 30"
ROBUST_TEST = f"{IMAGES} --epochs 6 --valid_portion 0.2"
CHANNELS = 8


def run(job):
    """One command of search.py or train.py, or what is left of it: returns its result.json."""
    path, script, flags = job
    run_to_the_end([os.path.join(ROOT, script)], flags, path)
    return result(path)


def write_table(args, step, jobs):
    """Run jobs, (row, script, flags), side by side in folders named by their rows. What came out goes into
    the rows, and these to RUNS/<step>.csv."""
    rows = [row for row, *_ in jobs]
    folder = os.path.join(args.runs, "test" if step == "equal" else step)  # some trainings are the same
    paths = [os.path.join(folder, "-".join(map(str, row.values()))) for row in rows]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(run, [(path, *job) for path, (_, *job) in zip(paths, jobs, strict=True)])
        for row, path, result in zip(rows, paths, results, strict=True):
            if "metrics" in result:  # of search.py
                row |= {"run": path, **result["metrics"]}
                row |= {f"sharpness_{name}": value for name, value in result["sharpness"].items()}
            else:
                names = "parameters", "macs", "valid_top1", "test_top1", "seconds"
                row |= {name: result[name] for name in names if name in result}
    utils.write_csv(os.path.join(args.runs, f"{step}.csv"), rows)
    return rows


def search(args, step, spaces, methods, seeds):
    """Searches of methods in spaces, both names with their flags. Prints and returns their rows."""
    flags = f"{SEARCH} --data {args.data}"
    rows = write_table(args, step, [
        (dict(space=space, method=method, seed=seed), "search.py",
         f"{flags} {spaces[space]} {methods[method]} --seed {seed}".split())
        for seed in range(seeds) for space in spaces for method in methods
    ])  # fmt: skip
    print("\n| search | accuracy of the supernet | skip connections of 16 | mean loss of radius 1 - center |")
    print("|---|---|---|---|")
    for row in rows:
        rise = row["sharpness_mean_loss"] - row["sharpness_center_loss"]
        name = f"{row['space']} {row['method']} {row['seed']}"
        print(f"| {name} | {row['arch_accuracy']:.1f} | {row['skip_connects']} | {rise:.3f} |")
    return rows


def train(args, step, setting, cells, seeds, channels):
    """Trainings of cells: what train.py --arch takes, and channels, by name. Prints the accuracies, of the
    held-out images where there are some, and returns their means by name."""
    flags = f"{setting} --data {args.part}".split()
    rows = write_table(args, step, [
        (dict(cell=name, channels=channels[name], seed=seed), "train.py",
         ["--arch", arch, *flags, "--init_channels", str(channels[name]), "--seed", str(seed)])
        for seed in range(seeds) for name, arch in cells.items()
    ])  # fmt: skip
    means, macs = {}, []
    print("\n| cell | channels | parameters | MACs (M) | top-1 by seed (%) | mean +- sd | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in cells:
        own = [row for row in rows if row["cell"] == name]
        top1 = [row.get("valid_top1", row["test_top1"]) for row in own]
        means[name] = statistics.mean(top1)
        macs.append(own[0]["macs"])
        spread = f" +- {statistics.stdev(top1):.2f}" if seeds > 1 else ""
        print(
            f"| {name} | {channels[name]} | {own[0]['parameters']:,} | {macs[-1] / 1e6:.2f} "
            f"| {' / '.join(f'{one:.2f}' for one in top1)} | {means[name]:.2f}{spread} "
            f"| {statistics.median(row['seconds'] for row in own):.0f} |"
        )
    if step == "equal":  # MACs are, by the choice of channels
        return means
    ranks = sample.spearman(torch.tensor(list(means.values())), torch.tensor(macs))
    print(f"rank correlation of accuracy and MACs: {ranks:.2f}")
    return means


def equal_channels(cells):
    """By name, the channels that bring each cell's multiply-accumulates closest to those of the largest."""

    def macs(arch, channels):
        return model.count_macs(model.NETWORKS["cifar"](channels, 10, 8, False, arch), 16)

    archs = {name: genotypes.parse_architecture(arch) for name, arch in cells.items()}
    most = max(macs(arch, CHANNELS) for arch in archs.values())
    return {
        name: min(range(CHANNELS, 2 * CHANNELS), key=lambda c: abs(macs(arch, c) - most))
        for name, arch in archs.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", help="folder of the runs")
    parser.add_argument("--data", required=True, help="image folder to search on")
    parser.add_argument("--part", required=True, help="image folder to train on")
    parser.add_argument("--jobs", type=utils.within(int, 1, 256), default=utils.cores(), help="side by side")
    args = parser.parse_args()

    found = search(args, "search", {"DARTS": ""}, METHODS, 4)
    runs = {f"{row['method']}_{row['seed']}": row for row in found}
    drawn = {}
    for seed in range(4):
        cell = genotypes.random_architecture(genotypes.SPACES["darts"], torch.Generator().manual_seed(seed))
        drawn[f"random_{seed}"] = genotypes.format_architecture(cell)
    cells = {name: row["run"] for name, row in runs.items()} | drawn
    held_out = train(args, "choose", CHOOSE, cells, 2, dict.fromkeys(cells, CHANNELS))
    chosen = [max((n for n in runs if runs[n]["method"] == method), key=held_out.get) for method in METHODS]
    four = {name: runs[name]["genotype"] for name in chosen}
    four |= {name: name for name in ("DARTS_V1", "DARTS_V2")}
    cells = four | drawn
    train(args, "test", TEST, cells, 3, dict.fromkeys(cells, CHANNELS))
    train(args, "equal", TEST, four, 3, equal_channels(four))
    found = search(args, "robust", ROBUST, SOFTMAX, 3)
    cells = {f"{row['space']}_{row['method']}_{row['seed']}": row["run"] for row in found}
    train(args, "robust_test", ROBUST_TEST, cells, 1, dict.fromkeys(cells, CHANNELS))


if __name__ == "__main__":
    main()
