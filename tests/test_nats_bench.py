"""The table of NAS-Bench-201 accuracies, and the official NATS-Bench files."""

import bz2
import collections
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import data, do, read

import nats_bench
import utils
from genotypes import SPACES, nasbench201_architectures, operations

NAMES = nasbench201_architectures()


def test_places_of_architectures():
    assert len(NAMES) == len(set(NAMES)) == 15_625
    ops = SPACES["nasbench201"].ops
    for place in (0, 1, 7, 15_624, 4321):
        indices = [ops.index(op) for op in operations(NAMES[place])]
        assert sum(o * 5 ** (5 - e) for e, o in enumerate(indices)) == place


def write(path, rows, columns="arch,cifar10_valid_200,my_data_test_12"):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


BAD_TABLES = {
    "twice": ([f"{NAMES[1]},1,2", f"{NAMES[1]},1,2"], "stands there twice"),
    "unknown": (["|none~0|,1,2"], "is no NAS-Bench-201 architecture"),
    "above 100": ([f"{NAMES[1]},100.1,2"], "'100.1' is no percentage"),
    "nan": ([f"{NAMES[1]},nan,2"], "'nan' is no percentage"),
    "text": ([f"{NAMES[1]},good,2"], "line 2 of .*'good' is no percentage"),
    "short": ([f"{NAMES[1]},1"], "has 2 values: expected 3"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_tables(tmp_path, kind):
    rows, message = BAD_TABLES[kind]
    with pytest.raises(utils.BadInput, match=message):
        nats_bench.load_table(write(tmp_path / "t.csv", rows))


@pytest.mark.parametrize(
    "header", ["arch,accuracy", "arch", "cifar10_test_200", "arch,a_test_1,a_test_1", ""]
)
def test_bad_headers(tmp_path, header):
    with pytest.raises(utils.BadInput, match="is not a table|has the columns"):
        nats_bench.load_table(write(tmp_path / "t.csv", [], header))


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(utils.BadInput, match="no table could be read"):
        nats_bench.load_table(tmp_path / "nothing.csv")
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    with pytest.raises(utils.BadInput, match="no table could be read"):
        nats_bench.load_table(tmp_path / "noise.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(utils.BadInput, match="holds no NATS-Bench files"):
        nats_bench.load_table(tmp_path / "empty")


def test_the_whole_table():
    """Figures published for the table (best and mean test accuracy after 200 epochs)."""
    table = nats_bench.load_table(data("nasbench201.csv"))
    best = {"cifar10": (94.3733, 87.0563), "cifar100": (73.5133, 61.3879), "imagenet16": (47.3111, 33.5683)}
    for name, (top, mean) in best.items():
        column = table[f"{name}_test_200"]
        assert column.max().item() == pytest.approx(top, abs=1e-4)
        assert column.mean().item() == pytest.approx(mean, abs=1e-4)


SAMPLES = ("000000", "000011", "000284")
# The official package has the name of our script, so it answers in a process that does not see ours.
ASK = """
import json, sys
import nats_bench
api = nats_bench.create(sys.argv[1], "tss", fast_mode=True, verbose=False)
sets = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}
found = {}
for sample in sys.argv[2:]:
    values = found[api.arch(int(sample))] = {}
    for name, dataset in sets.items():
        for epochs in ("12", "200"):
            other = "cifar10-valid" if name == "cifar10" else dataset
            test, valid = (
                api.get_more_info(int(sample), one, hp=epochs, is_random=False) for one in (dataset, other)
            )
            values[f"{name}_test_{epochs}"] = test["test-accuracy"]
            values[f"{name}_valid_{epochs}"] = valid["valid-accuracy"]
print(json.dumps(found))
"""


def test_official_files_give_what_the_official_api_answers(tmp_path):
    folder = data("nats_tss_sample")
    command = [sys.executable, "-I", "-c", ASK, folder, *SAMPLES]  # -I: sys.path without this folder
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    if "No module named 'nats_bench'" in done.stderr:
        pytest.skip("the official package is not installed")
    assert done.returncode == 0, done.stderr
    ours = [nats_bench.read_file(os.path.join(folder, f"{sample}.pickle.pbz2")) for sample in SAMPLES]
    assert dict(ours) == json.loads(done.stdout.splitlines()[-1])
    assert all(len(values) == 12 for _, values in ours)


@pytest.fixture
def official(tmp_path):
    """A folder with two of the files, and the third beside it."""
    folder = tmp_path / "NATS"
    folder.mkdir()
    for sample in SAMPLES:
        name = f"{sample}.pickle.pbz2"
        shutil.copyfile(os.path.join(data("nats_tss_sample"), name), folder / name)
    os.rename(folder / "000011.pickle.pbz2", tmp_path / "000011.pickle.pbz2")
    return folder


def test_what_is_converted_is_not_read_again(official, capsys):
    table = nats_bench.load_table(official)
    assert sorted(os.listdir(official.parent)) == ["000011.pickle.pbz2", "NATS", "NATS.csv"]
    assert (~table["cifar10_test_200"].isnan()).sum() == 2
    first = read(official.parent / "NATS.csv")
    for path in official.iterdir():
        path.write_bytes(b"")  # whose reading would be refused
    assert nats_bench.load_table(official).keys() == table.keys()
    arch, values = nats_bench.read_file(official.parent / "000011.pickle.pbz2")
    os.rename(official.parent / "000011.pickle.pbz2", official / "000011.pickle.pbz2")
    do(nats_bench, "", official)
    rows = read(official.parent / "NATS.csv")
    assert capsys.readouterr().out == f"{official.parent / 'NATS.csv'}\n"
    assert [row["index"] for row in rows] == list(SAMPLES) and [rows[0], rows[2]] == first
    assert rows[1]["arch"] == arch and {c: float(rows[1][c]) for c in nats_bench.COLUMNS} == values
    assert (~nats_bench.load_table(official)["cifar10_test_200"].isnan()).sum() == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_converts(official, monkeypatch, rank):
    events, convert = [], nats_bench.convert
    monkeypatch.setattr(nats_bench, "convert", lambda folder: events.append("converts") or convert(folder))
    monkeypatch.setattr(utils, "processes", lambda: (rank, 2))
    monkeypatch.setattr(utils, "wait_for_processes", lambda: events.append("waits"))
    nats_bench.load_table(official)
    assert events == ["converts", "waits", "converts"][rank:]


def test_a_table_of_other_columns_is_not_written_over(official, refused):
    path = write(official.parent / "NATS.csv", [f"{NAMES[5]},50,60.5"])
    before = path.read_bytes()
    assert "NATS.csv is another table" in refused(nats_bench, "", official)
    assert path.read_bytes() == before
    command = [sys.executable, nats_bench.__file__, official, official.parent / "out.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""  # nor a word of the processes that read the files
    assert len(read(official.parent / "out.csv")) == 2
    assert "no/out.csv cannot be written: make its folder" in refused(nats_bench, "", official, "no/out.csv")
    path.write_bytes(bytes(range(128, 256)))
    for target in (official.parent, path):
        assert f"{target} is no table" in refused(nats_bench, "", official, target)
    assert "holds no NATS-Bench files" in refused(nats_bench, "", official / "nothing")


def test_processes_that_read_end_without_a_word():
    """A pool ends its processes by SIGTERM, of which they inherit the handler of utils.run."""
    before = signal.signal(signal.SIGTERM, lambda *_: print("a word"))
    try:
        with multiprocessing.Pool(1, nats_bench.leave_signals) as pool:
            found = pool.map(signal.getsignal, [signal.SIGTERM, signal.SIGINT])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_DFL, signal.SIG_IGN]


def test_a_damaged_official_file(official, refused):
    path = official / "000284.pickle.pbz2"
    path.write_bytes(path.read_bytes()[:20_000])
    assert "000284.pickle.pbz2 is not a NATS-Bench topology file" in refused(nats_bench, "", official)
    assert not (official.parent / "NATS.csv").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


BAD_PICKLES = {
    "code": bz2.compress(pickle.dumps(Evil())),
    "builtin": bz2.compress(b"cbuiltins\neval\n(S'1'\ntR."),
    "other": bz2.compress(pickle.dumps(collections.OrderedDict())),
    "not packed": pickle.dumps({}),
    "empty": b"",
}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_bad_official_files(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "000001.pickle.pbz2"
    path.write_bytes(BAD_PICKLES[kind])
    with pytest.raises(utils.BadInput, match="000001.pickle.pbz2 is not a NATS-Bench topology file"):
        nats_bench.read_file(path)
    assert os.listdir(tmp_path) == ["000001.pickle.pbz2"]
