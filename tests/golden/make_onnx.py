#!/usr/bin/env python3
"""Makes tests/golden/onnx: small networks as other programs' exporters write them, and what onnxruntime makes of them.

In two steps, since PyTorch's exporter and onnxruntime want different Pythons here:

    python3 tests/golden/make_onnx.py export       # needs torch and torchvision (1.13 and 0.14 made the committed ones)
    python3 tests/golden/make_onnx.py run          # needs numpy, onnx, onnxruntime and safetensors

`export` writes NAME.onnx by torch.onnx.export. `run` writes the files that torch does not write, checks every one with
`onnx.checker`, and writes NAME.safetensors: `images` [N, 3, H, W] and onnxruntime's `logits` [N, classes].

| file | how it was written |
|---|---|
| resnet | a residual network, batch norms kept, `view` to flatten |
| resnet_folded | the same as exporters write it by default: batch norms folded into convolutions |
| mobile | inverted residuals with ReLU6, squeeze-and-excitation with hard-swish and hard-sigmoid, SiLU, grouped convolution, dropout |
| lenet | convolutions, and linear layers behind an image that is flattened with its pixels |
| old | operator set 9: Clip by attributes, hard-swish as x·ReLU6(x + 3)/6, fixed batch |
| same | as tf2onnx writes a Keras network: NHWC input, SAME padding, MatMul and Add, Softmax |
| unfolded | what exporters write that fold no constants: a Pad before MaxPool, transposed weights, constants as nodes |
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "onnx"
NAMES = ["lenet", "mobile", "old", "resnet", "resnet_folded", "same", "unfolded"]
SIZES = {"lenet": (18, 18), "same": (21, 18), "old": (16, 16), "unfolded": (16, 13)}
IMAGES = {"old": 2}


def export():
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torchvision.models.resnet import BasicBlock, ResNet

    class TinyResNet(ResNet):
        def __init__(self):
            super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=5)
            self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(8)
            self.inplanes = 8
            self.layer1 = self._make_layer(BasicBlock, 8, 2)
            self.layer2 = self._make_layer(BasicBlock, 12, 1, stride=2)
            self.layer3 = self.layer4 = nn.Identity()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.avgpool(self.layer2(self.layer1(x)))
            return self.fc(x.view(x.size(0), -1))

    class SqueezeExcite(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.fc1 = nn.Conv2d(channels, 4, 1)
            self.fc2 = nn.Conv2d(4, channels, 1)
            self.act = nn.ReLU()
            self.gate = nn.Hardsigmoid()

        def forward(self, x):
            return x * self.gate(self.fc2(self.act(self.fc1(x.mean([2, 3], keepdim=True)))))

    class Inverted(nn.Module):
        def __init__(self, channels, out, stride, act, groups):
            super().__init__()
            hidden = channels * 2
            self.conv = nn.Sequential(
                nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden, eps=1e-3), act(),
                nn.Conv2d(hidden, hidden, 3, stride, 1, groups=groups or hidden, bias=False),
                nn.BatchNorm2d(hidden, eps=1e-3), act(),
            )
            self.se = SqueezeExcite(hidden)
            self.project = nn.Conv2d(hidden, out, 1, bias=False)
            self.norm = nn.BatchNorm2d(out, eps=1e-3)
            self.shortcut = stride == 1 and channels == out

        def forward(self, x):
            y = self.norm(self.project(self.se(self.conv(x))))
            return x + y if self.shortcut else y

    class Mobile(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
            self.blocks = nn.Sequential(
                Inverted(8, 8, 1, nn.ReLU6, None), Inverted(8, 12, 2, nn.Hardswish, None), Inverted(12, 12, 1, nn.SiLU, 2)
            )
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5))

        def forward(self, x):
            return self.classifier(self.pool(self.blocks(self.stem(x))))

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 3)
            self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, 16), nn.Linear(16, 5)

        def forward(self, x):
            x = F.avg_pool2d(torch.relu(self.conv1(x)), 2)
            x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
            x = F.dropout(torch.flatten(x, 1), 0.3, self.training)
            return F.log_softmax(self.fc2(torch.sigmoid(self.fc1(x))), dim=1)

    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, (3, 1), 1)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            x = self.conv1(F.pad(x, (0, 1, 0, 1)))
            x = x * F.relu6(x + 3) / 6
            x = self.conv2(x)
            x = x * (F.relu6(x + 3) / 6)
            return self.fc(F.relu6(x).mean([2, 3]))

    def write(name, network, training=torch.onnx.TrainingMode.EVAL, opset=17, batch=True):
        torch.manual_seed(len(name))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        h, w = SIZES.get(name, (32, 24))
        torch.onnx.export(
            network.eval(), torch.zeros(IMAGES.get(name, 1), 3, h, w), FOLDER / f"{name}.onnx", training=training,
            opset_version=opset, input_names=["input"], output_names=["output"],
            do_constant_folding=training == torch.onnx.TrainingMode.EVAL,
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if batch else None,
        )

    FOLDER.mkdir(exist_ok=True)
    keep = torch.onnx.TrainingMode.PRESERVE
    torch.manual_seed(0)
    resnet = TinyResNet()
    write("resnet", resnet, keep)
    write("resnet_folded", resnet)
    write("mobile", Mobile(), keep)
    write("lenet", LeNet())
    write("old", Old(), opset=9, batch=False)


def run():
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    rng = np.random.default_rng(7)

    def weights(name, *shape, rng=rng):
        scale = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        return numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), name)

    def value(name, *dims):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    def unfolded():
        own = np.random.default_rng(8)
        named = {
            "c1.w": weights("c1.w", 8, 3, 3, 3, rng=own),
            "pads": numpy_helper.from_array(np.array([0, 0, 2, 0, 0, 0, 1, 1]), "pads"),
            "c2.w": weights("c2.w", 8, 8, 3, 3, rng=own),
            "fc1.w": weights("fc1.w", 6, 8, rng=own),
            "fc2.w": weights("fc2.w", 5, 6, rng=own),
            "fc2.b": weights("fc2.b", 5, rng=own),
        }

        def constant(name):
            return helper.make_node("Constant", [], [name], value=named[name])

        nodes = [
            constant("c1.w"),
            helper.make_node("Conv", ["x", "c1.w"], ["c1"], "/conv1/Conv", pads=[1, 1, 1, 1]),
            helper.make_node("Cast", ["c1"], ["cast"], "/Cast", to=TensorProto.FLOAT),
            helper.make_node("Relu", ["cast"], ["r1"], "/relu/Relu"),
            constant("pads"),
            helper.make_node("Pad", ["r1", "pads"], ["pad"], "/Pad"),
            helper.make_node("MaxPool", ["pad"], ["p1"], "/pool/MaxPool", kernel_shape=[3, 3], strides=[2, 2],
                             pads=[0, 1, 0, 1]),
            helper.make_node("Conv", ["p1", "c2.w"], ["c2"], "/conv2/Conv"),
            helper.make_node("ReduceMean", ["c2"], ["m"], "/ReduceMean", axes=[2, 3], keepdims=0),
            helper.make_node("Flatten", ["m"], ["f"], "/Flatten", axis=-1),
            helper.make_node("Transpose", ["fc1.w"], ["fc1.t"], "/fc1/Transpose", perm=[1, 0]),
            helper.make_node("MatMul", ["f", "fc1.t"], ["fc1"], "/fc1/MatMul"),
            helper.make_node("Sigmoid", ["fc1"], ["s"], "/sigmoid/Sigmoid"),
            constant("fc2.w"),
            helper.make_node("Transpose", ["fc2.w"], ["fc2.t"], "/fc2/Transpose", perm=[1, 0]),
            helper.make_node("MatMul", ["s", "fc2.t"], ["fc2"], "/fc2/MatMul"),
            constant("fc2.b"),
            helper.make_node("Add", ["fc2.b", "fc2"], ["output"], "/fc2/Add"),
        ]
        graph = helper.make_graph(
            nodes, "unfolded", [value("x", "N", 3, 16, 13)], [value("output", "N", 5)], [named["c2.w"], named["fc1.w"]]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        onnx.save(model, FOLDER / "unfolded.onnx")

    def same():
        def window(kernel, stride, **more):
            return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "auto_pad": "SAME_UPPER", **more}

        # Values as a list, where `from_array` writes bytes.
        bias = helper.make_tensor("b1", TensorProto.FLOAT, [8], rng.normal(size=8).tolist())
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], "transpose", perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["t", "w1", "b1"], ["c1"], "net/stem/Conv2D", **window(3, 2)),
            helper.make_node("Relu", ["c1"], ["r1"], "net/stem/Relu"),
            helper.make_node("MaxPool", ["r1"], ["p1"], "net/pool/MaxPool", **window(3, 2)),
            helper.make_node("Conv", ["p1", "w2"], ["c2"], "net/dw/depthwise", group=8, **window(5, 2)),
            helper.make_node("Sigmoid", ["c2"], ["g2"], "net/dw/Sigmoid"),
            helper.make_node("Mul", ["c2", "g2"], ["s2"], "net/dw/mul"),
            helper.make_node("GlobalAveragePool", ["s2"], ["m"], "net/mean/Mean"),
            helper.make_node("Squeeze", ["m", "axes"], ["q"], "net/mean/Squeeze"),
            helper.make_node("MatMul", ["q", "w3"], ["mm"], "net/dense/MatMul"),
            helper.make_node("Add", ["mm", "b3"], ["z"], "net/dense/BiasAdd"),
            helper.make_node("Softmax", ["z"], ["output"], "net/softmax", axis=1),
        ]
        initialisers = [
            weights("w1", 8, 3, 3, 3), bias, weights("w2", 8, 1, 5, 5), weights("w3", 8, 5), weights("b3", 5),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ]
        graph = helper.make_graph(nodes, "same", [value("x", "N", 21, 18, 3)], [value("output", "N", 5)], initialisers)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), FOLDER / "same.onnx")

    same()
    unfolded()
    for path in (FOLDER / f"{name}.onnx" for name in NAMES):
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        name = path.stem
        # Logits, not what a softmax makes of them.
        last = model.graph.node[-1]
        if last.op_type in ("Softmax", "LogSoftmax"):
            model.graph.node.remove(last)
            model.graph.output[0].name = last.input[0]
        h, w = SIZES.get(name, (32, 24))
        images = rng.uniform(-2, 2, (IMAGES.get(name, 3), 3, h, w)).astype(np.float32)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        fed = images.transpose(0, 2, 3, 1) if name == "same" else images
        logits = session.run(None, {session.get_inputs()[0].name: fed})[0]
        save_file({"images": images, "logits": logits.astype(np.float32)}, FOLDER / f"{name}.safetensors")
        print(f"{name}: {path.stat().st_size} bytes, {len(model.graph.node)} nodes, logits {logits.std():.3f}")


if __name__ == "__main__":
    {"export": export, "run": run}[sys.argv[1]]()
