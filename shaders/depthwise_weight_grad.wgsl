// dw = x ∗ dy over one split of the output rows, each channel by itself. One invocation: four channels of one row of the
// window.

struct Params {
    rows: u32,
    in_h: i32,
    in_w: i32,
    quads: u32,
    out_h: u32,
    out_w: u32,
    kernel_h: u32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    rows_per_split: u32,
}

// The parameters of the same names, for the compiler.
override kernel_w: u32 = 3u;
override stride_w: u32 = 1u;

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
    let ky = index / p.quads % p.kernel_h;
    let split = index / p.quads / p.kernel_h;
    let start = split * p.rows_per_split;
    if start >= p.rows {
        return;
    }
    let end = min(start + p.rows_per_split, p.rows);
    var sums: array<vec4<f32>, 7>;
    for (var row = start; row < end; row++) {
        let iy = i32(row % p.out_h) * p.stride_h - p.pad_top + i32(ky);
        if iy < 0 || iy >= p.in_h {
            continue;
        }
        let begin = u32((i32(row / p.out_h) * p.in_h + iy) * p.in_w);
        for (var first = 0u; first < p.out_w; first += 4u) {
            let left = i32(first * stride_w) - p.pad_left;
            var values: array<vec4<f32>, 13>;
            for (var i = 0u; i < 3u * stride_w + kernel_w; i++) {
                values[i] = column(begin, left + i32(i), quad);
            }
            for (var i = 0u; i < 4u; i++) {
                let ox = min(first + i, p.out_w - 1u);
                let g = select(vec4<f32>(), dy[(row * p.out_w + ox) * p.quads + quad], first + i < p.out_w);
                for (var kx = 0u; kx < kernel_w; kx++) {
                    sums[kx] += values[i * stride_w + kx] * g;
                }
            }
        }
    }
    for (var kx = 0u; kx < kernel_w; kx++) {
        partials[((split * p.kernel_h + ky) * kernel_w + kx) * p.quads + quad] = sums[kx];
    }
}

// A pixel of the input's row that begins at pixel `begin`; zeros outside of it.
fn column(begin: u32, ix: i32, quad: u32) -> vec4<f32> {
    let inside = ix >= 0 && ix < p.in_w;
    let value = x[(begin + u32(clamp(ix, 0, p.in_w - 1))) * p.quads + quad];
    return select(vec4<f32>(), value, inside);
}
