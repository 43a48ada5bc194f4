// dw = x ∗ dy over one split of the strips, each channel by itself. One invocation: the whole window of a few channels. It
// goes down each strip, a few columns of `band` rows of dy, loads each row of x and of dy once, and keeps as many rows of dy
// as meet a row of x.

struct Params {
    in_h: i32,
    in_w: i32,
    quads: u32,
    out_h: u32,
    out_w: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_h: u32,
    stride_w: u32,
    pad_top: i32,
    pad_left: i32,
    strip_w: u32,
    band: u32,
    strips: u32,
    strips_per_split: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<Lanes>;
@group(0) @binding(2) var<storage, read> dy: array<Lanes>;
@group(0) @binding(3) var<storage, read_write> partials: array<Lanes>;

@compute @workgroup_size(64)
fn depthwise_weight_grad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let parts = p.quads * PER_QUAD;
    let part = index % parts;
    let split = index / parts;
    let start = split * p.strips_per_split;
    if start >= p.strips {
        return;
    }
    let tiles = (p.out_w + columns - 1u) / columns;
    let bands = (p.out_h + p.band - 1u) / p.band;
    let reach = (kernel_h - 1u) / stride_h;
    var sums = array<array<Lanes, 7>, 7>();
    // rows[b] is the row of dy b rows above the one whose window begins at the present row of x.
    var rows = array<array<Lanes, 4>, 7>();
    // One loop over the rows of all strips, not one in the other: compilers would keep the sums twice.
    let last = min(start + p.strips_per_split, p.strips);
    var strip = start;
    var first = 0u;
    var image = 0u;
    var below = 0u;
    var behind = 0u;
    var end = 0u;
    loop {
        if below >= end {
            if strip == last {
                break;
            }
            first = strip % tiles * columns;
            let line = strip / tiles;
            image = line / bands;
            below = line % bands * p.band;
            behind = min(below + p.band, p.out_h);
            // Rows below the image add nothing.
            end = min(behind + reach, (u32(p.in_h + p.pad_top) + stride_h - 1u) / stride_h);
            rows = array<array<Lanes, 4>, 7>();
            strip++;
        }
        let left = i32(first * stride_w) - p.pad_left;
        var row = array<Lanes, 4>();
        for (var i = 0u; i < 4u; i++) {
            if i < columns {
                let oy = min(below, behind - 1u);
                let ox = min(first + i, p.out_w - 1u);
                let value = dy[((image * p.out_h + oy) * p.out_w + ox) * parts + part];
                row[i] = select(Lanes(0.0), value, below < behind && first + i < p.out_w);
            }
        }
        rows = array(row, rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]);
        var values = array<array<Lanes, 13>, 2>();
        for (var j = 0u; j < 2u; j++) {
            if j < stride_h {
                let iy = i32(below * stride_h + j) - p.pad_top;
                let begin = u32((i32(image) * p.in_h + clamp(iy, 0, p.in_h - 1)) * p.in_w);
                for (var i = 0u; i < 13u; i++) {
                    if i < (columns - 1u) * stride_w + kernel_w {
                        let ix = left + i32(i);
                        let value = x[(begin + u32(clamp(ix, 0, p.in_w - 1))) * parts + part];
                        let inside = iy >= 0 && iy < p.in_h && ix >= 0 && ix < p.in_w;
                        values[j][i] = select(Lanes(0.0), value, inside);
                    }
                }
                for (var b = 0u; b < 7u; b++) {
                    for (var kx = 0u; kx < 7u; kx++) {
                        if b * stride_h + j < kernel_h && kx < kernel_w {
                            for (var i = 0u; i < 4u; i++) {
                                if i < columns {
                                    sums[b * stride_h + j][kx] += values[j][i * stride_w + kx] * rows[b][i];
                                }
                            }
                        }
                    }
                }
            }
        }
        below++;
    }
    // Written out: Honeykrisp would keep the sums in memory for a loop.
    store(0u, sums[0], split, part);
    store(1u, sums[1], split, part);
    store(2u, sums[2], split, part);
    store(3u, sums[3], split, part);
    store(4u, sums[4], split, part);
    store(5u, sums[5], split, part);
    store(6u, sums[6], split, part);
}

// A row of the window.
fn store(ky: u32, sums: array<Lanes, 7>, split: u32, part: u32) {
    var values = sums;
    for (var kx = 0u; kx < 7u; kx++) {
        if ky < kernel_h && kx < kernel_w {
            partials[((split * kernel_h + ky) * kernel_w + kx) * p.quads * PER_QUAD + part] = values[kx];
        }
    }
}
