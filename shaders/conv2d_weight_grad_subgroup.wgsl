enable subgroups;
// Gradient of a convolution's weights for subgroups of eight: one subgroup computes 32 rows of the weights (a row is one
// input channel of one tap; the taps of a window's row follow each other as the pixels do in memory) × 32 output
// channels, four an invocation, over one split of the output rows. Each invocation loads four of the 32 input values of
// a pixel and broadcasts them to the others.

@group(0) @binding(1) var x: texture_2d<f32>;
@group(0) @binding(2) var dy: texture_2d<f32>;

@compute @workgroup_size(8)
fn conv2d_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z * p.rows_per_split >= p.rows {
        return;
    }
    let line = p.kernel_w * p.in_quads;
    let blocks = (line + 7u) / 8u;
    let ky = place.y / blocks;
    let own = place.y % blocks * 8u + lane;
    let kx = i32(own / p.in_quads);
    // Drivers do not move a division out of a loop.
    let own_quad = own % p.in_quads;
    let used = own < line;
    let out = min(place.x * 8u + lane, p.out_quads - 1u);

    let first = place.z * p.rows_per_split;
    let last = min(first + p.rows_per_split, p.rows);
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
    for (var row = first; row < last; row++) {
        let image = i32(row / p.out_h);
        let y = i32(row % p.out_h) * p.stride_h - p.pad_top + i32(ky);
        if y >= 0 && y < p.in_h {
            let start = (image * p.in_h + y) * p.in_w;
            for (var column = 0; column < p.out_w; column++) {
                let wanted = column * p.stride_w - p.pad_left + kx;
                let inside = clamp(wanted, 0, p.in_w - 1);
                let load = textureLoad(x, texel(u32(start + inside) * p.in_quads + own_quad), 0);
                let value = load * select(0.0, 1.0, wanted == inside && used);
                let g = textureLoad(dy, texel((row * u32(p.out_w) + u32(column)) * p.out_quads + out), 0);
                let s0 = subgroupBroadcast(value, 0u);
                a0 += s0.x * g;
                a1 += s0.y * g;
                a2 += s0.z * g;
                a3 += s0.w * g;
                let s1 = subgroupBroadcast(value, 1u);
                a4 += s1.x * g;
                a5 += s1.y * g;
                a6 += s1.z * g;
                a7 += s1.w * g;
                let s2 = subgroupBroadcast(value, 2u);
                a8 += s2.x * g;
                a9 += s2.y * g;
                a10 += s2.z * g;
                a11 += s2.w * g;
                let s3 = subgroupBroadcast(value, 3u);
                a12 += s3.x * g;
                a13 += s3.y * g;
                a14 += s3.z * g;
                a15 += s3.w * g;
                let s4 = subgroupBroadcast(value, 4u);
                a16 += s4.x * g;
                a17 += s4.y * g;
                a18 += s4.z * g;
                a19 += s4.w * g;
                let s5 = subgroupBroadcast(value, 5u);
                a20 += s5.x * g;
                a21 += s5.y * g;
                a22 += s5.z * g;
                a23 += s5.w * g;
                let s6 = subgroupBroadcast(value, 6u);
                a24 += s6.x * g;
                a25 += s6.y * g;
                a26 += s6.z * g;
                a27 += s6.w * g;
                let s7 = subgroupBroadcast(value, 7u);
                a28 += s7.x * g;
                a29 += s7.y * g;
                a30 += s7.z * g;
                a31 += s7.w * g;
            }
        }
    }
    let quad = place.x * 8u + lane;
    if quad >= p.out_quads {
        return;
    }
    let rows = line * 4u;
    let block = place.y % blocks * 32u;
    let to_row = (place.z * p.kernel_h + ky) * rows + block;
    if block + 0u < rows {
        partials[(to_row + 0u) * p.out_quads + quad] = a0;
    }
    if block + 1u < rows {
        partials[(to_row + 1u) * p.out_quads + quad] = a1;
    }
    if block + 2u < rows {
        partials[(to_row + 2u) * p.out_quads + quad] = a2;
    }
    if block + 3u < rows {
        partials[(to_row + 3u) * p.out_quads + quad] = a3;
    }
    if block + 4u < rows {
        partials[(to_row + 4u) * p.out_quads + quad] = a4;
    }
    if block + 5u < rows {
        partials[(to_row + 5u) * p.out_quads + quad] = a5;
    }
    if block + 6u < rows {
        partials[(to_row + 6u) * p.out_quads + quad] = a6;
    }
    if block + 7u < rows {
        partials[(to_row + 7u) * p.out_quads + quad] = a7;
    }
    if block + 8u < rows {
        partials[(to_row + 8u) * p.out_quads + quad] = a8;
    }
    if block + 9u < rows {
        partials[(to_row + 9u) * p.out_quads + quad] = a9;
    }
    if block + 10u < rows {
        partials[(to_row + 10u) * p.out_quads + quad] = a10;
    }
    if block + 11u < rows {
        partials[(to_row + 11u) * p.out_quads + quad] = a11;
    }
    if block + 12u < rows {
        partials[(to_row + 12u) * p.out_quads + quad] = a12;
    }
    if block + 13u < rows {
        partials[(to_row + 13u) * p.out_quads + quad] = a13;
    }
    if block + 14u < rows {
        partials[(to_row + 14u) * p.out_quads + quad] = a14;
    }
    if block + 15u < rows {
        partials[(to_row + 15u) * p.out_quads + quad] = a15;
    }
    if block + 16u < rows {
        partials[(to_row + 16u) * p.out_quads + quad] = a16;
    }
    if block + 17u < rows {
        partials[(to_row + 17u) * p.out_quads + quad] = a17;
    }
    if block + 18u < rows {
        partials[(to_row + 18u) * p.out_quads + quad] = a18;
    }
    if block + 19u < rows {
        partials[(to_row + 19u) * p.out_quads + quad] = a19;
    }
    if block + 20u < rows {
        partials[(to_row + 20u) * p.out_quads + quad] = a20;
    }
    if block + 21u < rows {
        partials[(to_row + 21u) * p.out_quads + quad] = a21;
    }
    if block + 22u < rows {
        partials[(to_row + 22u) * p.out_quads + quad] = a22;
    }
    if block + 23u < rows {
        partials[(to_row + 23u) * p.out_quads + quad] = a23;
    }
    if block + 24u < rows {
        partials[(to_row + 24u) * p.out_quads + quad] = a24;
    }
    if block + 25u < rows {
        partials[(to_row + 25u) * p.out_quads + quad] = a25;
    }
    if block + 26u < rows {
        partials[(to_row + 26u) * p.out_quads + quad] = a26;
    }
    if block + 27u < rows {
        partials[(to_row + 27u) * p.out_quads + quad] = a27;
    }
    if block + 28u < rows {
        partials[(to_row + 28u) * p.out_quads + quad] = a28;
    }
    if block + 29u < rows {
        partials[(to_row + 29u) * p.out_quads + quad] = a29;
    }
    if block + 30u < rows {
        partials[(to_row + 30u) * p.out_quads + quad] = a30;
    }
    if block + 31u < rows {
        partials[(to_row + 31u) * p.out_quads + quad] = a31;
    }
}

// Where a texture that holds a buffer has the buffer's `index`-th quad.
fn texel(index: u32) -> vec2<u32> {
    return vec2<u32>(index & 4095u, index >> 12u);
}
