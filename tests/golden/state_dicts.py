"""What the frameworks' own networks are: names and shapes of all tensors, strides, constants and rates.

    state_dicts.py torchvision > state_dicts/torchvision.txt    (made with torchvision 0.29)
    state_dicts.py timm > state_dicts/timm.txt                  (made with timm 1.0.31)
    state_dicts.py keras > state_dicts/keras.txt                (made with Keras 3.15)

A network is a line with what it is as a whole, a digest of its list (FNV-1a, 64 bits, over the sorted lines, each ended by a
line feed), and the list itself where it is one of a kind: one line per layer with its tensors in alphabetical order, and for
convolutions the stride.
"""

import math
import sys

from common import shipped

TORCHVISION = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d",
               "wide_resnet101_2", "resnext101_32x8d", "resnext101_64x4d", *(f"efficientnet_b{i}" for i in range(8)),
               *(f"efficientnet_v2_{size}" for size in "sml"), "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
               *shipped("torchvision")]
TIMM = [*(f"efficientnet_b{i}" for i in range(8)), *(f"tf_efficientnet_b{i}" for i in range(8)), "tf_efficientnetv2_s",
        "mobilenetv2_100", "mobilenetv3_large_100", "tf_mobilenetv3_large_100", *shipped("timm")]
KERAS = {**{f"efficientnet_b{i}": f"EfficientNetB{i}" for i in range(8)}, "efficientnet_v2_s": "EfficientNetV2S",
         "mobilenet_v2": "MobileNetV2", "mobilenet_v3_large": "MobileNetV3Large",
         **{f"resnet{n}": f"ResNet{n}" for n in (50, 101, 152)},
         **{f"resnet{n}_v2": f"ResNet{n}V2" for n in (50, 101, 152)}, **{f"densenet{n}": f"DenseNet{n}" for n in (121, 169, 201)},
         **{f"efficientnet_v2_{v}": f"EfficientNetV2{v.upper()}" for v in ("b0", "b1", "b2", "b3", "m", "l")},
         "mobilenet": "MobileNet", "mobilenet_v3_small": "MobileNetV3Small", "vgg16": "VGG16", "vgg19": "VGG19"}
LISTED = {"resnet18", "resnext50_32x4d", "efficientnet_b0", "efficientnet_v2_s", "tf_efficientnetv2_s",
          "mobilenet_v2", "mobilenet_v3_large", "mobilenetv2_100", "mobilenetv3_large_100", "resnet50"}


def fnv(lines):
    digest = 0xCBF29CE484222325
    for byte in "".join(line + "\n" for line in lines).encode():
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return f"{digest:016x}"


def show(name, parameters, size, eps, keep, dropout, depth, layers):
    """`layers` maps a layer's name to its tensors, a mapping from names to shapes, and its stride or None."""
    one = lambda values: " ".join(f"{value:.6g}" for value in sorted(set(values)))
    lines = []
    for layer, (tensors, stride) in layers.items():
        shapes = " ".join(f"{tensor}{list(shape)}".replace(", ", ",") for tensor, shape in sorted(tensors.items()))
        lines.append(f"{layer} {shapes}" + (f" /{stride}" if stride else ""))
    lines.sort()
    rates = " ".join(f"{rate:.6f}" for rate in sorted(depth))
    print(f"# {name} | {parameters} | {size} | {one(eps)} | {one(keep)} | {one(dropout)} | {rates} | {fnv(lines)}")
    if name in LISTED:
        print("\n".join(lines))


def torch_network(name, model, size):
    from torch import nn
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    depth = [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth" and m.p > 0]
    # A block whose stride or channels change has the module and does not use it.
    for module in model.modules():
        if hasattr(module, "stochastic_depth") and not getattr(module, "use_res_connect", True) and module.stochastic_depth.p > 0:
            depth.remove(module.stochastic_depth.p)
    # Classifiers that are for training only are left out where a file is read.
    for path, module in list(model.named_modules()):
        for part in {"AuxLogits", "aux1", "aux2"} & set(dict(module.named_children())):
            setattr(module, part, None)
    drops = [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if type(model).__name__ in ("GhostNet", "RepGhostNet"):
        # It calls the function.
        drops.append(model.drop_rate)
    layers = {}
    for path, module in model.named_modules():
        tensors = {n: tuple(t.shape) for n, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        if tensors:
            layers[path] = (tensors, module.stride[0] if isinstance(module, nn.Conv2d) else None)
    show(name, sum(p.numel() for p in model.parameters()), size, [m.eps for m in norms],
         [1 - m.momentum for m in norms], drops, depth, layers)


def without_values(make, *arguments, **options):
    """What `make` makes, without the time that initial values take, if it allows that."""
    import torch
    try:
        with torch.device("meta"):
            return make(*arguments, **options)
    except (NotImplementedError, RuntimeError):
        return make(*arguments, **options)


def torchvision():
    from torchvision import models
    for name in TORCHVISION:
        size = models.get_model_weights(name).IMAGENET1K_V1.transforms().crop_size[0]
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torch_network(name, without_values(getattr(models, name), **options), size)


def timm():
    import timm
    for name in TIMM:
        model = without_values(timm.create_model, name)
        torch_network(name, model, model.pretrained_cfg["input_size"][1])


def keras():
    import keras
    for name, function in KERAS.items():
        model = getattr(keras.applications, function)(weights=None)
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        drops = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
        layers = {}
        for layer in model.layers:
            tensors = {w.name: tuple(w.shape) for w in layer.weights}
            # Normalization is preprocessing, which is not in the list of a network's layers.
            if tensors and not isinstance(layer, keras.layers.Normalization):
                layers[layer.name] = (tensors, layer.strides[0] if hasattr(layer, "strides") else None)
        size = model.input_shape[1] or 224
        trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
        show(name, trainable, size, [n.epsilon for n in norms], [n.momentum for n in norms],
             [d.rate for d in drops if d.noise_shape is None], [d.rate for d in drops if d.noise_shape], layers)


if __name__ == "__main__":
    {"torchvision": torchvision, "timm": timm, "keras": keras}[sys.argv[1]]()
