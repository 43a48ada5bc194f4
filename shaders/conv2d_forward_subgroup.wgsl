enable subgroups;
// Convolution by implicit GEMM for subgroups of eight: one subgroup computes 32 channels of 32 consecutive output pixels,
// four channels an invocation. Each invocation loads the input of four pixels and broadcasts it to the others, so that
// a load serves all eight: what matters on drivers that load invocation by invocation.

@group(0) @binding(1) var x: texture_2d<f32>;
@group(0) @binding(2) var weight: texture_2d<f32>;

@compute @workgroup_size(8)
fn conv2d_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z > 0u {
        return;
    }
    let first = place.y * 32u;
    let quad = place.x * 8u + lane;
    let read = min(quad, p.out_quads - 1u);
    let at0 = locate(first + 0u + lane);
    let at1 = locate(first + 8u + lane);
    let at2 = locate(first + 16u + lane);
    let at3 = locate(first + 24u + lane);
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var a4 = vec4<f32>();
    var a5 = vec4<f32>();
    var a6 = vec4<f32>();
    var a7 = vec4<f32>();
    var a8 = vec4<f32>();
    var a9 = vec4<f32>();
    var a10 = vec4<f32>();
    var a11 = vec4<f32>();
    var a12 = vec4<f32>();
    var a13 = vec4<f32>();
    var a14 = vec4<f32>();
    var a15 = vec4<f32>();
    var a16 = vec4<f32>();
    var a17 = vec4<f32>();
    var a18 = vec4<f32>();
    var a19 = vec4<f32>();
    var a20 = vec4<f32>();
    var a21 = vec4<f32>();
    var a22 = vec4<f32>();
    var a23 = vec4<f32>();
    var a24 = vec4<f32>();
    var a25 = vec4<f32>();
    var a26 = vec4<f32>();
    var a27 = vec4<f32>();
    var a28 = vec4<f32>();
    var a29 = vec4<f32>();
    var a30 = vec4<f32>();
    var a31 = vec4<f32>();
    var row = 0u;
    for (var ky = 0; ky < p.kernel_h; ky++) {
        for (var kx = 0; kx < p.kernel_w; kx++) {
            let t0 = tap(at0, ky, kx);
            let m0 = bitcast<f32>(t0.y);
            let t1 = tap(at1, ky, kx);
            let m1 = bitcast<f32>(t1.y);
            let t2 = tap(at2, ky, kx);
            let m2 = bitcast<f32>(t2.y);
            let t3 = tap(at3, ky, kx);
            let m3 = bitcast<f32>(t3.y);
            for (var c = 0u; c < p.in_quads; c++) {
                let x0 = textureLoad(x, texel(t0.x + c), 0) * m0;
                let x1 = textureLoad(x, texel(t1.x + c), 0) * m1;
                let x2 = textureLoad(x, texel(t2.x + c), 0) * m2;
                let x3 = textureLoad(x, texel(t3.x + c), 0) * m3;
                let wx = textureLoad(weight, texel(row + read), 0);
                row += p.out_quads;
                let wy = textureLoad(weight, texel(row + read), 0);
                row += p.out_quads;
                let wz = textureLoad(weight, texel(row + read), 0);
                row += p.out_quads;
                let ww = textureLoad(weight, texel(row + read), 0);
                row += p.out_quads;
                let s0 = subgroupBroadcast(x0, 0u);
                a0 += s0.x * wx;
                a0 += s0.y * wy;
                a0 += s0.z * wz;
                a0 += s0.w * ww;
                let s1 = subgroupBroadcast(x0, 1u);
                a1 += s1.x * wx;
                a1 += s1.y * wy;
                a1 += s1.z * wz;
                a1 += s1.w * ww;
                let s2 = subgroupBroadcast(x0, 2u);
                a2 += s2.x * wx;
                a2 += s2.y * wy;
                a2 += s2.z * wz;
                a2 += s2.w * ww;
                let s3 = subgroupBroadcast(x0, 3u);
                a3 += s3.x * wx;
                a3 += s3.y * wy;
                a3 += s3.z * wz;
                a3 += s3.w * ww;
                let s4 = subgroupBroadcast(x0, 4u);
                a4 += s4.x * wx;
                a4 += s4.y * wy;
                a4 += s4.z * wz;
                a4 += s4.w * ww;
                let s5 = subgroupBroadcast(x0, 5u);
                a5 += s5.x * wx;
                a5 += s5.y * wy;
                a5 += s5.z * wz;
                a5 += s5.w * ww;
                let s6 = subgroupBroadcast(x0, 6u);
                a6 += s6.x * wx;
                a6 += s6.y * wy;
                a6 += s6.z * wz;
                a6 += s6.w * ww;
                let s7 = subgroupBroadcast(x0, 7u);
                a7 += s7.x * wx;
                a7 += s7.y * wy;
                a7 += s7.z * wz;
                a7 += s7.w * ww;
                let s8 = subgroupBroadcast(x1, 0u);
                a8 += s8.x * wx;
                a8 += s8.y * wy;
                a8 += s8.z * wz;
                a8 += s8.w * ww;
                let s9 = subgroupBroadcast(x1, 1u);
                a9 += s9.x * wx;
                a9 += s9.y * wy;
                a9 += s9.z * wz;
                a9 += s9.w * ww;
                let s10 = subgroupBroadcast(x1, 2u);
                a10 += s10.x * wx;
                a10 += s10.y * wy;
                a10 += s10.z * wz;
                a10 += s10.w * ww;
                let s11 = subgroupBroadcast(x1, 3u);
                a11 += s11.x * wx;
                a11 += s11.y * wy;
                a11 += s11.z * wz;
                a11 += s11.w * ww;
                let s12 = subgroupBroadcast(x1, 4u);
                a12 += s12.x * wx;
                a12 += s12.y * wy;
                a12 += s12.z * wz;
                a12 += s12.w * ww;
                let s13 = subgroupBroadcast(x1, 5u);
                a13 += s13.x * wx;
                a13 += s13.y * wy;
                a13 += s13.z * wz;
                a13 += s13.w * ww;
                let s14 = subgroupBroadcast(x1, 6u);
                a14 += s14.x * wx;
                a14 += s14.y * wy;
                a14 += s14.z * wz;
                a14 += s14.w * ww;
                let s15 = subgroupBroadcast(x1, 7u);
                a15 += s15.x * wx;
                a15 += s15.y * wy;
                a15 += s15.z * wz;
                a15 += s15.w * ww;
                let s16 = subgroupBroadcast(x2, 0u);
                a16 += s16.x * wx;
                a16 += s16.y * wy;
                a16 += s16.z * wz;
                a16 += s16.w * ww;
                let s17 = subgroupBroadcast(x2, 1u);
                a17 += s17.x * wx;
                a17 += s17.y * wy;
                a17 += s17.z * wz;
                a17 += s17.w * ww;
                let s18 = subgroupBroadcast(x2, 2u);
                a18 += s18.x * wx;
                a18 += s18.y * wy;
                a18 += s18.z * wz;
                a18 += s18.w * ww;
                let s19 = subgroupBroadcast(x2, 3u);
                a19 += s19.x * wx;
                a19 += s19.y * wy;
                a19 += s19.z * wz;
                a19 += s19.w * ww;
                let s20 = subgroupBroadcast(x2, 4u);
                a20 += s20.x * wx;
                a20 += s20.y * wy;
                a20 += s20.z * wz;
                a20 += s20.w * ww;
                let s21 = subgroupBroadcast(x2, 5u);
                a21 += s21.x * wx;
                a21 += s21.y * wy;
                a21 += s21.z * wz;
                a21 += s21.w * ww;
                let s22 = subgroupBroadcast(x2, 6u);
                a22 += s22.x * wx;
                a22 += s22.y * wy;
                a22 += s22.z * wz;
                a22 += s22.w * ww;
                let s23 = subgroupBroadcast(x2, 7u);
                a23 += s23.x * wx;
                a23 += s23.y * wy;
                a23 += s23.z * wz;
                a23 += s23.w * ww;
                let s24 = subgroupBroadcast(x3, 0u);
                a24 += s24.x * wx;
                a24 += s24.y * wy;
                a24 += s24.z * wz;
                a24 += s24.w * ww;
                let s25 = subgroupBroadcast(x3, 1u);
                a25 += s25.x * wx;
                a25 += s25.y * wy;
                a25 += s25.z * wz;
                a25 += s25.w * ww;
                let s26 = subgroupBroadcast(x3, 2u);
                a26 += s26.x * wx;
                a26 += s26.y * wy;
                a26 += s26.z * wz;
                a26 += s26.w * ww;
                let s27 = subgroupBroadcast(x3, 3u);
                a27 += s27.x * wx;
                a27 += s27.y * wy;
                a27 += s27.z * wz;
                a27 += s27.w * ww;
                let s28 = subgroupBroadcast(x3, 4u);
                a28 += s28.x * wx;
                a28 += s28.y * wy;
                a28 += s28.z * wz;
                a28 += s28.w * ww;
                let s29 = subgroupBroadcast(x3, 5u);
                a29 += s29.x * wx;
                a29 += s29.y * wy;
                a29 += s29.z * wz;
                a29 += s29.w * ww;
                let s30 = subgroupBroadcast(x3, 6u);
                a30 += s30.x * wx;
                a30 += s30.y * wy;
                a30 += s30.z * wz;
                a30 += s30.w * ww;
                let s31 = subgroupBroadcast(x3, 7u);
                a31 += s31.x * wx;
                a31 += s31.y * wy;
                a31 += s31.z * wz;
                a31 += s31.w * ww;
            }
        }
    }
    var bits: vec4<u32>;
    bits.x |= finish(a0, first + 0u, 0u, quad);
    bits.x |= finish(a1, first + 0u, 1u, quad);
    bits.x |= finish(a2, first + 0u, 2u, quad);
    bits.x |= finish(a3, first + 0u, 3u, quad);
    bits.x |= finish(a4, first + 0u, 4u, quad);
    bits.x |= finish(a5, first + 0u, 5u, quad);
    bits.x |= finish(a6, first + 0u, 6u, quad);
    bits.x |= finish(a7, first + 0u, 7u, quad);
    bits.y |= finish(a8, first + 8u, 0u, quad);
    bits.y |= finish(a9, first + 8u, 1u, quad);
    bits.y |= finish(a10, first + 8u, 2u, quad);
    bits.y |= finish(a11, first + 8u, 3u, quad);
    bits.y |= finish(a12, first + 8u, 4u, quad);
    bits.y |= finish(a13, first + 8u, 5u, quad);
    bits.y |= finish(a14, first + 8u, 6u, quad);
    bits.y |= finish(a15, first + 8u, 7u, quad);
    bits.z |= finish(a16, first + 16u, 0u, quad);
    bits.z |= finish(a17, first + 16u, 1u, quad);
    bits.z |= finish(a18, first + 16u, 2u, quad);
    bits.z |= finish(a19, first + 16u, 3u, quad);
    bits.z |= finish(a20, first + 16u, 4u, quad);
    bits.z |= finish(a21, first + 16u, 5u, quad);
    bits.z |= finish(a22, first + 16u, 6u, quad);
    bits.z |= finish(a23, first + 16u, 7u, quad);
    bits.w |= finish(a24, first + 24u, 0u, quad);
    bits.w |= finish(a25, first + 24u, 1u, quad);
    bits.w |= finish(a26, first + 24u, 2u, quad);
    bits.w |= finish(a27, first + 24u, 3u, quad);
    bits.w |= finish(a28, first + 24u, 4u, quad);
    bits.w |= finish(a29, first + 24u, 5u, quad);
    bits.w |= finish(a30, first + 24u, 6u, quad);
    bits.w |= finish(a31, first + 24u, 7u, quad);
    if p.has_mask != 0u && quad < p.out_quads {
        for (var tile = 0u; tile < 4u && first + tile * 8u < p.pixels; tile++) {
            mask[(place.y * 4u + tile) * p.out_quads + quad] = bits[tile];
        }
    }
}

// Where a texture that holds a buffer has the buffer's `index`-th quad.
fn texel(index: u32) -> vec2<u32> {
    return vec2<u32>(index & 4095u, index >> 12u);
}
