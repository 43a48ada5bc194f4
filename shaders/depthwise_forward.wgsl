// z = act(x ∗ weight + bias + residual), each channel by itself. One invocation: a few channels of a strip, a few columns
// of `band` rows of `images_each` images. It goes down the strip, loads each row of the input once and adds it to all the outputs whose windows
// have it: the sums in the making move along as it goes.

struct Params {
    images: u32,
    images_each: u32,
    in_h: i32,
    in_w: i32,
    quads: u32,
    out_h: u32,
    out_w: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: i32,
    pad_left: i32,
    band: u32,
    has_bias: u32,
    has_residual: u32,
    act: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<Lanes>;
@group(0) @binding(2) var<storage, read> weight: array<Lanes>;
@group(0) @binding(3) var<storage, read> bias: array<Lanes>;
@group(0) @binding(4) var<storage, read> residual: array<Lanes>;
@group(0) @binding(5) var<storage, read_write> z: array<Lanes>;

@compute @workgroup_size(64)
fn depthwise_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let parts = p.quads * PER_QUAD;
    let part = index % parts;
    let tiles = (p.out_w + columns - 1u) / columns;
    let bands = (p.out_h + p.band - 1u) / p.band;
    let first = index / parts % tiles * columns;
    let line = index / parts / tiles;
    let start = line / bands * p.images_each;
    if start >= p.images {
        return;
    }
    let top = line % bands * p.band;
    let behind = min(top + p.band, p.out_h);
    let left = i32(first * stride_w) - p.pad_left;
    var w = array<array<Lanes, 7>, 7>();
    for (var ky = 0u; ky < 7u; ky++) {
        for (var kx = 0u; kx < 7u; kx++) {
            if ky < kernel_h && kx < kernel_w {
                w[ky][kx] = weight[(ky * kernel_w + kx) * parts + part];
            }
        }
    }
    var offset = Lanes(0.0);
    if p.has_bias != 0u {
        offset = bias[part];
    }
    let reach = (kernel_h - 1u) / stride_h;
    // Rows above and below the image add nothing.
    let begin = clamp(u32(p.pad_top) / stride_h, top, top + reach);
    let end = min(behind + reach, (u32(p.in_h + p.pad_top) + stride_h - 1u) / stride_h);
    for (var image = start; image < min(start + p.images_each, p.images); image++) {
        // sums[b] is of the output row b rows above the one whose window begins at the present input row.
        var sums = array<array<Lanes, 4>, 7>();
        for (var below = begin; below < behind + reach; below++) {
            if below < end {
                var values = array<array<Lanes, 13>, 2>();
                for (var j = 0u; j < 2u; j++) {
                    if j < stride_h {
                        let iy = i32(below * stride_h + j) - p.pad_top;
                        let row = u32((i32(image) * p.in_h + clamp(iy, 0, p.in_h - 1)) * p.in_w);
                        for (var i = 0u; i < 13u; i++) {
                            if i < (columns - 1u) * stride_w + kernel_w {
                                let ix = left + i32(i);
                                let value = x[(row + u32(clamp(ix, 0, p.in_w - 1))) * parts + part];
                                let inside = iy >= 0 && iy < p.in_h && ix >= 0 && ix < p.in_w;
                                values[j][i] = select(Lanes(0.0), value, inside);
                            }
                        }
                        for (var b = 0u; b < 7u; b++) {
                            for (var kx = 0u; kx < 7u; kx++) {
                                if b * stride_h + j < kernel_h && kx < kernel_w {
                                    for (var i = 0u; i < 4u; i++) {
                                        if i < columns {
                                            sums[b][i] += values[j][i * stride_w + kx] * w[b * stride_h + j][kx];
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            if below >= top + reach {
                store(sums[reach], offset, image * p.out_h + below - reach, first, part);
            }
            sums = moved(sums);
        }
    }
}

fn moved(sums: array<array<Lanes, 4>, 7>) -> array<array<Lanes, 4>, 7> {
    return array(array<Lanes, 4>(), sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]);
}

// The columns of an output row.
fn store(sums: array<Lanes, 4>, offset: Lanes, row: u32, first: u32, part: u32) {
    var values = sums;
    for (var i = 0u; i < 4u; i++) {
        if i < columns && first + i < p.out_w {
            let at = (row * p.out_w + first + i) * p.quads * PER_QUAD + part;
            var y = values[i] + offset;
            if p.has_residual != 0u {
                y += residual[at];
            }
            z[at] = narrowed(activate(widened(y), p.act));
        }
    }
}
