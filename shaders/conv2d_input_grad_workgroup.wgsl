// Gradient of a convolution's input through workgroup memory: a workgroup computes 64 channels of 64 input pixels of a
// class, 8 × 8 values an invocation, and loads both operands 16 output channels at a time. For the classes see
// conv2d_input_grad.wgsl.

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

// Four quads of each of the 64 pixels, and of each of the 64 rows of the weights, quad by quad.
var<workgroup> gs: array<vec4<f32>, 256>;
var<workgroup> ws: array<vec4<f32>, 256>;

@compute @workgroup_size(8, 8)
fn conv2d_input_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z >= p.stride_h * p.stride_w {
        return;
    }
    let class_y = place.z / p.stride_w;
    let class_x = place.z % p.stride_w;
    let rows = (p.in_h + p.stride_h - 1u - class_y) / p.stride_h;
    let columns = (p.in_w + p.stride_w - 1u - class_x) / p.stride_w;
    let pixels = p.images * rows * columns;
    let first = place.y * 64u + local.y * 8u;
    let quad0 = place.x * 16u + local.x * 2u;
    let at = locate(place.y * 64u + index, class_y, class_x, rows, columns);
    let load_row = place.x * 64u + index;
    let used = load_row < p.in_quads * 4u;
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
    for (var ky = (class_y + p.pad_top) % p.stride_h; ky < p.kernel_h; ky += p.stride_h) {
        for (var kx = (class_x + p.pad_left) % p.stride_w; kx < p.kernel_w; kx += p.stride_w) {
            let t = tap(at, i32(ky / p.stride_h), i32(kx / p.stride_w));
            let m = bitcast<f32>(t.y);
            let block = ((ky * p.kernel_w + kx) * p.in_quads * 4u + select(0u, load_row, used)) * p.out_quads;
            for (var c = 0u; c < p.out_quads; c += 4u) {
                for (var i = 0u; i < 4u; i++) {
                    let inside = c + i < p.out_quads;
                    let read = select(0u, c + i, inside);
                    gs[i * 64u + index] = dy[t.x + read] * select(0.0, m, inside);
                    ws[i * 64u + index] = weight[block + read] * select(0.0, 1.0, inside && used);
                }
                workgroupBarrier();
                for (var k = 0u; k < 4u; k++) {
                    let at_w = k * 64u + local.x * 8u;
                    let w0 = ws[at_w + 0u];
                    let w1 = ws[at_w + 1u];
                    let w2 = ws[at_w + 2u];
                    let w3 = ws[at_w + 3u];
                    let w4 = ws[at_w + 4u];
                    let w5 = ws[at_w + 5u];
                    let w6 = ws[at_w + 6u];
                    let w7 = ws[at_w + 7u];
                    let at_g = k * 64u + local.y * 8u;
                    let g0 = gs[at_g + 0u];
                    a0 += vec4<f32>(dot(g0, w0), dot(g0, w1), dot(g0, w2), dot(g0, w3));
                    b0 += vec4<f32>(dot(g0, w4), dot(g0, w5), dot(g0, w6), dot(g0, w7));
                    let g1 = gs[at_g + 1u];
                    a1 += vec4<f32>(dot(g1, w0), dot(g1, w1), dot(g1, w2), dot(g1, w3));
                    b1 += vec4<f32>(dot(g1, w4), dot(g1, w5), dot(g1, w6), dot(g1, w7));
                    let g2 = gs[at_g + 2u];
                    a2 += vec4<f32>(dot(g2, w0), dot(g2, w1), dot(g2, w2), dot(g2, w3));
                    b2 += vec4<f32>(dot(g2, w4), dot(g2, w5), dot(g2, w6), dot(g2, w7));
                    let g3 = gs[at_g + 3u];
                    a3 += vec4<f32>(dot(g3, w0), dot(g3, w1), dot(g3, w2), dot(g3, w3));
                    b3 += vec4<f32>(dot(g3, w4), dot(g3, w5), dot(g3, w6), dot(g3, w7));
                    let g4 = gs[at_g + 4u];
                    a4 += vec4<f32>(dot(g4, w0), dot(g4, w1), dot(g4, w2), dot(g4, w3));
                    b4 += vec4<f32>(dot(g4, w4), dot(g4, w5), dot(g4, w6), dot(g4, w7));
                    let g5 = gs[at_g + 5u];
                    a5 += vec4<f32>(dot(g5, w0), dot(g5, w1), dot(g5, w2), dot(g5, w3));
                    b5 += vec4<f32>(dot(g5, w4), dot(g5, w5), dot(g5, w6), dot(g5, w7));
                    let g6 = gs[at_g + 6u];
                    a6 += vec4<f32>(dot(g6, w0), dot(g6, w1), dot(g6, w2), dot(g6, w3));
                    b6 += vec4<f32>(dot(g6, w4), dot(g6, w5), dot(g6, w6), dot(g6, w7));
                    let g7 = gs[at_g + 7u];
                    a7 += vec4<f32>(dot(g7, w0), dot(g7, w1), dot(g7, w2), dot(g7, w3));
                    b7 += vec4<f32>(dot(g7, w4), dot(g7, w5), dot(g7, w6), dot(g7, w7));
                }
                workgroupBarrier();
            }
        }
    }
    let pixel0 = locate(first + 0u, class_y, class_x, rows, columns).w;
    store(a0, pixel0, first + 0u < pixels, quad0);
    store(b0, pixel0, first + 0u < pixels, quad0 + 1u);
    let pixel1 = locate(first + 1u, class_y, class_x, rows, columns).w;
    store(a1, pixel1, first + 1u < pixels, quad0);
    store(b1, pixel1, first + 1u < pixels, quad0 + 1u);
    let pixel2 = locate(first + 2u, class_y, class_x, rows, columns).w;
    store(a2, pixel2, first + 2u < pixels, quad0);
    store(b2, pixel2, first + 2u < pixels, quad0 + 1u);
    let pixel3 = locate(first + 3u, class_y, class_x, rows, columns).w;
    store(a3, pixel3, first + 3u < pixels, quad0);
    store(b3, pixel3, first + 3u < pixels, quad0 + 1u);
    let pixel4 = locate(first + 4u, class_y, class_x, rows, columns).w;
    store(a4, pixel4, first + 4u < pixels, quad0);
    store(b4, pixel4, first + 4u < pixels, quad0 + 1u);
    let pixel5 = locate(first + 5u, class_y, class_x, rows, columns).w;
    store(a5, pixel5, first + 5u < pixels, quad0);
    store(b5, pixel5, first + 5u < pixels, quad0 + 1u);
    let pixel6 = locate(first + 6u, class_y, class_x, rows, columns).w;
    store(a6, pixel6, first + 6u < pixels, quad0);
    store(b6, pixel6, first + 6u < pixels, quad0 + 1u);
    let pixel7 = locate(first + 7u, class_y, class_x, rows, columns).w;
    store(a7, pixel7, first + 7u < pixels, quad0);
    store(b7, pixel7, first + 7u < pixels, quad0 + 1u);
}
