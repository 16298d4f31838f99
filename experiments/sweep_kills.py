"""Kill runs at random moments, resume them, and compare with runs that were left alone.

    python experiments/sweep_kills.py                  30 moments, seed 0
    python experiments/sweep_kills.py --moments 300 --seed 1
    python experiments/sweep_kills.py --every          every moment of writing, once

Half of the moments are moments of writing (a file just opened, half written, before and after its renaming),
half are any time of the run. Half of the runs are killed again as they go on. Searches, local search by
training, training with a held-out part, of two seeds, and from files with worker processes take turns. After
the last resumption genotype, metrics, result and everything in the checkpoint have to equal those of an
uninterrupted run, times apart, and no temporary file may be left.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import forks
from conftest import NB201, read, same, save_images, without_times

TINY = "--dataset folder --data images --image_size 8 --init_channels 2 --layers 1 --device cpu --epochs 3"
NB = f"{TINY} --space nasbench201 --batch_size 12"
COMMANDS = {
    "trained": f"sample.py {NB} --neighborhood 0 --algo ls --eval train --budget 8 --starts 2",
    "search": f"search.py {NB} --neighbors 4",
    "train": f"train.py {TINY} --arch {NB201} --batch_size 8 --valid_portion 0.3",
    "seeds": f"train.py {TINY} --arch {NB201} --batch_size 8 --seeds 3 5",
    "files": f"train.py {TINY} --dataset imagenet --image_size 64 --layers 3 --arch DARTS_V2 --batch_size 8 "
    "--no-auxiliary --workers 1",
}


def differences(whole, parts):
    """What differs between two run folders, as a list of words; the log may lack lines of epochs at whose end
    the run was killed, but has no line twice."""
    files = [{path.relative_to(root) for path in root.rglob("*")} for root in (whole, parts)]
    found = [f"only one has {path}" for path in files[0] ^ files[1]]
    for path in sorted(files[0] & files[1]):
        if (whole / path).is_dir():
            continue
        if path.name != "log.txt":
            a, b = (without_times(read(root / path)) for root in (whole, parts))
            if not same(a, b):
                found.append(f"{path} differs")
            continue
        lines = [line for line in (parts / path).read_text().split("\n") if line.startswith("epoch ")]
        if len(lines) != len({line.split(":")[0] for line in lines}):
            found.append("the log has an epoch twice")
    return found


def go_on(root, command, folder):
    """Resume a run; if it had no checkpoint yet, give its command again. Returns what was wrong."""
    script, *flags = command.split()
    done = forks.run(script, "--resume", folder, cwd=root)
    if done.status == 2:
        if done.err.count("\n") != 1 or not (
            "start the run anew" in done.err or "is not a run folder" in done.err
        ):
            return [done.err]
        if list((root / folder).rglob("checkpoint.pt")) or (root / folder / "evaluations.csv").exists():
            return [f"not resumed from its checkpoint: {done.err}"]
        done = forks.run(script, *flags, "--save", folder, cwd=root)
    return [] if done.status == 0 and done.err == "" else [f"status {done.status}: {done.err}"]


def kill_once(root, flags, g, moments, seconds, place=None):
    """Start a script and kill it at a random moment, or at a moment of writing; returns that moment in words,
    and the end."""
    if place is None and g.random() < 0.5:
        place = g.randint(1, moments)
    if place:
        done = forks.run(*flags, cwd=root, before=["forks.kill_at_write", place, str(root / "moments")])
        return f"writing {place} of {moments}", done
    wait = g.uniform(0, seconds)
    script = forks.Script(*flags, cwd=root)
    time.sleep(wait)
    script.kill()
    return f"{wait:.2f} s of {seconds:.2f}", script.wait()


def measure(root, name):
    """The uninterrupted run: how many moments of writing it has, and how long it takes."""
    script, *flags = COMMANDS[name].split()
    started = time.monotonic()
    done = forks.run(
        script, *flags, "--save", f"{name}-whole", cwd=root,
        before=["forks.kill_at_write", 0, str(root / f"{name}-moments")],
    )  # fmt: skip
    assert done.status == 0, done.err
    return os.path.getsize(root / f"{name}-moments"), time.monotonic() - started


def try_moment(root, name, g, number, moments, seconds, again=False, place=None):
    """One run that is killed, perhaps killed again, and finished. Returns words for the moments, and what was
    wrong."""
    script, *flags = COMMANDS[name].split()
    folder = f"{name}-{number}"
    words, done = kill_once(root, [script, *flags, "--save", folder], g, moments, seconds, place)
    expected = (-9,) if place else (-9, 0)  # a random time may come after the end
    wrong = [] if done.status in expected else [f"status {done.status}: {done.err}"]
    if again and (root / folder).exists():
        more, done = kill_once(root, [script, "--resume", folder], g, moments, seconds)
        words += f", then {more}"
        wrong += [] if done.status in (-9, 0, 2) else [f"status {done.status}: {done.err}"]
    wrong += go_on(root, COMMANDS[name], folder)
    if not wrong:
        wrong = differences(root / f"{name}-whole", root / folder)
    return words, wrong


def main(args):
    g, failures = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_images(root / "images")
        forks.run("genotypes.py", "DARTS_V2", cwd=root)  # so that the first run does not wait for the server
        whole = {name: measure(root, name) for name in COMMANDS}
        plan = [(list(COMMANDS)[i % 5], i % 10 >= 5, None) for i in range(args.moments)]
        if args.every:
            plan = [(name, False, i) for name in COMMANDS for i in range(1, whole[name][0] + 1)]
        for number, (name, again, place) in enumerate(plan, 1):
            words, wrong = try_moment(root, name, g, number, *whole[name], again, place)
            failures += bool(wrong)
            print(f"{number} {name}: killed at {words}: {'; '.join(wrong) or 'same'}", flush=True)
    print(f"{len(plan)} moments, {failures} failures")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=30, help="moments to try")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--every", action="store_true", help="every moment of writing instead")
    raise SystemExit(min(main(parser.parse_args()), 1))
