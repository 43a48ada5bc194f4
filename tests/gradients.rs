//! The gradients of a compiled training step against finite differences in f64.
//!
//! The truth is an interpreter of the network as the user built it: it knows nothing of passes, plans, kernels or
//! layouts beyond the order of values, and reads the policy from the layers. The step runs on the reference executor,
//! so no device is needed.

use std::collections::VecDeque;
use thawline::compile::{self, Optimizer, Options};
use thawline::graph::{
    Act, Affine, Builder, Domain, Factor, Graph, Groups, LayerKind, Op, Output, ParamId, Phase, Role, Sgd, Stats,
    Taken, Window,
};
use thawline::kernels::StepScalars;
use thawline::kernels::conv2d::Variant;
use thawline::plan::{Input, Plan, Storage};
use thawline::policy::{Policy, resolve};
use thawline::reference::Executor;
use thawline::rng::Rng;
use thawline::tensor::Shape;

const CLASSES: usize = 5;
const BATCH: usize = 4;
const SMOOTHING: f32 = 0.1;

/// Every op of residual networks, stride 1 and 2, windows 1, 3 and 7, uneven padding, both kinds of pooling, a biased convolution under a
/// batch norm, a plain residual and one with a projection.
fn network() -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, 11, 9, 3).expect("an input");
    let stem = Window { kernel: [7, 7], stride: [1, 1], padding: [3, 3, 3, 3] };
    let x = b.conv2d("stem", x, 6, stem, false).expect("stem");
    let x = b.batch_norm("stem.bn", x, 1e-3).expect("bn");
    let x = b.relu("stem.relu", x).expect("relu");
    let x = b.max_pool("pool", x, Window::square(3, 2, 1)).expect("pool");
    let y = b.conv2d("a.conv1", x, 6, Window::square(3, 1, 1), true).expect("conv");
    let y = b.batch_norm("a.bn1", y, 1e-5).expect("bn");
    let y = b.relu("a.relu1", y).expect("relu");
    let y = b.conv2d("a.conv2", y, 6, Window::square(3, 1, 1), false).expect("conv");
    let y = b.batch_norm("a.bn2", y, 1e-5).expect("bn");
    let y = b.add("a.add", y, x).expect("add");
    let x = b.relu("a.out", y).expect("relu");
    let uneven = Window { kernel: [3, 3], stride: [2, 2], padding: [0, 1, 1, 1] };
    let y = b.conv2d("b.conv1", x, 9, uneven, false).expect("conv");
    let y = b.batch_norm("b.bn1", y, 1e-5).expect("bn");
    let down = Window { kernel: [1, 1], stride: [2, 2], padding: [0, 0, 0, 0] };
    let z = b.conv2d("b.down", x, 9, down, false).expect("conv");
    let z = b.batch_norm("b.down.bn", z, 1e-5).expect("bn");
    let x = b.add("b.add", y, z).expect("add");
    let x = b.avg_pool("avg", x, Window::square(2, 1, 0), [0; 4]).expect("pool");
    let x = b.global_avg_pool("global", x).expect("pool");
    let logits = b.linear("fc", x, CLASSES).expect("fc");
    b.finish(logits).expect("a network")
}

/// What mobile networks add: depthwise and grouped convolutions, every activation, behind a batch norm and behind a
/// convolution, squeeze-and-excitation, a gate that is no excitation, stochastic depth and dropout.
fn mobile() -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, 12, 10, 3).expect("an input");
    let same = Window { kernel: [3, 3], stride: [2, 2], padding: [0, 0, 1, 1] };
    let x = b.conv2d("stem", x, 8, same, false).expect("conv");
    let x = b.batch_norm("stem.bn", x, 1e-3).expect("bn");
    let x = b.activation("stem.act", x, Act::Silu).expect("act");

    let y = b.conv2d("a.expand", x, 12, Window::square(1, 1, 0), false).expect("conv");
    let y = b.batch_norm("a.bn0", y, 1e-3).expect("bn");
    let y = b.activation("a.act0", y, Act::HardSwish).expect("act");
    let y = b.grouped_conv2d("a.depthwise", y, 12, Window::square(5, 1, 2), 12, false).expect("conv");
    let y = b.batch_norm("a.bn1", y, 1e-3).expect("bn");
    let y = b.activation("a.act1", y, Act::Silu).expect("act");
    let s = b.global_avg_pool("a.se.pool", y).expect("pool");
    let s = b.conv2d("a.se.fc1", s, 3, Window::square(1, 1, 0), true).expect("conv");
    let s = b.activation("a.se.act", s, Act::Silu).expect("act");
    let s = b.conv2d("a.se.fc2", s, 12, Window::square(1, 1, 0), true).expect("conv");
    let s = b.activation("a.se.gate", s, Act::Sigmoid).expect("act");
    let y = b.scale("a.se.scale", y, s).expect("scale");
    let y = b.conv2d("a.project", y, 8, Window::square(1, 1, 0), false).expect("conv");
    let y = b.batch_norm("a.bn2", y, 1e-3).expect("bn");
    let y = b.stochastic_depth("a.drop", y, 0.5).expect("drop");
    let x = b.add("a.add", y, x).expect("add");

    let uneven = Window { kernel: [3, 3], stride: [2, 2], padding: [0, 1, 1, 0] };
    let y = b.grouped_conv2d("b.depthwise", x, 8, uneven, 8, true).expect("conv");
    let y = b.batch_norm("b.bn1", y, 1e-5).expect("bn");
    let y = b.activation("b.act1", y, Act::Relu6).expect("act");
    let y = b.grouped_conv2d("b.grouped", y, 16, Window::square(3, 1, 1), 2, false).expect("conv");
    let y = b.batch_norm("b.bn2", y, 1e-5).expect("bn");
    // A gate from elsewhere, of channels that are no multiple of four on its way.
    let g = b.global_avg_pool("b.pool", x).expect("pool");
    let g = b.conv2d("b.fc1", g, 6, Window::square(1, 1, 0), true).expect("conv");
    let g = b.activation("b.act2", g, Act::HardSigmoid).expect("act");
    let g = b.conv2d("b.fc2", g, 16, Window::square(1, 1, 0), true).expect("conv");
    let x = b.scale("b.scale", y, g).expect("scale");

    let x = b.global_avg_pool("pool", x).expect("pool");
    let x = b.conv2d("last", x, 10, Window::square(1, 1, 0), true).expect("conv");
    let x = b.activation("last.act", x, Act::HardSwish).expect("act");
    let x = b.dropout("dropout", x, 0.3).expect("dropout");
    let logits = b.linear("fc", x, CLASSES).expect("fc");
    b.finish(logits).expect("a network")
}

/// Two gates that follow from one mean, and a convolution as the head.
fn two_gates() -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, 8, 6, 3).expect("an input");
    let x = b.conv2d("stem", x, 8, Window::square(3, 2, 1), true).expect("conv");
    let squeezed = b.global_avg_pool("squeeze", x).expect("pool");
    let [one, two] = ["one", "two"].map(|name| {
        let gate = b.conv2d(&format!("{name}.fc"), squeezed, 8, Window::square(1, 1, 0), true).expect("conv");
        let gate = b.activation(&format!("{name}.gate"), gate, Act::Sigmoid).expect("act");
        b.scale(&format!("{name}.scale"), x, gate).expect("scale")
    });
    let x = b.add("add", one, two).expect("add");
    let x = b.batch_norm("bn", x, 1e-3).expect("bn");
    let x = b.activation("act", x, Act::Silu).expect("act");
    let x = b.global_avg_pool("pool", x).expect("pool");
    let logits = b.conv2d("head", x, CLASSES, Window::square(1, 1, 0), true).expect("conv");
    b.finish(logits).expect("a network")
}

/// Dense blocks: concatenations that begin with earlier ones, of channels that are no multiples of four, read by batch norms and
/// convolutions; slices of all and of parts, a shuffle, a product, and pooling with every kind of padding.
fn dense() -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, 10, 9, 3).expect("an input");
    let mut parts = vec![b.conv2d("stem", x, 5, Window::square(3, 1, 1), false).expect("conv")];
    for layer in ["a", "b", "c"] {
        let name = |part: &str| format!("{layer}.{part}");
        let x = match parts.len() {
            1 => parts[0],
            _ => b.concat(&name("concat"), &parts).expect("concat"),
        };
        let x = b.batch_norm(&name("bn"), x, 1e-3).expect("bn");
        let x = b.activation(&name("act"), x, if layer == "b" { Act::Mish } else { Act::Relu }).expect("act");
        parts.push(b.conv2d(&name("conv"), x, 3, Window::square(3, 1, 1), layer == "b").expect("conv"));
    }
    let x = b.concat("concat", &parts).expect("concat");
    let x = b.batch_norm("bn", x, 1e-3).expect("bn");
    let x = b.activation("act", x, leaky(0.1)).expect("act");
    let ceil = Window::square(3, 2, 1).ceil([10, 9]);
    let x = b.avg_pool("counted", x, ceil, [1; 4]).expect("pool");
    let x = b.shuffle("shuffle", x, 7).expect("shuffle");
    let [one, two] = [(0, 6), (6, 8)].map(|(begin, channels)| b.slice(&format!("slice{begin}"), x, begin, channels));
    let (one, two) = (one.expect("slice"), two.expect("slice"));
    let one = b.conv2d("one", one, 6, Window::square(1, 1, 0), true).expect("conv");
    let one = b.activation("one.act", one, Act::Elu).expect("act");
    let two = b.avg_pool("uncounted", two, Window::square(3, 1, 1), [0; 4]).expect("pool");
    // Read twice, and one slice lies across both.
    let x = b.concat("again", &[two, one, two]).expect("concat");
    let middle = b.slice("middle", x, 5, 10).expect("slice");
    let first = b.slice("first", x, 0, 10).expect("slice");
    let x = b.multiply("multiply", middle, first).expect("multiply");
    let x = b.pad("pad", x, [1, 0, 2, 1]).expect("pad");
    let x = b.max_pool("max", x, Window::square(2, 2, 0).ceil([9, 6])).expect("pool");
    let x = b.conv2d("last", x, 6, Window::square(1, 1, 0), false).expect("conv");
    let x = b.global_max_pool("pool", x).expect("pool");
    let logits = b.linear("fc", x, CLASSES).expect("fc");
    b.finish(logits).expect("a network")
}

/// Two classes from one output.
fn binary() -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, 6, 5, 3).expect("an input");
    let x = b.conv2d("conv", x, 5, Window::square(3, 1, 1), false).expect("conv");
    let x = b.batch_norm("bn", x, 1e-3).expect("bn");
    let x = b.relu("relu", x).expect("relu");
    let x = b.global_avg_pool("pool", x).expect("pool");
    let x = b.linear("fc", x, 1).expect("fc");
    let logits = b.binary("binary", x).expect("binary");
    b.finish(logits).expect("a network")
}

/// A leaky ReLU.
fn leaky(slope: f32) -> Act {
    Act::LeakyRelu(Factor::new(slope).expect("a slope"))
}

/// What modern networks have in place of batch norms: layer norms, linear layers on pixels, layer scale of both forms, the
/// smooth activations; and a flattened image in front of the head. One batch norm is there, too.
fn modern() -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, 8, 8, 3).expect("an input");
    let x = b.conv2d("stem", x, 10, Window::square(2, 2, 0), true).expect("conv");
    let mut x = b.layer_norm("stem.norm", x, 1e-6).expect("norm");
    for (layer, act) in [("a", Act::Gelu), ("b", Act::GeluTanh)] {
        let name = |part: &str| format!("{layer}.{part}");
        let y = b.grouped_conv2d(&name("conv"), x, 10, Window::square(3, 1, 1), 10, true).expect("conv");
        let y = b.layer_norm(&name("norm"), y, 1e-6).expect("norm");
        let y = b.linear_of(&name("fc1"), y, 18, Taken::EachPixel, true).expect("linear");
        let y = b.activation(&name("act"), y, act).expect("act");
        let y = b.linear_of(&name("fc2"), y, 10, Taken::EachPixel, true).expect("linear");
        let y = b.layer_scale(&name("gamma"), y, if layer == "a" { 1 } else { 3 }).expect("scale");
        let y = b.activation(&name("half"), y, Act::ScaleBy(Factor::new(0.4).expect("a factor"))).expect("act");
        x = b.add(&name("add"), y, x).expect("add");
    }
    let x = b.group_norm("group", x, 5, 1e-3).expect("norm");
    let x = b.conv2d("down", x, 7, Window::square(3, 2, 1), false).expect("conv");
    let x = b.batch_norm("down.bn", x, 1e-3).expect("bn");
    let x = b.activation("down.act", x, Act::Gelu).expect("act");
    let x = b.linear_of("flat", x, 9, Taken::Image([2, 2]), false).expect("linear");
    let x = b.activation("flat.act", x, Act::Tanh).expect("act");
    let x = b.linear("hidden", x, 9).expect("linear");
    let x = b.activation("hidden.act", x, Act::Softplus).expect("act");
    let x = b.layer_norm("norm", x, 1e-6).expect("norm");
    let logits = b.linear("fc", x, CLASSES).expect("fc");
    b.finish(logits).expect("a network")
}

/// A tensor in f64, in the graph's order of values.
type Values = Vec<f64>;

/// r and d of each channel that batch renormalisation has come to, in the order of the network. They count as constants
/// in its gradient, so the losses beside the one that is differentiated take them as that one found them.
type Corrections = VecDeque<[f64; 2]>;

/// The mean loss of the network under its layers' settings, and the corrections of renormalisation: those `given`, or
/// new ones.
fn loss(
    graph: &Graph,
    params: &[Values],
    images: &[f64],
    labels: &[u32],
    given: Option<&Corrections>,
) -> (f64, Corrections) {
    let (mut given, mut corrections) = (given.cloned(), Corrections::new());
    let mut values: Vec<Values> = Vec::new();
    for (_, node) in graph.nodes() {
        let input = |i: usize| (&values[node.inputs[i].index()], graph.node(node.inputs[i]).shape);
        let out = node.shape;
        let mut z = vec![0.0; out.stored_len()];
        match node.op {
            Op::Input => z.copy_from_slice(images),
            Op::Param(param) => z.clone_from(&params[param.index()]),
            Op::Conv2d(conv) => {
                let ((x, xs), (w, _)) = (input(0), input(1));
                for_each(out, |[n, oy, ox, co], at| {
                    let mut sum = if conv.bias { input(2).0[co] } else { 0.0 };
                    // The input channels of the output channel's group, and the rows of the weights for each.
                    let (channels, rows) = match conv.groups {
                        Groups::One => (0..xs.c(), xs.stored_c()),
                        Groups::Several(groups) => {
                            let (each, group) = (xs.c() / groups, co / (out.c() / groups));
                            (group * each..(group + 1) * each, each)
                        }
                        Groups::Depthwise => (co..co + 1, 1),
                    };
                    each_tap(conv.window, xs, oy, ox, |ky, kx, iy, ix| {
                        for (row, ci) in channels.clone().enumerate() {
                            let tap = (ky * conv.window.kernel[1] + kx) * rows + row;
                            sum += x[index(xs, n, iy, ix, ci)] * w[tap * out.stored_c() + co];
                        }
                    });
                    z[at] = sum;
                });
            }
            Op::BatchNorm { eps } => {
                let ((x, shape), (affine, _), (moments, _)) = (input(0), input(1), input(2));
                let mode = graph.layers()[node.layer.expect("a layer").index()].setting.batch_norm.expect("a mode");
                let c = shape.stored_c();
                let samples = match mode.domain {
                    Domain::Batch | Domain::Accumulated => shape.n(),
                    Domain::Ghost { samples } => samples,
                };
                let pixels = samples * shape.h() * shape.w();
                for (x, z) in x.chunks(pixels * c).zip(z.chunks_mut(pixels * c)) {
                    for channel in 0..shape.c() {
                        let (gamma, beta) = (affine[channel], affine[c + channel]);
                        let (mean, var) = (moments[channel], moments[c + channel]);
                        let of = || x.iter().skip(channel).step_by(c);
                        let batch_mean = of().sum::<f64>() / pixels as f64;
                        let batch_var = of().map(|v| (v - batch_mean).powi(2)).sum::<f64>() / pixels as f64;
                        let sigma = |var: f64| (var + f64::from(eps)).sqrt();
                        let mix = |alpha: f32, a, b| (1.0 - f64::from(alpha)) * a + f64::from(alpha) * b;
                        let mut normalise = |mean: f64, var: f64, [r, d]: [f64; 2]| {
                            for at in (channel..x.len()).step_by(c) {
                                z[at] = gamma * ((x[at] - mean) / sigma(var) * r + d) + beta;
                            }
                        };
                        match mode.stats {
                            Stats::Running => normalise(mean, var, [1.0, 0.0]),
                            Stats::Batch => normalise(batch_mean, batch_var, [1.0, 0.0]),
                            Stats::Blend { alpha } => {
                                normalise(mix(alpha, mean, batch_mean), mix(alpha, var, batch_var), [1.0, 0.0]);
                            }
                            Stats::Renorm { r_max, d_max } => {
                                let (r_max, d_max) = (f64::from(r_max), f64::from(d_max));
                                let correction = match &mut given {
                                    Some(given) => given.pop_front().expect("the same network"),
                                    None => [
                                        (sigma(batch_var) / sigma(var)).clamp(1.0 / r_max, r_max),
                                        ((batch_mean - mean) / sigma(var)).clamp(-d_max, d_max),
                                    ],
                                };
                                corrections.push_back(correction);
                                normalise(batch_mean, batch_var, correction);
                            }
                        }
                    }
                }
            }
            Op::Activation { act, .. } => {
                let (x, shape) = input(0);
                for_each(shape, |_, at| z[at] = activate(act, x[at]));
            }
            Op::Scale { .. } => {
                let ((x, shape), (gate, gates)) = (input(0), input(1));
                for_each(shape, |[n, _, _, c], at| z[at] = x[at] * gate[index(gates, n % gates.n(), 0, 0, c)]);
            }
            Op::Dropout { rate, whole, stream, .. } => {
                let ((x, shape), setting) = (input(0), graph.layers()[node.layer.expect("a layer").index()].setting);
                for_each(shape, |[n, ..], at| {
                    let lane = if whole { 0 } else { at % 4 };
                    let word = if whole { n } else { at / 4 };
                    let drawn = f64::from(philox([word as u32, DRAW, stream, 0], SEED)[lane]) / 2f64.powi(32);
                    z[at] = match setting.dropout {
                        false => x[at],
                        true if drawn < f64::from(rate) => 0.0,
                        true => x[at] / (1.0 - f64::from(rate)),
                    };
                });
            }
            Op::Add { .. } => z = input(0).0.iter().zip(input(1).0).map(|(a, b)| a + b).collect(),
            Op::MaxPool { window, .. } => {
                let (x, xs) = input(0);
                for_each(out, |[n, oy, ox, c], at| {
                    let mut max = f64::NEG_INFINITY;
                    each_tap(window, xs, oy, ox, |_, _, iy, ix| max = max.max(x[index(xs, n, iy, ix, c)]));
                    z[at] = max;
                });
            }
            Op::AvgPool { window, counted } => {
                let (x, xs) = input(0);
                // An image with the border that counts around it.
                let [top, left, bottom, right] = counted;
                let bordered = Shape::nhwc(xs.n(), xs.h() + top + bottom, xs.w() + left + right, xs.c());
                let inner = window.padding;
                let within = Window { padding: [inner[0] - top, inner[1] - left, inner[2], inner[3]], ..window };
                for_each(out, |[n, oy, ox, c], at| {
                    let (mut sum, mut count) = (0.0, 0.0);
                    each_tap(window, xs, oy, ox, |_, _, iy, ix| sum += x[index(xs, n, iy, ix, c)]);
                    each_tap(within, bordered, oy, ox, |_, _, _, _| count += 1.0);
                    z[at] = sum / count;
                });
            }
            Op::Concat => {
                let mut begin = 0;
                for (x, xs) in (0..node.inputs.len()).map(input) {
                    for_each(xs, |[n, iy, ix, c], at| z[index(out, n, iy, ix, begin + c)] = x[at]);
                    begin += xs.c();
                }
            }
            Op::Slice { begin, .. } => {
                let (x, xs) = input(0);
                for_each(out, |[n, iy, ix, c], at| z[at] = x[index(xs, n, iy, ix, begin + c)]);
            }
            Op::Shuffle { groups } => {
                let (x, xs) = input(0);
                let each = xs.c() / groups;
                for_each(xs, |[n, iy, ix, c], at| z[index(xs, n, iy, ix, c % each * groups + c / each)] = x[at]);
            }
            Op::Binary => {
                let (x, xs) = input(0);
                for_each(xs, |[n, ..], at| z[index(out, n, 0, 0, 1)] = x[at]);
            }
            Op::Multiply => z = input(0).0.iter().zip(input(1).0).map(|(a, b)| a * b).collect(),
            Op::Pad { padding: [top, left, ..] } => {
                let (x, xs) = input(0);
                for_each(xs, |[n, iy, ix, c], at| z[index(out, n, iy + top, ix + left, c)] = x[at]);
            }
            Op::GroupNorm { eps, groups, .. } => {
                let ((x, xs), (affine, _)) = (input(0), input(1));
                let each = xs.c() / groups;
                for (image, group) in (0..xs.n()).flat_map(|image| (0..groups).map(move |group| (image, group))) {
                    let mut of_group = Vec::new();
                    for_each(xs, |[n, _, _, c], at| {
                        if n == image && c / each == group {
                            of_group.push((c, at));
                        }
                    });
                    let count = of_group.len() as f64;
                    let mean = of_group.iter().map(|&(_, at)| x[at]).sum::<f64>() / count;
                    let variance = of_group.iter().map(|&(_, at)| (x[at] - mean).powi(2)).sum::<f64>() / count;
                    for (c, at) in of_group {
                        let normalised = (x[at] - mean) / (variance + f64::from(eps)).sqrt();
                        z[at] = affine[c] * normalised + affine[xs.stored_c() + c];
                    }
                }
            }
            Op::LayerNorm { eps, .. } => {
                let ((x, xs), (affine, _)) = (input(0), input(1));
                let (c, stored) = (xs.c(), xs.stored_c());
                for (x, z) in x.chunks(stored).zip(z.chunks_mut(stored)) {
                    let mean = x[..c].iter().sum::<f64>() / c as f64;
                    let variance = x[..c].iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
                    for channel in 0..c {
                        let normalised = (x[channel] - mean) / (variance + f64::from(eps)).sqrt();
                        z[channel] = affine[channel] * normalised + affine[stored + channel];
                    }
                }
            }
            op => panic!("a network has no {}", op.name()),
        }
        values.push(z);
    }
    let logits = values.last().expect("logits");
    let classes = graph.logits_shape().expect("logits");
    let smoothing = f64::from(SMOOTHING);
    let row = |(row, &label): (&[f64], &u32)| {
        let row = &row[..classes.c()];
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + row.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
        let mean: f64 = row.iter().map(|v| log_sum - v).sum::<f64>() / row.len() as f64;
        (1.0 - smoothing) * (log_sum - row[label as usize]) + smoothing * mean
    };
    (logits.chunks(classes.stored_c()).zip(labels).map(row).sum::<f64>() / labels.len() as f64, corrections)
}

fn activate(act: Act, y: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-y).exp());
    match act {
        Act::Identity => y,
        Act::Relu => y.max(0.0),
        Act::Relu6 => y.clamp(0.0, 6.0),
        Act::Silu => y * sigmoid,
        Act::HardSwish => y * (y + 3.0).clamp(0.0, 6.0) / 6.0,
        Act::HardSigmoid => (y + 3.0).clamp(0.0, 6.0) / 6.0,
        Act::Sigmoid => sigmoid,
        Act::Elu => {
            if y > 0.0 {
                y
            } else {
                y.exp_m1()
            }
        }
        Act::Gelu => y * libm::erfc(-y / 2f64.sqrt()) / 2.0,
        Act::GeluTanh => y * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y.powi(3))).tanh()) / 2.0,
        Act::Mish => y * y.exp().ln_1p().tanh(),
        Act::Tanh => y.tanh(),
        Act::Softplus => y.exp().ln_1p(),
        Act::LeakyRelu(slope) => {
            if y > 0.0 {
                y
            } else {
                y * f64::from(slope.value())
            }
        }
        Act::ScaleBy(factor) => y * f64::from(factor.value()),
    }
}

const DRAW: u32 = 5;
const SEED: [u32; 2] = [77, 0x8000_0001];

/// Philox4x32-10, from its paper.
fn philox([mut a, mut b, mut c, mut d]: [u32; 4], [mut k, mut l]: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (left, right) = (u64::from(a) * 0xd251_1f53, u64::from(c) * 0xcd9e_8d57);
        (a, b, c, d) = ((right >> 32) as u32 ^ b ^ k, right as u32, (left >> 32) as u32 ^ d ^ l, left as u32);
        (k, l) = (k.wrapping_add(0x9e37_79b9), l.wrapping_add(0xbb67_ae85));
    }
    [a, b, c, d]
}

fn index(shape: Shape, n: usize, y: usize, x: usize, c: usize) -> usize {
    ((n * shape.h() + y) * shape.w() + x) * shape.stored_c() + c
}

fn for_each(shape: Shape, mut f: impl FnMut([usize; 4], usize)) {
    for n in 0..shape.n() {
        for y in 0..shape.h() {
            for x in 0..shape.w() {
                for c in 0..shape.c() {
                    f([n, y, x, c], index(shape, n, y, x, c));
                }
            }
        }
    }
}

fn each_tap(window: Window, x: Shape, oy: usize, ox: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    for ky in 0..window.kernel[0] {
        for kx in 0..window.kernel[1] {
            let iy = (oy * window.stride[0] + ky).checked_sub(window.padding[0]).filter(|y| *y < x.h());
            let ix = (ox * window.stride[1] + kx).checked_sub(window.padding[1]).filter(|x_| *x_ < x.w());
            if let (Some(iy), Some(ix)) = (iy, ix) {
                f(ky, kx, iy, ix);
            }
        }
    }
}

/// Values in −1…1 where the parameter has them, zeros in its padding, and what else its role asks for.
fn initial(graph: &Graph, index: usize, rng: &mut Rng) -> Vec<f32> {
    let param = &graph.params()[index];
    let (c, stored) = (param.shape.c(), param.shape.stored_c());
    let rows = param.shape.pixels();
    let mut values = vec![0.0; rows * stored];
    for (i, value) in values.iter_mut().enumerate() {
        let (row, channel) = (i / stored, i % stored);
        let padding = channel >= c || is_padding_row(graph, index, row);
        let u = rng.range(-1.0, 1.0);
        *value = match (param.role, row) {
            _ if padding => 0.0,
            (Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight, _) => u * 0.4,
            // One gamma next to zero: nothing may divide by it.
            (Role::Affine, 0) if channel == 1 => 1e-6,
            (Role::Affine, 0) => 1.0 + 0.5 * u,
            (Role::Moments, 1) => 1.0 + 0.5 * u,
            (Role::Moments, 2) => 7.0,
            _ => 0.3 * u,
        } as f32;
    }
    values
}

/// Whether a row of a weight belongs to an input channel that only pads.
fn is_padding_row(graph: &Graph, index: usize, row: usize) -> bool {
    let param = &graph.params()[index];
    matches!(param.role, Role::ConvWeight | Role::LinearWeight) && row % param.shape.0[2] >= param.channels
}

fn check(policy: &str, rules: &[&str]) {
    check_on(network(), policy, rules);
}

/// Checks the step of `network`, and returns it.
fn check_on(network: Graph, policy: &str, rules: &[&str]) -> Graph {
    let policy = Policy::recipe(policy).expect("a recipe").with_rules(rules).expect("rules");
    let network = resolve(&policy, network).expect("a policy").graph;
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.1, decoupled: false };
    let options = Options {
        optimizer: Optimizer::Sgd(sgd),
        label_smoothing: SMOOTHING,
        class_weights: false,
        accumulate: 1,
        export_gradients: true,
        seed: 0,
    };
    let step = compile::training(network.clone(), &options).expect("a step");
    let plan = Plan::new(step, Input::Values, Variant::Direct);

    let rng = &mut Rng::new(17);
    let params: Vec<Vec<f32>> = (0..network.params().len()).map(|i| initial(&network, i, rng)).collect();
    let input = network.input_shape().expect("images");
    let mut images = vec![0.0; input.stored_len()];
    for_each(input, |_, at| images[at] = rng.range(-1.0, 1.0) as f32);
    let classes = network.logits_shape().expect("logits").c() as u32;
    let labels = [4, 0, 2, 1].map(|label: u32| label % classes);

    let mut executor = Executor::new(&plan);
    for (index, slot) in plan.slots.iter().enumerate() {
        let memory = executor.slot_mut(thawline::plan::SlotId::new(index));
        match slot.storage {
            Storage::Param(param) => memory[..params[param.index()].len()].copy_from_slice(&params[param.index()]),
            Storage::Images => memory.copy_from_slice(&images),
            Storage::Labels => memory[..BATCH].copy_from_slice(bytemuck::cast_slice(&labels)),
            // Nothing may rest on scratch memory being zero.
            Storage::Scratch => memory.fill(f32::NAN),
            Storage::Step => {
                let inv_count = 1.0 / BATCH as f32;
                let scalars = StepScalars { lr: 0.1, inv_count, draw: DRAW, seed: SEED, ..Default::default() };
                memory[..8].copy_from_slice(bytemuck::cast_slice(&[scalars]));
            }
            _ => {}
        }
    }
    executor.run(&[Phase::Once, Phase::Forward, Phase::Backward, Phase::Update]);

    let wide = |v: &[f32]| -> Values { v.iter().map(|&v| f64::from(v)).collect() };
    let truth: Vec<Values> = params.iter().map(|p| wide(p)).collect();
    let images = wide(&images);
    let rows = executor.slot(plan.output(Output::Rows).expect("rows"));
    let found = rows.chunks(4).take(BATCH).map(|r| f64::from(r[0])).sum::<f64>() / BATCH as f64;
    let (expected, corrections) = loss(&network, &truth, &images, &labels, None);
    assert!((found - expected).abs() < 1e-5 * expected, "loss {found}, in f64 {expected}");

    let mut checked = 0;
    for (index, param) in network.params().iter().enumerate() {
        let Some(rows) = trained_rows(&network, index) else { continue };
        let slot = plan.output(Output::Gradient(ParamId::new(index))).expect("an exported gradient");
        let gradient = executor.slot(slot);
        let stored = param.shape.stored_c();
        for _ in 0..3 {
            let mut direction = vec![0.0; truth[index].len()];
            for row in rows.clone().filter(|row| !is_padding_row(&network, index, *row)) {
                direction[row * stored..][..param.shape.c()].fill_with(|| rng.range(-1.0, 1.0));
            }
            let moved = |by: f64| {
                let mut params = truth.clone();
                params[index].iter_mut().zip(&direction).for_each(|(p, d)| *p += by * d);
                loss(&network, &params, &images, &labels, Some(&corrections)).0
            };
            let step = 1e-6;
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let dot: f64 = direction.iter().zip(gradient).map(|(d, &g)| d * f64::from(g)).sum();
            let size = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let scale = size(&mut direction.iter().copied()) * size(&mut gradient.iter().map(|&g| f64::from(g)));
            let name = &network.layers()[param.layer.index()].name;
            // A gradient that vanishes, as a bias's before batch statistics, is compared with the loss's own scale.
            let allowed = (1e-4 * scale).max(1e-6);
            assert!((slope - dot).abs() <= allowed, "{:?} of {name}: slope {slope}, gradient {dot}", param.role);
        }
        checked += 1;
    }
    assert!(checked > 0, "nothing trains");
    plan.graph
}

/// The rows of a parameter that its layer's setting lets train.
fn trained_rows(graph: &Graph, index: usize) -> Option<std::ops::Range<usize>> {
    let param = &graph.params()[index];
    let setting = graph.layers()[param.layer.index()].setting;
    match param.role {
        Role::ConvWeight | Role::DepthwiseWeight | Role::LinearWeight | Role::Bias | Role::Scale | Role::ImageScale => {
            setting.weights.then_some(0..param.shape.pixels())
        }
        Role::Affine if graph.layers()[param.layer.index()].kind != LayerKind::Bn => setting.weights.then_some(0..2),
        Role::Affine => match setting.batch_norm?.affine {
            Affine::None => None,
            Affine::Gamma => Some(0..1),
            Affine::Beta => Some(1..2),
            Affine::Both => Some(0..2),
        },
        Role::Moments => None,
    }
}

#[test]
fn everything_trains_under_batch_statistics() {
    check("full", &[]);
}

#[test]
fn everything_trains_under_frozen_batch_norms() {
    check("full-frozen-bn", &[]);
}

#[test]
fn gamma_and_beta_train_through_the_folded_weights() {
    let step = check_on(network(), "keras-guide", &[]);
    // Where the weights are few, that is; where they are many, through the normalisation.
    let has = |wanted: fn(&Op) -> bool| step.nodes().any(|(_, node)| wanted(&node.op));
    assert!(has(|op| matches!(op, Op::FoldAffineGrad { .. })));
    assert!(has(|op| matches!(op, Op::BatchNormGradRunning { .. })));
    let normalised = step.nodes().filter(|(_, node)| matches!(node.op, Op::BatchNormApply(_)));
    let mut names = normalised.filter_map(|(_, node)| node.layer.map(|l| step.layers()[l.index()].name.as_str()));
    // A biased convolution is never folded while it trains.
    assert!(names.any(|name| name != "a.bn1"));
}

#[test]
fn only_batch_norms_train() {
    check("bn-only", &[]);
    check("bn-affine", &[]);
}

#[test]
fn only_the_head_trains() {
    check("head", &[]);
    check("head-adapt", &[]);
}

#[test]
fn modes_mix_within_one_network() {
    let moving = "kind:bn & name:a.* -> stats=batch, update=ema(0.9), affine=gamma";
    check("head", &["name:b.* -> weights=train", moving]);
    check("full", &["name:a.* -> stats=running, update=off", "name:b.bn1 -> affine=beta"]);
    check("keras-guide", &["name:a.conv1 -> weights=frozen", "name:b.down -> weights=frozen"]);
    check("full", &["name:stem* -> stats=running, update=ema(0.8)"]);
}

#[test]
fn mobile_networks_train() {
    for recipe in ["full", "full-frozen-bn", "keras-guide", "bn-only", "bn-affine", "head", "head-adapt", "full-renorm"]
    {
        check_on(mobile(), recipe, &[]);
        check_on(mobile(), recipe, &["kind:dropout -> dropout=off", "kind:stochastic_depth -> dropout=off"]);
    }
    // A gate that trains without the squeeze below it, and one that does not while what it gates does.
    check_on(mobile(), "head", &["name:a.se.fc2 -> weights=train"]);
    check_on(mobile(), "full", &["name:a.se.* -> weights=frozen", "name:b.fc* -> weights=frozen"]);
    check_on(mobile(), "full", &["kind:bn -> domain=ghost(2)"]);
}

#[test]
fn gates_that_share_a_mean_train() {
    for recipe in ["full", "keras-guide", "bn-only"] {
        check_on(two_gates(), recipe, &[]);
    }
    check_on(two_gates(), "full", &["name:one.* -> weights=frozen"]);
}

#[test]
fn dense_networks_train() {
    for recipe in ["full", "full-frozen-bn", "keras-guide", "bn-only", "bn-affine", "head", "full-renorm"] {
        let step = check_on(dense(), recipe, &[]);
        // Of the block's concatenations the longest is kept; the others are taken out of it.
        let backward = |op: fn(&Op) -> bool| {
            let nodes = step.nodes().filter(|(_, node)| node.phase == Phase::Backward);
            nodes.filter(|(_, node)| node.inputs.iter().any(|&input| op(&step.node(input).op))).count()
        };
        if recipe == "full" {
            let is_recovered = |op: &Op| matches!(op, Op::Slice { begin: 0, channels: 8 | 11, accumulate: false });
            assert!(backward(is_recovered) > 0);
            let read: std::collections::BTreeSet<_> = step
                .nodes()
                .filter(|(_, node)| node.phase == Phase::Backward)
                .flat_map(|(_, node)| node.inputs.iter().copied().filter(|&input| step.node(input).op == Op::Concat))
                .collect();
            assert!(read.iter().all(|&id| ![8, 11].contains(&step.node(id).shape.c())), "{read:?}");
        }
    }
    check_on(dense(), "head", &["name:a.conv -> weights=train", "name:c.bn -> affine=both"]);
    check_on(dense(), "head", &["name:one -> weights=train"]);
}

#[test]
fn modern_networks_train() {
    for recipe in ["full", "full-frozen-bn", "bn-only", "head"] {
        check_on(modern(), recipe, &[]);
    }
    check_on(modern(), "head", &["name:a.gamma -> weights=train", "name:b.norm -> weights=train"]);
    check_on(
        modern(),
        "full",
        &[
            "kind:layer_norm -> weights=frozen",
            "kind:group_norm -> weights=frozen",
            "kind:layer_scale -> weights=frozen",
        ],
    );
}

#[test]
fn one_output_for_two_classes_trains() {
    for recipe in ["full", "keras-guide", "head"] {
        check_on(binary(), recipe, &[]);
    }
}

#[test]
fn ghost_batches_have_gradients_of_their_own() {
    check("full-ghost", &["kind:bn -> domain=ghost(2)"]);
    check("bn-only", &["kind:bn -> domain=ghost(1)"]);
    check("full", &["kind:bn & name:a.* -> domain=ghost(2)", "name:b.down.bn -> stats=running, domain=ghost(1)"]);
}

#[test]
fn gradients_pass_through_blended_statistics() {
    check("bn-blend", &[]);
    check("full", &["kind:bn -> stats=blend(0.3)"]);
    check("full", &["kind:bn -> stats=blend(0.9), domain=ghost(2)", "name:stem.bn -> update=off"]);
}

#[test]
fn gradients_pass_through_renormalised_statistics() {
    // Bounds that no channel reaches, that some do, and that all do.
    check("full-renorm", &["kind:bn -> stats=renorm(100,100)"]);
    check("full-renorm", &["kind:bn -> stats=renorm(1.2,0.3)"]);
    check("full-renorm", &["kind:bn -> stats=renorm(1,0)"]);
    check("bn-only", &["kind:bn -> stats=renorm(1.5,0.5), domain=ghost(2)"]);
}
