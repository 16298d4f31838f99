"""The networks of fixed cells: published sizes, shapes, agreement with plain modules, drop path, auxiliary
head."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import STRINGS
from plain import PlainNasBench201Network, PlainNetwork, copy_modules

import model
from genotypes import NAMED, SPACES, operations, random_architecture
from model import NETWORKS, BatchNorm, Conv, Depthwise, WideFilters, batch_to_groups, groups_to_batch
from model_search import WeightedSums

# Published or counted by others, as the original code counts: parameters without and with auxiliary head, and
# multiply-accumulates; CIFAR (36 channels, 20 cells, 10 classes, 32 x 32), then ImageNet (48 channels, 14
# cells, 1,000 classes, 224 x 224).
SIZES = {
    "DARTS_V1": (3_169_414, 3_645_840, 500_987_520, 4_510_432, 5_771_208, 505_864_704),
    "DARTS_V2": (3_349_342, 3_825_768, 528_359_040, 4_718_752, 5_979_528, 529_911_552),
    "NASNet": (3_830_950, 4_288_944, 603_452_448, 5_564_320, 6_800_520, 604_031_616),
    "AmoebaNet": (3_145_078, 3_603_072, 488_931_552, 4_627_360, 5_863_560, 526_746_624),
}
# Parameters and multiply-accumulates (32 x 32, 10 classes) of the official table
NASBENCH201 = dict(
    zip(STRINGS, ((129_306, 15_647_370), (802_426, 113_951_370), (101_306, 11_715_210)), strict=True)
)


def parameters(network):
    return sum(w.numel() for w in network.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_of_darts_networks(name):
    got = []
    for kind, C, classes, layers, size in (("cifar", 36, 10, 20, 32), ("imagenet", 48, 1000, 14, 224)):
        with torch.device("meta"):  # which draws no weights
            with_head = NETWORKS[kind](C, classes, layers, True, NAMED[name])
            without = NETWORKS[kind](C, classes, layers, False, NAMED[name])
        got += [parameters(without), parameters(with_head)]
        got.append(model.count_macs(with_head, size))
        assert with_head.training  # counting leaves the network as it was
    assert tuple(got) == SIZES[name]


@pytest.mark.parametrize("arch", NASBENCH201)
def test_published_sizes_of_nasbench201_networks(arch):
    with torch.device("meta"):
        network = NETWORKS["nasbench201"](16, 10, 5, False, arch)
    assert (parameters(network), model.count_macs(network, 32)) == NASBENCH201[arch]


def drawn(space):
    g = torch.Generator().manual_seed(0)
    return [random_architecture(SPACES[space], g) for _ in range(30)]


def check_shapes(kind, C, layers, has_head, arch, size, classes=10):
    """Forward and backward in training mode, forward in evaluation mode; returns parameters without
    gradient."""
    network, x = NETWORKS[kind](C, classes, layers, has_head, arch), torch.randn(2, 3, size, size)
    logits, auxiliary = network(x, 0.2)
    assert logits.shape == (2, classes)
    assert (auxiliary is not None) == has_head and (not has_head or auxiliary.shape == (2, classes))
    (logits.sum() + (auxiliary.sum() if has_head else 0)).backward()
    for w in network.parameters():
        assert w.grad is None or (w.grad.shape == w.shape and w.grad.isfinite().all())
    network.eval()
    logits, auxiliary = network(x)
    assert logits.shape == (2, classes) and auxiliary is None
    return [name for name, w in network.named_parameters() if w.grad is None]


@pytest.mark.parametrize("size,classes", [(8, 2), (15, 7), (32, 100), (33, 10)])
@pytest.mark.parametrize("name", NAMED)
def test_shapes_of_named_cells(name, size, classes):
    torch.manual_seed(0)
    assert check_shapes("cifar", 4, 5, True, NAMED[name], size, classes) == []
    assert check_shapes("cifar", 3, 3, False, NAMED[name], size, classes) == []
    assert check_shapes("imagenet", 4, 3, True, NAMED[name], 2 * size + 48, classes) == []


def test_shapes_of_random_cells():
    torch.manual_seed(0)
    for i, arch in enumerate(drawn("darts")):
        assert check_shapes("cifar", 4, 3, True, arch, 8) == []
        if i % 10 == 0:
            assert check_shapes("imagenet", 4, 3, True, arch, 64) == []
    for arch in [*drawn("nasbench201"), "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"]:
        assert not check_shapes("nasbench201", 4, 1, False, arch, 15) or "none" in arch


CASES = [
    ("cifar", "AmoebaNet", 32),
    ("cifar", "NASNet", 32),
    ("cifar", "NA_DARTS", 32),
    ("imagenet", "DARTS_V2", 224),
    ("imagenet", "AmoebaNet", 200),  # odd sides on the way, and 7 x 7 features at the head
]


def with_random_statistics(network):
    """Batch norms with other scales, shifts and running statistics than those they start with."""
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            for value in (m.weight.data, m.bias.data, m.running_mean):
                value.add_(0.1 * torch.randn_like(value))
            m.running_var.mul_(1 + torch.rand_like(m.running_var))
    return network


@pytest.mark.parametrize("kind,name,size", CASES)
def test_networks_equal_plain_ones(kind, name, size):
    torch.manual_seed(0)
    network = with_random_statistics(NETWORKS[kind](4, 5, 4, True, NAMED[name]).double())
    plain = copy_modules(network, PlainNetwork(kind, 4, 5, 4, NAMED[name]).double())
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    results = []
    for net in (network, plain):
        logits, auxiliary = net(x)
        (logits.square().mean() + auxiliary.square().mean()).backward()
        stem = next(net.parameters()).grad
        net.eval()
        results.append([logits, auxiliary, stem, net(x)[0]])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(*results, strict=True))
    assert results[0][2].abs().max() > 1e-6


@pytest.mark.parametrize("arch", [*drawn("nasbench201")[:5], STRINGS[2]])
def test_nasbench201_networks_equal_plain_ones(arch):
    torch.manual_seed(0)
    network = with_random_statistics(NETWORKS["nasbench201"](4, 5, 2, False, arch).double())
    plain = copy_modules(network, PlainNasBench201Network(4, 5, 2, operations(arch)).double())
    x = torch.randn(3, 3, 15, 15, dtype=torch.float64)
    assert torch.allclose(network(x)[0], plain(x), rtol=1e-9, atol=1e-11)
    network.eval(), plain.eval()
    assert torch.allclose(network(x)[0], plain(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_drop_path_keeps_the_expectation(probability):
    torch.manual_seed(0)
    n = 20_000
    x = torch.rand(n, 2, 2, 2, dtype=torch.float64) + 1
    y = model.drop_path(x, probability)
    kept = y.flatten(1)[:, 0] != 0
    # A picture is dropped as a whole or kept as a whole, and what is kept is scaled up.
    assert torch.equal(y[kept], x[kept] * (1 / (1 - probability))) and (y[~kept] == 0).all()
    spread = (probability * (1 - probability) / n) ** 0.5
    assert abs(kept.double().mean() - (1 - probability)) < 4 * spread
    assert abs(y.mean() / x.mean() - 1) < 4 * spread / (1 - probability)


def test_drop_path_at_0_and_in_evaluation_mode_does_nothing(monkeypatch):
    torch.manual_seed(0)
    network = NETWORKS["cifar"](4, 10, 3, True, NAMED["DARTS_V2"])
    x = torch.randn(4, 3, 16, 16)
    dropped = network(x, 0.5)[0]
    assert not torch.equal(dropped, network(x, 0.5)[0])
    assert torch.equal(network(x, 0.0)[0], network(x)[0])

    def never(x, probability):
        raise AssertionError("drop path was called")

    monkeypatch.setattr(model, "drop_path", never)
    network.eval()
    assert torch.equal(network(x, 0.5)[0], network(x)[0])


def test_drop_path_spares_the_identity(monkeypatch):
    """As in DARTS, every operation but an identity is dropped: in DARTS_V2 all but the two skip connections
    of a normal cell, and all but the three of a reduction cell that start inside it."""
    calls = []
    monkeypatch.setattr(model, "drop_path", lambda x, probability: calls.append(probability) or x)
    NETWORKS["cifar"](4, 10, 3, False, NAMED["DARTS_V2"])(torch.randn(2, 3, 16, 16), 0.3)
    assert calls == [0.3] * (6 + 5 + 5)  # the three cells: normal, reduce, reduce


SIDES = [(1, 1), (2, 2), (3, 1), (3, 3), (4, 4), (4, 7), (7, 4), (5, 5), (8, 8), (15, 15), (16, 10)]


def drawn_images(*shape):
    x = torch.randn(*shape, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("C", [1, 2, 8])
def test_wide_filters_are_a_convolution(C, stride):
    torch.manual_seed(0)
    weight = torch.randn(C, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    for H, W in SIDES:
        x = drawn_images(3, C, H, W)
        got, expected = WideFilters.apply(x, weight, stride), F.conv2d(x, weight, None, stride, 2, 1, C)
        assert torch.equal(got, expected)
        g = torch.randn_like(got)
        by_x, by_weight = torch.autograd.grad(got, [x, weight], g)
        for a, b in zip((by_x, by_weight), torch.autograd.grad(expected, [x, weight], g), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), (H, W)
    if C == 2:
        x = drawn_images(2, C, 5, 4)
        assert torch.autograd.gradgradcheck(lambda x, w: WideFilters.apply(x, w, stride), (x, weight))


@pytest.mark.parametrize("stride", [1, 2])
def test_average_pool_of_a_gpu_is_that_of_a_cpu(stride):
    torch.manual_seed(0)
    pool = model.OPS["avg_pool_3x3"](3, stride, False)
    for H, W in SIDES:
        x = drawn_images(2, 3, H, W)
        got, expected = pool.pool_copied(x), F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
        assert torch.equal(got, expected) and got.is_contiguous(memory_format=torch.channels_last)
        g = torch.randn_like(got)
        by_x = [torch.autograd.grad(y, x, g)[0] for y in (got, expected)]
        assert torch.allclose(*by_x, rtol=1e-12, atol=1e-12), (H, W)


@pytest.mark.parametrize("H,W", SIDES)
def test_phases_are_put_together_again(H, W):
    x = drawn_images(3, 2, H, W)
    pictures, dilation = model.phases(x)
    assert torch.equal(model.from_phases(pictures, x), x)
    assert dilation == (2 if H % 2 or W % 2 else 1)
    if dilation == 1:  # those of a picture stay together, so groups of a batch stay groups
        assert torch.equal(pictures[:4], model.phases(x[:1])[0])
        assert torch.equal(pictures[1], x[0, :, ::2, 1::2])


def test_groups_side_by_side_and_back():
    x = drawn_images(6, 2, 3, 5)
    for n in (1, 2, 3):
        wide = batch_to_groups(x, n)
        assert wide.shape == (6 // n, 2 * n, 3, 5)
        assert torch.equal(groups_to_batch(wide, n), x)
        assert torch.equal(model.split_groups(model.merge_groups(wide, n), n), wide)
        for k, part in enumerate(x.chunk(n)):
            assert torch.equal(wide[:, 2 * k : 2 * k + 2], part)
        double = model.cat_channels([wide, 2 * wide], n)
        assert torch.equal(groups_to_batch(double, n), torch.cat([x, 2 * x], 1))


@pytest.mark.parametrize("k,stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolutions_of_groups(k, stride):
    torch.manual_seed(0)
    conv = Conv(4, 6, k, stride).double()
    for H, W in SIDES:
        x = drawn_images(6, 4, H, W)
        got = groups_to_batch(conv(batch_to_groups(x, 3), 3), 3)
        assert torch.allclose(got, conv(x), rtol=1e-12, atol=1e-12)
        depthwise = Depthwise(4, 3 if k == 1 else 5, stride).double()
        got = groups_to_batch(depthwise(batch_to_groups(x, 3), 3), 3)
        assert torch.allclose(got, depthwise(x), rtol=1e-12, atol=1e-12)


def test_weighted_sums():
    torch.manual_seed(0)
    for n in (1, 3):
        weights = torch.randn(3, 2, n, dtype=torch.float64, requires_grad=True)
        tensors = [drawn_images(2, 2 * n, 2, 3) for _ in range(2)]
        spread = weights.repeat_interleave(2, 2)[..., None, None]
        expected = [sum(w * x for w, x in zip(row, tensors, strict=True)) for row in spread]
        got = WeightedSums.apply(weights, *tensors)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(got, expected, strict=True))
        assert torch.autograd.gradcheck(WeightedSums.apply, (weights, *tensors))
        assert torch.autograd.gradgradcheck(WeightedSums.apply, (weights, *tensors))


@pytest.mark.parametrize("affine", [False, True])
def test_groups_of_a_batch_norm(affine):
    """Outputs, gradients of everything and running statistics are those of separate passes."""
    torch.manual_seed(0)
    together, alone = BatchNorm(3, affine).double(), BatchNorm(3, affine).double()
    x = drawn_images(6, 3, 4, 5)
    for training in (True, False):
        together.train(training), alone.train(training)
        for scale in (None, torch.rand(2, dtype=torch.float64, requires_grad=True)):
            wanted = [x, *together.parameters(), *([] if scale is None else [scale])]
            theirs = [x, *alone.parameters(), *([] if scale is None else [scale])]
            factors = None if scale is None else scale.repeat_interleave(3)  # one a channel
            a = groups_to_batch(together(batch_to_groups(x, 2), 2, factors), 2)
            each = [None, None] if scale is None else factors.chunk(2)
            b = [alone(part, 1, factor) for part, factor in zip(x.chunk(2), each, strict=True)]
            b = groups_to_batch(torch.cat(b, 1), 2)
            assert torch.allclose(a, b, rtol=1e-12)
            g = torch.randn_like(a).contiguous()  # a gradient in another memory layout
            pairs = zip(torch.autograd.grad(a, wanted, g), torch.autograd.grad(b, theirs, g), strict=True)
            assert all(torch.allclose(i, j, rtol=1e-10, atol=1e-12) for i, j in pairs)
            assert all(torch.allclose(i, j) for i, j in zip(together.buffers(), alone.buffers(), strict=True))
    assert together.running_mean.abs().min() > 0


def test_groups_that_share_statistics_keep_fine_differences_of_alpha():
    """Factors that bfloat16 does not tell apart are told apart under autocast, on average over rounding."""
    norm = model.BatchNorm(8, affine=False)
    norm.shared = True
    scale = torch.tensor([0.125, 0.12535]).requires_grad_()
    assert scale.bfloat16().unique().numel() == 1
    torch.manual_seed(0)
    x = torch.randn(16, 16, 16, 16).bfloat16()
    factors = scale.repeat_interleave(8)
    y, plain = (norm(x, 2, s).unflatten(1, (2, 8)).float() for s in (factors, None))
    ratio = (y * plain).sum((0, 2, 3, 4)) / plain.square().sum((0, 2, 3, 4))
    assert torch.allclose(ratio, scale, rtol=5e-4) and (ratio[1] / ratio[0] - 1).item() > 0.002
