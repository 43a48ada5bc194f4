#!/usr/bin/env python3
"""Runs ONNX's own backend tests over the operators that Thawline has: `onnx_backend.py [--write]`.

The cases are those of the Python package `onnx`: its node cases and its cases converted from PyTorch. Thawline opens networks from images
to classes, so each case is put into one: a convolution with ones and zeros lays the case's input out as it asks, the other inputs become
constants, and a linear layer with ones and zeros makes classes of the output. All of that is exact. The result must be the case's, within the
case's own tolerance, or 1e-6 of its largest value. Of several outputs the first counts, and old models are brought to operator set 13. A
case that Thawline refuses to open counts as skipped, with the reason. Exit code 1 if one fails. `--write` puts the table into docs/onnx-backend.md. Needs the package of bindings/python, and onnx.
"""

import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import thawline
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as node_cases
from onnx.backend.test.loader import load_model_tests

OUT = Path(__file__).resolve().parents[1] / "docs" / "onnx-backend.md"
# Of these, rank does not matter: a case's input gets dimensions of 1.
ELEMENTWISE = """
Relu LeakyRelu Elu Celu Clip Sigmoid HardSigmoid HardSwish Tanh Softplus Mish Gelu Max Min Identity Softmax
""".split()
OPERATORS = set(ELEMENTWISE) | set("""
Conv BatchNormalization MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean Concat Slice Split Gemm MatMul Add Sub Mul Div
Flatten Reshape Transpose Squeeze Unsqueeze Pad LayerNormalization GroupNormalization InstanceNormalization Dropout Constant Shape Gather Cast
""".split())  # fmt: skip
# Classes that Thawline allows, less one.
MOST = 65535


class Skipped(Exception):
    """Why a case is none for a network of images."""


def cases():
    warnings.filterwarnings("ignore")
    node_cases.collect_testcases(None)
    for case in node_cases.collect_testcases(None):
        yield "node", case.name, case.model, case.data_sets[0], case.rtol, case.atol
    for case in load_model_tests(kind="pytorch-converted"):
        folder = Path(case.model_dir)
        data = folder / "test_data_set_0"
        read = lambda kind: [  # noqa: E731
            numpy_helper.to_array(onnx.TensorProto.FromString((data / f"{kind}_{i}.pb").read_bytes()))
            for i in range(len(list(data.glob(f"{kind}_*.pb"))))
        ]
        model = onnx.version_converter.convert_version(onnx.load(folder / "model.onnx"), 13)
        yield "PyTorch", case.name, model, (read("input"), read("output")), case.rtol, case.atol


def wrapped(model, inputs, outputs):
    """A network around the case, and its images."""
    graph = model.graph
    initialisers = {tensor.name for tensor in graph.initializer}
    names = [put.name for put in graph.input if put.name not in initialisers]
    if any(attribute.name == "training_mode" and attribute.i for node in graph.node for attribute in node.attribute):
        raise Skipped("it is in training mode: whether a batch norm normalises by its batch is said by a policy here")
    if len(names) != len(inputs) or not names:
        raise Skipped("no inputs, or optional ones")
    try:
        inputs, y = [np.asarray(value) for value in inputs], np.asarray(outputs[0])
    except ValueError:
        raise Skipped("sequences") from None
    x = inputs[0]
    if x.dtype != np.float32 or y.dtype != np.float32:
        raise Skipped("no floats of 32 bits")
    if x.ndim < 4 and all(node.op_type in ELEMENTWISE for node in graph.node) and "Softmax" not in graph.node[-1].op_type:
        x, y = (value.reshape([1, 1, *[1] * (2 - min(2, value.ndim)), *value.shape][-4:] if value.ndim < 4 else value.shape) for value in (x, y))
    if x.ndim not in (2, 4) or x.size == 0:
        raise Skipped(f"an input of {x.ndim} dimensions")
    if y.ndim not in (2, 4) or y.shape[0] != x.shape[0] or not 1 <= y[0].size <= MOST:
        raise Skipped(f"an output of {y.ndim} dimensions, or of another number of images")

    n, c = x.shape[:2]
    h, w = x.shape[2:] if x.ndim == 4 else (1, 1)
    # Channel c of a pixel is channel c mod 3 of row c div 3 below it.
    rows = -(-c // 3)
    images = np.zeros((n, 3, h * rows, w), np.float32)
    layout = np.zeros((c, 3, rows, 1), np.float32)
    for channel in range(c):
        images[:, channel % 3, channel // 3 :: rows] = x.reshape(n, c, h, w)[:, channel]
        layout[channel, channel % 3, channel // 3, 0] = 1
    classes = np.zeros((y[0].size, y[0].size + 1), np.float32)
    np.fill_diagonal(classes, 1)

    case_input, case_output = names[0], graph.output[0].name
    begin = [helper.make_node("Conv", ["images", "layout"], ["laid_out"], name="lay_out", kernel_shape=[rows, 1], strides=[rows, 1])]
    if x.ndim == 2:
        begin.append(helper.make_node("Flatten", ["laid_out"], ["flat"], name="flat_input"))
    begin.append(helper.make_node("Identity", [begin[-1].output[0]], [case_input], name="case_input"))
    end = [
        helper.make_node("Flatten", [case_output], ["flat_output"], name="flat_output"),
        helper.make_node("Gemm", ["flat_output", "classes"], ["logits"], name="head"),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in zip(names[1:], inputs[1:])]
    constants += [numpy_helper.from_array(layout, "layout"), numpy_helper.from_array(classes, "classes")]
    network = helper.make_graph(
        [*begin, *graph.node, *end],
        "case",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [n, y[0].size + 1])],
        [*graph.initializer, *constants],
    )
    return helper.make_model(network, opset_imports=model.opset_import, ir_version=model.ir_version), images, y.reshape(n, -1)


def run(model, data, rtol, atol, folder):
    """Whether the case passes; how far its values are apart if not."""
    network, images, expected = wrapped(model, *data)
    path = folder / "case.onnx"
    onnx.save(network, path)
    try:
        opened = thawline.Model.open(path)
        found = opened.logits(images)[:, :-1]
    except thawline.ThawlineError as error:
        reason = re.sub(r"^.*? is refused: (node `[^`]*` )?|^.*case\.onnx:? ?", "", str(error))
        raise Skipped(reason.split("; supported are")[0]) from None
    allowed = np.maximum(atol + rtol * np.abs(expected), 1e-6 * np.abs(expected).max(initial=0))
    return (np.abs(found - expected) <= allowed).all(), float(np.abs(found - expected).max(initial=0))


def main(write):
    passed, failed, skipped = defaultdict(Counter), [], defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        for kind, name, model, data, rtol, atol in cases():
            operators = {node.op_type for node in model.graph.node}
            if not operators <= OPERATORS:
                continue
            operator = "+".join(sorted(operators))
            try:
                good, apart = run(model, data, rtol, atol, Path(folder))
            except Skipped as reason:
                skipped[kind][operator, str(reason)] += 1
                continue
            passed[kind][operator] += good
            if not good:
                failed.append((kind, name, apart))
                print(f"FAILED {kind} {name}: {apart:.2e} apart", flush=True)
    lines = [f"`scripts/onnx_backend.py --write`, onnx {onnx.__version__}:", "", "| cases | pass | fail | skipped |", "|---|---|---|---|"]
    for kind in ("node", "PyTorch"):
        fails = sum(one[0] == kind for one in failed)
        lines.append(f"| {kind} | {passed[kind].total()} | {fails} | {skipped[kind].total()} |")
    lines += ["", "| operators | pass |", "|---|---|"]
    both = passed["node"] + passed["PyTorch"]
    lines += [f"| {operator} | {count} |" for operator, count in sorted(both.items())]
    lines += ["", "| skipped | cases | why |", "|---|---|---|"]
    both = skipped["node"] + skipped["PyTorch"]
    lines += [f"| {operator} | {count} | {why.replace('|', '/')} |" for (operator, why), count in sorted(both.items())]
    print("\n".join(lines))
    if write:
        head = OUT.read_text(encoding="utf-8").split("<!-- cases -->")[0]
        OUT.write_text(head + "<!-- cases -->\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(sys.argv[1:] == ["--write"])
