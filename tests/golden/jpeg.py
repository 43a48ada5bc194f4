"""A JPEG encoder for the layouts that no library writes: any sampling factors, any scans, any headers.

Sequential and progressive Huffman coding, 8 bits. It is slow, and its Huffman tables are not short: every symbol of a
table has a code of about the same length.
"""

import struct

import numpy as np

ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
# Basis of the 8-point DCT-II, orthonormal.
DCT = np.array([[(0.5 if k else 8**-0.5) * np.cos((2 * n + 1) * k * np.pi / 16) for n in range(8)] for k in range(8)])


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def ycbcr(rgb):
    r, g, b = np.moveaxis(rgb, -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], -1)


def ceil_div(a, b):
    return -(-a // b)


class Bits:
    def __init__(self):
        self.out, self.value, self.count = bytearray(), 0, 0

    def put(self, value, count):
        self.value, self.count = self.value << count | value, self.count + count
        while self.count >= 8:
            self.count -= 8
            byte = self.value >> self.count & 0xFF
            self.out += b"\xff\0" if byte == 0xFF else bytes([byte])
            self.value &= (1 << self.count) - 1

    def end(self):
        if self.count:
            pad = 8 - self.count
            self.put((1 << pad) - 1, pad)
        return bytes(self.out)


def magnitude(value):
    """The category of a coefficient and the bits that follow its symbol."""
    size = int(abs(value)).bit_length()
    return size, int(value if value >= 0 else value + (1 << size) - 1)


def sequential(block, previous, first, last):
    """Entries (table, symbol, bits, count of bits) of a block in zigzag order."""
    entries = []
    if first == 0:
        size, bits = magnitude(block[0] - previous)
        entries.append(("dc", size, bits, size))
    run = 0
    for value in block[max(first, 1) : last + 1]:
        if value == 0:
            run += 1
            continue
        while run > 15:
            entries.append(("ac", 0xF0, 0, 0))
            run -= 16
        size, bits = magnitude(value)
        entries.append(("ac", run << 4 | size, bits, size))
        run = 0
    if run:
        entries.append(("ac", 0, 0, 0))
    return entries


def refined(block, first, last, low):
    """A later scan of AC coefficients: one more bit of each that was nonzero, and those that become so."""
    levels = [int(abs(value)) >> low for value in block]
    ones = [k for k in range(first, last + 1) if levels[k] == 1]
    final = ones[-1] if ones else -1
    entries, corrections, run = [], [], 0
    for k in range(first, last + 1):
        level = levels[k]
        if level == 0:
            run += 1
            continue
        while run > 15 and k <= final:
            entries += [("ac", 0xF0, 0, 0), *corrections]
            corrections, run = [], run - 16
        if level > 1:
            corrections.append((None, 0, level & 1, 1))
            continue
        entries += [("ac", run << 4 | 1, int(block[k] > 0), 1), *corrections]
        corrections, run = [], 0
    if run or corrections:
        entries += [("ac", 0, 0, 0), *corrections]
    return entries


def huffman_table(kind, number, symbols):
    """Codes of equal length for the symbols, and the segment that says so. A code of ones only is not allowed."""
    symbols = sorted(symbols) or [0]
    length = max(1, len(symbols).bit_length())
    counts = [len(symbols) if n == length else 0 for n in range(1, 17)]
    content = bytes([(kind == "ac") << 4 | number, *counts, *symbols])
    return {symbol: (code, length) for code, symbol in enumerate(symbols)}, segment(0xC4, content)


class Component:
    def __init__(self, plane, sampling, most, table):
        height, width = plane.shape
        (h, v), (most_h, most_v) = sampling, most
        self.h, self.v = h, v
        # What a scan of this component alone holds, and what whole MCUs hold.
        self.wide, self.high = ceil_div(ceil_div(width * h, most_h), 8), ceil_div(ceil_div(height * v, most_v), 8)
        across, down = ceil_div(width, 8 * most_h) * h, ceil_div(height, 8 * most_v) * v
        # Averages of the pixels that a sample stands for, of the edge's beyond the edge.
        xs = (np.arange(across * 8)[:, None] * most_h + np.arange(most_h)) // h
        ys = (np.arange(down * 8)[:, None] * most_v + np.arange(most_v)) // v
        plane = plane[ys.clip(0, height - 1)].mean(1)[:, xs.clip(0, width - 1)].mean(2) - 128
        blocks = plane.reshape(down, 8, across, 8).swapaxes(1, 2)
        spectrum = DCT @ blocks @ DCT.T
        self.blocks = np.rint(spectrum.reshape(down, across, 64)[..., ZIGZAG] / table).astype(int)


def quantisation(strength):
    """Coarser towards high frequencies, in zigzag order."""
    return np.array([min(255, 1 + int(strength * (1 + i // 8 + i % 8))) for i in ZIGZAG])


def encode(planes, sampling, scans="interleaved", headers=JFIF, ids=None, restart=0, strength=1.0, stray=b"", tail=b""):
    """`planes` [height, width, components], 0 to 255. `stray` comes between all headers, `tail` before the end."""
    height, width, count = planes.shape
    table = quantisation(strength)
    most = max(h for h, _ in sampling), max(v for _, v in sampling)
    components = [Component(planes[..., c], sampling[c], most, table) for c in range(count)]
    everything = tuple(range(count))
    ids = ids or [c + 1 for c in everything]
    progressive = scans == "progressive"
    if scans == "interleaved":
        script = [(everything, 0, 63, 0, 0)]
    elif scans == "separate":
        script = [((c,), 0, 63, 0, 0) for c in everything]
    elif scans == "pairs":
        script = [((0,), 0, 63, 0, 0), (everything[1:], 0, 63, 0, 0)]
    else:
        script = [(everything, 0, 0, 0, 1)]
        script += [((c,), first, last, 0, 2) for c in everything for first, last in ((1, 5), (6, 63))]
        script += [((c,), 1, 63, 2, 1) for c in everything] + [(everything, 0, 0, 1, 0)]
        script += [((c,), 1, 63, 1, 0) for c in everything]

    frame = struct.pack(">BHHB", 8, height, width, count)
    for c in everything:
        h, v = sampling[c]
        frame += bytes([ids[c], h << 4 | v, 0])
    parts = [b"\xff\xd8", headers, segment(0xDB, b"\0" + bytes(table.tolist())), segment(0xC2 if progressive else 0xC0, frame)]
    if restart:
        parts.append(segment(0xDD, struct.pack(">H", restart)))
    for number, (chosen, first, last, high, low) in enumerate(script):
        units = list(order([components[c] for c in chosen], chosen))
        pieces = [units[i : i + restart] for i in range(0, len(units), restart)] if restart else [units]
        entries = []
        for piece in pieces:
            previous = dict.fromkeys(chosen, 0)
            entries.append([])
            for c, row, column in (place for unit in piece for place in unit):
                block = components[c].blocks[row, column]
                if first == 0 and high:
                    entries[-1].append((None, 0, int(block[0]) >> low & 1, 1))
                elif high:
                    entries[-1] += refined(block, first, last, low)
                else:
                    shifted = np.sign(block) * (np.abs(block) >> low)
                    shifted[0] = block[0] >> low
                    entries[-1] += sequential(shifted, previous[c], first, last)
                    previous[c] = shifted[0]
        codes = {}
        for kind in ("dc", "ac"):
            symbols = {entry[1] for piece in entries for entry in piece if entry[0] == kind}
            codes[kind], written = huffman_table(kind, 0, symbols)
            parts.append(written)
        scan = bytes([len(chosen)]) + b"".join(bytes([ids[c], 0]) for c in chosen)
        parts.append(segment(0xDA, scan + bytes([first, last, high << 4 | low])))
        coded = []
        for piece in entries:
            bits = Bits()
            for kind, symbol, value, size in piece:
                if kind:
                    bits.put(*codes[kind][symbol])
                bits.put(value, size)
            coded.append(bits.end())
        data = b"".join(part + bytes([0xFF, 0xD0 + i % 8]) for i, part in enumerate(coded[:-1])) + coded[-1]
        parts[-1] += data
    return parts[0] + stray.join([*parts[1:-1], parts[-1]]) + tail + b"\xff\xd9"


def order(components, numbers):
    """The blocks (component, row, column) of each MCU of a scan."""
    if len(components) == 1:
        (component,) = components
        for row in range(component.high):
            for column in range(component.wide):
                yield [(numbers[0], row, column)]
        return
    down = components[0].blocks.shape[0] // components[0].v
    across = components[0].blocks.shape[1] // components[0].h
    for y in range(down):
        for x in range(across):
            yield [
                (number, y * component.v + dy, x * component.h + dx)
                for component, number in zip(components, numbers)
                for dy in range(component.v)
                for dx in range(component.h)
            ]
