"""Every test runs on one thread: what they compute is tiny, and threads that wait for each other on busy
cores cost more than they give. pytest-xdist has two processes use the cores instead (pyproject.toml)."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported here, and for what the tests start

import torch  # noqa: E402

torch.set_num_threads(1)
