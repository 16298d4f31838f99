"""Bad command lines and damaged files, each given to a real process: exit status 2, one line that names cause
and mend, nothing on stdout, no file changed or added.

All commands run in one folder, which has to be the same after each of them.
"""

import bz2
import json
import os
import pickle
import shutil
import subprocess
import sys

import forks
import pytest
import torch
from PIL import Image

import utils
from genotypes import NAMED, nasbench201_architectures, parse_architecture, to_json

NAMES = nasbench201_architectures()
NB201 = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
SMALL = "--dataset folder --data images --image_size 8 --init_channels 2 --layers 1 --epochs 1 --device cpu "
SEARCH = f"search.py {SMALL} --space nasbench201 --batch_size 4 --neighbors 2 "
TRAIN = f"train.py {SMALL} --arch {NB201} --batch_size 4 "
FILES = (
    "train.py --dataset imagenet --image_size 64 --init_channels 2 --layers 3 --epochs 1 --batch_size 4 "
    "--device cpu --workers 0 --arch DARTS_V2 "
)
RS = SEARCH.replace("--epochs", "--algo rs --eval train --budget 2 --neighborhood 0 --eval_epochs")
TABLE = "search.py --algo rs --space nasbench201 --neighborhood 0 --samples 3 --save new --bench "


# ------------------------------------------------------------------------------------------------------------
# The folder
# ------------------------------------------------------------------------------------------------------------


def save_images(root, sizes=((8, 8),), classes=("cat", "dog"), count=5):
    for i, split in enumerate(("train", "val")):
        for j, name in enumerate(classes):
            os.makedirs(root / split / name)
            for k in range(count):
                color = (50 * i, 100 * j, 20 * k)
                Image.new("RGB", sizes[k % len(sizes)], color).save(root / split / name / f"{k}.png")


def table_text(rows, header="arch,cifar10_valid_200"):
    return "\n".join([header, *rows]) + "\n"


GOOD_ROWS = [f"{name},{i % 100}" for i, name in enumerate(NAMES)]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


TABLES = {
    "empty": b"",
    "noise": bytes(range(256)) * 9,
    "nulls": bytes(5000),
    "truncated": table_text(GOOD_ROWS[:50]).encode()[:-30],
    "no header": "\n".join(GOOD_ROWS[:5]).encode(),
    "no arch": table_text(["1"], "cifar10_valid_200").encode(),
    "arch alone": table_text([NAMES[0]], "arch").encode(),
    "doubled column": table_text([f"{NAMES[0]},1,2"], "arch,cifar10_valid_200,cifar10_valid_200").encode(),
    "wrong column": table_text(GOOD_ROWS[:9], "arch,accuracy").encode(),
    "nan": table_text([*GOOD_ROWS[1:], f"{NAMES[0]},nan"]).encode(),
    "inf": table_text([*GOOD_ROWS[1:], f"{NAMES[0]},inf"]).encode(),
    "negative": table_text([*GOOD_ROWS[1:], f"{NAMES[0]},-0.5"]).encode(),
    "above 100": table_text([*GOOD_ROWS[1:], f"{NAMES[0]},100.5"]).encode(),
    "a fraction of words": table_text([*GOOD_ROWS[1:], f"{NAMES[0]},93 %"]).encode(),
    "doubled row": table_text([*GOOD_ROWS, GOOD_ROWS[7]]).encode(),
    "unknown operation": table_text(["|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|,5"]).encode(),
    "other space": table_text(['"' + repr(NAMED["DARTS_V2"]) + '",5']).encode(),
    "short row": table_text([NAMES[0]]).encode(),
    "long row": table_text([f"{NAMES[0]},1,2"]).encode(),
    "semicolons": table_text(GOOD_ROWS[:9]).replace(",", ";").encode(),
    "utf-16": table_text(GOOD_ROWS[:9]).encode("utf-16"),
    "a field without end": ('arch,cifar10_valid_200\n"' + "x" * 200_000).encode(),
    "a row missing": table_text(GOOD_ROWS[:-1]).encode(),
    "a pickle": pickle.dumps({"arch": 1}),
}

GENOTYPE = to_json(NAMED["DARTS_V2"])
GENOTYPES = {
    "empty": "",
    "noise": bytes(range(256)),
    "truncated": json.dumps(GENOTYPE)[:100],
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "deep": "[" * 100_000,
    "deep inside": '{"space": "darts", "arch": ' + "[" * 900 + "]" * 900 + "}",
    "no arch": '{"space": "darts"}',
    "unknown space": json.dumps({**GENOTYPE, "space": "nasnet"}),
    "a list of spaces": json.dumps({**GENOTYPE, "space": ["darts"]}),
    "another space": json.dumps({**GENOTYPE, "space": "nasbench201"}),
    "not finite": '{"space": "darts", "arch": NaN}',
    "unknown operation": json.dumps(GENOTYPE).replace("sep_conv_3x3", "sep_conv_4x4"),
    "node from the future": json.dumps(GENOTYPE).replace('"dil_conv_3x3", 2', '"dil_conv_3x3", 9'),
    "node nan": json.dumps(GENOTYPE).replace('"dil_conv_3x3", 2', '"dil_conv_3x3", NaN'),
    "concat negative": json.dumps(GENOTYPE).replace("[2, 3, 4, 5]", "[-2]"),
    "concat doubled": json.dumps(GENOTYPE).replace("[2, 3, 4, 5]", "[2, 2]"),
    "a cell missing": json.dumps({"space": "darts", "arch": {"normal": GENOTYPE["arch"]["normal"]}}),
    "a pickle": pickle.dumps({"space": "darts"}),
}


NATS = {
    "evil": bz2.compress(pickle.dumps(Evil())),
    "cut": b"BZh9",
    "none": b"",
    "all memory": bz2.compress(b"\x80\x04Nr\xff\xff\xff\x7f."),  # the place of a memo
}


def damaged_args(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


ARGS = {
    "empty": lambda text: "",
    "noise": lambda text: bytes(range(256)),
    "truncated": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1, 2]",
    "deep": lambda text: "[" * 100_000,
    "other flags": lambda text: '{"epochs": 1}',
    "not finite": damaged_args(learning_rate=float("nan")),
    "negative": damaged_args(epochs=-3),
    "a string": damaged_args(epochs="3"),
    "huge": lambda text: text.replace('"seed": ', '"seed": 9' + "9" * 30),
    "unknown choice": damaged_args(dataset="mnist"),
}


def damage_rows(path):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "epoch": 2, "rows": [*state["rows"], {"epoch": 2, "more": 1}]}, path)


def damage_part(path):
    state = torch.load(path, weights_only=True)
    name, value = next(iter(state["model"].items()))
    torch.save({**state, "model": {**state["model"], name: value[:1, :1]}}, path)


def damage_noise_inside(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 200] = bytes(200)
    path.write_bytes(data)


EVALUATIONS = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another column": lambda path: path.write_text(path.read_text().replace("folder", "cifar10")),
    "a row twice": lambda path: path.write_text(path.read_text() * 2),
    "above 100": lambda path: path.write_text(path.read_text() + f"{NAMES[77]},100.5\n"),
    "nan": lambda path: path.write_text(path.read_text() + f"{NAMES[77]},nan\n"),
    "another space": lambda path: path.write_text(path.read_text() + f'"{NAMED["DARTS_V2"]!r}",50\n'),
}

CHECKPOINTS = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-400]),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "noise inside": damage_noise_inside,
    "a zip of nothing": lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
    "a list": lambda path: torch.save([1], path),
    "code": lambda path: torch.save({"epoch": Evil()}, path),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "links in a circle": lambda path: (path.unlink(), path.symlink_to(path)),
    "other rows": damage_rows,
    "other shapes": damage_part,
}


def broken_png(path):
    Image.effect_noise((8, 8), 50).save(path)
    path.write_bytes(path.read_bytes()[:70])


IMAGES = {
    "truncated": lambda root: broken_png(root / "train" / "dog" / "3.png"),
    "empty": lambda root: (root / "train" / "dog" / "3.png").write_bytes(b""),
    "noise": lambda root: (root / "train" / "dog" / "3.png").write_bytes(bytes(range(256))),
    "a pipe": lambda root: os.mkfifo(root / "train" / "dog" / "9.png"),
    "a dead link": lambda root: (root / "train" / "dog" / "9.png").symlink_to("nowhere"),
    "a link to itself": lambda root: (root / "train" / "dog" / "9.png").symlink_to("9.png"),
    "a folder in itself": lambda root: (root / "train" / "dog" / "more").symlink_to(".."),
    "one class": lambda root: [shutil.rmtree(root / part / "dog") for part in ("train", "val")],
    "no classes": lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")],
    "an empty class": lambda root: [path.unlink() for path in (root / "train" / "dog").iterdir()],
    "a file for a folder": lambda root: (shutil.rmtree(root / "train"), (root / "train").write_text("")),
    "no folder": lambda root: shutil.rmtree(root / "train"),
}
TESTS = {  # seen by train.py alone
    "broken": lambda root: broken_png(root / "val" / "dog" / "3.png"),
    "missing": lambda root: shutil.rmtree(root / "val"),
    "another class": lambda root: os.rename(root / "val" / "dog", root / "val" / "fox"),
    "an empty class": lambda root: [path.unlink() for path in (root / "val" / "dog").iterdir()],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Good and damaged files of every kind."""
    root = tmp_path_factory.mktemp("world")
    save_images(root / "images")
    (root / "good.csv").write_text(table_text(GOOD_ROWS))
    (root / "other.csv").write_text(table_text(GOOD_ROWS, "arch,cifar10_test_200"))
    (root / "file").write_text("something")
    os.mkfifo(root / "pipe")
    (root / "circle").symlink_to("circle")
    (root / "hollow").mkdir()
    for name, data in TABLES.items():
        (root / f"{name}.csv").write_bytes(data)
    for name, data in GENOTYPES.items():
        (root / f"{name}.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    for name, data in NATS.items():
        (root / f"nats {name}").mkdir()
        (root / f"nats {name}" / "000000.pickle.pbz2").write_bytes(data)
    runs = {"searched": SEARCH, "trained": TRAIN, "seeds": TRAIN + "--seeds 3 ", "rs": RS}
    for name, command in runs.items():
        script, *flags = command.split()
        done = forks.run(script, *flags, "--save", name, cwd=root)
        assert done.status == 0, done.err
    for name, damage in EVALUATIONS.items():
        shutil.copytree(root / "rs", root / f"rs {name}")
        damage(root / f"rs {name}" / "evaluations.csv")
    for run in ("searched", "trained"):
        for name, damage in ARGS.items():
            shutil.copytree(root / run, root / f"{run} args {name}")
            path = root / f"{run} args {name}" / "args.json"
            data = damage(path.read_text())
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        for name, damage in CHECKPOINTS.items():
            shutil.copytree(root / run, root / f"{run} {name}")
            damage(root / f"{run} {name}" / "checkpoint.pt")
        shutil.copytree(root / run, root / f"{run} begun")
        for name in os.listdir(root / f"{run} begun"):
            if name != "args.json":
                os.remove(root / f"{run} begun" / name)
    for name, damage in IMAGES.items():
        save_images(root / f"images {name}")
        damage(root / f"images {name}")
    for name, damage in TESTS.items():
        save_images(root / f"tests {name}")
        damage(root / f"tests {name}")
    save_images(root / "few", count=1)
    save_images(root / "uneven", classes=("cat",), count=8)
    save_images(root / "uneven", classes=("dog",), count=1)
    root.joinpath("state").write_text("")
    return root, forks.tree(root)


# ------------------------------------------------------------------------------------------------------------
# Commands: what is run, words of the cause, words of the mend
# ------------------------------------------------------------------------------------------------------------

CASES = {}


def add(command, cause, mend, more=()):
    """command: words apart by spaces. more: words with spaces in them."""
    words = [*command.split(), *more]
    name = " ".join(words)
    assert name not in CASES
    CASES[name[:150] + (f" {len(CASES)}" if len(name) > 150 else "")] = words, cause, mend


# Numbers out of range and of the wrong type
NUMBERS = {
    "search.py": (
        "neighborhood neighbors samples budget starts repeats steps init_channels layers image_size "
        "cutout_length epochs batch_size seed report_freq eval_epochs arch_warmup",
        "alpha_scale train_portion learning_rate learning_rate_min momentum weight_decay grad_clip "
        "arch_learning_rate arch_weight_decay",
    ),
    "train.py": (
        "init_channels layers image_size cutout_length workers epochs batch_size accumulate base_batch "
        "warmup_epochs seed report_freq",
        "auxiliary_weight drop_path_prob valid_portion learning_rate gamma momentum weight_decay grad_clip "
        "label_smooth",
    ),
}
for script, (integers, floats) in NUMBERS.items():
    for flag in integers.split():
        add(f"{script} --{flag} 1.5", f"--{flag}: invalid int value: '1.5'", "-h lists the flags")
        for value in ("-1", *(["9" * 25] if flag in ("seed", "epochs", "batch_size") else [])):
            add(f"{script} --{flag} {value}", f"--{flag} {value} is out of range", "it lies between")
    for flag in floats.split():
        for value in ("nan", "-1", *(["inf"] if flag in ("learning_rate", "grad_clip") else [])):
            add(f"{script} --{flag} {value}", f"--{flag} {float(value)} is out of range", "it lies between")

# Words
for script, flags in {
    "search.py": "algo agg neighbor_batch neighbor_norm perturb weight_step ls_score space dataset",
    "train.py": "dataset schedule amp",
}.items():
    for flag in flags.split():
        add(f"{script} --{flag} Mean", f"--{flag}: invalid choice: 'Mean'", "choose from")
for script in ("search.py", "train.py"):
    for flag in ("save", "resume", "data", "device", "dataset", "epochs", "learning_rate"):
        add(f"{script} --{flag}", f"--{flag}: expected one argument", "-h lists the flags")
    for flag in ("save", "resume", "data", "device"):
        add(f"{script} --{flag}", f"--{flag} is empty", "give it a value, or leave it out", [""])
    add(f"{script} --epoch 3", "unrecognized arguments: --epoch 3", "-h lists the flags")
    add(f"{script} --epochs 3 4", "unrecognized arguments: 4", "-h lists the flags")
    add(script, "unrecognized arguments: a\\nb", "-h lists the flags", ["a\nb"])
    add(f"{script} --epochs", "invalid int value: ''", "-h lists the flags", [""])
    for device in ("tpu9", "cuda:99", "meta", "5", "cpu:x", "hpu"):
        add(
            f"{script} {SMALL} --layers 3 --device {device}",
            f"--device {device} is not to be had",
            "try --device cpu",
        )

# Flags that contradict each other
add(
    "search.py --learning_rate 0.01 --learning_rate_min 0.02",
    "--learning_rate_min 0.02",
    "between 0 and 0.01",
)
add("search.py --neighbors 7", "cannot be cut into 7 equal groups", "choose a number of --neighbors")
add("search.py --bench good.csv", "--bench holds NAS-Bench-201", "give --space nasbench201")
add("search.py --algo rs", "searches on a table", "give --bench FILE")
add("search.py --exact --algo rs", "--exact is gradient search", "leave --algo rs out")
add("search.py --samples 5", "--samples has no meaning with --algo darts", "leave it out")
add("search.py --repeats 5", "--repeats is a flag of", "give other seeds instead")
add("search.py --eval train", "--eval trains what --algo rs and ls draw", "give one of them")
add("search.py --algo rs --eval test", "--eval: invalid choice: 'test'", "choose from")
add(f"{TABLE} good.csv --eval train", "are two ways to an error", "leave one of them out")
add(f"{TABLE} good.csv --resume searched", "leave --save out", "--resume goes on in its own folder")
add(f"{TABLE} good.csv --neighborhood 1 --budget 5", "does not cover a neighborhood of 25", "raise it")
add(f"{TABLE} good.csv --algo ls --budget 5 --starts 9", "--starts 9 is out of range", "between 1 and 5")
add(
    f"{TABLE} good.csv --bench_metric cifar10_test_200",
    "is no column of good.csv",
    "it has cifar10_valid_200",
)
add("search.py --resume searched --save elsewhere", "its own folder", "leave --save out")
add("search.py --space nasbench201 --neighborhood 7", "--neighborhood 7", "between 0 and 6")
add("train.py --accumulate 7", "cannot be cut into 7 equal pieces", "choose")
add("train.py --batch_size 8 --accumulate 8", "batch norm wants two images", "choose")
add("train.py --nesterov --momentum 0", "--nesterov needs a --momentum above 0", "above 0")
add("train.py --eval", "--eval tests the checkpoint that --resume names", "give --resume")
add(
    "train.py --eval --resume trained --seeds 0", "--eval tests one checkpoint", "give the folder of one seed"
)
add("train.py --seeds 1 1", "--seeds 1 1", "give each seed once")
add("train.py --seeds -1", "--seeds -1", "give each seed once, from 0")
add("train.py --seeds 1.5", "--seeds: invalid int value: '1.5'", "-h lists the flags")
add("train.py --dataset imagenet --image_size 32", "--image_size 32 is out of range", "between 64 and 1024")
add("train.py --resume trained --save elsewhere", "its own folder", "leave --save out")
add("train.py --resume trained/checkpoint.pt", "is not a run folder", "only --eval takes a checkpoint file")
for more, cause in {
    "--dataset imagenet": "takes small images",
    "--auxiliary": "has no auxiliary head",
    "--drop_path_prob 0.1": "has no drop path",
}.items():
    add(f"train.py --arch {NB201} {more}", cause, "NAS-Bench-201 network")

# Architectures
for command in ("genotypes.py", f"train.py {SMALL} --arch"):
    for word, cause, mend in (
        ("DARTS_V3", "unknown architecture 'DARTS_V3'", "as DARTS_V"),
        ("__import__('os').system('touch evil')", "unknown architecture", "neither a name (as"),
        (
            "Genotype(__import__('os').system('touch evil'))",
            "is not a printed genotype",
            "expected Genotype(",
        ),
        ("Genotype(normal='\\d')", "is not a printed genotype", "expected Genotype("),
        ("Genotype(" + "(" * 5000, "is not a printed genotype", "expected Genotype("),
        ("Genotype(normal=" + "-" * 5000 + "1)", "is not a printed genotype", "expected Genotype("),
        ("|none~0|", "is not a NAS-Bench-201 architecture", "expected |op~0|+"),
        (NB201.replace("skip", "jump"), "unknown operation 'jump_connect'", "did you mean skip_connect"),
        ("x" * 100_000, "unknown architecture", "neither a name (as"),
        ("a\nb", "unknown architecture 'a\\nb'", "neither a name (as"),
        ("nowhere.json", "unknown architecture 'nowhere.json'", "neither a name (as"),
        (
            "hollow",
            "no genotype could be read from 'hollow/genotype.json'",
            "give the run folder of a search",
        ),
        ("pipe", "no genotype could be read from 'pipe'", "give the run folder of a search"),
        ("/dev/null", "no genotype could be read from '/dev/null'", "give the run folder of a search"),
        ("/dev/zero", "no genotype could be read from '/dev/zero'", "give the run folder of a search"),
    ):
        add(command, cause, mend, [word])
add("genotypes.py", "usage: genotypes.py ARCH", "[darts | nasbench201]")
add("genotypes.py", "unknown architecture ''", "neither a name (as", [""])
add("genotypes.py DARTS_V2 nasbench201", "of the space darts", "not of nasbench201")
add("train.py --arch", "--arch is empty", "give it a value", [""])
GENOTYPE_MENDS = {
    "unknown space": ("names the search space 'nasnet'", "known are darts"),
    "a list of spaces": ("names the search space", "known are darts"),
    "deep inside": ("a genotype holds exactly", "normal, normal_concat"),
    "not finite": ("a genotype holds exactly", "normal, normal_concat"),
    "a cell missing": ("a genotype holds exactly", "normal, normal_concat"),
    "another space": ("its arch is not a NAS-Bench-201 architecture", "expected |op~0|"),
    "unknown operation": ("unknown operation 'sep_conv_4x4'", "did you mean sep_conv_"),
    "node from the future": ("takes its input from node '9'", "can take it from nodes 0 to"),
    "node nan": ("takes its input from node 'nan'", "can take it from nodes 0 to"),
    "concat negative": ("normal_concat may name nodes", "2 to 5"),
    "concat doubled": ("normal_concat lists the nodes", "each once"),
}
for name in GENOTYPES:
    cause, mend = GENOTYPE_MENDS.get(
        name, ("it is not what a search writes", "give the run folder of a search")
    )
    add("genotypes.py", cause, mend, [f"{name}.json"])

# Tables
NO_TABLE, HEAD = ("no table could be read", "--bench takes a CSV file"), "each column once"
TABLE_MENDS = {
    "empty": ("is not a table", HEAD),
    "noise": NO_TABLE,
    "truncated": ("line 51 of truncated.csv has 1 values", "expected 2"),
    "no header": ("is not a table", HEAD),
    "no arch": ("is not a table", HEAD),
    "arch alone": ("has the columns 'arch'", "expected names such as"),
    "doubled column": ("is not a table", HEAD),
    "wrong column": ("has the columns 'accuracy'", "expected names such as"),
    "a fraction of words": ("'93 %' is no percentage", "0 to 100"),
    "nan": ("line 15626 of nan.csv: 'nan' is no percentage", "0 to 100"),
    "inf": ("'inf' is no percentage", "0 to 100"),
    "negative": ("'-0.5' is no percentage", "0 to 100"),
    "above 100": ("'100.5' is no percentage", "0 to 100"),
    "doubled row": ("stands there twice", "keep one"),
    "unknown operation": ("is no NAS-Bench-201 architecture", "|op~0|"),
    "other space": ("is no NAS-Bench-201 architecture", "|op~0|"),
    "short row": ("line 2 of short row.csv has 1 values", "expected 2"),
    "long row": ("line 2 of long row.csv has 3 values", "expected 2"),
    "semicolons": ("is not a table", HEAD),
    "utf-16": NO_TABLE,
    "a field without end": NO_TABLE,
    "a pickle": NO_TABLE,
    "nulls": ("", ""),
}
for name in TABLE_MENDS:
    add(TABLE, *TABLE_MENDS[name], [f"{name}.csv"])
for name, cause, mend in (
    ("file", "is not a table", HEAD),
    ("pipe", "it is no regular file", "--bench takes a CSV file"),
    ("circle", "no table could be read", "--bench takes a CSV file"),
    ("/dev/null", "it is no regular file", "--bench takes a CSV file"),
    ("/dev/zero", "it is no regular file", "--bench takes a CSV file"),
    ("nowhere.csv", "No such file", "--bench takes a CSV file"),
    ("hollow", "hollow holds no NATS-Bench files", "expected NNNNNN.pickle.pbz2"),
):
    add(TABLE + name, cause, mend)
EXACT = "search.py --exact --space nasbench201 --save new --bench"
add(f"{EXACT} other.csv", "is no column of other.csv", "it has cifar10_test_200")
add(EXACT, "needs cifar10_valid_200 of all architectures", "complete the table", ["a row missing.csv"])
for name in NATS:
    add(
        TABLE, "is not a NATS-Bench topology file", "take it from the official archive anew", [f"nats {name}"]
    )

# Run folders: flags and checkpoints
ARGS_MENDS = {
    "not finite": ("--learning_rate nan is out of range", "it lies between"),
    "negative": ("--epochs -3 is out of range", "it lies between"),
    "huge": ("is out of range", "it lies between"),
    "a list": ("is not a run of", "give a folder that it wrote"),
    "other flags": ("is not a run of", "give a folder that it wrote"),
    "a string": ("its flags are damaged (epochs)", "give a folder that it wrote"),
    "unknown choice": ("its flags are damaged (dataset)", "give a folder that it wrote"),
}
RESUMED = {
    "search.py": ("searched", ["--resume"]),
    "train.py": ("trained", ["--resume"]),
    "train.py --eval": ("trained", ["--eval", "--resume"]),
}
for command, (run, _) in RESUMED.items():
    for name in ARGS:
        cause, mend = ARGS_MENDS.get(name, ("args.json cannot be read", "put back what the run wrote"))
        add(f"{command} --resume", cause, mend, [f"{run} args {name}"])
    for name in CHECKPOINTS:
        cause, mend = {
            "gone": ("there is no checkpoint", "start the run anew"),
            "other rows": ("is not a checkpoint of these scripts", "give --resume what a run wrote"),
            "a list": ("is not a checkpoint of these scripts", "give --resume what a run wrote"),
            "other shapes": ("the checkpoint does not fit this run", "start the run anew"),
        }.get(name, ("is damaged or not a checkpoint", "start the run anew"))
        add(f"{command} --resume", cause, mend, [f"{run} {name}"])
    add(f"{command} --resume", "there is no checkpoint", "start the run anew", [f"{run} begun"])
    other = {"searched": "trained", "trained": "searched"}[run]
    add(f"{command} --resume {other}", f"is not a run of {command.split()[0]}", "give a folder that it wrote")
    for name in ("hollow", "images"):
        add(f"{command} --resume {name}", "there is no args.json in it", "give a folder that a run wrote")
    for name in ("nowhere", "file/more"):
        add(
            f"{command} --resume {name}", "there is no checkpoint", "--resume takes a folder that a run wrote"
        )
    for name in ("file", "pipe", "circle", "/dev/null"):
        add(f"{command} --resume {name}", "is damaged or not a checkpoint", "start the run anew")
    add(f"{command} --resume {run} --momentum 0.5", "--momentum 0.5 (there: 0.9)", "give the same flags")
add("search.py --resume searched/checkpoint.pt", "there is no checkpoint", "--resume takes a folder")
add("search.py --resume searched --epochs 0", "--epochs 0 is out of range", "it lies between")
add("train.py --resume seeds --learning_rate 1", "--learning_rate 1.0 (there: 0.1)", "give the same flags")
add("train.py --resume trained --seeds 5", "is the run of one seed", "leave --seeds out")
for name in EVALUATIONS:
    cause = "it is no regular file" if name == "a folder" else "cannot be read"
    add("search.py --resume", cause, "put back what the run wrote, or start the run anew", [f"rs {name}"])
add("search.py --resume rs --eval_epochs 2", "--eval_epochs 2 (there: 1)", "give the same flags")
add("train.py --resume rs", "is not a run of train.py", "give a folder that it wrote")
for command in (SEARCH, TRAIN, TRAIN + "--seeds 1 2 ", TABLE + "good.csv ", RS):
    for name, cause, mend in (
        ("searched", "searched holds a run already", "choose another --save"),
        ("rs", "rs holds a run already", "choose another --save, or give --resume rs to go on"),
        ("file", "file is no folder", "choose another --save"),
        ("file/more", "Not a directory", "choose another --save"),
        ("circle", "Too many levels of symbolic links", "choose another --save"),
        ("circle/more", "Too many levels of symbolic links", "choose another --save"),
        ("n" * 300, "File name too long", "choose another --save"),
    ):
        add(f"{command} --save {name}", cause, mend)

# Images
IMAGE_MENDS = {
    "a folder in itself": ("is a link to a folder that it lies in", "remove it"),
    "one class": ("has one class, cat", "a classifier needs at least two"),
    "no classes": ("no images in", "/<class>/<image>.png or .jpg"),
    "an empty class": ("no images in", "/<class>/<image>.png or .jpg"),
    "a file for a folder": ("there is no folder", "train/<class>/ and val/<class>/"),
    "no folder": ("there is no folder", "train/<class>/ and val/<class>/"),
}
for command in (SEARCH, TRAIN, FILES, RS):
    for name in IMAGES:
        cause, mend = IMAGE_MENDS.get(name, ("is not an image that can be read", "mend or remove it"))
        add(f"{command} --save new --data", cause, mend, [f"images {name}"])
for command in (TRAIN, FILES):
    for name, cause, mend in (
        ("broken", "val/dog/3.png is not an image that can be read", "mend or remove it"),
        ("missing", "val", "train/<class>/ and val/<class>/"),
        ("another class", "different classes (dog, fox in one of them alone)", "give both the same folders"),
        ("an empty class", "no images in", "/<class>/<image>.png or .jpg"),
    ):
        add(f"{command} --save new --data", cause, mend, [f"tests {name}"])
add(f"{SEARCH} --save new --data few", "do not fill a batch of 4", "choose a smaller --batch_size")
add(
    f"{SEARCH} --save new --data few --batch_size 1 --neighbors 1",
    "halves of",
    "choose a smaller --batch_size",
)
add(f"{TRAIN} --save new --data few", "do not fill a batch of 4", "choose a smaller --batch_size")
add(f"{TRAIN} --save new --valid_portion 0.01", "holds out none", "choose more")
for command in (TRAIN, FILES):
    command += "--save new --batch_size 2 --data uneven --valid_portion 0.6"
    add(command, "leaves no image of the class dog", "choose less, or add images")
add(f"{SEARCH} --save new --train_portion 0.99", "halves of", "choose a smaller --batch_size")
add(
    "search.py --save new --dataset folder --data",
    "there is no folder a\\nb/train",
    "train/<class>/",
    ["a\nb"],
)


@pytest.mark.parametrize("name", CASES)
def test_refused(world, name):
    root, before = world
    (script, *flags), cause, mend = CASES[name]
    done = forks.run(script, *flags, cwd=root, timeout=60)
    after = forks.tree(root)
    if "new" in flags:  # the run folder that the command names; some fail after it is made
        shutil.rmtree(root / "new", ignore_errors=True)
        after = {path: what for path, what in after.items() if not path.startswith(str(root / "new"))}
    assert done.status == 2, done
    assert done.err.startswith(f"{script}: error: ") and done.err.count("\n") == 1 and len(done.err) < 1000
    assert cause in done.err and mend in done.err, done.err
    assert after == before


@pytest.mark.parametrize(
    "command", ["search.py --epochs 0", "train.py --resume nowhere", "genotypes.py nowhere.json"]
)
def test_a_sample_as_processes_that_are_not_forked(world, command):
    root, before = world
    script, *flags = command.split()
    done = subprocess.run(
        [sys.executable, os.path.join(forks.ROOT, script), *flags], cwd=root, capture_output=True, text=True
    )
    forked = forks.run(script, *flags, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == tuple(forked) and done.returncode == 2
    assert forks.tree(root) == before


@pytest.mark.parametrize(
    "name,command",
    [
        ("searched/args.json", "search.py --resume searched"),
        ("searched/checkpoint.pt", "search.py --resume searched"),
        ("searched", "search.py --resume searched"),
        ("good.csv", f"{TABLE} good.csv"),
        ("images", f"{SEARCH} --save new"),
        ("images/train", f"{SEARCH} --save new"),
        ("images/train/dog/3.png", f"{TRAIN} --save new"),
        ("images/val", f"{TRAIN} --save new"),
        ("searched/genotype.json", "genotypes.py searched"),
        ("closed", f"{SEARCH} --save closed/new"),
    ],
)
def test_what_may_not_be_read_or_written(world, tmp_path, name, command):
    root, _ = world
    for folder in ("searched", "images"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "good.csv", tmp_path)
    (tmp_path / "closed").mkdir()
    os.chmod(tmp_path / name, 0)
    try:
        if os.access(tmp_path / name, os.R_OK):
            pytest.skip("root reads everything")
        script, *flags = command.split()
        done = forks.run(script, *flags, cwd=tmp_path)
        assert done.status == 2 and done.err.count("\n") == 1, done.err
        assert name.split("/")[0] in done.err and not (tmp_path / "new").exists()
    finally:
        os.chmod(tmp_path / name, 0o755)


def test_too_little_memory(world):
    """An address space of 8 GB more than the process has is too little for what this asks for."""
    root, before = world
    flags = f"{SEARCH} --save new --dataset shapes --image_size 1024 --batch_size 64".split()[1:]
    done = forks.run("search.py", *flags, cwd=root, before=["forks.little_memory", 2**33])
    assert done.status == 2 and done.err.count("\n") == 1, done.err
    assert "out of memory" in done.err and "choose a smaller --batch_size, --image_size" in done.err
    assert forks.tree(root) == before


def test_odd_files_that_are_good(world, tmp_path):
    """Windows line ends and a byte order mark change nothing; images may be of any size and kind."""
    root, _ = world
    plain = utils.load_table(root / "good.csv")["cifar10_valid_200"]
    for name, data in {
        "crlf": (root / "good.csv").read_bytes().replace(b"\n", b"\r\n"),
        "bom": b"\xef\xbb\xbf" + (root / "good.csv").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert torch.equal(utils.load_table(tmp_path / name)["cifar10_valid_200"], plain)
    (tmp_path / "genotype.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(GENOTYPE, indent=2).encode())
    assert parse_architecture(str(tmp_path)) == NAMED["DARTS_V2"]
    save_images(tmp_path / "mixed", sizes=((8, 8), (3, 50), (40, 9), (1, 1), (200, 100)))
    for mode, name in (("L", "a.png"), ("P", "b.png"), ("RGBA", "c.png"), ("1", "d.png"), ("CMYK", "e.jpg")):
        Image.new(mode, (20, 10)).save(tmp_path / "mixed" / "train" / "dog" / name)
    for command in (SEARCH, TRAIN, FILES):
        script, *flags = f"{command} --data mixed --save {len(command)}".split()
        done = forks.run(script, *flags, cwd=tmp_path)
        assert done.status == 0 and done.err == "", done.err
