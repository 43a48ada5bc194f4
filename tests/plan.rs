//! Plans: memory, bindings and price, without a device.

use thawline::compile::{self, Optimizer, Options};
use thawline::graph::{AdamW, Graph, Param, ParamId, Sgd};
use thawline::kernels::Access;
use thawline::kernels::conv2d::Variant;
use thawline::models;
use thawline::plan::{Input, ParamLayout, Plan, SlotId, Storage, UNIFORM_ALIGNMENT};
use thawline::policy::{Policy, RECIPES, resolve};

const BYTES: Input = Input::Bytes { mean: [0.5; 3], std: [0.5; 3], bgr: false };

fn options() -> Options {
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false };
    Options::new(Optimizer::Sgd(sgd))
}

fn network(policy: &str, batch: usize) -> Graph {
    let network = models::build("resnet18", batch, (64, 64), 10).expect("a model");
    // Ghost batches that small batches, too, have several of.
    let ghosts: &[&str] = if policy == "full-ghost" { &["kind:bn -> domain=ghost(2)"] } else { &[] };
    let policy = Policy::recipe(policy).and_then(|policy| policy.with_rules(ghosts)).expect("a recipe");
    resolve(&policy, network).expect("a policy").graph
}

fn plan(policy: &str, batch: usize) -> Plan {
    Plan::new(compile::training(network(policy, batch), &options()).expect("a step"), BYTES, Variant::Direct)
}

fn inference(batch: usize) -> Plan {
    Plan::new(compile::inference(network("full", batch), true).expect("inference"), BYTES, Variant::Direct)
}

#[test]
fn bindings_are_what_kernels_and_wgpu_ask_for() {
    for recipe in RECIPES {
        for variant in Variant::ALL {
            let step = compile::training(network(recipe.name, 4), &options()).expect("a step");
            let plan = Plan::new(step, BYTES, variant);
            for call in &plan.calls {
                let label = plan.label(call);
                assert_eq!(call.bindings.len(), call.kernel.bindings.len(), "{label}");
                assert_eq!(call.uniform as usize % UNIFORM_ALIGNMENT, 0, "{label}");
                assert!(call.uniform as usize + call.kernel.params_size() <= plan.uniforms.len(), "{label}");
                for (i, slot) in call.bindings.iter().enumerate() {
                    assert!(call.words[i] <= plan.slots[slot.index()].words, "{label}: binding {i}");
                    // wgpu looks at whole buffers.
                    let whole = |slot: &SlotId| plan.slots[slot.index()].within.map_or(*slot, |(whole, _)| whole);
                    let others = call.bindings.iter().enumerate().filter(|(j, _)| i != *j);
                    let shared = others.map(|(_, other)| whole(other)).any(|other| other == whole(slot));
                    let written = call.kernel.bindings[i].access == Access::Write;
                    assert!(!(shared && written), "{label} writes a buffer that it binds twice");
                }
            }
        }
    }
}

#[test]
fn parts_of_a_slot_lie_in_it_side_by_side() {
    for recipe in RECIPES {
        let plan = plan(recipe.name, 4);
        let mut parts: Vec<(SlotId, usize, usize)> =
            plan.slots.iter().filter_map(|slot| slot.within.map(|(whole, at)| (whole, at, at + slot.words))).collect();
        parts.sort_unstable();
        for &(whole, at, end) in &parts {
            let whole = &plan.slots[whole.index()];
            assert!(whole.within.is_none() && end <= whole.words, "{}: {at} to {end}", whole.name);
            // Every adapter binds from multiples of 256 bytes.
            assert_eq!(at % 64, 0);
        }
        // Scratch memory is shared by what is never alive at the same time.
        parts.retain(|(whole, _, _)| plan.slots[whole.index()].storage != Storage::Scratch);
        for pair in parts.windows(2) {
            assert!(pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1, "{pair:?} overlap");
        }
    }
}

#[test]
fn few_calls_step_all_parameters_and_none_reaches_a_frozen_one() {
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    for optimizer in [options().optimizer, Optimizer::AdamW(adamw)] {
        for (policy, accumulate) in [("full", 1), ("full", 2), ("bn-affine", 1), ("head", 1)] {
            let options = Options { optimizer, accumulate, ..options() };
            let step = compile::training(network(policy, 4), &options).expect("a step");
            let plan = Plan::new(step, BYTES, Variant::Direct);
            let steps: Vec<_> = plan.calls.iter().filter(|call| call.kernel.name.ends_with("_step")).collect();
            // Eleven million words of gradients, of which four million wait at most, unless they are accumulated anyway.
            let most = if policy == "full" && accumulate == 1 { 4 } else { 1 };
            assert!(steps.len() <= most, "{policy}: {}", steps.len());

            let layout = ParamLayout::of(&plan.graph);
            let mut changed = 0;
            for call in steps {
                let bound = |name| {
                    let position = call.kernel.bindings.iter().position(|binding| binding.name == name);
                    plan.slots[call.bindings[position.expect("a binding")].index()].storage
                };
                let (Storage::Table(table), Storage::Params(buffer)) = (bound("segments"), bound("param")) else {
                    panic!("{:?}, {:?}", bound("segments"), bound("param"));
                };
                for entry in plan.tables[table].chunks(8) {
                    let (first, words) = (entry[2] as usize * 4, entry[1] as usize * 4);
                    let trains = |(index, param): (usize, &Param)| {
                        let place = layout.place(ParamId::new(index));
                        let update = param.update.filter(|_| place.buffer == buffer)?;
                        let [begin, end] = update.rows.map(|row| place.at + row * param.shape.stored_c());
                        Some((begin, end - begin))
                    };
                    let mut trained = plan.graph.params().iter().enumerate().filter_map(trains);
                    assert!(trained.any(|place| place == (first, words)), "{policy} changes {first}, {words} words");
                    changed += 1;
                }
            }
            assert_eq!(changed, plan.graph.params().iter().filter(|param| param.update.is_some()).count());
        }
    }
}

#[test]
fn the_head_keeps_nothing_below_itself() {
    let plan = plan("head", 8);
    let head = plan.graph.layers().len() - 1;
    for (layer, cost) in plan.graph.layers().iter().zip(&plan.cost.layers).take(head) {
        assert_eq!((cost.kept, cost.backward.flops, cost.backward.bytes), (0, 0, 0), "{}", layer.name);
        assert_eq!(cost.update.bytes, 0, "{}", layer.name);
    }
    // The pooled features, and the logits for the loss.
    assert_eq!(plan.cost.kept(), 8 * 512 * 4 + 8 * 12 * 4);
}

#[test]
fn what_is_kept_grows_with_what_trains() {
    let kept = |policy| plan(policy, 8).cost.kept();
    let (head, affine, guide, full) = (kept("head"), kept("bn-affine"), kept("keras-guide"), kept("full"));
    assert!(head < guide && guide < full && head < affine && affine < full, "{head} {affine} {guide} {full}");
    // A convolution that trains under running statistics keeps its input and one bit a value, not the input of the
    // batch norm: about half of what batch statistics keep.
    assert!(guide * 100 < full * 62, "{guide} {full}");
    // Without gradients of γ and β, folding anew each step pays in more layers.
    assert!(kept("full-frozen-bn") <= guide, "{guide}");
    // Cutting and correcting statistics keeps a few rows a layer more, and no activation.
    for policy in ["full-ghost", "full-renorm"] {
        assert!(kept(policy) > full && kept(policy) - full < full / 100, "{policy}: {} {full}", kept(policy));
    }
}

#[test]
fn memory_follows_the_policy_and_the_batch() {
    // `head` holds frozen weights twice, as they are and folded, but no state.
    let bytes = |policy| plan(policy, 8).bytes();
    assert!(bytes("head") < bytes("full") && bytes("bn-only") < bytes("full"));
    let scratch = |p: &Plan| p.slots.iter().filter(|s| s.storage == Storage::Scratch).map(|s| s.bytes()).sum::<u64>();
    let (one, two) = (scratch(&inference(8)), scratch(&inference(16)));
    assert!(two > one * 3 / 2 && two <= one * 2, "{one} {two}");
    // Inference needs a handful of activations at a time.
    assert!(scratch(&inference(8)) < 4 * 8 * 32 * 32 * 64 * 4);
}

#[test]
fn no_recipe_costs_more_than_all_of_training() {
    for model in ["resnet18", "resnet50", "efficientnet_b0", "mobilenet_v3_large"] {
        for (batch, size) in [(2, 32), (8, 64), (32, 224)] {
            let price = |policy: &str| {
                let network = models::build(model, batch, (size, size), 10).expect("a model");
                let network = resolve(&Policy::recipe(policy).expect("a recipe"), network).expect("a policy").graph;
                let step = compile::training(network, &options()).expect("a step");
                Plan::new(step, BYTES, Variant::Direct).cost.step()
            };
            let full = price("full");
            for policy in ["keras-guide", "full-frozen-bn", "bn-only", "bn-affine", "head"] {
                let cost = price(policy);
                let most = full.bytes;
                assert!(cost.bytes <= most && cost.flops <= full.flops, "{policy} of {model}: {} {most}", cost.bytes);
            }
        }
    }
}

#[test]
fn the_price_is_the_network_s() {
    // torchvision's resnet18 at 224 px is 1.814 GMAC; design figures count two operations a multiply-add.
    let network = models::build("resnet18", 1, (224, 224), 1000).expect("a model");
    let network = resolve(&Policy::recipe("full").expect("a recipe"), network).expect("a policy").graph;
    let forward = Plan::new(compile::inference(network.clone(), false).expect("inference"), BYTES, Variant::Direct);
    let flops = forward.cost.step().flops as f64;
    assert!((flops / 2.0 / 1.814e9 - 1.0).abs() < 1e-3, "{flops}");
    // Backward is twice forward, but for the images' gradient.
    let step = Plan::new(compile::training(network, &options()).expect("a step"), BYTES, Variant::Direct);
    let ratio = step.cost.step().flops as f64 / flops;
    assert!((2.9..3.0).contains(&ratio), "{ratio}");
}

#[test]
fn optimisers_ask_for_the_state_that_they_need() {
    let states = |optimizer| {
        let step = compile::training(network("full", 4), &Options { optimizer, ..options() }).expect("a step");
        let plan = Plan::new(step, Input::Values, Variant::Direct);
        plan.slots.iter().filter(|s| matches!(s.storage, Storage::State(_))).count()
    };
    let params = 20 + 20 + 2;
    let sgd = |momentum| Sgd { momentum, nesterov: false, weight_decay: 0.1, decoupled: false };
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    assert_eq!(states(Optimizer::Sgd(sgd(0.0))), 0);
    assert_eq!(states(Optimizer::Sgd(sgd(0.9))), params);
    assert_eq!(states(Optimizer::AdamW(adamw)), 2 * params);
}

#[test]
fn grids_are_folded_where_one_dimension_is_too_small() {
    // What every adapter dispatches.
    const LIMIT: u32 = 65_535;
    let huge = models::build("resnet18", 4096, (224, 224), 10).expect("a model");
    let huge = resolve(&Policy::recipe("full").expect("a recipe"), huge).expect("a policy").graph;
    for variant in Variant::ALL {
        let step = compile::training(huge.clone(), &options()).expect("a step");
        let plan = Plan::new(step, BYTES, variant);
        let oversized = plan.oversized_grid(LIMIT);
        assert!(oversized.is_none(), "{}", plan.label(oversized.unwrap()));
        assert!(plan.calls.iter().any(|call| call.constants.contains(&("folded", 1.0))), "{variant:?}");
        assert!(plan.oversized_grid(1000).is_some());
    }
}
