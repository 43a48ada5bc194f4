// z = act(x ∗ weight + bias + residual), each channel by itself. One invocation: four channels of four consecutive pixels
// of a row, for which it loads each pixel of the window's rows once.

struct Params {
    rows: u32,
    in_h: i32,
    in_w: i32,
    quads: u32,
    out_h: u32,
    out_w: u32,
    kernel_h: i32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    has_bias: u32,
    has_residual: u32,
    act: u32,
}

// The parameters of the same names, for the compiler.
override kernel_w: u32 = 3u;
override stride_w: u32 = 1u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn depthwise_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.quads;
    let tile = index / p.quads;
    let tiles = (p.out_w + 3u) / 4u;
    let row = tile / tiles;
    if row >= p.rows {
        return;
    }
    let first = tile % tiles * 4u;
    let image = i32(row / p.out_h) * p.in_h;
    let top = i32(row % p.out_h) * p.stride_h - p.pad_top;
    let left = i32(first * stride_w) - p.pad_left;
    var sums: array<vec4<f32>, 4>;
    for (var ky = max(-top, 0); ky < min(p.kernel_h, p.in_h - top); ky++) {
        let begin = u32((image + top + ky) * p.in_w);
        var values: array<vec4<f32>, 13>;
        for (var i = 0u; i < 3u * stride_w + kernel_w; i++) {
            values[i] = column(begin, left + i32(i), quad);
        }
        for (var kx = 0u; kx < kernel_w; kx++) {
            let w = weight[(u32(ky) * kernel_w + kx) * p.quads + quad];
            for (var i = 0u; i < 4u; i++) {
                sums[i] += values[i * stride_w + kx] * w;
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        if first + i < p.out_w {
            let at = (row * p.out_w + first + i) * p.quads + quad;
            var y = sums[i];
            if p.has_bias != 0u {
                y += bias[quad];
            }
            if p.has_residual != 0u {
                y += residual[at];
            }
            z[at] = activate(y, p.act);
        }
    }
}

// A pixel of the input's row that begins at pixel `begin`; zeros outside of it.
fn column(begin: u32, ix: i32, quad: u32) -> vec4<f32> {
    let inside = ix >= 0 && ix < p.in_w;
    let value = x[(begin + u32(clamp(ix, 0, p.in_w - 1))) * p.quads + quad];
    return select(vec4<f32>(), value, inside);
}
