// x_grad = dy ∗ᵀ weight, replacing x_grad or added to it, each group of channels by itself. One invocation: four channels of
// four pixels of a row that are a stride apart, so that the same columns of the window hit an output for all.

struct Params {
    rows: u32,
    in_h: u32,
    in_w: i32,
    in_quads: u32,
    out_h: i32,
    out_w: i32,
    out_quads: u32,
    in_group: u32,
    out_group: u32,
    kernel_h: i32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> x_grad: array<vec4<f32>>;

@compute @workgroup_size(64)
fn grouped_input_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.in_quads;
    let tile = i32(index / p.in_quads);
    let tiles = (p.in_w + 4 * p.stride_w - 1) / (4 * p.stride_w) * p.stride_w;
    let row = u32(tile / tiles);
    if row >= p.rows {
        return;
    }
    let column = tile % tiles;
    let first = column / p.stride_w * 4 * p.stride_w + column % p.stride_w;
    let image = i32(row / p.in_h) * p.out_h;
    let bottom = i32(row % p.in_h) + p.pad_top;
    let right = first + p.pad_left;
    let channel = quad / p.in_group * p.out_group;
    let inner = quad % p.in_group * 4u;
    var sums: array<vec4<f32>, 4>;
    for (var ky = bottom % p.stride_h; ky < p.kernel_h; ky += p.stride_h) {
        let oy = (bottom - ky) / p.stride_h;
        if bottom < ky || oy >= p.out_h {
            continue;
        }
        for (var kx = right % p.stride_w; kx < p.kernel_w; kx += p.stride_w) {
            // Exact, by the choice of kx; so it is negative where the window is left of the image.
            let ox = (right - kx) / p.stride_w + vec4<i32>(0, 1, 2, 3);
            let inside = select(vec4<f32>(), vec4<f32>(1.0), (ox >= vec4<i32>()) & (ox < vec4<i32>(p.out_w)));
            let begin = (image + oy) * p.out_w + clamp(ox, vec4<i32>(), vec4<i32>(p.out_w - 1));
            let at = vec4<u32>(begin) * p.out_quads + channel;
            let tap = (u32(ky * p.kernel_w + kx) * p.in_group * 4u + inner) * p.out_quads + channel;
            for (var c = 0u; c < p.out_group; c++) {
                let w0 = weight[tap + c];
                let w1 = weight[tap + p.out_quads + c];
                let w2 = weight[tap + 2u * p.out_quads + c];
                let w3 = weight[tap + 3u * p.out_quads + c];
                for (var i = 0u; i < 4u; i++) {
                    let g = dy[at[i] + c] * inside[i];
                    sums[i] += vec4<f32>(dot(g, w0), dot(g, w1), dot(g, w2), dot(g, w3));
                }
            }
        }
    }
    for (var i = 0; i < 4; i++) {
        let ix = first + i * p.stride_w;
        if ix < p.in_w {
            let at = (row * u32(p.in_w) + u32(ix)) * p.in_quads + quad;
            var sum = sums[i];
            if p.accumulate != 0u {
                sum += x_grad[at];
            }
            x_grad[at] = sum;
        }
    }
}
