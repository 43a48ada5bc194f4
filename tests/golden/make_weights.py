#!/usr/bin/env python3
"""Writes the files in weights/ with a real PyTorch: one small network in every form that `torch.save` gives it.

Every tensor holds `index * 0.25 - 1` in row-major order, which float16 and bfloat16 hold exactly, so a test can
compute what it expects. Run with PyTorch 1.13 or newer: `python3 make_weights.py`, or with the names of the files that are to
be made.
"""

from collections import OrderedDict
from pathlib import Path
import os
import pickle
import sys

import torch

OUT = Path(__file__).parent / "weights"


def ramp(*shape):
    count = 1
    for size in shape:
        count *= size
    return (torch.arange(count, dtype=torch.float32) * 0.25 - 1.0).reshape(shape)


def state_dict(dtype=torch.float32):
    return OrderedDict(
        [
            ("conv1.weight", ramp(2, 3, 1, 2).to(dtype)),
            ("bn1.num_batches_tracked", torch.tensor(7)),
            ("fc.bias", ramp(5).to(dtype)),
        ]
    )


class OsSystem:
    """Pickles as a call of `os.system`, as hostile files do."""

    def __reduce__(self):
        return (os.system, ("touch thawline-was-here",))


def main():
    OUT.mkdir(exist_ok=True)
    plain = state_dict()

    def save(value, name, **options):
        if not sys.argv[1:] or name in sys.argv[1:]:
            torch.save(value, OUT / name, **options)

    save(plain, "plain.pth")
    save(plain, "legacy.pth", _use_new_zipfile_serialization=False)
    save(OrderedDict(("module." + name, value) for name, value in plain.items()), "data_parallel.pth")
    save({"epoch": 3, "state_dict": plain, "optimizer": {"state": {0: ramp(2)}}}, "checkpoint.pth")
    # As timm's training script, torchvision's (whose average is a module around the model), DINO's and others write them.
    average = OrderedDict((name, value + 1) for name, value in plain.items())
    inside = OrderedDict(("module." + name, value) for name, value in average.items())
    save({"epoch": 3, "state_dict": plain, "state_dict_ema": average}, "timm_ema.pth")
    save({"model": plain, "model_ema": OrderedDict(n_averaged=torch.tensor(9), **inside), "epoch": 3}, "torchvision_ema.pth")
    save({"student": plain, "teacher": inside, "optimizer": {"state": {0: ramp(2)}}}, "teacher.pth")
    save({"net": OrderedDict(("module." + name, value) for name, value in plain.items()), "acc": 93.1}, "net.pth")
    save({"discriminator": plain, "generator": average}, "two.pth")
    quantised = torch.quantize_per_tensor(ramp(5), 0.25, 0, torch.qint8)
    save(OrderedDict(plain, **{"fc.weight": quantised}), "quantised.pth")

    save(state_dict(torch.float16), "f16.pth")
    save(state_dict(torch.bfloat16), "bf16.pth")
    save(state_dict(torch.float64), "f64.pth")

    # Views of one storage: transposed, strided with an offset, and the storage itself.
    base = ramp(3, 4)
    save({"base": base, "transposed": base.t(), "corner": base[1:, ::2]}, "views.pth")

    parts = [("model", torch.nn.Linear(2, 3)), ("fc", torch.nn.Linear(3, 1, bias=False))]
    network = torch.nn.Sequential(OrderedDict(parts))
    network.load_state_dict({"model.weight": ramp(3, 2), "model.bias": ramp(3), "fc.weight": ramp(1, 3)})
    save(network, "module.pth")

    save({"conv1.weight": ramp(2), "mask": torch.tensor([True, False])}, "bool.pth")
    save({"conv1.weight": torch.full((2,), 1e300, dtype=torch.float64)}, "f64_too_large.pth")
    save({"conv1.weight": torch.zeros(1).expand(1 << 26)}, "expanded.pth")
    save({"epoch": 3}, "no_tensors.pth")
    save({"conv1.weight": ramp(2), "run": OsSystem()}, "os_system.pth")
    if not sys.argv[1:]:
        (OUT / "plain_pickle.pth").write_bytes(pickle.dumps({"conv1.weight": [1.0, 2.0]}, protocol=2))


if __name__ == "__main__":
    main()
