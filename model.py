"""The operations of both search spaces, and the networks built from a fixed cell.

`OPS[name](C, stride, affine)` builds an operation that keeps C channels; `affine` says whether its batch
norms learn a scale and shift (fixed networks: yes; supernets: no, since the mixture weights already scale).
Inputs and outputs are (B, C, H, W); stride 2 halves H and W, rounding up, so odd sizes work.

`NETWORKS[name](C, classes, layers, auxiliary, arch)` builds a network. `network(x, drop_path)` runs images x
of shape (B, 3, H, W) and returns (logits, auxiliary logits), each (B, classes); the latter are None in
evaluation mode and without an auxiliary head. drop_path is the probability, a number or a tensor, with which
an operation's output is dropped for an image in training mode, or None.

Operations and networks are those of DARTS (Liu, Simonyan, Yang; ICLR 2019) and NAS-Bench-201 (Dong, Yang;
ICLR 2020), with as many parameters.
"""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import SPACES, operations

# ------------------------------------------------------------------------------------------------------------
# Groups of a batch, and their layout in memory
# ------------------------------------------------------------------------------------------------------------
#
# A supernet runs n groups of images under weights of their own, in one pass. The images of the groups lie
# side by side in the channels: (n b, C, H, W), one group after the other, becomes (b, n C, H, W). What works
# channel by channel, batch norm included, keeps the groups apart by itself, in as many calls as one group
# takes. The modules below are told n; a module that is not made for groups sees them as images of one batch.
#
# Tensors lie channels last in memory, (B, H, W, C), the faster layout for all of this on a CPU and on CUDA.


def batch_to_groups(x, n):
    """Images (n b, C, H, W), of which the first b are the first group, to n groups side by side, (b, n C, H,
    W)."""
    if n == 1:
        return x
    B, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n, B // n, H, W, C).permute(1, 2, 3, 0, 4)
    return x.reshape(B // n, H, W, n * C).permute(0, 3, 1, 2)


def groups_to_batch(x, n):
    """The way back from `batch_to_groups`."""
    if n == 1:
        return x
    b, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(b, H, W, n, C // n).permute(3, 0, 1, 2, 4)
    return x.reshape(n * b, H, W, C // n).permute(0, 3, 1, 2)


def merge_groups(x, n):
    """n groups side by side, (b, n C, H, W), as tensors of C channels, (b, C, H, W n), for what works pixel
    by pixel or on all pixels alike. A view."""
    if n == 1:
        return x
    b, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, H, W * n, C // n).permute(0, 3, 1, 2)


def split_groups(x, n):
    """The way back from `merge_groups`."""
    if n == 1:
        return x
    b, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, H, W // n, n * C).permute(0, 3, 1, 2)


def cat_channels(tensors, n):
    """Tensors (b, n C, H, W) concatenated along the channels of each of n groups."""
    if n == 1:
        return torch.cat(tensors, 1)
    b, _, H, W = tensors[0].shape
    x = torch.cat([x.permute(0, 2, 3, 1).reshape(b, H, W, n, -1) for x in tensors], -1)
    return x.flatten(3).permute(0, 3, 1, 2)


CHANNELWISE = nn.Identity, nn.MaxPool2d, nn.AvgPool2d


def run_groups(module, x, n):
    """The output of any module for n groups side by side."""
    if getattr(module, "takes_groups", False):
        return module(x, n)
    if n == 1 or isinstance(module, CHANNELWISE):
        return module(x)
    return batch_to_groups(module(groups_to_batch(x, n)), n)


class Stage(nn.Sequential):
    """Modules one after the other, of n groups side by side."""

    takes_groups = True

    def forward(self, x, n=1):
        for module in self:
            x = run_groups(module, x, n)
        return x


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of n groups side by side, times a factor for each of their channels.

    forward(x, n, scale): x (b, n C, H, W), scale (n C,) or None. In training mode this is n separate passes,
    the updates of the running statistics included, whose outputs are multiplied by scale. The factor is
    folded into the weight of the normalisation and costs nothing.

    shared: in training mode all groups are normalised as one batch, and the factors cost a product.
    """

    takes_groups = True
    shared = False

    def __init__(self, C, affine=True):
        super().__init__(C, affine=affine)
        self.num_batches_tracked = None  # read only where momentum is None

    def forward(self, x, n=1, scale=None):
        return self.normalise(x, n, scale, self.running_mean, self.running_var)

    def normalise(self, x, n, scale, mean, var):
        """forward, with running statistics (C,) for the C channels that each group of x has."""
        if self.training and not self.momentum:  # as running_statistics_kept asks: nothing is updated
            mean = var = None
        if n > 1 and self.shared and self.training:
            x, fixed = merge_groups(x, n), (self.weight, self.bias, True, self.momentum, self.eps)
            x = split_groups(F.batch_norm(x, mean, var, *fixed), n)
            # Under autocast the product is taken in float32, so that alpha is not rounded to bfloat16.
            return x if scale is None else (x * scale[:, None, None]).to(x.dtype)
        weight, bias = self.weight, self.bias
        if n > 1:
            weight, bias = (None if value is None else value.repeat(n) for value in (weight, bias))
        if scale is not None:
            weight = scale if weight is None else scale * weight
            bias = None if bias is None else scale * bias
        if n > 1 and self.training:
            if mean is not None:
                self.update_running(x.detach(), n, mean, var)
            mean = var = None
        elif n > 1:
            mean, var = mean.repeat(n), var.repeat(n)
        return F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)

    def update_running(self, x, n, mean, var):
        """Update the running statistics as n passes would, one after the other: each is the old value and the
        n new ones in a weighted sum."""
        kept = (1 - self.momentum) ** torch.arange(n - 1, -1, -1, device=x.device, dtype=var.dtype)
        new = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), (0, 2, 3))
        for running, values in zip((var, mean), new, strict=True):
            # .data, as in batch norm itself: a graph that holds them does not use their values.
            values = values.view(n, -1).to(running.dtype).T
            running.data.addmv_(values, kept, beta=(1 - self.momentum) ** n, alpha=self.momentum)


class Conv(nn.Conv2d):
    """A convolution without bias, of each of n groups side by side."""

    takes_groups = True

    def __init__(self, C_in, C_out, k, stride=1):
        super().__init__(C_in, C_out, k, stride, padding=k // 2, bias=False)

    def forward(self, x, n=1):
        return self.convolve(x, n, self.weight)

    def convolve(self, x, n, weight):
        """forward, with another weight."""
        if self.kernel_size == (1, 1) and self.stride == (1, 1):
            return split_groups(F.conv2d(merge_groups(x, n), weight), n)
        x = F.conv2d(groups_to_batch(x, n), weight, None, self.stride, self.padding)
        return batch_to_groups(x, n)


class ConvOp(nn.Module):
    """(ReLU, convolutions, batch norm), once or several times over: every operation that has weights.

    stages: the convolutions before each batch norm, a module each. prepare, finish: functions around it, or
    None. `finish(body(prepare(relu(x))))` is the whole operation, as forward(x) computes it. A supernet
    computes relu and prepare once for all operations that share an input, and finish once for all whose
    outputs are added up. scale is that of the last BatchNorm.
    """

    takes_groups = True

    def __init__(self, C, affine, *stages, prepare=None, finish=None):
        super().__init__()
        self.convs = nn.ModuleList(stages)
        self.norms = nn.ModuleList(BatchNorm(C, affine) for _ in stages)
        self.prepare, self.finish = prepare, finish

    def forward(self, x, n=1):
        x = F.relu(x)
        y = self.body(self.prepare(x) if self.prepare else x, n)
        return self.finish(y, x) if self.finish else y

    def body(self, x, n=1, scale=None):
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = run_groups(conv, x if i == 0 else F.relu(x), n)
            x = norm(x, n, scale if i == last else None)
        return x


def can_go_together(op):
    """Whether `bodies_together` takes operations such as this one."""
    convs = [conv for stage in op.convs for conv in (stage if isinstance(stage, Stage) else [stage])]
    return all(isinstance(conv, (Conv, Depthwise)) for conv in convs)


def starts_depthwise(op):
    return isinstance(op.convs[0], Stage) and isinstance(op.convs[0][0], Depthwise)


def bodies_together(ops, x, n, scale, eye, statistics):
    """The bodies of m ConvOps of one kind on one input, in as many calls as one takes: their channels side by
    side in each group, (b, n m C, H, W).

    x: the prepared input, (b, n C, H, W), or repeated for each of the m if they start with a depthwise
    convolution. scale (n m C,). eye: the m x m identity. statistics: yields the running mean and variance of
    the norms of each stage, (m C,), for those of the modules.
    """
    for i, convs in enumerate(zip(*(op.convs for op in ops), strict=True)):
        x = F.relu(x) if i else x
        for parts in zip(*convs, strict=True) if isinstance(convs[0], Stage) else [convs]:
            weight = torch.cat([conv.weight for conv in parts]) if len(ops) > 1 else parts[0].weight
            shared_input = i == 0 and parts is convs  # a first convolution, plain
            if len(ops) > 1 and isinstance(parts[0], Conv) and not shared_input:
                # Each has its own input: block diagonal. The zeros cost arithmetic, of which there is plenty.
                C_out, C_in, *k = parts[0].weight.shape
                weight = weight.view(len(ops), C_out, 1, C_in, *k) * eye[:, None, :, None, None, None]
                weight = weight.view(len(ops) * C_out, len(ops) * C_in, *k)
            x = parts[0].convolve(x, n, weight)
        last = i == len(ops[0].convs) - 1
        x = ops[0].norms[i].normalise(x, n, scale if last else None, *next(statistics))
    return x


class WideFilters(torch.autograd.Function):
    """A depthwise convolution with 5 x 5 filters, for CPUs: their gradient is computed as that of two 5 x 3
    filters, two pixels apart: oneDNN has no fast code for more than three columns, channels last."""

    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, 2, 1, x.shape[1])

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        by_x = by_weight = None

        def gradient(g, x, weight, padding, *mask):
            step = [ctx.stride, ctx.stride]
            return torch.ops.aten.convolution_backward(
                g, x, weight, None, step, padding, [1, 1], False, [0, 0], x.shape[1], [*mask, False]
            )

        if ctx.needs_input_grad[0]:
            by_x = gradient(g, x, weight, [2, 2], True, False)[0]
        if ctx.needs_input_grad[1]:
            H, shift = max(5, x.shape[2]), 2 // ctx.stride  # nor has it for fewer than five rows
            x = F.pad(x, (1, 1, 0, H - x.shape[2]))
            rows = (H - 1) // ctx.stride + 1 - g.shape[2]
            # Columns 0 to 2 of the filters from one shift of g, 2 to 4 from the other
            left, right = (
                gradient(F.pad(g, (*side, 0, rows)), x, weight[..., :3], [2, 1], False, True)[1]
                for side in ((0, shift), (shift, 0))
            )
            by_weight = torch.cat([left, right[..., 1:]], -1)
        return by_x, by_weight, None


class Depthwise(nn.Conv2d):
    """A k x k depthwise convolution, of each of n groups side by side."""

    takes_groups = True

    def __init__(self, C, k, stride):
        super().__init__(C, C, k, stride, padding=k // 2, groups=C, bias=False)

    def forward(self, x, n=1):
        return self.convolve(x, n, self.weight)

    def convolve(self, x, n, weight, dilation=1):
        """forward, with another weight, of as many channels as each group of x has."""
        padding = dilation * self.padding[0]
        weight = weight if n == 1 else weight.repeat(n, 1, 1, 1)
        fast = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if fast and dilation == 1 and self.kernel_size == (5, 5):
            return WideFilters.apply(x, weight, self.stride[0])
        return F.conv2d(x, weight, None, self.stride, padding, dilation, len(weight))


class DilatedDepthwise(Depthwise):
    """A k x k depthwise convolution with dilation 2, computed as an ordinary one.

    Pixels whose row and column have the same parity only ever meet each other, so with stride 1 it is the
    ordinary convolution on four half-size pictures, `phases(x)`, and with stride 2 that on the first of them,
    `even_pixels(x)`. The same sums, but the backward pass of a dilated depthwise convolution is several times
    slower on a CPU. forward takes (pictures, dilation) as those two functions give them.
    """

    def convolve(self, parts, n, weight):
        x, dilation = parts
        return super().convolve(x, n, weight, dilation)


def has_phases(x):
    return x.shape[2] % 2 == x.shape[3] % 2 == 0


def phases(x):
    """Pictures (B, C, H, W) cut up by the parity of row and column into (4 B, C, H/2, W/2), those of one
    picture together. Pictures of odd sides are left whole. Returns (pictures, dilation)."""
    if not has_phases(x):
        return x, 2
    B, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(4 * B, H // 2, W // 2, C).permute(0, 3, 1, 2), 1


def from_phases(y, x):
    """What `phases` has cut up, put together again. y: pictures. x: what was cut up, for its shape."""
    if not has_phases(x):
        return y
    B, _, H, W = x.shape
    y = y.permute(0, 2, 3, 1).reshape(B, 2, 2, H // 2, W // 2, -1).permute(0, 3, 1, 4, 2, 5)
    return y.reshape(B, H, W, -1).permute(0, 3, 1, 2)


def even_pixels(x):
    """The first of the phases, for stride 2: (pictures, dilation)."""
    return x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), 1


def even_and_odd_pixels(x):
    """The first and the last of the phases, as large as each other: what lies outside is zero."""
    even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
    if even.shape != odd.shape:
        odd = F.pad(odd, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return tuple(part.contiguous(memory_format=torch.channels_last) for part in (even, odd))


class HalvingConv(nn.Module):
    """Two 1 x 1 convolutions of stride 2, the second one pixel further on, each with half of the output
    channels.

    They take `even_and_odd_pixels` and need no stride: the same, faster, and the backward pass of a 1 x 1
    convolution with stride 2 writes outside its memory on a CPU where channels-last input has fewer than 8
    channels (torch 2.14).
    """

    takes_groups = True

    def __init__(self, C_in, C_out):
        super().__init__()
        self.even, self.odd = Conv(C_in, C_out // 2, 1), Conv(C_in, C_out - C_out // 2, 1)

    def forward(self, parts, n=1):
        even, odd = parts
        return cat_channels([self.even(even, n), self.odd(odd, n)], n)


class Zero(nn.Module):
    """The operation `none`."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class AveragePool(nn.AvgPool2d):
    """3 x 3 average pooling, over the pixels that lie inside the picture.

    On CUDA PyTorch's gradient of it is wrong where padded input lies channels last (its issue 188344, mended
    in July 2026): with 2.11, a search step's gradients were off by a third, see RESULTS.md. So everywhere but
    on a CPU a copy in the ordinary layout is pooled.
    """

    def __init__(self, stride):
        super().__init__(3, stride, padding=1, count_include_pad=False)

    def forward(self, x):
        return super().forward(x) if x.device.type == "cpu" else self.pool_copied(x)

    def pool_copied(self, x):
        y = super().forward(x.clone(memory_format=torch.contiguous_format))
        return y.contiguous(memory_format=torch.channels_last)


def relu_conv_bn(C_in, C_out, affine):
    """ReLU, 1 x 1 convolution, batch norm: what brings a cell's inputs to its number of channels."""
    return ConvOp(C_out, affine, Conv(C_in, C_out, 1))


def factorized_reduce(C_in, C_out, affine):
    """A skip connection that halves the picture."""
    return ConvOp(C_out, affine, HalvingConv(C_in, C_out), prepare=even_and_odd_pixels)


def sep_conv(C, k, stride, affine):
    """Depthwise separable convolution, applied twice."""
    stages = (Stage(Depthwise(C, k, s), Conv(C, C, 1)) for s in (stride, 1))
    return ConvOp(C, affine, *stages)


def dil_conv(C, k, stride, affine):
    """Depthwise separable convolution with dilation 2."""
    stage = Stage(DilatedDepthwise(C, k, 1), Conv(C, C, 1))
    around = (phases, from_phases) if stride == 1 else (even_pixels, None)
    return ConvOp(C, affine, stage, prepare=around[0], finish=around[1])


def conv_7x1_1x7(C, stride, affine):
    first = nn.Conv2d(C, C, (1, 7), (1, stride), padding=(0, 3), bias=False)
    second = nn.Conv2d(C, C, (7, 1), (stride, 1), padding=(3, 0), bias=False)
    return ConvOp(C, affine, nn.Sequential(first, second))


# An operation is added here, and to the `ops` of a space in genotypes.py. With weights it is a ConvOp, whose
# 1 x 1 convolutions have stride 1, see HalvingConv; a pooling is an nn.MaxPool2d or nn.AvgPool2d, after which
# the DARTS supernet has a batch norm.
OPS = {
    "none": lambda C, stride, affine: Zero(stride),
    "skip_connect": lambda C, stride, affine: (
        nn.Identity() if stride == 1 else factorized_reduce(C, C, affine)
    ),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda C, stride, affine: AveragePool(stride),
    "sep_conv_3x3": lambda C, stride, affine: sep_conv(C, 3, stride, affine),
    "sep_conv_5x5": lambda C, stride, affine: sep_conv(C, 5, stride, affine),
    "sep_conv_7x7": lambda C, stride, affine: sep_conv(C, 7, stride, affine),
    "dil_conv_3x3": lambda C, stride, affine: dil_conv(C, 3, stride, affine),
    "dil_conv_5x5": lambda C, stride, affine: dil_conv(C, 5, stride, affine),
    "conv_7x1_1x7": conv_7x1_1x7,
    "nor_conv_1x1": lambda C, stride, affine: ConvOp(C, affine, Conv(C, C, 1, stride)),
    "nor_conv_3x3": lambda C, stride, affine: ConvOp(C, affine, Conv(C, C, 3, stride)),
}


class ResidualBlock(nn.Module):
    """The block between the stages of a NAS-Bench-201 network: two 3 x 3 convolutions that halve the picture,
    and an average pool and 1 x 1 convolution beside them. Its batch norms are affine, in supernets too."""

    def __init__(self, C_in, C_out):
        super().__init__()
        self.conv_a = ConvOp(C_out, True, Conv(C_in, C_out, 3, 2))
        self.conv_b = ConvOp(C_out, True, Conv(C_out, C_out, 3))
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Sequential(pool, Conv(C_in, C_out, 1))

    def forward(self, x, n=1):
        pool, conv = self.shortcut
        return self.conv_b(self.conv_a(x, n), n) + conv(pool(x), n)


# ------------------------------------------------------------------------------------------------------------
# Networks from a fixed cell
# ------------------------------------------------------------------------------------------------------------


def drop_path(x, probability):
    """x (B, C, H, W) with each image's part set to zero with this probability, the others scaled up to keep
    the expectation (scheduled drop path; Larsson et al. 2017, Zoph et al. 2018)."""
    kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= probability
    return x * (kept.to(x.dtype) / (1 - probability))


class Cell(nn.Module):
    """A cell of the DARTS space as a genotype has it: each node adds up two operations on earlier nodes."""

    def __init__(self, genotype, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        pairs, self.concat = genotype[2:] if reduction else genotype[:2]
        before = factorized_reduce if reduction_prev else relu_conv_bn
        self.preprocess0 = before(C_prev_prev, C, affine=True)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=True)
        self.sources = [source for _, source in pairs]
        strides = [2 if reduction and source < 2 else 1 for source in self.sources]
        self.ops = nn.ModuleList(
            OPS[op](C, s, affine=True) for (op, _), s in zip(pairs, strides, strict=True)
        )

    def forward(self, s0, s1, p):
        nodes = [self.preprocess0(s0), self.preprocess1(s1)]
        for i, (op, source) in enumerate(zip(self.ops, self.sources, strict=True)):
            term = op(nodes[source])
            if self.training and p is not None and not isinstance(op, nn.Identity):
                term = drop_path(term, p)
            if i % 2:  # the second of its node
                nodes[-1] = nodes[-1] + term
            else:
                nodes.append(term)
        return torch.cat([nodes[i] for i in self.concat], dim=1)


class AuxiliaryHead(nn.Module):
    """A small classifier on the features at 2/3 of the depth, whose loss helps to train what lies before.

    last_norm: whether its last convolution has a batch norm; DARTS's ImageNet network has none there.
    """

    def __init__(self, C, classes, last_norm):
        super().__init__()
        self.conv1 = nn.Conv2d(C, 128, 1, bias=False)
        self.norm1 = BatchNorm(128)
        self.conv2 = nn.Conv2d(128, 768, 2, bias=False)
        self.norm2 = BatchNorm(768) if last_norm else nn.Identity()
        self.classifier = nn.Linear(768, classes)

    def forward(self, x):
        # Two windows a side, of 5/8 of its length: DARTS's 5 x 5 with stride 3 on 8 x 8 features and with
        # stride 2 on the 7 x 7 of ImageNet, and the like at any other size from 2 x 2.
        windows = [min(-(-5 * side // 8), side - 1) for side in x.shape[2:]]
        strides = [side - window for side, window in zip(x.shape[2:], windows, strict=True)]
        x = F.relu(self.norm1(self.conv1(F.avg_pool2d(F.relu(x), windows, strides))))
        return self.classifier(F.relu(self.norm2(self.conv2(x))).flatten(1))


class CellNetwork(nn.Module):
    """The body that DARTS's networks share: cells, of which those at 1/3 and 2/3 of the depth reduce.

    stems: two modules that make the inputs of the first cell, the second from the first; None for the same
    again. C_stem: their channels. Subclasses give these.
    """

    def __init__(self, stems, C_stem, C, classes, layers, auxiliary, genotype, reduction_prev, last_norm):
        super().__init__()
        self.stem0, self.stem1 = stems
        self.cells = nn.ModuleList()
        C_prev_prev = C_prev = C_stem
        self.auxiliary_at = 2 * layers // 3
        self.auxiliary = None
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, len(cell.concat) * C
            if layer == self.auxiliary_at and auxiliary:
                self.auxiliary = AuxiliaryHead(C_prev, classes, last_norm)
        self.classifier = nn.Linear(C_prev, classes)

    def forward(self, x, drop_path=None):
        s0 = self.stem0(x.contiguous(memory_format=torch.channels_last))
        s1 = s0 if self.stem1 is None else self.stem1(s0)
        logits = None
        for layer, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, drop_path)
            if layer == self.auxiliary_at and self.auxiliary is not None and self.training:
                logits = self.auxiliary(s1)
        return self.classifier(s1.mean((2, 3))), logits


class NetworkCIFAR(CellNetwork):
    """DARTS's network for small images, which it halves twice.

    C: initial channels. classes: outputs. layers: cells. auxiliary: whether it has an auxiliary head.
    genotype: a Genotype.
    """

    def __init__(self, C, classes, layers, auxiliary, genotype):
        stem = nn.Sequential(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), BatchNorm(3 * C))
        super().__init__((stem, None), 3 * C, C, classes, layers, auxiliary, genotype, False, last_norm=True)


class NetworkImageNet(CellNetwork):
    """DARTS's network for ImageNet, which halves images five times. Arguments as those of NetworkCIFAR."""

    def __init__(self, C, classes, layers, auxiliary, genotype):
        stem0 = nn.Sequential(
            nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
            BatchNorm(C // 2),
            nn.ReLU(),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            BatchNorm(C),
        )
        stem1 = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), BatchNorm(C))
        super().__init__((stem0, stem1), C, C, classes, layers, auxiliary, genotype, True, last_norm=False)


class NasBench201Cell(nn.Module):
    """The cell of a NAS-Bench-201 architecture: each node adds up an operation on every earlier node."""

    def __init__(self, C, arch):
        super().__init__()
        self.edges = SPACES["nasbench201"].edges
        self.ops = nn.ModuleList(OPS[op](C, 1, affine=True) for op in operations(arch))

    def forward(self, x):
        nodes = {0: x}
        for op, (source, target) in zip(self.ops, self.edges, strict=True):
            if not isinstance(op, Zero):
                term = op(nodes[source] if source in nodes else torch.zeros_like(x))
                nodes[target] = nodes[target] + term if target in nodes else term
        last = self.edges[-1][1]
        return nodes[last] if last in nodes else torch.zeros_like(x)


class NetworkNasBench201(nn.Module):
    """The network of NAS-Bench-201: three stages of cells.

    C: channels of the first stage. classes: outputs. layers: cells a stage. arch: the architecture string.
    It has neither an auxiliary head nor drop path: auxiliary and drop_path are not used.
    """

    def __init__(self, C, classes, layers, auxiliary, arch):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), BatchNorm(C))
        self.blocks = nn.Sequential()
        for stage in range(3):
            if stage > 0:
                self.blocks.append(ResidualBlock(C, 2 * C))
                C = 2 * C
            self.blocks.extend([NasBench201Cell(C, arch) for _ in range(layers)])
        self.last_norm = BatchNorm(C)
        self.classifier = nn.Linear(C, classes)

    def forward(self, x, drop_path=None):
        x = self.blocks(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.classifier(F.relu(self.last_norm(x)).mean((2, 3))), None


NETWORKS = {"cifar": NetworkCIFAR, "imagenet": NetworkImageNet, "nasbench201": NetworkNasBench201}


def count_macs(network, image_size):
    """Multiply-accumulates of convolutions and linear layers for one square image of this side, in evaluation
    mode: auxiliary heads do not count. Biases count in the NAS-Bench-201 network alone, as in its published
    figures."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(network).to("meta").eval()  # on the meta device nothing is computed
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, 3, image_size, image_size, device="meta"))
    bias = network.classifier.out_features if isinstance(network, NetworkNasBench201) else 0
    return counter.get_total_flops() // 2 + bias
