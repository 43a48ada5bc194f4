// dw = x ∗ dy over one split of the output rows, each group of channels by itself. One invocation: four input and four
// output channels of one tap of the window.

struct Params {
    rows: u32,
    in_h: i32,
    in_w: i32,
    in_quads: u32,
    out_h: u32,
    out_w: i32,
    out_quads: u32,
    in_group: u32,
    out_group: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    rows_per_split: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(64)
fn grouped_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.out_quads;
    // The four rows of the weights, of which each tap has `in_group` times four.
    let block = index / p.out_quads;
    let inner = block % p.in_group;
    let tap = block / p.in_group % (p.kernel_h * p.kernel_w);
    let split = block / p.in_group / (p.kernel_h * p.kernel_w);
    let start = split * p.rows_per_split;
    if start >= p.rows {
        return;
    }
    let end = min(start + p.rows_per_split, p.rows);
    let ky = i32(tap / p.kernel_w);
    let offset = i32(tap % p.kernel_w) - p.pad_left;
    let channel = quad / p.out_group * p.in_group + inner;
    // The outputs whose window has an input at this column.
    let first = max((p.stride_w - 1 - offset) / p.stride_w, 0);
    let behind = min((p.in_w - offset + p.stride_w - 1) / p.stride_w, p.out_w);
    var sums: array<vec4<f32>, 4>;
    for (var row = start; row < end; row++) {
        let iy = i32(row % p.out_h) * p.stride_h - p.pad_top + ky;
        if iy < 0 || iy >= p.in_h {
            continue;
        }
        let begin = (i32(row / p.out_h) * p.in_h + iy) * p.in_w + offset;
        for (var ox = first; ox < behind; ox++) {
            let v = x[u32(begin + ox * p.stride_w) * p.in_quads + channel];
            let g = dy[u32(i32(row) * p.out_w + ox) * p.out_quads + quad];
            sums[0] += v.x * g;
            sums[1] += v.y * g;
            sums[2] += v.z * g;
            sums[3] += v.w * g;
        }
    }
    for (var i = 0u; i < 4u; i++) {
        partials[(block * 4u + i) * p.out_quads + quad] = sums[i];
    }
}
