
struct Params {
    pixels: u32,
    in_h: i32,
    in_w: i32,
    in_quads: u32,
    out_h: u32,
    out_w: u32,
    out_quads: u32,
    kernel_h: i32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    has_bias: u32,
    has_residual: u32,
    act: u32,
    has_mask: u32,
    grid_columns: u32,
    grid_rows: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> z: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> mask: array<u32>;

// The window's first row and column in the input, and the image's first row, of an output pixel.
fn locate(pixel: u32) -> vec3<i32> {
    let last = min(pixel, p.pixels - 1u);
    let row = last / p.out_w;
    let image = row / p.out_h;
    return vec3<i32>(
        i32(row - image * p.out_h) * p.stride_h - p.pad_top,
        i32(last - row * p.out_w) * p.stride_w - p.pad_left,
        i32(image) * p.in_h,
    );
}

// The index of an input pixel's first quad, clamped into the image, and 1 inside the image or 0 outside as bits.
fn tap(at: vec3<i32>, ky: i32, kx: i32) -> vec2<u32> {
    let y = at.x + ky;
    let x = at.y + kx;
    let cy = clamp(y, 0, p.in_h - 1);
    let cx = clamp(x, 0, p.in_w - 1);
    return vec2<u32>(
        u32((at.z + cy) * p.in_w + cx) * p.in_quads,
        bitcast<u32>(select(0.0, 1.0, y == cy && x == cx)),
    );
}

// Adds bias and residual, applies the activation, stores, and returns the sign bits.
fn finish(sum: vec4<f32>, first: u32, i: u32, quad: u32) -> u32 {
    let pixel = first + i;
    if pixel >= p.pixels || quad >= p.out_quads {
        return 0u;
    }
    let at = pixel * p.out_quads + quad;
    var y = sum;
    if p.has_bias != 0u {
        y += bias[quad];
    }
    if p.has_residual != 0u {
        y += residual[at];
    }
    z[at] = activate(y, p.act);
    return pass_bits(y, p.act, i);
}
