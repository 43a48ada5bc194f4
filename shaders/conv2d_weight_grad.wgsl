// Gradient of a convolution's weights, register-tiled: one invocation computes eight input channels × eight output
// channels of one tap of the window, over one split of the output rows. The splits are summed in a second pass, in
// order, so that the result does not depend on how the device schedules them.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;

@compute @workgroup_size(8, 4)
fn conv2d_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z * p.rows_per_split >= p.rows {
        return;
    }
    let id = place * vec3<u32>(8u, 4u, 1u) + local;
    let pairs = (p.in_quads + 1u) / 2u;
    let taps = p.kernel_h * p.kernel_w;
    let tap = min(id.y / pairs, taps - 1u);
    let ky = i32(tap / p.kernel_w);
    let kx = i32(tap % p.kernel_w);
    let in0 = id.y % pairs * 2u;
    let in1 = min(in0 + 1u, p.in_quads - 1u);
    let out0 = min(id.x * 2u, p.out_quads - 1u);
    let out1 = min(id.x * 2u + 1u, p.out_quads - 1u);

    // Output columns whose tap falls inside the image, so that the inner loop needs no mask.
    let begin = max(0, (p.pad_left - kx + p.stride_w - 1) / p.stride_w);
    let end = min(p.out_w, (p.in_w - 1 + p.pad_left - kx + p.stride_w) / p.stride_w);

    let first = id.z * p.rows_per_split;
    let last = min(first + p.rows_per_split, p.rows);
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
    for (var row = first; row < last; row++) {
        let image = i32(row / p.out_h);
        let y = i32(row % p.out_h) * p.stride_h - p.pad_top + ky;
        if y >= 0 && y < p.in_h {
            var x_at = u32((image * p.in_h + y) * p.in_w + begin * p.stride_w - p.pad_left + kx) * p.in_quads;
            var dy_at = (row * u32(p.out_w) + u32(begin)) * p.out_quads;
            for (var column = begin; column < end; column++) {
                let x0 = x[x_at + in0];
                let x1 = x[x_at + in1];
                let g0 = dy[dy_at + out0];
                let g1 = dy[dy_at + out1];
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
                x_at += u32(p.stride_w) * p.in_quads;
                dy_at += p.out_quads;
            }
        }
    }
    if id.y >= taps * pairs || id.x * 2u >= p.out_quads {
        return;
    }
    let rows = p.in_quads * 4u;
    let to_row = (id.z * taps + tap) * rows + in0 * 4u;
    store(a0, b0, to_row + 0u, true, id.x * 2u);
    store(a1, b1, to_row + 1u, true, id.x * 2u);
    store(a2, b2, to_row + 2u, true, id.x * 2u);
    store(a3, b3, to_row + 3u, true, id.x * 2u);
    store(a4, b4, to_row + 4u, in0 + 1u < p.in_quads, id.x * 2u);
    store(a5, b5, to_row + 5u, in0 + 1u < p.in_quads, id.x * 2u);
    store(a6, b6, to_row + 6u, in0 + 1u < p.in_quads, id.x * 2u);
    store(a7, b7, to_row + 7u, in0 + 1u < p.in_quads, id.x * 2u);
}

fn store(a: vec4<f32>, b: vec4<f32>, row: u32, inside: bool, quad: u32) {
    if !inside {
        return;
    }
    partials[row * p.out_quads + quad] = a;
    if quad + 1u < p.out_quads {
        partials[row * p.out_quads + quad + 1u] = b;
    }
}
