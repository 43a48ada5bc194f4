// x = (byte/255 − mean)/std, blue first if so asked, the fourth channel 0. One invocation: one pixel.

struct Params {
    pixels: u32,
    mean_r: f32,
    mean_g: f32,
    mean_b: f32,
    std_r: f32,
    std_g: f32,
    std_b: f32,
    bgr: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> pixels: array<u32>;
@group(0) @binding(2) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(64)
fn input_normalize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    if index >= p.pixels {
        return;
    }
    let word = pixels[index];
    let rgb = vec3<f32>(f32(word & 255u), f32((word >> 8u) & 255u), f32((word >> 16u) & 255u)) / 255.0;
    let mean = vec3<f32>(p.mean_r, p.mean_g, p.mean_b);
    let normal = (rgb - mean) / vec3<f32>(p.std_r, p.std_g, p.std_b);
    x[index] = vec4<f32>(select(normal, normal.bgr, p.bgr != 0u), 0.0);
}
