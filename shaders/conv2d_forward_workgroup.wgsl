// Convolution by implicit GEMM through workgroup memory. A row of the product is an output pixel, a column an output channel; taps
// and input channels are summed over as one dimension, in the order of the weights, so that few channels waste nothing.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

// Of a slab, four quads of each pixel, quad by quad, and 16 rows of the weights.
var<workgroup> xs: array<vec4<f32>, left_size>;
var<workgroup> ws: array<vec4<f32>, right_size>;

const OUTSIDE: u32 = 0xffffffffu;

@compute @workgroup_size(columns, rows)
fn conv2d_forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z > 0u {
        return;
    }
    let quad0 = place.x * tile_quads;
    let pixel0 = place.y * tile_rows;
    let depth = u32(p.kernel_h * p.kernel_w) * p.in_quads;
    // Four neighbours load four quads of a pixel. An invocation's quad lies in channel quad `c` of a tap.
    let load_quad = index % 4u;
    let load_pixel = index / 4u;
    var c = load_quad;
    var ky = 0;
    var kx = 0;
    var at = array<vec3<i32>, MOST_LOADS>();
    var starts = array<u32, MOST_LOADS>();
    for (var j = 0u; j < left_loads; j++) {
        at[j] = locate(pixel0 + load_pixel + j * (invocations / 4u));
    }
    let load_row = index / tile_quads;
    let load_column = quad0 + index % tile_quads;

    var sums = array<vec4<f32>, MOST_SUMS>();
    for (var slab = 0u; slab < depth; slab += 4u) {
        if slab == 0u || c >= p.in_quads {
            while c >= p.in_quads {
                c -= p.in_quads;
                kx++;
                if kx == p.kernel_w {
                    kx = 0;
                    ky++;
                }
            }
            for (var j = 0u; j < left_loads; j++) {
                let t = tap(at[j], ky, kx);
                starts[j] = select(OUTSIDE, t.x, t.y != 0u);
            }
        }
        var left = array<vec4<f32>, MOST_LOADS>();
        for (var j = 0u; j < left_loads; j++) {
            let inside = slab + load_quad < depth && starts[j] != OUTSIDE;
            left[j] = select(vec4<f32>(), x[select(0u, starts[j] + c, inside)], inside);
        }
        var right = array<vec4<f32>, MOST_LOADS>();
        for (var j = 0u; j < right_loads; j++) {
            let row = slab * 4u + load_row + j * (invocations / tile_quads);
            let inside = row < depth * 4u && load_column < p.out_quads;
            right[j] = select(vec4<f32>(), weight[select(0u, row * p.out_quads + load_column, inside)], inside);
        }
        workgroupBarrier();
        for (var j = 0u; j < left_loads; j++) {
            let pixel = load_pixel + j * (invocations / 4u);
            xs[load_quad * tile_rows + swizzled(pixel, load_quad)] = left[j];
        }
        for (var j = 0u; j < right_loads; j++) {
            ws[index + j * invocations] = right[j];
        }
        workgroupBarrier();
        for (var k = 0u; k < min(4u, depth - slab); k++) {
            var pixels = array<vec4<f32>, 8>();
            for (var i = 0u; i < 8u; i++) {
                pixels[i] = xs[k * tile_rows + swizzled(local.y * 8u + i, k)];
            }
            for (var e = 0u; e < 4u; e++) {
                for (var q = 0u; q < width; q++) {
                    let w = ws[(k * 4u + e) * tile_quads + q * columns + local.x];
                    for (var i = 0u; i < 8u; i++) {
                        sums[q * 8u + i] += pixels[i][e] * w;
                    }
                }
            }
        }
        c += 4u;
    }

    let first = pixel0 + local.y * 8u;
    for (var q = 0u; q < width; q++) {
        let quad = quad0 + q * columns + local.x;
        var bits = 0u;
        for (var i = 0u; i < 8u; i++) {
            bits |= finish(sums[q * 8u + i], first, i, quad);
        }
        if p.has_mask != 0u && first < p.pixels && quad < p.out_quads {
            mask[first / 8u * p.out_quads + quad] = bits;
        }
    }
}

// The place of a pixel among those of its quad: eight neighbours that store two pixels' quads do so to different banks.
fn swizzled(pixel: u32, quad: u32) -> u32 {
    return pixel ^ (quad * 2u);
}
