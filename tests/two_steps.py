"""Run by torchrun in two processes, from test_processes.py: the steps of a search, shared and alone."""

import itertools

import torch
import torch.distributed as dist

import search
import utils
from model_search import SUPERNETS

torch.set_num_threads(1)
rank, world, _ = utils.join_processes("cpu")


def steps(args, batch):
    """Losses and gradients of the architecture step, first and second order, and of the weight step."""
    torch.manual_seed(0)
    model = SUPERNETS[args.space](2, 3 if args.space == "darts" else 1, 10).double()
    torch.nn.init.normal_(model.alpha)
    weights = model.weight_parameters()
    optimizer = torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=0.01)
    for w in weights:
        optimizer.state[w]["momentum_buffer"] = torch.full_like(w, 1e-3)
    lr = torch.tensor(0.05, dtype=torch.float64)
    x, y, shifts, x_arch, y_arch, near = batch
    q, q_arch, again = (search.mixtures(model.alpha, s, args, None) for s in (shifts, near, near))
    both = (x, y, q), (x_arch, y_arch, q_arch)
    loss2, by_q, by_arch = search.unrolled_gradient(model, optimizer, *both, args, lr)
    by_alpha = search.by_alpha(model.alpha, q, by_q, args) + search.by_alpha(
        model.alpha, q_arch, by_arch, args
    )
    loss1, by_arch = search.arch_gradient(model, x_arch, y_arch, again, args)
    first = loss1, search.by_alpha(model.alpha, again, by_arch, args)
    means = utils.over_processes([*first, loss2, by_alpha])
    loss, right = search.weight_gradient(model, x, y, q.detach(), args)
    return [*means, loss, right, *(w.grad for w in weights)]


for space, agg in [("darts", "mean"), *itertools.product(["nasbench201"], ("mean", "logsumexp"))]:
    flags = f"--space {space} --agg {agg} --neighbors 4 --batch_size 8 --neighbor_norm own --perturb move"
    args = search.parse_args(flags.split())
    torch.manual_seed(1)
    edges = SUPERNETS[space](2, 3, 10).alpha[..., 0].numel()
    images = [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    labels = [torch.randint(10, (8,)) for _ in range(2)]
    near = [search.sample_shifts(edges, 5, 1, 4, utils.generator(0, k)) for k in range(2)]
    whole = [images[0], labels[0], near[0], images[1], labels[1], near[1]]
    mine = steps(args, [part.chunk(world)[rank] for part in whole])
    is_initialized, dist.is_initialized = dist.is_initialized, lambda: False  # as one process alone
    alone = steps(args, whole)
    dist.is_initialized = is_initialized
    alone[5] = alone[5] / world  # right images, a mean over the processes
    errors = [(a - b).abs().max().item() for a, b in zip(mine, alone, strict=True)]
    assert max(errors) < 1e-9 and alone[1].abs().max() > 1e-3, (space, agg, errors[:6])
norm = torch.nn.BatchNorm2d(3)
norm.running_mean.fill_(rank)
utils.average_buffers(norm)  # as the scripts do at the end of an epoch
assert (norm.running_mean == 0.5).all()
utils.leave_processes()
