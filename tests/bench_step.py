"""What NA-DARTS costs over DARTS: seconds a search step, architecture and weight step together, interleaved.

    python tests/bench_step.py [--steps 15] [any flags of search.py, --dataset apart]

Prints the medians, the spread and the ratio. Images are random numbers, since only time is measured.
"""

import os
import platform
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
import torch.nn.functional as F

import search
import utils
from model_search import SUPERNETS, running_statistics_kept


def step(model, args, g, weights):
    """One search step without its optimizers, which are the same for both: seconds."""
    size = args.image_size
    batches = [
        (torch.randn(args.batch_size, 3, size, size), torch.randint(10, (args.batch_size,))) for _ in range(2)
    ]
    (x, y), (x_arch, y_arch) = batches
    started = time.perf_counter()
    with running_statistics_kept(model):
        shifts = search.draw_shifts(model, args, g)
        torch.autograd.grad(search.neighborhood_loss(model, x_arch, y_arch, shifts, args), model.alpha)
    F.cross_entropy(model(x, model.mixture().detach()), y).backward(inputs=weights)
    return time.perf_counter() - started


def main(argv):
    steps = int(argv.pop(argv.index("--steps") + 1)) if "--steps" in argv else 15
    argv = [flag for flag in argv if flag != "--steps"]
    na, plain = search.parse_args(argv), search.parse_args([*argv, "--neighborhood", "0"])
    torch.manual_seed(0)
    model = SUPERNETS[na.space](na.init_channels, na.layers, 10)
    weights, g = model.weight_parameters(), utils.generator(0, 0)
    seconds = {"DARTS": [], "NA-DARTS": []}
    for i in range(steps + 1):
        for name, args in (("DARTS", plain), ("NA-DARTS", na)):
            took = step(model, args, g, weights)
            if i > 0:  # the first of each warms up
                seconds[name].append(took)
    threads = torch.get_num_threads()
    print(f"{platform.machine()}, {threads} threads, torch {torch.__version__}, {steps} steps each")
    for name, values in seconds.items():
        print(f"{name:9} median {statistics.median(values):.3f} s, {min(values):.3f} to {max(values):.3f}")
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    print(f"RESULT na_search_step ratio={ratio:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
