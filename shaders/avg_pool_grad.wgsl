// Gathers, for each input, its share of the gradients of the windows that cover it. One invocation: four channels of
// one input pixel.

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
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> x_grad: array<vec4<f32>>;

@compute @workgroup_size(64)
fn avg_pool_grad(
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
    let row = i32(pixel) / p.in_w;
    let image = row / p.in_h;
    let y = row % p.in_h;
    let x = i32(pixel) % p.in_w;
    let oys = covering(y, p.kernel_h, p.stride_h, p.pad_top, p.out_h);
    let oxs = covering(x, p.kernel_w, p.stride_w, p.pad_left, p.out_w);
    var sum = vec4<f32>();
    for (var oy = oys.x; oy < oys.y; oy++) {
        let rows = counted(oy, p.kernel_h, p.stride_h, p.pad_top, p.counted_top, p.in_h + p.counted_bottom);
        for (var ox = oxs.x; ox < oxs.y; ox++) {
            let columns = counted(ox, p.kernel_w, p.stride_w, p.pad_left, p.counted_left, p.in_w + p.counted_right);
            sum += dy[u32((image * p.out_h + oy) * p.out_w + ox) * p.quads + quad] / f32(rows * columns);
        }
    }
    x_grad[index] = sum;
}
