// z = x·kept/(1 − rate) + residual: each value, or each image as a whole, is kept or dropped by a random number of its
// own. One invocation: four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    quads: u32,
    image: u32,
    stream: u32,
    threshold: u32,
    scale: f32,
    whole: u32,
    residual: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> step: array<u32>;
@group(0) @binding(3) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn dropout(
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
    let draw = step[5];
    let key = vec2<u32>(step[6], step[7]);
    for (var pixel = first; pixel < end; pixel++) {
        let at = pixel * p.quads + quad;
        var bits: vec4<u32>;
        if p.whole != 0u {
            bits = vec4<u32>(philox(vec4<u32>(pixel / p.image, draw, p.stream, 0u), key).x);
        } else {
            bits = philox(vec4<u32>(at, draw, p.stream, 0u), key);
        }
        // A dropped value that is not finite is gone, too.
        var y = select(x[at] * p.scale, vec4<f32>(), bits < vec4<u32>(p.threshold));
        if p.residual != 0u {
            y += residual[at];
        }
        z[at] = y;
    }
}
