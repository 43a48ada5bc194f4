//! Layers with more weights than every device binds at once.

use thawline::compile::{self, Optimizer, Options};
use thawline::gpu::{Device, DeviceOptions};
use thawline::graph::{Act, Builder, Graph, Op, ParamId, Role, Sgd, Taken};
use thawline::plan::Input;
use thawline::policy::{Policy, resolve};
use thawline::tensor::HostTensor;
use thawline::train::{Evaluator, Images, Session};
use thawline::weights;

/// AlexNet's first linear layer: 151 MB.
const PIXELS: [usize; 2] = [6, 6];
const CHANNELS: usize = 256;
const FEATURES: usize = 4096;
const BATCH: usize = 2;

/// A network around the layer: whole, or as two layers side by side.
fn network(is_whole: bool) -> Graph {
    let mut b = Builder::new();
    let x = b.input(BATCH, PIXELS[0], PIXELS[1], CHANNELS).unwrap();
    let taken = Taken::Image(PIXELS);
    let mut linear = |name, features| b.linear_of(name, x, features, taken, true).unwrap();
    let wide = match is_whole {
        true => linear("wide", FEATURES),
        false => {
            let halves = [linear("left", FEATURES / 2), linear("right", FEATURES / 2)];
            b.concat("wide", &halves).unwrap()
        }
    };
    let x = b.activation("relu", wide, Act::Relu).unwrap();
    let logits = b.linear("fc", x, 3).unwrap();
    let network = b.finish(logits).unwrap();
    resolve(&Policy::recipe("full").unwrap(), network).unwrap().graph
}

/// Numbers that look random, and take no time to make.
fn values(shape: thawline::tensor::Shape, scale: f32) -> HostTensor {
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    HostTensor { shape, data: (0..shape.stored_len()).map(|i| scale * value(i)).collect() }
}

/// The values of the whole layer's parameters by those of the halves.
fn joined(halves: [&HostTensor; 2], whole: &Graph, param: usize) -> HostTensor {
    let shape = whole.params()[param].shape;
    let half = FEATURES / 2;
    let rows = halves[0].data.chunks(half).zip(halves[1].data.chunks(half));
    HostTensor { shape, data: rows.flat_map(|(left, right)| left.iter().chain(right)).copied().collect() }
}

#[test]
fn a_layer_in_parts_is_the_layer() {
    let device = Device::open(&DeviceOptions::default()).expect("a device");
    let (whole, halves) = (network(true), network(false));
    // Weight and bias of `left`, of `right`, and of `fc`.
    let of_halves: Vec<HostTensor> = halves.params().iter().map(|param| values(param.shape, 0.01)).collect();
    let of_whole = |tensors: &[HostTensor]| {
        let [weight, bias] = [0, 1].map(|i| joined([&tensors[i], &tensors[i + 2]], &whole, i));
        vec![weight, bias, tensors[4].clone(), tensors[5].clone()]
    };
    let tensors = of_whole(&of_halves);

    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-3, decoupled: false };
    let options = Options { export_gradients: true, ..Options::new(Optimizer::Sgd(sgd)) };
    let compiled = compile::training(whole.clone(), &options).unwrap();
    assert_eq!(compiled.nodes().filter(|(_, node)| node.op == Op::Concat).count(), 1);
    assert_eq!(compiled.params().len(), whole.params().len() + 2);
    assert!(compiled.params().iter().all(|param| param.shape.bytes() <= 1 << 27), "{:?}", compiled.params());

    let session =
        |graph: &Graph, tensors: &[HostTensor]| Session::new(&device, graph.clone(), tensors, Input::Values, options);
    let mut in_parts = session(&whole, &tensors).unwrap();
    let mut by_halves = session(&halves, &of_halves).unwrap();
    let images = values(whole.input_shape().unwrap(), 1.0).data;
    for _ in 0..2 {
        let [one, other] =
            [&mut in_parts, &mut by_halves].map(|session| session.step(Images::Values(&images), &[0, 2], 0.1).unwrap());
        assert_eq!(one.loss, other.loss);
    }
    let same = |name: &str, one: &[HostTensor], other: &[HostTensor]| {
        for (i, (one, other)) in one.iter().zip(of_whole(other)).enumerate() {
            assert!(*one == other, "{name} of parameter {i}");
        }
    };
    let changed = in_parts.parameters().unwrap();
    same("values", &changed, &by_halves.parameters().unwrap());
    assert!(changed[0] != tensors[0], "the layer trains");
    let gradients = |session: &Session, graph: &Graph| {
        let tensor = |(param, data): (ParamId, Vec<f32>)| (param, HostTensor { shape: graph.param(param).shape, data });
        let mut all: Vec<_> = session.gradients().unwrap().into_iter().map(tensor).collect();
        all.sort_by_key(|(param, _)| *param);
        all.into_iter().map(|(_, tensor)| tensor).collect::<Vec<_>>()
    };
    same("gradient", &gradients(&in_parts, &whole), &gradients(&by_halves, &halves));

    // What is kept in a checkpoint is of whole parameters, and continues.
    let state = in_parts.optimizer_state().unwrap();
    let mut params: Vec<usize> = state.iter().map(|state| state.param.index()).collect();
    params.sort_unstable();
    assert_eq!(params, [0, 1, 2, 3]);
    let mut continued = session(&whole, &changed).unwrap();
    continued.restore(2, &state).unwrap();
    assert!(continued.restore(2, &state[1..]).is_err());
    for session in [&mut in_parts, &mut continued] {
        session.step(Images::Values(&images), &[1, 1], 0.1).unwrap();
    }
    let now = in_parts.parameters().unwrap();
    assert!(now == continued.parameters().unwrap(), "a continued step is the same");

    // A file knows the whole only.
    let state = weights::to_state(&whole, &now);
    assert_eq!(state.tensors["wide.weight"].shape, [FEATURES, CHANNELS * PIXELS[0] * PIXELS[1]]);
    assert!(weights::from_state(&whole, state, 0).unwrap().tensors[..2] == now[..2]);
    let mut evaluator = Evaluator::new(&device, &whole, &now, Input::Values).unwrap();
    let totals = evaluator.evaluate(Images::Values(&images), &[1, 1]).unwrap();
    assert!(totals.loss.is_finite() && totals.samples == 2);
    assert_eq!(whole.params()[0].role, Role::LinearWeight);
}
