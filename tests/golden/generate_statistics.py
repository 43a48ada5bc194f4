#!/usr/bin/env python3
"""Writes statistics.json beside this script: the statistics that PyTorch estimates for resnet_tiny by forward passes.

README.md says what is in the file. Values are those of generate.py; all arithmetic is in f64.
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import generate
from common import digits, splitmix

CLASSES, HEIGHT, WIDTH = 10, 13, 11
BATCHES = [6, 6, 4]  # the last one is not full


def batches():
    """Bytes as an image file holds them, then as resnet_tiny takes them: (byte / 255 - 0.5) / 0.5."""
    count = sum(BATCHES)
    shape = (count, 3, HEIGHT, WIDTH)
    pixels = torch.from_numpy((splitmix("pixels", count * 3 * HEIGHT * WIDTH) >> 56).astype("float64")).reshape(shape)
    return ((pixels / 255.0 - 0.5) / 0.5).split(BATCHES)


def network():
    return generate.build("resnet_tiny", CLASSES, [], nn.BatchNorm2d, torch.float64, torch.contiguous_format)


def norms(net):
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}


def inputs(net):
    """What each batch norm of `net` is given over all batches: [channels, values]."""
    seen = {name: [] for name in norms(net)}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, x, name=name: seen[name].append(x[0].detach().transpose(0, 1).flatten(1).clone())
        )
        for name, module in norms(net).items()
    ]
    with torch.no_grad():
        for batch in batches():
            net(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(values, 1) for name, values in seen.items()}


def precise(net):
    net.train()
    return {name: (x.mean(1), x.var(1, unbiased=True)) for name, x in inputs(net).items()}


def update(net):
    update_bn(batches(), net)
    assert all(m.num_batches_tracked == len(BATCHES) for m in norms(net).values())
    return {name: (m.running_mean, m.running_var) for name, m in norms(net).items()}


def adabn(net):
    net.eval()
    found = {}
    for name, module in norms(net).items():
        x = inputs(net)[name]
        found[name] = (x.mean(1), x.var(1, unbiased=True))
        module.running_mean.copy_(found[name][0])
        module.running_var.copy_(found[name][1])
    return found


def lists(found):
    return {
        name: {"mean": [digits(v, 9) for v in mean.tolist()], "var": [digits(v, 9) for v in var.tolist()]}
        for name, (mean, var) in found.items()
    }


def main():
    header = {"torch": torch.__version__, "model": "resnet_tiny", "classes": CLASSES, "h": HEIGHT, "w": WIDTH}
    methods = {"precise": precise, "update-bn": update, "adabn": adabn}
    methods = {name: lists(method(network())) for name, method in methods.items()}
    rows = ",\n".join(
        f'  "{method}": {{\n'
        + ",\n".join(f'   "{name}": {json.dumps(v, separators=(",", ":"))}' for name, v in layers.items())
        + "\n  }"
        for method, layers in methods.items()
    )
    head = "".join(f' "{k}": {json.dumps(v)},\n' for k, v in {**header, "batches": BATCHES}.items())
    path = Path(__file__).with_name("statistics.json")
    path.write_text(f'{{\n{head} "methods": {{\n{rows}\n }}\n}}\n')


if __name__ == "__main__":
    main()
