// out = Σ of the partials, in their order. One invocation: four values.

struct Params {
    quads: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn sum_partials(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    if index >= p.quads {
        return;
    }
    var sum = vec4<f32>();
    for (var partial = 0u; partial < p.count; partial++) {
        sum += partials[partial * p.quads + index];
    }
    out[index] = sum;
}
