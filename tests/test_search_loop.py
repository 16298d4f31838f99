"""A whole search against a plain loop: its batches, steps, optimizers, schedule and what it reports."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SEARCH, do, outcome
from plain import PLAIN, copy_weights
from torch.func import functional_call

import search
import utils
from genotypes import operations, parse_architecture
from model_search import SUPERNETS
from neighborhood import AGGREGATE, neighbors, sample_shifts

FLAGS = "--seed 4 --batch_size 240 --epochs 2 --train_portion 0.6 --cutout --neighbors 4 --agg max "
FLAGS += "--perturb move --learning_rate 0.2 --learning_rate_min 0.02 --momentum 0.5 --weight_decay 0.01 "
FLAGS += "--grad_clip 0.3 --arch_learning_rate 0.05 --arch_weight_decay 0.1"


@pytest.mark.usefixtures("few_shapes", "no_sharpness", "double")
@pytest.mark.parametrize("unrolled", [False, True])
def test_a_search_is_a_plain_loop(tmp_path, unrolled):
    """Two epochs of three steps on the plain supernet, each neighbor in a pass of its own. SGD, clipping,
    Adam and the second order are written out."""
    flags = f"{SEARCH} {FLAGS} {'--unrolled' * unrolled}"
    do(search, flags, "--save", tmp_path / "run")
    checkpoint, rows, _ = outcome(tmp_path / "run")

    images, labels, _, weight_half, arch_half, norm = utils.load_halves(search.parse_args(flags.split()))
    assert (len(weight_half), len(arch_half)) == (751, 499)  # of 1,250, the same of each class
    assert not set(weight_half.tolist()) & set(arch_half.tolist())
    weight_g, arch_g, near_g = (utils.generator(4, stream) for stream in (1, 2, 3))
    augmentation = dict(pad=1, cutout=4, **norm)  # an eighth and a half of the side
    weight_batches = utils.Batches(images, labels, weight_half, 240, weight_g, **augmentation)
    arch_batches = utils.Batches(images, labels, arch_half, 240, arch_g, **augmentation)
    torch.manual_seed(4)
    supernet = SUPERNETS["nasbench201"](2, 1, 10)
    plain, alpha = copy_weights(supernet, PLAIN["nasbench201"](2, 1, 10)), supernet.alpha.detach().clone()
    names, weights = zip(*plain.named_parameters(), strict=True)
    velocity = [torch.zeros_like(w) for w in weights]
    first, second, steps = torch.zeros_like(alpha), torch.zeros_like(alpha), 0  # Adam's moments

    def loss_of(values, x, y, p):
        """With other weights; the running statistics are left alone."""
        values = dict(zip(names, values, strict=True))
        return F.cross_entropy(functional_call(copy.deepcopy(plain), values, (x, p)), y)

    for epoch, row in enumerate(rows, 1):
        lr = {1: 0.2, 2: 0.02 + 0.18 * (1 + math.cos(math.pi / 2)) / 2}[epoch]
        weight_losses, arch_losses, right = [], [], 0
        for _ in range(3):
            [(x, y)], [(x_arch, y_arch)] = next(weight_batches), next(arch_batches)
            # The architecture step
            alpha.requires_grad_()
            near = neighbors(alpha.softmax(-1)[0], sample_shifts(6, 5, 1, 4, near_g), "move")
            ahead = list(weights)
            if unrolled:
                gradients = torch.autograd.grad(loss_of(weights, x, y, alpha.softmax(-1)), weights)
                ahead = [
                    (w - lr * (0.5 * v + gradient + 0.01 * w)).detach().requires_grad_()
                    for w, v, gradient in zip(weights, velocity, gradients, strict=True)
                ]
            quarters = zip(x_arch.chunk(4), y_arch.chunk(4), near, strict=True)
            losses = [loss_of(ahead, x_part, y_part, q[None]) for x_part, y_part, q in quarters]
            arch_loss = AGGREGATE["max"](torch.stack(losses))
            gradient, *by_ahead = torch.autograd.grad(arch_loss, [alpha, *ahead])
            if unrolled:  # DARTS, equations 7 and 8
                h = 0.01 / torch.stack([v.norm() for v in by_ahead]).norm()
                for side in (1, -1):
                    moved = [w + side * h * v for w, v in zip(weights, by_ahead, strict=True)]
                    by_alpha = torch.autograd.grad(loss_of(moved, x, y, alpha.softmax(-1)), alpha)[0]
                    gradient = gradient - side * lr * by_alpha / (2 * h)
            alpha, steps = alpha.detach(), steps + 1
            gradient = gradient + 0.1 * alpha
            first, second = 0.5 * first + 0.5 * gradient, 0.999 * second + 0.001 * gradient**2
            alpha = alpha - 0.05 * (first / (1 - 0.5**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
            arch_losses.append(arch_loss.item())
            # The weight step
            logits = plain(x, alpha.softmax(-1))
            loss = F.cross_entropy(logits, y)
            gradients = torch.autograd.grad(loss, weights)
            norm_of_all = torch.stack([gradient.norm() for gradient in gradients]).norm()
            assert norm_of_all > 0.3  # it is clipped
            for w, v, gradient in zip(weights, velocity, gradients, strict=True):
                v.mul_(0.5).add_(gradient * 0.3 / (norm_of_all + 1e-6) + 0.01 * w.detach())
                w.data -= lr * v
            weight_losses.append(loss.item())
            right += (logits.argmax(1) == y).sum().item()
        plain.eval()
        with torch.no_grad():
            logits = plain(utils.normalise(images[arch_half], **norm), alpha.softmax(-1))
        plain.train()
        chosen = operations(parse_architecture(row["genotype"]))
        expected = {
            "learning_rate": lr,
            "weight_loss": sum(weight_losses) / 3,
            "weight_accuracy": 100 * right / 720,
            "neighborhood_loss": sum(arch_losses) / 3,
            "arch_loss": F.cross_entropy(logits, labels[arch_half]).item(),
            "arch_accuracy": 100 * (logits.argmax(1) == labels[arch_half]).double().mean().item(),
            "parameter_free": sum(op in ("none", "skip_connect", "avg_pool_3x3") for op in chosen),
        }
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-6), name
        assert torch.allclose(checkpoint["trajectory"]["alpha"][epoch], alpha, rtol=1e-6, atol=1e-8), epoch
    supernet.load_state_dict(checkpoint["model"])
    for w, plain_w in zip(supernet.weight_parameters(), weights, strict=True):
        assert torch.allclose(w, plain_w, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("few_shapes", "no_sharpness")
def test_the_temperature_falls_over_the_search(tmp_path, monkeypatch):
    """Which is a function of the fraction of it that is done."""
    mixtures, seen = search.mixtures, []

    def noted(alpha, shifts, args, g, t=0.0):
        seen.append(t)
        return mixtures(alpha, shifts, args, g, t)

    monkeypatch.setattr(search, "mixtures", noted)
    do(search, f"{SEARCH} --relax gumbel --epochs 3", "--save", tmp_path / "run")
    assert seen == sorted(seen) and sorted(set(seen)) == [0, 0.5, 1]
