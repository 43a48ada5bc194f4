// z = act(x ∗ weight + bias + residual), each group of channels by itself. One invocation: four channels of four
// consecutive pixels of a row.

struct Params {
    rows: u32,
    in_h: i32,
    in_w: i32,
    in_quads: u32,
    out_h: u32,
    out_w: u32,
    out_quads: u32,
    in_group: u32,
    out_group: u32,
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

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn grouped_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.out_quads;
    let tile = index / p.out_quads;
    let tiles = (p.out_w + 3u) / 4u;
    let row = tile / tiles;
    if row >= p.rows {
        return;
    }
    let first = tile % tiles * 4u;
    let image = i32(row / p.out_h) * p.in_h;
    let top = i32(row % p.out_h) * p.stride_h - p.pad_top;
    let left = vec4<i32>(first + vec4<u32>(0u, 1u, 2u, 3u)) * p.stride_w - p.pad_left;
    let channel = quad / p.out_group * p.in_group;
    var sums: array<vec4<f32>, 4>;
    for (var ky = max(-top, 0); ky < min(p.kernel_h, p.in_h - top); ky++) {
        let begin = (image + top + ky) * p.in_w;
        for (var kx = 0; kx < p.kernel_w; kx++) {
            let ix = left + kx;
            let inside = select(vec4<f32>(), vec4<f32>(1.0), (ix >= vec4<i32>()) & (ix < vec4<i32>(p.in_w)));
            let at = vec4<u32>(begin + clamp(ix, vec4<i32>(), vec4<i32>(p.in_w - 1))) * p.in_quads + channel;
            var tap = u32(ky * p.kernel_w + kx) * p.in_group * 4u * p.out_quads + quad;
            for (var c = 0u; c < p.in_group; c++) {
                let w0 = weight[tap];
                let w1 = weight[tap + p.out_quads];
                let w2 = weight[tap + 2u * p.out_quads];
                let w3 = weight[tap + 3u * p.out_quads];
                tap += 4u * p.out_quads;
                for (var i = 0u; i < 4u; i++) {
                    let v = x[at[i] + c] * inside[i];
                    sums[i] += v.x * w0 + v.y * w1 + v.z * w2 + v.w * w3;
                }
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        if first + i < p.out_w {
            let at = (row * p.out_w + first + i) * p.out_quads + quad;
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
