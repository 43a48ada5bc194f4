
// A reduction over rows of quads, cut into parts: chunks of one domain's rows each. On a GPU a workgroup of `across` × `lanes`
// invocations reduces `across` quads of one part, and its lanes share the rows; on a CPU driver, which pays for barriers, `lanes` is 1
// and an invocation reduces a quad of a part alone.
override across: u32 = 64u;
override lanes: u32 = 1u;
override invocations: u32 = across * lanes;

struct Place {
    part: u32,
    quad: u32,
    lane: u32,
    // Whether there is such a quad of such a part. Others compute along, since barriers need all invocations.
    inside: bool,
}

fn place_of(group: vec3<u32>, groups: vec3<u32>, local: u32, parts: u32, quads: u32) -> Place {
    var part = 0u;
    var quad = 0u;
    if lanes == 1u {
        let index = linear_index(group, groups, local);
        part = index / quads;
        quad = index % quads;
    } else {
        let blocks = (quads + across - 1u) / across;
        let workgroup = group.y * groups.x + group.x;
        part = workgroup / blocks;
        quad = workgroup % blocks * across + local % across;
    }
    let inside = part < parts && quad < quads;
    return Place(min(part, parts - 1u), min(quad, quads - 1u), local / across, inside);
}

// Where a workgroup reduces `across` rows of all their quads: the row, and the lane, which takes every `lanes`th quad.
fn row_of(group: vec3<u32>, groups: vec3<u32>, local: u32) -> vec2<u32> {
    return vec2<u32>((group.y * groups.x + group.x) * across + local % across, local / across);
}

var<workgroup> shared_sums: array<vec4<f32>, invocations>;

// The sum over the lanes, which the first of them gets.
fn sum_of_lanes(local: u32, own: vec4<f32>) -> vec4<f32> {
    if lanes == 1u {
        return own;
    }
    workgroupBarrier();
    shared_sums[local] = own;
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if local < half * across {
            shared_sums[local] += shared_sums[local + half * across];
        }
    }
    return shared_sums[local];
}

// The same, which all lanes get.
fn total_of_lanes(local: u32, own: vec4<f32>) -> vec4<f32> {
    let sum = sum_of_lanes(local, own);
    if lanes == 1u {
        return sum;
    }
    workgroupBarrier();
    return shared_sums[local % across];
}
