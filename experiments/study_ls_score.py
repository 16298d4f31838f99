"""Which score NA-LS should end with: that of known neighbors, or g over whole neighborhoods.

    python experiments/study_ls_score.py --bench T.csv --out ls_score.csv

A local search as that of neighborhood.py, in NumPy, on the table's 12-epoch column with noise. Of each search
both scores choose an architecture, and so does the rule of `local_search`, which takes one of the two by the
number of expanded architectures. A row: the mean CIFAR-100 and ImageNet-16-120 accuracy of what was chosen.
"""

import heapq
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

import nats_bench
import utils

E, O = 6, 5  # noqa: E741
REPEATS = {50: 400, 100: 400, 200: 300, 400: 200, 800: 150, 1600: 100}  # by budget
POWERS = O ** np.arange(E - 1, -1, -1)
OPS = (np.arange(O**E)[:, None] // POWERS) % O
shifted = [(((OPS[:, e] + s) % O - OPS[:, e]) * POWERS[e]) for e in range(E) for s in range(1, O)]
NEIGHBORS = np.stack(shifted, 1) + np.arange(O**E)[:, None]  # (15625, 24)


def search(errors, budget, rng):
    """Places of all that was evaluated, in order, and of what was expanded, from two fifths random starts."""
    known, heap, expanded = {}, [], []

    def add(a):
        if a not in known:
            heapq.heappush(heap, (errors[a], len(known), a))
            known[a] = True

    for a in rng.integers(0, O**E, max(1, 2 * budget // 5)):
        add(int(a))
    while len(known) < budget and heap:
        a = heapq.heappop(heap)[2]
        new = [int(b) for b in NEIGHBORS[a] if b not in known]
        whole = len(known) + len(new) <= budget
        for b in new[: budget - len(known)]:
            add(b)
        if not whole:
            break
        expanded.append(a)
    return np.array(list(known)), np.array(expanded, dtype=int)


def chosen(errors, known, expanded):
    """What each score chooses."""
    mask = np.zeros(O**E, bool)
    mask[known] = True
    around, own = mask[NEIGHBORS[known]], errors[known]
    total = (errors[NEIGHBORS[known]] * around).sum(1) + own + 5 * own.mean()
    found = {"known": known[np.argmin((own + total / (around.sum(1) + 6)) / 2)]}
    found["whole"] = known[np.argmin(own)]
    if len(expanded):
        found["whole"] = expanded[np.argmin(errors[NEIGHBORS[expanded]].sum(1) + errors[expanded])]
    found["default"] = found["whole" if len(expanded) >= 4 else "known"]
    return found


def main(argv=None):
    parser = utils.Parser(__doc__)
    parser.add_argument("--bench", required=True, help="the NAS-Bench-201 table")
    parser.add_argument("--out", required=True, help="the CSV file")
    parser.add_argument("--seed", type=int, default=77, help="other than those on which the rule was chosen")
    args = parser.parse_args(argv)
    table, rows = nats_bench.load_table(args.bench), []
    truth = [table[name].numpy() for name in ("cifar100_test_200", "imagenet16_test_200")]
    errors = (100 - table["cifar10_test_12"]).numpy()
    for budget, repeats in REPEATS.items():
        for noise in (0, 1, 2, 4):
            found = {}
            for repeat in range(repeats):
                rng = np.random.default_rng([args.seed, repeat, budget, 10 * noise])
                noisy = errors + noise * rng.standard_normal(len(errors))
                for score, a in chosen(noisy, *search(noisy, budget, rng)).items():
                    found.setdefault(score, []).append([column[a] for column in truth])
            for score, values in found.items():
                row = {"noise": noise, "budget": budget, "score": score, "repeats": repeats}
                means = np.mean(values, 0)
                rows.append(row | {"cifar100": round(means[0], 3), "imagenet16": round(means[1], 3)})
        utils.write_csv(args.out, rows)


if __name__ == "__main__":
    main()
