"""The accuracies of the NAS-Bench-201 architectures, as one CSV file.

    python nats_bench.py FOLDER [OUT.csv]     convert official NATS-Bench topology files

FOLDER is the unpacked `NATS-tss-v1_0-3ffb9-simple`, which holds a file NNNNNN.pickle.pbz2 for each
architecture, or any part of it. OUT.csv (default: FOLDER.csv) has a column `index`, the number in the file's
name, a column `arch`, and columns `<dataset>_<split>_<epochs>` in percent. Files that are in it already are
not read again. The files are pickles, read by an unpickler that admits nothing which could run code.

Values are means over seeds, as the official API's `get_more_info(..., is_random=False)` gives them.
CIFAR-10's `valid` is that of networks trained on half of the training set, its `test` of those trained on
all of it.
Source: NATS-Bench (Dong, Liu, Musial, Gabrys; TPAMI 2021).
"""

import bz2
import csv
import glob
import math
import multiprocessing
import os
import pickle
import re
import signal

import torch

import utils
from genotypes import nasbench201_architectures

DATASETS = {  # columns of the table, less the epochs: data set and part of the official files
    "cifar10_valid": ("cifar10-valid", "x-valid"),
    "cifar10_test": ("cifar10", "ori-test"),
    "cifar100_valid": ("cifar100", "x-valid"),
    "cifar100_test": ("cifar100", "x-test"),
    "imagenet16_valid": ("ImageNet16-120", "x-valid"),
    "imagenet16_test": ("ImageNet16-120", "x-test"),
}
COLUMNS = [f"{name}_{epochs}" for epochs in (200, 12) for name in DATASETS]
COLUMN = re.compile(r"\w+_(valid|test)_[1-9]\d*")  # <dataset>_<split>_<epochs>


def parse_args(argv=None):
    parser = utils.Parser(__doc__)
    parser.add_argument("folder", help="official NATS-Bench topology files")
    parser.add_argument("out", nargs="?", help="the table (default: FOLDER.csv)")
    return parser.parse_args(argv)


def load_table(path, column=None):
    """The accuracies of NAS-Bench-201 architectures: a dict of column name to float64 tensor (15625,), in
    percent, in the order of `nasbench201_architectures`, nan where the table has no value.

    path: a CSV file with a column `arch` and columns <dataset>_<split>_<epochs>; other columns, and blank
    lines, do not count. Or a folder of official files, which is converted to FOLDER.csv first. Raises
    BadInput where it cannot be read, an architecture is unknown or doubled, a value is no percentage, or
    `column` is missing.
    """
    if os.path.isdir(path):
        if utils.processes()[0] == 0:  # one process converts, and the others find it done
            convert(path)
        utils.wait_for_processes()
        path = convert(path)
    archs = nasbench201_architectures()
    place = {arch: i for i, arch in enumerate(archs)}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise utils.BadInput(
            f"no table could be read from {path} ({utils.one_line(error)}): --bench takes a CSV file, or a "
            "folder of NATS-Bench files"
        ) from None
    known = [name for name in (rows or [[]])[0] if COLUMN.fullmatch(name)]
    if not rows or rows[0].count("arch") != 1 or len(set(known)) < len(known):
        raise utils.BadInput(
            f"{path} is not a table: its first line names a column arch, and each column once"
        )
    header, at = rows[0], rows[0].index("arch")
    if not known:
        names = ", ".join(map(repr, header))[:200]
        raise utils.BadInput(f"{path} has the columns {names}: expected names such as cifar10_valid_200")
    table = {name: [math.nan] * len(archs) for name in known}
    for number, row in enumerate(rows[1:], 2):
        if not "".join(row).strip():
            continue
        where = f"line {number} of {path}"
        if len(row) != len(header):
            raise utils.BadInput(
                f"{where} has {len(row)} values: expected {len(header)}, as in the first line"
            )
        i = place.pop(row[at], None)  # each is there once
        if i is None:
            what = "is no NAS-Bench-201 architecture: expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
            if row[at] in archs:
                what = "stands there twice: keep one of the lines"
            raise utils.BadInput(f"{where}: {row[at][:100]!r} {what}")
        for name, value in zip(header, row, strict=True):
            if value and name in table:
                try:
                    table[name][i] = float(value)
                except ValueError:
                    table[name][i] = -1.0
                if not 0 <= table[name][i] <= 100:
                    raise utils.BadInput(f"{where}: {value[:40]!r} is no percentage: expected 0 to 100")
    table = {name: torch.tensor(values, dtype=torch.float64) for name, values in table.items()}
    for name, values in table.items():
        if 0 <= values.nan_to_num(-1).max() <= 1:
            raise utils.BadInput(f"no {name} in {path} is above 1: are these percent? expected 0 to 100")
    if column is not None and column not in table:
        raise utils.BadInput(f"--bench_metric {column} is no column of {path}: it has {', '.join(table)}")
    return table


def accuracies(table, arch):
    """The columns of a table for an architecture string, in percent; None where it has no value."""
    if not table:
        return {}
    place = nasbench201_architectures().index(arch)
    return {name: None if column[place].isnan() else column[place].item() for name, column in table.items()}


# What the official files hold: NumPy's scalars under the old name and the new one
ADMITTED = ["collections.OrderedDict", "numpy.dtype"]
ADMITTED += ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]


class Unpickler(pickle.Unpickler):
    """Admits what the official files hold, and nothing that could run code."""

    def find_class(self, module, name):
        if f"{module}.{name}" in ADMITTED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_file(path):
    """One official topology file: (architecture string, accuracies in percent by column name).

    What the file does not hold is left out. Raises BadInput where it is no such file.
    """
    try:
        with bz2.open(path) as file:
            runs = Unpickler(file).load()
        arch, values = runs["200"]["arch_str"], {}
        if arch not in nasbench201_architectures():
            raise ValueError(f"unknown architecture {arch[:100]!r}")
        for epochs in ("200", "12"):
            for name, (dataset, part) in DATASETS.items():
                results = [
                    runs[epochs]["all_results"][dataset, seed]["eval_acc1es"].get(f"{part}@{int(epochs) - 1}")
                    for seed in runs[epochs]["dataset_seed"].get(dataset, ())
                ]
                if results and None not in results:
                    values[f"{name}_{epochs}"] = float(sum(results) / len(results))
        if not values or not all(0 <= value <= 100 for value in values.values()):
            raise ValueError("its accuracies are missing or no percentages")
    except Exception as error:  # what reading arbitrary bytes can raise is not a closed list
        raise utils.BadInput(
            f"{path} is not a NATS-Bench topology file ({utils.one_line(error)[:120]}): take it anew from "
            "the official archive NATS-tss-v1_0-3ffb9-simple"
        ) from None
    return arch, values


def leave_signals():
    """Of a pool's process: Ctrl-C is left to the process that started it, and SIGTERM, by which a pool ends
    its processes, ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def convert(folder, target=None):
    """Convert a folder of official topology files to a CSV file, whose path is returned: FOLDER.csv, or
    target. Files that are in it already are not read again. Raises BadInput where the folder holds none, or
    the target is another table."""
    from tqdm import tqdm

    target = target or f"{os.path.abspath(folder)}.csv"
    names = sorted(glob.glob("[0-9]" * 6 + ".pickle.pbz2", root_dir=folder))
    if not names:
        raise utils.BadInput(f"{folder} holds no NATS-Bench files: expected NNNNNN.pickle.pbz2")
    rows = {}
    if os.path.exists(target):
        try:
            with open(target, newline="", encoding="utf-8") as file:
                rows = {row.get("index"): row for row in csv.DictReader(file)}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = utils.one_line(error)
            raise utils.BadInput(f"{target} is no table ({reason}): move it, or name OUT.csv") from None
        if rows and not all(row.keys() == {"index", "arch", *COLUMNS} for row in rows.values()):
            raise utils.BadInput(f"{target} is another table, with other columns: move it, or name OUT.csv")
    new = [os.path.join(folder, name) for name in names if name[:6] not in rows]
    if new:
        if not os.access(os.path.dirname(os.path.abspath(target)), os.W_OK):
            raise utils.BadInput(f"{target} cannot be written: make its folder, or name another OUT.csv")
        with multiprocessing.Pool(min(utils.cores(), len(new)), leave_signals) as pool:
            found = zip(new, pool.imap(read_file, new, 8), strict=True)
            for path, (arch, values) in tqdm(found, "converting", len(new), disable=None, leave=False):
                index = os.path.basename(path)[:6]
                rows[index] = {"index": index, "arch": arch} | dict.fromkeys(COLUMNS, "") | values
        utils.write_csv(target, [rows[index] for index in sorted(rows)])
    return target


def main(args):
    print(convert(args.folder, args.out))


if __name__ == "__main__":
    utils.run(main, parse_args())
