"""Writes the small Keras files in tests/golden/keras, with images and what Keras predicts for them.

Needs keras, tf_keras, tensorflow-cpu, h5py and numpy; made with keras 3.15.1, tf_keras 2.21.0 and tensorflow 2.21:

    python tests/golden/generate_keras.py [NAME ...]

The names of models, such as `flat` or `flat_tf`, make those alone. Nearly every file NAME.keras or NAME.h5 has a NAME.json beside it: images in [0, 255] as [N, H, W, 3], the logits that Keras
computes, and what `model.layers` says of every layer. Weights and images are drawn from a fixed seed, running statistics
too, so that nothing is what an untrained network has.
"""

import importlib
import json
import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import keras  # noqa: E402
import tf_keras  # noqa: E402

OUT = pathlib.Path(__file__).parent / "keras"
SIZE = 12
CLASSES = 5


def bn(k, name, **kwargs):
    return k.layers.BatchNormalization(name=name, **kwargs)


def efficientnet(k, blocks=True):
    """Rescaling, Normalization, SAME padding at stride 2, squeeze-and-excitation, stochastic depth."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="image")
    x = L.Rescaling(1 / 255.0, name="rescaling")(image)
    norm = L.Normalization(axis=-1, name="normalization")
    x = norm(x)
    x = L.ZeroPadding2D(((0, 1), (0, 1)), name="stem_conv_pad")(x)
    x = L.Conv2D(8, 3, 2, "valid", use_bias=False, name="stem_conv")(x)
    x = bn(k, "stem_bn", epsilon=1e-3)(x)
    stem = x = L.Activation("swish", name="stem_activation")(x)
    if not blocks:
        x = L.DepthwiseConv2D(3, 2, "same", use_bias=False, name="block1_dwconv")(x)
        return image, L.Activation("swish", name="top_activation")(bn(k, "top_bn")(x))
    x = L.DepthwiseConv2D(3, 1, "same", use_bias=False, name="block1_dwconv")(x)
    x = bn(k, "block1_bn")(x)
    x = L.Activation("swish", name="block1_activation")(x)
    se = L.GlobalAveragePooling2D(name="block1_se_squeeze")(x)
    se = L.Reshape((1, 1, 8), name="block1_se_reshape")(se)
    se = L.Conv2D(2, 1, padding="same", activation="swish", name="block1_se_reduce")(se)
    se = L.Conv2D(8, 1, padding="same", activation="sigmoid", name="block1_se_expand")(se)
    x = L.multiply([x, se], name="block1_se_excite")
    x = L.Conv2D(8, 1, padding="same", use_bias=False, name="block1_project_conv")(x)
    x = bn(k, "block1_project_bn")(x)
    x = L.Dropout(0.2, noise_shape=(None, 1, 1, 1), name="block1_drop")(x)
    x = L.add([x, stem], name="block1_add")
    x = L.DepthwiseConv2D(5, 2, "same", use_bias=False, name="block2_dwconv")(x)
    x = bn(k, "top_bn", momentum=0.9)(x)
    x = L.Activation("swish", name="top_activation")(x)
    return image, x


def head(k, x):
    L = k.layers
    x = L.GlobalAveragePooling2D(name="avg_pool")(x)
    x = L.Dropout(0.2, name="top_dropout")(x)
    return L.Dense(CLASSES, activation="softmax", name="predictions")(x)


def efficient(k):
    image, x = efficientnet(k)
    return k.Model(image, head(k, x), name="efficient")


def resnet(k):
    """Blue first, biased convolutions, zero padding before a convolution and before a max pool, eps 1.001e-5."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="input_1")
    x = k.applications.resnet50.preprocess_input(image)
    x = L.ZeroPadding2D(((3, 3), (3, 3)), name="conv1_pad")(x)
    x = L.Conv2D(8, 7, strides=2, use_bias=True, name="conv1_conv")(x)
    x = bn(k, "conv1_bn", axis=3, epsilon=1.001e-5)(x)
    x = L.Activation("relu", name="conv1_relu")(x)
    x = L.ZeroPadding2D(((1, 1), (1, 1)), name="pool1_pad")(x)
    x = L.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    shortcut = L.Conv2D(8, 1, name="block1_0_conv")(x)
    shortcut = bn(k, "block1_0_bn", axis=3, epsilon=1.001e-5)(shortcut)
    x = L.Conv2D(8, 3, padding="SAME", name="block1_1_conv")(x)
    x = bn(k, "block1_1_bn", axis=3, epsilon=1.001e-5)(x)
    x = L.Add(name="block1_add")([shortcut, x])
    x = L.Activation("relu", name="block1_out")(x)
    x = L.GlobalAveragePooling2D(name="avg_pool")(x)
    x = L.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return k.Model(image, x, name="resnet")


def mobilenet(k):
    """ReLU6, a correct-padding block at stride 2, logits without softmax."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="input_1")
    x = L.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="Conv1")(x)
    x = bn(k, "bn_Conv1", epsilon=1e-3, momentum=0.999)(x)
    x = L.ReLU(6.0, name="Conv1_relu")(x)
    skip = x
    x = L.Conv2D(16, 1, padding="same", use_bias=False, name="expand")(x)
    x = bn(k, "expand_BN", epsilon=1e-3, momentum=0.999)(x)
    x = L.ReLU(6.0, name="expand_relu")(x)
    x = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = bn(k, "depthwise_BN", epsilon=1e-3, momentum=0.999)(x)
    x = L.ReLU(6.0, name="depthwise_relu")(x)
    x = L.Conv2D(8, 1, padding="same", use_bias=False, name="project")(x)
    x = bn(k, "project_BN", epsilon=1e-3, momentum=0.999)(x)
    x = L.Add(name="add")([skip, x])
    x = L.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x)
    x = L.DepthwiseConv2D(3, strides=2, padding="valid", use_bias=False, name="depthwise_2")(x)
    x = bn(k, "depthwise_2_BN", epsilon=1e-3, momentum=0.999)(x)
    x = L.ReLU(6.0, name="out_relu")(x)
    x = L.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = L.AveragePooling2D(2, 1, name="mean")(x)
    x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = L.Conv2D(CLASSES, 1, name="Logits")(x)
    x = L.Flatten(name="flatten")(x)
    return k.Model(image, x, name="mobilenet")


def mobilenet_1(k):
    """A convolution as head, whose outputs a Reshape counts."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="input_1")
    x = L.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv1")(x)
    x = bn(k, "conv1_bn")(x)
    x = L.ReLU(6.0, name="conv1_relu")(x)
    x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = L.Dropout(1e-3, name="dropout")(x)
    x = L.Conv2D(CLASSES, 1, padding="same", name="conv_preds")(x)
    x = L.Reshape((CLASSES,), name="reshape_2")(x)
    x = L.Activation("softmax", name="predictions")(x)
    return k.Model(image, x, name="mobilenet_1")


def slashes(k):
    """Slashes in the names of layers, as in tf_keras's MobileNetV3; some names end in others. Keras 3 refuses them."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="image")
    x = L.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="Conv")(x)
    x = skip = L.ReLU(name="re_lu")(bn(k, "Conv/BatchNorm")(x))
    x = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="expanded_conv/depthwise")(x)
    x = L.ReLU(name="expanded_conv/re_lu")(bn(k, "expanded_conv/depthwise/BatchNorm")(x))
    se = L.GlobalAveragePooling2D(keepdims=True, name="expanded_conv/squeeze_excite/AvgPool")(x)
    se = L.Conv2D(4, 1, activation="relu", name="expanded_conv/squeeze_excite/Conv")(se)
    se = L.Conv2D(8, 1, activation="sigmoid", name="expanded_conv/squeeze_excite/Conv_1")(se)
    x = L.Multiply(name="expanded_conv/squeeze_excite/Mul")([x, se])
    x = L.Conv2D(8, 1, use_bias=False, name="expanded_conv/project")(x)
    x = L.Add(name="expanded_conv/Add")([bn(k, "expanded_conv/project/BatchNorm")(x), skip])
    base = k.Model(image, x, name="base")
    image = L.Input((SIZE, SIZE, 3), name="photo")
    x = L.GlobalAveragePooling2D(name="gap")(base(image, training=False))
    x = L.Dense(CLASSES, activation="softmax", name="head/logits")(x)
    return k.Model(image, x, name="slashes")


def separable(k):
    """A separable convolution as head, and softmax as a layer."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="image")
    x = L.Rescaling(1 / 255.0, name="rescaling")(image)
    x = L.Conv2D(8, 3, strides=2, activation="relu", name="conv")(x)
    x = L.SeparableConv2D(CLASSES, 3, padding="same", name="separable")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    x = L.Activation("softmax", name="predictions")(x)
    return k.Model(image, x, name="separable")


def multiplied(k):
    """Two channels of each."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="image")
    x = L.Conv2D(4, 3, name="conv")(image)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return k.Model(image, L.Dense(CLASSES, name="predictions")(x), name="multiplied")


def half(k):
    """All weights float16."""
    k.config.set_dtype_policy("float16")
    model = mobilenet_1(k)
    k.config.set_dtype_policy("float32")
    return model


def compress(source, target):
    """Copies an HDF5 file, with gzip, shuffle and small chunks, as a file is that was repacked."""

    def copy(old, new):
        for name, value in old.attrs.items():
            new.attrs[name] = value
        for name, value in old.items():
            if isinstance(value, h5py.Group):
                copy(value, new.create_group(name))
            elif value.ndim:
                chunks = tuple(max(1, size // 2) for size in value.shape)
                data = new.create_dataset(name, data=value[...], chunks=chunks, compression=7, shuffle=True)
                data.attrs["note"] = "kept"
            else:
                new.create_dataset(name, data=value[...])

    with h5py.File(OUT / source, "r") as old, h5py.File(OUT / target, "w") as new:
        copy(old, new)


def hard(k):
    """Hard-swish and a gate of hard-sigmoids spelled out as in keras.applications.MobileNetV3, and its convolution as head."""
    L = k.layers

    def hard_sigmoid(x, name):
        return L.ReLU(6.0, name=name)(x + 3.0) * (1.0 / 6.0)

    image = L.Input((SIZE, SIZE, 3), name="input_1")
    x = L.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv")(x)
    x = bn(k, "conv_bn", epsilon=1e-3, momentum=0.999)(x)
    x = L.Multiply(name="conv_swish")([x, hard_sigmoid(x, "conv_relu")])
    skip = x
    s = L.GlobalAveragePooling2D(keepdims=True, name="expanded_conv_squeeze")(x)
    s = L.Conv2D(8, 1, padding="same", name="expanded_conv_reduce")(s)
    s = L.ReLU(name="expanded_conv_relu")(s)
    s = L.Conv2D(8, 1, padding="same", name="expanded_conv_expand")(s)
    x = L.Multiply(name="expanded_conv_scale")([x, hard_sigmoid(s, "expanded_conv_gate")])
    x = L.Conv2D(8, 1, padding="same", use_bias=False, name="expanded_conv_project")(x)
    x = bn(k, "expanded_conv_project_bn", epsilon=1e-3, momentum=0.999)(x)
    x = L.Add(name="expanded_conv_add")([skip, x])
    x = L.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = L.Conv2D(CLASSES, 1, name="logits")(x)
    x = L.Flatten(name="flatten")(x)
    x = L.Activation("softmax", name="predictions")(x)
    return k.Model(image, x, name="hard")


def transfer(k):
    """A base as one layer of another model, under augmentation and a new head; two names occur twice."""
    L = k.layers
    image, x = efficientnet(k, blocks=False)
    base = k.Model(image, x, name="base")
    base.trainable = False
    image = L.Input((SIZE, SIZE, 3), name="photo")
    x = L.RandomFlip("horizontal", name="flip")(image)
    x = base(x, training=False)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    x = bn(k, "top_bn")(x)
    x = L.Dense(8, activation="relu", name="hidden")(x)
    x = L.Dropout(0.3, name="dropout")(x)
    x = L.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return k.Model(image, x, name="transfer")


def sequential(k):
    """A Sequential with Sequential inside; batch norms with scale or center off; hard activations."""
    L = k.layers
    augment = k.Sequential([L.RandomFlip("horizontal"), L.RandomRotation(0.1)], name="augment")
    inner = k.Sequential(
        [
            L.Input((SIZE, SIZE, 3)),
            L.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            L.BatchNormalization(scale=False),
            L.ReLU(),
            L.Conv2D(8, 3, padding="same", use_bias=False),
            L.BatchNormalization(center=False),
            L.Activation("relu6") if k is keras else L.ReLU(max_value=6),
            L.Conv2D(8, 1, activation="relu"),
            L.BatchNormalization(scale=False, center=False),
        ],
        name="inner",
    )
    return k.Sequential(
        [
            L.Input((SIZE, SIZE, 3)),
            augment,
            L.Rescaling(1 / 255.0),
            inner,
            L.GlobalAveragePooling2D(),
            L.Dense(CLASSES),
        ],
        name="sequential",
    )


def custom(k, module, name):
    """A class that keras.applications has for itself."""
    return getattr(importlib.import_module(f"{k.__name__}.src.applications.{module}"), name)


def flat(k):
    """A flattened image, as in VGG, behind a model within the model; a Dense without a bias; a layer norm of features."""
    L = k.layers
    base = k.Sequential(
        [
            L.Input((SIZE, SIZE, 3)),
            L.Conv2D(6, 3, padding="same", activation="relu", name="block1_conv1"),
            L.MaxPooling2D(2, 2, name="block1_pool"),
            L.Conv2D(6, 3, padding="same", activation="elu", name="block2_conv1"),
            L.MaxPooling2D(3, 2, padding="same", name="block2_pool"),
        ],
        name="base",
    )
    return k.Sequential(
        [
            L.Input((SIZE, SIZE, 3)),
            L.Rescaling(1 / 255.0, name="rescaling"),
            base,
            L.Flatten(name="flatten"),
            L.Dropout(0.5, name="dropout"),
            L.Dense(8, use_bias=False, activation="tanh", name="fc1"),
            L.LayerNormalization(name="norm"),
            L.Dense(8, activation="leaky_relu", name="fc2"),
            L.Dense(CLASSES, activation="softmax", name="predictions"),
        ],
        name="flat",
    )


def joined(k):
    """Concatenations of images and of features, sums of three, products, means with and without zeros, scaled additions."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="image")
    x = L.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    x = L.Conv2D(6, 3, padding="same", name="stem_conv")(x)
    x = L.ZeroPadding2D(1, name="pool_pad")(x)
    x = L.MaxPooling2D(3, strides=2, name="pool")(x)
    slope = {"negative_slope": 0.1} if k is keras else {"alpha": 0.1}
    a = L.Conv2D(4, 1, activation=L.LeakyReLU(**slope), name="a_conv")(x)
    a = L.ReLU(negative_slope=0.25, name="a_relu")(bn(k, "a_bn")(a))
    b = L.AveragePooling2D(3, 1, padding="same", name="b_mean")(x)
    b = L.ELU(name="b_elu")(L.Conv2D(6, 1, activation="mish", name="b_conv")(b))
    c = L.AveragePooling2D(3, 1, name="c_mean")(L.ZeroPadding2D(1, name="c_pad")(x))
    c = L.LeakyReLU(name="c_leaky")(L.Conv2D(5, 1, activation="softplus", name="c_conv")(c))
    x = L.Concatenate(axis=3, name="mixed")([a, b, c])
    x = L.ReLU(name="mixed_relu")(bn(k, "mixed_bn")(x))
    x = L.AveragePooling2D(3, 2, padding="same", name="mean")(x)
    up = L.Conv2D(15, 1, name="up_conv")(x)
    x = custom(k, "inception_resnet_v2", "CustomScaleLayer")(0.17, name="scaled")([x, up])
    gate = L.Conv2D(15, 1, activation="sigmoid", name="gate_conv")(x)
    y = L.Multiply(name="product")([L.Conv2D(15, 1, name="gated_conv")(x), gate])
    x = L.Add(name="sum")([x, y, up * 0.5])
    x = L.Concatenate(name="features")([L.GlobalAveragePooling2D(name="gap")(x), L.GlobalMaxPooling2D(name="gmp")(x)])
    x = L.Dense(CLASSES, use_bias=False, activation="softmax", name="predictions")(x)
    return k.Model(image, x, name="joined")


def convnext(k):
    """Layer norms, Dense on images, and layers of keras.applications' own."""
    L = k.layers
    image = L.Input((SIZE, SIZE, 3), name="image")
    x = L.Normalization(mean=[120.0, 115.0, 100.0], variance=[3600.0, 3500.0, 3400.0], name="prestem")(image)
    stem = [L.Conv2D(6, 4, strides=4, name="stem_conv"), L.LayerNormalization(epsilon=1e-6, name="stem_norm")]
    x = k.Sequential([L.Input((SIZE, SIZE, 3)), *stem], name="stem")(x)
    skip = x
    x = L.DepthwiseConv2D(3, padding="same", name="stage_0_block_0_depthwise_conv")(x)
    x = L.LayerNormalization(epsilon=1e-6, name="stage_0_block_0_layernorm")(x)
    x = L.Dense(10, name="stage_0_block_0_pointwise_conv_1")(x)
    x = L.Activation("gelu", name="stage_0_block_0_gelu")(x)
    x = L.Dense(6, name="stage_0_block_0_pointwise_conv_2")(x)
    x = custom(k, "convnext", "LayerScale")(0.5, 6, name="stage_0_block_0_layer_scale")(x)
    x = custom(k, "convnext", "StochasticDepth")(0.1, name="stage_0_block_0_stochastic_depth")(x)
    x = L.Add(name="stage_0_block_0_add")([skip, x])
    x = L.GlobalAveragePooling2D(name="head_gap")(x)
    x = L.LayerNormalization(epsilon=1e-6, name="head_layernorm")(x)
    return k.Model(image, L.Dense(CLASSES, name="head_dense")(x), name="convnext")


def randomise(k, model, rng):
    def visit(layer):
        for inner in getattr(layer, "layers", []):
            visit(inner)
        if getattr(layer, "layers", None):
            return
        values = []
        for weight in layer.weights:
            label = weight.name.split("/")[-1].split(":")[0]
            shape = tuple(weight.shape)
            if "seed_generator" in label or "count" in label or str(weight.dtype).find("int") >= 0:
                values.append(np.asarray(weight))
            elif label in ("kernel", "depthwise_kernel", "pointwise_kernel"):
                fan_in = np.prod(shape[:2]) if "depthwise" in layer.name else np.prod(shape[:-1])
                values.append(rng.normal(0, np.sqrt(2.0 / max(fan_in, 1)), shape))
            elif "mean" in label:
                values.append(rng.uniform(0.3, 0.6, shape) if "norm" == layer.name[:4] else rng.normal(0, 0.3, shape))
            elif "variance" in label:
                values.append(rng.uniform(0.05, 0.1, shape) if "norm" == layer.name[:4] else rng.uniform(0.5, 2, shape))
            elif label == "gamma":
                values.append(rng.uniform(0.5, 1.5, shape))
            else:
                values.append(rng.normal(0, 0.2, shape))
        if values:
            layer.set_weights([np.asarray(v, np.asarray(w).dtype) for v, w in zip(values, layer.weights)])
            if layer.__class__.__name__ == "Normalization":
                layer.finalize_state()

    visit(model)


def logits_of(k, model, images):
    """Predictions before the last softmax."""
    last = model.layers[-1]
    if getattr(last, "activation", None) is not None and last.activation.__name__ == "softmax":
        last.activation = k.activations.linear
        model.make_predict_function(force=True)
        out = model(images, training=False)
        last.activation = k.activations.softmax
        return np.asarray(out)
    return np.asarray(model(images, training=False))


def listing(model, prefix=""):
    for layer in model.layers:
        yield prefix + layer.name, layer
        if getattr(layer, "layers", None):
            yield from listing(layer, prefix + layer.name + "/")


def save(k, build, stem, suffixes, train=False):
    if sys.argv[1:] and stem not in sys.argv[1:]:
        return
    k.utils.set_random_seed(7)
    if k is keras:
        keras.backend.clear_session()
    else:
        tf_keras.backend.clear_session()
    model = build(k)
    rng = np.random.default_rng(abs(hash_of(stem)))
    randomise(k, model, rng)
    images = rng.integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.float32)
    if train:
        # So that the file has an optimizer's state, and Keras has moved the running statistics.
        model.compile(k.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        model.fit(images, np.array([0, 1, 2]), batch_size=3, epochs=2, verbose=0)
    logits = logits_of(k, model, images)
    layers = [
        {
            "name": name,
            "class": layer.__class__.__name__,
            "weights": [
                [w.name.split("/")[-1].split(":")[0], [int(d) for d in w.shape], float(np.asarray(w, np.float64).sum())]
                for w in layer.weights
            ]
            if not getattr(layer, "layers", None)
            else [],
        }
        for name, layer in listing(model)
    ]
    record = {
        "keras": k.__version__,
        "images": images.tolist(),
        "logits": logits.tolist(),
        "layers": layers,
        "top": [layer.name for layer in model.layers],
    }
    for suffix in suffixes:
        path = OUT / (stem + suffix)
        if suffix in (".weights.h5", "_weights.h5"):
            model.save_weights(path)
        else:
            model.save(path)
        assert path.stat().st_size < 120_000, (path, path.stat().st_size)
    (OUT / (stem + ".json")).write_text(json.dumps(record, separators=(",", ":")))


def hash_of(text):
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**31


def main():
    OUT.mkdir(exist_ok=True)
    save(keras, efficient, "efficient", [".keras", ".h5", ".weights.h5"])
    save(keras, resnet, "resnet", [".keras"], train=True)
    save(keras, mobilenet, "mobilenet", [".keras", ".h5"])
    save(keras, hard, "hard", [".keras"])
    save(keras, transfer, "transfer", [".keras", ".h5", ".weights.h5"])
    save(keras, sequential, "sequential", [".keras", ".h5"])
    save(tf_keras, efficient, "efficient_tf", [".keras", ".h5", "_weights.h5"])
    save(tf_keras, resnet, "resnet_tf", [".h5"], train=True)
    save(tf_keras, hard, "hard_tf", [".h5"])
    save(tf_keras, transfer, "transfer_tf", [".keras", ".h5"])
    save(tf_keras, sequential, "sequential_tf", [".keras", ".h5"])
    save(keras, mobilenet_1, "mobilenet_1", [".keras"])
    save(tf_keras, mobilenet_1, "mobilenet_1_tf", [".h5"])
    save(tf_keras, slashes, "slashes_tf", [".h5", "_weights.h5"])
    save(keras, separable, "separable", [".keras"])
    save(keras, flat, "flat", [".keras", ".h5", ".weights.h5"])
    save(tf_keras, flat, "flat_tf", [".h5"])
    save(keras, joined, "joined", [".keras"])
    save(tf_keras, joined, "joined_tf", [".h5"])
    save(keras, convnext, "convnext", [".keras", ".h5", ".weights.h5"])
    save(tf_keras, convnext, "convnext_tf", [".keras", ".h5"])
    if not sys.argv[1:]:
        compress("sequential.h5", "compressed.h5")
    save(keras, multiplied, "multiplied", [".keras"])
    save(keras, half, "half", [".keras"])
    # Nothing is computed from these.
    for stem in ("multiplied", "half"):
        (OUT / f"{stem}.json").unlink(missing_ok=True)
    print(sorted((p.name, p.stat().st_size) for p in OUT.iterdir()), file=sys.stderr)


if __name__ == "__main__":
    main()
