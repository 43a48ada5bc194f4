// Copies channels of x to z, or adds them. One invocation: four channels of one pixel of z.

struct Params {
    pixels: u32,
    x_quads: u32,
    z_quads: u32,
    x_begin: u32,
    z_begin: u32,
    channels: u32,
    groups: u32,
    first: u32,
    quads: u32,
    mode: u32,
}

const KEEP = 1u;
const ADD = 2u;

// Whether a quad of z is a quad of x.
override aligned: bool = false;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> z: array<vec4<f32>>;

@compute @workgroup_size(64)
fn copy_channels(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let pixel = index / p.quads;
    if pixel >= p.pixels {
        return;
    }
    let quad = p.first + index % p.quads;
    // Those before the first wrap around and are large.
    let places = vec4<u32>(0u, 1u, 2u, 3u) + 4u * quad - p.z_begin;
    let inside = places < vec4<u32>(p.channels);
    var value = vec4<f32>();
    if aligned {
        if any(inside) {
            let taken = quad + p.x_begin / 4u - p.z_begin / 4u;
            value = select(value, x[pixel * p.x_quads + taken], inside);
        }
    } else {
        let run = p.channels / p.groups;
        for (var lane = 0u; lane < 4u; lane++) {
            if inside[lane] {
                let taken = p.x_begin + places[lane] % p.groups * run + places[lane] / p.groups;
                value[lane] = x[pixel * p.x_quads + taken / 4u][taken % 4u];
            }
        }
    }
    let at = pixel * p.z_quads + quad;
    if p.mode == ADD {
        z[at] += value;
    } else if p.mode == KEEP && 4u * quad < p.z_begin {
        z[at] = select(value, z[at], places >= vec4<u32>(0x80000000u));
    } else {
        z[at] = value;
    }
}
