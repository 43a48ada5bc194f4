// Gradient of a convolution's input, register-tiled: one invocation computes eight input channels of eight input
// pixels. Pixels are taken class by class, a class being the pixels with the same remainder of (row, column) by the
// stride: all pixels of a class meet the same taps of the window, so that no tap is structurally zero.

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

@compute @workgroup_size(8, 4)
fn conv2d_input_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z >= p.stride_h * p.stride_w {
        return;
    }
    let id = place * vec3<u32>(8u, 4u, 1u) + local;
    let class_y = id.z / p.stride_w;
    let class_x = id.z % p.stride_w;
    let rows = (p.in_h + p.stride_h - 1u - class_y) / p.stride_h;
    let columns = (p.in_w + p.stride_w - 1u - class_x) / p.stride_w;
    let pixels = p.images * rows * columns;
    let quad0 = id.x * 2u;
    let first = id.y * 8u;
    let in_last = p.in_quads - 1u;
    let read0 = min(quad0, in_last) * 4u * p.out_quads;
    let read1 = min(quad0 + 1u, in_last) * 4u * p.out_quads;
    let at0 = locate(first + 0u, class_y, class_x, rows, columns);
    let at1 = locate(first + 1u, class_y, class_x, rows, columns);
    let at2 = locate(first + 2u, class_y, class_x, rows, columns);
    let at3 = locate(first + 3u, class_y, class_x, rows, columns);
    let at4 = locate(first + 4u, class_y, class_x, rows, columns);
    let at5 = locate(first + 5u, class_y, class_x, rows, columns);
    let at6 = locate(first + 6u, class_y, class_x, rows, columns);
    let at7 = locate(first + 7u, class_y, class_x, rows, columns);
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
            let tap_y = i32(ky / p.stride_h);
            let tap_x = i32(kx / p.stride_w);
            let block = (ky * p.kernel_w + kx) * p.in_quads * 4u * p.out_quads;
            let t0 = tap(at0, tap_y, tap_x);
            let t1 = tap(at1, tap_y, tap_x);
            let t2 = tap(at2, tap_y, tap_x);
            let t3 = tap(at3, tap_y, tap_x);
            let t4 = tap(at4, tap_y, tap_x);
            let t5 = tap(at5, tap_y, tap_x);
            let t6 = tap(at6, tap_y, tap_x);
            let t7 = tap(at7, tap_y, tap_x);
            let m0 = bitcast<f32>(t0.y);
            let m1 = bitcast<f32>(t1.y);
            let m2 = bitcast<f32>(t2.y);
            let m3 = bitcast<f32>(t3.y);
            let m4 = bitcast<f32>(t4.y);
            let m5 = bitcast<f32>(t5.y);
            let m6 = bitcast<f32>(t6.y);
            let m7 = bitcast<f32>(t7.y);
            for (var c = 0u; c < p.out_quads; c++) {
                let g0 = dy[t0.x + c] * m0;
                let g1 = dy[t1.x + c] * m1;
                let g2 = dy[t2.x + c] * m2;
                let g3 = dy[t3.x + c] * m3;
                let g4 = dy[t4.x + c] * m4;
                let g5 = dy[t5.x + c] * m5;
                let g6 = dy[t6.x + c] * m6;
                let g7 = dy[t7.x + c] * m7;
                let ux = weight[block + read0 + 0u * p.out_quads + c];
                let vx = weight[block + read1 + 0u * p.out_quads + c];
                let uy = weight[block + read0 + 1u * p.out_quads + c];
                let vy = weight[block + read1 + 1u * p.out_quads + c];
                let uz = weight[block + read0 + 2u * p.out_quads + c];
                let vz = weight[block + read1 + 2u * p.out_quads + c];
                let uw = weight[block + read0 + 3u * p.out_quads + c];
                let vw = weight[block + read1 + 3u * p.out_quads + c];
                a0 += vec4<f32>(dot(g0, ux), dot(g0, uy), dot(g0, uz), dot(g0, uw));
                b0 += vec4<f32>(dot(g0, vx), dot(g0, vy), dot(g0, vz), dot(g0, vw));
                a1 += vec4<f32>(dot(g1, ux), dot(g1, uy), dot(g1, uz), dot(g1, uw));
                b1 += vec4<f32>(dot(g1, vx), dot(g1, vy), dot(g1, vz), dot(g1, vw));
                a2 += vec4<f32>(dot(g2, ux), dot(g2, uy), dot(g2, uz), dot(g2, uw));
                b2 += vec4<f32>(dot(g2, vx), dot(g2, vy), dot(g2, vz), dot(g2, vw));
                a3 += vec4<f32>(dot(g3, ux), dot(g3, uy), dot(g3, uz), dot(g3, uw));
                b3 += vec4<f32>(dot(g3, vx), dot(g3, vy), dot(g3, vz), dot(g3, vw));
                a4 += vec4<f32>(dot(g4, ux), dot(g4, uy), dot(g4, uz), dot(g4, uw));
                b4 += vec4<f32>(dot(g4, vx), dot(g4, vy), dot(g4, vz), dot(g4, vw));
                a5 += vec4<f32>(dot(g5, ux), dot(g5, uy), dot(g5, uz), dot(g5, uw));
                b5 += vec4<f32>(dot(g5, vx), dot(g5, vy), dot(g5, vz), dot(g5, vw));
                a6 += vec4<f32>(dot(g6, ux), dot(g6, uy), dot(g6, uz), dot(g6, uw));
                b6 += vec4<f32>(dot(g6, vx), dot(g6, vy), dot(g6, vz), dot(g6, vw));
                a7 += vec4<f32>(dot(g7, ux), dot(g7, uy), dot(g7, uz), dot(g7, uw));
                b7 += vec4<f32>(dot(g7, vx), dot(g7, vy), dot(g7, vz), dot(g7, vw));
            }
        }
    }
    store(a0, at0.w, first + 0u < pixels, quad0);
    store(b0, at0.w, first + 0u < pixels, quad0 + 1u);
    store(a1, at1.w, first + 1u < pixels, quad0);
    store(b1, at1.w, first + 1u < pixels, quad0 + 1u);
    store(a2, at2.w, first + 2u < pixels, quad0);
    store(b2, at2.w, first + 2u < pixels, quad0 + 1u);
    store(a3, at3.w, first + 3u < pixels, quad0);
    store(b3, at3.w, first + 3u < pixels, quad0 + 1u);
    store(a4, at4.w, first + 4u < pixels, quad0);
    store(b4, at4.w, first + 4u < pixels, quad0 + 1u);
    store(a5, at5.w, first + 5u < pixels, quad0);
    store(b5, at5.w, first + 5u < pixels, quad0 + 1u);
    store(a6, at6.w, first + 6u < pixels, quad0);
    store(b6, at6.w, first + 6u < pixels, quad0 + 1u);
    store(a7, at7.w, first + 7u < pixels, quad0);
    store(b7, at7.w, first + 7u < pixels, quad0 + 1u);
}
