
// Of `count` values their mean and the sum of their squared differences from it.
struct Moments {
    count: f32,
    mean: vec4<f32>,
    squares: vec4<f32>,
}

// Those of the values of both (Chan, Golub & LeVeque, 1979).
fn merged(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let share = select(0.0, b.count / count, b.count > 0.0);
    let difference = b.mean - a.mean;
    return Moments(
        count,
        a.mean + difference * share,
        // In this order, so that a large mean beside no values does not become infinite.
        a.squares + b.squares + difference * (difference * (a.count * share)),
    );
}

var<workgroup> shared_counts: array<f32, invocations>;
var<workgroup> shared_means: array<vec4<f32>, invocations>;

// The moments of all lanes, which the first of them gets.
fn moments_of_lanes(local: u32, own: Moments) -> Moments {
    if lanes == 1u {
        return own;
    }
    var all = own;
    for (var half = lanes / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        shared_counts[local] = all.count;
        shared_means[local] = all.mean;
        shared_sums[local] = all.squares;
        workgroupBarrier();
        if local < half * across {
            let other = local + half * across;
            all = merged(all, Moments(shared_counts[other], shared_means[other], shared_sums[other]));
        }
    }
    return all;
}
