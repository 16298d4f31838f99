"""Slow, obvious references that the fast code must match: supernets that compute every operation of every
edge alone, and the networks of fixed cells in plain modules.

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
    assert name.startswith(("nor_conv", "conv_7x1", "sep", "dil")), f"add {name} in plain modules"
    k = int(name[-1])
    if name.startswith("nor_conv"):
        return relu_conv_bn(C, C, k, stride, affine)
    if name == "conv_7x1_1x7":
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, (1, 7), (1, stride), (0, 3), bias=False),
            nn.Conv2d(C, C, (7, 1), (stride, 1), (3, 0), bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )
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


class PlainNetwork(nn.Module):
    """DARTS's network of a fixed cell, for CIFAR or for ImageNet, with its auxiliary head."""

    def __init__(self, kind, C, classes, layers, genotype):
        super().__init__()
        imagenet = kind == "imagenet"
        if imagenet:
            self.stem0 = nn.Sequential(
                nn.Conv2d(3, C // 2, 3, 2, 1, bias=False),
                nn.BatchNorm2d(C // 2),
                nn.ReLU(),
                nn.Conv2d(C // 2, C, 3, 2, 1, bias=False),
                nn.BatchNorm2d(C),
            )
            self.stem1 = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, 2, 1, bias=False), nn.BatchNorm2d(C))
        else:
            self.stem0 = nn.Sequential(nn.Conv2d(3, 3 * C, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * C))
            self.stem1 = nn.Identity()
        self.cells = nn.ModuleList()
        self.plans = []
        C_pp = C_p = C if imagenet else 3 * C
        reduction_prev = imagenet
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            pre0 = FactorizedReduce(C_pp, C, True) if reduction_prev else relu_conv_bn(C_pp, C, 1, 1, True)
            pre1 = relu_conv_bn(C_p, C, 1, 1, True)
            pairs, concat = (
                (genotype.reduce, genotype.reduce_concat)
                if reduction
                else (genotype.normal, genotype.normal_concat)
            )
            ops = [operation(op, C, 2 if reduction and j < 2 else 1, True) for op, j in pairs]
            self.cells.append(nn.ModuleList([pre0, pre1, *ops]))
            self.plans.append(([j for _, j in pairs], concat))
            C_pp, C_p, reduction_prev = C_p, len(concat) * C, reduction
            if i == 2 * layers // 3:
                self.head_at, C_head = i, C_p
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, 2 if imagenet else 3, count_include_pad=False),
            nn.Conv2d(C_head, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.Identity() if imagenet else nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )
        self.classifier = nn.Linear(C_p, classes)

    def forward(self, x):
        s0 = self.stem0(x)
        s1 = self.stem1(s0)
        for i, ((pre0, pre1, *ops), (sources, concat)) in enumerate(zip(self.cells, self.plans, strict=True)):
            nodes = [pre0(s0), pre1(s1)]
            for k in range(0, len(ops), 2):
                nodes.append(ops[k](nodes[sources[k]]) + ops[k + 1](nodes[sources[k + 1]]))
            s0, s1 = s1, torch.cat([nodes[j] for j in concat], dim=1)
            if i == self.head_at:
                auxiliary = self.head(s1)
        return self.classifier(s1.mean((2, 3))), auxiliary


class PlainNasBench201Network(nn.Module):
    """NAS-Bench-201's network of one architecture."""

    def __init__(self, C, classes, layers, ops):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.blocks.append(ResidualBlock(C, 2 * C))
                C = 2 * C
            self.blocks.extend(nn.ModuleList(operation(op, C, 1, True) for op in ops) for _ in range(layers))
        self.last = nn.BatchNorm2d(C)
        self.classifier = nn.Linear(C, classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if isinstance(block, ResidualBlock):
                x = block(x)
                continue
            nodes = [x, 0, 0, 0]
            for op, (source, target) in zip(block, SPACES["nasbench201"].edges, strict=True):
                nodes[target] = nodes[target] + op(nodes[source])
            x = nodes[3]
        return self.classifier(self.last(x).relu().mean((2, 3)))


def copy_modules(network, plain):
    """Give a plain network the weights and running statistics of the one in model.py."""
    for kinds in ((nn.Conv2d, nn.Linear), (nn.BatchNorm2d,)):
        pairs = [[m for m in net.modules() if isinstance(m, kinds)] for net in (network, plain)]
        for source, target in zip(*pairs, strict=True):
            target.load_state_dict(source.state_dict(), strict=False)
    return plain


def copy_weights(supernet, plain):
    """Give the plain supernet the weights of the fast one."""
    with torch.no_grad():
        for source, target in zip(supernet.weight_parameters(), plain.parameters(), strict=True):
            assert source.shape == target.shape
            target.copy_(source)
    return plain
