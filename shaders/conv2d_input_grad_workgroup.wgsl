// Gradient of a convolution's input through workgroup memory. A row of the product is an input pixel of a class, a column an input
// channel; the class's taps and the output channels are summed over as one dimension. For the classes see
// conv2d_input_grad.wgsl.

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;

// Of a slab, four quads of each pixel and of each row of the weights, quad by quad.
var<workgroup> gs: array<vec4<f32>, left_size>;
var<workgroup> ws: array<vec4<f32>, right_size>;

const OUTSIDE: u32 = 0xffffffffu;

@compute @workgroup_size(columns, rows)
fn conv2d_input_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let place = unfold(group, groups, p.grid_columns, p.grid_rows);
    if folded && place.z >= p.stride_h * p.stride_w {
        return;
    }
    let class_y = place.z / p.stride_w;
    let class_x = place.z % p.stride_w;
    let class_h = (p.in_h + p.stride_h - 1u - class_y) / p.stride_h;
    let class_w = (p.in_w + p.stride_w - 1u - class_x) / p.stride_w;
    let quad0 = place.x * tile_quads;
    let pixel0 = place.y * tile_rows;
    // The first of the class's taps, and how many there are: none of a class that no window reaches.
    let ky0 = (class_y + p.pad_top) % p.stride_h;
    let kx0 = (class_x + p.pad_left) % p.stride_w;
    let taps_h = (max(p.kernel_h, ky0) - ky0 + p.stride_h - 1u) / p.stride_h;
    let taps_w = (max(p.kernel_w, kx0) - kx0 + p.stride_w - 1u) / p.stride_w;
    let depth = taps_h * taps_w * p.out_quads;
    // Four neighbours load four quads of a pixel or of a row of the weights, all in channel quad `c` of a tap.
    let load_quad = index % 4u;
    let load_place = index / 4u;
    var c = load_quad;
    var ty = 0u;
    var tx = 0u;
    var at = array<vec4<i32>, MOST_LOADS>();
    var starts = array<u32, MOST_LOADS>();
    for (var j = 0u; j < left_loads; j++) {
        at[j] = locate(pixel0 + load_place + j * (invocations / 4u), class_y, class_x, class_h, class_w);
    }
    var block = 0u;

    var sums = array<vec4<f32>, MOST_SUMS>();
    for (var slab = 0u; slab < depth; slab += 4u) {
        if slab == 0u || c >= p.out_quads {
            while c >= p.out_quads {
                c -= p.out_quads;
                tx++;
                if tx == taps_w {
                    tx = 0u;
                    ty++;
                }
            }
            block = ((ky0 + ty * p.stride_h) * p.kernel_w + kx0 + tx * p.stride_w) * p.in_quads * 4u;
            for (var j = 0u; j < left_loads; j++) {
                let t = tap(at[j], i32(ty), i32(tx));
                starts[j] = select(OUTSIDE, t.x, t.y != 0u);
            }
        }
        let within = slab + load_quad < depth;
        var left = array<vec4<f32>, MOST_LOADS>();
        for (var j = 0u; j < left_loads; j++) {
            let inside = within && starts[j] != OUTSIDE;
            left[j] = select(vec4<f32>(), dy[select(0u, starts[j] + c, inside)], inside);
        }
        var right = array<vec4<f32>, MOST_LOADS>();
        for (var j = 0u; j < right_loads; j++) {
            let row = quad0 * 4u + load_place + j * (invocations / 4u);
            let inside = within && row < p.in_quads * 4u;
            right[j] = select(vec4<f32>(), weight[select(0u, (block + row) * p.out_quads + c, inside)], inside);
        }
        workgroupBarrier();
        for (var j = 0u; j < left_loads; j++) {
            let pixel = load_place + j * (invocations / 4u);
            gs[load_quad * tile_rows + (pixel ^ (load_quad * 2u))] = left[j];
        }
        for (var j = 0u; j < right_loads; j++) {
            let row = load_place + j * (invocations / 4u);
            ws[place_of(load_quad, row / 4u, row % 4u)] = right[j];
        }
        workgroupBarrier();
        for (var k = 0u; k < min(4u, depth - slab); k++) {
            var pixels = array<vec4<f32>, 8>();
            for (var i = 0u; i < 8u; i++) {
                pixels[i] = gs[k * tile_rows + ((local.y * 8u + i) ^ (k * 2u))];
            }
            for (var q = 0u; q < width; q++) {
                let quad = q * columns + local.x;
                let w0 = ws[place_of(k, quad, 0u)];
                let w1 = ws[place_of(k, quad, 1u)];
                let w2 = ws[place_of(k, quad, 2u)];
                let w3 = ws[place_of(k, quad, 3u)];
                for (var e = 0u; e < 4u; e++) {
                    let w = vec4<f32>(w0[e], w1[e], w2[e], w3[e]);
                    for (var i = 0u; i < 8u; i++) {
                        sums[q * 8u + i] += pixels[i][e] * w;
                    }
                }
            }
        }
        c += 4u;
    }

    let pixels = p.images * class_h * class_w;
    for (var i = 0u; i < 8u; i++) {
        let index = pixel0 + local.y * 8u + i;
        let pixel = locate(index, class_y, class_x, class_h, class_w).w;
        for (var q = 0u; q < width; q++) {
            store(sums[q * 8u + i], pixel, index < pixels, quad0 + q * columns + local.x);
        }
    }
}

// Where a quad of the sum's slab stands that belongs to row `row` of four of a quad of columns: what eight neighbours load, and
// what eight neighbours read, lies in different banks.
fn place_of(k: u32, quad: u32, row: u32) -> u32 {
    return (k * 4u + row) * tile_quads + (quad ^ (k * 2u + row % 2u));
}
