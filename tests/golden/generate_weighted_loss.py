#!/usr/bin/env python3
"""Writes weighted_loss.json beside this script: PyTorch's cross-entropy with class weights, in f64.

README.md says what is in the file.
"""

import json
from pathlib import Path

import torch


def case(name, samples, classes, smoothing, weights, seed):
    generator = torch.Generator().manual_seed(seed)
    # Exact in f32: both sides start from the same values.
    draw = lambda *shape: torch.randint(-2048, 2048, shape, generator=generator, dtype=torch.int64) / 256.0
    logits = draw(samples, classes).double().requires_grad_()
    labels = torch.randint(0, classes, (samples,), generator=generator)
    weights = torch.tensor(weights(classes, draw), dtype=torch.float64)
    loss = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(logits, labels)
    loss.backward()
    return {
        "name": name,
        "classes": classes,
        "smoothing": smoothing,
        "logits": logits.detach().flatten().tolist(),
        "labels": labels.tolist(),
        "weights": weights.tolist(),
        "loss": loss.item(),
        "gradient": logits.grad.flatten().tolist(),
    }


def drawn(classes, draw):
    return (draw(classes).abs() + 1 / 16).tolist()


def with_a_zero(classes, draw):
    return [0.0, *drawn(classes - 1, draw)]


def main():
    cases = [
        case(f"{name}, {classes} classes, smoothing {smoothing}", samples, classes, smoothing, weights, seed)
        for seed, (name, weights, samples, classes) in enumerate(
            [
                ("drawn", drawn, 6, 2),
                ("drawn", drawn, 9, 10),
                ("a weight of 0", with_a_zero, 16, 5),
                ("the same weights", lambda classes, _: [3.0] * classes, 4, 7),
                ("drawn", drawn, 3, 70),
            ]
        )
        for smoothing in [0.0, 0.1]
    ]
    text = ",\n".join(json.dumps(case) for case in cases)
    versions = json.dumps({"torch": torch.__version__})
    file = Path(__file__).with_name("weighted_loss.json")
    file.write_text(f'{{"versions": {versions}, "cases": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
