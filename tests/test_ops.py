"""--ops: a space cut down to some of its operations, in every part that follows it."""

import itertools

import pytest
import torch
from conftest import SEARCH, SHAPES, do, outcome, read

import sample
import search
import visualize
from genotypes import (
    SPACES,
    discrete_ops,
    from_indices,
    nasbench201_architectures,
    nasbench201_string,
    operations,
    parse_architecture,
    random_architecture,
    read_cell,
    space_with,
    to_indices,
)
from model_search import SUPERNETS

S2, S3 = ["skip_connect", "sep_conv_3x3"], ["none", "skip_connect", "sep_conv_3x3"]
SOME = ["nor_conv_3x3", "none", "skip_connect"]
SETS = [("darts", S2), ("darts", S3), ("darts", ["max_pool_3x3", "skip_connect"]), ("nasbench201", SOME)]
each_set = pytest.mark.parametrize("name,ops", SETS, ids=["S2", "S3", "no weights", "nasbench201"])
SUPERNET = f"--eval supernet {SHAPES} --init_channels 2 --epochs 1 --batch_size 256 --accumulate 2"


def test_spaces():
    assert space_with("darts") == SPACES["darts"]
    assert space_with("darts", S3[::-1]).ops == tuple(S3)
    assert discrete_ops(space_with("darts", S3)) == discrete_ops(space_with("darts", S2)) == tuple(S2)
    assert space_with("nasbench201", SOME).ops == ("none", "skip_connect", "nor_conv_3x3")


@pytest.mark.parametrize(
    "ops,message",
    [
        ("skip_connect", "with skip_connect alone there is no choice"),
        ("none skip_connect", "with none and skip_connect alone there is no choice"),
        ("skip_connect sep_conv3x3", "unknown operation 'sep_conv3x3': did you mean sep_conv_3x3"),
        ("skip_connect sep_conv_3x3 skip_connect", "the operation skip_connect is given twice"),
    ],
)
@pytest.mark.parametrize("script", [search, sample])
def test_what_is_refused(refused, script, ops, message):
    flags = "--space darts --epochs 1 " + ("--eval train --algo rs" if script is sample else "")
    assert f"--ops: {message}" in refused(script, f"{flags} --ops {ops}")


@pytest.mark.parametrize("name,ops", [*SETS, ("darts", None), ("nasbench201", None)])
def test_architectures(name, ops):
    space, g = space_with(name, ops), torch.Generator().manual_seed(0)
    archs = {random_architecture(space, g) for _ in range(50)}
    assert {op for arch in archs for op in operations(arch)} == set(discrete_ops(space)) and len(archs) > 20
    for arch in archs:
        assert from_indices(space, to_indices(arch, space)) == arch


@each_set
def test_supernet(name, ops):
    """It is the whole supernet, with weights of 0 for the operations that it lacks."""
    torch.manual_seed(0)
    layers = 3 if name == "darts" else 1
    whole, part = (SUPERNETS[name](2, layers, 10, some) for some in (None, ops))
    places = [whole.space.ops.index(op) for op in part.space.ops]
    state = {}
    for key, value in whole.state_dict().items():
        words = key.split(".")
        for kind in ("own", "shared"):
            if kind in words:
                at = words.index(kind) + 2
                words[at] = str(places.index(int(words[at]))) if int(words[at]) in places else "gone"
        if "gone" not in words:
            state[".".join(words)] = value
    assert state.keys() == part.state_dict().keys()
    part.load_state_dict(state | {"alpha": part.alpha}, strict=False)  # not, for the version of batch norm
    q = torch.rand(2, *part.alpha.shape).softmax(-1)
    p = torch.zeros(2, *whole.alpha.shape)
    p[..., places] = q
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(part(x, q), whole(x, p))
    part(x, q).sum().backward()
    assert read_cell(part.space, q[0]) == read_cell(whole.space, p[0])


def test_sampling_on_a_table(table, tmp_path):
    """The best neighborhood is that of brute force, and nothing else is paid for."""
    column = sample.nats_bench.load_table(table)["cifar10_valid_200"].tolist()
    errors, ops = (
        dict(zip(nasbench201_architectures(), column, strict=True)),
        space_with("nasbench201", SOME).ops,
    )
    scores = []
    for arch in itertools.product(ops, repeat=6):
        ball = {(*arch[:e], op, *arch[e + 1 :]) for e in range(6) for op in ops}
        scores.append(sum(100 - errors[nasbench201_string(near)] for near in ball) / 13)
        assert len(ball) == 13
    for name, more in (("rs", "--samples 5000"), ("ls", "--agg max")):
        do(sample, f"--bench {table} --ops {' '.join(SOME)} --algo {name} {more}", "--save", tmp_path / name)
    (row,), (other,) = outcome(tmp_path / "rs").rows, outcome(tmp_path / "ls").rows
    assert float(row["score"]) == pytest.approx(min(scores)) and int(row["evaluations"]) == 729
    assert set(operations(other["arch"])) <= set(SOME) and int(other["evaluations"]) == 200


def test_evolution(table, tmp_path):
    flags = f"--bench {table} --ops skip_connect nor_conv_3x3 --budget 60 --noise 1 --algo ea"
    do(sample, flags, "--save", tmp_path / "r")
    (row,) = outcome(tmp_path / "r").rows
    assert set(operations(row["arch"])) <= {"skip_connect", "nor_conv_3x3"} and int(row["evaluations"]) == 60


@pytest.mark.parametrize(
    "name,ops,more",
    [
        ("darts", S2, ""),
        ("darts", S3, "--relax gumbel --weight_step neighbors"),
        ("nasbench201", SOME, "--perturb ascent"),
        ("nasbench201", SOME, "--relax dirichlet --perturb replace --unrolled"),
    ],
)
def test_search(tmp_path, few_shapes, no_sharpness, name, ops, more):
    flags = f"{SEARCH} --space {name} --layers {3 if name == 'darts' else 1} --ops {' '.join(ops)} {more}"
    do(search, f"{flags} --epochs 1", "--save", tmp_path / "r")
    if name == "nasbench201":
        do(search, "--epochs 2", "--resume", tmp_path / "r")
    run, space = outcome(tmp_path / "r"), space_with(name, ops)
    assert run.checkpoint["model"]["alpha"].shape[-1] == len(ops)
    arch = parse_architecture(str(tmp_path / "r"), SPACES[name])
    assert set(operations(arch)) <= set(discrete_ops(space))
    visualize.main(visualize.parse_args(["mixture", str(tmp_path / "r")]))
    assert {row["operation"] for row in read(tmp_path / "r" / "mixture.csv")} == set(ops)
    if name == "nasbench201":
        visualize.main(visualize.parse_args(["sharpness", str(tmp_path / "r"), "--images", "16"]))


def test_another_supernet(tmp_path, few_shapes, refused, monkeypatch):
    """It is searched in the operations that it has, or in fewer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "IMAGES", 16)
    flags, ops = f"{SUPERNET} --space darts --layers 3 --budget 30", "max_pool_3x3 skip_connect sep_conv_3x3"
    do(sample, f"{flags} --algo ea --ops {ops} --save whole")
    do(sample, f"--algo rs --eval supernet --budget 40 --supernet whole --ops {' '.join(S2)} --save part")
    for name in ("whole", "part"):
        (row,) = outcome(name).rows
        assert set(operations(parse_architecture(row["arch"]))) <= set(ops.split() if name == "whole" else S2)
    for more in ("", "--ops none skip_connect sep_conv_5x5"):
        error = refused(sample, f"--algo rs --eval supernet --budget 200 --supernet whole {more} --save no")
        assert f"--supernet whole has --ops {ops}: give these or fewer" in error
    error = refused(sample, "--resume whole --ops skip_connect max_pool_3x3")
    assert "another configuration: --ops" in error and not (tmp_path / "no").exists()


def test_correlation_with_a_table(tmp_path, few_shapes, table, capsys, monkeypatch):
    monkeypatch.setattr(sample, "CENTERS", 2)
    monkeypatch.setattr(sample, "IMAGES", 16)
    flags = f"{SUPERNET} --space nasbench201 --layers 1 --algo ls --ops {' '.join(SOME)} --budget 14"
    do(sample, flags + " --starts 1", "--bench", table, "--save", tmp_path / "r")
    output = capsys.readouterr().out
    assert "rank correlation with cifar10_valid_200" in output and "over 26 architectures" in output
    space = space_with("nasbench201", SOME)
    names, errors = sample.errors_of({"a": torch.arange(15_625)}, "a", space)
    assert names == [from_indices(space, arch) for arch in itertools.product(range(3), repeat=6)]
    assert [nasbench201_architectures()[100 - error] for error in errors] == names


def test_by_training(tmp_path, few_shapes):
    flags = f"--algo rs --neighborhood 0 --eval train --space darts --ops {' '.join(S2)} --budget 2"
    more = f"{SHAPES} --init_channels 2 --layers 3 --epochs 1 --batch_size 320 --no-auxiliary"
    do(sample, f"{flags} {more}", "--save", tmp_path / "r")
    rows = read(tmp_path / "r" / "evaluations.csv")
    assert len(rows) == 2 and {
        op for row in rows for op in operations(parse_architecture(row["arch"]))
    } == set(S2)
