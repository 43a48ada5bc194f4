// out = Σ of the partials.

struct Params {
    quads: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(invocations)
fn sum_partials(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(group, groups, local, 1u, p.quads);
    var sum = vec4<f32>();
    for (var partial = place.lane; partial < p.count; partial += lanes) {
        sum += partials[partial * p.quads + place.quad];
    }
    let all = sum_of_lanes(local, sum);
    if place.inside && place.lane == 0u {
        out[place.quad] = all;
    }
}
