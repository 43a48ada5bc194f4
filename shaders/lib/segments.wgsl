
// Quads that a workgroup handles.
const TILE = 512u;

// The segment that a tile belongs to: the last that begins no later.
fn segment_of(tile: u32) -> u32 {
    var first = 0u;
    var behind = p.segments;
    while behind - first > 1u {
        let middle = (first + behind) / 2u;
        if segments[middle].tile <= tile {
            first = middle;
        } else {
            behind = middle;
        }
    }
    return first;
}
