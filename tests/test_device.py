"""The steps on a device that is not the CPU, without having one: on the meta device, where tensors have
shapes, types and a device but no values, a step that mixes devices or waits for a value raises. The edges go
together as on CUDA; autocast, which meta does not have, is left out. Where there is a GPU,
experiments/gpu_check.py says more."""

import itertools
from contextlib import nullcontext

import forks
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import model as layers
import model_search
import search
import train
import utils
import visualize
from model_search import SUPERNETS
from neighborhood import AGGREGATE, PERTURB

META = torch.device("meta")


@pytest.fixture(autouse=True)
def like_cuda(monkeypatch):
    monkeypatch.setitem(model_search.TOGETHER, "meta", model_search.TOGETHER["cuda"])
    monkeypatch.setattr(model_search, "as_autocast", lambda x: x)
    monkeypatch.setattr(search, "autocast", lambda args, x: nullcontext())


def made(space, flags, batch=16):
    """A small supernet, its SGD, flags, and a batch with mixtures for both steps."""
    args = search.parse_args([*flags.split(), "--space", space, "--batch_size", str(batch)])
    model = SUPERNETS[space](4, 3 if space == "darts" else 1, 10).to(META)
    model.share_statistics(args.neighbor_norm == "shared")
    optimizer = torch.optim.SGD(model.weight_parameters(), 0.1, momentum=0.9)
    for w in model.weight_parameters():
        optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)
    x, y = torch.empty(batch, 3, 16, 16, device=META), torch.empty(batch, dtype=torch.long, device=META)
    shifts = search.draw_shifts(model, args, 1, utils.generator(0, 0)).to(META)
    q = search.mixtures(model.alpha, shifts, args, utils.generator(0, 1))
    return model, optimizer, args, (x, y, q)


STEPS = [("darts", "--neighbor_norm shared --neighbors 4")]
FLAGS = ["--neighborhood 0", "--neighbor_norm shared", "--neighbor_batch repeat --neighbors 2"]
FLAGS += [f"--perturb {name}" for name in PERTURB] + [f"--agg {name}" for name in AGGREGATE]
FLAGS += ["--relax gumbel"]  # dirichlet draws on the CPU, where a GPU is waited for
STEPS += [("nasbench201", flags) for flags in FLAGS]


@pytest.mark.parametrize("space,flags", STEPS)
def test_a_search_step(space, flags):
    model, optimizer, args, batch = made(space, flags)
    if args.agg != "median":  # whose quantile has no kernel without values
        loss, by_q = search.arch_gradient(model, *batch, args)
        gradient = search.by_alpha(model.alpha, batch[2], by_q, args)
        assert loss.device == gradient.device == META and gradient.shape == model.alpha.shape
    search.weight_gradient(model, *batch, args)
    for w in model.weight_parameters():
        assert w.grad.device == META and w.grad.shape == w.shape and w.grad.dtype == torch.float32
    torch.nn.utils.clip_grad_norm_(model.weight_parameters(), 5.0)
    optimizer.step()


def test_a_step_of_second_order():
    flags = "--unrolled --weight_step neighbors --neighbors 4"
    model, optimizer, args, (x, y, q) = made("nasbench201", flags)
    lr = torch.empty((), device=META)
    loss, *by_q = search.unrolled_gradient(model, optimizer, (x, y, q), (x, y, q), args, lr)
    assert loss.device == META and all(by.shape == q.shape and by.device == META for by in by_q)


class Pooled(TorchDispatchMode):
    """The strides of what padded average pooling takes, forward and backward."""

    def __init__(self):
        super().__init__()
        self.strides = {False: [], True: []}  # by whether it is the backward pass

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        if "avg_pool2d" in f.name():
            backward = "backward" in f.name()
            x, _, _, padding = args[backward : backward + 4]
            self.strides[backward] += [x.stride()] if any(padding) else []
        return f(*args, **kwargs or {})


@pytest.mark.parametrize("space", SUPERNETS)
def test_padded_average_pooling_is_never_channels_last(space):
    """Where its gradient is wrong on CUDA; see model.AveragePool."""
    model, _, args, batch = made(space, "--neighborhood 0")
    with Pooled() as pooled:
        search.arch_gradient(model, *batch, args)
    pools = sum(isinstance(module, layers.AveragePool) for module in model.modules())
    assert len(pooled.strides[False]) == pools and pooled.strides[True]
    for _, channel, row, pixel in itertools.chain(*pooled.strides.values()):
        assert channel > row >= pixel == 1


def test_a_value_cannot_be_had():
    """What the tests above rest on: a wait for the device raises, and so do tensors of two devices."""
    model, _, args, (x, y, q) = made("nasbench201", "")
    with pytest.raises(RuntimeError, match="meta"):
        search.arch_gradient(model, x, y, q, args)[0].item()
    with pytest.raises(RuntimeError):
        search.arch_gradient(model, x, torch.zeros(16, dtype=torch.long), q, args)


def test_sharpness():
    model, _, _, (x, y, _) = made("nasbench201", "")
    product = visualize.hessian_product(model, [(x, y)])
    assert product(torch.zeros(model.alpha.numel(), device=META)).shape == (model.alpha.numel(),)


def test_the_check_of_a_gpu_runs(tmp_path):
    """Its logic, on a CPU; not the sections that only take times, or run whole searches."""
    sections = "operations second train depthwise"
    done = forks.run("experiments/gpu_check.py", "--smoke", "--only", *sections.split(), cwd=tmp_path)
    assert done.status == 0 and done.out.endswith("RESULT gpu_check passed\n"), done
    assert all(f"({name}: " in done.out for name in sections.split())


def test_batches():
    images = torch.empty(64, 16, 16, 3, dtype=torch.uint8, device=META)
    norm = dict(mean=torch.ones(3), std=torch.ones(3))
    x = utils.augment(
        images, torch.empty(8, dtype=torch.long, device=META), torch.rand(5, 8), **norm, cutout=4
    )
    assert x.device == META and x.shape == (8, 3, 16, 16)


@pytest.mark.parametrize(
    "arch", ["DARTS_V2", "NASNet", "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"]
)
def test_a_training_step(arch):
    args = train.parse_args(["--arch", arch, "--init_channels", "4", "--layers", "3"])
    net, optimizer, _, _ = train.build(args, 10, META)
    x, y = torch.empty(8, 3, 32, 32, device=META), torch.empty(8, dtype=torch.long, device=META)
    logits, auxiliary = net(x, torch.empty((), device=META) if args.drop_path_prob else None)
    loss = F.cross_entropy(logits, y) + (0 if auxiliary is None else F.cross_entropy(auxiliary, y))
    loss.backward()
    optimizer.step()
    assert loss.device == META
