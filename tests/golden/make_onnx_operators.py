#!/usr/bin/env python3
"""Makes more of tests/golden/onnx: small networks of the operators that make_onnx.py's lack, and what onnxruntime makes of them.

    pip install numpy onnx onnxruntime onnxscript safetensors torch
    python3 tests/golden/make_onnx_operators.py

onnx 1.23, onnxruntime 1.32, onnxscript and torch 2.15 made the committed ones. Each NAME.onnx is checked with `onnx.checker`;
NAME.safetensors holds `images` [N, 3, H, W] and onnxruntime's `logits` [N, classes].

| file | how it was written |
|---|---|
| shuffle | PyTorch's old exporter, no constants folded, batch left open: channels taken apart, put together and shuffled; poolings that pad or round up; group norm |
| convnext | PyTorch's old exporter, operator set 12: layer norms and GELU written out, channels last, layer scales, an image flattened with its pixels |
| dynamo | PyTorch's new exporter, not optimised: sequences, biases of computed zeros |
| nhwc | as tf2onnx writes a Keras network: channels last between layers, transposes around convolutions, MatMul of a flattened image |
| parts | activations written out in other ways, constants multiplied and added, subtraction, several channels for each, Pad before poolings |
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).resolve().parent / "onnx"
SIZES = {"shuffle": (18, 15), "convnext": (16, 12), "dynamo": (13, 16), "nhwc": (14, 17), "parts": (11, 14)}
IMAGES = 3


class Shuffle(nn.Module):
    """ShuffleNet's block, and poolings."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(4),
        )
        self.reduce = nn.Conv2d(24, 12, 1)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.stem(x)), 0.1)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        sides = torch.split(x, [3, 5], 1)
        x = torch.cat([sides[1], x, sides[0], F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)], 1)
        x = self.reduce(x) * 0.5
        x = F.avg_pool2d(F.pad(F.elu(x), (0, 1, 0, 1)), 2, 2, ceil_mode=True)
        return self.last(x).amax([2, 3])


class ConvNeXt(nn.Module):
    """One block with channels last, one with channels first."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8, eps=1e-6)
        self.depthwise, self.norm = nn.Conv2d(8, 8, 7, 1, 3, groups=8), nn.LayerNorm(8, eps=1e-6)
        self.expand, self.project = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.gamma = nn.Parameter(torch.rand(8) + 0.5)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.weight, self.bias = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.head, self.fc = nn.Linear(8 * 4 * 3, 12, bias=False), nn.Linear(12, 5)

    def channels_first(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - u) / torch.sqrt(s + 1e-5)) + self.bias[:, None, None]

    def forward(self, x):
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        x = x + y.permute(0, 3, 1, 2)
        x = x * self.scale + self.channels_first(x)
        x = F.gelu(x, approximate="tanh")
        return self.fc(torch.tanh(self.head(x.flatten(1))))


class Dynamo(nn.Module):
    """What the new exporter writes in its own way."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(4, 4, 3, 1, 1, bias=False)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.norm = nn.GroupNorm(4, 8)
        self.mlp = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.mish(self.bn(self.stem(x)))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([self.branch(b), a], 1)
        gate = torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))
        x = F.hardswish(self.norm(x * gate))
        x = x + F.gelu(self.mlp(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.fc(F.softplus(x).mean([2, 3]))


def shaken(network, name):
    torch.manual_seed(len(name))
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def export(name, network, **options):
    options = {"input_names": ["input"], "output_names": ["output"]} | options
    image = torch.zeros(1, 3, *SIZES[name])
    path = str(FOLDER / f"{name}.onnx")
    torch.onnx.export(shaken(network, name), (image,), path, **options)
    # Where in PyTorch's sources each node comes from, and every value's shape, are most of a small file.
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    onnx.save(model, path)


def exported():
    old = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    batch = {"input": {0: "batch"}, "output": {0: "batch"}}
    torch.manual_seed(0)
    export("shuffle", Shuffle(), opset_version=17, dynamic_axes=batch, **old)
    export("convnext", ConvNeXt(), opset_version=12, dynamic_axes=batch, **old)
    open_batch = ({0: torch.export.Dim("batch")},)
    export("dynamo", Dynamo(), dynamo=True, optimize=False, external_data=False, dynamic_shapes=open_batch)


class Writer:
    """Nodes and initialisers of a network."""

    def __init__(self, seed):
        self.nodes, self.initialisers, self.rng = [], [], np.random.default_rng(seed)

    def weights(self, name, *shape, scale=None):
        scale = scale or 1 / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        return self.constant(name, (self.rng.normal(size=shape) * scale).astype(np.float32))

    def constant(self, name, value):
        self.initialisers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, op, *inputs, **attributes):
        output = f"{op.lower()}_{len(self.nodes)}"
        inputs = [self.number(x) if isinstance(x, float) else x for x in inputs]
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def number(self, value):
        return self.constant(f"number_{len(self.initialisers)}", np.float32(value))

    def save(self, name, size, output, opset):
        self.nodes[-1].output[0] = "output"
        value = lambda name, *dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, name, [value("x", "N", *size)], [value("output", "N", output)], self.initialisers)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), FOLDER / f"{name}.onnx")


def nhwc():
    w = Writer(21)
    first, last = [0, 3, 1, 2], [0, 2, 3, 1]

    def conv(x, name, out, into, groups=1, stride=1):
        window = {"kernel_shape": [3, 3], "strides": [stride] * 2, "auto_pad": "SAME_UPPER"}
        y = w("Conv", w("Transpose", x, perm=first), w.weights(f"{name}_w", out, into // groups, 3, 3), group=groups, **window)
        return w("Transpose", w("Add", y, w.weights(f"{name}_b", 1, out, 1, 1, scale=0.3)), perm=last)

    def pool(op, x, **more):
        window = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER", **more}
        return w("Transpose", w(op, w("Transpose", x, perm=first), **window), perm=last)

    x = w("Relu", conv("x", "stem", 8, 3, stride=2))
    y = conv(x, "depthwise", 8, 8, groups=8)
    y = w("Mul", y, w("Sigmoid", y))
    x = w("Concat", x, y, pool("MaxPool", x, strides=[1, 1]), axis=3)
    x = w("Mul", x, w.weights("scale", 24, scale=1))
    gate = w("ReduceMean", x, axes=[1, 2], keepdims=1)
    gate = w("Sigmoid", w("MatMul", gate, w.weights("gate", 24, 24)))
    x = pool("AveragePool", w("Mul", x, gate))
    x = w("Add", w("MatMul", x, w.weights("dense_w", 24, 6)), w.weights("dense_b", 6))
    shape = w("Shape", x)
    images = w("Slice", shape, w.constant("zero", np.array([0])), w.constant("one", np.array([1])))
    x = w("Reshape", x, w("Concat", images, w.constant("rest", np.array([-1])), axis=0))
    x = w("MatMul", x, w.weights("head_w", 4 * 5 * 6, 5))
    w("Add", x, w.weights("head_b", 5))
    w.save("nhwc", [*SIZES["nhwc"], 3], 5, 15)


def parts():
    w = Writer(22)

    def conv(x, name, out, into, kernel=1, groups=1, bias=True, **more):
        inputs = [w.weights(f"{name}.weight", out, into // groups, kernel, kernel)]
        inputs += [w.weights(f"{name}.bias", out, scale=0.3)] if bias else []
        return w("Conv", x, *inputs, group=groups, kernel_shape=[kernel, kernel], **more)

    def zeros(x, *pads):
        return w("Pad", x, w.constant(f"pads_{len(w.nodes)}", np.array(pads)))

    x = conv("x", "stem", 8, 3, 3)
    # Hard-swish, in three ways.
    clip = lambda x: w("Clip", w("Add", x, 3.0), 0.0, 6.0)
    x = w("Mul", x, w("Div", clip(x), 6.0))
    x = w("Div", w("Mul", clip(x), x), 6.0)
    x = w("Mul", x, w("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    # GELU, in two ways, and by tanh in two.
    x = conv(x, "gelu", 8, 8)
    x = w("Mul", w("Mul", x, 0.5), w("Add", w("Erf", w("Mul", x, float(np.sqrt(0.5)))), 1.0))
    x = w("Mul", x, w("Add", w("Mul", w("Erf", w("Div", x, float(np.sqrt(2)))), 0.5), 0.5))
    cube = w("Mul", w("Mul", x, x), x)
    bend = w("Mul", w("Add", w("Mul", cube, 0.044715), x), float(np.sqrt(2 / np.pi)))
    x = w("Mul", w("Mul", x, w("Add", w("Tanh", bend), 1.0)), 0.5)
    square = w("Add", w("Mul", w("Pow", x, 2.0), 0.044715), 1.0)
    x = w("Mul", 0.5, w("Mul", x, w("Add", 1.0, w("Tanh", w("Mul", float(np.sqrt(2 / np.pi)), w("Mul", x, square))))))
    # Mish, whose softplus is written out; several channels for each; a sum of three.
    x = conv(x, "mish", 4, 8, bias=False)
    x = w("Mul", x, w("Tanh", w("Log", w("Add", w("Exp", x), 1.0))))
    x = conv(x, "multiple", 12, 4, 3, groups=4, pads=[1, 1, 1, 1])
    x = w("Sum", x, w("Min", w("Max", x, 0.0), 6.0), w("Elu", x))
    # Constants multiplied and added; a difference; a shuffle of two dimensions.
    x = w("Add", w("Mul", x, 0.7), 0.25)
    x = w("Sub", w("Mul", x, w.weights("factors", 12, 1, 1, scale=1)), w.weights("offsets", 1, 12, 1, 1, scale=0.5))
    x = w("Sub", conv(x, "minuend", 12, 12), conv(x, "subtrahend", 12, 12))
    h, width = (side - 2 for side in SIZES["parts"])
    cut = w("Reshape", x, w.constant("cut", np.array([0, 4, 3, h * width])))
    x = w("Reshape", w("Transpose", cut, perm=[0, 2, 1, 3]), w.constant("whole", np.array([0, 12, h, width])))
    # Zeros that count, and zeros that are greater than what they surround.
    x = w("AveragePool", zeros(x, 0, 0, 1, 0, 0, 0, 1, 1), kernel_shape=[2, 2], strides=[2, 2], pads=[0, 1, 0, 1],
          count_include_pad=1)
    x = w("MaxPool", zeros(w("Neg", conv(x, "negative", 8, 12)), 0, 0, 0, 1, 0, 0, 2, 0), kernel_shape=[2, 2])
    x = w("InstanceNormalization", x, w.weights("instance.weight", 8, scale=1), w.weights("instance.bias", 8), epsilon=1e-3)
    x = w("MaxPool", x, kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2])
    first = w("Gather", x, w.constant("index", np.array(2)), axis=1)
    x = w("Concat", x, w("Unsqueeze", first, w.constant("axis", np.array([1]))), axis=1)
    x = w("Squeeze", w("GlobalMaxPool", x), w.constant("pixels", np.array([2, 3])))
    x = w("Gemm", x, w.weights("fc.weight", 9, 5))
    w("Identity", x)
    w.save("parts", [3, *SIZES["parts"]], 5, 17)


def run(name):
    path = FOLDER / f"{name}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    images = np.random.default_rng(len(name)).uniform(-2, 2, (IMAGES, 3, *SIZES[name])).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = images.transpose(0, 2, 3, 1) if name == "nhwc" else images
    logits = session.run(None, {session.get_inputs()[0].name: given})[0]
    save_file({"images": images, "logits": logits}, FOLDER / f"{name}.safetensors")
    print(f"{name}: {path.stat().st_size} bytes, logits {np.abs(logits).max():.3f}, {logits.std():.3f}")


if __name__ == "__main__":
    exported()
    nhwc()
    parts()
    for name in SIZES:
        run(name)
