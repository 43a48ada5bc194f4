#!/usr/bin/env python3
"""Prints the table of docs/results.md from benches/results/claims: validation accuracy after the last epoch in per cent, the
mean over the seeds and the standard deviation of a sample."""

import csv
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benches/results/claims"
SETS = ["near", "far", "real-cells", "real-fashion"]


def accuracies(file: Path) -> dict[str, list[float]]:
    last = {}
    with file.open() as rows:
        for row in csv.DictReader(rows):
            if row["val_top1"]:
                last[row["arm"], row["seed"]] = 100 * float(row["val_top1"])
    policies = {}
    for (policy, _), accuracy in last.items():
        policies.setdefault(policy, []).append(accuracy)
    return policies


def main() -> None:
    found = {name: accuracies(RESULTS / f"{name}.csv") for name in SETS if (RESULTS / f"{name}.csv").exists()}
    policies = dict.fromkeys(policy for one in found.values() for policy in one)
    print(f"| policy | {' | '.join(name.removeprefix('real-') for name in found)} |")
    print("|---" * (1 + len(found)) + "|")
    for policy in policies:
        cells = []
        for one in found.values():
            values = one.get(policy)
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if values else "–")
        print(f"| `{policy}` | {' | '.join(cells)} |")


main()
