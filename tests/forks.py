"""The scripts as processes of their own, without the seconds that importing torch takes: each is forked from
a server that has imported everything, and then runs the script's file as `python FILE` would."""

import atexit
import builtins
import contextlib
import functools
import gc
import importlib
import itertools
import json
import multiprocessing.util
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import namedtuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
Done = namedtuple("Done", "status out err")  # status: negative for a signal, as in subprocess


class Script:
    """A script that runs: `pid`, `kill(signal)`, `ended(seconds)`, `wait()`.

    before: the name of a function, "module.name", to call first, and its arguments.
    """

    def __init__(self, name, *flags, cwd, before=()):
        self.folder = tempfile.TemporaryDirectory()
        job = dict(name=name, flags=[str(flag) for flag in flags], cwd=str(cwd), before=before)
        server().stdin.write(json.dumps({**job, "folder": self.folder.name}) + "\n")
        server().stdin.flush()
        self.pid = int(self._await("pid", 600))

    def _file(self, name):
        return os.path.join(self.folder.name, name)

    def _await(self, name, timeout):
        """The contents of a file that the server writes."""
        end = time.monotonic() + timeout
        while not os.path.exists(self._file(name)):
            if time.monotonic() > end:
                return None
            time.sleep(0.001)
        with open(self._file(name), errors="replace") as file:
            return file.read()

    def kill(self, number=signal.SIGKILL):
        if not os.path.exists(self._file("status")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self, timeout):
        return self._await("status", timeout) is not None

    def wait(self, timeout=600):
        """The script's end. One that hangs is killed, and so has the status -9."""
        if not self.ended(timeout):
            self.kill()
        status, out, err = (self._await(name, 60) for name in ("status", "stdout", "stderr"))
        self.folder.cleanup()
        return Done(int(status), out, err)


def run(name, *flags, cwd, before=(), timeout=600):
    """Run a script to its end."""
    return Script(name, *flags, cwd=cwd, before=before).wait(timeout)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def torchrun(folder, script, *flags):
    """Run a script in two processes, in this folder, to its end."""
    command = [*TORCHRUN, str(script), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600, env=environment)


# At the end of a script: the group is gone, so that none of its threads runs into the interpreter's end.
PARTED = """
import pathlib
threads = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""


@functools.cache
def server():
    command, environment = [sys.executable, __file__], {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment)
    atexit.register(found.communicate)  # the end of its input ends it
    return found


def serve():
    """Start what the lines of stdin name; write the `pid` and, when it is over, the `status` into its
    folder."""
    sys.path[:0] = [ROOT]
    modules = "sample visualize tqdm torchvision.datasets torchvision.transforms.v2 matplotlib.figure"
    for name in f"{modules} matplotlib.backends.backend_agg".split():
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if not pid:
            start(**job)
        write(job["folder"], "pid", pid)
        write(job["folder"], "status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)


def write(folder, name, value):
    path = os.path.join(folder, name)
    with open(f"{path}.new", "w") as file:
        file.write(str(value))
    os.rename(f"{path}.new", path)


def start(name, flags, cwd, before, folder):
    # A shell has what it starts in the background ignore SIGINT, which would be inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    for descriptor, path in enumerate((os.devnull, f"{folder}/stdout", f"{folder}/stderr")):
        file = os.open(path, os.O_CREAT | os.O_RDWR)
        os.dup2(file, descriptor)
        os.close(file)
    path = os.path.join(ROOT, name)
    sys.argv, sys.path[0], status = [path, *flags], ROOT, 0
    try:
        if before:
            module, function = before[0].rsplit(".", 1)
            getattr(importlib.import_module(module), function)(*before[1:])
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    multiprocessing.util._exit_function()  # ends the processes that read images
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def kill_at_write(place, record):
    """SIGKILL at a moment of writing: before and after a file is renamed, when it has just been opened, and
    when half of what is to be written is in it. place: which of these moments; 0 for none. record: a file
    that gets a byte at each."""
    ordinary, replace, seen = open, os.replace, itertools.count(1)

    def moment():
        with ordinary(record, "ab") as file:
            file.write(b".")
        if next(seen) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    class Watched:
        def __init__(self, *args, **more):
            self.file = ordinary(*args, **more)
            moment()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            moment()
            self.file.write(data[len(data) // 2 :])
            return len(data)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    def watched_replace(*args):
        moment()
        replace(*args)
        moment()

    def watched_open(path, mode="r", **more):
        return (Watched if mode in ("wb", "a") else ordinary)(path, mode, **more)

    builtins.open, os.replace = watched_open, watched_replace


def signal_at_data(number):
    """A signal to the process itself, when the data is about to be read."""
    import utils

    utils.load_images = lambda *args, **more: signal.raise_signal(number)


def bad_images_after(epoch, value):
    """From this epoch's checkpoint on, images are not finite."""
    import utils

    save, normalise = utils.RunFolder.save, utils.normalise

    def save_and_spoil(folder, parts, done, rows, args):
        save(folder, parts, done, rows, args)
        if done == epoch:
            utils.normalise = lambda *args, **more: normalise(*args, **more) * float(value)

    utils.RunFolder.save = save_and_spoil


def large_scale(scale):
    """Gradient scaling that begins with so large a factor."""
    import torch

    made = torch.amp.GradScaler
    torch.amp.GradScaler = lambda device, enabled: made(device, init_scale=scale, enabled=enabled)


def full_disk(name, epoch):
    """From this epoch's checkpoint on, no file may become larger than the named one of the run is now; a log
    is made the largest first."""
    import utils

    save = utils.RunFolder.save

    def save_and_fill(folder, parts, done, rows, args):
        save(folder, parts, done, rows, args)
        if done == epoch:
            if name == "log.txt":
                with open(folder.file(name), "a") as file:
                    file.write("x" * 300_000 + "\n")
            size = os.path.getsize(folder.file(name))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, resource.RLIM_INFINITY))

    utils.RunFolder.save = save_and_fill


def little_memory(more):
    """So many bytes of address space beyond what the process has."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


if __name__ == "__main__":
    serve()
