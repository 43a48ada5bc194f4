#!/usr/bin/env python3
"""Writes the Keras parity goldens beside this script: keras_efficientnet_b0.json and keras_inference.json.

Usage: generate_keras_goldens.py    (README.md says what is in the files; needs keras 3 and tensorflow-cpu)

Each case is trained three times from the same f32 values: in f64 (the truth), in f32 as Keras does it on TensorFlow
(the yardstick), and in f32 as XLA compiles it (a stand-in for a foreign implementation, see `common.foreign_share`). The
network that is trained bends nowhere, so any images do.
"""

import os

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import common

# What `weights="imagenet"` brings along for the Normalization layer: the variance is the square of the deviation.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Keras's defaults, which are the model's, too; `var` names what Keras 3 stores in moving_variance.
KERAS_BN = ["kind:bn -> update=ema(0.99), var=biased"]
NO_DROPS = ["kind:dropout -> dropout=off", "kind:stochastic_depth -> dropout=off"]
BATCH_NORM = keras.layers.BatchNormalization

EFFICIENTNET = [
    ["predictions.weight", 0.0, 0.1],
    ["*_se_expand.bias", 1.0, 0.5],
    ["block?[b-z]_project_bn.weight", 0.3, 0.1],
    ["*bn.weight", 1.05, 0.2],
]
MOBILENET = [["predictions.weight", 0.0, 0.1], ["*_project_BN.weight", 0.8, 0.2], ["*_BN.weight", 1.0, 0.2]]
RESNET = [["predictions.weight", 0.0, 0.1], ["*_3_bn.weight", 0.5, 0.05]]


# ---- Models ----------------------------------------------------------------------------------------------------------


def build(model, classes, h, w, dtype):
    """The network without its softmax, and with nothing that drops at random."""
    keras.config.set_floatx(dtype)
    keras.utils.clear_session()
    options = {"weights": None, "input_shape": (h, w, 3), "classes": classes, "classifier_activation": None}
    if model != "keras_efficientnet_b0":
        make = {"keras_mobilenet_v2": keras.applications.MobileNetV2, "keras_resnet50": keras.applications.ResNet50}
        return make[model](**options)
    net = keras.applications.EfficientNetB0(**options)
    for layer in net.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    normalization = next(layer for layer in net.layers if isinstance(layer, keras.layers.Normalization))
    normalization.adapt_mean.assign(MEAN)
    normalization.adapt_variance.assign(STD**2)
    normalization.finalize_state()
    return net


# A variable's role in a layer, in the words of the goldens.
ROLES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def tensors(net):
    """Every variable of layers that train, by its name in the goldens, with the order of its axes in PyTorch."""
    found = {}
    for layer in net.layers:
        if isinstance(layer, (keras.layers.Normalization, keras.layers.Dropout)):
            continue
        for variable in layer.variables:
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(variable.shape)]
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                order = (2, 3, 0, 1)
            found[f"{layer.name}.{ROLES[variable.name]}"] = (variable, order)
    return found


def initialise(net, values):
    """Sets every tensor, and returns them as they were set, in f32."""
    state = {}
    found = tensors(net)
    for name, (variable, order) in found.items():
        batch_norm = f"{name.rsplit('.', 1)[0]}.running_mean" in found
        state[name] = common.initial(name, batch_norm, tuple(variable.shape[axis] for axis in order), values)
        variable.assign(tf.constant(state[name].transpose(np.argsort(order)), variable.dtype))
    return state


def file_order(value, order):
    return np.asarray(value).transpose(order)


# ---- One training run ------------------------------------------------------------------------------------------------


class Run:
    """A case, trained."""

    def __init__(self, case, dtype, compiled=False):
        net = build(case["model"], case["classes"], case["h"], case["w"], dtype)
        start = initialise(net, case["values"])
        pixels = common.pixels("pixels", case["n"], case["h"], case["w"]).transpose(0, 2, 3, 1)
        images = tf.constant(pixels.astype(dtype))
        labels = tf.constant(common.labels(case["n"], case["classes"]))
        policy = case["policy"]
        batch_statistics = {"full": True, "keras-guide": False, "bn-only": True}[policy]
        for layer in net.layers:
            if policy == "bn-only" and not isinstance(layer, BATCH_NORM) and layer.name != "predictions":
                layer.trainable = False
        found = tensors(net)
        names = {id(variable): name for name, (variable, _) in found.items()}
        trained = net.trainable_variables
        o = case["optimizer"]
        optimizer = keras.optimizers.SGD(o["lr"], momentum=o["momentum"], nesterov=o["nesterov"])
        optimizer.build(trained)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)

        @tf.function(jit_compile=compiled)
        def step():
            with tf.GradientTape() as tape:
                loss = cross_entropy(labels, net(images, training=batch_statistics))
            gradients = tape.gradient(loss, [variable.value for variable in trained])
            optimizer.apply(gradients, trained)
            return loss, gradients

        @tf.function(jit_compile=compiled)
        def logits():
            return net(images, training=False)

        self.logits_before = logits().numpy()
        self.losses = []
        for _ in range(case["steps"]):
            loss, gradients = step()
            self.losses.append(float(loss))
        self.logits_after = logits().numpy()
        self.grads, self.params, self.stats, self.frozen = {}, {}, {}, []
        for variable, gradient in zip(trained, gradients):
            name = names[id(variable)]
            self.grads[name] = file_order(gradient, found[name][1])
        for name, (variable, order) in found.items():
            value = file_order(variable.value, order)
            if name in self.grads:
                self.params[name] = value
            elif batch_statistics and name.endswith(("running_mean", "running_var")):
                self.stats[name] = value
            else:
                assert np.array_equal(value, start[name].astype(value.dtype)), f"{name} moved"
                self.frozen.append(name)
        self.grads = {name: self.grads[name] for name in self.params}
        assert np.isfinite(self.losses).all() and np.isfinite(self.logits_after).all()


def infer(model, values):
    case = {"model": model, "classes": 10, "n": 2, "h": 48, "w": 40, "values": values, "images": "images"}
    x = common.images("images", 2, 48, 40).transpose(0, 2, 3, 1)

    def logits(dtype, compiled=False):
        net = build(model, case["classes"], case["h"], case["w"], dtype)
        initialise(net, values)
        return tf.function(net, jit_compile=compiled)(tf.constant(x.astype(dtype)), training=False).numpy()

    return common.inference_record(case, logits("float64"), logits("float32"), logits("float32", compiled=True))


# ---- What Keras does -------------------------------------------------------------------------------------------------


def check_conventions():
    """That Keras stores the biased variance, and that its momentum is PyTorch's at a constant learning rate."""
    keras.config.set_floatx("float64")
    x = tf.constant(common.uniform("x", (5, 3, 3, 2)))
    layer = BATCH_NORM(momentum=0.75)
    layer(x, training=True)
    biased = np.var(x.numpy(), (0, 1, 2))
    assert np.allclose(layer.moving_variance.numpy(), 0.75 + 0.25 * biased, rtol=1e-12)
    ours, velocity, rate, momentum = 1.0, 0.0, 0.1, 0.9
    weight = keras.Variable(ours)
    optimizer = keras.optimizers.SGD(rate, momentum=momentum)
    optimizer.build([weight])
    for gradient in (0.3, -0.7, 0.2):
        optimizer.apply([tf.constant(gradient, "float64")], [weight])
        velocity = momentum * velocity + gradient
        ours -= rate * velocity
        assert np.isclose(float(weight.value), ours, rtol=1e-7)  # the rate is an f32 variable


def main():
    check_conventions()
    header = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    records = []
    for policy, lr in (("full", 0.002), ("keras-guide", 0.001), ("bn-only", 0.005)):
        sets = NO_DROPS + (KERAS_BN if policy != "keras-guide" else [])
        optimizer = common.sgd(lr=lr, weight_decay=0.0)  # Keras's decay is another: decoupled, and of every parameter
        case = common.case(
            "keras_efficientnet_b0", 10, 8, 32, 36, policy, 5, sets=sets, values=EFFICIENTNET, optimizer=optimizer
        )
        truth, single, foreign = Run(case, "float64"), Run(case, "float32"), Run(case, "float32", compiled=True)
        used, where = common.foreign_share(truth, single, foreign)
        pairs = [(a, b, norm) for (_, a, _, norm), (_, b, *_) in zip(common.results(truth), common.results(single))]
        errors = [common.distance(b, a, norm) for a, b, norm in pairs]
        print(
            f"{case['name']}: logits {truth.logits_before.std():.2f}, loss {truth.losses[0]:.4f} -> "
            f"{truth.losses[-1]:.4f}, f32 error median {np.median(errors):.1e} max {max(errors):.1e}, "
            f"foreign {used:.2f} ({where})",
            flush=True,
        )
        assert used < common.FOREIGN, f"{policy}: choose other initial values"
        records.append({**common.record(case, "pixels", truth, single, np.inf), "bytes": True})
    inference = [infer("keras_mobilenet_v2", MOBILENET), infer("keras_resnet50", RESNET)]
    folder = Path(__file__).parent
    common.write(folder / "keras_efficientnet_b0.json", {"model": "keras_efficientnet_b0", **header}, records)
    common.write(folder / "keras_inference.json", header, inference)


if __name__ == "__main__":
    main()
