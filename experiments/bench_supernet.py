"""Speed and memory of the supernets against the plain ones of tests/plain.py, and what neighborhoods cost.

    python experiments/bench_supernet.py                passes and steps, and their memory: minutes
    python experiments/bench_supernet.py --one_path     architectures against the mixture
    python experiments/bench_supernet.py --neighbors    cost by number of neighbors: takes 20 GB of memory
    python experiments/bench_supernet.py --growth       cost by the size of the job
    python experiments/bench_supernet.py --quick        a smoke test, whose numbers say nothing

What is compared takes turns in one run; ratios are medians of the ratios of each turn. Images are random
numbers, since only time is measured, and optimizers are left out, which are the same for all. The yardstick
computes every operation of every edge alone, in PyTorch's default memory layout, and gradients of weights and
alpha in each of the two steps, as the original DARTS code does. Memory is the growth of the process during a
forward and backward pass, or during a search step where the job grows, each in a process of its own.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
import torch.nn.functional as F
from plain import PLAIN

import sample
import search
from genotypes import random_architecture
from model_search import SUPERNETS


def take_turns(jobs, turns):
    """Seconds of each job (a function by name) in each turn, after one turn to warm up."""
    seconds = {name: [] for name in jobs}
    for turn in range(turns + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(a, b):
    """The median over the turns of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def machine():
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def print_seconds(seconds):
    for name, values in seconds.items():
        print(
            f"  {name:34} median {statistics.median(values):8.4f} s, {min(values):.4f} to {max(values):.4f}, "
            f"{len(values)} turns"
        )


class Jobs:
    """The steps of a search on one supernet and one batch, as functions without arguments."""

    def __init__(self, space, C, layers, batch, size, device="cpu"):
        torch.manual_seed(0)
        self.space, self.batch = space, batch
        self.model = SUPERNETS[space](C, layers, 10).to(device)
        self.yardstick = PLAIN[space](C, layers, 10).to(device)
        self.alpha = torch.zeros_like(self.model.alpha).requires_grad_()
        self.x = torch.randn(batch, 3, size, size, device=device)
        self.y = torch.randint(10, (batch,), device=device)
        self.g = torch.Generator().manual_seed(0)

    def plain(self):
        """A pass of the yardstick, with gradients of weights and alpha."""
        self.yardstick.zero_grad()
        F.cross_entropy(self.yardstick(self.x, self.alpha.softmax(-1)), self.y).backward()

    def ours(self):
        """The same of our supernet."""
        self.model.zero_grad()
        F.cross_entropy(self.model(self.x, self.model.mixture()), self.y).backward()

    def flags(self, neighbors, way="split"):
        words = f"--space {self.space} --neighborhood {min(1, neighbors)} --neighbors {neighbors or 1}"
        words += f" --neighbor_batch {way} --batch_size {self.batch}"
        return search.parse_args(words.split())

    def mixtures(self, args):
        shifts = search.draw_shifts(self.model, args, 1, self.g)
        return search.mixtures(self.model.alpha, shifts, args, self.g)

    def arch_step(self, neighbors=0, way="split", norm="own"):
        """The loss over so many neighbors, and its gradient by alpha; 0 is DARTS."""
        self.model.share_statistics(norm == "shared")
        args = self.flags(neighbors, way)
        q = self.mixtures(args)
        by_q = search.arch_gradient(self.model, self.x, self.y, q, args)[1]
        search.by_alpha(self.model.alpha, q, by_q, args)

    def weight_step(self):
        """The loss at the center, and its gradient by the weights."""
        args = self.flags(0)
        search.weight_gradient(self.model, self.x, self.y, self.mixtures(args).detach(), args)

    def one_path_step(self):
        """The loss of an architecture, another each time, and its gradient by the weights."""
        self.model.zero_grad()
        self.path = sample.one_hot(random_architecture(self.model.space, self.g), self.model.space)
        F.cross_entropy(self.model(self.x, *self.path), self.y).backward()

    @torch.no_grad()
    def one_path_evaluation(self):
        """The logits of that architecture."""
        self.model(self.x, *self.path)

    def search_step(self, neighbors):
        self.arch_step(neighbors)
        self.weight_step()


def memory(job, space, size, *more):
    """MB by which a process grows during one pass, measured in a process of its own."""
    words = [job, space, *map(str, (*size, *more))]
    command = [sys.executable, os.path.abspath(__file__), "--memory", *words]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grown(job, space, C, layers, batch, size, *more):
    jobs = Jobs(space, int(C), int(layers), int(batch), int(size))
    before = peak()
    getattr(jobs, job)(*map(int, more))
    return peak() - before


def peak():
    """The most memory that this process has held so far, MB."""
    try:  # a new process inherits the peak of its parent in getrusage, but not here
        with open("/proc/self/status") as file:
            return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1024
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(space, size, turns, results, quick):
    """One space: the pass, the search step, and the neighborhoods. quick: no process of its own for each
    measurement of memory, which then says nothing."""
    jobs = Jobs(space, *size)
    C, layers, batch, side = size
    print(f"{space}: C={C}, {layers} layers, batch {batch}, {side} x {side}")
    seconds = take_turns(
        {
            "plain pass": jobs.plain,
            "our pass": jobs.ours,
            "our architecture step, DARTS": jobs.arch_step,
            "our architecture step, 8 neighbors": lambda: jobs.arch_step(8),
            "our weight step": jobs.weight_step,
        },
        turns,
    )
    print_seconds(seconds)
    plain, ours, arch, na, weight = seconds.values()
    mb = [grown(job, space, *size) if quick else memory(job, space, size) for job in ("plain", "ours")]
    print(f"  memory of a pass: plain {mb[0]:.0f} MB, ours {mb[1]:.0f} MB")
    results[f"supernet_{space}"] = f"ratio={ratio(plain, ours):.2f} memory={mb[1] / max(1, mb[0]):.2f}"
    step = [a + w for a, w in zip(arch, weight, strict=True)]
    name = "search_step" if space == "darts" else f"search_step_{space}"
    results[name] = f"ratio={ratio([2 * p for p in plain], step):.2f}"
    results["na_step_8" if space == "darts" else f"na_step_8_{space}"] = f"ratio={ratio(na, arch):.2f}"


def compare_one_path(space, size, turns, results):
    """A one-path weight step over one at the mixture, and a one-path evaluation over that step."""
    jobs = Jobs(space, *size)
    steps = {
        "mixture weight step": jobs.weight_step,
        "one-path weight step": jobs.one_path_step,
        "one-path evaluation": jobs.one_path_evaluation,
    }
    seconds = take_turns(steps, turns)
    print(space)
    print_seconds(seconds)
    mixture, path, evaluation = seconds.values()
    results[f"one_path_step_{space}"] = f"ratio={ratio(path, mixture):.3f}"
    results[f"one_path_evaluation_{space}"] = f"ratio={ratio(evaluation, path):.3f}"


def neighbor_table(size, turns, results, plot):
    """Cost of an architecture step by number of neighbors, over DARTS's."""
    jobs = Jobs("darts", *size)
    counts = [1, 2, 4, 8, 16]
    steps = {"DARTS": jobs.arch_step}
    steps |= {("split", n): lambda n=n: jobs.arch_step(n) for n in counts}
    steps |= {("shared", n): lambda n=n: jobs.arch_step(n, norm="shared") for n in counts}
    steps |= {("repeat", n): lambda n=n: jobs.arch_step(n, "repeat") for n in (2, 4)}
    seconds = take_turns(steps, turns)
    print(
        "architecture step, darts, over that of DARTS\n"
        "| neighbors | split | split, shared statistics | repeat | repeat, per neighbor |"
    )
    print("|---|---|---|---|---|")
    table = {key: ratio(values, seconds["DARTS"]) for key, values in seconds.items()}
    for n in counts:
        repeat = table.get(("repeat", n))
        more = f"{repeat:.2f} | {repeat / n:.2f}" if repeat else " | "
        print(f"| {n} | {table['split', n]:.2f} | {table['shared', n]:.2f} | {more} |")
    results["na_repeat_4"] = f"ratio={table['repeat', 4]:.2f} per_neighbor={table['repeat', 4] / 4:.2f}"
    if plot:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(4.5, 3))
        axes.plot(counts, [table["split", n] for n in counts], "o-", label="split: a share of the batch each")
        axes.plot([1, 2, 4], [table["split", 1], *(table["repeat", n] for n in (2, 4))], "s--",
                  label="repeat: the whole batch each")  # fmt: skip
        axes.set(
            xlabel="neighbors", ylabel="cost of an architecture step\nover that of DARTS", ylim=(0, None)
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        figure.savefig(plot, bbox_inches="tight", dpi=100)


def growth_table(turns):
    """Seconds and memory of a search step as one thing grows at a time."""
    base = dict(C=16, layers=8, batch=64, size=32, neighbors=8)
    print(
        "one search step (NA-DARTS, architecture and weight step), darts\n| | seconds | MB |\n|---|---|---|"
    )
    changes = [{}, {"layers": 5}, {"layers": 14}, {"C": 8}, {"C": 24}, {"batch": 32}, {"batch": 96}]
    changes += [{"size": 16}, {"size": 24}, {"neighbors": 2}, {"neighbors": 16}]
    for change in changes:
        now = base | change
        size = [now[name] for name in ("C", "layers", "batch", "size")]
        jobs = Jobs("darts", *size)
        seconds = take_turns({"step": lambda n=now["neighbors"], j=jobs: j.search_step(n)}, turns)["step"]
        mb = memory("search_step", "darts", size, now["neighbors"])
        name = ", ".join(f"{key} {value}" for key, value in (change or base).items())
        print(f"| {name} | {statistics.median(seconds):.2f} | {mb:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="measurements of each thing")
    parser.add_argument("--one_path", action="store_true", help="cost of one path instead")
    parser.add_argument("--neighbors", action="store_true", help="cost by number of neighbors instead")
    parser.add_argument("--plot", help="a picture file of that")
    parser.add_argument("--growth", action="store_true", help="cost by the size of the job instead")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one turn")
    parser.add_argument("--memory", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return print(grown(*args.memory))
    print(machine())
    turns, results = 1 if args.quick else args.turns, {}
    darts, nasbench201 = ((4, 3, 16, 8), (4, 1, 16, 8)) if args.quick else ((16, 8, 64, 32), (16, 5, 64, 32))
    if args.quick or not (args.one_path or args.neighbors or args.growth):
        compare("darts", darts, turns, results, args.quick)
        compare("nasbench201", nasbench201, turns, results, args.quick)
    if args.quick or args.one_path:
        compare_one_path("darts", darts, turns, results)
        compare_one_path("nasbench201", nasbench201, turns, results)
    if args.quick or args.neighbors:
        neighbor_table(darts, turns, results, args.plot)
    if args.growth and not args.quick:
        growth_table(turns)
    for name, text in results.items():
        print(f"RESULT {name} {text}")


if __name__ == "__main__":
    main()
