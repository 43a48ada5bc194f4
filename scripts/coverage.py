#!/usr/bin/env python3
"""Compares training steps of the networks that people fine-tune with their frameworks' own.

    coverage.py THAWLINE [--fresh] [--write] [NAME…]

THAWLINE is the program. A NAME is that of a network (resnet18), of a list (torchvision, timm, keras, onnx-torchvision, onnx-timm) or
of a network in a list (timm/resnet18); without names, everything runs, smallest first. Results are kept in target/coverage, so that
an interrupted run goes on where it stopped. What did not agree is tried again by another build of the program, and --fresh does all
of it again. --write makes docs/coverage.md of all results. The exit code is 1 if something was computed wrong.

Needs torch, torchvision, timm, keras, onnx, onnxscript and safetensors; scripts/coverage.sh gets them.
"""

import argparse
import copy
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

os.environ["KERAS_BACKEND"] = "torch"

import keras  # noqa: E402
import onnx  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "target" / "coverage", ROOT / "docs" / "coverage.md"

SIZE = 64
# Networks that take no images of 64 pixels, by what their names contain.
SIZES = {"alexnet": 224, "vgg1": 224, "inception": 96, "Inception": 96, "xception": 96, "Xception": 96}
# Memory is short for more images of networks with more parameters.
IMAGES, LARGE, IMAGES_OF_LARGE = 8, 60e6, 4
# The share of the loss that a step is to change. Longer ones end where a network with random weights answers to rounding.
STEP = 0.01
# What may be apart, relative. One value that rounds to the other side of a ReLU moves the change of the loss by one or two percent,
# in the framework's 32 bits, too, while a wrong gradient moves it more.
LOSS, CHANGE, ROUND_TRIP = 1e-5, 0.05, 1e-5
HOUR = 3600

# Each list begins with its smallest network.
LISTS = {
    "torchvision": """squeezenet1_1 squeezenet1_0 shufflenet_v2_x0_5 mnasnet0_5 shufflenet_v2_x1_0 mobilenet_v3_small mobilenet_v2
        regnet_y_400mf mnasnet1_0 efficientnet_b0 mobilenet_v3_large regnet_x_400mf regnet_y_800mf shufflenet_v2_x2_0 efficientnet_b1
        densenet121 efficientnet_b2 regnet_x_1_6gf resnet18 efficientnet_b3 googlenet densenet169 efficientnet_b4 densenet201
        efficientnet_v2_s resnet34 resnext50_32x4d resnet50 inception_v3 convnext_tiny densenet161 efficientnet_b5 regnet_y_8gf
        regnet_x_8gf efficientnet_b6 resnet101 efficientnet_v2_m resnet152 alexnet efficientnet_b7 wide_resnet50_2 resnext101_64x4d
        convnext_base resnext101_32x8d efficientnet_v2_l wide_resnet101_2 vgg11 vgg11_bn vgg16 vgg16_bn vgg19_bn""",
    "timm": """edgenext_xx_small mobilenetv3_small_050 mobilenetv2_050 mnasnet_small mobilenetv3_small_100 tf_mobilenetv3_small_100
        regnetx_002 starnet_s1 lcnet_100 regnety_002 mobilenetv2_100 pvt_v2_b0 convnext_atto convnextv2_atto mobilenetv4_conv_small
        semnasnet_100 fastvit_t8 repghostnet_100 mixnet_s mnasnet_100 spnasnet_100 mobilenetv2_110d efficientnet_lite0
        tf_efficientnet_lite0 rexnet_100 ghostnet_100 hardcorenas_a efficientnet_b0 tf_efficientnet_b0 mobileone_s0 resnet10t
        efficientnet_es mobilenetv3_large_100 tf_mobilenetv3_large_100 fbnetc_100 hgnetv2_b0 mobilenetv2_140 ghostnetv2_100 tinynet_a
        regnety_008 ese_vovnet19b_dw tf_efficientnetv2_b0 efficientnet_b1 densenet121 densenetblur121d gernet_s repvgg_a0
        efficientnet_b2 regnetz_b16 mobilenetv4_conv_medium resnet14t bat_resnext26ts regnety_016 resnet18 resnet18d efficientnet_b3
        dpn68 hrnet_w18_small efficientnetv2_rw_t hgnet_tiny dla34 repvgg_b0 resnet26 resnet26t resnet26d efficientnet_b4
        eca_resnet33ts convmixer_768_32 tf_efficientnetv2_s cspresnet50 resnet34 resnet34d dla60 vovnet39a xception legacy_xception
        inception_v3 efficientnetv2_rw_s ese_vovnet39b resnext50_32x4d resnetv2_50 resnetv2_50x1_bit resnet50 resnet50_gn nf_resnet50
        resnet50d gluon_resnet50_v1d ecaresnet50d res2net50_26w_4s skresnet50 xception41 resnest50d seresnext50_32x4d cspdarknet53
        inception_next_tiny seresnet50 convnext_tiny densenet161 tresnet_m selecsls42b nfnet_l0 darknet53 inception_v4 resnet101
        resnet101d tf_efficientnetv2_m inception_resnet_v2 resnet152 wide_resnet50_2 dm_nfnet_f0 resnext101_32x8d vgg16 vgg16_bn""",
    "keras": """MobileNetV3Small MobileNetV2 MobileNet NASNetMobile EfficientNetB0 MobileNetV3Large EfficientNetV2B0 EfficientNetB1
        DenseNet121 EfficientNetV2B1 EfficientNetB3 DenseNet169 EfficientNetV2B3 DenseNet201 EfficientNetV2S Xception InceptionV3
        ResNet50V2 ResNet50 ConvNeXtTiny ResNet101V2 ResNet101 EfficientNetV2M InceptionResNetV2 ResNet152 EfficientNetB7 VGG16
        VGG19""",
    "onnx-torchvision": """squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v3_small regnet_y_400mf efficientnet_b0
        mobilenet_v3_large regnet_x_400mf densenet121 resnet18 googlenet inception_v3 convnext_tiny efficientnet_v2_m alexnet
        resnext101_32x8d vgg11_bn""",
    "onnx-timm": """mobilenetv3_small_050 lcnet_050 mobilenetv2_050 tf_mobilenetv3_small_075 tinynet_e ghostnet_050 regnetx_002
        starnet_s1 semnasnet_075 regnety_002 convnext_atto mobilenetv4_conv_small fastvit_t8 mixnet_s efficientnet_lite0
        tf_efficientnet_lite0 rexnet_100 tf_efficientnet_b0 mobileone_s0 fbnetc_100 hgnetv2_b0 ese_vovnet19b_dw tf_efficientnetv2_b0
        densenet121 gernet_s nf_regnet_b0 repvgg_a0 dpn48b resnest14d resnetblur18 resnet18d skresnet18 hrnet_w18_small darknet17
        dla34 ecaresnet26t resnet26d convmixer_768_32 cspresnet50 vovnet39a legacy_xception resnetv2_50 resnet50_gn res2net50_26w_4s
        xception41 seresnet50 selecsls42b inception_v4""",
}
LISTS = {kind: names.split() for kind, names in LISTS.items()}
TITLES = {
    "torchvision": "torchvision, `.pth`",
    "timm": "timm, `.safetensors`",
    "keras": "keras.applications, `.keras`",
    "onnx-torchvision": "ONNX of torchvision",
    "onnx-timm": "ONNX of timm",
}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_intermixed_args()
    known = {word for kind, names in LISTS.items() for name in names for word in (kind, name, f"{kind}/{name}")}
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"there is no {', '.join(unknown)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    program = given.program.resolve()
    build = hashlib.sha256(program.read_bytes()).hexdigest()[:12]
    RESULTS.mkdir(parents=True, exist_ok=True)

    chosen = [
        (at / len(names), kind, name)
        for kind, names in LISTS.items()
        for at, name in enumerate(names)
        if not given.names or {kind, name, f"{kind}/{name}"} & set(given.names)
    ]
    results = []
    # By their places in the lists: about smallest first.
    for _, kind, name in sorted(chosen, key=lambda one: one[0]):
        kept = result_of(kind, name)
        if given.fresh or not kept or (kept["status"] != "agrees" and kept["build"] != build):
            kept = measured_apart(program, build, kind, name)
            print(line(kept), flush=True)
        results.append(kept)
    counts = Counter(one["status"] for one in results)
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.most_common()) + f", of {len(results)}")
    if given.write:
        PAGE.write_text(page(program, build))
    sys.exit(counts["agrees"] + counts["refused"] < len(results))


# ---- One network -----------------------------------------------------------------------------------------------------


def path_of(kind, name):
    return RESULTS / f"{kind}-{name}.json"


def result_of(kind, name):
    path = path_of(kind, name)
    return json.loads(path.read_text()) if path.exists() else None


def measured_apart(program, build, kind, name):
    """In a process of its own, which gives its memory back and may crash."""
    path = path_of(kind, name)
    path.unlink(missing_ok=True)
    child = multiprocessing.get_context("fork").Process(target=write_result, args=(path, program, build, kind, name))
    child.start()
    child.join()
    if not path.exists():
        keep(path, {"list": kind, "name": name, "build": build, "status": "failed", "error": f"exit code {child.exitcode}"})
    return result_of(kind, name)


def write_result(path, program, build, kind, name):
    begin = datetime.datetime.now()
    result = {"list": kind, "name": name, "build": build}
    with tempfile.TemporaryDirectory() as folder:
        try:
            measure(program, kind, name, Path(folder), result)
        except Refused as refused:
            # A panic, or a signal, is no refusal.
            result |= {"status": "refused" if refused.code in (1, 2) else "wrong", "error": str(refused).replace(folder + "/", "")}
        except Exception as error:
            # What the framework cannot do says nothing of Thawline.
            result |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
            traceback.print_exc()
    result |= {"date": f"{begin:%F}", "seconds": round((datetime.datetime.now() - begin).total_seconds())}
    keep(path, result)


def keep(path, result):
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(path)


def measure(program, kind, name, folder, result):
    """Adds to the result what is found."""
    size = next((size for part, size in SIZES.items() if part in name), SIZE)
    torch.manual_seed(0)
    network = {"keras": Keras, "torchvision": StateDict, "timm": StateDict}.get(kind, Onnx)(kind, name, size, folder)
    result["parameters"] = network.parameters
    count = IMAGES if network.parameters < LARGE else IMAGES_OF_LARGE
    images, labels = network.images(count), torch.randint(1000, (count,))
    batch = folder / "batch.safetensors"
    save_file({"images": images.float().contiguous(), "labels": labels}, batch)

    if kind == "keras":
        # What is refused need not be computed: NASNet cannot.
        thawline(program, "inspect", network.file)
    exact, lr = network.steps(images, labels, torch.float64)
    ours, result["recognised"] = steps_of_thawline(program, network.file, batch, lr, names_of(program, kind, name))
    theirs, _ = network.steps(images, labels, torch.float32, lr)
    (loss, change), (own_loss, own_change) = apart(ours, exact), apart(theirs, exact)
    good = loss <= max(LOSS, own_loss) and change <= max(CHANGE, 2 * own_change)
    result |= {"losses": exact, "lr": lr, "loss": loss, "change": change, "own_loss": own_loss, "own_change": own_change}
    if kind == "keras":
        result["round_trip"] = network.round_trip(program, folder / "back.keras", images)
        good &= result["round_trip"] <= ROUND_TRIP
    result["status"] = "agrees" if good else "wrong"


def apart(losses, exact):
    """How far apart the first loss is, and what the step changes of it, both relative."""
    changes = [first - second for first, second in (losses, exact)]
    return abs(losses[0] - exact[0]) / exact[0], abs(changes[0] - changes[1]) / abs(changes[1])


# ---- Thawline --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def thawline(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=HOUR)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        first = next((at for at, text in enumerate(said) if text.startswith("error: ") or "panicked" in text), 0)
        raise Refused(done.returncode, "\n".join(said[first:]).removeprefix("error: "))
    return done.stdout


def names_of(program, kind, name):
    """What --model may say of a file that is not recognised."""
    known = {one["name"]: one["library"] for one in json.loads(thawline(program, "models", "--json"))}
    return [candidate for candidate in (f"{kind}_{name}", name) if known.get(candidate) == kind]


def steps_of_thawline(program, file, batch, lr, models):
    """The losses, and whether that took --model."""
    arguments = [
        "step", "--weights", file, "--inputs", batch, "--out", batch.with_name("out.safetensors"), "--force",
        "--policy", "full", "--optimizer", "sgd", "--lr", lr, "--steps", 2,
        "--set", "kind:dropout? -> dropout=off", "--set", "kind:stochastic_depth? -> dropout=off",
    ]  # fmt: skip
    try:
        said, recognised = thawline(program, *arguments), "yes"
    except Refused as refused:
        if "--model" not in str(refused) or not models:
            raise
        said, recognised = thawline(program, *arguments, "--model", models[0]), "with --model"
    return [json.loads(line)["loss"] for line in said.splitlines()], recognised


# ---- The frameworks' networks, each with a file ----------------------------------------------------------------------


class StateDict:
    def __init__(self, library, name, size, folder):
        self.size = size
        if library == "timm":
            model = timm.create_model(name, drop_rate=0.0)
        else:
            # Their own initialisation takes minutes.
            slow = name in ("googlenet", "inception_v3")
            model = torchvision.models.get_model(name, **({"init_weights": False} if slow else {}))
        self.model = varied(model)
        self.file = self.saved(folder, library)
        self.parameters = sum(parameter.numel() for parameter in without_training_heads(self.model).parameters())

    def saved(self, folder, library):
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.model.state_dict().items()}
        if library == "timm":
            save_file(tensors, folder / "model.safetensors")
            return folder / "model.safetensors"
        torch.save(tensors, folder / "model.pth")
        return folder / "model.pth"

    def images(self, count):
        return torch.randn(count, 3, self.size, self.size)

    def steps(self, images, labels, dtype, lr=None):
        model = copy.deepcopy(self.model).to(dtype).train()
        return steps(lambda: model(images.to(dtype)), list(model.parameters()), labels, lr)


class Onnx(StateDict):
    def __init__(self, kind, name, size, folder):
        super().__init__(kind.removeprefix("onnx-"), name, size, folder)

    def saved(self, folder, _):
        file = folder / "model.onnx"
        preserve = torch.onnx.TrainingMode.PRESERVE
        model = without_training_heads(self.model).eval()
        torch.onnx.export(model, self.images(1), file, dynamo=False, training=preserve, do_constant_folding=False)
        return file


class Keras:
    def __init__(self, _, name, size, folder):
        self.name, self.size = name, size
        keras.utils.set_random_seed(0)
        model = self.build()
        generator = torch.Generator().manual_seed(1)
        for variable in model.weights:
            statistics = variable.path.rsplit("/", 1)[-1] in ("moving_mean", "moving_variance")
            if variable.trainable or statistics:
                vary(variable.path.replace("moving_variance", "running_var"), variable.value.data, generator)
        self.values = model.get_weights()
        self.parameters = model.count_params()
        self.file = folder / "model.keras"
        model.save(self.file)

    def build(self):
        # Keras does not build NASNet where PyTorch computes, which gets it wrong.
        others = {"backend.return_value": "tensorflow"} if self.name.startswith("NASNet") else {}
        with mock.patch("keras.src.applications.nasnet.backend", wraps=keras.src.backend, **others):
            return getattr(keras.applications, self.name)(weights=None, input_shape=(self.size, self.size, 3))

    def images(self, count):
        """As they are behind the layers that rescale them, which are preprocessing for Thawline. Channels come first."""
        images = torch.rand(count, self.size, self.size, 3) * 255
        model, at = self.rescaling(self.build())
        return (keras.Model(model.inputs, model.layers[at].output)(images) if at else images / 128 - 1).permute(0, 3, 1, 2)

    @staticmethod
    def rescaling(model):
        """The number of the last layer that rescales images; 0, which is the input, if there is none."""
        numbers = [at for at, layer in enumerate(model.layers) if type(layer).__name__ in ("Rescaling", "Normalization")]
        return model, max(numbers, default=0)

    def network(self, model):
        """From behind the rescaling to the logits; nothing is dropped."""
        for layer in model.layers:
            for rate in ("rate", "drop_path_rate"):
                if hasattr(layer, rate):
                    setattr(layer, rate, 0.0)
        model.layers[-1].activation = keras.activations.linear
        model, at = self.rescaling(model)
        for layer in model.layers[1 : at + 1]:
            layer.call = lambda values: values
        return lambda images, training: model(images.permute(0, 2, 3, 1), training=training)

    def steps(self, images, labels, dtype, lr=None):
        keras.config.set_dtype_policy(str(dtype).removeprefix("torch."))
        model = self.build()
        model.set_weights(self.values)
        network = self.network(model)
        return steps(lambda: network(images.to(dtype), True), [one.value for one in model.trainable_variables], labels, lr)

    def round_trip(self, program, back, images):
        """How far Keras's predictions move where Thawline has written the file again, of the largest logit."""
        thawline(program, "convert", self.file, "--out", back)
        with torch.no_grad():
            before, after = (self.network(keras.models.load_model(file))(images, False) for file in (self.file, back))
        return ((before - after).abs().max() / before.abs().max()).item()


def steps(forward, parameters, labels, lr):
    """The losses before and after a step of SGD, and its learning rate."""
    loss = torch.nn.functional.cross_entropy(forward(), labels)
    loss.backward()
    with torch.no_grad():
        gradients = [(one, one.grad) for one in parameters if one.grad is not None]
        lr = lr or STEP * loss.item() / sum(gradient.square().sum().item() for _, gradient in gradients)
        for parameter, gradient in gradients:
            parameter -= lr * gradient
        after = torch.nn.functional.cross_entropy(forward(), labels)
    return [loss.item(), after.item()], lr


def varied(model):
    """With values at which every layer passes something on, and nothing is dropped."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            vary(name, tensor, generator)
    for module in model.modules():
        if type(module).__name__.startswith(("Dropout", "DropPath", "StochasticDepth")):
            module.p = module.drop_prob = 0.0
    return model


def vary(name, values, generator):
    """Draws what frameworks begin with as a constant: statistics, norms, biases, and residual branches of zeros."""
    if (values != values.flatten()[0]).any():
        return
    drawn = torch.rand(values.shape, generator=generator)
    name = name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    values.copy_(drawn * 0.2 - 0.1 if name in ("running_mean", "moving_mean", "bias", "beta") else drawn + 0.5)


def without_training_heads(model):
    """Without the classifiers that torchvision has for training only. Files have them; Thawline leaves them out."""
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        for part in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, part):
                setattr(model, part, None)
    return model


# ---- What is printed and written -------------------------------------------------------------------------------------


def line(result):
    name = f"{result['list']}/{result['name']}"
    if "loss" not in result:
        return f"{result['status']:8} {name}: {first_line(result)}"
    figures = "{loss:.1e} {change:.1e}, own {own_loss:.1e} {own_change:.1e}".format(**result)
    trip = f", round trip {result['round_trip']:.1e}" if "round_trip" in result else ""
    return f"{result['status']:8} {name} ({result['recognised']}): {figures}{trip}; {result['seconds']} s"


def first_line(result):
    return result.get("error", "").split("\n")[0]


def page(program, build):
    found = {kind: [one for name in names if (one := result_of(kind, name))] for kind, names in LISTS.items()}
    everything = [one for results in found.values() for one in results]
    device = json.loads(thawline(program, "devices", "--json"))[0]
    dates = sorted({one["date"] for one in everything if "date" in one})
    earlier = " and builds before it" if any(one["build"] != build for one in everything) else ""
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, torchvision, timm, keras, onnx))
    text = [
        "# Networks that were compared with their frameworks'",
        f"""`scripts/coverage.sh --write` makes this page. Each network is built by its framework with random weights and saved as people
save it: state dicts, `.keras` files, and ONNX exports of PyTorch's older exporter with batch norms apart. Thawline opens the file,
without `--model` where it can, and takes a step of SGD under `full`, without dropout, on {IMAGES} images ({IMAGES_OF_LARGE} for
networks of more than {LARGE / 1e6:.0f} M parameters) of {SIZE}×{SIZE} pixels, or what the network takes; its length is such that the
loss changes by about {STEP:.0%}. The loss before it must be that of the framework in 64 bits to {LOSS:.0e}, or to what its own 32 bits are apart, and the change of the loss
to {CHANGE:.0%}, or to twice what the framework's own 32 bits are apart: a value that rounds to the other side of a ReLU moves that by
one or two percent, a wrong gradient by more. `.keras` files are also written back by `convert`: Keras opens the copy, and its logits
must not move by more than {ROUND_TRIP:.0e} of the largest.""",
        f"{thawline(program, '--version').strip()} (build {build}{earlier}) on {device['name']}, {device['driver']}; {versions}; "
        f"Python {platform.python_version()}; {' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else 'no date'}.",
        summary(found),
    ]
    for kind, results in found.items():
        text += [f"## {TITLES[kind]}", table(kind, [one for one in results if "loss" in one])]
    text += ["## Refused", refused(everything)]
    return "\n\n".join(part for part in text if part) + "\n"


def summary(found):
    rows = ["| networks | opened | agree | refused | of |", "|---|---|---|---|---|"]
    for kind, results in found.items():
        counts = Counter(one["status"] for one in results)
        opened = sum("loss" in one for one in results)
        rows.append(f"| {TITLES[kind]} | {opened} | {counts['agrees']} | {counts['refused']} | {len(LISTS[kind])} |")
    return "\n".join(rows)


def table(kind, results):
    trip = kind == "keras"
    rows = ["| network | parameters | recognised | loss apart | change apart | its own 32 bits |" + " round trip |" * trip]
    rows.append("|---|---|---|---|---|---|" + "---|" * trip)
    for one in results:
        wrong = " **wrong**" if one["status"] == "wrong" else ""
        rows.append(
            "| {name} | {millions:.1f} M | {recognised} | {loss:.1e} | {change:.1e}{wrong} | {own_loss:.1e}, {own_change:.1e} |".format(
                **one, millions=one["parameters"] / 1e6, wrong=wrong
            )
            + (f" {one['round_trip']:.1e} |" if "round_trip" in one else "")
        )
    return "\n".join(rows)


def refused(everything):
    rows = ["| network | file | why |", "|---|---|---|"]
    for one in everything:
        if "loss" not in one:
            why = re.sub(r"[|<>]", lambda sign: "\\" + sign.group(), first_line(one))
            status = "" if one["status"] == "refused" else f"{one['status']}: "
            rows.append(f"| {one['name']} | {TITLES[one['list']]} | {status}{why} |")
    return "\n".join(rows) if len(rows) > 2 else "None."


if __name__ == "__main__":
    main()
