"""The scripts as a whole: what imports what, what -h shows, and whether the commands shown to users parse."""

import ast
import contextlib
import functools
import importlib
import io
import os
import re
import shlex

import pytest
from conftest import NB201, ROOT, SEARCH, TRAIN, do, draw_few_shapes, save_images

import genotypes
import sample
import search
import train

# What a script may import of ours, at its top; and what besides, where it is needed
IMPORTS = {
    "genotypes": "",
    "neighborhood": "",
    "model": "genotypes",
    "model_search": "genotypes model",
    "utils": "genotypes",
    "nats_bench": "genotypes utils",
    "train": "genotypes model utils",
    "search": "genotypes neighborhood model_search nats_bench utils",
    "sample": "genotypes model_search neighborhood nats_bench train utils",
    "visualize": "genotypes neighborhood model_search nats_bench utils",
}
LATER = {"search": "visualize sample"}
SCRIPTS = ["search", "sample", "train", "visualize", "nats_bench"]


@functools.cache
def imports(name):
    """The scripts of ours that a script imports: at its top, and inside of functions and blocks."""
    with open(os.path.join(ROOT, f"{name}.py"), encoding="utf-8") as file:
        module = ast.parse(file.read())

    def ours(nodes):
        found = set()
        for node in nodes:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= set(names) & IMPORTS.keys()
        return found

    top = ours(module.body)
    return top, ours(ast.walk(module)) - top


def test_arrows_point_one_way():
    """No script imports one that imports it, however far away; a copy of the imports above says what is
    meant."""
    assert {name[:-3] for name in os.listdir(ROOT) if name.endswith(".py")} == IMPORTS.keys()
    for name, allowed in IMPORTS.items():
        top, later = imports(name)
        assert top <= set(allowed.split()), name
        assert later <= set(LATER.get(name, "").split()), name

    def reached(name, path=()):
        assert name not in path, f"a circle: {' imports '.join([*path, name])}"
        for other in set().union(*imports(name)):
            reached(other, (*path, name))

    for name in IMPORTS:
        reached(name)


def help_of(name, *words):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as stop:
        importlib.import_module(name).parse_args([*words, "-h"])
    assert stop.value.code == 0
    return text.getvalue()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name):
    """At most 100 lines, and a default of every flag."""
    texts = [help_of(name)]
    if name == "visualize":
        texts += [help_of(name, command) for command in re.findall(r"^    (\w+)  ", texts[0], re.MULTILINE)]
        assert len(texts) > 3
    for text in texts:
        assert len(text.splitlines()) <= 100
        entries = re.split(r"\n(?=  -)", text[text.index("\noptions:") :])[1:]
        flags = [entry for entry in entries if not entry.startswith("  -h")]
        assert flags or name in ("nats_bench", "visualize")
        for entry in flags:
            assert re.search(r"\(default:\s", entry), entry


def commands(text):
    """The lines of a text that run a script of ours, as words, without the comment behind them."""
    for line in text.splitlines():
        line = re.split(r"\s{2,}|\s#", line.strip())[0]
        line = re.sub(r" \[\w+ \.\.\.\]", "", line)  # and more of the same
        if re.match(r"(python|torchrun .*?) (experiments/)?\w+\.py\b", line):
            yield line


def skipped(line):
    """What cannot be parsed as it stands: something is left out of it, or it is a choice of two."""
    return "..." in line or "FOLDER|FILE" in line or "[flags of" in line


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the words in capitals stand for."""
    root = tmp_path_factory.mktemp("places")
    save_images(root / "DIR", count=4)
    (root / "T.csv").write_text(f"arch,cifar10_valid_200\n{NB201},50\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "sharpness_and_picture", lambda *args: None)
        draw_few_shapes(patch)
        do(search, f"{SEARCH} --epochs 1", "--save", root / "search")
        do(train, f"{TRAIN} --epochs 1", "--save", root / "train")
        tiny = f"--eval train {SEARCH} --epochs 1 --budget 1 --neighborhood 0"
        do(sample, tiny.replace("496", "200"), "--save", root / "sample")
    return root


def parse(line, places):
    """Whether the script of a command takes its words."""
    script, *words = shlex.split(line)[[word.endswith(".py") for word in shlex.split(line)].index(True) :]
    name = script.removeprefix("experiments/").removesuffix(".py")
    run = places / (name if name in ("train", "sample") else "search")
    for i, word in enumerate(words):
        word = word.strip("[]")
        if word in ("DIR", "T.csv", "nasbench201.csv"):
            word = places / word.replace("nasbench201", "T")
        elif word in ("FOLDER", "RUN", "RUNS", "SEARCH") or word.startswith("runs/"):
            word = run if words[i - 1] == "--resume" else places / "search"
        words[i] = NB201 if word == "ARCH" else str(word)
    if name == "genotypes":
        return genotypes.parse_architecture(words[0])
    module = importlib.import_module(name)
    if hasattr(module, "parse_args"):
        return module.parse_args(words)
    with open(module.__file__, encoding="utf-8") as file:
        text = file.read()
    assert all(f'"{word}"' in text for word in words if word.startswith("--")), line


EXPERIMENTS = [f"experiments/{name}" for name in os.listdir(os.path.join(ROOT, "experiments"))]
SHOWING = ["README.md", *(f"{name}.py" for name in SCRIPTS), *sorted(EXPERIMENTS)]


@pytest.mark.parametrize("name", [name for name in SHOWING if name.endswith((".md", ".py"))])
def test_commands_parse(places, tmp_path, monkeypatch, name):
    """Those of README.md, and of the scripts' own first lines."""
    monkeypatch.chdir(tmp_path)
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        text = file.read()
    if name.endswith(".py"):
        text = ast.get_docstring(ast.parse(text))
    found = [line for line in commands(text) if not skipped(line)]
    assert found, name
    for line in found:
        try:
            parse(line, places)
        except SystemExit:
            pytest.fail(f"{name} shows a command that does not parse: {line}")
