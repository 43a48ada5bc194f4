#!/usr/bin/env python3
"""Writes the PyTorch parity goldens, one JSON file a model, beside this script.

Usage: generate.py [--only SUBSTRING | --missing]    (README.md says what is in the files, and how to read them)

Each case is trained three times from the same f32 values: in f64 (the truth), in f32 as PyTorch does it (the
yardstick), and in f32 with other kernels and another memory layout (a stand-in for a foreign implementation, see
`acceptable`).
"""

import argparse
import fnmatch
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, resnet18, resnet50, wide_resnet50_2

PROJECTIONS = 4
# What a reader may allow: no further from f64 than 5x PyTorch's f32 is, over these floors in relative norm.
ALLOWED, STATE_FLOOR, GRAD_FLOOR = 5.0, 2e-5, 5e-5
# A ReLU input (or the gap between the two largest values under a max pool) nearer to zero than this many times the
# f32 error around it may fall on either side of the kink in another f32 implementation. One such element moves a
# gradient by far more than rounding does, so the images are chosen to keep clear of it.
MARGIN = 6.0
IMAGE_STREAMS = 2000


# ---- Values that both sides compute ----------------------------------------------------------------------------------


def splitmix(name, count):
    """The first `count` 64-bit outputs of the stream `name`: SplitMix64 seeded with the name's FNV-1a hash."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(name, shape):
    """Multiples of 2^-23 in [-1, 1), so exact in f32, as f64."""
    count = int(np.prod(shape))
    return ((splitmix(name, count) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0).reshape(shape)


def initial(name, module, shape):
    """The tensor `name` of `module`, computed in f64 and rounded once to f32."""
    u = uniform(name, shape)
    role = name.rsplit(".", 1)[1]
    if isinstance(module, nn.Conv2d):
        value = u * np.sqrt(6.0 / np.prod(shape[1:]))
    elif isinstance(module, nn.Linear):
        value = u / np.sqrt(shape[1]) if role == "weight" else 0.1 * u
    elif name.endswith(".bn3.weight"):
        # Under batch statistics a random bottleneck network multiplies rounding errors a hundredfold by its last layer,
        # unless its branches are weak, as training leaves them.
        value = 0.1 + 0.05 * u
    else:
        value = {
            "weight": 0.7 + 0.2 * u,
            "bias": 0.2 * u,
            "running_mean": 0.1 * u,
            "running_var": 1.0 + 0.5 * u,
        }[role]
    return torch.from_numpy(value.astype(np.float32))


def images(stream, n, h, w):
    return torch.from_numpy((2.0 * uniform(stream, (n, 3, h, w))).astype(np.float32))


def labels(n, classes):
    return torch.from_numpy(((splitmix("labels", n) >> np.uint64(33)) % np.uint64(classes)).astype(np.int64))


class Signs:
    """The rows of +1 and -1 that tensors are projected on, cut from the longest one seen so far."""

    rows = np.zeros((PROJECTIONS, 0), np.int8)

    @classmethod
    def get(cls, count):
        if count > cls.rows.shape[1]:
            bits = [splitmix(f"proj:{k}", count) >> np.uint64(63) for k in range(PROJECTIONS)]
            cls.rows = np.stack([1 - 2 * b.astype(np.int8) for b in bits])
        return cls.rows[:, :count]


def project(tensor):
    t = tensor.detach().double().contiguous().numpy().reshape(-1)
    return np.array([np.dot(row.astype(np.float64), t) for row in Signs.get(t.size)]) / np.sqrt(t.size)


# ---- Models ----------------------------------------------------------------------------------------------------------


class PolicyBatchNorm(nn.Module):
    """Batch norm whose axes are set one by one, where nn.BatchNorm2d has a single flag.

    Moments are collected in forward and committed by `commit`, once an optimiser step: the mean of the moments of the
    window's micro-batches and of their ghost batches, each of which was normalised by its own.
    """

    eps = 1e-5

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.axes = None
        self.window = []

    def forward(self, x):
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        ghost = re.fullmatch(r"ghost\((.+)\)", self.axes["domain"])
        return torch.cat([self.normalise(part) for part in x.split(int(ghost[1]) if ghost else len(x))])

    def normalise(self, x):
        # With a momentum of 1 PyTorch's kernel leaves the batch's own mean and unbiased variance in these two.
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        m = x.numel() // x.shape[1]
        assert m >= 8, f"only {m} values a channel: too few for batch statistics that can be compared"
        if self.axes["update"] != "off":
            self.window.append((mean, var * ((m - 1) / m) if self.axes["var"] == "biased" else var))
        if self.axes["stats"] == "running":
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        elif self.axes["stats"] != "batch":
            kind, bounds = re.fullmatch(r"(blend|renorm)\((.+)\)", self.axes["stats"]).groups()
            y = getattr(self, kind)(x, *map(float, bounds.split(",")))
        return y

    def blend(self, x, alpha):
        var, mean = torch.var_mean(x, (0, 2, 3), unbiased=False)
        mean = (1.0 - alpha) * self.running_mean + alpha * mean
        var = (1.0 - alpha) * self.running_var + alpha * var
        return self.affine((x - row(mean)) / row(var + self.eps).sqrt())

    def renorm(self, x, r_max, d_max):
        var, mean = torch.var_mean(x, (0, 2, 3), unbiased=False)
        sigma, running_sigma = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r = (sigma / running_sigma).clamp(1.0 / r_max, r_max).detach()
        d = ((mean - self.running_mean) / running_sigma).clamp(-d_max, d_max).detach()
        return self.affine((x - row(mean)) / row(sigma) * row(r) + row(d))

    def affine(self, x):
        return x * row(self.weight) + row(self.bias)

    def commit(self):
        if not self.window:
            return
        self.num_batches_tracked += 1
        if self.axes["update"] == "cumulative":
            keep = 1.0 - 1.0 / self.num_batches_tracked.item()
        else:
            keep = float(re.fullmatch(r"ema\((.+)\)", self.axes["update"])[1])
        for running, moments in zip((self.running_mean, self.running_var), zip(*self.window)):
            running.mul_(keep).add_((1.0 - keep) * sum(moments) / len(moments))
        self.window = []


def row(vector):
    """A value a channel, to be spread over [N, C, H, W]."""
    return vector.reshape(1, -1, 1, 1)


class ResNetTiny(nn.Module):
    """Three stages of two basic blocks, 16/32/64 channels, a 3x3 stem and no max pool: 15 batch norms."""

    def __init__(self, num_classes, norm_layer):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = norm_layer(16)
        self.relu = nn.ReLU()
        self.layer1 = self.stage(16, 16, 1, norm_layer)
        self.layer2 = self.stage(16, 32, 2, norm_layer)
        self.layer3 = self.stage(32, 64, 2, norm_layer)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def stage(inputs, channels, stride, norm_layer):
        downsample = None
        if stride != 1:
            downsample = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), norm_layer(channels))
        return nn.Sequential(
            BasicBlock(inputs, channels, stride, downsample, norm_layer=norm_layer),
            BasicBlock(channels, channels, norm_layer=norm_layer),
        )

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


MODELS = {
    "resnet_tiny": ResNetTiny,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wide_resnet50_2": wide_resnet50_2,
}
INITIAL_STATES = {}
NETS = {}


def build(model, classes, norm_layer, dtype, layout):
    """The network in its initial state. The same one is handed out each time: most of the cost is in making it."""
    key = (model, classes, norm_layer, dtype, layout)
    if key not in NETS:
        NETS[key] = MODELS[model](num_classes=classes, norm_layer=norm_layer).to(dtype=dtype, memory_format=layout)
    net = NETS[key]
    if (model, classes) not in INITIAL_STATES:
        modules = dict(net.named_modules())
        INITIAL_STATES[model, classes] = {
            name: torch.zeros_like(value) if name.endswith("num_batches_tracked") else
            initial(name, modules[name.rsplit(".", 1)[0]], tuple(value.shape))
            for name, value in net.state_dict().items()
        }
    net.load_state_dict(INITIAL_STATES[model, classes])
    return net


# ---- Policies --------------------------------------------------------------------------------------------------------

RECIPES = {  # weights of convolutions, stats, update, affine
    "full": ("train", "batch", "ema(0.9)", "both"),
    "full-frozen-bn": ("train", "running", "off", "none"),
    "keras-guide": ("train", "running", "off", "both"),
    "head": ("frozen", "running", "off", "none"),
    "bn-only": ("frozen", "batch", "ema(0.9)", "both"),
    "bn-affine": ("frozen", "running", "off", "both"),
    "head-adapt": ("frozen", "batch", "ema(0.9)", "none"),
}
FURTHER_RECIPES = {  # those that nn.BatchNorm2d has no word for; the last is the domain
    "full-renorm": ("train", "renorm(3,5)", "ema(0.9)", "both", "batch"),
    "full-ghost": ("train", "batch", "ema(0.9)", "both", "ghost(8)"),
    "bn-blend": ("frozen", "blend(0.5)", "ema(0.9)", "both", "batch"),
}


def layers_of(net):
    kinds = {nn.Conv2d: "conv", nn.Linear: "linear", PolicyBatchNorm: "bn", nn.BatchNorm2d: "bn"}
    return {name: kind for name, m in net.named_modules() for cls, kind in kinds.items() if isinstance(m, cls)}


def selected(selector, layers):
    names = list(layers)
    chosen = set(names)
    for term in selector.split(" & "):
        negated, (what, value) = term.startswith("!"), term.lstrip("!").split(":")
        if what == "kind":
            hit = {n for n in names if layers[n] == value}
        elif what == "name":
            hit = {n for n in names if fnmatch.fnmatchcase(n, value)}
        elif what == "from":
            first = next(i for i, n in enumerate(names) if n == value or n.startswith(value + "."))
            hit = set(names[first:])
        else:
            raise ValueError(term)
        chosen &= set(names) - hit if negated else hit
    assert chosen, f"{selector} matches nothing"
    return chosen


def resolve(policy, sets, layers):
    """The axes of every layer. An axis that a layer's kind does not have is ignored there."""
    weights, stats, update, affine, domain = FURTHER_RECIPES.get(policy) or (*RECIPES[policy], "batch")
    axes = {}
    for name, kind in layers.items():
        if kind == "bn":
            axes[name] = {"stats": stats, "update": update, "affine": affine, "var": "unbiased", "domain": domain}
        else:
            axes[name] = {"weights": "train" if kind == "linear" else weights, "lr": "1"}
    for rule in sets:
        selector, values = rule.split(" -> ")
        for name in selected(selector, layers):
            axes[name].update(
                (a, v) for a, v in (pair.split("=") for pair in values.split(", ")) if a in axes[name]
            )
    for name, a in axes.items():
        stale = a.get("stats", "").startswith(("batch", "renorm")) and a["update"] == "off"
        assert not stale, f"{name}: stats={a['stats']}, update=off is refused"
    return axes


# ---- One training run ------------------------------------------------------------------------------------------------


class Run:
    """A case in training: `step` as often as wanted, then `finish`, then read the results."""

    def __init__(self, case, stream, dtype, other=False, norm_layer=PolicyBatchNorm):
        self.case, self.other = case, other
        layout = torch.channels_last if other else torch.contiguous_format
        self.net = build(case["model"], case["classes"], norm_layer, dtype, layout)
        self.images = images(stream, case["n"], case["h"], case["w"]).to(dtype=dtype, memory_format=layout)
        self.labels = labels(case["n"], case["classes"])
        self.axes = resolve(case["policy"], case["sets"], layers_of(self.net))
        self.losses, self.kinks = [], []
        groups = []
        for name, axes in self.axes.items():
            module = self.net.get_submodule(name)
            if "affine" in axes:
                module.axes = axes
                module.weight.requires_grad = axes["affine"] in ("gamma", "both")
                module.bias.requires_grad = axes["affine"] in ("beta", "both")
            for role, p in module.named_parameters():
                if "weights" in axes:
                    p.requires_grad = axes["weights"] == "train"
                if p.requires_grad:
                    decay = case["optimizer"]["weight_decay"] if "weights" in axes and role == "weight" else 0.0
                    rate = case["optimizer"]["lr"] * float(axes.get("lr", 1))
                    groups.append({"params": [p], "weight_decay": decay, "lr": rate})
        o = case["optimizer"]
        if o["kind"] == "sgd":
            self.optimizer = torch.optim.SGD(groups, o["lr"], momentum=o["momentum"], nesterov=o["nesterov"])
        else:
            self.optimizer = torch.optim.AdamW(groups, o["lr"], betas=(o["beta1"], o["beta2"]), eps=o["eps"])

    def logits(self):
        self.net.eval()
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=not self.other):
            return self.net(self.images)

    def forward(self):
        """The loss of each micro-batch; leaves in `kinks` what decides which way a gradient flows."""
        self.kinks = []
        hooks = []
        for module in self.net.modules():
            if isinstance(module, nn.ReLU):
                hooks.append(module.register_forward_pre_hook(self.watch_relu))
            elif isinstance(module, nn.MaxPool2d):
                hooks.append(module.register_forward_pre_hook(self.watch_max_pool))
            elif isinstance(module, PolicyBatchNorm):
                module.window = []
        self.net.train()
        parts = self.case["accumulate"]
        with torch.backends.mkldnn.flags(enabled=not self.other):
            losses = [
                F.cross_entropy(self.net(x), y, label_smoothing=self.case["label_smoothing"]) / parts
                for x, y in zip(self.images.chunk(parts), self.labels.chunk(parts))
            ]
        for hook in hooks:
            hook.remove()
        return losses

    def step(self):
        if not self.losses:
            self.logits_before = self.logits()
        losses = self.forward()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.backends.mkldnn.flags(enabled=not self.other):
            for loss in losses:
                loss.backward()
        self.losses.append(sum(loss.item() for loss in losses))
        self.optimizer.step()
        for module in self.net.modules():
            if isinstance(module, PolicyBatchNorm):
                module.commit()

    def first_forward(self):
        """What the kinks of the first forward pass depend on."""
        trainable = next(name for name, p in self.net.named_parameters() if p.requires_grad)
        shape = (self.case["model"], self.case["classes"], self.case["accumulate"], tuple(self.images.shape))
        return (*shape, trainable, tuple((a["stats"], a["domain"]) for a in self.axes.values() if "stats" in a))

    def watch_relu(self, _, inputs):
        if inputs[0].requires_grad:
            self.kinks.append(inputs[0].detach().clone().contiguous())

    def watch_max_pool(self, pool, inputs):
        """The gap between the two largest values of each window; windows of zeros pass no gradient below the ReLU."""
        x = inputs[0].detach()
        if inputs[0].requires_grad:
            padded = F.pad(x, [pool.padding] * 4, value=-1.0)
            windows = padded.unfold(2, pool.kernel_size, pool.stride).unfold(3, pool.kernel_size, pool.stride)
            top = windows.flatten(4).topk(2).values
            gap = torch.where(top[..., 0] > 0, top[..., 0] - top[..., 1], torch.ones_like(top[..., 0]))
            self.kinks.append(gap)

    def finish(self):
        """Every trained or moved tensor, by kind of result, and the names of all that must not have changed."""
        self.logits_after = self.logits()
        self.grads, self.params, self.stats, self.frozen = {}, {}, {}, []
        for name, p in self.net.named_parameters():
            if p.requires_grad:
                self.grads[name], self.params[name] = p.grad, p.detach()
            else:
                self.frozen.append(name)
        for name, b in self.net.named_buffers():
            layer, role = name.rsplit(".", 1)
            if self.axes[layer]["update"] == "off":
                self.frozen.append(name)
            elif role != "num_batches_tracked":
                self.stats[name] = b
        start = INITIAL_STATES[self.case["model"], self.case["classes"]]
        state = self.net.state_dict()
        for name in self.frozen:
            assert torch.equal(state[name].double(), start[name].double()), f"{name} moved"
        assert np.isfinite(self.losses).all() and torch.isfinite(self.logits_after).all()


def distance(a, truth):
    """||a - truth|| / ||truth||"""
    norm = truth.double().norm()
    return ((a.double() - truth.double()).norm() / norm).item()


def estimated_distance(a, truth):
    """The same from the projections alone, as a reader of the files estimates it."""
    n = truth.numel()
    return (np.sqrt(np.mean((project(a) - project(truth)) ** 2) * n) / truth.double().norm()).item()


def margin(truth, single):
    """How many times the f32 error around it the nearest kink is away."""
    least = np.inf
    for z64, z32 in zip(truth.kinks, single.kinks):
        error = (z32.double() - z64).square().mean((0, 2, 3)).sqrt().clamp_min(1e-300)
        least = min(least, (z64.abs().amin((0, 2, 3)) / error).min().item())
    return least


def results(run):
    yield from ((f"grad {n}", t, GRAD_FLOOR) for n, t in run.grads.items())
    yield from ((f"param {n}", t, STATE_FLOOR) for n, t in run.params.items())
    yield from ((f"stat {n}", t, STATE_FLOOR) for n, t in run.stats.items())
    yield "logits before", run.logits_before, STATE_FLOOR
    yield "logits after", run.logits_after, STATE_FLOOR
    yield from ((f"loss {i}", torch.tensor([x]), STATE_FLOOR) for i, x in enumerate(run.losses))


def acceptable(truth, single, foreign):
    """The worst share of what is allowed that the foreign f32 run uses up, and where."""
    worst = (0.0, "")
    for (name, t64, floor), (_, t32, _), (_, other, _) in zip(results(truth), results(single), results(foreign)):
        allowed = max(ALLOWED * distance(t32, t64), floor)
        worst = max(worst, (max(distance(other, t64), estimated_distance(other, t64)) / allowed, name))
    return worst


FIRST_MARGINS = {}


def train(case, stream):
    """The f64 and f32 runs, or None where these images bring an activation too near to a kink."""
    truth, single = Run(case, stream, torch.float64), Run(case, stream, torch.float32)
    first = (stream, truth.first_forward())
    if first not in FIRST_MARGINS:
        truth.forward()
        single.forward()
        FIRST_MARGINS[first] = margin(truth, single)
    if FIRST_MARGINS[first] < MARGIN:
        return None
    least = np.inf
    for _ in range(case["steps"]):
        truth.step()
        single.step()
        least = min(least, margin(truth, single))
        if least < MARGIN:
            return None
    foreign = Run(case, stream, torch.float32, other=True)
    for _ in range(case["steps"]):
        foreign.step()
    for run in (truth, single, foreign):
        run.finish()
    used, where = acceptable(truth, single, foreign)
    if used > 0.6:
        print(f"    {stream}: the foreign run uses {used:.2f} of what is allowed, {where}", flush=True)
        return None
    return truth, single, least, used


def check_against_batch_norm_2d():
    """PolicyBatchNorm says what nn.BatchNorm2d says, where nn.BatchNorm2d can say it."""

    class Plain(nn.BatchNorm2d):
        axes = None

        def train(self, mode=True):
            return super().train(mode and (self.axes is None or self.axes["stats"] == "batch"))

    def cumulative(channels):
        return Plain(channels, momentum=None)

    checks = [(policy, [], Plain) for policy in RECIPES] + [("full", ["kind:bn -> update=cumulative"], cumulative)]
    for policy, sets, norm in checks:
        case = tiny(policy, 3, sets=sets)
        ours = Run(case, "images", torch.float64)
        plain = Run(case, "images", torch.float64, norm_layer=norm)
        for run in (ours, plain):
            for _ in range(case["steps"]):
                run.step()
            run.finish()
        assert np.allclose(ours.losses, plain.losses, rtol=1e-12)
        counted = ours.net.state_dict()
        for name, value in plain.net.state_dict().items():
            assert torch.allclose(counted[name].double(), value.double(), rtol=1e-10, atol=1e-12), (policy, name)


def check_against_the_plain_modes():
    """At the ends of their ranges, the modes that nn.BatchNorm2d has no word for are those that it has one for."""

    def trained(axis):
        run = Run(tiny("full", 3, sets=[f"kind:bn -> {axis}"]), "images", torch.float64)
        for _ in range(3):
            run.step()
        return run.losses, {name: value.double().clone() for name, value in run.net.state_dict().items()}

    for axis, plain in [
        ("stats=renorm(1,0)", "stats=batch"),
        ("stats=blend(1)", "stats=batch"),
        ("stats=blend(0)", "stats=running"),
        ("domain=ghost(6)", "domain=batch"),
    ]:
        (losses, state), (plain_losses, plain_state) = trained(axis), trained(plain)
        assert np.allclose(losses, plain_losses, rtol=1e-12), axis
        for name, value in plain_state.items():
            assert torch.allclose(state[name], value, rtol=1e-10, atol=1e-12), (axis, name)


# ---- Cases -----------------------------------------------------------------------------------------------------------


def sgd(lr=0.05, momentum=0.9, nesterov=False, weight_decay=1e-3):
    return {"kind": "sgd", "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}


def adamw(lr=1e-3, weight_decay=0.05):
    return {"kind": "adamw", "lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": weight_decay}


def case(model, classes, n, h, w, policy, steps, sets=(), optimizer=None, tag=None, smoothing=0.0, accumulate=1):
    optimizer = optimizer or sgd()
    name = "-".join([policy] + ([tag] if tag else []) + [optimizer["kind"], str(steps)])
    return {
        "name": name,
        "model": model,
        "classes": classes,
        "n": n,
        "h": h,
        "w": w,
        "policy": policy,
        "sets": list(sets),
        "optimizer": optimizer,
        "steps": steps,
        "accumulate": accumulate,
        "label_smoothing": smoothing,
        "optional": accumulate > 1,  # PyTorch itself has no word on how a window's statistics are committed
    }


def tiny(policy, steps, n=6, h=13, w=11, **rest):
    return case("resnet_tiny", 10, n, h, w, policy, steps, **rest)


def eighteen(policy, steps, n=3, h=33, w=35, **rest):
    rest.setdefault("optimizer", sgd(lr=0.01))
    return case("resnet18", 7, n, h, w, policy, steps, **rest)


def deep(model, policy):
    return case(model, 6, 2, 33, 40, policy, 1, optimizer=sgd(lr=0.01))


FROZEN_LAYER1 = [
    "name:layer1.* -> weights=frozen",
    "kind:bn & name:layer1.* -> stats=running, update=off, affine=none",
]
GAMMA_LAYER3 = ["kind:bn & !name:layer3.* -> affine=none", "name:layer3.*bn* -> affine=gamma"]
THAW_LAYER3 = [
    "from:layer3 -> weights=train",
    "kind:bn & name:layer2.* -> stats=batch, update=ema(0.95), affine=gamma",
]
STILL_GHOST = ["kind:bn -> update=off, domain=ghost(2)", "name:layer3.* -> weights=train"]
THAW_LAYER4 = [
    "from:layer4 -> weights=train",
    "kind:bn & name:layer4.* -> stats=batch, update=ema(0.9), affine=both",
]

CASES = [
    *(tiny(policy, steps) for policy in RECIPES for steps in (1, 4)),
    *(tiny(policy, 4, optimizer=adamw()) for policy in RECIPES),
    tiny("full", 1, h=19, w=23, tag="larger"),
    tiny("full", 2, tag="nesterov", optimizer=sgd(nesterov=True)),
    tiny("full", 2, tag="smoothing", smoothing=0.1),
    tiny("full", 2, tag="accumulate", accumulate=2),
    tiny("head", 2, tag="thaw-layer3", sets=THAW_LAYER3),
    tiny("head", 2, tag="thaw-layer3", sets=THAW_LAYER3, optimizer=adamw()),
    tiny("head", 2, tag="layer2-weights", sets=["name:layer2.* -> weights=train"]),
    tiny("head", 2, tag="running-ema", sets=["kind:bn -> update=ema(0.8)"]),
    tiny("full", 2, tag="frozen-layer1", sets=FROZEN_LAYER1),
    tiny("full", 2, tag="biased", sets=["kind:bn -> var=biased"]),
    tiny("full", 3, tag="cumulative", sets=["kind:bn -> update=cumulative"]),
    tiny("full", 2, tag="conv-lr", sets=["kind:conv -> lr=0.1"]),
    tiny("full", 2, tag="conv-lr", sets=["kind:conv -> lr=0.1"], optimizer=adamw()),
    tiny("full", 2, tag="beta", sets=["kind:bn -> affine=beta"]),
    tiny("keras-guide", 2, tag="gamma-layer3", sets=GAMMA_LAYER3),
    tiny("bn-only", 2, tag="no-head", sets=["kind:linear -> weights=frozen"]),
    *(tiny(policy, steps) for policy in ("full-renorm", "bn-blend") for steps in (1, 4)),
    *(tiny("full-ghost", steps, tag="of-3", sets=["kind:bn -> domain=ghost(3)"]) for steps in (1, 4)),
    *(tiny(policy, 4, optimizer=adamw()) for policy in ("full-renorm", "bn-blend")),
    tiny("full-renorm", 3, tag="clipped", sets=["kind:bn -> stats=renorm(1.1,0.2), update=cumulative"]),
    tiny("full-renorm", 2, tag="ghost", sets=["kind:bn -> stats=renorm(1.5,0.5), domain=ghost(2)"]),
    tiny("full", 3, tag="blend", sets=["kind:bn -> stats=blend(0.2)"]),
    tiny("bn-blend", 2, tag="still-ghost", sets=STILL_GHOST),
    tiny("full", 2, tag="ghost-layer2", sets=["kind:bn & name:layer2.* -> domain=ghost(2), var=biased"]),
    tiny("bn-only", 2, tag="ghost-accumulate", sets=["kind:bn -> domain=ghost(1)"], accumulate=2),
    *(eighteen(policy, steps) for policy in RECIPES for steps in (1, 3)),
    eighteen("full", 1, optimizer=adamw(lr=1e-4)),
    eighteen("keras-guide", 1, optimizer=adamw(lr=1e-4)),
    eighteen("bn-only", 3, optimizer=adamw()),
    eighteen("head", 3, optimizer=adamw(), smoothing=0.1),
    eighteen("head", 2, tag="thaw-layer4", sets=THAW_LAYER4),
    eighteen("full", 1, tag="frozen-layer1", sets=FROZEN_LAYER1),
    eighteen("full", 1, tag="biased-layer2", sets=["kind:bn & name:layer2.* -> var=biased, update=cumulative"]),
    eighteen("bn-affine", 2, tag="beta", sets=["kind:bn -> affine=beta", "name:layer3.* -> weights=train"]),
    deep("resnet50", "full"),
    deep("resnet50", "keras-guide"),
    deep("resnet50", "bn-only"),
    deep("wide_resnet50_2", "full"),
    deep("wide_resnet50_2", "keras-guide"),
]


# ---- Files -----------------------------------------------------------------------------------------------------------


def digits(value, count):
    return float(f"{value:.{count}g}")


def summary(truth, single):
    """One tensor: its shape, the norm and projections of the f64 result, and PyTorch's own f32 distance from it."""
    return {
        "shape": list(truth.shape),
        "norm": digits(truth.double().norm().item(), 10),
        "proj": [digits(p, 10) for p in project(truth)],
        "err32": digits(distance(single, truth), 3),
    }


def record(case, stream, truth, single, least):
    def logits(t64, t32):
        return {"f64": [digits(x, 10) for x in t64.flatten().tolist()], "err32": digits(distance(t32, t64), 3)}

    def summaries(t64, t32):
        return {name: summary(t64[name], t32[name]) for name in t64}

    return {
        **case,
        "images": stream,
        "labels": "labels",
        "margin": None if np.isinf(least) else digits(least, 3),
        "loss": {"f64": [digits(x, 12) for x in truth.losses], "f32": [digits(x, 10) for x in single.losses]},
        "logits_before": logits(truth.logits_before, single.logits_before),
        "logits_after": logits(truth.logits_after, single.logits_after),
        "grads": summaries(truth.grads, single.grads),
        "params": summaries(truth.params, single.params),
        "stats": summaries(truth.stats, single.stats),
        "frozen": truth.frozen,
    }


def write(path, header, records):
    """JSON with a line a tensor and a line for any other field, so that differences can be read."""

    def field(key, value):
        if key in ("grads", "params", "stats") and value:
            rows = ",\n".join(f"    {json.dumps(n)}: {json.dumps(t, separators=(',', ':'))}" for n, t in value.items())
            return f'   "{key}": {{\n{rows}\n   }}'
        return f'   "{key}": {json.dumps(value, separators=(",", ":"))}'

    cases = ",\n".join("  {\n" + ",\n".join(field(k, v) for k, v in r.items()) + "\n  }" for r in records)
    head = "".join(f' "{k}": {json.dumps(v)},\n' for k, v in header.items())
    path.write_text(f'{{\n{head} "cases": [\n{cases}\n ]\n}}\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only cases whose 'model/name' contains this; writes nothing")
    parser.add_argument("--missing", action="store_true", help="only cases that the present files lack; adds them")
    only, missing = (args := parser.parse_args()).only, args.missing
    header = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    present = {}  # the images that the present files use are tried first: finding them took most of the time
    for model in MODELS:
        path = Path(__file__).with_name(f"{model}.json")
        if path.exists():
            golden = json.loads(path.read_text())
            present |= {f"{model}/{c['name']}": c for c in golden["cases"]}
            if missing and any(golden[package] != version for package, version in header.items()):
                sys.exit(f"{path} was made by other versions than {header}: make all cases anew")
    check_against_batch_norm_2d()
    check_against_the_plain_modes()
    print("PolicyBatchNorm agrees with nn.BatchNorm2d", flush=True)

    records = {model: [] for model in MODELS}
    ratios = []
    for c in CASES:
        label = f"{c['model']}/{c['name']}"
        if only not in label:
            continue
        if missing and label in present:
            records[c["model"]].append(present[label])
            continue
        assert c["name"] not in [r["name"] for r in records[c["model"]]], f"{label} stands twice in the list"
        start = time.time()
        streams = [f"images:{number}" for number in range(IMAGE_STREAMS)]
        for stream in [present.get(label, {}).get("images", streams[0]), *streams]:
            if outcome := train(c, stream):
                break
        else:
            sys.exit(f"{label}: no images keep clear of every kink")
        truth, single, least, used = outcome
        records[c["model"]].append(record(c, stream, truth, single, least))
        errors = [distance(b, a) for (_, a, _), (_, b, _) in zip(results(truth), results(single))]
        for (_, a, _), (_, b, _) in zip(results(truth), results(single)):
            if a.numel() > 1 and (full := distance(b, a)) > 0:
                ratios.append(estimated_distance(b, a) / full)
        print(
            f"{label}: {stream}, margin {least:.1f}, loss {truth.losses[0]:.4f} -> {truth.losses[-1]:.4f}, "
            f"f32 error median {np.median(errors):.1e} max {max(errors):.1e}, foreign {used:.2f}, "
            f"{time.time() - start:.0f} s",
            flush=True,
        )
    r = np.array(ratios)
    print(
        f"estimated / full distance of f32 over {r.size} tensors: rms {np.sqrt((r**2).mean()):.3f}, "
        f"1 % {np.quantile(r, 0.01):.2f}, median {np.median(r):.2f}, 99 % {np.quantile(r, 0.99):.2f}, max {r.max():.2f}"
    )
    if not only:
        for model, rows in records.items():
            write(Path(__file__).with_name(f"{model}.json"), {"model": model, **header}, rows)


if __name__ == "__main__":
    main()
