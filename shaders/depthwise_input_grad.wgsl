// x_grad = dy ∗ᵀ weight, replacing x_grad or added to it, each channel by itself. One invocation: a few channels of a
// strip, four columns of the rows that `band` rows of dy are the last to reach. It goes down the strip, loads each row of
// dy once and adds it to all the rows of x_grad that its windows have, which move along as it goes. It takes the columns
// of the window that hit an output only.

struct Params {
    images: u32,
    images_each: u32,
    in_h: i32,
    in_w: i32,
    quads: u32,
    out_h: i32,
    out_w: i32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    band: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<Lanes>;
@group(0) @binding(2) var<storage, read> weight: array<Lanes>;
@group(0) @binding(3) var<storage, read_write> x_grad: array<Lanes>;

@compute @workgroup_size(64)
fn depthwise_input_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let parts = p.quads * PER_QUAD;
    let part = index % parts;
    // Strips begin where a window does, so that which taps meet which pixels is the same for every strip.
    let above = p.pad_top % stride_h;
    let before = p.pad_left % stride_w;
    let tiles = (u32(p.in_w) + before + columns - 1u) / columns;
    let steps = (u32(p.in_h) + above + stride_h - 1u) / stride_h;
    let bands = (steps + p.band - 1u) / p.band;
    let tile = index / parts % tiles;
    let line = index / parts / tiles;
    let start = line / bands * p.images_each;
    if start >= p.images {
        return;
    }
    let first = i32(tile * columns) - i32(before);
    let top = line % bands * p.band + p.pad_top / stride_h;
    let behind = min(top + p.band, steps + p.pad_top / stride_h);
    let reach_h = (kernel_h - 1u) / stride_h;
    let reach_w = (kernel_w - 1u) / stride_w;
    let left = i32((tile * columns + p.pad_left - before) / stride_w) - i32(reach_w);
    var w = array<array<Lanes, 7>, 7>();
    for (var ky = 0u; ky < 7u; ky++) {
        for (var kx = 0u; kx < 7u; kx++) {
            if ky < kernel_h && kx < kernel_w {
                w[ky][kx] = weight[(ky * kernel_w + kx) * parts + part];
            }
        }
    }
    // Rows above and below the outputs add nothing.
    let end = min(behind, u32(p.out_h));
    for (var image = start; image < min(start + p.images_each, p.images); image++) {
        // sums[ky] is of the row of x_grad that row ky of the window of the present row of dy lies on.
        var sums = array<array<Lanes, 4>, 8>();
        for (var oy = max(top, reach_h) - reach_h; oy < behind; oy++) {
            if oy < end {
                let begin = u32((i32(image) * p.out_h + i32(oy)) * p.out_w);
                var values = array<Lanes, 10>();
                for (var i = 0u; i < 10u; i++) {
                    if i <= reach_w + (columns - 1u) / stride_w {
                        let ox = left + i32(i);
                        let value = dy[(begin + u32(clamp(ox, 0, p.out_w - 1))) * parts + part];
                        let inside = ox >= 0 && ox < p.out_w;
                        values[i] = select(Lanes(0.0), value, inside);
                    }
                }
                for (var ky = 0u; ky < 7u; ky++) {
                    for (var kx = 0u; kx < 7u; kx++) {
                        if ky < kernel_h && kx < kernel_w {
                            for (var i = 0u; i < 4u; i++) {
                                if i < columns && (i + kx) % stride_w == 0u {
                                    sums[ky][i] += values[(reach_w * stride_w + i - kx) / stride_w] * w[ky][kx];
                                }
                            }
                        }
                    }
                }
            }
            if oy >= top {
                store(sums, image, oy, first, part);
            }
            sums = moved(sums);
        }
    }
}

fn moved(sums: array<array<Lanes, 4>, 8>) -> array<array<Lanes, 4>, 8> {
    let none = array<Lanes, 4>();
    if stride_h == 1u {
        return array(sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], none, none);
    }
    return array(sums[2], sums[3], sums[4], sums[5], sums[6], sums[7], none, none);
}

// The columns of the rows of x_grad that row `oy` of dy is the last to reach.
fn store(sums: array<array<Lanes, 4>, 8>, image: u32, oy: u32, first: i32, part: u32) {
    var values = sums;
    for (var j = 0u; j < 2u; j++) {
        let iy = i32(oy * stride_h + j) - i32(p.pad_top);
        if j < stride_h && iy >= 0 && iy < p.in_h {
            for (var i = 0; i < 4; i++) {
                let ix = first + i;
                if i < i32(columns) && ix >= 0 && ix < p.in_w {
                    let at = u32((i32(image) * p.in_h + iy) * p.in_w + ix) * p.quads * PER_QUAD + part;
                    var sum = values[j][i];
                    if p.accumulate != 0u {
                        sum += x_grad[at];
                    }
                    x_grad[at] = sum;
                }
            }
        }
    }
}
