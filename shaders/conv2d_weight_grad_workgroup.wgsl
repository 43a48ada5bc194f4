// Gradient of a convolution's weights through workgroup memory: a workgroup computes 64 rows of the weights (a row is one
// input channel of one tap; the taps of a window's row follow each other as the pixels do in memory) × 64 output
// channels, 8 × 8 values an invocation, over one split of the output rows, and loads 16 pixels at a time.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;

// 16 quads of each of the 16 pixels.
var<workgroup> xs: array<vec4<f32>, 256>;
var<workgroup> gs: array<vec4<f32>, 256>;

@compute @workgroup_size(8, 8)
fn conv2d_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z * p.rows_per_split >= p.rows {
        return;
    }
    let line = p.kernel_w * p.in_quads;
    let blocks = (line + 15u) / 16u;
    let ky = place.y / blocks;
    let block = place.y % blocks * 16u;
    let width = u32(p.out_w);
    let begin = place.z * p.rows_per_split * width;
    let end = min((place.z + 1u) * p.rows_per_split, p.rows) * width;
    // The pixel and the first of its four quads that this invocation loads.
    let load_pixel = index / 4u;
    let load_quad = index % 4u * 4u;
    var a0 = vec4<f32>();
    var b0 = vec4<f32>();
    var a1 = vec4<f32>();
    var b1 = vec4<f32>();
    var a2 = vec4<f32>();
    var b2 = vec4<f32>();
    var a3 = vec4<f32>();
    var b3 = vec4<f32>();
    var a4 = vec4<f32>();
    var b4 = vec4<f32>();
    var a5 = vec4<f32>();
    var b5 = vec4<f32>();
    var a6 = vec4<f32>();
    var b6 = vec4<f32>();
    var a7 = vec4<f32>();
    var b7 = vec4<f32>();
    for (var base = begin; base < end; base += 16u) {
        let pixel = min(base + load_pixel, end - 1u);
        let row = pixel / width;
        let column = i32(pixel % width);
        let y = i32(row % p.out_h) * p.stride_h - p.pad_top + i32(ky);
        let cy = clamp(y, 0, p.in_h - 1);
        let start = (i32(row / p.out_h) * p.in_h + cy) * p.in_w;
        let live = base + load_pixel < end;
        for (var i = 0u; i < 4u; i++) {
            let own = block + load_quad + i;
            let wanted = column * p.stride_w - p.pad_left + i32(own / p.in_quads);
            let inside = clamp(wanted, 0, p.in_w - 1);
            let used = live && y == cy && wanted == inside && own < line;
            let out = place.x * 16u + load_quad + i;
            let counts = live && out < p.out_quads;
            let to_quad = load_pixel * 16u + load_quad + i;
            xs[to_quad] = x[u32(start + inside) * p.in_quads + own % p.in_quads] * select(0.0, 1.0, used);
            gs[to_quad] = dy[pixel * p.out_quads + min(out, p.out_quads - 1u)] * select(0.0, 1.0, counts);
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let x0 = xs[k * 16u + local.y * 2u];
            let x1 = xs[k * 16u + local.y * 2u + 1u];
            let g0 = gs[k * 16u + local.x * 2u];
            let g1 = gs[k * 16u + local.x * 2u + 1u];
            a0 += x0.x * g0;
            b0 += x0.x * g1;
            a1 += x0.y * g0;
            b1 += x0.y * g1;
            a2 += x0.z * g0;
            b2 += x0.z * g1;
            a3 += x0.w * g0;
            b3 += x0.w * g1;
            a4 += x1.x * g0;
            b4 += x1.x * g1;
            a5 += x1.y * g0;
            b5 += x1.y * g1;
            a6 += x1.z * g0;
            b6 += x1.z * g1;
            a7 += x1.w * g0;
            b7 += x1.w * g1;
        }
        workgroupBarrier();
    }
    let quad = place.x * 16u + local.x * 2u;
    let own = block + local.y * 2u;
    let to_row = ((place.z * p.kernel_h + ky) * line + own) * 4u;
    store(a0, to_row + 0u, own < line, quad);
    store(b0, to_row + 0u, own < line, quad + 1u);
    store(a1, to_row + 1u, own < line, quad);
    store(b1, to_row + 1u, own < line, quad + 1u);
    store(a2, to_row + 2u, own < line, quad);
    store(b2, to_row + 2u, own < line, quad + 1u);
    store(a3, to_row + 3u, own < line, quad);
    store(b3, to_row + 3u, own < line, quad + 1u);
    store(a4, to_row + 4u, own + 1u < line, quad);
    store(b4, to_row + 4u, own + 1u < line, quad + 1u);
    store(a5, to_row + 5u, own + 1u < line, quad);
    store(b5, to_row + 5u, own + 1u < line, quad + 1u);
    store(a6, to_row + 6u, own + 1u < line, quad);
    store(b6, to_row + 6u, own + 1u < line, quad + 1u);
    store(a7, to_row + 7u, own + 1u < line, quad);
    store(b7, to_row + 7u, own + 1u < line, quad + 1u);
}

fn store(sum: vec4<f32>, row: u32, inside: bool, quad: u32) {
    if inside && quad < p.out_quads {
        partials[row * p.out_quads + quad] = sum;
    }
}
