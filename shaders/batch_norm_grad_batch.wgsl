// x_grad = γr(g − Σg/M − x̂·Σ(g·x̂)/M), g being dz behind the activation, over the domain's M pixels. One invocation:
// four channels of eight consecutive pixels.

struct Params {
    pixels: u32,
    domain: u32,
    quads: u32,
    eps: f32,
    act: u32,
}

// Whether the batch is cut into several domains, one of which may end within a tile.
override cut: bool;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dz: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> affine: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> mask: array<u32>;
@group(0) @binding(7) var<storage, read_write> x_grad: array<vec4<f32>>;

@compute @workgroup_size(64)
fn batch_norm_grad_batch(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local);
    let tile = index / p.quads;
    let quad = index % p.quads;
    let first = tile * 8u;
    if first >= p.pixels {
        return;
    }
    let end = min(first + 8u, p.pixels);
    let gamma = affine[quad];
    let beta = affine[p.quads + quad];
    var word = 0xffffffffu;
    if p.act != 0u && !is_smooth {
        word = mask[index];
    }
    var pixel = first;
    loop {
        var stop = end;
        var row = quad;
        if cut {
            let domain = pixel / p.domain;
            stop = min(end, (domain + 1u) * p.domain);
            row = domain * 2u * p.quads + quad;
        }
        let mean = moments[row];
        let r = 1.0 / sqrt(moments[row + p.quads] + p.eps);
        let scale = gamma * r;
        let rise = r * sums[row] / f32(p.domain);
        let offset = sums[row + p.quads] / f32(p.domain);
        for (; pixel < stop; pixel++) {
            let at = pixel * p.quads + quad;
            let centred = x[at] - mean;
            var g = masked(dz[at], word, pixel - first);
            if is_smooth {
                g *= slope(centred * scale + beta, p.act);
            }
            x_grad[at] = scale * (g - offset - centred * rise);
        }
        if !cut || pixel == end {
            break;
        }
    }
}
