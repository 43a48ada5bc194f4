#!/usr/bin/env python3
"""Writes the PyTorch parity goldens, one JSON file a model, beside this script.

Usage: generate.py [--models NAMES] [--only SUBSTRING | --missing]    (README.md says what is in the files)

Each case is trained three times from the same f32 values: in f64 (the truth), in f32 as PyTorch does it (the
yardstick), and in f32 with other kernels and another memory layout (a stand-in for a foreign implementation, see
`common.foreign_share`).
"""

import argparse
import fnmatch
import json
import re
import sys
import time
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.resnet import BasicBlock
from torchvision.ops import StochasticDepth

from common import case, distance, estimated_distance, results, sgd

# An activation's input nearer to a kink (or the gap between the two largest values under a max pool nearer to zero)
# than this many times the f32 error around it may fall on either side of it in another f32 implementation. One such
# element moves a gradient by far more than rounding does, so the images are chosen to keep clear of it.
MARGIN = 6.0
KINKS = {F.relu: [0.0], F.hardtanh: [0.0, 6.0], F.hardswish: [-3.0, 3.0], F.hardsigmoid: [-3.0, 3.0]}
IMAGE_STREAMS = 2000


# ---- Models ----------------------------------------------------------------------------------------------------------


class PolicyBatchNorm(nn.Module):
    """Batch norm whose axes are set one by one, where nn.BatchNorm2d has a single flag.

    Moments are collected in forward and committed by `commit`, once an optimiser step: the mean of the moments of the
    window's micro-batches and of their ghost batches, each of which was normalised by its own.
    """

    def __init__(self, channels, eps):
        super().__init__()
        self.eps = eps
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
        if (self.axes["stats"], self.axes["update"]) == ("running", "off"):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        # With a momentum of 1 PyTorch's kernel leaves the batch's own mean and unbiased variance in these two.
        mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        m = x.numel() // x.shape[1]
        assert m >= 8, f"only {m} values per channel: too few for batch statistics that can be compared"
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

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self.stage(16, 16, 1)
        self.layer2 = self.stage(16, 32, 2)
        self.layer3 = self.stage(32, 64, 2)
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def stage(inputs, channels, stride):
        downsample = None
        if stride != 1:
            downsample = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        return nn.Sequential(BasicBlock(inputs, channels, stride, downsample), BasicBlock(channels, channels))

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def make(model, classes, norm_layer):
    """The network with `norm_layer` for its batch norms, and with nothing that drops at random."""
    options = {"aux_logits": False, "init_weights": False} if model == "inception_v3" else {}
    net = ResNetTiny(classes) if model == "resnet_tiny" else getattr(models, model)(num_classes=classes, **options)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, norm_layer(module.num_features, module.eps))
        elif isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0
    return net


INITIAL_STATES = {}
NETS = {}


def initial_state(net, model, classes, values):
    key = (model, classes, json.dumps(values))
    if key not in INITIAL_STATES:
        state = net.state_dict()

        def initial(name, value):
            if name.endswith("num_batches_tracked"):
                return torch.zeros_like(value)
            batch_norm = f"{name.rsplit('.', 1)[0]}.running_mean" in state
            return torch.from_numpy(common.initial(name, batch_norm, tuple(value.shape), values))

        INITIAL_STATES[key] = {name: initial(name, value) for name, value in state.items()}
    return INITIAL_STATES[key]


def build(model, classes, values, norm_layer, dtype, layout):
    """The network in its initial state. The same one is handed out each time: most of the cost is in making it."""
    key = (model, classes, norm_layer, dtype, layout)
    if key not in NETS:
        NETS[key] = make(model, classes, norm_layer).to(dtype=dtype, memory_format=layout)
    net = NETS[key]
    net.load_state_dict(initial_state(net, model, classes, values))
    return net


# ---- Policies --------------------------------------------------------------------------------------------------------

RECIPES = {  # weights of all but the last linear layer, stats, update, affine
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
    kinds = {
        nn.Conv2d: "conv",
        nn.Linear: "linear",
        PolicyBatchNorm: "bn",
        nn.BatchNorm2d: "bn",
        nn.LayerNorm: "layer_norm",
        nn.Dropout: "dropout",
        StochasticDepth: "stochastic_depth",
    }
    layers = {}
    for name, module in net.named_modules():
        # ConvNeXt's blocks have one as a parameter of their own, which acts before their stochastic depth.
        if isinstance(module, StochasticDepth) and hasattr(net.get_submodule(name.rpartition(".")[0]), "layer_scale"):
            layers[f"{name.rpartition('.')[0]}.layer_scale"] = "layer_scale"
        layers |= {name: kind for cls, kind in kinds.items() if isinstance(module, cls)}
    return layers


def parameters_of(net, layer, kind):
    """Role and parameter."""
    if kind == "layer_scale":
        return [("layer_scale", net.get_parameter(layer))]
    return net.get_submodule(layer).named_parameters()


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
    head = [name for name, kind in layers.items() if kind == "linear"][-1]
    for name, kind in layers.items():
        if kind in ("dropout", "stochastic_depth"):
            axes[name] = {"dropout": "on"}
        elif kind == "bn":
            axes[name] = {"stats": stats, "update": update, "affine": affine, "var": "unbiased", "domain": domain}
        else:
            axes[name] = {"weights": "train" if name == head else weights, "lr": "1"}
    for rule in sets:
        selector, values = rule.split(" -> ")
        for name in selected(selector, layers):
            axes[name].update(
                (a, v) for a, v in (pair.split("=") for pair in values.split(", ")) if a in axes[name]
            )
    for name, a in axes.items():
        assert a.get("dropout") != "on", f"{name} drops at random"
        stale = a.get("stats", "").startswith(("batch", "renorm")) and a["update"] == "off"
        assert not stale, f"{name}: stats={a['stats']}, update=off is refused"
    return axes


# ---- One training run ------------------------------------------------------------------------------------------------


class Watch(TorchFunctionMode):
    """Shows `run` what goes into activations and max pools, be they modules or functions."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in KINKS:
            self.run.watch_activation(args[0], KINKS[function])
        elif function in (F.max_pool2d, torch.max_pool2d):
            self.run.watch_max_pool(*args, **kwargs)
        return function(*args, **kwargs)


class Run:
    """A case in training: `step` as often as wanted, then `finish`, then read the results."""

    def __init__(self, case, stream, dtype, other=False, norm_layer=PolicyBatchNorm):
        self.case, self.other = case, other
        layout = torch.channels_last if other else torch.contiguous_format
        self.net = build(case["model"], case["classes"], case["values"], norm_layer, dtype, layout)
        images = torch.from_numpy(common.images(stream, case["n"], case["h"], case["w"]))
        self.images = images.to(dtype=dtype, memory_format=layout)
        self.labels = torch.from_numpy(common.labels(case["n"], case["classes"]))
        layers = layers_of(self.net)
        self.axes = resolve(case["policy"], case["sets"], layers)
        self.losses, self.kinks = [], []
        groups = []
        for name, axes in self.axes.items():
            if "affine" in axes:
                module = self.net.get_submodule(name)
                module.axes = axes
                module.weight.requires_grad = axes["affine"] in ("gamma", "both")
                module.bias.requires_grad = axes["affine"] in ("beta", "both")
            decays = layers[name] in ("conv", "linear")
            for role, p in parameters_of(self.net, name, layers[name]):
                if "weights" in axes:
                    p.requires_grad = axes["weights"] == "train"
                if p.requires_grad:
                    decay = case["optimizer"]["weight_decay"] if decays and role == "weight" else 0.0
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
        for module in self.net.modules():
            if isinstance(module, PolicyBatchNorm):
                module.window = []
        self.net.train()
        parts = self.case["accumulate"]
        with torch.backends.mkldnn.flags(enabled=not self.other), Watch(self):
            losses = [
                F.cross_entropy(self.net(x), y, label_smoothing=self.case["label_smoothing"]) / parts
                for x, y in zip(self.images.chunk(parts), self.labels.chunk(parts))
            ]
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
        values = json.dumps(self.case["values"])
        shape = (self.case["model"], self.case["classes"], values, self.case["accumulate"], tuple(self.images.shape))
        return (*shape, trainable, tuple((a["stats"], a["domain"]) for a in self.axes.values() if "stats" in a))

    def watch_activation(self, inputs, kinks):
        if inputs.requires_grad:
            self.kinks.extend(inputs.detach().double() - kink for kink in kinks)

    def watch_max_pool(self, inputs, kernel_size, stride, padding=0, dilation=1, ceil_mode=False, **_):
        """The gap between the two largest values of each window; windows of zeros pass no gradient below the ReLU."""
        assert dilation == 1 and not ceil_mode
        x = inputs.detach()
        if inputs.requires_grad:
            padded = F.pad(x, [padding] * 4, value=-1.0)
            windows = padded.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride)
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
        start = initial_state(self.net, self.case["model"], self.case["classes"], self.case["values"])
        state = self.net.state_dict()
        for name in self.frozen:
            assert torch.equal(state[name].double(), start[name].double()), f"{name} moved"
        assert np.isfinite(self.losses).all() and torch.isfinite(self.logits_after).all()


def margin(truth, single):
    """How many times the f32 error around it the nearest kink is away."""
    least = np.inf
    for z64, z32 in zip(truth.kinks, single.kinks):
        others = [0, *range(2, z64.dim())]
        error = (z32.double() - z64).square().mean(others).sqrt().clamp_min(1e-300)
        least = min(least, (z64.abs().amin(others) / error).min().item())
    return least


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
    used, where = common.foreign_share(truth, single, foreign)
    if used > common.FOREIGN:
        print(f"    {stream}: the foreign run uses {used:.2f} of what is allowed, {where}", flush=True)
        return None
    return truth, single, least, used


def infer(model, values):
    case = {"model": model, "classes": 10, "n": 2, "h": 48, "w": 40, "values": values, "images": "images"}
    x = torch.from_numpy(common.images("images", 2, 48, 40))

    def logits(dtype, layout=torch.contiguous_format, onednn=True):
        net = build(model, case["classes"], values, PolicyBatchNorm, dtype, layout).eval()
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=onednn):
            return net(x.to(dtype=dtype, memory_format=layout))

    runs = logits(torch.float64), logits(torch.float32), logits(torch.float32, torch.channels_last, onednn=False)
    NETS.clear()  # they are large, and not needed again
    INITIAL_STATES.clear()
    return common.inference_record(case, *runs)


def check_against_batch_norm_2d():
    """PolicyBatchNorm says what nn.BatchNorm2d says, where nn.BatchNorm2d can say it."""

    class Plain(nn.BatchNorm2d):
        axes = None

        def train(self, mode=True):
            return super().train(mode and (self.axes is None or self.axes["stats"] == "batch"))

    def cumulative(channels, eps):
        return Plain(channels, eps, momentum=None)

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


def adamw(lr=1e-3, weight_decay=0.05):
    return {"kind": "adamw", "lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": weight_decay}


def tiny(policy, steps, n=6, h=13, w=11, **rest):
    return case("resnet_tiny", 10, n, h, w, policy, steps, **rest)


def eighteen(policy, steps, n=3, h=33, w=35, **rest):
    rest.setdefault("optimizer", sgd(lr=0.01))
    return case("resnet18", 7, n, h, w, policy, steps, **rest)


def deep(model, policy):
    return case(model, 6, 2, 33, 40, policy, 1, optimizer=sgd(lr=0.01))


def small(model, policy, n, sets, values, lr):
    return case(model, 10, n, 32, 36, policy, 5, sets=sets, values=values, optimizer=sgd(lr=lr))


def parts(model, every, *runs, late=None):
    """Cases of one and of three steps, of which the file has every so many layers, others in each case. A run is a
    policy, the images' shape, rules, initial values, an optimiser and perhaps a tag. Three steps bring thrice as many
    activations near to their kinks as one: where that is too many, nothing before `late` trains."""
    runs = [(run, steps) for run in runs for steps in (1, 3)]
    for i, ((policy, (n, h, w), sets, values, optimizer, *tag), steps) in enumerate(runs):
        tag = tag[0] if tag else None
        if late and steps > 1 and not tag:
            sets, tag = [*sets, f"!from:{late} -> weights=frozen, affine=none"], "late"
        rest = {"sets": sets, "values": values, "optimizer": optimizer, "tag": tag}
        yield case(model, 10, n, h, w, policy, steps, part=(i % every, every), **rest)


# What the initial values must do. Under running statistics, which are not the network's own, the signal must neither
# die out nor blow up on its way: gamma is about 1 where nothing is added, and less at the end of a residual branch, and
# gates are three quarters open. ReLU6 has two kinks and a million inputs a step: where batch norms normalise by the
# batch, a beta of nearly half the way between the kinks keeps all but a few per cent of the inputs clear of both; under
# running statistics half of them lie below the lower one and a tenth above the upper one.
NO_DROPOUT = ["kind:dropout -> dropout=off"]
NO_DROPS = [*NO_DROPOUT, "kind:stochastic_depth -> dropout=off"]
KEEP_99 = ["kind:bn -> update=ema(0.99)"]


def efficientnet_values(gamma):
    return [
        ["classifier.1.weight", 0.0, 0.1],
        ["features.*.fc2.bias", 1.0, 0.5],
        ["features.?.[1-9]*.block.3.1.weight", 0.3, 0.1],
        ["*.1.weight", gamma, 0.2],
    ]


EFFICIENTNET_V2 = [
    ["classifier.1.weight", 0.0, 0.1],
    ["features.*.fc2.bias", 1.0, 0.5],
    ["features.?.[1-9]*.block.[13].1.weight", 0.3, 0.1],
    ["features.1.?.block.0.1.weight", 0.3, 0.1],
    ["*.1.weight", 0.93, 0.2],
]


def mobilenet_v2_values(offset, scale):
    return [
        ["classifier.1.weight", 0.0, 0.1],
        ["features.0.1.bias", offset, scale],
        ["features.*.conv.?.1.bias", offset, scale],
    ]


MOBILENET_V2_RUNNING = [
    ["classifier.1.weight", 0.0, 0.05],
    ["features.*.conv.3.weight", 0.8, 0.2],
    ["features.*.1.weight", 0.95, 0.2],
]
MOBILENET_V3 = [
    ["classifier.3.weight", 0.0, 0.1],
    ["features.[1-6].block.?.1.bias", 1.0, 0.5],
    ["features.*.fc2.bias", 1.0, 0.5],
    ["features.*.1.weight", 0.87, 0.2],
]
RESNEXT = [["fc.weight", 0.0, 0.1], ["*.bn3.weight", 0.5, 0.05]]

# Where batch norms normalise by the batch, a beta of one or two keeps ReLU's inputs clear of zero, as above; but not in
# front of a max pool or a transition that leads straight to further batch norms: they take away again what gamma and
# beta do, unless the ReLU clamps much of it, and leave gradients of rounding.
DENSENET = [
    ["classifier.weight", 0.0, 0.1],
    ["features.norm0.bias", -0.2, 0.3],
    ["*.denseblock1.*.norm1.bias", 1.2, 0.7],
    ["*.denseblock*.norm?.bias", 2.0, 0.7],
    ["*.transition1.norm.bias", 0.5, 0.5],
    ["*.transition[23].norm.bias", 1.5, 0.7],
]
DENSENET_RUNNING = [["classifier.weight", 0.0, 0.2], ["*norm?.weight", 1.0, 0.2]]
REGNET = [
    ["fc.weight", 0.0, 0.1],
    ["*.se.fc2.bias", 1.0, 0.5],
    ["*.f.[ab].1.bias", 2.0, 0.7],
    ["*.proj.1.bias", 2.0, 0.7],
    ["*.f.c.1.weight", 0.3, 0.1],
]
REGNET_RUNNING = [
    ["fc.weight", 0.0, 0.1],
    ["*.se.fc2.bias", 1.0, 0.5],
    ["*.f.[ab].1.weight", 1.1, 0.2],
    ["*.f.c.1.weight", 0.5, 0.1],
    ["*.1.weight", 1.0, 0.2],
]
MOBILENET_V3_SMALL = [
    ["classifier.3.weight", 0.0, 0.3],
    ["features.[1-3].block.?.1.bias", 1.0, 0.5],
    ["features.*.fc2.bias", 1.0, 0.5],
    ["features.*.1.weight", 0.87, 0.2],
]
INCEPTION = [["fc.weight", 0.0, 0.1], ["Mixed_7?.*.bn.bias", 1.5, 0.7], ["*.bn.bias", 1.0, 0.7]]
INCEPTION_RUNNING = [["fc.weight", 0.0, 0.1], ["*.bn.weight", 1.0, 0.2]]
SHUFFLENET = [
    ["fc.weight", 0.0, 0.1],
    ["stage?.*.branch1.3.bias", 1.2, 0.6],
    ["stage?.*.branch2.[16].bias", 1.2, 0.6],
    ["conv5.1.bias", 1.2, 0.6],
]
SHUFFLENET_RUNNING = [
    ["fc.weight", 0.0, 0.1],
    ["*.branch1.[13].weight", 1.0, 0.2],
    ["*.branch2.[146].weight", 1.0, 0.2],
]
# Inception's max pools have too many windows with two values that are nearly equal.
FROM_MIXED_7A = ["!from:Mixed_7a -> weights=frozen, affine=none"]
# Layer norms and layer scales have no values of their own in `common.initial`.
CONVNEXT = [
    ["*.layer_scale", 1.0, 0.5],
    ["features.0.1.weight", 1.0, 0.2],
    ["features.[246].0.weight", 1.0, 0.2],
    ["features.*.block.2.weight", 1.0, 0.2],
    ["classifier.0.weight", 1.0, 0.2],
]
NO_DEPTH = ["kind:stochastic_depth -> dropout=off"]
THAW_FEATURES_6 = ["from:features.6 -> weights=train"]
NORMS = ["kind:layer_norm -> weights=train", "kind:layer_scale -> weights=train"]

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
    small("efficientnet_b0", "full", 8, NO_DROPS, efficientnet_values(1.05), 0.002),
    small("efficientnet_b0", "keras-guide", 8, NO_DROPS, efficientnet_values(1.05), 0.001),
    small("efficientnet_b0", "bn-only", 8, NO_DROPS, efficientnet_values(1.05), 0.005),
    small("mobilenet_v2", "full", 8, NO_DROPOUT, mobilenet_v2_values(2.5, 1.0), 0.0005),
    small("mobilenet_v2", "keras-guide", 2, NO_DROPOUT, MOBILENET_V2_RUNNING, 0.0002),
    small("mobilenet_v2", "bn-only", 4, NO_DROPOUT, mobilenet_v2_values(2.0, 1.5), 0.002),
    small("mobilenet_v3_large", "full", 8, NO_DROPOUT + KEEP_99, MOBILENET_V3, 0.001),
    small("mobilenet_v3_large", "keras-guide", 4, NO_DROPOUT, MOBILENET_V3, 0.0005),
    small("mobilenet_v3_large", "bn-only", 8, NO_DROPOUT + KEEP_99, MOBILENET_V3, 0.005),
    *parts(
        "densenet121",
        5,
        ("full", (4, 32, 64), [], DENSENET, sgd(lr=0.002)),
        ("keras-guide", (2, 32, 36), [], DENSENET_RUNNING, sgd(lr=0.002)),
        ("bn-only", (4, 32, 64), [], DENSENET, sgd(lr=0.005)),
        late="features.denseblock3",
    ),
    *parts(
        "regnet_y_400mf",
        3,
        ("full", (4, 32, 64), [], REGNET, sgd(lr=0.002)),
        ("keras-guide", (2, 32, 40), [], REGNET_RUNNING, sgd(lr=0.002)),
        ("bn-only", (4, 32, 64), [], REGNET, sgd(lr=0.005)),
    ),
    *parts(
        "mobilenet_v3_small",
        3,
        ("full", (4, 32, 64), NO_DROPOUT + KEEP_99, MOBILENET_V3_SMALL, sgd(lr=0.001)),
        ("keras-guide", (2, 32, 40), NO_DROPOUT, MOBILENET_V3_SMALL, sgd(lr=0.0005)),
        ("bn-only", (4, 32, 64), NO_DROPOUT + KEEP_99, MOBILENET_V3_SMALL, sgd(lr=0.005)),
    ),
    *parts(
        "convnext_tiny",
        3,
        ("full", (3, 32, 64), NO_DEPTH, CONVNEXT, sgd(lr=0.002)),
        ("head", (3, 32, 64), NO_DEPTH + NORMS, CONVNEXT, sgd(lr=0.005), "norms"),
        ("head", (3, 32, 64), NO_DEPTH + THAW_FEATURES_6, CONVNEXT, adamw(lr=1e-4), "thaw-features.6"),
    ),
    *parts(
        "inception_v3",
        5,
        ("full", (4, 75, 107), NO_DROPOUT + FROM_MIXED_7A, INCEPTION, sgd(lr=0.002), "late"),
        ("keras-guide", (2, 75, 83), NO_DROPOUT, INCEPTION_RUNNING, sgd(lr=0.002)),
        ("bn-only", (4, 75, 107), NO_DROPOUT + FROM_MIXED_7A, INCEPTION, sgd(lr=0.005), "late"),
        late="Mixed_7a",
    ),
    *parts(
        "shufflenet_v2_x1_0",
        3,
        ("full", (4, 32, 64), [], SHUFFLENET, sgd(lr=0.0005)),
        ("keras-guide", (2, 32, 40), [], SHUFFLENET_RUNNING, sgd(lr=0.0002)),
        ("bn-only", (4, 32, 64), [], SHUFFLENET, sgd(lr=0.005)),
    ),
]

INFERENCE = [  # model, initial values
    *((f"efficientnet_b{i}", efficientnet_values(1.05 if i < 4 else 1.0)) for i in range(1, 8)),
    ("efficientnet_v2_s", EFFICIENTNET_V2),
    ("resnext50_32x4d", RESNEXT),
]


TRAINED = list(dict.fromkeys(c["model"] for c in CASES))  # a file each


# ---- Files -----------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", help="only these models' files, separated by commas; leaves the others as they are")
    parser.add_argument("--only", default="", help="only cases whose 'model/name' contains this; writes nothing")
    parser.add_argument("--missing", action="store_true", help="only cases that the present files lack; adds them")
    only, missing = (args := parser.parse_args()).only, args.missing
    wanted = args.models.split(",") if args.models else TRAINED
    if unknown := set(wanted) - set(TRAINED):
        sys.exit(f"no cases of {', '.join(unknown)}")
    header = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    present = {}  # the images that the present files use are tried first: finding them took most of the time
    for model in wanted:
        path = Path(__file__).with_name(f"{model}.json")
        if path.exists():
            golden = json.loads(path.read_text())
            present |= {f"{model}/{c['name']}": c for c in golden["cases"]}
            if missing and any(golden[package] != version for package, version in header.items()):
                sys.exit(f"{path} was made by other versions than {header}: make all cases anew")
    check_against_batch_norm_2d()
    check_against_the_plain_modes()
    print("PolicyBatchNorm agrees with nn.BatchNorm2d", flush=True)

    records = {model: [] for model in wanted}
    ratios = []
    for c in CASES:
        label = f"{c['model']}/{c['name']}"
        if only not in label or c["model"] not in wanted:
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
        records[c["model"]].append(common.record(c, stream, truth, single, least))
        pairs = [(a, b, norm) for (_, a, _, norm), (_, b, *_) in zip(results(truth), results(single))]
        errors = [distance(b, a, norm) for a, b, norm in pairs]
        for a, b, norm in pairs:
            if common.flat(a).size > 1 and (full := distance(b, a, norm)) > 0:
                ratios.append(estimated_distance(b, a, norm) / full)
        print(
            f"{label}: {stream}, margin {least:.1f}, loss {truth.losses[0]:.4f} -> {truth.losses[-1]:.4f}, "
            f"f32 error median {np.median(errors):.1e} max {max(errors):.1e}, foreign {used:.2f}, "
            f"{time.time() - start:.0f} s",
            flush=True,
        )
    inference = []
    if not args.models:
        inference = [infer(model, values) for model, values in INFERENCE if only in f"inference/{model}"]
    if ratios:
        r = np.array(ratios)
        print(
            f"estimated / full distance of f32 over {r.size} tensors: rms {np.sqrt((r**2).mean()):.3f}, "
            f"1 % {np.quantile(r, 0.01):.2f}, median {np.median(r):.2f}, 99 % {np.quantile(r, 0.99):.2f}, "
            f"max {r.max():.2f}"
        )
    if not only:
        for model, rows in records.items():
            common.write(Path(__file__).with_name(f"{model}.json"), {"model": model, **header}, rows)
        if inference:
            common.write(Path(__file__).with_name("inference.json"), header, inference)


if __name__ == "__main__":
    main()
