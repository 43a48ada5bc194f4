// Gradient of a convolution's weights through workgroup memory. A row of the product is a row of the weights, which is one input
// channel of one tap, a column an output channel; the pixels of one split of the output rows are summed over.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;

// Of a slab's 16 pixels, the quads of the tile's rows and those of its columns.
var<workgroup> xs: array<vec4<f32>, left_size>;
var<workgroup> gs: array<vec4<f32>, right_size>;

// Neighbours that load quads of the same pixel.
override neighbours: u32 = invocations / 16u;

@compute @workgroup_size(columns, rows)
fn conv2d_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z * p.rows_per_split >= p.rows {
        return;
    }
    let width_out = u32(p.out_w);
    let begin = place.z * p.rows_per_split * width_out;
    let end = min((place.z + 1u) * p.rows_per_split, p.rows) * width_out;
    let own_quads = p.kernel_h * p.kernel_w * p.in_quads;
    let row_quads = rows * 2u;
    let own0 = place.y * row_quads;
    let quad0 = place.x * tile_quads;

    // The pixel of a slab that this invocation loads, and its quads: the tap's row and column, and the offset in x.
    let load_pixel = index / neighbours;
    let load_quad = index % neighbours;
    var tap_y = array<i32, MOST_LOADS>();
    var tap_x = array<i32, MOST_LOADS>();
    var offsets = array<i32, MOST_LOADS>();
    for (var j = 0u; j < left_loads; j++) {
        // A quad behind the last one has the last one's: it is not stored.
        let own = min(own0 + load_quad + j * neighbours, own_quads - 1u);
        let tap = own / p.in_quads;
        tap_y[j] = i32(tap / p.kernel_w) - p.pad_top;
        tap_x[j] = i32(tap % p.kernel_w) - p.pad_left;
        offsets[j] = (tap_y[j] * p.in_w + tap_x[j]) * i32(p.in_quads) + i32(own % p.in_quads);
    }
    var pixel = begin + load_pixel;
    var row = pixel / width_out;
    var ox = pixel % width_out;
    var image = row / p.out_h;
    var oy = row % p.out_h;

    var sums = array<vec4<f32>, MOST_SUMS>();
    for (var slab = begin; slab < end; slab += 16u) {
        let live = pixel < end;
        let y = i32(oy) * p.stride_h;
        let column = i32(ox) * p.stride_w;
        let start = ((i32(image) * p.in_h + y) * p.in_w + column) * i32(p.in_quads);
        var left = array<vec4<f32>, MOST_LOADS>();
        for (var j = 0u; j < left_loads; j++) {
            let at = vec2<i32>(y + tap_y[j], column + tap_x[j]);
            let inside = live && all(at >= vec2<i32>()) && all(at < vec2<i32>(p.in_h, p.in_w));
            left[j] = select(vec4<f32>(), x[select(0, start + offsets[j], inside)], inside);
        }
        var right = array<vec4<f32>, MOST_LOADS>();
        for (var j = 0u; j < right_loads; j++) {
            let quad = quad0 + load_quad + j * neighbours;
            let inside = live && quad < p.out_quads;
            right[j] = select(vec4<f32>(), dy[select(0u, pixel * p.out_quads + quad, inside)], inside);
        }
        workgroupBarrier();
        for (var j = 0u; j < left_loads; j++) {
            xs[load_pixel * row_quads + swizzled(load_quad + j * neighbours, load_pixel)] = left[j];
        }
        for (var j = 0u; j < right_loads; j++) {
            gs[load_pixel * tile_quads + swizzled(load_quad + j * neighbours, load_pixel)] = right[j];
        }
        workgroupBarrier();
        for (var k = 0u; k < min(16u, end - slab); k++) {
            let x0 = xs[k * row_quads + swizzled(local.y * 2u, k)];
            let x1 = xs[k * row_quads + swizzled(local.y * 2u + 1u, k)];
            for (var q = 0u; q < width; q++) {
                let g = gs[k * tile_quads + swizzled(q * columns + local.x, k)];
                for (var e = 0u; e < 4u; e++) {
                    sums[q * 8u + e] += x0[e] * g;
                    sums[q * 8u + 4u + e] += x1[e] * g;
                }
            }
        }
        pixel += 16u;
        ox += 16u;
        while ox >= width_out {
            ox -= width_out;
            oy++;
            if oy == p.out_h {
                oy = 0u;
                image++;
            }
        }
    }

    for (var q = 0u; q < width; q++) {
        let quad = quad0 + q * columns + local.x;
        for (var i = 0u; i < 8u; i++) {
            let own = own0 + local.y * 2u + i / 4u;
            if own < own_quads && quad < p.out_quads {
                partials[((place.z * own_quads + own) * 4u + i % 4u) * p.out_quads + quad] = sums[q * 8u + i];
            }
        }
    }
}

// The place of a quad among those of its pixel: eight neighbours that store to several pixels do so to different banks.
fn swizzled(quad: u32, pixel: u32) -> u32 {
    return quad ^ (pixel * neighbours % 8u);
}
