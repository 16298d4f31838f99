"""Certify the scripts on a GPU, and measure what they cost there: one command, without a network.

    python experiments/gpu_check.py                    everything, on cuda
    python experiments/gpu_check.py --only times runs  some of the sections
    python experiments/gpu_check.py --smoke            the same logic on a CPU and tiny networks

Each section prints a table and RESULT lines, and one that fails does not stop the others; the exit status is
then 1. Sections: operations, numbers (against the CPU and float64), second (the second order), waits, same
(graph against eager), runs (the scripts as processes: kill and resume, training from files, torchrun),
memory (too large a batch), times (a search step), train (images a second), depthwise (in which layout).
Where cuDNN times its kernels first, a section may take minutes. --smoke: the first case of each.
"""

import argparse
import copy
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from plain import PLAIN, copy_weights  # noqa: E402

import model as layers  # noqa: E402
import model_search  # noqa: E402
import search  # noqa: E402
import utils  # noqa: E402
from model_search import SUPERNETS  # noqa: E402

METHODS = {"radius 0": "--neighborhood 0", "own": "--neighbor_norm own", "shared": "--neighbor_norm shared"}
TOGETHER = dict(model_search.TOGETHER)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections")
    parser.add_argument("--smoke", action="store_true", help="on a CPU, with tiny networks")
    args = parser.parse_args()
    args.device = torch.device("cpu" if args.smoke else "cuda")
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if not args.smoke:
        card = torch.cuda.get_device_properties(0)
        print(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, cuDNN {torch.backends.cudnn.version()}")
    failed = []
    for name in args.only:
        started = time.perf_counter()
        print(f"\n## {name}", flush=True)
        reset(args.device)
        try:
            SECTIONS[name](args)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            failed.append(name)
        print(f"({name}: {time.perf_counter() - started:.0f} s)", flush=True)
    print(f"\nRESULT gpu_check {'failed: ' + ' '.join(failed) if failed else 'passed'}")
    sys.exit(bool(failed))


def reset(device, tf32=True, benchmark=True):
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark
    model_search.TOGETHER.update(TOGETHER)


def expect(name, value, limit):
    """Print a RESULT line; raise where the value is above its limit."""
    print(f"RESULT {name} {value:.3g} (limit {limit:g})", flush=True)
    if not value <= limit:
        raise AssertionError(f"{name}: {value:.3g} is above {limit:g}")


def some(args, *tables):
    """All combinations; the first for --smoke."""
    return list(itertools.product(*tables))[: 1 if args.smoke else None]


def difference(a, b):
    """|a - b| / |b|"""
    a, b = (x.detach().double().cpu().flatten() for x in (a, b))
    return ((a - b).norm() / b.norm()).item()


class Job:
    """A supernet, a batch for the weights, one for the architecture, and the steps of search.py on them."""

    def __init__(
        self, args, flags="", space="darts", batch=64, dtype=torch.float32, graph=False, small=False
    ):
        device = args.device
        C, depth, size = (16, 8 if space == "darts" else 5, 32)
        if small or args.smoke:  # small: a size for which a CPU has the numbers too in a second or two
            C, depth, size = (8, 3, 16) if small else (2, 3, 8)
        self.args = search.parse_args([*flags.split(), "--space", space, "--batch_size", str(batch)])
        torch.manual_seed(0)
        self.model = SUPERNETS[space](C, depth, 10)
        with torch.no_grad():
            self.model.alpha.normal_(std=0.5)
        self.model.to(device, dtype).share_statistics(self.args.neighbor_norm == "shared")
        x, y = torch.randn(2, batch, 3, size, size), torch.randint(10, (2, batch))
        self.x, self.x_arch = x.to(device, dtype)
        self.y, self.y_arch = y.to(device)
        self.g = utils.generator(0, 0)
        self.still = torch.zeros(1, self.model.alpha[..., 0].numel(), dtype=torch.long)
        self.near = search.draw_shifts(self.model, self.args, 1, self.g)
        self.weights = self.model.weight_parameters()
        self.optimizer = torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=3e-4)
        for w in self.weights:
            self.optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)
        self.arch_optimizer = torch.optim.Adam(
            [self.model.alpha], 3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.lr = torch.tensor(0.025, device=device, dtype=dtype)
        self.first = lambda *batch: search.arch_gradient(self.model, *batch, self.args)
        self.second = lambda lr, *both: search.unrolled_gradient(
            self.model, self.optimizer, both[:3], both[3:], self.args, lr
        )
        self.weight_gradient = lambda *batch: search.weight_gradient(self.model, *batch, self.args)
        if graph and device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
            self.first, self.second = utils.Replayed(self.first, pool), utils.Replayed(self.second, pool)
            self.weight_gradient = utils.Replayed(self.weight_gradient, pool, self.model.buffers())

    def mixtures(self, shifts):
        shifts = utils.to_device(shifts, self.x.device)
        return search.mixtures(self.model.alpha, shifts, self.args, self.g)

    def arch_gradient(self):
        """The loss, and its gradient by alpha."""
        by_alpha = lambda q, by_q: search.by_alpha(self.model.alpha, q, by_q, self.args)
        near = self.mixtures(self.near)
        if self.args.unrolled:
            q = self.mixtures(self.still)
            both = self.x, self.y, q, self.x_arch, self.y_arch, near
            loss, by_q, by_near = self.second(self.lr, *both)
            return loss, by_alpha(q, by_q) + by_alpha(near, by_near)
        loss, by_near = self.first(self.x_arch, self.y_arch, near)
        return loss, by_alpha(near, by_near)

    def weight_step(self):
        """The gradients by the weights, at the center."""
        return self.weight_gradient(self.x, self.y, self.mixtures(self.still).detach())

    def step(self):
        """What one turn of the loop in search.py does, but for the batches."""
        self.near = search.draw_shifts(self.model, self.args, 1, self.g)
        loss, self.model.alpha.grad = self.arch_gradient()
        self.arch_optimizer.step()
        self.weight_step()
        torch.nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.optimizer.step()
        return loss


def seconds(job, device, most=20, budget=2.0):
    """The median time of a function, after two calls to warm up: at most so many calls and seconds."""

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        job()
    wait()
    times, begun = [], time.perf_counter()
    while len(times) < most and (len(times) < 3 or time.perf_counter() - begun < budget):
        started = time.perf_counter()
        job()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# ------------------------------------------------------------------------------------------------------------
# Sections
# ------------------------------------------------------------------------------------------------------------


def operations(args):
    """Each operation forward and backward, channels last, against the CPU in float64."""
    print("| operation | stride | float64 | fp32 |\n|---|---|---|---|")
    found = []
    reset(args.device, tf32=False, benchmark=False)
    for (name, make), stride in itertools.product(layers.OPS.items(), (1, 2)):
        if name == "none":
            continue
        torch.manual_seed(0)
        op, x = make(8, stride, True).double(), torch.randn(8, 8, 16, 16, dtype=torch.float64)

        def run(device, dtype, op=op, x=x):
            mine = copy.deepcopy(op).to(device, dtype)
            x = x.to(device, dtype, memory_format=torch.channels_last).requires_grad_()
            y = mine(x)
            g = torch.randn(y.shape, generator=utils.generator(0, 0), dtype=torch.float64).to(y)
            by = torch.autograd.grad(y, [x, *mine.parameters()], g)
            return torch.cat([value.detach().cpu().double().flatten() for value in (y, *by)])

        wanted = run("cpu", torch.float64)
        errors = [difference(run(args.device, dtype), wanted) for dtype in (torch.float64, torch.float32)]
        print(f"| {name} | {stride} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")
        found.append(errors)
    expect("operations, float64", max(double for double, _ in found), 1e-9)
    expect("operations, fp32", max(single for _, single in found), 1e-2)


def numbers(args):
    """Losses and gradients of one step against those of the CPU in float64. In fp32 a ReLU can fall on the
    other side of 0, on a CPU too, whose errors stand beside."""
    print("| space | method | precision | loss | alpha's gradient | weights' gradient |")
    print("|---|---|---|---|---|---|")
    for space, (method, flags) in some(args, SUPERNETS, METHODS.items()):
        numbers_of(args, space, method, flags + " --neighbors 8")  # of four images each


def numbers_of(args, space, method, flags):
    cpu = argparse.Namespace(device=torch.device("cpu"), smoke=args.smoke)

    def gradients(where, dtype, tf32=False, amp="none"):
        reset(args.device, tf32, benchmark=False)
        return both_gradients(Job(where, f"{flags} --amp {amp}", space, 32, dtype, small=True))

    def worst(precision, *how, **more):
        errors = [difference(a, b) for a, b in zip(gradients(*how, **more), wanted, strict=True)]
        row = " | ".join(f"{e:.1e}" for e in errors)
        print(f"| {space} | {method} | {precision} | {row} |", flush=True)
        return max(errors)

    wanted = gradients(cpu, torch.float64)
    rounding = worst("fp32, CPU", cpu, torch.float32)
    expect(f"{space} {method} float64", worst("float64", args, torch.float64), 1e-6)
    expect(f"{space} {method} fp32", worst("fp32", args, torch.float32), 1e-3 + 10 * rounding)
    if not args.smoke:
        worst("TF32", args, torch.float32, tf32=True)
        worst("bf16", args, torch.float32, tf32=True, amp="bf16")
    reset(args.device)


def both_gradients(job):
    loss, by_alpha = job.arch_gradient()
    job.weight_step()
    return loss, by_alpha, torch.cat([w.grad.flatten() for w in job.weights])


def second(args):
    """The finite difference of the second order, against float64: the part that the first order lacks."""
    print("| precision | error of the second-order term | of the whole gradient |\n|---|---|---|")

    def term(dtype, flags=""):
        whole = Job(args, f"--unrolled --neighbors 4 {flags}", "nasbench201", 16, dtype, small=True)
        whole.lr.mul_(0)
        first = whole.arch_gradient()[1].clone()
        whole.lr.fill_(0.025)
        gradient = whole.arch_gradient()[1].clone()
        return gradient - first, gradient

    wanted = term(torch.float64)
    for name, tf32 in (("fp32", False), ("TF32", True))[: 1 if args.smoke else 2]:
        reset(args.device, tf32, benchmark=False)
        errors = [difference(a, b) for a, b in zip(term(torch.float32), wanted, strict=True)]
        print(f"| {name} | {errors[0]:.1%} | {errors[1]:.1%} |")
        if not tf32:
            expect("second order, the term it adds", errors[0], 0.05)
    reset(args.device)


def times(args):
    """Seconds and peak memory of a search step in the DARTS space."""
    print("| | batch | precision | edges | how | start (s) | step (ms) | GiB |\n" + "|---" * 8 + "|")
    small, large = (16, 16) if args.smoke else (64, 256)
    cases = [(method, small, "fp32", "together", "graph") for method in METHODS]
    cases += [("shared", small, "bf16", "together", "graph"), ("shared", small, "fp32", "apart", "graph")]
    cases += [("shared", large, precision, "together", "graph") for precision in ("fp32", "bf16")]
    cases += [("radius 0", small, "bf16", "together", "graph")]
    cases += [("second order", small, "fp32", "together", "graph")]
    cases += [("shared", small, "fp32", "together", "graph, benchmark off")]
    cases += [(method, small, "fp32", "together", "eager") for method in (*METHODS, "plain")]
    for method, batch, precision, edges, how in cases[: 2 if args.smoke else None]:
        reset(args.device, tf32=method != "second order", benchmark="off" not in how)
        model_search.TOGETHER[args.device.type] = edges == "together"
        row = f"| {method} | {batch} | {precision} | {edges} | {how} |"
        try:
            if method == "plain":
                step = plain_step(args, batch)
            else:
                flags = METHODS.get(method, "--unrolled") + (" --amp bf16" if precision == "bf16" else "")
                step = Job(args, flags, batch=batch, graph=how != "eager").step
            begun = time.perf_counter()
            step()
            if args.device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter() - begun
            ms = 1000 * seconds(step, args.device, budget=0.6)
            memory = torch.cuda.max_memory_reserved() / 2**30 if args.device.type == "cuda" else 0.0
            print(f"{row} {start:.0f} | {ms:.1f} | {memory:.1f} |", flush=True)
        except RuntimeError as error:
            if not utils.out_of_memory(error):
                raise
            print(f"{row} {utils.one_line(error)[:60]} | | |", flush=True)
        step = None
    reset(args.device)


def plain_step(args, batch):
    """Both steps as the original DARTS code has them, without optimizers."""
    job = Job(args, batch=batch)
    C, depth = (2, 3) if args.smoke else (16, 8)
    plain = copy_weights(job.model, PLAIN["darts"](C, depth, 10).to(args.device))
    alpha = job.model.alpha.detach().requires_grad_()

    def step():
        for x, y in ((job.x_arch, job.y_arch), (job.x, job.y)):
            plain.zero_grad()
            F.cross_entropy(plain(x, alpha.softmax(-1)), y).backward()

    return step


def waits(args):
    """20 steps without a wait for the device, batches included."""
    images = torch.randint(256, (1024, 32, 32, 3), dtype=torch.uint8, device=args.device)
    labels = torch.randint(10, (1024,), device=args.device)
    norm = dict(zip(("mean", "std"), utils.channel_statistics(images), strict=True))
    batch = 16 if args.smoke else 64
    batches = utils.Batches(
        images, labels, torch.arange(1024), batch, utils.generator(0, 1), **norm, cutout=8
    )
    for flags in ("--perturb move --agg max --amp bf16", "--perturb replace --agg median --unrolled"):
        reset(args.device)
        job = Job(args, flags, "nasbench201" if args.smoke else "darts", batch, graph=True)
        try:
            for i in range(3 if args.smoke else 22):
                if i == 2 and args.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                [(job.x, job.y)], [(job.x_arch, job.y_arch)] = next(batches), next(batches)
                job.step()
        finally:
            if args.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        print(f"RESULT waits {flags}: 0 in {i - 1} steps", flush=True)


def same(args):
    """Steps of the graph against eager ones, on equal batches: the first, and after ten more as far apart as
    two eager runs may be."""
    for space, flags in (("darts", ""), ("nasbench201", "--unrolled --neighbors 4")):
        found = []
        for graph in (False, False, True):
            reset(args.device, tf32=False, benchmark=False)
            job = Job(args, flags, space, 16 if args.smoke else 64, graph=graph)
            first = job.arch_gradient()[1].clone()
            losses = [job.step().clone() for _ in range(2 if args.smoke else 10)]
            found.append((first, torch.stack(losses), job.model.alpha.detach().clone()))
        noise, errors = ([difference(a, b) for a, b in zip(found[0], one, strict=True)] for one in found[1:])
        for name, limit, error in zip(("first gradient", "losses", "alpha"), noise, errors, strict=True):
            expect(f"graph against eager, {space} {flags}, {name}", error, 1e-3 + 5 * limit)


def depthwise(args):
    """Forward and backward of depthwise convolutions, channels last and in PyTorch's default layout."""
    print("| C | filter | ms NHWC fp32 | NCHW fp32 | NHWC bf16 | NCHW bf16 |\n|---|---|---|---|---|---|")
    for C, (k, dilation) in some(args, (16, 64, 256), ((3, 1), (5, 1), (3, 2), (5, 2))):
        row = []
        kinds = (torch.float32, torch.bfloat16), (torch.channels_last, torch.contiguous_format)
        for dtype, layout in itertools.product(*kinds):
            side = 8 if args.smoke else 32 * 16 // C or 2
            x = torch.randn(64, C, side, side, device=args.device, dtype=dtype)
            x = x.contiguous(memory_format=layout).requires_grad_()
            w = torch.randn(C, 1, k, k, device=args.device, dtype=dtype, requires_grad=True)
            y = F.conv2d(x, w, None, 1, dilation * (k // 2), dilation, C)
            g = torch.randn_like(y)

            def job(x=x, w=w, g=g, k=k, d=dilation, C=C):
                for _ in range(10):
                    torch.autograd.grad(F.conv2d(x, w, None, 1, d * (k // 2), d, C), (x, w), g)

            row.append(100 * seconds(job, args.device, 5, 0.2))
        print(f"| {C} | {k} x {k}, dilation {dilation} | " + " | ".join(f"{ms:.3f}" for ms in row) + " |")


def train(args):
    """Images a second of train.py's own loop, DARTS_V2 at full size."""
    import train as script

    print("| recipe | precision | accumulate | images/s | GiB |\n|---|---|---|---|---|")
    small = "--init_channels 4 --layers 3" if args.smoke else ""
    for dataset, batch in (("cifar", 96), ("imagenet", 128)):
        ways = [("none", 1), ("bf16", 1), *([("fp16", 1), ("none", 2)] if dataset == "cifar" else [])]
        for amp, accumulate in ways[: 1 if args.smoke else None]:
            reset(args.device)
            batch = 8 if args.smoke else batch
            flags = f"--arch DARTS_V2 --batch_size {batch} --accumulate {accumulate} --amp {amp} {small}"
            flags += " --dataset imagenet" if dataset == "imagenet" else ""
            one = script.parse_args(flags.split(), 1)
            net, optimizer, autocast, scaler = script.build(
                one, 1000 if dataset == "imagenet" else 10, args.device
            )
            size = 64 if args.smoke else one.image_size
            x = torch.randn(batch // accumulate, 3, size, size, device=args.device)
            y = torch.randint(10, (len(x),), device=args.device)
            steps = 1 if args.smoke else 6
            rates = []
            for _ in range(2):  # the first warms up
                batches = Fixed([(x, y)] * accumulate, steps)
                started = time.perf_counter()
                script.train_epoch(net, optimizer, batches, one, 1, Silent(), "none", autocast, scaler)
                rates.append(batch * steps / (time.perf_counter() - started))
            memory = torch.cuda.max_memory_reserved() / 2**30 if args.device.type == "cuda" else 0.0
            row = f"| {dataset}, batch {batch} | {amp} | {accumulate} | {rates[-1]:.0f} | {memory:.1f} |"
            print(row, flush=True)
    reset(args.device)


class Fixed:
    """The same batch again and again, as batches of an epoch."""

    def __init__(self, pieces, steps):
        self.pieces, self.steps = pieces, steps

    def __len__(self):
        return self.steps

    def __next__(self):
        return self.pieces

    def start_epoch(self, epoch):
        pass


class Silent:
    disable = False

    def update(self):
        pass

    def set_postfix(self, **more):
        pass


def runs(args):
    """The scripts as processes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        common = ["--dataset", "shapes", "--device", args.device.type, "--batch_size", "64"]
        tiny = "--image_size 8 --init_channels 2 --layers 1 --space nasbench201 --batch_size 496".split()
        tiny = tiny if args.smoke else ["--space", "nasbench201", "--layers", "1"]
        # A search, killed after its first epoch and resumed
        path = os.path.join(folder, "search")
        flags = [*common, *tiny, "--epochs", "2"]
        process = start("search.py", *flags, "--save", path)
        log = os.path.join(path, "log.txt")
        while process.poll() is None and not (os.path.exists(log) and "epoch 1:" in open(log).read()):
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        out = process.communicate()[0]
        assert os.path.exists(log), out
        out = finish(start("search.py", "--resume", path), 0)
        print("\n".join(line for line in open(log).read().splitlines() if not line.startswith("  ")))
        assert "resumed after epoch" in out and os.path.exists(os.path.join(path, "result.json")), out
        # Training from image files, and its test
        images(os.path.join(folder, "images"), 48 if args.smoke else 200)
        files = ["--arch", "DARTS_V2", "--dataset", "imagenet", "--data", os.path.join(folder, "images")]
        files += ["--epochs", "2", "--device", args.device.type, "--batch_size", "16", "--amp", "bf16"]
        files += (
            ["--init_channels", "4", "--layers", "3", "--image_size", "64", "--workers", "1"]
            if args.smoke
            else []
        )
        path = os.path.join(folder, "train")
        print(
            finish(start("train.py", *files, "--save", path), 0).strip().splitlines()[-1].replace(folder, "")
        )
        print(finish(start("train.py", "--eval", "--resume", path), 0).strip().splitlines()[-1])
        # Two processes under torchrun, or one, where there is one card: NCCL's exchanges, in the graphs
        path = os.path.join(folder, "one")
        out = finish(start("search.py", *flags[:-1], "1", "--save", path, torchrun=True), 0)
        print(out.split("epoch 1:")[1].splitlines()[0])
    print("RESULT runs passed")


def memory(args):
    """One line where the card's memory does not suffice."""
    if not args.smoke:
        flags = "--dataset shapes --device cuda --batch_size 2496 --image_size 128".split()
        with tempfile.TemporaryDirectory() as folder:
            out = finish(start("search.py", *flags, "--save", os.path.join(folder, "search")), 2)
        assert "out of memory" in out, out
        print(out.strip().splitlines()[-1][:300])


def start(script, *flags, torchrun=False):
    command = [sys.executable]
    cards = str(min(2, max(1, torch.cuda.device_count())))
    command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", cards] if torchrun else []
    command += [os.path.join(ROOT, script), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status):
    out = process.communicate()[0]
    assert process.returncode == status, f"status {process.returncode}: {out[-2000:]}"
    return out


def images(root, count):
    """An image folder of ImageNet's sizes: noise, of two classes."""
    from PIL import Image

    for part in ("train", "val"):
        for name in ("a", "b"):
            os.makedirs(os.path.join(root, part, name))
        for i in range(count if part == "train" else 16):
            path = os.path.join(root, part, "ab"[i % 2], f"{i}.jpg")
            Image.effect_noise((500, 375), 64).convert("RGB").save(path)


SECTIONS = dict(
    operations=operations, numbers=numbers, second=second, waits=waits, same=same, runs=runs, memory=memory,
    times=times, train=train, depthwise=depthwise,
)  # fmt: skip

if __name__ == "__main__":
    main()
