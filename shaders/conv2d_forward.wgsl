// Convolution by implicit GEMM, register-tiled: one invocation computes eight channels of eight consecutive output
// pixels. The lanes of a workgroup's first dimension run along channels, so that they read the same pixels and
// neighbouring weights. Padding is a clamped index times 0 or 1; the only divisions locate the eight pixels.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

@compute @workgroup_size(8, 4)
fn conv2d_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z > 0u {
        return;
    }
    let id = place * vec3<u32>(8u, 4u, 1u) + local;
    let quad0 = id.x * 2u;
    let first = id.y * 8u;
    let last = p.out_quads - 1u;
    let read0 = min(quad0, last);
    let read1 = min(quad0 + 1u, last);
    let at0 = locate(first + 0u);
    let at1 = locate(first + 1u);
    let at2 = locate(first + 2u);
    let at3 = locate(first + 3u);
    let at4 = locate(first + 4u);
    let at5 = locate(first + 5u);
    let at6 = locate(first + 6u);
    let at7 = locate(first + 7u);
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
    var row = 0u;
    for (var ky = 0; ky < p.kernel_h; ky++) {
        for (var kx = 0; kx < p.kernel_w; kx++) {
            let t0 = tap(at0, ky, kx);
            let t1 = tap(at1, ky, kx);
            let t2 = tap(at2, ky, kx);
            let t3 = tap(at3, ky, kx);
            let t4 = tap(at4, ky, kx);
            let t5 = tap(at5, ky, kx);
            let t6 = tap(at6, ky, kx);
            let t7 = tap(at7, ky, kx);
            let m0 = bitcast<f32>(t0.y);
            let m1 = bitcast<f32>(t1.y);
            let m2 = bitcast<f32>(t2.y);
            let m3 = bitcast<f32>(t3.y);
            let m4 = bitcast<f32>(t4.y);
            let m5 = bitcast<f32>(t5.y);
            let m6 = bitcast<f32>(t6.y);
            let m7 = bitcast<f32>(t7.y);
            for (var c = 0u; c < p.in_quads; c++) {
                let x0 = x[t0.x + c] * m0;
                let x1 = x[t1.x + c] * m1;
                let x2 = x[t2.x + c] * m2;
                let x3 = x[t3.x + c] * m3;
                let x4 = x[t4.x + c] * m4;
                let x5 = x[t5.x + c] * m5;
                let x6 = x[t6.x + c] * m6;
                let x7 = x[t7.x + c] * m7;
                let ux = weight[row + read0];
                let vx = weight[row + read1];
                row += p.out_quads;
                a0 += x0.x * ux;
                b0 += x0.x * vx;
                a1 += x1.x * ux;
                b1 += x1.x * vx;
                a2 += x2.x * ux;
                b2 += x2.x * vx;
                a3 += x3.x * ux;
                b3 += x3.x * vx;
                a4 += x4.x * ux;
                b4 += x4.x * vx;
                a5 += x5.x * ux;
                b5 += x5.x * vx;
                a6 += x6.x * ux;
                b6 += x6.x * vx;
                a7 += x7.x * ux;
                b7 += x7.x * vx;
                let uy = weight[row + read0];
                let vy = weight[row + read1];
                row += p.out_quads;
                a0 += x0.y * uy;
                b0 += x0.y * vy;
                a1 += x1.y * uy;
                b1 += x1.y * vy;
                a2 += x2.y * uy;
                b2 += x2.y * vy;
                a3 += x3.y * uy;
                b3 += x3.y * vy;
                a4 += x4.y * uy;
                b4 += x4.y * vy;
                a5 += x5.y * uy;
                b5 += x5.y * vy;
                a6 += x6.y * uy;
                b6 += x6.y * vy;
                a7 += x7.y * uy;
                b7 += x7.y * vy;
                let uz = weight[row + read0];
                let vz = weight[row + read1];
                row += p.out_quads;
                a0 += x0.z * uz;
                b0 += x0.z * vz;
                a1 += x1.z * uz;
                b1 += x1.z * vz;
                a2 += x2.z * uz;
                b2 += x2.z * vz;
                a3 += x3.z * uz;
                b3 += x3.z * vz;
                a4 += x4.z * uz;
                b4 += x4.z * vz;
                a5 += x5.z * uz;
                b5 += x5.z * vz;
                a6 += x6.z * uz;
                b6 += x6.z * vz;
                a7 += x7.z * uz;
                b7 += x7.z * vz;
                let uw = weight[row + read0];
                let vw = weight[row + read1];
                row += p.out_quads;
                a0 += x0.w * uw;
                b0 += x0.w * vw;
                a1 += x1.w * uw;
                b1 += x1.w * vw;
                a2 += x2.w * uw;
                b2 += x2.w * vw;
                a3 += x3.w * uw;
                b3 += x3.w * vw;
                a4 += x4.w * uw;
                b4 += x4.w * vw;
                a5 += x5.w * uw;
                b5 += x5.w * vw;
                a6 += x6.w * uw;
                b6 += x6.w * vw;
                a7 += x7.w * uw;
                b7 += x7.w * vw;
            }
        }
    }
    var bits0 = 0u;
    var bits1 = 0u;
    bits0 |= finish(a0, first, 0u, quad0);
    bits0 |= finish(a1, first, 1u, quad0);
    bits0 |= finish(a2, first, 2u, quad0);
    bits0 |= finish(a3, first, 3u, quad0);
    bits0 |= finish(a4, first, 4u, quad0);
    bits0 |= finish(a5, first, 5u, quad0);
    bits0 |= finish(a6, first, 6u, quad0);
    bits0 |= finish(a7, first, 7u, quad0);
    if quad0 + 1u < p.out_quads {
        bits1 |= finish(b0, first, 0u, quad0 + 1u);
        bits1 |= finish(b1, first, 1u, quad0 + 1u);
        bits1 |= finish(b2, first, 2u, quad0 + 1u);
        bits1 |= finish(b3, first, 3u, quad0 + 1u);
        bits1 |= finish(b4, first, 4u, quad0 + 1u);
        bits1 |= finish(b5, first, 5u, quad0 + 1u);
        bits1 |= finish(b6, first, 6u, quad0 + 1u);
        bits1 |= finish(b7, first, 7u, quad0 + 1u);
    }
    if p.has_mask != 0u && quad0 < p.out_quads && first < p.pixels {
        mask[id.y * p.out_quads + quad0] = bits0;
        if quad0 + 1u < p.out_quads {
            mask[id.y * p.out_quads + quad0 + 1u] = bits1;
        }
    }
}
