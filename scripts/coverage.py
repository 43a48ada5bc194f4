#!/usr/bin/env python3
"""Compares training steps of networks by name with PyTorch's own: python scripts/coverage.py THAWLINE [NAME…]

THAWLINE is the program. Without names, every network of torchvision and timm that `thawline models` lists, smallest first. Each gets
random weights and running statistics in the framework, which are saved as safetensors and must be recognised without --model where
only one network has such tensors. Two steps of SGD under `full`, without dropout, on eight images of 64×64 pixels, or what the
network takes. The loss before
the first must be PyTorch's in 64 bits to 1e-5, and what the first step changes of it to 5 %, or to twice what PyTorch's
32 bits are apart: one value that rounds to the other side
of a ReLU moves that by one or two percent, in PyTorch's 32 bits, too, while a wrong gradient moves it more. Prints a table, and how
many agree. Needs torch, torchvision, timm and safetensors.
"""

import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file

SIZE, IMAGES, LR = 64, 8, 0.001
# Networks that take no images of 64 pixels, by what their names contain.
SIZES = {"alexnet": 224, "vgg1": 224, "inception": 96}
LOSS, CHANGE = 1e-5, 0.05


def built(name, library):
    """The framework's network, without classifiers that are for training only."""
    if library == "timm":
        return timm.create_model(name.removeprefix("timm_"), drop_rate=0.0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, **options)
    if options:
        model.aux_logits = False
        for part in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, part):
                setattr(model, part, None)
    return model


def prepared(model):
    """Random values at which every layer passes something on, and nothing is dropped."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 - 0.1)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    for module in model.modules():
        # Some frameworks begin with residual branches of zeros.
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1, generator=generator)
        if type(module).__name__ in ("Dropout", "DropPath", "StochasticDepth"):
            module.p = module.drop_prob = 0.0
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("layer_scale", "gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return model


def by_pytorch(model, images, labels):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


def by_thawline(program, folder, options):
    command = [
        program, "step", "--weights", str(folder / "model.safetensors"), "--inputs", str(folder / "batch.safetensors"),
        "--out", str(folder / "out.safetensors"), "--force", "--policy", "full", "--optimizer", "sgd", "--lr", str(LR),
        "--steps", "2", "--set", "kind:dropout? -> dropout=off", "--set", "kind:stochastic_depth? -> dropout=off", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    return [json.loads(line)["loss"] for line in done.stdout.splitlines()]


def apart(losses, exact):
    """How far apart the first loss is, and what the step changes of it, both relative."""
    changes = [first - second for first, second in (losses, exact)]
    return abs(losses[0] - exact[0]) / exact[0], abs(changes[0] - changes[1]) / abs(changes[1])


def main(program, names):
    listed = json.loads(subprocess.run([program, "models", "--json"], capture_output=True, check=True).stdout)
    listed = [one for one in listed if one["library"] in ("torchvision", "timm") and (not names or one["name"] in names)]
    agree = 0
    print("| network | losses in 64 bits | ours apart: loss, change | PyTorch's 32 bits apart | recognised |\n|---|---|---|---|---|", flush=True)
    for one in sorted(listed, key=lambda one: one["parameters"]):
        name, library = one["name"], one["library"]
        model = built(name, library)
        size = next((size for part, size in SIZES.items() if part in name), SIZE)
        torch.manual_seed(0)
        images, labels = torch.randn(IMAGES, 3, size, size), torch.randint(1000, (IMAGES,))
        prepared(model)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            save_file({n: t.contiguous().clone() for n, t in model.state_dict().items()}, folder / "model.safetensors")
            save_file({"images": images, "labels": labels}, folder / "batch.safetensors")
            exact = by_pytorch(copy.deepcopy(model).double(), images.double(), labels)
            theirs = by_pytorch(model, images, labels)
            ours, recognised = by_thawline(program, folder, []), "yes"
            if isinstance(ours, str) and "--model" in ours:
                ours, recognised = by_thawline(program, folder, ["--model", name]), "with --model"
        if isinstance(ours, str):
            difference, good = ours.replace("\n", " ")[:100] + " |", False
        else:
            (loss, change), (own_loss, own_change) = apart(ours, exact), apart(theirs, exact)
            difference = f"{loss:.1e}, {change:.1e} | {own_loss:.1e}, {own_change:.1e}"
            good = loss <= LOSS and change <= max(CHANGE, 2 * own_change)
        agree += good
        print(f"| {name} | {exact[0]:.4f} {exact[1]:.4f} | {difference}{'' if good else ' **wrong**'} | {recognised} |", flush=True)
    print(f"\n{agree} of {len(listed)} agree")
    sys.exit(agree < len(listed))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
