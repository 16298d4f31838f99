"""Training batches: utils.Batches against torchvision's per-image transforms in a DataLoader.

    python experiments/bench_data.py [--quick]

Both crop, flip, normalise and cut out, at 32 x 32 and a batch of 96, from images in memory. The DataLoader
has a worker for each core, which are started before the clock. The two take turns.
"""

import argparse
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from bench_supernet import machine, print_seconds, ratio, take_turns
from PIL import Image
from torchvision import transforms

import utils


class Cutout:
    """The transform of the original DARTS code, on one image."""

    def __init__(self, length):
        self.length = length

    def __call__(self, image):
        _, H, W = image.shape
        y, x = torch.randint(H, (1,)).item(), torch.randint(W, (1,)).item()
        half = self.length // 2
        image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


class PerImage(torch.utils.data.Dataset):
    """As torchvision's CIFAR10: arrays in memory, a PIL image and its transforms an item."""

    def __init__(self, images, labels, mean, std):
        self.images, self.labels = images.numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean.tolist(), std.tolist()),
                Cutout(16),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="measurements of each")
    parser.add_argument("--quick", action="store_true", help="few images, one turn")
    args = parser.parse_args()
    images, labels, _ = utils.draw_shapes(960 if args.quick else 19_200, 32, seed=0)
    mean, std = utils.channel_statistics(images)
    ours = utils.Batches(
        images,
        labels,
        torch.arange(len(labels)),
        96,
        utils.generator(0, 0),
        mean=mean,
        std=std,
        pad=4,
        cutout=16,
    )
    loader = torch.utils.data.DataLoader(
        PerImage(images, labels, mean, std), 96, shuffle=True, drop_last=True, num_workers=utils.cores(),
        persistent_workers=True,
    )  # fmt: skip

    def our_round():
        for _ in range(len(ours)):
            next(ours)

    def their_round():
        for _ in loader:
            pass

    seconds = take_turns(
        {"torchvision": their_round, "utils.Batches": our_round}, 1 if args.quick else args.turns
    )
    print(f"{machine()}; {len(labels):,} images a round")
    print_seconds(seconds)
    for name, values in seconds.items():
        print(f"  {name}: {len(labels) / statistics.median(values):,.0f} images a second")
    print(f"RESULT batches ratio={ratio(*seconds.values()):.1f}")


if __name__ == "__main__":
    main()
