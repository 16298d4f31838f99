"""What an architecture step of NA-DARTS sees that one of DARTS does not: how far their gradients agree.

    python experiments/study_gradients.py RUN [RUN ...] [--images 512] [--neighbors 2 4 8 16 32]
    python experiments/study_gradients.py RUN [RUN ...] --operations   which operations the steps favor, why

For the supernet of each run, as it ended, cosines of gradients by alpha; the neighborhood is that of radius
1, roll and mean, whatever the run had. Over all images: the gradient at the center with that of the whole
neighborhood, each member on whole batches. Of single steps, each on one batch, with what they estimate, over
the other batches: of DARTS; of NA-DARTS with n sampled neighbors, each on a share of the batch; and, to tell
the shares from the neighbors, of DARTS with the batch cut into n shares. Images are not augmented.

With --operations, for n neighbors: the mean loss of the steps; what their descent asks of each operation,
less the gradient by its alpha, mean over batches and edges; and how far their mean gradient agrees (cosine)
with that of the same neighbors each on whole batches, which is what a step on shares stands for. Batch norm
then has each share's own statistics, or shared ones. This leaves the whole neighborhood out, whose 197
members in the DARTS space, each on all images, take an hour.
"""

import argparse
import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
import torch.nn.functional as F

import search
import utils
import visualize
from model_search import running_statistics_kept
from neighborhood import ball_shifts, sample_shifts

METHOD = argparse.Namespace(
    neighborhood=1, perturb="roll", agg="mean", relax="softmax", neighbor_batch="split", unrolled=False
)


def loss_and_gradient(model, x, y, shifts, shared=False):
    """The loss of one architecture step on neighbors (n, E), one of which alone has all images, and its
    gradient by alpha, flat. shared: as --neighbor_norm has it."""
    model.share_statistics(shared)
    q = search.mixtures(model.alpha, shifts, METHOD, None)
    loss = search.neighborhood_loss(model, x, y, q, METHOD)
    return loss.item(), torch.autograd.grad(loss, model.alpha)[0].flatten()


def gradient(*step):
    return loss_and_gradient(*step)[1]


def on_whole_batches(model, x, y, shifts):
    """The same where each neighbor has all images, one after the other."""
    losses, gradients = zip(*(loss_and_gradient(model, x, y, shift[None]) for shift in shifts), strict=True)
    return sum(losses) / len(shifts), sum(gradients) / len(shifts)


def print_operations(model, batches, center, neighbors, g):
    """A row for each kind of step: its loss, its agreement, and what its descent asks of each operation."""
    edges, ops = center.shape[1], model.space.ops
    shared = functools.partial(loss_and_gradient, shared=True)

    def mean(step, shifts):
        each = [step(model, x, y, one) for (x, y), one in zip(batches, shifts, strict=True)]
        losses, gradients = zip(*each, strict=True)
        return sum(losses) / len(batches), sum(gradients) / len(batches)

    at_center = mean(loss_and_gradient, [center] * len(batches))
    print(f"| step | loss | cosine | {' | '.join(ops)} |\n{'|---' * (len(ops) + 3)}|")
    for n in neighbors:
        drawn = [sample_shifts(edges, len(ops), 1, n, g) for _ in batches]
        still = [center.expand(n, -1)] * len(batches)
        _, wanted = whole = mean(on_whole_batches, drawn)
        rows = {
            "center, whole batches": at_center,
            f"{n} neighbors, whole batches": whole,
            f"center, {n} shares": mean(loss_and_gradient, still),
            f"{n} neighbors": mean(loss_and_gradient, drawn),
            f"{n} neighbors, shared": mean(shared, drawn),
        }
        for name, (loss, total) in rows.items():
            asked = " | ".join(f"{-10_000 * value:+.1f}" for value in total.view(-1, len(ops)).mean(0))
            cosine = F.cosine_similarity(total, wanted, 0).item()
            print(f"| {name} | {loss:.3f} | {cosine:.2f} | {asked} |", flush=True)
    print("Of the operations, in ten-thousandths of a nat by unit of alpha")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of gradient searches")
    parser.add_argument("--images", type=int, default=512, help="images of the architecture half")
    parser.add_argument("--neighbors", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="of a step")
    parser.add_argument("--operations", action="store_true", help="which operations the steps favor, instead")
    parser.add_argument("--data", help="where the images lie now (default: where the run found them)")
    return parser.parse_args(argv)


def main(args):
    for path in args.runs:
        run = visualize.load_run(path)
        where = argparse.Namespace(device="cpu", data=args.data, images=args.images)
        model, batches = visualize.load_supernet(run, where)
        if len(batches) < 2 or any(len(y) % n for _, y in batches for n in args.neighbors):
            raise utils.BadInput("--images: at least two batches, of a size that every --neighbors divides")
        edges, ops = model.alpha[..., 0].numel(), model.alpha.shape[-1]
        ball, center = ball_shifts(edges, ops, 1), torch.zeros(1, edges, dtype=torch.long)
        g = utils.generator(0, 3)
        if args.operations:
            print(path)
            with running_statistics_kept(model):
                print_operations(model, batches, center, args.neighbors, g)
            continue
        with running_statistics_kept(model):
            at_center = [gradient(model, x, y, center) for x, y in batches]
            around = [
                sum(gradient(model, x, y, shift[None]) for shift in ball) / len(ball) for x, y in batches
            ]
            steps, shares = {}, {}
            for n in args.neighbors:
                shifts = [sample_shifts(edges, ops, 1, n, g) for _ in batches]
                steps[n] = [gradient(model, *xy, s) for xy, s in zip(batches, shifts, strict=True)]
                shares[n] = [gradient(model, *xy, center.expand(n, -1)) for xy in batches]

        def agree(gradients, totals):
            cosines = [
                F.cosine_similarity(step, sum(totals) - own, 0)
                for step, own in zip(gradients, totals, strict=True)
            ]
            return torch.stack(cosines).mean().item()

        same = F.cosine_similarity(sum(at_center), sum(around), 0).item()
        own = agree(at_center, at_center)
        print(f"{path}\ncenter with neighborhood {same:.3f}, DARTS with center {own:.3f}")
        for n in args.neighbors:
            print(
                f"{n} shares of the batch: NA-DARTS with neighborhood {agree(steps[n], around):.3f}; "
                f"DARTS with center {agree(shares[n], at_center):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    utils.run(main, parse_args())
