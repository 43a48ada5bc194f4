// Moves the running moments of many layers towards those of a batch and counts the update. One workgroup: a tile of one layer's
// channels.

struct Params {
    segments: u32,
}

struct Segment {
    tile: u32,
    quads: u32,
    // The first quads in the buffers.
    running: u32,
    batch: u32,
    cumulative: u32,
    keep: f32,
    mean_factor: f32,
    var_factor: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> batch: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> segments: array<Segment>;
@group(0) @binding(3) var<storage, read_write> running: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_update(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let tile = group.y * groups.x + group.x;
    let segment = segments[segment_of(tile)];
    let first = (tile - segment.tile) * TILE;
    for (var index = first + local; index < min(first + TILE, segment.quads); index += 64u) {
        let mean = segment.running + index;
        let variance = mean + segment.quads;
        let updates = variance + segment.quads;
        let count = running[updates] + 1.0;
        let keep = select(vec4<f32>(segment.keep), 1.0 - 1.0 / count, segment.cumulative != 0u);
        let batch_mean = batch[segment.batch + index] * segment.mean_factor;
        let batch_variance = batch[segment.batch + segment.quads + index] * segment.var_factor;
        running[mean] = keep * running[mean] + (1.0 - keep) * batch_mean;
        running[variance] = keep * running[variance] + (1.0 - keep) * batch_variance;
        running[updates] = count;
    }
}
