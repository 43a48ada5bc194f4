
struct Params {
    rows: u32,
    in_h: i32,
    in_w: i32,
    in_quads: u32,
    out_h: u32,
    out_w: i32,
    out_quads: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    rows_per_split: u32,
    grid_columns: u32,
    grid_rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;
