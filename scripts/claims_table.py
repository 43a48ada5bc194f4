#!/usr/bin/env python3
"""Prints the tables of docs/results.md from benches/results/claims: validation accuracy in per cent, the mean over the seeds
and the standard deviation of a sample."""

import csv
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benches/results/claims"
SETS = ["near", "far", "real-cells", "real-fashion"]


START = "before training"


def spread(accuracies: list[float]) -> str:
    return f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"


def accuracies(file: Path) -> dict[str, list[float]]:
    """Of each policy after the last epoch, and of them all before training, by seed."""
    last, start = {}, {}
    with file.open() as rows:
        for row in csv.DictReader(rows):
            accuracy = 100 * float(row["val_top1"])
            last[row["arm"], row["seed"]] = accuracy
            if row["epoch"] == "0":
                start[row["seed"]] = accuracy
    policies = {START: list(start.values())}
    for (policy, _), accuracy in last.items():
        policies.setdefault(f"`{policy}`", []).append(accuracy)
    return policies


def main() -> None:
    found = {name: accuracies(RESULTS / f"{name}.csv") for name in SETS if (RESULTS / f"{name}.csv").exists()}
    policies = dict.fromkeys(policy for one in found.values() for policy in one)
    print(f"| policy | {' | '.join(name.removeprefix('real-') for name in found)} |")
    print("|---" * (1 + len(found)) + "|")
    for policy in policies:
        cells = []
        for one in found.values():
            cells.append(spread(one[policy]) if policy in one else "–")
        print(f"| {policy} | {' | '.join(cells)} |")

    print("\n| batch | after training | statistics estimated anew |\n|---|---|---|")
    with (RESULTS / "small-batches.csv").open() as rows:
        runs = list(csv.DictReader(rows))
    for batch in dict.fromkeys(run["batch"] for run in runs):
        of = lambda column: spread([100 * float(run[column]) for run in runs if run["batch"] == batch])
        print(f"| {batch} | {of('after_training')} | {of('recalibrated')} |")


main()
