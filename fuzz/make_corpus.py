#!/usr/bin/env python3
"""Writes fuzz/corpus: small files of each format, sound ones (good-*) and hostile ones.

    python3 fuzz/make_corpus.py

Needs nothing but Python's own library; the same files come out each time.
"""

import json
import shutil
import struct
import zlib
from pathlib import Path

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
        # Many entries share one content.
        "bomb-overlapping": archive([data, storage] + [(b"a/data/%d" % n, bytes(8), {"at": 0}) for n in range(1, 250)]),
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
        # The end of the zip64 directory is where the record itself is.
        "zip64-end-at-itself": archive(
            [data, storage], end=b"PK\x06\x06" + struct.pack("<Q", 2**63) + bytes(44) + b"PK\x06\x07\0\0\0\0"
            + struct.pack("<QI", len(good) - 22, 1),
        ),
        "path-up": named(b"../../../../tmp/evil"),
        "path-absolute": named(b"/tmp/evil"),
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
        "shape-of-zeros": safetensors({"x": entry([2**63, 0, 2**63], 0, 0)}),
        "shape-negative": safetensors({"x": entry([-2], 0, 8)}, bytes(8)),
        "shape-long": safetensors({"x": entry([1] * 5000, 0, 8)}, bytes(8)),
        "kind-unknown": safetensors({"x": entry([2], 0, 8, "F33")}, bytes(8)),
        "kind-unsupported": safetensors({"x": entry([8], 0, 8, "BOOL")}, bytes(8)),
        "metadata-not-text": safetensors({"__metadata__": {"a": 1}, "x": entry([2], 0, 8)}, bytes(8)),
        "more-behind": good + b"more",
        "no-tensor": safetensors({}),
    }
    return files | cut("two", good)


write("pickle", pickles())
write("zip", zips())
write("safetensors", all_safetensors())
