// The greatest value in each window, and where in the window it stands. One invocation: four channels of one output
// pixel.

struct Params {
    pixels: u32,
    quads: u32,
    in_h: i32,
    in_w: i32,
    out_h: i32,
    out_w: i32,
    kernel_h: i32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    argmax: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> argmax: array<u32>;

@compute @workgroup_size(64)
fn max_pool(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let pixel = index / p.quads;
    let quad = index % p.quads;
    if pixel >= p.pixels {
        return;
    }
    let row = i32(pixel) / p.out_w;
    let image = row / p.out_h;
    let ys = covered(row % p.out_h, p.kernel_h, p.stride_h, p.pad_top, p.in_h);
    let xs = covered(i32(pixel) % p.out_w, p.kernel_w, p.stride_w, p.pad_left, p.in_w);
    let top = row % p.out_h * p.stride_h - p.pad_top;
    let left = i32(pixel) % p.out_w * p.stride_w - p.pad_left;
    var best = x[u32((image * p.in_h + ys.x) * p.in_w + xs.x) * p.quads + quad];
    var position = vec4<u32>(u32((ys.x - top) * p.kernel_w + xs.x - left));
    for (var iy = ys.x; iy < ys.y; iy++) {
        for (var ix = xs.x; ix < xs.y; ix++) {
            let value = x[u32((image * p.in_h + iy) * p.in_w + ix) * p.quads + quad];
            // A comparison with a NaN may give anything.
            let better = are_nan(value) | ((value > best) & !are_nan(best));
            best = select(best, value, better);
            position = select(position, vec4<u32>(u32((iy - top) * p.kernel_w + ix - left)), better);
        }
    }
    z[index] = best;
    if p.argmax != 0u {
        argmax[index] = position.x | (position.y << 8u) | (position.z << 16u) | (position.w << 24u);
    }
}
