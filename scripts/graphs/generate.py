#!/usr/bin/env python3
"""Writes assets/graphs.zip: networks of torchvision and timm as graph files, traced from the frameworks themselves.

    python scripts/graphs/generate.py                # all of LISTS, needs torchvision and timm
    python scripts/graphs/generate.py --try NAME…    # says of each network (timm/NAME or torchvision/NAME) what stands in its way

A network is traced by torch.fx, module by module, so that every layer has the name that its tensors have in a state dict. What a
graph file cannot say is refused, never approximated. Beside the graph stand the size and the preprocessing of the framework's default
weights.
"""

import json
import operator
import sys
import zipfile
from pathlib import Path

import timm
import torch
import torchvision
from torch import fx, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
TORCHVISION = """
mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf
""".split()
TIMM = """
resnet26 seresnet18 seresnet34 seresnet50 seresnet101 seresnet152 seresnext50_32x4d seresnext101_32x4d
resnetv2_50 resnetv2_101 resnetv2_152
efficientnet_lite0 tf_efficientnet_lite0 tf_efficientnet_lite1 tf_efficientnet_lite2 tf_efficientnet_lite3 tf_efficientnet_lite4
efficientnet_es efficientnet_em efficientnet_el
tf_efficientnetv2_b0 tf_efficientnetv2_b1 tf_efficientnetv2_b2 tf_efficientnetv2_b3 tf_efficientnetv2_m tf_efficientnetv2_l
efficientnetv2_rw_t efficientnetv2_rw_s efficientnetv2_rw_m
fbnetc_100 spnasnet_100 mnasnet_100 mnasnet_small semnasnet_075 semnasnet_100
hardcorenas_a hardcorenas_b hardcorenas_c hardcorenas_d hardcorenas_e hardcorenas_f
mobilenetv2_050 mobilenetv2_110d mobilenetv2_120d mobilenetv2_140
mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_small_100 tf_mobilenetv3_small_075 tf_mobilenetv3_small_100
tf_mobilenetv3_large_075 mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_conv_large
lcnet_050 lcnet_075 lcnet_100 tinynet_a tinynet_b tinynet_c tinynet_d tinynet_e
xception41 xception65 xception71 legacy_xception
repvgg_a0 repvgg_a1 repvgg_a2 repvgg_b0 repvgg_b1 repvgg_b1g4 repvgg_b2 repvgg_b2g4 repvgg_b3 repvgg_b3g4
regnetx_002 regnetx_004 regnetx_006 regnetx_008 regnetx_016 regnetx_032 regnetx_040 regnetx_064 regnetx_080 regnetx_120
regnety_002 regnety_004 regnety_006 regnety_008 regnety_016 regnety_032 regnety_040 regnety_064 regnety_080 regnety_120
regnetz_b16 regnetz_c16 gernet_s gernet_m gernet_l
""".split()

ACTIVATIONS = {
    "ReLU": "relu",
    "ReLU6": "relu6",
    "SiLU": "silu",
    "Swish": "silu",
    "Hardswish": "hard_swish",
    "HardSwish": "hard_swish",
    "Hardsigmoid": "hard_sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "Sigmoid": "sigmoid",
}
FUNCTIONS = {
    F.relu: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hard_swish",
    F.hardsigmoid: "hard_sigmoid",
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
}
ADDITIONS = {operator.add, operator.iadd, torch.add}
PRODUCTS = {operator.mul, operator.imul, torch.mul}


class Refused(Exception):
    """What a graph file cannot say."""


class Tracer(fx.Tracer):
    """Enters all modules but those that are one layer, or one with its activation."""

    def is_leaf_module(self, module, name):
        kind = type(module).__name__
        return isinstance(
            module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.Linear, nn.Dropout, nn.Identity, nn.Flatten)
        ) or kind in ACTIVATIONS or kind in (
            "SelectAdaptivePool2d", "DropPath", "StochasticDepth", "AdaptiveAvgPool2d", "AvgPool2d", "MaxPool2d", "MaxPool2dSame",
            "AvgPool2dSame", "BlurPool2d", "Upsample", "LayerNorm", "LayerNorm2d", "GroupNorm", "GroupNormAct",
        )


def pair(value):
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


class Converter:
    """A traced network, layer by layer."""

    def __init__(self, network, size):
        self.network = network
        self.modules = dict(network.named_modules())
        self.layers = []
        self.names = set()
        self.value = {}  # of a node, the layer that gives it
        self.shapes = {}
        self.constants = {}
        self.graph = Tracer().trace(network)
        propagated = fx.GraphModule(network, self.graph)
        with torch.no_grad():
            fx.passes.shape_prop.ShapeProp(propagated).propagate(torch.zeros(2, 3, *size))
        for node in propagated.graph.nodes:
            meta = node.meta.get("tensor_meta")
            if isinstance(meta, fx.passes.shape_prop.TensorMetadata):
                self.shapes[node.name] = list(meta.shape)
        self.last = None
        for node in propagated.graph.nodes:
            self.convert(node)

    def path(self, node):
        stack = node.meta.get("nn_module_stack") or {}
        paths = [value[0] if isinstance(value, tuple) else key for key, value in stack.items()]
        return paths[-1] if paths else ""

    def name(self, wanted):
        name, number = wanted, 1
        while name in self.names or name in ("", "input"):
            number += 1
            name = f"{wanted}{number}"
        self.names.add(name)
        return name

    def add(self, node, name, op, inputs, **fields):
        entry = {"name": self.name(name), "op": op, **fields, "inputs": inputs}
        self.layers.append(entry)
        if node is not None:
            self.value[node.name] = entry["name"]
        return entry["name"]

    def of(self, node):
        if not isinstance(node, fx.Node) or node.name not in self.value:
            raise Refused(f"an operand `{node}` that is no image")
        return self.value[node.name]

    def same(self, node, other):
        self.value[node.name] = self.of(other)

    def pooled(self, node):
        """Whether a value has one pixel per image."""
        shape = self.shapes.get(node.name, [])
        return len(shape) == 2 or shape[2:] == [1, 1]

    def convert(self, node):
        if node.op == "placeholder":
            self.value[node.name] = "input"
        elif node.op == "output":
            (self.last,) = node.args
        elif node.op == "call_module":
            self.module(node, node.target, self.modules[node.target])
        elif node.op == "call_function":
            self.function(node)
        elif node.op == "call_method":
            self.method(node)
        else:
            raise Refused(f"{node.op} {node.target}")

    def module(self, node, name, module):
        kind = type(module).__name__
        (x,) = node.args
        if isinstance(module, nn.Conv2d):
            self.conv(node, name, module, x)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            self.batch_norm(node, name, module, x)
        elif isinstance(module, nn.Linear):
            if len(self.shapes[x.name]) != 2:
                raise Refused(f"{name}: a linear layer of pixels")
            if module.bias is None:
                raise Refused(f"{name}: a linear layer without a bias")
            self.add(node, name, "linear", [self.of(x)], channels=module.out_features)
        elif kind in ACTIVATIONS:
            self.add(node, name, "activation", [self.of(x)], act=ACTIVATIONS[kind])
        elif kind == "Identity" or (kind in ("Dropout", "DropPath", "StochasticDepth") and not self.rate(module)):
            self.same(node, x)
        elif kind == "Dropout":
            self.add(node, name, "dropout", [self.of(x)], rate=self.rate(module))
        elif kind in ("DropPath", "StochasticDepth"):
            self.add(node, name, "stochastic_depth", [self.of(x)], rate=self.rate(module))
        elif kind == "AdaptiveAvgPool2d" and pair(module.output_size) == [1, 1]:
            self.add(node, name, "global_avg_pool", [self.of(x)])
        elif kind == "SelectAdaptivePool2d":
            if module.pool_type == "avg":
                self.add(node, name, "global_avg_pool", [self.of(x)])
            elif not module.pool_type and self.pooled(x):
                self.same(node, x)
            else:
                raise Refused(f"{name}: pooling by {module.pool_type}")
        elif kind == "Flatten" and self.pooled(x):
            self.same(node, x)
        elif kind == "MaxPool2d":
            if module.ceil_mode or pair(module.dilation) != [1, 1]:
                raise Refused(f"{name}: max pooling with ceil_mode or dilation")
            vertical, horizontal = pair(module.padding)
            self.add(
                node, name, "max_pool", [self.of(x)],
                kernel=pair(module.kernel_size), stride=pair(module.stride), padding=[vertical, horizontal] * 2,
            )
        elif kind == "AvgPool2d":
            if module.ceil_mode or pair(module.padding) != [0, 0] or module.divisor_override:
                raise Refused(f"{name}: average pooling with ceil_mode, padding or another divisor")
            self.add(node, name, "avg_pool", [self.of(x)], kernel=pair(module.kernel_size), stride=pair(module.stride))
        else:
            raise Refused(f"{name}: {kind}")

    @staticmethod
    def rate(module):
        return float(getattr(module, "p", getattr(module, "drop_prob", 0.0)) or 0.0)

    def conv(self, node, name, module, x):
        kind = type(module).__name__
        if kind not in ("Conv2d", "Conv2dSame") or pair(module.dilation) != [1, 1] or module.padding_mode != "zeros":
            raise Refused(f"{name}: {kind} with dilation {module.dilation}")
        if kind == "Conv2dSame":
            padding = "same"
        elif isinstance(module.padding, str):
            raise Refused(f"{name}: padding {module.padding}")
        else:
            vertical, horizontal = pair(module.padding)
            padding = [vertical, horizontal] * 2
        fields = dict(channels=module.out_channels, kernel=pair(module.kernel_size), stride=pair(module.stride), padding=padding)
        if module.groups != 1:
            fields["groups"] = module.groups
        if module.bias is not None:
            fields["bias"] = True
        self.add(node, name, "conv", [self.of(x)], **fields)

    def batch_norm(self, node, name, module, x):
        if not module.affine or not module.track_running_stats or module.momentum is None:
            raise Refused(f"{name}: a batch norm without parameters or running statistics")
        fields = {"eps": module.eps}
        keep = round(1.0 - module.momentum, 6)
        if keep != 0.9:
            fields["keep"] = keep
        self.add(node, name, "bn", [self.of(x)], **fields)
        for inner, after in ((n, m) for n, m in module.named_children()):
            kind = type(after).__name__
            if kind in ACTIVATIONS:
                self.add(node, f"{name}.{inner}", "activation", [self.value[node.name]], act=ACTIVATIONS[kind])
            elif kind != "Identity":
                raise Refused(f"{name}.{inner}: {kind}")

    def function(self, node):
        target, path = node.target, self.path(node)
        here = (lambda name: f"{path}.{name}" if path else name)
        if target in FUNCTIONS:
            self.add(node, here(FUNCTIONS[target]), "activation", [self.of(node.args[0])], act=FUNCTIONS[target])
        elif target in ADDITIONS and all(isinstance(arg, fx.Node) for arg in node.args[:2]):
            a, b = node.args[:2]
            if self.shapes.get(a.name) != self.shapes.get(b.name):
                raise Refused(f"{path}: an addition of {self.shapes.get(a.name)} and {self.shapes.get(b.name)}")
            self.add(node, here("add"), "add", [self.of(a), self.of(b)])
        elif target in PRODUCTS and all(isinstance(arg, fx.Node) for arg in node.args[:2]):
            a, b = node.args[:2]
            if self.pooled(a) and not self.pooled(b):
                a, b = b, a
            if not self.pooled(b) or self.shapes[a.name][1] != self.shapes[b.name][1]:
                raise Refused(f"{path}: a product of {self.shapes.get(a.name)} and {self.shapes.get(b.name)}")
            self.add(node, here("scale"), "scale", [self.of(a), self.of(b)])
        elif target is torch.flatten and self.pooled(node.args[0]):
            self.same(node, node.args[0])
        elif target is F.dropout:
            if node.kwargs.get("p", 0.5):
                raise Refused(f"{path}: dropout as a function")
            self.same(node, node.args[0])
        elif target is F.adaptive_avg_pool2d and pair(node.args[1]) == [1, 1]:
            self.add(node, here("avgpool"), "global_avg_pool", [self.of(node.args[0])])
        else:
            raise Refused(f"{path}: {getattr(target, '__name__', target)}")

    def method(self, node):
        x, path = node.args[0], self.path(node)
        axes = list(node.args[1]) if len(node.args) > 1 and isinstance(node.args[1], (tuple, list)) else None
        if node.target == "mean" and (axes in ([2, 3], [-2, -1])):
            self.add(node, f"{path}.avgpool" if path else "avgpool", "global_avg_pool", [self.of(x)])
        elif node.target in ("flatten", "contiguous") and (node.target == "contiguous" or self.pooled(x)):
            self.same(node, x)
        else:
            raise Refused(f"{path}: method {node.target}")

    def described(self):
        """The layers, with the blocks that they belong to: the modules that end in an addition."""
        if self.of(self.last) != self.layers[-1]["name"] or self.layers[-1]["op"] not in ("linear", "conv"):
            raise Refused("the last layer gives no classes")
        blocks = {entry["name"].rsplit(".", 1)[0] for entry in self.layers if entry["op"] == "add" and "." in entry["name"]}
        for entry in self.layers:
            inside = [block for block in blocks if entry["name"].startswith(block + ".")]
            if inside:
                entry["block"] = max(inside, key=len)
        return self.layers


def graph(name, network, preprocessing):
    size = preprocessing.pop("size")
    network.eval()
    layers = Converter(network, size).described()
    return {"thawline_graph": 1, "name": name, "size": size, **preprocessing, "layers": layers}


def of_torchvision(name):
    weights = torchvision.models.get_model_weights(name)
    transforms = weights.IMAGENET1K_V1.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    preprocessing = dict(
        size=[crop, crop], resize="crop", crop=crop / resize, interpolation=transforms.interpolation.value,
        mean=transforms.mean, std=transforms.std,
    )
    return graph(name, torchvision.models.get_model(name), preprocessing)


RESIZES = {"center": "crop", "squash": "stretch", "border": "pad"}


def of_timm(name):
    network = timm.create_model(name)
    cfg = network.default_cfg
    preprocessing = dict(
        size=list(cfg["input_size"][1:]), resize=RESIZES[cfg.get("crop_mode") or "center"], crop=cfg["crop_pct"],
        interpolation=cfg["interpolation"], mean=list(cfg["mean"]), std=list(cfg["std"]),
    )
    ours = f"timm_{name}" if name in torchvision.models.list_models() else name
    return graph(ours, network, preprocessing)


PARTS = ["resize", "crop", "interpolation", "mean", "std"]
MAKERS = {"torchvision": of_torchvision, "timm": of_timm}


def main(arguments):
    if arguments[:1] == ["--try"]:
        for argument in arguments[1:]:
            library, name = argument.split("/")
            try:
                made = MAKERS[library](name)
                print(f"{argument}: {len(made['layers'])} layers")
            except Exception as error:
                print(f"{argument}: {type(error).__name__}: {str(error)[:150]}")
        return
    out = ROOT / "assets" / "graphs.zip"
    unfinished = out.with_suffix(".new")
    index = []
    with zipfile.ZipFile(unfinished, "w") as archive:

        def write(name, value):
            # A fixed date, so that the same networks give the same file.
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            archive.writestr(entry, json.dumps(value, separators=(",", ":")), zipfile.ZIP_DEFLATED, 9)

        for library, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
            for name in names:
                made = MAKERS[library](name)
                write(f"{made['name']}.json", made)
                preprocessing = {part: made[part] for part in PARTS}
                index.append(dict(name=made["name"], library=library, size=made["size"][0], preprocessing=preprocessing))
        write("index.json", index)
    unfinished.replace(out)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
