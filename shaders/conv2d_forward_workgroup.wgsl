// Convolution by implicit GEMM through workgroup memory: a workgroup computes 64 channels of 64 consecutive output pixels,
// 8 × 8 values an invocation, and loads both operands 16 input channels at a time.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

// Four quads of each of the 64 pixels, quad by quad; 16 rows of the weights, 16 quads each.
var<workgroup> xs: array<vec4<f32>, 256>;
var<workgroup> ws: array<vec4<f32>, 256>;

@compute @workgroup_size(8, 8)
fn conv2d_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z > 0u {
        return;
    }
    let first = place.y * 64u + local.y * 8u;
    let quad0 = place.x * 16u + local.x * 2u;
    let at = locate(place.y * 64u + index);
    // The row and the first of the four quads of the weights that this invocation loads.
    let load_row = index / 4u;
    let load_quad = place.x * 16u + index % 4u * 4u;
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
    for (var ky = 0; ky < p.kernel_h; ky++) {
        for (var kx = 0; kx < p.kernel_w; kx++) {
            let t = tap(at, ky, kx);
            let m = bitcast<f32>(t.y);
            let block = u32(ky * p.kernel_w + kx) * p.in_quads * 4u;
            for (var c = 0u; c < p.in_quads; c += 4u) {
                for (var i = 0u; i < 4u; i++) {
                    let inside = c + i < p.in_quads;
                    xs[i * 64u + index] = x[t.x + select(0u, c + i, inside)] * select(0.0, m, inside);
                    let row = c * 4u + load_row;
                    let used = row < p.in_quads * 4u && load_quad + i < p.out_quads;
                    let at_weight = select(0u, (block + row) * p.out_quads + load_quad + i, used);
                    ws[load_row * 16u + index % 4u * 4u + i] = weight[at_weight] * select(0.0, 1.0, used);
                }
                workgroupBarrier();
                for (var k = 0u; k < 4u; k++) {
                    let at_x = k * 64u + local.y * 8u;
                    let x0 = xs[at_x + 0u];
                    let x1 = xs[at_x + 1u];
                    let x2 = xs[at_x + 2u];
                    let x3 = xs[at_x + 3u];
                    let x4 = xs[at_x + 4u];
                    let x5 = xs[at_x + 5u];
                    let x6 = xs[at_x + 6u];
                    let x7 = xs[at_x + 7u];
                    let at_w = k * 64u + local.x * 2u;
                    let ux = ws[at_w + 0u];
                    let vx = ws[at_w + 1u];
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
                    let uy = ws[at_w + 16u];
                    let vy = ws[at_w + 17u];
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
                    let uz = ws[at_w + 32u];
                    let vz = ws[at_w + 33u];
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
                    let uw = ws[at_w + 48u];
                    let vw = ws[at_w + 49u];
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
                workgroupBarrier();
            }
        }
    }
    var bits0 = 0u;
    var bits1 = 0u;
    bits0 |= finish(a0, first, 0u, quad0);
    bits1 |= finish(b0, first, 0u, quad0 + 1u);
    bits0 |= finish(a1, first, 1u, quad0);
    bits1 |= finish(b1, first, 1u, quad0 + 1u);
    bits0 |= finish(a2, first, 2u, quad0);
    bits1 |= finish(b2, first, 2u, quad0 + 1u);
    bits0 |= finish(a3, first, 3u, quad0);
    bits1 |= finish(b3, first, 3u, quad0 + 1u);
    bits0 |= finish(a4, first, 4u, quad0);
    bits1 |= finish(b4, first, 4u, quad0 + 1u);
    bits0 |= finish(a5, first, 5u, quad0);
    bits1 |= finish(b5, first, 5u, quad0 + 1u);
    bits0 |= finish(a6, first, 6u, quad0);
    bits1 |= finish(b6, first, 6u, quad0 + 1u);
    bits0 |= finish(a7, first, 7u, quad0);
    bits1 |= finish(b7, first, 7u, quad0 + 1u);
    if p.has_mask != 0u && first < p.pixels {
        let word = first / 8u * p.out_quads + quad0;
        if quad0 < p.out_quads {
            mask[word] = bits0;
        }
        if quad0 + 1u < p.out_quads {
            mask[word + 1u] = bits1;
        }
    }
}
