"""The supernets of the two search spaces.

`model(x, p, used)` runs images x (B, 3, H, W) under mixture weights p and returns logits (B, classes):
- p of shape (cells, E, O): one mixture for the whole batch, `model.mixture()` for the supernet's own;
- p of shape (n, cells, E, O): the batch is cut into n equal groups, one after the other, and group k runs
  under p[k]. Each group has its own batch norm statistics, so one pass with n groups is n separate passes, at
  the cost of one: inside, the groups lie side by side in the channels, see model.py. After
  `model.share_statistics(True)` those of all groups together normalise each, in training mode.
`used` (cells, E, O), as lists, says which operations some group has a weight for. The others are not
computed, and their weights in p get no gradient, so a discrete architecture costs what it has.

The networks are those of DARTS (Liu, Simonyan, Yang; ICLR 2019) and NAS-Bench-201 (Dong, Yang; ICLR 2020).
Five things are computed otherwise than there, with the same result: `none` costs nothing; what depends on an
edge's source alone (ReLU, pooling and its batch norm, the identity) is computed once a source node, not once
an edge; the sums over those are taken in one pass, `WeightedSums`; a mixture weight is folded into the batch
norm that ends an operation, unless groups share statistics; and depthwise convolutions are computed as
`DilatedDepthwise` and `WideFilters` say.
"""

from collections import OrderedDict
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

from genotypes import space_with
from model import (
    OPS,
    BatchNorm,
    ConvOp,
    ResidualBlock,
    Stage,
    Zero,
    batch_to_groups,
    bodies_together,
    can_go_together,
    cat_channels,
    factorized_reduce,
    relu_conv_bn,
    run_groups,
    starts_depthwise,
)

# Whether the edges that leave a node are computed together, by kind of device: fewer and larger calls, which
# pay on a GPU and not on a CPU.
TOGETHER = {"cpu": False, "cuda": True}


class MixedCell(nn.Module):
    """The nodes of a cell whose edges mix all operations of the space.

    strides: a stride for each source node, that of the edges which leave it.
    forward(states, w, used): states, the tensors (b, n C, H, W) of the cell's input nodes; w (n, E, O), one
    mixture for each of n groups side by side; used (E, O), as lists: which operations to compute, where all
    groups have weights of 0 for the others, or None. Returns the tensors of all nodes.
    """

    def __init__(self, space, C, strides):
        super().__init__()
        self.C, self.strides, self.targets = C, strides, [target for _, target in space.edges]
        # For each source: the edges that leave it
        self.leaving = [[e for e, (s, _) in enumerate(space.edges) if s == i] for i in range(len(strides))]
        self.own = nn.ModuleList()  # for each edge, by operation: those with weights
        # for each source, by operation: those without
        self.shared = nn.ModuleList(nn.ModuleDict() for _ in strides)
        for source, _ in space.edges:
            self.own.append(nn.ModuleDict())
            for o, name in enumerate(space.ops):
                op = OPS[name](C, strides[source], affine=False)
                if isinstance(op, ConvOp):
                    self.own[-1][str(o)] = op
                elif next(op.parameters(), None) is not None:  # edges would share them
                    raise TypeError(f"{name} in OPS of model.py has weights: write it as a ConvOp")
                elif not isinstance(op, Zero) and str(o) not in self.shared[source]:
                    if space.name == "darts" and isinstance(op, (nn.MaxPool2d, nn.AvgPool2d)):
                        op = Stage(OrderedDict(pool=op, norm=BatchNorm(C, affine=False)))  # as in DARTS
                    self.shared[source][str(o)] = op
        # Where the weights of both kinds stand in a mixture (E O,): by source, by operation and edge
        self.own_places = [[(e, o) for o in self.own[edges[0]] for e in edges] for edges in self.leaving]
        shared = [[(e, o) for e in edges for o in self.shared[i]] for i, edges in enumerate(self.leaving)]
        for name, places in (("at_own", self.own_places), ("at_shared", shared)):
            at = [e * len(space.ops) + int(o) for of_source in places for e, o in of_source]
            self.register_buffer(name, torch.tensor(at, dtype=torch.long), persistent=False)
        self.register_buffer("eye", torch.eye(max(map(len, self.leaving))), persistent=False)
        # The norms of operations that go together: for each source, operation and stage those of all edges
        self.norms = [
            [self.own[e][o].norms[i] for e in edges]
            for edges in self.leaving
            for o, op in self.own[edges[0]].items()
            for i in range(len(op.norms) if can_go_together(op) else 0)
        ]

    def forward(self, states, w, used=None):
        n, nodes, zeros_so_far = len(w), dict(enumerate(states)), set()
        w = w.permute(1, 2, 0).flatten(0, 1)  # (E O, n)
        own = w.index_select(0, self.at_own).split([len(places) for places in self.own_places])
        edges_by_ops = [len(edges) * len(ops) for edges, ops in zip(self.leaving, self.shared, strict=True)]
        shared = w.index_select(0, self.at_shared).split(edges_by_ops)
        if together := used is None and bool(self.norms) and TOGETHER.get(states[0].device.type, False):
            norms = [norm for group in self.norms for norm in group]
            # Running statistics in one tensor of means and one of variances, of which the calls below update
            # slices, a stage of all edges at a time; they are copied back at the end.
            own_statistics = [[norm.running_mean for norm in norms], [norm.running_var for norm in norms]]
            joined = [torch.cat(values) for values in own_statistics]
            parts = [values.split([self.C * len(group) for group in self.norms]) for values in joined]
            statistics = zip(*parts, strict=True)
        for source, edges in enumerate(self.leaving):
            weights = own[source], shared[source].view(len(edges), len(self.shared[source]), n)
            if together:
                sums = self.edges_together(nodes[source], source, *weights, statistics)
            else:
                sums = self.edges_apart(nodes[source], source, *weights, used)
            for e, total in zip(edges, sums, strict=True):
                target = self.targets[e]
                if total is None:  # no operation is used: zeros, unless there is something to add
                    x = nodes[source][:, :, :: self.strides[source], :: self.strides[source]]
                    zeros_so_far.update({target} - nodes.keys())
                    nodes.setdefault(target, torch.zeros_like(x))
                elif target in nodes and target not in zeros_so_far:
                    nodes[target] = nodes[target] + total if together else nodes[target].add_(total)
                else:
                    zeros_so_far.discard(target)
                    nodes[target] = total.contiguous(memory_format=torch.channels_last) if together else total
        if together and self.training and norms[0].momentum:
            for old, new in zip(own_statistics, joined, strict=True):
                torch._foreach_copy_(old, new.split(self.C))
        return list(nodes.values())

    def edges_apart(self, x, source, own, shared, used=None):
        """The sums of the edges that leave a source x (b, n C, H, W), a tensor each, or None.

        own: the weights of the operations that have weights of their own, by operation and edge, (o m, n).
        shared: those of the others, (m, K, n).
        """
        n = own.shape[1]
        # A weight a channel, (n C,). Repeated, not expanded: the channels-last backward on a CPU misreads a
        # stride of 0 (torch 2.14).
        scales = own.repeat_interleave(self.C, 1).unbind(0)
        scales = dict(zip(self.own_places[source], scales, strict=True))
        # Operations without weights: one output for all edges
        if used is None:
            outputs = [run_groups(op, x, n) for op in self.shared[source].values()]
            sums = WeightedSums.apply(shared, *outputs) if outputs else [None] * len(shared)
        else:
            sums, outputs = [], {}
            for e, weights in zip(self.leaving[source], shared, strict=True):
                total = None
                for (o, op), w in zip(self.shared[source].items(), weights, strict=True):
                    if used[e][int(o)]:
                        outputs[o] = outputs[o] if o in outputs else run_groups(op, x, n)
                        y = outputs[o] * w.repeat_interleave(self.C)[:, None, None]
                        total = y if total is None else total + y
                sums.append(total)
        # Convolutions: what they take, by how it is prepared, and what they add up to
        relu = as_autocast(F.relu(x))
        prepared = {None: relu}
        for e, total in zip(self.leaving[source], sums, strict=True):
            parts = {}
            for o, op in self.own[e].items():
                if used is not None and not used[e][int(o)]:
                    continue
                if op.prepare not in prepared:
                    prepared[op.prepare] = op.prepare(relu)
                y = op.body(prepared[op.prepare], n, scales[e, o])
                parts[op.finish] = parts[op.finish].add_(y) if op.finish in parts else y
            for finish, y in parts.items():
                y = finish(y, relu) if finish else y
                total = y if total is None else total.add_(y)
            yield total

    def edges_together(self, x, source, own, shared, statistics):
        """The same, all edges in as many calls as one takes: their channels side by side in each group."""
        edges, (m, _, n) = self.leaving[source], shared.shape
        total = None
        for op, w in zip(self.shared[source].values(), shared.unbind(1), strict=True):
            y, w = by_edge(run_groups(op, x, n), n), w.T[..., None]
            total = y * w if total is None else torch.addcmul(total, y, w)
        relu = as_autocast(F.relu(x))
        wide = join_edges(torch.cat([by_edge(relu, n)] * m, EDGE_AXIS))
        prepared, parts = {}, {}
        for o, w in zip(self.own[edges[0]], own.view(len(self.own[edges[0]]), m, n), strict=True):
            ops = [self.own[e][o] for e in edges]
            prepare, finish = ops[0].prepare, ops[0].finish
            scale = w.T[..., None].repeat(1, 1, self.C)  # (n, m, C), copied as above
            if key := can_go_together(ops[0]) and (prepare, starts_depthwise(ops[0])):
                if key not in prepared:
                    base = wide if key[1] else relu
                    prepared[key] = prepare(base) if prepare else base
                y = bodies_together(ops, prepared[key], n, scale.flatten(), self.eye[:m, :m], statistics)
            else:
                base = prepare(relu) if prepare else relu
                scales = scale.transpose(0, 1).reshape(m, -1)
                ys = [op.body(base, n, one) for op, one in zip(ops, scales, strict=True)]
                y = join_edges(torch.cat([by_edge(y, n) for y in ys], EDGE_AXIS))
            parts[finish] = parts[finish].add_(y) if finish in parts else y
        for finish, y in parts.items():
            y = by_edge(finish(y, relu) if finish else y, n, m)
            total = y if total is None else total.add_(y)
        return [join_edges(part.unsqueeze(EDGE_AXIS)) for part in total.unbind(EDGE_AXIS)]


def as_autocast(x):
    """x in autocast's type, once for all convolutions that take it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


EDGE_AXIS = 4  # of what by_edge returns


def by_edge(x, n, m=1):
    """Channels of n groups and m edges, (b, n m C, H, W), as axes of their own: (b, H, W, n, m, C)."""
    return x.permute(0, 2, 3, 1).unflatten(3, (n, m, -1))


def join_edges(x):
    """The way back from `by_edge`."""
    return x.flatten(3).permute(0, 3, 1, 2)


class WeightedSums(torch.autograd.Function):
    """Sums of the same K tensors under m sets of weights, one for each of n groups side by side.

    weights (m, K, n); tensors of one shape (b, n C, H, W). Returns m tensors. One pass over memory for each
    weight; autograd of products and sums would take three.
    """

    @staticmethod
    def forward(ctx, weights, *tensors):
        ctx.save_for_backward(weights, *tensors)
        wide = _by_channel(weights, tensors[0])
        return tuple(_weighted_sum(row, tensors) for row in wide)

    @staticmethod
    def backward(ctx, *gradients):
        weights, *tensors = ctx.saved_tensors
        by_weights, by_tensors = None, [None] * len(tensors)
        if ctx.needs_input_grad[0]:
            by_weights = [_dot(g, x, weights.shape[2]) for g in gradients for x in tensors]
            by_weights = torch.stack(by_weights).view(weights.shape)
        if any(ctx.needs_input_grad[1:]):
            wide = _by_channel(weights, tensors[0])
            by_tensors = [_weighted_sum(column, gradients) for column in wide.unbind(1)]
        return by_weights, *by_tensors


def _by_channel(weights, x):
    """Weights (m, K, n) of groups as (m, K, n C, 1, 1), or (m, K, 1, 1, 1) of one group."""
    n = weights.shape[2]
    return (weights if n == 1 else weights.repeat_interleave(x.shape[1] // n, 2))[..., None, None]


def _weighted_sum(weights, tensors):
    """Weights (K, n C, 1, 1), K tensors: their sum."""
    total = weights[0] * tensors[0]
    for weight, x in zip(weights[1:], tensors[1:], strict=True):
        total.addcmul_(weight, x)
    return total


def _dot(x, y, n):
    """The inner products (n,) of two tensors in each of n groups side by side."""
    if n == 1:  # one pass over memory
        dtype = torch.promote_types(x.dtype, y.dtype)  # under autocast they differ
        return torch.dot(*(value.permute(0, 2, 3, 1).flatten().to(dtype) for value in (x, y)))
    return (x * y).sum((0, 2, 3)).view(n, -1).sum(1)


class Supernet(nn.Module):
    """What the two supernets share: architecture parameters, and the split of the parameters in two."""

    def __init__(self, space):
        super().__init__()
        self.space = space
        self.alpha = nn.Parameter(1e-3 * torch.randn(len(space.cells), len(space.edges), len(space.ops)))

    def mixture(self):
        """softmax(alpha): (cells, E, O)."""
        return self.alpha.softmax(-1)

    def share_statistics(self, shared):
        """Whether batch norm takes the n groups of a pass for one batch, or each for one of its own."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.shared = shared

    def stemmed(self, x, n):
        """The first convolution; from here on the n groups lie side by side in the channels."""
        return batch_to_groups(self.stem(x.contiguous(memory_format=torch.channels_last)), n)

    def classified(self, x, n):
        """Logits of all images, one group after the other: the way back."""
        x = x.mean((2, 3))
        return self.classifier(x.view(len(x), n, -1).transpose(0, 1).flatten(0, 1))

    def weight_parameters(self):
        return [parameter for name, parameter in self.named_parameters() if name != "alpha"]


class DartsCell(nn.Module):
    def __init__(self, space, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        self.kind = space.cells.index("reduce" if reduction else "normal")
        before = factorized_reduce if reduction_prev else relu_conv_bn
        self.preprocess0 = before(C_prev_prev, C, affine=False)
        self.preprocess1 = relu_conv_bn(C_prev, C, affine=False)
        stride = 2 if reduction else 1
        self.mixed = MixedCell(space, C, strides=[stride] * 2 + [1] * (space.edges[-1][1] - 2))

    def forward(self, s0, s1, p, used):  # p (n, cells, E, O)
        n = len(p)
        inputs = [self.preprocess0(s0, n), self.preprocess1(s1, n)]
        return cat_channels(self.mixed(inputs, p[:, self.kind], used and used[self.kind])[2:], n)


class DartsSupernet(Supernet):
    """C: initial channels. layers: cells, of which those at 1/3 and 2/3 of the depth reduce. classes:
    outputs. ops: the candidate operations, or None for all of the space."""

    def __init__(self, C=16, layers=8, classes=10, ops=None):
        super().__init__(space_with("darts", ops))
        multiplier = self.space.edges[-1][1] - 1  # a cell concatenates its nodes, four of them
        C_prev_prev = C_prev = 3 * C
        self.stem = nn.Conv2d(3, C_prev, 3, padding=1, bias=False)
        self.stem_norm = BatchNorm(C_prev)
        self.cells = nn.ModuleList()
        reduction_prev = False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            self.cells.append(DartsCell(self.space, C_prev_prev, C_prev, C, reduction, reduction_prev))
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, multiplier * C
        self.classifier = nn.Linear(C_prev, classes)

    def forward(self, x, p, used=None):
        p = p if p.dim() == 4 else p[None]
        s0 = s1 = self.stem_norm(self.stemmed(x, len(p)), len(p))
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, p, used)
        return self.classified(s1, len(p))


class NasBench201Supernet(Supernet):
    """C: channels of the first stage. layers: cells in each of the three stages. classes: outputs. ops: the
    candidate operations, or None for all of the space."""

    def __init__(self, C=16, layers=5, classes=10, ops=None):
        super().__init__(space_with("nasbench201", ops))
        self.stem = nn.Conv2d(3, C, 3, padding=1, bias=False)
        self.stem_norm = BatchNorm(C)
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage > 0:
                self.blocks.append(ResidualBlock(C, 2 * C))
                C = 2 * C
            strides = [1] * self.space.edges[-1][1]
            self.blocks.extend(MixedCell(self.space, C, strides) for _ in range(layers))
        self.last_norm = BatchNorm(C)
        self.classifier = nn.Linear(C, classes)

    def forward(self, x, p, used=None):
        p = p if p.dim() == 4 else p[None]
        n = len(p)
        x = self.stem_norm(self.stemmed(x, n), n)
        for block in self.blocks:
            x = block(x, n) if isinstance(block, ResidualBlock) else block([x], p[:, 0], used and used[0])[-1]
        return self.classified(F.relu(self.last_norm(x, n)), n)


SUPERNETS = {"darts": DartsSupernet, "nasbench201": NasBench201Supernet}


@contextmanager
def weights_held(model):
    """Passes inside this context compute no gradient by the weights, which autograd alone does not spare: a
    torch.autograd.Function, and a compiled graph, compute it for every input that asks for one."""
    weights = model.weight_parameters()
    for w in weights:
        w.requires_grad_(False)
    try:
        yield
    finally:
        for w in weights:
            w.requires_grad_(True)


@contextmanager
def running_statistics_kept(model):
    """Passes in training mode inside this context leave the running statistics of batch norm as they are."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
