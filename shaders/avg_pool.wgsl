// The mean of each window. One invocation: four channels of one output pixel.

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
    counted_top: i32,
    counted_left: i32,
    counted_bottom: i32,
    counted_right: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn avg_pool(
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
    var sum = vec4<f32>();
    for (var iy = ys.x; iy < ys.y; iy++) {
        for (var ix = xs.x; ix < xs.y; ix++) {
            sum += x[u32((image * p.in_h + iy) * p.in_w + ix) * p.quads + quad];
        }
    }
    let rows = counted(row % p.out_h, p.kernel_h, p.stride_h, p.pad_top, p.counted_top, p.in_h + p.counted_bottom);
    let columns = counted(i32(pixel) % p.out_w, p.kernel_w, p.stride_w, p.pad_left, p.counted_left, p.in_w + p.counted_right);
    z[index] = sum / f32(rows * columns);
}
