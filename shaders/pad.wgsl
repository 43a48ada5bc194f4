// Shifts images into larger or smaller ones. One invocation: four channels of one pixel of z.

struct Params {
    pixels: u32,
    quads: u32,
    in_h: i32,
    in_w: i32,
    out_h: i32,
    out_w: i32,
    top: i32,
    left: i32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn pad(
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
    let iy = row % p.out_h - p.top;
    let ix = i32(pixel) % p.out_w - p.left;
    var value = vec4<f32>();
    if iy >= 0 && iy < p.in_h && ix >= 0 && ix < p.in_w {
        value = x[u32((row / p.out_h * p.in_h + iy) * p.in_w + ix) * p.quads + quad];
    }
    z[index] = value;
}
