#!/usr/bin/env python3
"""How the convolutions through workgroup memory use memory, for every tile: a model, since compilers tell nothing of it.

    scripts/gpu-static/memory.py

A wave has 64 lanes, a cache line 128 bytes, workgroup memory 32 banks of 4 bytes, of which eight lanes read or write 16 bytes each
in a cycle. A convolution of 64 quads to 64 quads, away from borders. Prints, for a workgroup's first wave and a slab, the cache lines
that its loads touch and how many of them are distinct, and the cycles of workgroup memory and how many of them are lost to bank conflicts. The formulas
are those of shaders/conv2d_*_workgroup.wgsl, the tiles those of src/kernels/conv2d.rs.
"""

TILES = [(16, 16, 2), (16, 16, 1), (16, 8, 1), (8, 16, 1), (8, 8, 1), (4, 16, 1), (4, 8, 1)]
QUADS = 64  # of a pixel, in and out
QUAD = 16  # bytes
OTHER = 1 << 30  # where the second operand begins


def lines(addresses):
    return len({address // 128 for address in addresses})


def cycles(places):
    """Of an instruction by which each lane reads or writes a quad: lanes that want the same quad share it."""
    total = 0
    for start in range(0, len(places), 8):
        banks = {}
        for place in places[start : start + 8]:
            banks.setdefault(place % 8, set()).add(place)
        total += max(len(quads) for quads in banks.values())
    return total


def fewest(places):
    """The cycles if no two lanes met in a bank."""
    return sum(-(-len(set(places[start : start + 8])) // 8) for start in range(0, len(places), 8))


def forward(rows, columns, width):
    count, tile_rows, tile_quads = rows * columns, rows * 8, columns * width
    loads, writes, reads = [], [], []
    for j in range(32 // columns):
        loads.append(lambda l, j=j: ((l // 4 + j * (count // 4)) * QUADS + l % 4) * QUAD)
        writes.append(lambda l, j=j: l % 4 * tile_rows + ((l // 4 + j * (count // 4)) ^ (l % 4 * 2)))
    for j in range(16 * width // rows):
        loads.append(lambda l, j=j: OTHER + ((l // tile_quads + j * (count // tile_quads)) * QUADS + l % tile_quads) * QUAD)
        writes.append(lambda l, j=j: l + j * count)
    for k in range(4):
        reads += [lambda l, k=k, i=i: k * tile_rows + ((l // columns * 8 + i) ^ (k * 2)) for i in range(8)]
        reads += [
            lambda l, k=k, e=e, q=q: (k * 4 + e) * tile_quads + q * columns + l % columns
            for e in range(4)
            for q in range(width)
        ]
    return loads, writes, reads


def input_grad(rows, columns, width):
    count, tile_rows, tile_quads = rows * columns, rows * 8, columns * width

    def place_of(k, quad, row):
        return (k * 4 + row) * tile_quads + (quad ^ (k * 2 + row % 2))

    loads, writes, reads = [], [], []
    for j in range(32 // columns):
        loads.append(lambda l, j=j: ((l // 4 + j * (count // 4)) * QUADS + l % 4) * QUAD)
        writes.append(lambda l, j=j: l % 4 * tile_rows + ((l // 4 + j * (count // 4)) ^ (l % 4 * 2)))
    for j in range(16 * width // rows):
        loads.append(lambda l, j=j: OTHER + ((l // 4 + j * (count // 4)) * QUADS + l % 4) * QUAD)
        row = lambda l, j=j: l // 4 + j * (count // 4)
        writes.append(lambda l, row=row: place_of(l % 4, row(l) // 4, row(l) % 4))
    for k in range(4):
        reads += [lambda l, k=k, i=i: k * tile_rows + ((l // columns * 8 + i) ^ (k * 2)) for i in range(8)]
        reads += [
            lambda l, k=k, r=r, q=q: place_of(k, q * columns + l % columns, r) for q in range(width) for r in range(4)
        ]
    return loads, writes, reads


def weight_grad(rows, columns, width):
    count, row_quads, tile_quads = rows * columns, rows * 2, columns * width
    neighbours = count // 16

    def swizzled(quad, pixel):
        return quad ^ (pixel * neighbours % 8)

    loads, writes, reads = [], [], []
    for many, quads, base in ((32 // columns, row_quads, 0), (16 * width // rows, tile_quads, OTHER)):
        for j in range(many):
            loads.append(lambda l, j=j, base=base: base + (l // neighbours * QUADS + l % neighbours + j * neighbours) * QUAD)
            writes.append(
                lambda l, j=j, quads=quads: l // neighbours * quads + swizzled(l % neighbours + j * neighbours, l // neighbours)
            )
    for k in range(16):
        reads += [lambda l, k=k, i=i: k * row_quads + swizzled(l // columns * 2 + i, k) for i in range(2)]
        reads += [lambda l, k=k, q=q: k * tile_quads + swizzled(q * columns + l % columns, k) for q in range(width)]
    return loads, writes, reads


def main():
    print("| pass | tile | cache lines | distinct | cycles of workgroup memory | of them conflicts | multiply-adds |")
    print("|---|---|---|---|---|---|---|")
    for name, pass_ in (("forward", forward), ("input gradient", input_grad), ("weight gradient", weight_grad)):
        for rows, columns, width in TILES[1:] if pass_ is input_grad else TILES:
            lanes = range(min(64, rows * columns))
            loads, writes, reads = pass_(rows, columns, width)
            touched = sum(lines([load(lane) for lane in lanes]) for load in loads)
            needed = lines([load(lane) for load in loads for lane in lanes])
            used = [[access(lane) for lane in lanes] for access in writes + reads]
            taken = sum(cycles(places) for places in used)
            print(
                f"| {name} | {rows * 8} × {columns * width * 4} | {touched} | {needed} | {taken} "
                f"| {taken - sum(fewest(places) for places in used)} | {512 * width} |"
            )


if __name__ == "__main__":
    main()
