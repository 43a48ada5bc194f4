// z = x·gate + mean/HW, the gate being one value a channel of each image, and the mean one, too. One invocation: four
// channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    quads: u32,
    image: u32,
    mean: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> mean: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn scale(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let tile = index / p.quads;
    let quad = index % p.quads;
    let first = tile * 8u;
    if first >= p.pixels {
        return;
    }
    let end = min(first + 8u, p.pixels);
    for (var pixel = first; pixel < end; pixel++) {
        let at = pixel * p.quads + quad;
        let row = pixel / p.image * p.quads + quad;
        var y = x[at] * gate[row];
        if p.mean != 0u {
            y += mean[row] / f32(p.image);
        }
        z[at] = y;
    }
}
