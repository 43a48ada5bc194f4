#!/usr/bin/env python3
"""Writes assets/graphs.zip: networks of torchvision, timm and Keras as graph files, traced from the frameworks themselves.

    python scripts/graphs/generate.py                # those of torchvision and timm, which it needs; Keras's stay as they are
    python scripts/graphs/generate.py --keras THAWLINE    # those of Keras, which it needs with torch; the others stay as they are
    python scripts/graphs/generate.py --try NAME…    # says of each network (timm/NAME or torchvision/NAME) what stands in its way

A network is traced by torch.fx, module by module, so that every layer has the name that its tensors have in a state dict. It is traced
in `eval()`, at its own size and without values. What a graph file cannot say is refused, never approximated. Beside the graph stand the
size and the preprocessing of the framework's default weights. Keras tells its networks itself, in `.keras` files: THAWLINE is the
program, whose reader of these makes the graph files.
"""

import functools
import inspect
import json
import math
import operator
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

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
alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn squeezenet1_0 squeezenet1_1
densenet121 densenet161 densenet169 densenet201 googlenet inception_v3
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
convnext_tiny convnext_small convnext_base convnext_large
""".split()
# Without those that torchvision has with the same tensors, and that compute the same: DenseNet, Inception-v3.
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
resnet10t resnet14t resnet18d resnet26d resnet26t resnet34d resnet50c resnet50d resnet50s resnet50t resnet50_gn
resnet101c resnet101d resnet101s resnet152c resnet152d resnet152s resnet200d
resnext26ts resnext50d_32x4d resnext101_32x4d resnext101_32x16d
seresnet152d seresnext26d_32x4d seresnext26t_32x4d seresnext26ts seresnext101_32x8d seresnext101_64x4d seresnext101d_32x8d
res2net50_14w_8s res2net50_26w_4s res2net50_26w_6s res2net50_26w_8s res2net50_48w_2s res2net50d
res2net101_26w_4s res2net101d res2next50
vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
inception_v4 inception_resnet_v2
dpn68 dpn68b dpn98 dpn107 dpn131
dla34 dla46_c dla60 dla60x dla60_res2net dla60_res2next dla102 dla102x dla102x2 dla169
cspresnet50 cspresnext50 cspdarknet53 darknet53 cs3darknet_m cs3darknet_l cs3darknet_x
cs3darknet_focus_s cs3darknet_focus_m cs3darknet_focus_l cs3sedarknet_l cs3sedarknet_x
vovnet39a vovnet57a ese_vovnet19b_dw ese_vovnet39b ese_vovnet57b selecsls42b selecsls60 selecsls60b
rexnet_100 rexnet_130 rexnet_150 rexnet_200 rexnet_300 rexnetr_200 rexnetr_300
ghostnet_050 ghostnet_100 ghostnet_130
repghostnet_050 repghostnet_058 repghostnet_080 repghostnet_100 repghostnet_111 repghostnet_130 repghostnet_150 repghostnet_200
mobileone_s0 mobileone_s1 mobileone_s2 mobileone_s3 mobileone_s4
hgnet_tiny hgnet_small hgnet_base hgnetv2_b4 hgnetv2_b5 hgnetv2_b6 starnet_s1 starnet_s2 starnet_s3 starnet_s4 convmixer_768_32
convnext_atto convnext_femto convnext_pico convnext_nano convnext_atto_ols convnext_femto_ols convnext_pico_ols convnext_nano_ols
convnext_tiny convnext_tiny_hnf convnext_small convnext_base convnext_large convnext_large_mlp
""".split()

# Of keras.applications, by the names that they have here. Those that are not there have tables in src/models.
KERAS = {
    "mobilenet": "MobileNet", "mobilenet_v3_small": "MobileNetV3Small", "vgg16": "VGG16", "vgg19": "VGG19",
    "resnet50_v2": "ResNet50V2", "resnet101_v2": "ResNet101V2", "resnet152_v2": "ResNet152V2", "inception_v3": "InceptionV3",
    "inception_resnet_v2": "InceptionResNetV2", "xception": "Xception", "densenet121": "DenseNet121", "densenet169": "DenseNet169",
    "densenet201": "DenseNet201", "efficientnet_v2_b0": "EfficientNetV2B0", "efficientnet_v2_b1": "EfficientNetV2B1",
    "efficientnet_v2_b2": "EfficientNetV2B2", "efficientnet_v2_b3": "EfficientNetV2B3", "efficientnet_v2_m": "EfficientNetV2M",
    "efficientnet_v2_l": "EfficientNetV2L", "convnext_tiny": "ConvNeXtTiny", "convnext_small": "ConvNeXtSmall",
    "convnext_base": "ConvNeXtBase", "convnext_large": "ConvNeXtLarge",
}  # fmt: skip

# Modules and functions that are activations, but for those with parameters.
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
    "Tanh": "tanh",
    "Mish": "mish",
    "GELUTanh": "gelu_tanh",
    F.relu: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hard_swish",
    F.hardsigmoid: "hard_sigmoid",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    F.mish: "mish",
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
# Which method of `Converter` takes a module of a class, and the attributes that it gets.
MODULES = {
    "Conv2d": ("conv", ""),
    "Conv2dSame": ("conv", ""),
    "BatchNorm1d": ("batch_norm", ""),
    "BatchNorm2d": ("batch_norm", ""),
    "BatchNormAct2d": ("batch_norm", ""),
    "GroupNorm": ("group_norm", ""),
    "GroupNorm1": ("group_norm", ""),
    "GroupNormAct": ("group_norm", ""),
    "LayerNorm": ("layer_norm", ""),
    "LayerNorm2d": ("layer_norm", ""),
    "LayerNormAct2d": ("layer_norm", ""),
    "Linear": ("linear", ""),
    "Identity": ("nothing", ""),
    "Dropout": ("dropout", "p"),
    "DropPath": ("stochastic_depth", "drop_prob"),
    "StochasticDepth": ("stochastic_depth", "p"),
    "Flatten": ("reshape", ""),
    "SelectAdaptivePool2d": ("select_pool", "pool_type"),
    "AdaptiveAvgPool2d": ("adaptive_avg_pool", "output_size"),
    "AdaptiveMaxPool2d": ("adaptive_max_pool", "output_size"),
    "MaxPool2d": ("max_pool", "kernel_size stride padding dilation ceil_mode"),
    "MaxPool2dSame": ("max_pool_same", "kernel_size stride dilation ceil_mode"),
    "AvgPool2d": ("avg_pool", "kernel_size stride padding ceil_mode count_include_pad divisor_override"),
    "ZeroPad2d": ("pad", "padding"),
    "LeakyReLU": ("leaky_relu", "negative_slope"),
    "ELU": ("elu", "alpha"),
    "GELU": ("gelu", "approximate"),
    "Softplus": ("softplus", "beta threshold"),
}
# Which one takes a call of a function, or of a method of a tensor.
CALLS = {
    operator.add: "addition",
    operator.iadd: "addition",
    torch.add: "addition",
    "add": "addition",
    operator.mul: "product",
    operator.imul: "product",
    torch.mul: "product",
    "mul": "product",
    torch.cat: "concat",
    torch.chunk: "parts",
    torch.split: "parts",
    "chunk": "parts",
    "split": "parts",
    operator.getitem: "item",
    torch.flatten: "reshape",
    torch.reshape: "reshape",
    "flatten": "reshape",
    "reshape": "reshape",
    "view": "reshape",
    "squeeze": "reshape",
    "unsqueeze": "reshape",
    torch.permute: "permute",
    "permute": "permute",
    torch.transpose: "transpose",
    "transpose": "transpose",
    "contiguous": "nothing",
    torch.mean: "mean",
    "mean": "mean",
    F.dropout: "dropout_function",
    F.pad: "pad",
    F.max_pool2d: "max_pool",
    F.avg_pool2d: "avg_pool",
    F.adaptive_avg_pool2d: "adaptive_avg_pool",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.gelu: "gelu",
    F.softplus: "softplus",
    F.layer_norm: "layer_norm_function",
}
# Modules that are not entered, either.
LEAVES = (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Upsample, nn.AvgPool2d)
# Operations whose layers have tensors in a state dict.
TRAINABLE = {"conv", "bn", "linear", "layer_norm", "group_norm", "layer_scale"}
# Modules that concatenate on behalf of the block that they stand in.
PARTS_OF_BLOCKS = {"MixedConv2d", "SequentialAppendList"}


class Refused(Exception):
    """What a graph file cannot say."""


class Traced(fx.Proxy):
    """A value of a network that is being traced. Who asks for its shape gets numbers."""

    KNOWN = {"shape", "size", "ndim", "dim", "numel", "dtype", "device", "requires_grad", "is_cuda"}

    def __getattr__(self, name):
        return getattr(self.tracer.results[self.node], name) if name in self.KNOWN else super().__getattr__(name)

    # Without these two, fx would take `x += y` for `x = x + y`.
    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class Tracer(fx.Tracer):
    """Enters all modules but those that are one layer, or one with its activation. Computes the shapes of all values."""

    def __init__(self, size):
        super().__init__()
        self.images = torch.empty(2, 3, *size, device="meta")
        self.results = {}  # of a node, a tensor without values; or several
        self.computes = False

    def is_leaf_module(self, module, name):
        kind = type(module).__name__
        return isinstance(module, LEAVES) or kind in MODULES or kind in ACTIVATIONS or kind == "BlurPool2d"

    def proxy(self, node):
        return Traced(node, self)

    def getattr(self, name, value, cache):
        return value if self.computes else super().getattr(name, value, cache)

    def call_module(self, module, forward, args, kwargs):
        if self.computes:
            return forward(*args, **kwargs)
        self.forward = forward
        return super().call_module(module, forward, args, kwargs)

    def create_proxy(self, kind, target, args, kwargs, *rest, **more):
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        result = self.results[proxy.node] = self.result(kind, target, args, kwargs)
        if isinstance(result, (tuple, list)):
            return [self.create_proxy("call_function", operator.getitem, (proxy, i), {}) for i in range(len(result))]
        return proxy if isinstance(result, torch.Tensor) else result

    def result(self, kind, target, args, kwargs):
        if kind == "placeholder":
            return self.images
        args, kwargs = fx.node.map_aggregate((args, kwargs), lambda x: self.results[x.node] if isinstance(x, fx.Proxy) else x)
        self.computes = True
        try:
            with torch.no_grad():
                if kind == "get_attr":
                    return self.root.get_parameter(target)
                if kind == "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
                return (self.forward if kind == "call_module" else target)(*args, **kwargs)
        finally:
            self.computes = False


class Value(NamedTuple):
    """What a node of the traced network gives: what a layer does, with its axes as they are called there."""

    layer: str
    axes: str = "NCHW"  # or NHWC, or NC
    image: tuple = None  # of NC, the height and width of the image that was flattened to C
    cut: int = None  # of NCHW, the groups that C is cut into, an axis
    turned: bool = False  # whether these follow the channels


class Parameter(NamedTuple):
    """A trainable value."""

    name: str


class Parts(NamedTuple):
    """What some of a node's channels are each: pairs of the first one and of how many there are."""

    of: fx.Node
    ranges: list


def pair(value):
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


def followed(node):
    """A node and all that it follows from."""
    found, unseen = set(), [node]
    while unseen:
        node = unseen.pop()
        if node not in found:
            found.add(node)
            unseen += node.all_input_nodes
    return found


class Converter:
    """A traced network, layer by layer."""

    def __init__(self, network, size):
        self.modules = dict(network.named_modules())
        self.parameters = dict(network.named_parameters())
        self.layers = []
        self.names = set()
        self.values = {}  # of a node
        tracer = Tracer(size)
        nodes = list(tracer.trace(network).nodes)
        self.results = tracer.results
        self.needed = followed(nodes[-1])
        for place, node in enumerate(nodes):
            self.at = node.target if node.op == "call_module" else self.path(node)
            try:
                self.check_in_place(node, nodes[place + 1 :])
                if node in self.needed:
                    self.convert(node)
            except Refused as refused:
                raise Refused(f"{self.at or 'the network'}: {refused}") from None

    @staticmethod
    def path(node):
        """The name of the module that a node stands in."""
        stack = node.meta.get("nn_module_stack") or {}
        paths = [value[0] if isinstance(value, tuple) else key for key, value in stack.items()]
        return paths[-1] if paths else ""

    def check_in_place(self, node, later):
        """Refuses a value that changes while others still read it by its old name."""
        if node.op == "call_module":
            changes = getattr(self.modules[node.target], "inplace", False)
        elif node.op == "call_function":
            positional = node.target in ACTIVATIONS and len(node.args) > 1 and node.args[1]
            changes = node.target in (operator.iadd, operator.imul) or node.kwargs.get("inplace") or positional
        else:
            changes = node.op == "call_method" and node.target.endswith("_")
        if changes and any(user in later and user in self.needed for user in node.args[0].users):
            raise Refused(f"`{node.args[0]}` changes in place, and is read afterwards")

    # ---- Layers ---------------------------------------------------------------------------------------------------------

    def name(self, wanted):
        name, number = wanted, 1
        while name in self.names or name in ("", "input"):
            number += 1
            name = f"{wanted}{number}"
        self.names.add(name)
        return name

    def add(self, node, op, inputs, word=None, name=None, **fields):
        """Adds a layer, which has the axes of its first input, or NC if there are only two. A function's is called by a `word`."""
        wanted = name or self.label(word or op)
        if op in TRAINABLE and wanted in self.names:
            raise Refused("its parameters are used twice")
        entry = {"name": self.name(wanted), "op": op, **fields, "inputs": [x.layer for x in inputs]}
        self.layers.append(entry)
        pooled = len(self.results[node].shape) == 2 and inputs[0].axes != "NC"
        self.values[node] = Value(entry["name"], "NC") if pooled else inputs[0]._replace(layer=entry["name"])

    def label(self, name):
        if self.of_module or not self.at:
            return self.at or name
        return f"{self.at}.{name}"

    def value(self, node):
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(value, Value) or value.cut:
            raise Refused(f"an operand `{node}` that is no image")
        return value

    def image(self, node):
        value = self.value(node)
        if value.axes != "NCHW":
            raise Refused(f"an image whose axes are {value.axes}")
        return value

    def shape(self, node):
        return list(self.results[node].shape)

    def sides(self, node):
        """Height and width."""
        return [side for axis, side in zip(self.value(node).axes, self.shape(node)) if axis in "HW"]

    def channels(self, node):
        return self.shape(node)[self.value(node).axes.index("C")]

    def pooled(self, node):
        """Whether a value has one pixel per image."""
        return self.sides(node) in ([], [1, 1]) and not self.value(node).image

    # ---- Nodes ----------------------------------------------------------------------------------------------------------

    def convert(self, node):
        self.of_module = node.op == "call_module"
        if node.op == "placeholder":
            self.values[node] = Value("input")
        elif node.op == "output":
            (self.last,) = node.args
        elif node.op == "get_attr":
            if node.target not in self.parameters:
                raise Refused(f"the constant `{node.target}`")
            self.values[node] = Parameter(node.target)
        elif self.of_module:
            if len(node.args) != 1 or node.kwargs:
                raise Refused("a module with other than one operand")
            self.module(node, self.modules[node.target], node.args[0])
        else:
            self.call(node)

    def module(self, node, module, x):
        kind = type(module).__name__
        if kind in ACTIVATIONS:
            self.add(node, "activation", [self.value(x)], act=ACTIVATIONS[kind])
        elif kind in MODULES:
            handler, attributes = MODULES[kind]
            values = [getattr(module, name) for name in attributes.split() if hasattr(module, name)]
            getattr(self, handler)(node, x, *(values if attributes else [module]))
        else:
            raise Refused(kind)

    def call(self, node):
        target = node.target.removesuffix("_") if isinstance(node.target, str) else node.target
        what = f"method {target}" if isinstance(target, str) else getattr(target, "__name__", str(target))
        if target in ACTIVATIONS:
            self.add(node, "activation", [self.value(node.args[0])], ACTIVATIONS[target], act=ACTIVATIONS[target])
            return
        if target not in CALLS:
            raise Refused(what)
        handler = getattr(self, CALLS[target])
        try:
            inspect.signature(handler).bind(node, *node.args, **node.kwargs)
        except TypeError as error:
            raise Refused(f"{what}: {error}") from None
        handler(node, *node.args, **node.kwargs)

    def nothing(self, node, x, *_):
        """What gives its operand in inference."""
        self.values[node] = self.values[x]

    def conv(self, node, x, module):
        kind = type(module).__name__
        if pair(module.dilation) != [1, 1] or module.padding_mode != "zeros":
            raise Refused(f"{kind} with dilation {module.dilation}, padding {module.padding_mode}")
        kernel, stride, groups = pair(module.kernel_size), pair(module.stride), module.groups
        each = [module.in_channels // groups, module.out_channels // groups]
        if groups > 1 and each == [1, 1] and (max(kernel) > 7 or max(stride) > 2):
            raise Refused(f"a depthwise convolution with a window of {kernel} and a stride of {stride}")
        if groups > 1 and each != [1, 1] and any(channels % 4 for channels in each):
            raise Refused(f"groups of {each[0]} input and {each[1]} output channels")
        fields = dict(channels=module.out_channels, kernel=kernel, stride=stride, padding=self.padding_of(module))
        if groups != 1:
            fields["groups"] = groups
        if module.bias is not None:
            fields["bias"] = True
        self.add(node, "conv", [self.image(x)], **fields)

    @staticmethod
    def padding_of(module):
        if type(module).__name__ == "Conv2dSame":
            return "same"
        if module.padding == "same":
            # The stride is 1. An odd one is at the bottom and on the right.
            added = [side - 1 for side in pair(module.kernel_size)]
            return [side // 2 for side in added] + [side - side // 2 for side in added]
        return [0, 0, 0, 0] if module.padding == "valid" else pair(module.padding) * 2

    def batch_norm(self, node, x, module):
        if not module.affine or not module.track_running_stats or module.momentum is None:
            raise Refused("a batch norm without parameters or running statistics")
        fields = {"eps": module.eps}
        keep = round(1.0 - module.momentum, 6)
        if keep != 0.9:
            fields["keep"] = keep
        self.add(node, "bn", [self.value(x) if self.pooled(x) else self.image(x)], **fields)
        self.behind(node, module)

    def behind(self, node, module):
        """The activation of a norm that has one."""
        name = self.at
        for inner, after in module.named_children():
            self.at = f"{name}.{inner}"
            self.module(node, after, node)
        self.at = name

    def group_norm(self, node, x, module):
        if not module.affine or module.bias is None:
            raise Refused("a group norm without parameters")
        self.add(node, "group_norm", [self.image(x)], groups=module.num_groups, eps=module.eps)
        self.behind(node, module)

    def layer_norm(self, node, x, module):
        flat = "2d" not in type(module).__name__
        if (self.value(x).axes == "NCHW") == flat or module.weight is None or module.bias is None:
            raise Refused(f"a layer norm of {self.value(x).axes}, or one without parameters")
        self.add_layer_norm(node, x, self.at, module.normalized_shape, module.eps)
        self.behind(node, module)

    def layer_norm_function(self, node, x, normalized_shape, weight=None, bias=None, eps=1e-5):
        weight, bias = self.values.get(weight), self.values.get(bias)
        if not isinstance(weight, Parameter) or not isinstance(bias, Parameter) or self.value(x).axes == "NCHW":
            raise Refused(f"a layer norm of {self.value(x).axes}, or one without parameters")
        name = weight.name.removesuffix(".weight")
        if (weight.name, bias.name) != (f"{name}.weight", f"{name}.bias"):
            raise Refused(f"a layer norm by `{weight.name}` and `{bias.name}`")
        self.add_layer_norm(node, x, name, normalized_shape, eps)

    def add_layer_norm(self, node, x, name, shape, eps):
        if list(shape) != [self.channels(x)] or self.value(x).image:
            raise Refused(f"a layer norm of {list(shape)}")
        self.add(node, "layer_norm", [self.value(x)], name=name, eps=eps)

    def linear(self, node, x, module):
        value = self.value(x)
        fields = dict(channels=module.out_features)
        if module.bias is None:
            fields["bias"] = False
        if value.axes == "NHWC":
            fields["each_pixel"] = True
        elif value.axes == "NCHW":
            raise Refused("a linear layer along the rows of an image")
        elif value.image:
            fields["flatten"] = list(value.image)
        self.add(node, "linear", [value._replace(image=None)], **fields)

    def dropout(self, node, x, rate):
        self.drop(node, x, "dropout", rate)

    def stochastic_depth(self, node, x, rate):
        self.drop(node, x, "stochastic_depth", rate)

    def drop(self, node, x, op, rate):
        if rate:
            self.add(node, op, [self.value(x)], rate=float(rate))
        else:
            self.nothing(node, x)

    def dropout_function(self, node, x, p=0.5, training=True, inplace=False):
        # The network is in `eval()`, so what acts now always does.
        if p and training:
            raise Refused("dropout that acts in inference, too")
        self.dropout(node, x, p)

    def leaky_relu(self, node, x, negative_slope=0.01, inplace=False):
        self.activation(node, x, "leaky_relu", slope=negative_slope)

    def elu(self, node, x, alpha=1.0, inplace=False):
        if alpha != 1.0:
            raise Refused(f"an ELU with alpha {alpha}")
        self.activation(node, x, "elu")

    def gelu(self, node, x, approximate="none"):
        self.activation(node, x, {"none": "gelu", "tanh": "gelu_tanh"}[approximate])

    def softplus(self, node, x, beta=1.0, threshold=20.0):
        if (beta, threshold) != (1.0, 20.0):
            raise Refused(f"a softplus with beta {beta} and threshold {threshold}")
        self.activation(node, x, "softplus")

    def activation(self, node, x, act, **fields):
        self.add(node, "activation", [self.value(x)], act, act=act, **fields)

    # ---- Pooling and padding --------------------------------------------------------------------------------------------

    def max_pool(self, node, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        if pair(dilation) != [1, 1] or return_indices or (ceil_mode and padding == "same"):
            raise Refused("max pooling with dilation or indices, or with ceil_mode and TensorFlow's padding")
        padding = padding if padding == "same" else pair(padding) * 2
        fields = {"ceil": True} if ceil_mode else {}
        window = dict(kernel=pair(kernel_size), stride=pair(stride or kernel_size), padding=padding)
        self.add(node, "max_pool", [self.image(x)], "maxpool", **window, **fields)

    def max_pool_same(self, node, x, kernel_size, stride, dilation, ceil_mode):
        self.max_pool(node, x, kernel_size, stride, "same", dilation, ceil_mode)

    def avg_pool(
        self, node, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    ):
        if divisor_override:
            raise Refused("average pooling with another divisor")
        fields = dict(kernel=pair(kernel_size), stride=pair(stride or kernel_size))
        if pair(padding) != [0, 0]:
            fields["padding"] = pair(padding) * 2
            if not count_include_pad:
                fields["count_padding"] = False
        if ceil_mode:
            fields["ceil"] = True
        self.add(node, "avg_pool", [self.image(x)], "avgpool", **fields)

    def select_pool(self, node, x, pool_type):
        if pool_type:
            self.global_pool(node, self.image(x), pool_type)
        else:
            self.reshape(node, x)

    def adaptive_avg_pool(self, node, x, output_size):
        if pair(output_size) == [1, 1]:
            self.global_pool(node, self.image(x), "avg")
        elif pair(output_size) == self.sides(x) and self.image(x):
            self.nothing(node, x)
        else:
            raise Refused(f"adaptive average pooling of {self.sides(x)} to {pair(output_size)} pixels")

    def adaptive_max_pool(self, node, x, output_size):
        if pair(output_size) != [1, 1]:
            raise Refused(f"adaptive max pooling to {pair(output_size)} pixels")
        self.global_pool(node, self.image(x), "max")

    def mean(self, node, x, dim=None, keepdim=False):
        axes = self.value(x).axes
        if dim is None or {axes[axis] for axis in (dim if isinstance(dim, (tuple, list)) else [dim])} != {"H", "W"}:
            raise Refused(f"a mean of {axes} over {dim}")
        self.global_pool(node, self.value(x), "avg")

    def global_pool(self, node, value, pool):
        if pool not in ("avg", "max"):
            raise Refused(f"pooling by {pool}")
        self.add(node, f"global_{pool}_pool", [value], f"{pool}pool")

    def pad(self, node, x, pad, mode="constant", value=None):
        left, right, top, bottom = [*pad, 0, 0, 0, 0][:4]
        if mode != "constant" or value or any(pad[4:]) or min(pad) < 0:
            raise Refused(f"padding by {list(pad)} with {value if mode == 'constant' else mode}")
        if any(pad):
            self.add(node, "pad", [self.image(x)], padding=[top, left, bottom, right])
        else:
            self.nothing(node, x)

    # ---- Several values -------------------------------------------------------------------------------------------------

    def addition(self, node, a, b):
        if 0 in (a, b):  # A sum begins so.
            return self.nothing(node, a or b)
        x, y = self.value(a), self.value(b)
        if self.shape(a) != self.shape(b) or x._replace(layer="") != y._replace(layer=""):
            raise Refused(f"an addition of {self.shape(a)} and {self.shape(b)}")
        self.add(node, "add", [x, y])

    def product(self, node, a, b):
        if isinstance(a, (int, float)) or isinstance(self.values[a], Parameter):
            a, b = b, a
        if isinstance(b, (int, float)):
            return self.nothing(node, a) if b == 1 else self.activation(node, a, "scale_by", factor=float(b))
        if isinstance(self.values[b], Parameter):
            return self.layer_scale(node, a, b)
        if self.pooled(a) and not self.pooled(b):
            a, b = b, a
        x, y = self.value(a), self.value(b)
        if self.pooled(b) and x.axes == y.axes and self.channels(a) == self.channels(b):
            self.add(node, "scale", [x, y])
        elif self.shape(a) == self.shape(b) and x._replace(layer="") == y._replace(layer=""):
            self.add(node, "multiply", [x, y])
        else:
            raise Refused(f"a product of {self.shape(a)} and {self.shape(b)}")

    def layer_scale(self, node, x, parameter):
        """A product with a trainable value a channel, whose layer is called as the parameter."""
        name, value = self.values[parameter].name, self.value(x)
        shape = self.shape(parameter)
        wanted = [self.channels(x) if axis == "C" else 1 for axis in value.axes]
        whole = list(self.parameters[name].shape)
        if [1] * (len(wanted) - len(shape)) + shape != wanted or whole not in ([self.channels(x)], [self.channels(x), 1, 1]):
            raise Refused(f"a product of {value.axes} and the parameter `{name}` of shape {whole}")
        self.add(node, "layer_scale", [value], name=name, **({"dims": 3} if len(whole) == 3 else {}))

    def concat(self, node, tensors, dim=0):
        values = [self.value(x) for x in tensors]
        axes = {value._replace(layer="") for value in values}
        if len(axes) > 1 or values[0].image or values[0].axes[dim] != "C":
            raise Refused(f"a concatenation of {values[0].axes} along axis {dim}")
        if len(values) == 1:
            self.nothing(node, tensors[0])
        else:
            self.add(node, "concat", values)

    def parts(self, node, x, *_, **__):
        begin, ranges = 0, []
        axis = self.value(x).axes.index("C")
        for part in self.results[node]:
            ranges.append((begin, part.shape[axis]))
            begin += part.shape[axis]
        if begin != self.channels(x) or self.value(x).image:
            raise Refused("a split that is not one of channels")
        self.values[node] = Parts(x, ranges)

    def item(self, node, x, index):
        if isinstance(self.values[x], Parts):
            whole, ranges = self.values[x]
            return self.slice(node, whole, *ranges[index])
        value = self.value(x)
        index = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(part, slice) and part.step in (None, 1) for part in index) or value.image:
            raise Refused(f"the item {index}")
        cuts = dict(zip(value.axes, index))
        channels = cuts.pop("C", slice(None))
        if any(cut != slice(None) for cut in cuts.values()):
            raise Refused(f"a part of an image {index}")
        begin, end, _ = channels.indices(self.channels(x))
        self.slice(node, x, begin, end - begin)

    def slice(self, node, x, begin, channels):
        if (begin, channels) == (0, self.channels(x)):
            self.nothing(node, x)
        else:
            self.add(node, "slice", [self.value(x)], begin=begin, channels=channels)

    # ---- Axes -----------------------------------------------------------------------------------------------------------

    def reshape(self, node, x, *_, **__):
        value, before, after = self.values[x], self.shape(x), self.shape(node)
        if isinstance(value, Value) and value.cut:
            self.shuffle(node, x)
        elif isinstance(value, Parameter) or before == after:
            self.nothing(node, x)
        elif self.pooled(x) and after[:2] == [before[0], self.channels(x)] and after[2:] in ([], [1, 1]):
            self.values[node] = Value(value.layer, "NCHW" if after[2:] else "NC")
        elif value.axes == "NCHW" and after == [before[0], math.prod(before[1:])]:
            self.values[node] = Value(value.layer, "NC", image=tuple(before[2:]))
        elif value.axes == "NCHW" and len(after) == 5 and before == [after[0], after[1] * after[2], *after[3:]]:
            self.values[node] = value._replace(cut=after[1])
        else:
            raise Refused(f"a value of {before} seen as one of {after}")

    def shuffle(self, node, x):
        """The end of a channel shuffle: groups that were cut apart, and turned, become channels again."""
        n, *cut, h, w = self.shape(x)
        if self.shape(node) != [n, math.prod(cut), h, w]:
            raise Refused(f"a value of {self.shape(x)} seen as one of {self.shape(node)}")
        value = self.values[x]
        self.values[node] = value._replace(cut=None, turned=False)
        if value.turned:
            self.add(node, "shuffle", [self.values[node]], groups=value.cut)

    def permute(self, node, x, *order):
        order = list(order[0]) if isinstance(order[0], (tuple, list)) else list(order)
        value = self.values[x]
        if isinstance(value, Value) and value.cut and order == [0, 2, 1, 3, 4] and not value.turned:
            self.values[node] = value._replace(turned=True)
            return
        value = self.value(x)
        axes = "".join(value.axes[axis] for axis in order)
        if axes not in ("NCHW", "NHWC"):
            raise Refused(f"an image whose axes are {axes}")
        self.values[node] = value._replace(axes=axes)

    def transpose(self, node, x, dim0, dim1):
        order = list(range(len(self.shape(x))))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        self.permute(node, x, order)

    # ---- The file -------------------------------------------------------------------------------------------------------

    def check_end(self):
        """Refuses a network whose last product's outputs are not the classes."""
        layers = {entry["name"]: entry for entry in self.layers}
        entry = layers.get(self.value(self.last).layer)
        last = entry is self.layers[-1] and self.pooled(self.last)
        while entry and entry["op"] in ("activation", "dropout", "max_pool", "avg_pool", "global_avg_pool", "global_max_pool"):
            entry = layers.get(entry["inputs"][0])
        if not last or not entry or entry["op"] not in ("linear", "conv") or "groups" in entry:
            raise Refused("the last layer gives no classes")

    def blocks(self):
        """What one freezes as a whole: modules that add, the outermost, and those of a class that concatenates."""
        within = lambda name, modules: any(name.startswith(f"{module}.") for module in modules)
        kind = lambda name: type(self.modules[name]).__name__
        adding = self.modules_with("add")
        adding = {name for name in adding if not within(name, adding)}
        joining = {name.rpartition(".")[0] if kind(name) in PARTS_OF_BLOCKS else name for name in self.modules_with("concat")}
        # A dense block is none, but its layers are, though the first of them has nothing to concatenate.
        kinds = {kind(name) for name in joining if not any(within(other, [name]) for other in joining | adding)}
        return adding | {name for name in self.modules if kind(name) in kinds and not within(name, adding)}

    def modules_with(self, op):
        """The modules that call an operation themselves."""
        names = (entry["name"].rpartition(".")[0] for entry in self.layers if entry["op"] == op)
        return {name for name in names if name}

    def described(self):
        """The layers, with the blocks that they belong to."""
        self.check_end()
        blocks = self.blocks()
        for entry in self.layers:
            inside = [block for block in blocks if entry["name"].startswith(f"{block}.")]
            if inside:
                entry["block"] = max(inside, key=len)
        return self.layers


def graph(name, network, preprocessing):
    size = preprocessing.pop("size")
    network.eval().to("meta")
    layers = Converter(network, size).described()
    return {"thawline_graph": 1, "name": name, "size": size, **preprocessing, "layers": layers}


# Their weights are for values from -1 to 1, which the networks make of torchvision's own by `transform_input`.
TRANSFORMED = ("googlenet", "inception_v3")


def of_torchvision(name):
    weights = torchvision.models.get_model_weights(name)
    transforms = weights.IMAGENET1K_V1.transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    preprocessing = dict(
        size=[crop, crop], resize="crop", crop=crop / resize, interpolation=transforms.interpolation.value,
        mean=transforms.mean, std=transforms.std,
    )
    if name in TRANSFORMED:
        preprocessing.update(mean=[0.5] * 3, std=[0.5] * 3)
    options = {"init_weights": False} if name in TRANSFORMED else {}
    return graph(name, torchvision.models.get_model(name, **options), preprocessing)


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


PARTS = ["resize", "crop", "interpolation", "mean", "std", "bgr"]
MAKERS = {"torchvision": of_torchvision, "timm": of_timm}


def by_keras(program, name):
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.backend.clear_session()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.keras"
        getattr(keras.applications, KERAS[name])(weights=None).save(file)
        told = subprocess.run([program, "--quiet", "inspect", "--graph", file], check=True, capture_output=True, text=True)
    return json.loads(told.stdout) | {"name": f"keras_{name}"}


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
    made_by = {"torchvision": (MAKERS["torchvision"], TORCHVISION), "timm": (MAKERS["timm"], TIMM)}
    if arguments[:1] == ["--keras"]:
        made_by = {"keras": (functools.partial(by_keras, Path(arguments[1]).resolve()), KERAS)}
    index = []
    with zipfile.ZipFile(unfinished, "w") as archive, zipfile.ZipFile(out) as old:

        def write(name, value):
            # A fixed date, so that the same networks give the same file.
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            archive.writestr(entry, json.dumps(value, separators=(",", ":")), zipfile.ZIP_DEFLATED, 9)

        before = json.loads(old.read("index.json"))
        for library in ("torchvision", "timm", "keras"):
            if library not in made_by:
                for entry in (entry for entry in before if entry["library"] == library):
                    write(f"{entry['name']}.json", json.loads(old.read(f"{entry['name']}.json")))
                    index.append(entry)
                continue
            make, names = made_by[library]
            for name in names:
                made = make(name)
                write(f"{made['name']}.json", made)
                preprocessing = {part: made[part] for part in PARTS if part in made}
                index.append(dict(name=made["name"], library=library, size=made["size"][0], preprocessing=preprocessing))
        write("index.json", index)
    unfinished.replace(out)
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
