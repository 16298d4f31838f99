"""Slow, obvious references that the fast code must match: supernets that compute every operation of every
edge alone.

Written as the original DARTS and NAS-Bench-201 code has it: one module an operation, one sum an edge.
Parameters stand in the same order as in model_search.py, so `copy_weights` can fill one supernet from the
other.
"""

import torch
import torch.nn as nn

from genotypes import SPACES


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride] * 0


class FactorizedReduce(nn.Module):
    def __init__(self, C_in, C_out, affine):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x):
        x = self.relu(x)
        shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))


def relu_conv_bn(C_in, C_out, k, stride, affine):
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(C_in, C_out, k, stride, k // 2, bias=False), nn.BatchNorm2d(C_out, affine=affine)
    )


def sep_conv(C, k, stride, affine):
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, k, stride, k // 2, groups=C, bias=False),
        nn.Conv2d(C, C, 1, bias=False),
        nn.BatchNorm2d(C, affine=affine),
        nn.ReLU(),
        nn.Conv2d(C, C, k, 1, k // 2, groups=C, bias=False),
        nn.Conv2d(C, C, 1, bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


def dil_conv(C, k, stride, affine):
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, k, stride, k - 1, dilation=2, groups=C, bias=False),
        nn.Conv2d(C, C, 1, bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


def operation(name, C, stride, affine=False):
    """One operation of either space, on its own."""
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(C, C, affine)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    k = int(name[-1])
    if name.startswith("nor_conv"):
        return relu_conv_bn(C, C, k, stride, affine)
    return {"sep": sep_conv, "dil": dil_conv}[name[:3]](C, k, stride, affine)


class MixedOp(nn.Module):
    """One edge: the weighted sum of all operations."""

    def __init__(self, space, C, stride):
        super().__init__()
        self.ops = nn.ModuleList()
        for name in space.ops:
            op = operation(name, C, stride)
            if space.name == "darts" and "pool" in name:
                op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            self.ops.append(op)

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


class Cell(nn.Module):
    def __init__(self, space, C, stride, reduces):
        super().__init__()
        self.space = space
        self.ops = nn.ModuleList(
            MixedOp(space, C, stride if source in reduces else 1) for source, _ in space.edges
        )

    def forward(self, states, p):
        nodes = dict(enumerate(states))
        for op, (source, target), weights in zip(self.ops, self.space.edges, p, strict=True):
            term = op(nodes[source], weights)
            nodes[target] = nodes[target] + term if target in nodes else term
        return [nodes[i] for i in sorted(nodes)]


class PlainDarts(nn.Module):
    def __init__(self, C=16, layers=8, classes=10):
        super().__init__()
        space = SPACES["darts"]
        C_pp = C_p = 3 * C
        self.stem = nn.Sequential(nn.Conv2d(3, C_p, 3, padding=1, bias=False), nn.BatchNorm2d(C_p))
        self.cells = nn.ModuleList()
        self.kinds = []
        reduction_prev = False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            pre0 = FactorizedReduce(C_pp, C, False) if reduction_prev else relu_conv_bn(C_pp, C, 1, 1, False)
            pre1 = relu_conv_bn(C_p, C, 1, 1, False)
            self.cells.append(nn.ModuleList([pre0, pre1, Cell(space, C, 2 if reduction else 1, (0, 1))]))
            self.kinds.append(int(reduction))
            C_pp, C_p, reduction_prev = C_p, 4 * C, reduction
        self.classifier = nn.Linear(C_p, classes)

    def forward(self, x, p):  # p (cells, E, O)
        s0 = s1 = self.stem(x)
        for (pre0, pre1, cell), kind in zip(self.cells, self.kinds, strict=True):
            nodes = cell([pre0(s0), pre1(s1)], p[kind])
            s0, s1 = s1, torch.cat(nodes[2:], dim=1)
        return self.classifier(s1.mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, C_in, C_out):
        super().__init__()
        self.conv_a = relu_conv_bn(C_in, C_out, 3, 2, True)
        self.conv_b = relu_conv_bn(C_out, C_out, 3, 1, True)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.conv = nn.Conv2d(C_in, C_out, 1, bias=False)

    def forward(self, x):
        return self.conv_b(self.conv_a(x)) + self.conv(self.pool(x))


class PlainNasBench201(nn.Module):
    def __init__(self, C=16, layers=5, classes=10):
        super().__init__()
        space = SPACES["nasbench201"]
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.blocks.append(ResidualBlock(C, 2 * C))
                C = 2 * C
            self.blocks.extend(Cell(space, C, 1, ()) for _ in range(layers))
        self.last = nn.BatchNorm2d(C)
        self.classifier = nn.Linear(C, classes)

    def forward(self, x, p):
        x = self.stem(x)
        for block in self.blocks:
            x = block([x], p[0])[-1] if isinstance(block, Cell) else block(x)
        return self.classifier(self.last(x).relu().mean((2, 3)))


PLAIN = {"darts": PlainDarts, "nasbench201": PlainNasBench201}


def copy_weights(supernet, plain):
    """Give the plain supernet the weights of the fast one."""
    with torch.no_grad():
        for source, target in zip(supernet.weight_parameters(), plain.parameters(), strict=True):
            assert source.shape == target.shape
            target.copy_(source)
    return plain
