#!/usr/bin/env python3
"""Writes fuzz/corpus: small files of each format, sound ones (good-*) and hostile ones.

    python3 fuzz/make_corpus.py

Needs h5py and onnx, made with h5py 3 and onnx 1; and what tests/golden/make_images.py needs. With names of targets, only
theirs.
"""

import io
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import onnx
from onnx import TensorProto, helper

CORPUS = Path(__file__).parent / "corpus"
LARGEST = 20_000


def write(target, files):
    folder = CORPUS / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        assert len(content) < LARGEST, (target, name, len(content))
        (folder / name).write_bytes(content)


def cut(name, content):
    """The file cut off at its beginning, in its middle, and just before its end."""
    lengths = {0, 1, 4, len(content) // 3, len(content) // 2, len(content) - 1}
    return {f"cut-{name}-{length}": content[:length] for length in sorted(lengths)}


# PyTorch's pickles. Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py


def numbers(values):
    return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"


def tensor(shape, stride, storage=2, offset=0, kind=b"FloatStorage", key=b"0"):
    """{"w": tensor}, of which storage 0 has two floats."""
    return (
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n" + kind + b"\nU"
        + bytes([len(key)]) + key + b"U\x03cpuJ" + struct.pack("<I", storage) + b"tQI%d\n" % offset
        + numbers(shape) + numbers(stride) + b"\x89NtRs."
    )


def pickles():
    huge = 2**63 - 1
    # Each list holds the one before it twice.
    laughs = b"\x80\x02]q\0" + b"".join(b"(h%ch%clq%c" % (n, n, n + 1) for n in range(60)) + b"."
    files = {
        "good-tensor": tensor([2], [1]),
        "good-transposed": tensor([1, 2], [2, 1]),
        "good-expanded": tensor([1000], [0]),
        "good-many-dimensions": tensor([1] * 2000, [1] * 2000),
        "good-empty-tensor": tensor([0], [1]),
        "shape-huge": tensor([huge], [0]),
        "shape-overflows": tensor([2**32] * 3, [1] * 3),
        "shape-negative": tensor([-2], [1]),
        "view-huge": tensor([10**9], [0]),
        "view-just-too-large": tensor([20_000_000], [0]),
        "stride-huge": tensor([2], [huge]),
        "stride-negative": tensor([2], [-1]),
        "rank-differs": tensor([2, 1], [1]),
        "offset-huge": tensor([2], [1], offset=huge),
        "offset-negative": tensor([2], [1], offset=-1),
        "storage-declares-more": tensor([1000], [1], storage=1000),
        "storage-declares-all": tensor([2], [1], storage=2**32 - 1),
        "storage-unknown": tensor([2], [1], key=b"7"),
        "storage-elsewhere": tensor([2], [1], key=b"../../../../etc/passwd"),
        "storage-absolute": tensor([2], [1], key=b"/etc/passwd"),
        "storage-of-no-kind": tensor([2], [1], kind=b"EvilStorage"),
        "call-system": b"\x80\x02}U\x01wcposix\nsystem\nU\x02ls\x85Rs.",
        "call-eval": b"\x80\x04}\x8c\x01w\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85Rs.",
        "call-inst": b"\x80\x02(U\x02lsiposix\nsystem\n.",
        "list-holds-itself": b"\x80\x02]q\0h\0a.",
        "dict-holds-itself": b"\x80\x02}q\0U\x01wh\0s.",
        "tuple-holds-itself": b"\x80\x02]q\0h\0\x85q\x01a.",
        "build-itself": b"\x80\x02c__main__\nM\n)\x81q\0h\0b.",
        "memo-doubles": laughs,
        "memo-of-a-long-text": b"\x80\x02X" + struct.pack("<I", 8000) + b"x" * 8000 + b"q\0" + b"h\0" * 5000 + b".",
        "memo-unknown": b"\x80\x02h\x07.",
        "memo-far": b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff.",
        "dup-doubles": b"\x80\x02]" + b"2\x86" * 60 + b".",
        "dup-many": b"\x80\x02]" + b"2" * 15_000 + b".",
        "lists-deep": b"\x80\x02" + b"]" * 9000 + b"a" * 8999 + b".",
        "tuples-deep": b"\x80\x02)" + b"\x85" * 15_000 + b".",
        "dicts-deep": b"\x80\x02" + b"}K\x01" * 4000 + b"N" + b"s" * 4000 + b".",
        "calls-deep": b"\x80\x02" + b"ca\nb\n(" * 2000 + b"tR" * 2000 + b".",
        "marks-only": b"\x80\x02" + b"(" * 15_000 + b".",
        "text-of-4-gib": b"\x80\x02X\xff\xff\xff\xffabc.",
        "text-of-16-eib": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        "bytes-of-8-eib": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        "bytearray-of-8-eib": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",
        "frame-of-8-eib": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
        "integer-long": b"\x80\x02I" + b"9" * 15_000 + b"\n.",
        "integer-of-2-gib": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "integer-negative-length": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "text-not-utf8": b"\x80\x02X\x02\0\0\0\xff\xfe.",
        "keys-not-text": b"\x80\x02}(NNK\x01K\x02](u.",
        "stack-empty": b".",
        "nothing-left": b"\x80\x02N0.",
        "protocol-unknown": b"\x80\xff}.",
        "opcode-unknown": b"\x80\x02\xfe.",
        "persistent-text": b"\x80\x02P../../etc/passwd\n.",
        "no-tensor": b"\x80\x02}U\x01aK\x01s.",
    }
    return files | cut("tensor", files["good-tensor"])


# Zip: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT


def archive(entries, *, count=None, start=None, end=b""):
    """A zip of (name, content, changes) with the fields of its headers changed at will."""
    body, directory = b"", b""
    for name, content, change in entries:
        raw = change.get("raw", content)
        crc = change.get("crc", zlib.crc32(content))
        sizes = struct.pack("<II", change.get("packed", len(raw)), change.get("size", len(content)))
        method = struct.pack("<H", change.get("method", 0))
        flags = struct.pack("<H", change.get("flags", 0))
        extra = change.get("extra", b"")
        lengths = struct.pack("<HH", change.get("name_length", len(name)), len(extra))
        header = b"\x14\0" + flags + method + b"\0\0\x21\0" + struct.pack("<I", crc) + sizes + lengths
        at = change.get("at", len(body))
        directory += b"PK\x01\x02\x14\0" + header + bytes(10) + struct.pack("<I", at) + name + extra
        if "at" not in change:
            body += b"PK\x03\x04" + header + name + extra + raw
    count = len(entries) if count is None else count
    start = len(body) if start is None else start
    return (
        body + directory + end + b"PK\x05\x06\0\0\0\0" + struct.pack("<HH", count & 0xFFFF, count & 0xFFFF)
        + struct.pack("<II", len(directory), start) + b"\0\0"
    )


def deflated(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def zips():
    pickle = tensor([2], [1])
    data, storage = ("a/data.pkl".encode(), pickle, {}), (b"a/data/0", bytes(8), {})
    good = archive([data, storage])
    legacy = (Path(__file__).parent.parent / "tests/golden/weights/legacy.pth").read_bytes()
    millions = bytes(10_000_000)
    inner = deflated(millions)

    def with_data(**change):
        return archive([(data[0], pickle, change), storage])

    def named(name):
        return archive([data, (name, bytes(8), {})])

    files = {
        "good-zip": good,
        "good-legacy": legacy,
        "bomb": archive([(b"a/data.pkl", millions, {"raw": inner, "method": 8}), storage]),
        "bomb-in-storage": archive([data, (b"a/data/0", millions, {"raw": inner, "method": 8})]),
        # Many entries share one content, but no tensor names them.
        "good-entries-overlapping": archive([data, storage] + [(b"a/data/%d" % n, bytes(8), {"at": 0}) for n in range(1, 250)]),
        "bomb-of-names": archive([data, storage] + [(b"a/data/0", b"", {"at": 0})] * 300),
        "sizes-4-gib": with_data(size=2**32 - 1, packed=2**32 - 1),
        "sizes-past-the-end": with_data(size=5000, packed=5000),
        "sizes-differ": with_data(size=5000),
        "sizes-zip64": with_data(size=2**32 - 1, packed=2**32 - 1, extra=struct.pack("<HHQQ", 1, 16, 2**63, 2**63)),
        "name-past-the-end": with_data(name_length=65535),
        "method-unknown": with_data(method=99),
        "encrypted": with_data(flags=1),
        "several-pickles": archive([data, storage, (b"b/data.pkl", pickle, {})]),
        "no-pickle": archive([storage]),
        "torchscript": archive([data, storage, (b"a/constants.pkl", b"", {})]),
        "empty-archive": archive([]),
        "count-65535": archive([data, storage], count=65535),
        "count-0": archive([data, storage], count=0),
        "directory-at-itself": archive([data, storage], start=2**32 - 1),
        "directory-at-0": archive([data, storage], start=0),
        "entry-is-the-directory": archive([(data[0], pickle, {"at": 60}), storage]),
        # Nobody looks at a zip64 record that the plain one does not ask for.
        "good-zip64-end-at-itself": archive(
            [data, storage], end=b"PK\x06\x06" + struct.pack("<Q", 2**63) + bytes(44) + b"PK\x06\x07\0\0\0\0"
            + struct.pack("<QI", len(good) - 22, 1),
        ),
        "path-up": named(b"../../../../evil"),
        "path-absolute": named(b"/evil"),
        "path-of-windows": named(b"a\\..\\..\\evil"),
        "path-with-drive": named(b"C:/evil"),
        "path-not-utf8": named(b"\xff\xfe/data/0"),
        "path-up-to-the-pickle": archive([(b"../data.pkl", pickle, {}), (b"../data/0", bytes(8), {})]),
        "legacy-storage-huge": legacy.replace(struct.pack("<q", 12), struct.pack("<q", 2**62)),
        "html": b"<!DOCTYPE html><html>404</html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    return files | cut("zip", good) | cut("legacy", legacy)


# Safetensors: https://huggingface.co/docs/safetensors/index#format


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def all_safetensors():
    good = safetensors({"__metadata__": {"a": "b"}, "x": entry([2], 0, 8), "y": entry([], 8, 16, "I64")}, bytes(16))
    files = {
        "good-two": good,
        "good-half": safetensors({"x": entry([2], 0, 4, "F16")}, bytes(4)),
        "header-of-16-eib": safetensors({}, length=2**64 - 1),
        "header-of-8-mib": safetensors({}, length=8 << 20),
        "header-empty": safetensors(b""),
        "header-a-list": safetensors(b"[]"),
        "header-deep": safetensors(b"[" * 15_000),
        "header-deep-value": safetensors(b'{"x":' + b'{"x":' * 3000),
        "header-not-utf8": safetensors(b'{"\xff\xfe":1}'),
        "name-twice": safetensors(b'{"x":%s,"x":%s}' % ((json.dumps(entry([2], 0, 8)).encode(),) * 2), bytes(8)),
        "names-many": safetensors({f"{n}": entry([0], 0, 0) for n in range(280)} | {"z": entry([1], 0, 8)}),
        "offsets-past-the-end": safetensors({"x": entry([1000], 0, 4000)}, bytes(8)),
        "offsets-huge": safetensors({"x": entry([2**61], 0, 2**63)}, bytes(8)),
        "offsets-turned-round": safetensors({"x": entry([2], 8, 0)}, bytes(8)),
        "offsets-overlap": safetensors({"x": entry([2], 0, 8), "y": entry([2], 4, 12)}, bytes(12)),
        "offsets-with-gap": safetensors({"x": entry([2], 8, 16)}, bytes(16)),
        "offsets-negative": safetensors({"x": entry([2], -8, 0)}, bytes(8)),
        "shape-overflows": safetensors({"x": entry([2**32, 2**32], 0, 0)}),
        "shape-overflows-to-fit": safetensors({"x": entry([2**62 + 2], 0, 8)}, bytes(8)),
        "good-shape-of-zeros": safetensors({"x": entry([2**63, 0, 2**63], 0, 0)}),
        "shape-negative": safetensors({"x": entry([-2], 0, 8)}, bytes(8)),
        "shape-long": safetensors({"x": entry([1] * 5000, 0, 8)}, bytes(8)),
        "kind-unknown": safetensors({"x": entry([2], 0, 8, "F33")}, bytes(8)),
        "kind-unsupported": safetensors({"x": entry([8], 0, 8, "BOOL")}, bytes(8)),
        "metadata-not-text": safetensors({"__metadata__": {"a": 1}, "x": entry([2], 0, 8)}, bytes(8)),
        "more-behind": good + b"more",
        "no-tensor": safetensors({}),
    }
    return files | cut("two", good)


# Keras's files. HDF5: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html


def hdf5(fill, **options):
    file = io.BytesIO()
    with h5py.File(file, "w", **options) as root:
        fill(root)
    return file.getvalue()


def layer(root, name="dense", kernel=((1.0, 2.0), (3.0, 4.0)), bias=(0.5, 0.25), **options):
    """A layer as Keras 2 lists it."""
    root.attrs["layer_names"] = [name.encode()]
    group = root.create_group(name)
    group.attrs["weight_names"] = [f"{name}/kernel:0".encode(), f"{name}/bias:0".encode()]
    for part, value in (("kernel:0", kernel), ("bias:0", bias)):
        if value is not None:
            group.create_dataset(f"{name}/{part}", data=np.array(value, "f4"), **(options if part == "kernel:0" else {}))


def vars_of(root, values=((1.0, 2.0), (3.0, 4.0)), **options):
    """A layer as Keras 3 keeps it."""
    root.create_group("layers/dense/vars").attrs["name"] = "dense"
    root.create_dataset("layers/dense/vars/0", data=np.array(values, "f4"), **options)
    root.create_dataset("layers/dense/vars/1", data=np.array((0.5, 0.25), "f4"))


def model_vars(root):
    """The variables of `model`."""
    for name, values in {
        "conv2d": [np.ones((3, 3, 3, 2)), np.zeros(2)],
        "batch_normalization": [np.ones(2), np.zeros(2), np.zeros(2), np.ones(2)],
        "dense": [np.ones((2, 2)), np.zeros(2)],
    }.items():
        root.create_group(f"layers/{name}/vars").attrs["name"] = name
        for index, value in enumerate(values):
            root.create_dataset(f"layers/{name}/vars/{index}", data=value.astype("f4"))


def model(change=lambda layers, config: None):
    """The configuration of a network as Keras 3 writes it, changed; the layers by their names."""

    def tensor(name):
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}

    def layer(kind, name, *inputs, **config):
        args = [tensor(input) for input in inputs]
        nodes = [{"args": [args] if len(args) > 1 else args, "kwargs": {}}] if args else []
        return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}

    layers = [
        layer("InputLayer", "images", batch_shape=[None, 8, 8, 3]),
        layer("Conv2D", "conv2d", "images", filters=2, kernel_size=[3, 3], strides=[1, 1], padding="same", groups=1,
              dilation_rate=[1, 1], data_format="channels_last", activation="linear", use_bias=True),
        layer("BatchNormalization", "batch_normalization", "conv2d", axis=-1, momentum=0.99, epsilon=0.001, center=True,
              scale=True),
        layer("Activation", "activation", "batch_normalization", activation="relu"),
        layer("Add", "add", "activation", "batch_normalization"),
        layer("GlobalAveragePooling2D", "pool", "add", data_format="channels_last", keepdims=False),
        layer("Dropout", "dropout", "pool", rate=0.2),
        layer("Dense", "dense", "dropout", units=2, use_bias=True, activation="softmax"),
    ]
    config = {"name": "m", "layers": layers, "input_layers": [["images", 0, 0]], "output_layers": [["dense", 0, 0]]}
    change({layer["name"]: layer for layer in layers}, config)
    return {"class_name": "Functional", "config": config}


def hostile_models():
    """What no network can be made of."""
    huge = 2**63 - 1

    def of(name, **fields):
        return model(lambda layers, _: layers[name]["config"].update(fields))

    def reads(name, *inputs):
        def change(layers, _):
            history = [{"config": {"keras_history": [input, 0, 0]}, "class_name": "__keras_tensor__"} for input in inputs]
            layers[name]["inbound_nodes"] = [{"args": history, "kwargs": {}}]

        return model(change)

    deep = model()
    for _ in range(25):
        deep = {"class_name": "Sequential", "config": {"name": "s", "layers": [deep]}}
    return {
        "image-huge": of("images", batch_shape=[None, huge, huge, 3]),
        "image-of-5-colours": of("images", batch_shape=[None, 8, 8, 5]),
        "filters-huge": of("conv2d", filters=huge),
        "filters-large": of("conv2d", filters=2**31),
        "filters-a-text": of("conv2d", filters="2"),
        "kernel-0": of("conv2d", kernel_size=[0, 0]),
        "kernel-huge": of("conv2d", kernel_size=[huge, huge]),
        "strides-0": of("conv2d", strides=[0, 0]),
        "strides-negative": of("conv2d", strides=[-1, -1]),
        "groups-0": of("conv2d", groups=0),
        "groups-huge": of("conv2d", groups=huge),
        "epsilon-negative": of("batch_normalization", epsilon=-1.0),
        "momentum-2": of("batch_normalization", momentum=2),
        "rate-1": of("dropout", rate=1.0),
        "units-huge": of("dense", units=huge),
        "units-0": of("dense", units=0),
        "reads-itself": reads("conv2d", "conv2d"),
        "reads-what-comes-later": reads("conv2d", "dense"),
        "reads-nothing-known": reads("conv2d", "n" * 5000),
        "class-unknown": model(lambda layers, _: layers["conv2d"].update(class_name="Evil\nLayer")),
        "name-of-lines": json.loads(json.dumps(model()).replace('"conv2d"', '"conv\\n2d"')),
        "output-missing": model(lambda _, config: config.update(output_layers=[["evil", 0, 0]])),
        "outputs-two": model(lambda _, config: config.update(output_layers=[["dense", 0, 0], ["pool", 0, 0]])),
        "layers-none": model(lambda _, config: config.update(layers=[])),
        "models-deep": deep,
    }


def hdf5s():
    def huge(root):
        layer(root, kernel=None)
        root["dense/dense"].create_dataset("kernel:0", shape=(2**40,), dtype="f4", chunks=(1024,))

    def huge_in_one_piece(root):
        layer(root, kernel=None)
        space = h5py.h5s.create_simple((2**40,))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
        plist.set_obj_track_times(False)
        h5py.h5d.create(root["dense/dense"].id, b"kernel:0", h5py.h5t.IEEE_F32LE, space, plist)

    def bomb(root):
        layer(root, kernel=np.zeros((2000, 1000), "f4"), compression="gzip", compression_opts=9, chunks=(2000, 1000))

    def many_bombs(root):
        layer(root, kernel=np.zeros((2000, 2000), "f4"), compression="gzip", compression_opts=9, chunks=(2000, 2000))

    def group_in_itself(root):
        vars_of(root)
        root["layers/dense/layers"] = root["layers"]
        root["layers/again"] = root

    def links_to_each_other(root):
        layer(root, kernel=None)
        root["dense/dense/kernel:0"] = h5py.SoftLink("/dense/dense/other")
        root["dense/dense/other"] = h5py.SoftLink("/dense/dense/kernel:0")

    def link_out(root):
        layer(root, kernel=None)
        root["dense/dense/kernel:0"] = h5py.ExternalLink("/etc/passwd", "/")

    def data_outside(root):
        layer(root, kernel=None)
        root["dense/dense"].create_dataset("kernel:0", (2, 2), "f4", external=[("../../../etc/passwd", 0, 16)])

    def deep(root):
        root.create_dataset("layers/" + "layers/" * 30 + "vars/0", data=np.zeros(1, "f4"))

    def config(text):
        def fill(root):
            layer(root)
            root.attrs["model_config"] = text

        return fill

    def names(**attributes):
        def fill(root):
            layer(root)
            root.attrs.update(attributes)

        return fill

    def of_type(dtype):
        def fill(root):
            layer(root, kernel=None)
            root["dense/dense"].create_dataset("kernel:0", data=np.zeros((2, 2)).astype(dtype))

        return fill

    good = hdf5(layer)
    latest = hdf5(layer, libver="latest")
    files = {
        "good-keras-2": good,
        "good-latest": latest,
        "good-vars": hdf5(vars_of),
        "good-zipped": hdf5(lambda root: vars_of(root, compression="gzip", shuffle=True)),
        "good-float16": hdf5(of_type("f2")),
        "good-model": hdf5(config(json.dumps(model()))),
        "config-no-model": hdf5(config("{}")),
        "config-kernel-huge": hdf5(config(json.dumps(hostile_models()["kernel-huge"]))),
        "huge": hdf5(huge),
        "huge-in-one-piece": hdf5(huge_in_one_piece),
        "good-bomb-of-8-mb": hdf5(bomb),
        "links-to-each-other": hdf5(links_to_each_other),
        "link-out": hdf5(link_out),
        "data-outside": hdf5(data_outside),
        "deep": hdf5(deep, libver="latest"),
        "config-not-json": hdf5(config("{")),
        "config-deep": hdf5(config("[" * 8000)),
        "names-missing": hdf5(names(layer_names=[b"dense", b"other"])),
        "names-of-paths": hdf5(names(layer_names=[b"../../dense"])),
        "names-twice": hdf5(names(layer_names=[b"dense", b"dense"])),
        "type-text": hdf5(of_type("S4")),
        "type-complex": hdf5(of_type("c8")),
        "no-group": hdf5(lambda root: None),
        # Every group is a table of links at an address; here the root's is itself.
        "addresses-all-same": good.replace(struct.pack("<Q", 680), struct.pack("<Q", 136)),
        # Nobody needs the field.
        "good-end-of-file-far": good[:40] + struct.pack("<Q", 2**62) + good[48:],
        "root-far": good[:64] + struct.pack("<Q", 2**62) + good[72:],
        "root-at-0": good[:64] + struct.pack("<Q", 0) + good[72:],
        "signature-alone": b"\x89HDF\r\n\x1a\n",
        "superblock-unknown": b"\x89HDF\r\n\x1a\n\x63" + good[9:],
    }
    group = hdf5(group_in_itself)
    return files | {"group-in-itself": group} | cut("keras-2", good) | cut("latest", latest)


def keras_archives():
    config = json.dumps(model()).encode()
    metadata = b'{"keras_version": "3.0.0"}'
    weights = hdf5(model_vars, libver="latest")
    parts = [(b"metadata.json", metadata, {}), (b"config.json", config, {}), (b"model.weights.h5", weights, {})]
    good = archive(parts)
    zeros = bytes(9_000_000)
    packed = {"raw": deflated(zeros), "method": 8}

    def with_part(index, content, change=None):
        return archive([*parts[:index], (parts[index][0], content, change or {}), *parts[index + 1 :]])

    files = {
        "good-archive": good,
        "config-a-bomb": with_part(1, zeros, packed),
        "config-deep": with_part(1, b"[" * 8000),
        "config-deep-layers": with_part(1, b'{"config":{"layers":[' * 300 + b"]}}" * 300),
        "config-not-json": with_part(1, b"keras"),
        "config-claims-4-gib": with_part(1, config, {"size": 2**32 - 1}),
        "weights-a-bomb": with_part(2, zeros, packed),
        "weights-claim-4-gib": with_part(2, weights, {"size": 2**32 - 1}),
        "weights-not-hdf5": with_part(2, b"keras"),
        "weights-damaged": with_part(2, weights, {"crc": 1}),
        "weights-missing": archive(parts[:2]),
        # The last one counts, as for Python.
        "good-weights-twice": archive([*parts, parts[2]]),
        "shards": archive([*parts[:2], (b"model.weights.json", b"{}", {})]),
        "path-up": archive([*parts, (b"../../evil", b"", {})]),
        "path-absolute": archive([*parts, (b"/evil", b"", {})]),
    }
    hostile = {name: with_part(1, json.dumps(model).encode()) for name, model in hostile_models().items()}
    return files | hostile | cut("archive", good)


# ONNX: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto


def network():
    weights = np.linspace(-1, 1, 4 * 3 * 3 * 3, dtype="f4").reshape(4, 3, 3, 3)
    tensors = {"w": weights, "b": np.zeros(4, "f4"), "fw": np.ones((2, 4), "f4"), "fb": np.zeros(2, "f4")}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten", axis=1),
        helper.make_node("Gemm", ["f", "fw", "fb"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="corpus")


def onnx_files():
    def changed(change):
        model = network()
        change(model.graph, model)
        return model.SerializeToString()

    def attribute(node, name, values):
        def change(graph, _):
            kept = [a for a in graph.node[node].attribute if a.name != name]
            del graph.node[node].attribute[:]
            graph.node[node].attribute.extend([*kept, helper.make_attribute(name, values)])

        return changed(change)

    def dims(values):
        def change(graph, _):
            graph.initializer[0].dims[:] = values

        return changed(change)

    def image(values):
        def change(graph, _):
            shape = graph.input[0].type.tensor_type.shape
            for dim, value in zip(shape.dim, values):
                dim.dim_value = value

        return changed(change)

    def outside(location, **more):
        def change(graph, _):
            tensor = graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": location, **more}.items():
                tensor.external_data.add(key=key, value=value)

        return changed(change)

    def outside_unused(graph, _):
        """Nobody asks for it, and it must not make room for others."""
        tensor = graph.initializer.add(name="unused", dims=[2**40], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL

    def foreign(graph, model):
        """Other programs have other uses for our keys."""
        for key, value in {"mean": "123.7 116.3 103.5", "classes": "cat,dog", "blocks": "3"}.items():
            model.metadata_props.add(key=key, value=value)

    def ours(graph, model):
        foreign(graph, model)
        model.producer_name = "thawline"

    def edit(node, **fields):
        def change(graph, _):
            for field, values in fields.items():
                if isinstance(values, list):
                    getattr(graph.node[node], field)[:] = values
                else:
                    setattr(graph.node[node], field, values)

        return changed(change)

    def within(field, times, content=b""):
        """Messages within messages."""
        for _ in range(times):
            size, length = len(content), b""
            while size >= 0x80:
                length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
            content = bytes([field << 3 | 2]) + length + bytes([size]) + content
        return content

    def turn_round(graph, _):
        nodes = list(graph.node)[::-1]
        del graph.node[:]
        graph.node.extend(nodes)

    def behind(nodes, **constants):
        """Nodes from `r` to `s` between the activation and the pooling."""

        def change(graph, _):
            graph.node[2].input[:] = ["s"]
            all_nodes = [*graph.node[:2], *(helper.make_node(op, i, [o], f"node-{o}", **a) for op, i, o, a in nodes), *graph.node[2:]]
            del graph.node[:]
            graph.node.extend(all_nodes)
            arrays = {name: np.asarray(value, "f4" if isinstance(value, float) else "i8") for name, value in constants.items()}
            graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in arrays.items())

        return changed(change)

    def computed(*nodes, **constants):
        """The same, where `k` is the shape of a `Reshape`."""
        return behind([*nodes, ("Reshape", ["r", "k"], "s", {})], **constants)

    # Shapes that are computed, channels that are shuffled, taken apart and put together, a layer norm, a GELU that is written out.
    modern = behind(
        [
            ("Shape", ["r"], "sizes", {}),
            ("Slice", ["sizes", "zero", "one"], "n", {}),
            ("Concat", ["n", "cut"], "groups", {"axis": 0}),
            ("Reshape", ["r", "groups"], "grouped", {}),
            ("Transpose", ["grouped"], "turned", {"perm": [0, 2, 1, 3]}),
            ("Reshape", ["turned", "back"], "shuffled", {}),
            ("Slice", ["shuffled", "one", "three", "one"], "some", {}),
            ("Concat", ["some", "r", "some"], "more", {"axis": 1}),
            ("Transpose", ["more"], "last", {"perm": [0, 2, 3, 1]}),
            ("Expand", ["half", "eight"], "gamma", {}),
            ("LayerNormalization", ["last", "gamma", "gamma"], "normed", {"axis": -1}),
            ("Transpose", ["normed"], "first", {"perm": [0, 3, 1, 2]}),
            ("Mul", ["first", "root"], "scaled", {}),
            ("Erf", ["scaled"], "bent", {}),
            ("Add", ["bent", "unit"], "gate", {}),
            ("Mul", ["first", "gate"], "product", {}),
            ("Mul", ["product", "half"], "gelu", {}),
            ("Split", ["gelu", "halves"], "part", {"axis": 1}),
            ("Pad", ["part", "pads"], "padded", {}),
            ("AveragePool", ["padded"], "s", {"kernel_shape": [2, 2], "ceil_mode": 1}),
        ],
        zero=[0], one=[1], three=[3], eight=[8], cut=[2, 2, 64], back=[0, 4, 8, 8], half=0.5, unit=1.0, root=0.5**0.5,
        halves=[4, 4], pads=[0, 0, 1, 0, 0, 0, 0, 1],
    )
    modern = onnx.load_from_string(modern)
    next(node for node in modern.graph.node if node.op_type == "Split").output.append("rest")
    modern = modern.SerializeToString()

    good = network().SerializeToString()
    huge = 2**63 - 1
    files = {
        "good-network": good,
        "good-modern": modern,
        "constant-huge": computed(("ConstantOfShape", ["d"], "k", {}), d=[2**20, 2**20]),
        "constant-large": computed(("ConstantOfShape", ["d"], "k", {}), d=[65536]),
        "constant-repeated": computed(("Expand", ["one", "d"], "k", {}), one=[1], d=[2**40]),
        "constants-doubled": computed(
            ("Concat", ["one", "one"], "k0", {"axis": 0}),
            *(("Concat", [f"k{i}"] * 2, f"k{i + 1}" if i < 39 else "k", {"axis": 0}) for i in range(40)), one=[1]),
        "constants-many": computed(
            ("ConstantOfShape", ["d"], "k0", {}), *(("Abs", [f"k{i}"], f"k{i + 1}" if i < 299 else "k", {}) for i in range(300)),
            d=[65536]),
        "range-endless": computed(("Range", ["zero", "end", "zero"], "k", {}), zero=0, end=huge),
        "range-huge": computed(("Range", ["zero", "end", "one"], "k", {}), zero=0, one=1, end=huge),
        "step-huge": computed(("Slice", ["d", "from", "to", "axis", "step"], "k", {}),
                              d=[0, -1], axis=[0], step=[-huge - 1], to=[-huge - 1], **{"from": [huge]}),
        "divided-by-0": computed(("Div", ["d", "zero"], "k", {}), d=[0, -1], zero=0),
        "index-huge": computed(("Gather", ["d", "place"], "k", {}), d=[0, -1], place=[huge]),
        "dimensions-many": behind([("Unsqueeze", ["r", "axes"], "s", {})], axes=[1] * 1500),
        "dimensions-computed": computed(("Unsqueeze", ["one", "axes"], "k", {}), one=[1], axes=list(range(1500))),
        "sizes-many": computed(d=[1], k=[1] * 1500),
        "size-huge": computed(k=[0, huge, huge, 8]),
        "parts-deep": behind([("Erf", [f"s{i}" if i else "r"], f"s{i + 1}" if i < 299 else "s", {}) for i in range(300)]),
        "products-deep": behind(
            [("Mul", [f"s{i}" if i else "r"] * 2, f"s{i + 1}" if i < 199 else "t", {}) for i in range(200)] + [("Erf", ["t"], "s", {})]),
        "zeros-huge": behind([("Pad", ["r", "d"], "s", {})], d=[0, 0, 2**20, 2**20, 0, 0, 2**20, 2**20]),
        "slices-many": behind([("SplitToSequence", ["r", "one"], "q", {"axis": 2}), ("SequenceAt", ["q", "one"], "s", {})], one=1),
        "sequence-huge": behind([("SplitToSequence", ["r", "one"], "q", {"axis": 1}), ("SequenceAt", ["q", "end"], "s", {})],
                                one=1, end=huge),
        "place-huge": behind([("Gather", ["r", "end"], "s", {"axis": 1})], end=huge),
        "axis-below": behind([("Concat", ["r", "r"], "s", {"axis": -huge})]),
        "good-batch-of-any-size": image([0]),
        "good-data-unused": changed(outside_unused),
        "good-metadata-foreign": changed(foreign),
        "metadata-damaged": changed(ours),
        "op-unknown": edit(1, op_type="Evil"),
        "domain-unknown": edit(1, domain="evil"),
        "node-reads-itself": edit(1, input=["r"]),
        "nodes-in-a-circle": edit(0, input=["y", "w", "b"]),
        "nodes-turned-round": changed(turn_round),
        "node-without-input": edit(0, input=[]),
        "node-without-output": edit(1, output=[]),
        "output-twice": edit(1, output=["c"]),
        "input-unknown": edit(1, input=["nothing"]),
        "name-long": edit(1, op_type="E" * 10_000),
        "name-of-lines": edit(1, op_type="a\nb\0c"),
        "strides-0": attribute(0, "strides", [0, 0]),
        "strides-huge": attribute(0, "strides", [huge, huge]),
        "strides-negative": attribute(0, "strides", [-1, -1]),
        "pads-huge": attribute(0, "pads", [huge] * 4),
        "pads-negative": attribute(0, "pads", [-5] * 4),
        "pads-many": attribute(0, "pads", [1] * 5000),
        "group-0": attribute(0, "group", 0),
        "group-huge": attribute(0, "group", huge),
        "kernel-differs": attribute(0, "kernel_shape", [5, 5]),
        "dilations": attribute(0, "dilations", [2, 2]),
        "axis-huge": attribute(3, "axis", huge),
        "dims-huge": dims([huge, 3, 3, 3]),
        "dims-overflow": dims([2**32, 2**32, 1, 1]),
        "dims-negative": dims([-4, 3, 3, 3]),
        "dims-many": dims([1] * 9000),
        "dims-0": dims([0, 3, 3, 3]),
        "dims-short": dims([4, 3, 3]),
        "image-huge": image([1, 3, 2**40, 2**40]),
        "image-large": image([1, 3, 2**31, 2**31]),
        "good-image-open": image([-1, 3, -8, -8]),
        "image-of-5-colours": image([1, 5, 8, 8]),
        "data-up": outside("../../../../etc/passwd"),
        "data-absolute": outside("/etc/passwd"),
        "data-huge": outside("file", offset="0", length=str(huge)),
        "data-none": changed(lambda graph, _: graph.initializer[0].ClearField("raw_data")),
        "type-unknown": changed(lambda graph, _: setattr(graph.initializer[0], "data_type", 99)),
        "no-nodes": changed(lambda graph, _: graph.ClearField("node")),
        "no-input": changed(lambda graph, _: graph.ClearField("input")),
        "no-output": changed(lambda graph, _: graph.ClearField("output")),
        "no-graph": changed(lambda _, model: model.ClearField("graph")),
        # Attributes hold graphs, which hold nodes, which hold attributes: 7.1.5.6.1.5.6 …
        "graphs-deep": within(7, 1, within(1, 1, within(5, 1, within(6, 3000)))),
        "messages-deep": within(7, 4000),
        "length-huge": b"\x3a" + b"\xff" * 9 + b"\x01",
        "length-past-the-end": b"\x3a\x7f",
        "varint-endless": b"\x08" + b"\xff" * 5000,
        "group-endless": b"\x3b" * 5000,
        "empties-many": b"\x3a\x00" * 9000,
    }
    return files | cut("network", good)


# Graph files: docs/graph.md


def graphs():
    huge = 2**63 - 1

    def network(change=lambda layers, graph: None):
        layers = [
            {"name": "conv", "op": "conv", "channels": 8, "kernel": [3, 3], "stride": [2, 2], "padding": "same",
             "inputs": ["input"]},
            {"name": "bn", "op": "bn", "eps": 0.001, "inputs": ["conv"]},
            {"name": "act", "op": "activation", "act": "relu", "inputs": ["bn"], "block": "b"},
            {"name": "dw", "op": "conv", "channels": 8, "kernel": [3, 3], "padding": [1, 1, 1, 1], "groups": 8,
             "inputs": ["act"], "block": "b"},
            {"name": "add", "op": "add", "inputs": ["act", "dw"], "block": "b"},
            {"name": "max", "op": "max_pool", "kernel": [2, 2], "inputs": ["add"]},
            {"name": "pool", "op": "global_avg_pool", "inputs": ["max"]},
            {"name": "drop", "op": "dropout", "rate": 0.2, "inputs": ["pool"]},
            {"name": "fc", "op": "linear", "channels": 2, "inputs": ["drop"]},
        ]
        graph = {"thawline_graph": 1, "name": "n", "size": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1], "layers": layers}
        change(layers, graph)
        return json.dumps(graph).encode()

    def of(index, **fields):
        return network(lambda layers, _: layers[index].update(fields))

    def graph(**fields):
        return network(lambda _, graph: graph.update(fields))

    def chain(op, count=100, **fields):
        """A layer many times over, between the network's last two."""

        def change(layers, _):
            for index in range(count):
                before = "drop" if index == 0 else f"x{index - 1}"
                layers.insert(-1, {"name": f"x{index}", "op": op, "inputs": [before], **fields})
            layers[-1]["inputs"] = [f"x{count - 1}"]

        return network(change)

    good = network()
    files = {
        "good-network": good,
        "good-deep": chain("activation", act="silu"),
        "version-2": graph(thawline_graph=2),
        "version-huge": graph(thawline_graph=10**300),
        "size-0": graph(size=[0, 0]),
        "size-huge": graph(size=[huge, huge]),
        "size-large": graph(size=[2**31, 2**31]),
        "size-of-one": graph(size=[8]),
        "mean-huge": good.replace(b'"mean": [0', b'"mean": [1e999'),
        "std-0": graph(std=[0, 1, 1]),
        "name-of-lines": graph(name="a\nb"),
        "layers-none": graph(layers=[]),
        "layers-a-number": graph(layers=1),
        "layers-of-nothing": graph(layers=[{}] * 4000),
        "layers-of-numbers": graph(layers=[1] * 6000),
        "field-unknown": graph(**{"f" * 5000: 1}),
        "channels-0": of(0, channels=0),
        "channels-huge": of(0, channels=2**64 - 1),
        "channels-large": of(0, channels=2**31),
        "channels-negative": of(0, channels=-8),
        "kernel-0": of(0, kernel=[0, 0]),
        "kernel-huge": of(0, kernel=[2**64 - 1, 2**64 - 1]),
        "stride-0": of(0, stride=[0, 0]),
        "padding-huge": of(3, padding=[2**64 - 1] * 4),
        "padding-unknown": of(3, padding="valid"),
        "groups-0": of(3, groups=0),
        "groups-3": of(3, groups=3),
        "groups-huge": of(3, groups=2**64 - 1),
        "eps-negative": of(1, eps=-1),
        "keep-2": of(1, keep=2),
        "rate-1": of(7, rate=1),
        "op-unknown": of(1, op="e" * 5000),
        "reads-itself": of(1, inputs=["bn"]),
        "reads-what-comes-later": of(1, inputs=["fc"]),
        "reads-nothing": of(4, inputs=[]),
        "reads-many": of(4, inputs=["act"] * 1500),
        "unread": of(8, inputs=["pool"]),
        "name-twice": of(1, name="conv"),
        "name-of-the-images": of(1, name="input"),
        "weights-large": chain("linear", channels=16384),
        "lists-deep": b"[" * 15_000,
        "objects-deep": b'{"layers":' * 1500,
        "not-utf8": good.replace(b'"n"', b'"\xff"'),
        "not-json": b"thawline",
        "more-behind": good + b"{}",
    }
    return files | cut("network", good)


# Images. PNG's chunks: https://www.w3.org/TR/png-3; WebP's: RFC 9649.


def images():
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests/golden"))
    import make_images

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def png(width=4, height=4, depth=8, kind=2, data=None, more=b"", packed=None):
        rows = data if data is not None else b"\0" + b"\x20\x40\x60" * 4
        packed = packed or zlib.compress(rows * 4)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")

    def riff(*chunks):
        content = b"WEBP" + b"".join(name + struct.pack("<I", size) + data for name, size, data in chunks)
        return b"RIFF" + struct.pack("<I", len(content)) + content

    chosen = {
        "ycbcr-420-interleaved-restart2", "ycbcr-440-separate-restart0", "ycbcr-422-pairs-restart2",
        "ycbcr-chroma-finer-interleaved-restart0", "ycbcr-3x1-progressive-restart2", "rgb-letters-separate",
        "cmyk-420-neither-separate", "ycck-444-adobe2-progressive", "grey-2x2-interleaved", "arithmetic-420",
        "arithmetic-progressive", "common-progressive", "stray-bytes-420-separate", "damaged-interleaved-1",
    }
    jpegs = {name: data for name, data in [*make_images.jpegs(), *make_images.damaged()]}
    others = dict(make_images.others())
    files = {f"good-{name}.jpg": jpegs[name] for name in sorted(chosen)}
    for name in (
        "rgb.bmp", "rle.bmp", "palette.bmp", "png-rgba.png", "png-palette.png", "three-frames.png", "plain.gif",
        "interlaced.gif", "three-frames.gif", "rgb-tiff_lzw.tif", "two-None.tif", "group4.tif",
        "rgb-tiff_adobe_deflate.tif", "jpeg-inside.tif", "lossy.webp", "lossless.webp", "three-frames.webp",
        "orientation-6.jpg", "orientation-6.webp", "orientation-6.tif", "orientation-6.png",
    ):
        files[f"good-{name}"] = others[name]
    lossless = others["lossless.webp"]
    vp8l = lossless[12 : 20 + struct.unpack("<I", lossless[16:20])[0]]
    sized = lambda w, h: bytes([8, 0, 0, 0]) + struct.pack("<I", w - 1)[:3] + struct.pack("<I", h - 1)[:3]  # noqa: E731
    pixels = (vp8l[:4], len(vp8l) - 8, vp8l[8:] + bytes(len(vp8l) % 2))
    exif = (b"EXIF", 4_261_412_890, b"Exif\0\0")
    extended = bytes([8, 0, 0, 0, 20, 0, 0, 13, 0, 0])
    frame = bytes(6) + extended[4:] + bytes(4) + vp8l[:4] + b"\xff\xff\xff\xff"
    bmp = bytearray(others["rgb.bmp"])
    tiff = bytearray(others["rgb-None.tif"])
    gif = bytearray(others["plain.gif"])
    return files | {
        "good-profile-unfolds.png": png(more=chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(8 << 20), 9))),
        "good-text-unfolds.png": png(more=chunk(b"zTXt", b"p\0\0" + zlib.compress(bytes(8 << 20), 9))),
        "size-huge.png": png(width=2**31 - 1, height=2**31 - 1),
        "size-large.png": png(width=60_000, height=60_000),
        "size-wide.png": png(width=1 << 20, height=1),
        "size-0.png": png(width=0),
        "pixels-missing.png": png(data=b""),
        "pixels-unpacked.png": png(packed=b"\x78\x9c\0\0"),
        "depth-3.png": png(depth=3),
        "palette.tif": others["palette-packbits.tif"],
        "palette-missing.png": png(kind=3),
        "chunk-huge.png": png(more=b"\xff\xff\xff\xfftEXt"),
        "chunk-huge.webp": riff((b"VP8X", 10, extended), pixels, exif),
        "chunk-huge-first.webp": riff((b"VP8X", 10, extended), exif, pixels),
        "chunk-huge-in-frame.webp": riff((b"VP8X", 10, bytes([2]) + extended[1:]), (b"ANIM", 6, bytes(6)), (b"ANMF", len(frame), frame)),
        "size-huge.webp": riff((b"VP8X", 10, sized(1 << 24, 1 << 24)), pixels),
        "size-of-pixels.webp": riff((b"VP8L", 12, b"\x2f\xff\xff\xff\x0f" + bytes(7))),
        "size-huge.jpg": make_images.patched(make_images.patched(jpegs["common-420"], 1, 255), 3, 255),
        "good-tables-missing.jpg": jpegs["common-420"].replace(b"\xff\xc4", b"\xff\xfe"),
        "size-huge.bmp": bytes(bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:]),
        "size-least.bmp": bytes(bmp[:18] + struct.pack("<ii", 1, -(2**31)) + bmp[26:]),
        "offset-huge.bmp": bytes(bmp[:10] + b"\xff\xff\xff\xff" + bmp[14:]),
        "directory-beyond.tif": bytes(tiff[:4] + b"\xff\xff\xff\x7f" + tiff[8:]),
        "directory-long.tif": bytes(tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + b"\xff\xff"),
        "values-beyond.tif": others["group4.tif"].replace(
            struct.pack("<HHI", 273, 4, 1), struct.pack("<HHI", 273, 4, 2**26)
        ),
        "size-huge.gif": bytes(gif[:6] + b"\xff\xff\xff\xff" + gif[10:]),
        "no-frame.gif": bytes(gif[:13]) + b";",
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
        "web-page": b"<!DOCTYPE html><html>404</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    } | cut("jpg", jpegs["common-420"]) | cut("webp", others["lossy.webp"]) | cut("png", png()[:-16])


# TensorFlow.js: https://github.com/tensorflow/tfjs/blob/master/tfjs-core/src/io/types.ts


def layers_model(change=lambda model: None, data=None):
    """`model.json`, a zero byte, and what lies beside it as `weights.bin`: see the target."""

    def weight(name, shape):
        return {"name": name, "shape": shape, "dtype": "float32"}

    def of(class_name, name, **config):
        return {"class_name": class_name, "config": {"name": name, **config}}

    layers = [
        of("Conv2D", "conv", filters=2, kernel_size=[1, 1], strides=[1, 1], padding="valid", batch_input_shape=[None, 4, 4, 3], use_bias=True),
        of("BatchNormalization", "bn"),
        of("GlobalAveragePooling2D", "pool"),
        of("Dense", "dense", units=2, activation="softmax"),
    ]
    weights = [weight("conv/kernel", [1, 1, 3, 2]), weight("conv/bias", [2])]
    weights += [weight(f"bn/{part}", [2]) for part in ["gamma", "beta", "moving_mean", "moving_variance"]]
    weights += [weight("dense/kernel", [2, 2]), weight("dense/bias", [2])]
    model = {
        "format": "layers-model",
        "modelTopology": {**of("Sequential", "m", layers=layers), "keras_version": "tfjs-layers 4.22.0"},
        "weightsManifest": [{"paths": ["weights.bin"], "weights": weights}],
    }
    model = change(model) or model
    text = model if isinstance(model, bytes) else json.dumps(model).encode()
    return text + b"\0" + (bytes(88) if data is None else data)


def tfjs_files():
    def weights(change):
        def of(model):
            change(model["weightsManifest"][0]["weights"])

        return of

    def first(**more):
        return layers_model(weights(lambda weights: weights[0].update(more)))

    def group(**more):
        return layers_model(lambda model: model["weightsManifest"][0].update(more))

    def top(**more):
        return layers_model(lambda model: model.update(more))

    def quantised(data, **quantization):
        return layers_model(weights(lambda weights: weights[0].update(quantization=quantization)), data)

    def converted(model):
        model["modelTopology"] = {"keras_version": "2.15.0", "model_config": model["modelTopology"]}

    def nested(model):
        for _ in range(60):
            topology = model["modelTopology"]
            inner = {"class_name": "Sequential", "config": {"name": "m", "layers": [topology]}}
            model["modelTopology"] = inner

    def doubled(weights):
        weights.append(dict(weights[0]))

    good = layers_model()
    huge = 2**63 - 1
    return {
        "good-model": good,
        "good-converted": layers_model(converted),
        "good-uint8": quantised(bytes(70), dtype="uint8", scale=0.5, min=-1.0),
        "good-uint16": quantised(bytes(76), dtype="uint16", scale=0.5, min=-1.0),
        "good-float16": quantised(bytes(76), dtype="float16"),
        "graph-model": top(format="graph-model"),
        "graph-model-unnamed": top(modelTopology={"node": [], "library": {}}),
        "no-topology": top(modelTopology=None),
        "topology-list": top(modelTopology=[]),
        "no-manifest": top(weightsManifest=None),
        "manifest-empty": top(weightsManifest=[]),
        "manifest-of-numbers": top(weightsManifest=[1, 2]),
        "path-up": group(paths=["../weights.bin"]),
        "path-up-later": group(paths=["a/../../weights.bin"]),
        "path-absolute": group(paths=["/etc/passwd"]),
        "path-drive": group(paths=["C:/weights.bin"]),
        "path-backslash": group(paths=["..\\weights.bin"]),
        "path-url": group(paths=["https://example.com/weights.bin"]),
        "path-missing": group(paths=["group1-shard1of1.bin"]),
        "path-empty": group(paths=[""]),
        "path-folder": group(paths=["."]),
        "path-number": group(paths=[7]),
        "path-twice": group(paths=["weights.bin"] * 1000),
        "path-itself": group(paths=["model.json"]),
        "no-paths": group(paths=[]),
        "data-short": layers_model(data=bytes(87)),
        "data-long": layers_model(data=bytes(89)),
        "data-empty": layers_model(data=b""),
        "shape-huge": first(shape=[huge]),
        "shape-overflows": first(shape=[2**32] * 4),
        "shape-negative": first(shape=[-1]),
        "shape-fraction": first(shape=[1.5]),
        "shape-large": first(shape=[1, 1, 3, 2**40]),
        "shape-other": first(shape=[6]),
        "shape-long": first(shape=[1] * 1000 + [6]),
        "shape-missing": first(shape=None),
        "dtype-string": first(dtype="string"),
        "dtype-missing": first(dtype=None),
        "name-twice": layers_model(weights(doubled), bytes(112)),
        "name-missing": first(name=None),
        "name-unknown": first(name="nowhere/kernel"),
        "name-bare": first(name="kernel"),
        "name-long": first(name="conv/" * 2000 + "kernel"),
        "quantised-unknown": quantised(bytes(70), dtype="uint4", scale=1.0, min=0.0),
        "quantised-no-scale": quantised(bytes(70), dtype="uint8", min=0.0),
        "quantised-text": quantised(bytes(70), dtype="uint8", scale="1", min=0.0),
        "models-in-models": layers_model(nested),
        "brackets": layers_model(lambda model: b'{"modelTopology":' + b"[" * 15000),
        "not-json": layers_model(lambda model: b'{"modelTopology":'),
        "two-values": layers_model(lambda model: json.dumps(model).encode() + b"{}"),
        "no-separator": good.split(b"\0")[0],
    } | cut("model", good)


TARGETS = {
    "graph": graphs,
    "pickle": pickles,
    "zip": zips,
    "safetensors": all_safetensors,
    "hdf5": hdf5s,
    "image": images,
    "keras": keras_archives,
    "onnx": onnx_files,
    "tfjs": tfjs_files,
}
for name in sys.argv[1:] or TARGETS:
    write(name, TARGETS[name]())
