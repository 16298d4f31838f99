"""A long search in one process: does it hold on to memory, and do its files stay readable?

    python experiments/long_run.py                     200 epochs of a tiny search, two minutes on a CPU
    python experiments/long_run.py --epochs 40 --save runs/long

Prints the resident memory after the fifth and after the last epoch. Fails if it has grown by more than 5 %,
or if metrics.csv or log.txt lack an epoch. Linux alone, since it reads /proc.
"""

import argparse
import csv
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import search
import utils

FLAGS = (
    "--dataset shapes --image_size 8 --space nasbench201 --init_channels 2 --layers 1 --batch_size 64 "
    "--neighbors 8 --device cpu"
)


def resident():
    """Resident memory of this process, MiB: what it has allocated, without the pages of files, which the
    system takes and gives."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def long_run(folder, epochs):
    """Run the search; returns the memory after each epoch (MiB) and what is wrong with the files."""
    memory, save, draw = [], utils.RunFolder.save, utils.draw_shapes

    def save_and_measure(run, parts, epoch, rows, args):
        save(run, parts, epoch, rows, args)
        if epoch:
            memory.append(resident())

    utils.RunFolder.save, utils.draw_shapes = (
        save_and_measure,
        lambda n, size, seed: draw(n // 20, size, seed),
    )
    try:
        search.main(search.parse_args([*FLAGS.split(), "--epochs", str(epochs), "--save", folder]))
    finally:
        utils.RunFolder.save, utils.draw_shapes = save, draw
    with open(os.path.join(folder, "metrics.csv"), newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    with open(os.path.join(folder, "log.txt"), encoding="utf-8") as file:
        lines = [line.split(":")[0] for line in file if line.startswith("epoch ")]
    wrong, numbers = [], [str(i) for i in range(1, epochs + 1)]
    if [row["epoch"] for row in rows] != numbers or any(None in row or None in row.values() for row in rows):
        wrong.append("metrics.csv is not a row an epoch")
    if lines != [f"epoch {i}" for i in numbers]:
        wrong.append("log.txt is not a line an epoch")
    return memory, wrong


def main(args):
    torch.set_num_threads(1)
    memory, wrong = long_run(args.save or utils.new_run_path("search", "long"), args.epochs)
    growth = 100 * (memory[-1] / memory[4] - 1)
    if growth > 5:
        wrong.append("the memory has grown by more than 5 %")
    print(
        f"{args.epochs} epochs: {memory[4]:.1f} MiB after epoch 5, {max(memory):.1f} at most, "
        f"{memory[-1]:.1f} at the end ({growth:+.2f} %); {'; '.join(wrong) or 'all right'}"
    )
    return len(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=200, help="epochs, more than five")
    parser.add_argument("--save", help="run folder (default: a new one in runs)")
    raise SystemExit(min(1, main(parser.parse_args())))
