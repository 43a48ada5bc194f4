
// Whether the grid has more workgroups in a dimension than every device dispatches, so that the host has folded it.
override folded: bool = false;

// The place of a workgroup in a grid of `columns` × `rows` and any number of layers. Of a folded one some workgroups may be
// left over, behind the last layer.
fn unfold(group: vec3<u32>, groups: vec3<u32>, columns: u32, rows: u32) -> vec3<u32> {
    if folded {
        let index = (group.z * groups.y + group.y) * groups.x + group.x;
        let row = index / columns;
        return vec3<u32>(index - row * columns, row % rows, row / rows);
    }
    return group;
}
