"""The operations of both search spaces.

`OPS[name](C, stride, affine)` builds an operation that keeps C channels; `affine` says whether its batch
norms learn a scale and shift (fixed networks: yes; supernets: no, since the mixture weights already scale).
Inputs and outputs are (B, C, H, W); stride 2 halves H and W, rounding up, so odd sizes work. What an
operation computes is that of DARTS (Liu, Simonyan, Yang; ICLR 2019) and NAS-Bench-201 (Dong, Yang; ICLR
2020).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class BatchNorm(nn.BatchNorm2d):
    """Batch norm in which n equal groups of the batch have statistics of their own, times a factor for each
    group.

    forward(x, groups, scale): x (B, C, H, W), groups n, scale (n,) or None. In training mode this is n
    separate passes, the updates of the running statistics included, whose outputs are multiplied by scale.
    The factor is folded into the weight of the normalisation and costs nothing.
    """

    def __init__(self, C, affine=True):
        super().__init__(C, affine=affine)
        self.num_batches_tracked = None  # read only where momentum is None

    def forward(self, x, groups=1, scale=None):
        outputs = []
        factors = [None] * groups if scale is None else scale.unbind(0)
        for part, factor in zip(x.chunk(groups), factors, strict=True):
            weight, bias = self.weight, self.bias
            if factor is not None:
                # repeat, not expand: the channels-last backward on CPU misreads a weight of stride 0 (torch
                # 2.14).
                weight = factor.repeat(x.shape[1]) if weight is None else factor * weight
                bias = None if bias is None else factor * bias
            statistics = self.running_mean, self.running_var
            outputs.append(
                F.batch_norm(part, *statistics, weight, bias, self.training, self.momentum, self.eps)
            )
        return outputs[0] if groups == 1 else torch.cat(outputs)


class ConvOp(nn.Module):
    """(ReLU, convolutions, batch norm), once or several times over: every operation that has weights.

    forward(x) is the whole operation. body(x, groups, scale) takes x after the first ReLU, which a supernet
    computes once for all operations that share an input; groups and scale are those of BatchNorm, the scale
    for the last one.
    """

    def __init__(self, C, affine, *stages):
        super().__init__()
        self.convs = nn.ModuleList(stages)
        self.norms = nn.ModuleList(BatchNorm(C, affine) for _ in stages)

    def forward(self, x):
        return self.body(F.relu(x))

    def body(self, x, groups=1, scale=None):
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if i == 0 else F.relu(x)), groups, scale if i == last else None)
        return x


class DilatedDepthwise(nn.Conv2d):
    """A k x k depthwise convolution with dilation 2, computed as ordinary ones.

    Pixels whose row and column have the same parity only ever meet each other, so with stride 1 it is the
    ordinary convolution on four half-size pictures, and with stride 2 that on the first of them alone. The
    same sums, but the backward pass of a dilated depthwise convolution is several times slower on a CPU.
    """

    def __init__(self, C, k, stride):
        super().__init__(C, C, k, stride, padding=k - 1, dilation=2, groups=C, bias=False)

    def forward(self, x):  # (B, C, H, W)
        half = self.kernel_size[0] // 2
        if self.stride[0] == 2:
            return F.conv2d(x[:, :, ::2, ::2], self.weight, padding=half, groups=self.groups)
        B, C, H, W = x.shape
        h, w = (H + 1) // 2, (W + 1) // 2
        x = F.pad(x, (0, 2 * w - W, 0, 2 * h - H)).permute(0, 2, 3, 1).view(B, h, 2, w, 2, C)
        x = x.permute(2, 4, 0, 1, 3, 5).reshape(4 * B, h, w, C)  # the four phases, as one batch
        x = F.conv2d(x.permute(0, 3, 1, 2), self.weight, padding=half, groups=self.groups)
        x = x.permute(0, 2, 3, 1).view(2, 2, B, h, w, C).permute(2, 3, 0, 4, 1, 5).reshape(B, 2 * h, 2 * w, C)
        return x[:, :H, :W].permute(0, 3, 1, 2)


class HalvingConv(nn.Module):
    """Two 1 x 1 convolutions of stride 2, the second one pixel further on, each with half of the output
    channels."""

    def __init__(self, C_in, C_out):
        super().__init__()
        self.even = nn.Conv2d(C_in, C_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(C_in, C_out - C_out // 2, 1, stride=2, bias=False)

    def forward(self, x):
        shifted = x[:, :, 1:, 1:]
        if x.shape[2] % 2 or x.shape[3] % 2:  # the last odd row or column lies outside: zeros
            shifted = F.pad(shifted, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return torch.cat([self.even(x), self.odd(shifted)], dim=1)


class Zero(nn.Module):
    """The operation `none`."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def conv(C, k, stride=1):
    """A k x k convolution, C channels to C."""
    return nn.Conv2d(C, C, k, stride, padding=k // 2, bias=False)


def depthwise(C, k, stride):
    return nn.Conv2d(C, C, k, stride, padding=k // 2, groups=C, bias=False)


def relu_conv_bn(C_in, C_out, affine):
    """ReLU, 1 x 1 convolution, batch norm: what brings a cell's inputs to its number of channels."""
    return ConvOp(C_out, affine, nn.Conv2d(C_in, C_out, 1, bias=False))


def factorized_reduce(C_in, C_out, affine):
    """A skip connection that halves the picture."""
    return ConvOp(C_out, affine, HalvingConv(C_in, C_out))


def sep_conv(C, k, stride, affine):
    """Depthwise separable convolution, applied twice."""
    return ConvOp(
        C,
        affine,
        nn.Sequential(depthwise(C, k, stride), conv(C, 1)),
        nn.Sequential(depthwise(C, k, 1), conv(C, 1)),
    )


def dil_conv(C, k, stride, affine):
    """Depthwise separable convolution with dilation 2."""
    return ConvOp(C, affine, nn.Sequential(DilatedDepthwise(C, k, stride), conv(C, 1)))


def conv_7x1_1x7(C, stride, affine):
    first = nn.Conv2d(C, C, (1, 7), (1, stride), padding=(0, 3), bias=False)
    second = nn.Conv2d(C, C, (7, 1), (stride, 1), padding=(3, 0), bias=False)
    return ConvOp(C, affine, nn.Sequential(first, second))


# An operation is added here, and to the `ops` of a space in genotypes.py.
OPS = {
    "none": lambda C, stride, affine: Zero(stride),
    "skip_connect": lambda C, stride, affine: (
        nn.Identity() if stride == 1 else factorized_reduce(C, C, affine)
    ),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "sep_conv_3x3": lambda C, stride, affine: sep_conv(C, 3, stride, affine),
    "sep_conv_5x5": lambda C, stride, affine: sep_conv(C, 5, stride, affine),
    "sep_conv_7x7": lambda C, stride, affine: sep_conv(C, 7, stride, affine),
    "dil_conv_3x3": lambda C, stride, affine: dil_conv(C, 3, stride, affine),
    "dil_conv_5x5": lambda C, stride, affine: dil_conv(C, 5, stride, affine),
    "conv_7x1_1x7": conv_7x1_1x7,
    "nor_conv_1x1": lambda C, stride, affine: ConvOp(C, affine, conv(C, 1, stride)),
    "nor_conv_3x3": lambda C, stride, affine: ConvOp(C, affine, conv(C, 3, stride)),
}


class ResidualBlock(nn.Module):
    """The block between the stages of a NAS-Bench-201 network: two 3 x 3 convolutions that halve the picture,
    and an average pool and 1 x 1 convolution beside them. Its batch norms are affine, in supernets too."""

    def __init__(self, C_in, C_out):
        super().__init__()
        self.conv_a = ConvOp(C_out, True, nn.Conv2d(C_in, C_out, 3, 2, padding=1, bias=False))
        self.conv_b = ConvOp(C_out, True, conv(C_out, 3))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(C_in, C_out, 1, bias=False)
        )

    def forward(self, x, groups=1):
        y = self.conv_a.body(F.relu(x), groups)
        return self.conv_b.body(F.relu(y), groups) + self.shortcut(x)
