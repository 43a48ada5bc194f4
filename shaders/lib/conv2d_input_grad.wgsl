
struct Params {
    images: u32,
    in_h: u32,
    in_w: u32,
    in_quads: u32,
    out_h: i32,
    out_w: i32,
    out_quads: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: u32,
    pad_left: u32,
    accumulate: u32,
    grid_columns: u32,
    grid_rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read_write> x_grad: array<vec4<f32>>;

// For the pixel `index` of a class of `rows` × `columns` pixels an image: the output row and column that the window's
// first tap of the class reads, the image's first output row, and the pixel's index in the input.
fn locate(index: u32, class_y: u32, class_x: u32, rows: u32, columns: u32) -> vec4<i32> {
    let last = min(index, p.images * rows * columns - 1u);
    let line = last / columns;
    let image = line / rows;
    let y = (line - image * rows) * p.stride_h + class_y;
    let x = (last - line * columns) * p.stride_w + class_x;
    return vec4<i32>(
        i32((y + p.pad_top) / p.stride_h),
        i32((x + p.pad_left) / p.stride_w),
        i32(image) * p.out_h,
        i32((image * p.in_h + y) * p.in_w + x),
    );
}

// The index of an output pixel's first quad, clamped into the image, and 1 inside the image or 0 outside as bits.
fn tap(at: vec4<i32>, ky: i32, kx: i32) -> vec2<u32> {
    let y = at.x - ky;
    let x = at.y - kx;
    let cy = clamp(y, 0, p.out_h - 1);
    let cx = clamp(x, 0, p.out_w - 1);
    return vec2<u32>(
        u32((at.z + cy) * p.out_w + cx) * p.out_quads,
        bitcast<u32>(select(0.0, 1.0, y == cy && x == cx)),
    );
}

// Replaces or adds to four channels of an input pixel.
fn store(sum: vec4<f32>, pixel: i32, inside: bool, quad: u32) {
    if !inside || quad >= p.in_quads {
        return;
    }
    let at = u32(pixel) * p.in_quads + quad;
    if p.accumulate != 0u {
        x_grad[at] += sum;
    } else {
        x_grad[at] = sum;
    }
}
