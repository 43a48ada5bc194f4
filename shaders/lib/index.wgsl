
// The index of this invocation among all those of a one-dimensional dispatch that was folded into rows.
fn linear_index(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * 64u + local;
}
