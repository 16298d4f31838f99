"""A network of a fixed cell against plain modules in PyTorch's default memory layout: forward and backward.

    python experiments/bench_train.py [--arch DARTS_V2] [--quick]

DARTS's CIFAR network with auxiliary head and without drop path. The two take turns. Images are noise.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
import torch.nn.functional as F
from bench_supernet import machine, print_seconds, ratio, take_turns
from plain import PlainNetwork

from genotypes import parse_architecture
from model import NetworkCIFAR


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="DARTS_V2", help="the cell")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each")
    parser.add_argument("--quick", action="store_true", help="a tiny network, one turn")
    args = parser.parse_args()
    genotype = parse_architecture(args.arch)
    C, layers, batch, size = (4, 3, 4, 32) if args.quick else (36, 20, 32, 32)
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    networks = {
        "plain": PlainNetwork("cifar", C, 10, layers, genotype),
        "ours": NetworkCIFAR(C, 10, layers, True, genotype).to(memory_format=torch.channels_last),
    }

    def step(network):
        network.zero_grad()
        logits, auxiliary = network(x)
        (F.cross_entropy(logits, y) + 0.4 * F.cross_entropy(auxiliary, y)).backward()

    jobs = {name: lambda network=network: step(network) for name, network in networks.items()}
    seconds = take_turns(jobs, 1 if args.quick else args.turns)
    print(f"{machine()}; {args.arch}, C={C}, {layers} cells, batch {batch}, {size} x {size}")
    print_seconds(seconds)
    print(f"RESULT fixed_cell ratio={ratio(*seconds.values()):.2f}")


if __name__ == "__main__":
    main()
