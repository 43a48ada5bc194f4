// dw = x ∗ dy over one split of the strips, each channel by itself. One invocation: four channels of the whole window. It
// goes down each strip, a few columns of `band` rows of dy, loads each row of x and of dy once, and keeps as many rows of dy
// as meet a row of x.

struct Params {
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
    strips: u32,
    strips_per_split: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn depthwise_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.quads;
    let split = index / p.quads;
    let start = split * p.strips_per_split;
    if start >= p.strips {
        return;
    }
    let tiles = (p.out_w + columns - 1u) / columns;
    let bands = (p.out_h + p.band - 1u) / p.band;
    let reach = (kernel_h - 1u) / stride_h;
    var sums: array<array<vec4<f32>, 7>, 7>;
    for (var strip = start; strip < min(start + p.strips_per_split, p.strips); strip++) {
        let first = strip % tiles * columns;
        let image = strip / tiles / bands;
        let top = strip / tiles % bands * p.band;
        let behind = min(top + p.band, p.out_h);
        let left = i32(first * stride_w) - p.pad_left;
        // rows[b] is the row of dy b rows above the one whose window begins at the present row of x.
        var rows: array<array<vec4<f32>, 4>, 7>;
        // Rows below the image add nothing.
        let end = min(behind + reach, (u32(p.in_h + p.pad_top) + stride_h - 1u) / stride_h);
        for (var below = top; below < end; below++) {
            for (var i = 0u; i < 4u; i++) {
                if i < columns {
                    let oy = min(below, behind - 1u);
                    let ox = min(first + i, p.out_w - 1u);
                    let value = dy[((image * p.out_h + oy) * p.out_w + ox) * p.quads + quad];
                    rows[0][i] = select(vec4<f32>(), value, below < behind && first + i < p.out_w);
                }
            }
            var values: array<array<vec4<f32>, 13>, 2>;
            for (var j = 0u; j < 2u; j++) {
                if j < stride_h {
                    let iy = i32(below * stride_h + j) - p.pad_top;
                    let begin = u32((i32(image) * p.in_h + clamp(iy, 0, p.in_h - 1)) * p.in_w);
                    for (var i = 0u; i < 13u; i++) {
                        if i < (columns - 1u) * stride_w + kernel_w {
                            let ix = left + i32(i);
                            let value = x[(begin + u32(clamp(ix, 0, p.in_w - 1))) * p.quads + quad];
                            let inside = iy >= 0 && iy < p.in_h && ix >= 0 && ix < p.in_w;
                            values[j][i] = select(vec4<f32>(), value, inside);
                        }
                    }
                    for (var b = 0u; b < 7u; b++) {
                        for (var kx = 0u; kx < 7u; kx++) {
                            if b * stride_h + j < kernel_h && kx < kernel_w {
                                for (var i = 0u; i < 4u; i++) {
                                    if i < columns {
                                        sums[b * stride_h + j][kx] += values[j][i * stride_w + kx] * rows[b][i];
                                    }
                                }
                            }
                        }
                    }
                }
            }
            rows = array(array<vec4<f32>, 4>(), rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]);
        }
    }
    for (var ky = 0u; ky < 7u; ky++) {
        for (var kx = 0u; kx < 7u; kx++) {
            if ky < kernel_h && kx < kernel_w {
                partials[((split * kernel_h + ky) * kernel_w + kx) * p.quads + quad] = sums[ky][kx];
            }
        }
    }
}
