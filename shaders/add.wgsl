// z = act(a + b). One invocation: four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    quads: u32,
    act: u32,
    mask: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> mask: array<u32>;

@compute @workgroup_size(64)
fn add(
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
    let count = min(8u, p.pixels - first);
    var bits = 0u;
    for (var i = 0u; i < count; i++) {
        let at = (first + i) * p.quads + quad;
        let y = a[at] + b[at];
        bits |= pass_bits(y, p.act, i);
        z[at] = activate(y, p.act);
    }
    if p.mask != 0u {
        mask[index] = bits;
    }
}
