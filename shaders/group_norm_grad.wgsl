// The gradient of what a group norm normalises. One invocation: four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    image: u32,
    quads: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> x_grad: array<vec4<f32>>;

@compute @workgroup_size(64)
fn group_norm_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let quad = index % p.quads;
    let first = index / p.quads * 8u;
    for (var pixel = first; pixel < min(first + 8u, p.pixels); pixel++) {
        let at = pixel * p.quads + quad;
        let row = pixel / p.image * 2u * p.quads + quad;
        let r = 1.0 / sqrt(moments[row + p.quads] + p.eps);
        let normalised = (x[at] - moments[row]) * r;
        let n = f32(p.image);
        x_grad[at] = r * (affine[quad] * dy[at] - sums[row + p.quads] / n - normalised * sums[row] / n);
    }
}
