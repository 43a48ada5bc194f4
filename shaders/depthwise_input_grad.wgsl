// dx = dy ∗ᵀ weight, replacing dx or added to it, each channel by itself. One invocation: four channels of four
// consecutive pixels of a row, for which it loads each pixel of the rows of dy once. It takes the rows and columns of
// the window that hit an output only.

struct Params {
    rows: u32,
    in_h: u32,
    in_w: i32,
    quads: u32,
    out_h: i32,
    out_w: i32,
    kernel_h: i32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    accumulate: u32,
}

// The parameters of the same names, for the compiler.
override kernel_w: u32 = 3u;
override stride_w: u32 = 1u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

@compute @workgroup_size(64)
fn depthwise_input_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.quads;
    let tile = index / p.quads;
    let offset = p.pad_left % i32(stride_w);
    let tiles = u32(p.in_w + offset + 3) / 4u;
    let row = tile / tiles;
    if row >= p.rows {
        return;
    }
    // Where a window begins, so that which columns meet which pixels is the same for every tile.
    let first = i32(tile % tiles) * 4 - offset;
    let image = i32(row / p.in_h) * p.out_h;
    let bottom = i32(row % p.in_h) + p.pad_top;
    let reach = (kernel_w - 1u) / stride_w;
    let left = (first + p.pad_left) / i32(stride_w) - i32(reach);
    var sums: array<vec4<f32>, 4>;
    for (var ky = bottom % p.stride_h; ky < p.kernel_h; ky += p.stride_h) {
        let oy = (bottom - ky) / p.stride_h;
        if bottom < ky || oy >= p.out_h {
            continue;
        }
        let begin = u32((image + oy) * p.out_w);
        var values: array<vec4<f32>, 13>;
        for (var i = 0u; i <= reach + 3u / stride_w; i++) {
            values[i] = column(begin, left + i32(i), quad);
        }
        for (var kx = 0u; kx < kernel_w; kx++) {
            let w = weight[(u32(ky) * kernel_w + kx) * p.quads + quad];
            for (var i = 0u; i < 4u; i++) {
                let ahead = reach * stride_w + i - kx;
                if (reach * stride_w + i + stride_w - kx) % stride_w == 0u {
                    sums[i] += values[ahead / stride_w] * w;
                }
            }
        }
    }
    for (var i = 0; i < 4; i++) {
        let ix = first + i;
        if ix >= 0 && ix < p.in_w {
            let at = (row * u32(p.in_w) + u32(ix)) * p.quads + quad;
            var sum = sums[i];
            if p.accumulate != 0u {
                sum += dx[at];
            }
            dx[at] = sum;
        }
    }
}

// A pixel of the row of dy that begins at pixel `begin`; zeros outside of it.
fn column(begin: u32, ox: i32, quad: u32) -> vec4<f32> {
    let inside = ox >= 0 && ox < p.out_w;
    let value = dy[(begin + u32(clamp(ox, 0, p.out_w - 1))) * p.quads + quad];
    return select(vec4<f32>(), value, inside);
}
