#!/usr/bin/env python3
"""Writes images.zip: small images of every layout, NAME.jpg and so on, and beside each NAME.jpg.png with the pixels that
Pillow gives, upright. One without that is refused by Pillow, and must be refused.

    apt-get install libjpeg-turbo-progs     # cjpeg, for arithmetic coding
    pip install pillow numpy
    python3 tests/golden/make_images.py

Everything in it is computed here: no photograph, and nobody's rights.
"""

import io
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

import jpeg

SAMPLINGS = {
    "444": [(1, 1), (1, 1), (1, 1)],
    "422": [(2, 1), (1, 1), (1, 1)],
    "420": [(2, 2), (1, 1), (1, 1)],
    "440": [(1, 2), (1, 1), (1, 1)],
    "411": [(4, 1), (1, 1), (1, 1)],
    "410": [(4, 2), (1, 1), (1, 1)],
    "3x1": [(3, 1), (1, 1), (1, 1)],
    "1x3": [(1, 3), (1, 1), (1, 1)],
    "1x4": [(1, 4), (1, 1), (1, 1)],
    "all-2x2": [(2, 2), (2, 2), (2, 2)],
    "all-2x1": [(2, 1), (2, 1), (2, 1)],
    "422-by-2": [(2, 2), (1, 2), (1, 2)],
    "440-by-2": [(2, 2), (2, 1), (2, 1)],
    "chroma-apart": [(2, 2), (2, 1), (1, 2)],
    "blue-finer": [(2, 2), (2, 2), (1, 1)],
    "chroma-finer": [(1, 1), (2, 2), (2, 2)],
}
# Four components: the inks and black, which is never coarser than the rest.
FOUR = {"444": [(1, 1)] * 4, "420": [(2, 2), (1, 1), (1, 1), (2, 2)], "422": [(2, 1), (1, 1), (1, 1), (2, 1)]}
SCANS = ("interleaved", "separate", "pairs", "progressive")
SIZES = [(24, 16), (17, 13), (33, 9), (8, 8), (40, 31), (1, 19), (23, 1), (31, 40), (15, 34), (9, 17), (1, 1), (3, 2)]
BOTH = jpeg.JFIF + jpeg.adobe(1)
LETTERS = [ord("R"), ord("G"), ord("B")]


def picture(width, height, seed):
    """Slopes, a hard edge between saturated colours, and a little noise: what chroma is most wrong at."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([60 + 4 * x, 200 - 3 * y, 40 + 2 * x + 3 * y], -1).astype(float)
    rgb[(x + 2 * y) % 29 < 11] = [220, 30, 40]
    rgb[(x - y) % 23 < 5] = [20, 60, 230]
    return (rgb + rng.normal(0, 6, rgb.shape)).clip(0, 255)


def inks(rgb):
    """Stored inverted, as Adobe's software does."""
    black = rgb.max(-1, keepdims=True).clip(1)
    return np.concatenate([rgb / black * 255, black], -1)


def jpegs():
    sizes = iter(SIZES * 1000)
    seeds = iter(range(100_000))

    def one(colour, sampling, scans="interleaved", headers=jpeg.JFIF, size=None, **options):
        rgb = picture(*(size or next(sizes)), next(seeds))
        planes = {
            "ycbcr": lambda: jpeg.ycbcr(rgb),
            "rgb": lambda: rgb,
            "grey": lambda: rgb.mean(-1, keepdims=True),
            "two": lambda: rgb[..., :2],
            "cmyk": lambda: inks(rgb),
            # The transform is that of the inverted inks, and black is as it is.
            "ycck": lambda: np.concatenate([jpeg.ycbcr(255 - inks(rgb)[..., :3]), inks(rgb)[..., 3:]], -1),
        }[colour]()
        return jpeg.encode(planes, sampling, scans, headers, **options)

    for name, sampling in SAMPLINGS.items():
        for scans in SCANS:
            for restart in (0, 2):
                yield f"ycbcr-{name}-{scans}-restart{restart}", one("ycbcr", sampling, scans, restart=restart)
    for name, sampling in SAMPLINGS.items():
        yield f"rgb-{name}-adobe0", one("rgb", sampling, headers=jpeg.adobe(0))
    headers = {"jfif": jpeg.JFIF, "adobe1": jpeg.adobe(1), "both": BOTH, "neither": b"", "adobe2": jpeg.adobe(2)}
    numbers = {"1": [1, 2, 3], "0": [0, 1, 2], "odd": [7, 33, 200]}
    for scans in ("interleaved", "separate", "progressive"):
        for name, header in headers.items():
            for first, ids in numbers.items():
                sampling = SAMPLINGS["420" if scans == "interleaved" else "422"]
                yield f"ycbcr-{name}-ids{first}-{scans}", one("ycbcr", sampling, scans, header, ids=ids, restart=1)
        yield f"rgb-letters-{scans}", one("rgb", SAMPLINGS["444"], scans, b"", ids=LETTERS)
        yield f"rgb-letters-420-{scans}", one("rgb", SAMPLINGS["420"], scans, b"", ids=LETTERS)
        yield f"rgb-adobe0-{scans}", one("rgb", SAMPLINGS["444"], scans, jpeg.adobe(0), ids=LETTERS, restart=3)
        yield f"letters-but-jfif-{scans}", one("ycbcr", SAMPLINGS["420"], scans, jpeg.JFIF, ids=LETTERS)
        yield f"adobe0-but-jfif-{scans}", one("ycbcr", SAMPLINGS["420"], scans, jpeg.JFIF + jpeg.adobe(0))
        for factors in ((1, 1), (2, 2), (1, 2), (4, 1)):
            name = "x".join(map(str, factors))
            yield f"grey-{name}-{scans}", one("grey", [factors], scans, restart=2)
        yield f"grey-adobe-{scans}", one("grey", [(1, 1)], scans, jpeg.adobe(0))
        for name, sampling in FOUR.items():
            for header, colour in {"adobe0": "cmyk", "adobe2": "ycck", "neither": "cmyk", "jfif": "cmyk"}.items():
                written = {"adobe0": jpeg.adobe(0), "adobe2": jpeg.adobe(2), "neither": b"", "jfif": jpeg.JFIF}[header]
                yield f"{colour}-{name}-{header}-{scans}", one(colour, sampling, scans, written, restart=3)

    # Between all headers, and before the end. FF bytes are fill, which the standard allows.
    for name, stray in {"zeros": b"\0\0\0", "bytes": b"\1\2\3\4\5", "fill": b"\xff\xff", "one": b"\0"}.items():
        for scans in ("interleaved", "separate", "progressive"):
            for sampling in ("444", "420"):
                data = one("ycbcr", SAMPLINGS[sampling], scans, stray=stray, size=(21, 18))
                yield f"stray-{name}-{sampling}-{scans}", data
    for name, tail in {"zeros": b"\0" * 99, "fill": b"\xff" * 7, "bytes": bytes(range(1, 200))}.items():
        yield f"stray-before-end-{name}", one("ycbcr", SAMPLINGS["420"], tail=tail, restart=2)
    yield "stray-after-end", one("ycbcr", SAMPLINGS["420"]) + bytes(500)
    comment = jpeg.segment(0xFE, b"\xff\xd9\xff\xda\xff\xc0")
    yield "markers-in-comment", one("ycbcr", SAMPLINGS["420"], headers=jpeg.JFIF + comment)
    yield "sixteen-bit-quantisation", sixteen_bit(one("ycbcr", SAMPLINGS["420"]))

    # Arithmetic coding.
    for name, arguments in {
        "420": [],
        "444": ["-sample", "1x1"],
        "422-restart": ["-sample", "2x1", "-restart", "1B"],
        "grey": ["-grayscale"],
        "rgb": ["-rgb"],
        "progressive": ["-progressive"],
        "3x1-progressive": ["-sample", "3x1", "-progressive"],
    }.items():
        yield f"arithmetic-{name}", cjpeg(picture(*next(sizes), next(seeds)), "-arithmetic", *arguments)
    # What the common library writes, with its tables and runs of empty blocks.
    for name, arguments in {
        "420": [],
        "optimised": ["-optimize", "-quality", "30"],
        "progressive": ["-progressive", "-quality", "25"],
        "progressive-440": ["-progressive", "-sample", "1x2", "-restart", "1"],
        "rgb-progressive": ["-rgb", "-progressive"],
    }.items():
        yield f"common-{name}", cjpeg(picture(*next(sizes), next(seeds)), *arguments)

    # Refused by Pillow.
    yield "fractional", one("ycbcr", [(3, 1), (2, 1), (1, 1)])
    yield "two-components", one("two", [(1, 1), (1, 1)])
    yield "twelve-bit", patched(one("grey", [(1, 1)]), 0, 12)
    yield "lossless", patched(one("grey", [(1, 1)]), -5, 0xC3)
    yield "hierarchical", patched(one("grey", [(1, 1)]), -3, 0xC5)
    yield "no-height", patched(patched(one("grey", [(1, 1)]), 1, 0), 2, 0)
    yield "sampling-of-five", patched(one("grey", [(1, 1)]), 7, 0x51)
    yield "sampling-of-none", patched(one("grey", [(1, 1)]), 7, 0x01)


def damaged():
    """One byte of the coded data changed: what Pillow makes of it, we make of it too, and say so."""
    for scans in ("interleaved", "separate", "progressive"):
        for number in range(8):
            rng = np.random.default_rng(number)
            planes = jpeg.ycbcr(picture(40, 32, 500 + number))
            data = bytearray(jpeg.encode(planes, SAMPLINGS["420"], scans, restart=(0, 3)[number % 2]))
            start = data.index(b"\xff\xda") + 14
            at = int(rng.integers(start, len(data) - 2))
            while data[at] == 0xFF or data[at - 1] == 0xFF:
                at -= 1
            data[at] ^= int(rng.integers(1, 128))
            if data[at] != 0xFF and pillow(bytes(data)) is not None:
                yield f"damaged-{scans}-{number}", bytes(data)


def others():
    """Of the other formats, with the pixels as Pillow has them, upright."""
    rgb = Image.fromarray(picture(21, 14, 7).astype(np.uint8))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray((np.arange(21 * 14).reshape(14, 21) % 256).astype(np.uint8)))
    palette, grey = rgb.quantize(16), rgb.convert("L")
    modes = {"rgb": rgb, "rgba": alpha, "palette": palette, "grey": grey, "two": grey.convert("1")}

    def saved(image, kind, **options):
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    for name, image in modes.items():
        yield f"{name}.bmp", saved(image, "BMP")
        yield f"png-{name}.png", saved(image, "PNG", pnginfo=None)
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            yield f"{name}-{compression}.tif", saved(image, "TIFF", compression=compression)
    yield "group4.tif", saved(modes["two"], "TIFF", compression="group4")
    yield "jpeg-inside.tif", saved(rgb, "TIFF", compression="jpeg")
    yield "cmyk.tif", saved(rgb.convert("CMYK"), "TIFF")
    yield "rle.bmp", rle_bmp()
    yield "plain.gif", saved(palette, "GIF")
    yield "grey.gif", saved(grey, "GIF")
    frames = [rgb.rotate(angle).quantize(16) for angle in (0, 30, 60)]
    yield "three-frames.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "interlaced.gif", saved(palette, "GIF", interlace=1)
    yield "three-frames.png", saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(30)])
    yield "three-frames.webp", saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(30)], lossless=True)
    yield "lossy.webp", saved(rgb, "WEBP", quality=60)
    yield "lossless.webp", saved(rgb, "WEBP", lossless=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for ending, kind in {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF"}.items():
            options = {"subsampling": 0, "quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
            yield f"orientation-{orientation}.{ending}", saved(rgb, kind, exif=exif, **options)


def rle_bmp():
    """Eight bits a pixel, by runs: 4 rows of 6."""
    rows = b"".join(bytes([3, n, 3, n + 1, 0, 0]) for n in range(4)) + b"\0\1"
    colours = b"".join(bytes([36 * n, 250 - 30 * n, 17 * n, 0]) for n in range(8))
    header = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 8, 1, len(rows), 0, 0, 8, 8)
    offset = 14 + 40 + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + colours + rows


def patched(data, offset, value):
    """A byte of the frame's header, counted from its precision, set to `value`."""
    frame = data.index(b"\xff\xc0") + 4
    place = frame - 3 if offset < -3 or offset == -3 else frame + offset
    return data[:place] + bytes([value]) + data[place + 1 :]


def sixteen_bit(data):
    start = data.index(b"\xff\xdb")
    table = data[start + 5 : start + 69]
    return data[:start] + jpeg.segment(0xDB, b"\x10" + b"".join(bytes([0, v]) for v in table)) + data[start + 69 :]


def cjpeg(rgb, *arguments):
    ppm = io.BytesIO()
    Image.fromarray(rgb.astype(np.uint8)).save(ppm, "PPM")
    return subprocess.run(["cjpeg", *arguments], input=ppm.getvalue(), stdout=subprocess.PIPE, check=True).stdout


def pillow(data):
    """The pixels as RGB; nothing if Pillow refuses the file. Alpha is dropped, as torchvision's loader does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        print("refused:", error, file=sys.stderr)
        return None


def main():
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:

        def add(name, content):
            # The same time always, so that the same images are the same file.
            entry = zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)

        add("made-with.txt", f"Pillow {PIL.__version__}, libjpeg-turbo {PIL.features.version('libjpeg_turbo')}\n")
        jpeg_files = ((f"{name}.jpg", data) for name, data in [*jpegs(), *damaged()])
        for name, data in [*jpeg_files, *others()]:
            add(name, data)
            if (pixels := pillow(data)) is not None:
                png = io.BytesIO()
                pixels.save(png, "PNG", optimize=True)
                add(f"{name}.png", png.getvalue())
            else:
                print(" ", name, file=sys.stderr)
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    import PIL.features

    main()
