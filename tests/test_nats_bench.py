"""The table of NAS-Bench-201 accuracies, and the official NATS-Bench files."""

import bz2
import collections
import os
import pickle
import shutil

import pytest
import torch

import utils
from genotypes import SPACES, nasbench201_architectures, operations

DATA = os.environ.get("NA_DATA") or os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "shared", "data"
)
NAMES = nasbench201_architectures()


def data(name):
    path = os.path.join(DATA, name)
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}; NA_DATA names the folder")
    return path


def test_places_of_architectures():
    assert len(NAMES) == len(set(NAMES)) == 15_625
    ops = SPACES["nasbench201"].ops
    for place in (0, 1, 7, 15_624, 4321):
        indices = [ops.index(op) for op in operations(NAMES[place])]
        assert sum(o * 5 ** (5 - e) for e, o in enumerate(indices)) == place


def write(path, rows, columns="arch,cifar10_valid_200,my_data_test_12"):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def test_a_partial_table(tmp_path):
    path = write(tmp_path / "t.csv", [f"{NAMES[5]},50,60.5", f"{NAMES[3]},0,", f"{NAMES[9]},100,1e1"])
    table = utils.load_table(path)
    assert list(table) == ["cifar10_valid_200", "my_data_test_12"]
    first, second = table.values()
    assert first.shape == (15_625,) and first.isnan().sum() == 15_622
    assert [first[i].item() for i in (5, 3, 9)] == [50, 0, 100]
    assert second[5] == 60.5 and second[9] == 10 and second[3].isnan()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # Windows line ends
    again = utils.load_table(path)
    assert all(torch.equal(table[name].nan_to_num(-1), again[name].nan_to_num(-1)) for name in table)


BAD_TABLES = {
    "twice": ([f"{NAMES[1]},1,2", f"{NAMES[1]},1,2"], "stands there twice"),
    "unknown": (["|none~0|,1,2"], "is no NAS-Bench-201 architecture"),
    "above 100": ([f"{NAMES[1]},100.1,2"], "'100.1' is no percentage"),
    "negative": ([f"{NAMES[1]},-1,2"], "'-1' is no percentage"),
    "nan": ([f"{NAMES[1]},nan,2"], "'nan' is no percentage"),
    "text": ([f"{NAMES[1]},good,2"], "line 2 of .*'good' is no percentage"),
    "short": ([f"{NAMES[1]},1"], "has 2 values: expected 3"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_tables(tmp_path, kind):
    rows, message = BAD_TABLES[kind]
    with pytest.raises(utils.BadInput, match=message):
        utils.load_table(write(tmp_path / "t.csv", rows))


@pytest.mark.parametrize(
    "header", ["arch,accuracy", "arch", "cifar10_test_200", "arch,a_test_1,a_test_1", ""]
)
def test_bad_headers(tmp_path, header):
    with pytest.raises(utils.BadInput, match="is not a table|has the columns"):
        utils.load_table(write(tmp_path / "t.csv", [], header))


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(utils.BadInput, match="no table could be read"):
        utils.load_table(tmp_path / "nothing.csv")
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    with pytest.raises(utils.BadInput, match="no table could be read"):
        utils.load_table(tmp_path / "noise.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(utils.BadInput, match="holds no NATS-Bench files"):
        utils.load_table(tmp_path / "empty")


def test_the_whole_table():
    """Figures published for the table (best and mean test accuracy after 200 epochs)."""
    table = utils.load_table(data("nasbench201.csv"))
    best = {"cifar10": (94.3733, 87.0563), "cifar100": (73.5133, 61.3879), "imagenet16": (47.3111, 33.5683)}
    for name, (top, mean) in best.items():
        column = table[f"{name}_test_200"]
        assert column.max().item() == pytest.approx(top, abs=1e-4)
        assert column.mean().item() == pytest.approx(mean, abs=1e-4)


SAMPLES = ("000000", "000011", "000284")
SETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}


def test_official_files_give_what_the_official_api_answers():
    nats_bench = pytest.importorskip("nats_bench")
    folder = data("nats_tss_sample")
    api = nats_bench.create(folder, "tss", fast_mode=True, verbose=False)
    for sample in SAMPLES:
        arch, values = utils.read_nats_file(os.path.join(folder, f"{sample}.pickle.pbz2"))
        assert api.arch(int(sample)) == arch
        for name, dataset in SETS.items():
            for epochs in ("12", "200"):
                test = api.get_more_info(int(sample), dataset, hp=epochs, is_random=False)
                other = "cifar10-valid" if name == "cifar10" else dataset
                valid = api.get_more_info(int(sample), other, hp=epochs, is_random=False)
                assert values[f"{name}_test_{epochs}"] == test["test-accuracy"]
                assert values[f"{name}_valid_{epochs}"] == valid["valid-accuracy"]
        assert len(values) == 12


def test_a_folder_is_converted_once(tmp_path):
    folder = tmp_path / "NATS"
    shutil.copytree(data("nats_tss_sample"), folder)
    table = utils.load_table(folder)
    assert sorted(os.listdir(tmp_path)) == ["NATS", "NATS.csv"]
    arch, values = utils.read_nats_file(folder / "000011.pickle.pbz2")
    assert {name: column[NAMES.index(arch)].item() for name, column in table.items()} == values
    assert (~table["cifar10_test_200"].isnan()).sum() == 3
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)
    folder.mkdir()
    assert utils.load_table(folder).keys() == table.keys()  # read from the CSV file


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "NATS"
    shutil.copytree(data("nats_tss_sample"), folder)
    os.chmod(folder, 0o755)
    last, whole = folder / "000284.pickle.pbz2", folder / "000011.pickle.pbz2"
    os.chmod(last, 0o644)
    good = last.read_bytes()
    last.write_bytes(good[: len(good) // 2])
    with pytest.raises(utils.BadInput, match="000284.pickle.pbz2 is not a NATS-Bench topology file"):
        utils.load_table(folder)
    assert sorted(os.listdir(tmp_path)) == ["NATS", "NATS.csv.part"]
    part = tmp_path / "NATS.csv.part"
    # As if killed in the middle of a line, and damaged besides: what is no whole line is done again.
    damage = f"000284.pickle.pbz2,foo\n{NAMES[3]},1,2\n\udcff\n000284.pickle.pbz2,|no"
    part.write_bytes(part.read_bytes() + damage.encode(errors="surrogateescape"))
    last.write_bytes(good)
    os.chmod(whole, 0o644)
    whole.write_bytes(b"")  # it was read before, and is not read again
    table = utils.load_table(folder)
    assert (~table["cifar10_test_200"].isnan()).sum() == 3
    assert sorted(os.listdir(tmp_path)) == ["NATS", "NATS.csv"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


BAD_PICKLES = {
    "code": bz2.compress(pickle.dumps(Evil())),
    "builtin": bz2.compress(b"cbuiltins\neval\n(S'1'\ntR."),
    "other": bz2.compress(pickle.dumps(collections.OrderedDict())),
    "not packed": pickle.dumps({}),
    "empty": b"",
    "wrong values": bz2.compress(
        pickle.dumps(
            {
                epochs: {
                    "arch_str": NAMES[0],
                    "dataset_seed": {"cifar10": [1]},
                    "all_results": {("cifar10", 1): {"eval_acc1es": {f"ori-test@{int(epochs) - 1}": 101.0}}},
                }
                for epochs in ("12", "200")
            }
        )
    ),
    "too large": bz2.compress(bytes(2**26 + 1)),
}


@pytest.mark.parametrize("kind", BAD_PICKLES)
def test_bad_official_files(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "000001.pickle.pbz2"
    path.write_bytes(BAD_PICKLES[kind])
    with pytest.raises(utils.BadInput, match="000001.pickle.pbz2 is not a NATS-Bench topology file"):
        utils.read_nats_file(path)
    assert os.listdir(tmp_path) == ["000001.pickle.pbz2"]
