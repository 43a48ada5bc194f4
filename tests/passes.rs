//! What the compiler makes of the recipes: which nodes there are, and which there are not.

use thawline::compile::{self, Optimizer, Options};
use thawline::graph::{Act, Builder, Graph, Layer, LayerId, LayerKind, Node, Op, Output, Phase, Sgd, Stats, Window};
use thawline::models;
use thawline::policy::{Policy, RECIPES, resolve};

fn options() -> Options {
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0, decoupled: false };
    Options::new(Optimizer::Sgd(sgd))
}

fn resolved(model: &str, policy: &str, rules: &[&str]) -> Graph {
    resolved_for(model, 4, policy, rules)
}

/// For so many images of 32 × 32.
fn resolved_for(model: &str, images: usize, policy: &str, rules: &[&str]) -> Graph {
    let network = models::build(model, images, (32, 32), 10).expect("a model");
    // Ghost batches that a batch of four has two of.
    let ghosts: &[&str] = if policy == "full-ghost" { &["kind:bn -> domain=ghost(2)"] } else { &[] };
    let policy = Policy::recipe(policy).and_then(|policy| policy.with_rules(ghosts)).expect("a recipe");
    let policy = policy.with_rules(rules).expect("rules");
    resolve(&policy, network).expect("a policy").graph
}

fn training(policy: &str, rules: &[&str]) -> Graph {
    compile::training(resolved("resnet18", policy, rules), &options()).expect("a step")
}

fn count(graph: &Graph, wanted: impl Fn(&Op) -> bool) -> usize {
    graph.nodes().filter(|(_, node)| wanted(&node.op)).count()
}

/// When each batch norm is folded.
fn folds(graph: &Graph) -> Vec<Phase> {
    let fold = |op| matches!(op, Op::FoldBatchNorm { .. });
    graph.nodes().filter(|(_, node)| fold(node.op)).map(|(_, node)| node.phase).collect()
}

/// The names of the layers that nodes of a phase serve, without repetition.
fn layers(graph: &Graph, phase: Phase) -> Vec<&str> {
    let mut names: Vec<&str> = graph
        .nodes()
        .filter(|(_, node)| node.phase == phase && !node.op.is_source())
        .filter_map(|(_, node)| node.layer.map(|l| graph.layers()[l.index()].name.as_str()))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn inference_is_convolutions_and_pools() {
    let graph = compile::inference(resolved("resnet18", "full", &[]), false).expect("inference");
    // Twenty convolutions and the linear layer, each with everything around it folded in.
    assert_eq!(count(&graph, |op| matches!(op, Op::Conv2d(_))), 21);
    assert_eq!(count(&graph, |op| matches!(op, Op::Conv2d(c) if c.bias)), 21);
    assert_eq!(count(&graph, |op| matches!(op, Op::Conv2d(c) if c.residual)), 8);
    assert_eq!(count(&graph, |op| matches!(op, Op::Conv2d(c) if c.act == Act::Relu)), 17);
    let left = |op: &Op| {
        matches!(op, Op::BatchNormApply(_) | Op::BatchNormStats { .. } | Op::Add { .. } | Op::Activation { .. })
    };
    assert_eq!(count(&graph, left), 0);
    // Folding happens once, not every pass.
    assert_eq!(folds(&graph), [Phase::Once; 20]);
}

#[test]
fn an_observation_reads_moments_and_moves_nothing() {
    for by in [Stats::Running, Stats::Batch] {
        let network = resolved("resnet18", "full", &[]);
        let is_norm = |layer: &Layer| layer.kind == LayerKind::Bn;
        let norms: Vec<usize> = (0..network.layers().len()).filter(|&i| is_norm(&network.layers()[i])).collect();
        let graph = compile::observation(network, |_| by).expect("an observation");
        assert_eq!(count(&graph, |op| !op.mutates().is_empty()), 0);
        assert!(graph.nodes().all(|(_, node)| node.phase == Phase::Forward || node.phase == Phase::Once));
        let outputs: Vec<Output> = graph.outputs().iter().map(|(output, _)| *output).collect();
        let moments: Vec<Output> = norms.iter().map(|&index| Output::Moments(LayerId::new(index))).collect();
        assert_eq!(outputs[..2], [Output::Logits, Output::Rows]);
        assert_eq!(outputs[2..], moments);
        // What normalises is the moments that are read out, or the parameter.
        let normalised_by_batch = graph.nodes().filter(|(_, node)| {
            matches!(node.op, Op::BatchNormApply(_))
                && matches!(graph.node(node.inputs[1]).op, Op::BatchNormStats { .. })
        });
        assert_eq!(normalised_by_batch.count(), if by == Stats::Batch { 20 } else { 0 });
    }
}

#[test]
fn a_frozen_network_below_the_head_is_inference() {
    let graph = training("head", &[]);
    assert_eq!(layers(&graph, Phase::Backward), ["fc"]);
    assert_eq!(layers(&graph, Phase::Update), ["fc"]);
    let inference = compile::inference(resolved("resnet18", "head", &[]), true).expect("inference");
    let forward =
        |g: &Graph| g.nodes().filter(|(_, n)| n.phase == Phase::Forward).map(|(_, n)| n.op).collect::<Vec<_>>();
    let computed = |ops: Vec<Op>| ops.into_iter().filter(|op| !op.is_source()).collect::<Vec<_>>();
    assert_eq!(computed(forward(&graph)), computed(forward(&inference)));
}

#[test]
fn only_what_trains_has_a_weight_gradient() {
    for (policy, expected) in [("full", 21), ("full-frozen-bn", 21), ("keras-guide", 21), ("head", 1), ("bn-only", 1)] {
        let graph = training(policy, &[]);
        assert_eq!(count(&graph, |op| matches!(op, Op::Conv2dWeightGrad { .. })), expected, "{policy}");
    }
    let thawed = training("head", &["from:layer4 -> weights=train"]);
    assert_eq!(count(&thawed, |op| matches!(op, Op::Conv2dWeightGrad { .. })), 6);
    // Nothing differentiates below the thaw line: not even the input of the first thawed block.
    assert!(layers(&thawed, Phase::Backward).iter().all(|l| l.starts_with("layer4") || ["avgpool", "fc"].contains(l)));
    let inputs = thawed.nodes().filter(|(_, n)| matches!(n.op, Op::Conv2dInputGrad { .. }));
    let below = |name: &str| ["layer4.0.conv1", "layer4.0.downsample.0"].contains(&name);
    assert!(inputs.filter_map(|(_, n)| n.layer).all(|l| !below(&thawed.layers()[l.index()].name)));
}

#[test]
fn running_statistics_under_a_training_convolution_need_no_batch_norm_kernel() {
    for policy in ["keras-guide", "full-frozen-bn"] {
        // So many images that their activations outweigh all weights.
        let network = resolved_for("resnet18", 16_384, policy, &[]);
        let graph = compile::training(network, &options()).expect("a step");
        let norm = |op: &Op| op.name().starts_with("batch_norm");
        assert_eq!(count(&graph, norm), 0, "{policy}");
        assert_eq!(folds(&graph), [Phase::Forward; 20], "{policy}");
        let affine = if policy == "keras-guide" { 20 } else { 0 };
        assert_eq!(count(&graph, |op| matches!(op, Op::FoldAffineGrad { .. })), affine, "{policy}");
    }
}

#[test]
fn weights_that_outweigh_the_activations_are_not_folded_each_step() {
    for policy in ["keras-guide", "full-frozen-bn"] {
        let graph = training(policy, &[]);
        let is_first = |name: &str| !name.starts_with("layer");
        let normalised: Vec<&str> = graph
            .nodes()
            .filter(|(_, n)| matches!(n.op, Op::BatchNormApply(_)))
            .filter_map(|(_, n)| n.layer.map(|l| graph.layers()[l.index()].name.as_str()))
            .collect();
        assert_eq!(normalised.len() + folds(&graph).len(), 20, "{policy}");
        // The last stage has nine tenths of the weights and a hundredth of the activations.
        assert_eq!(normalised.iter().filter(|name| name.starts_with("layer4")).count(), 5, "{policy}");
        assert!(!normalised.iter().any(|name| is_first(name)), "{policy}: {normalised:?}");
    }
}

#[test]
fn batch_statistics_cost_what_they_must() {
    let graph = training("bn-only", &[]);
    assert_eq!(count(&graph, |op| matches!(op, Op::BatchNormStats { domains: 1 })), 20);
    assert_eq!(count(&graph, |op| matches!(op, Op::BatchNormUpdate { .. })), 20);
    assert_eq!(count(&graph, |op| matches!(op, Op::BatchNormGradReduce { .. })), 20);
    // The first batch norm has nothing trainable behind it.
    assert_eq!(count(&graph, |op| matches!(op, Op::BatchNormGradBatch { .. })), 19);
    // Moving statistics alone need no gradient at all.
    let moving = training("head-adapt", &[]);
    assert_eq!(layers(&moving, Phase::Backward), ["fc"]);
    assert_eq!(count(&moving, |op| matches!(op, Op::BatchNormUpdate { .. })), 20);
}

#[test]
fn blended_and_renormalised_statistics_add_a_little_to_those_of_the_batch() {
    let more = |policy: &str, rules: &[&str], wanted: fn(&Op) -> bool| {
        let graph = training(policy, rules);
        let count = |wanted: fn(&Op) -> bool| self::count(&graph, wanted);
        assert_eq!(count(|op| matches!(op, Op::BatchNormStats { .. })), 20);
        assert_eq!(count(|op| matches!(op, Op::BatchNormUpdate { .. })), 20);
        count(wanted)
    };
    assert_eq!(more("bn-blend", &[], |op| matches!(op, Op::BatchNormBlend { .. })), 20);
    // The first batch norm has nothing trainable behind it.
    assert_eq!(more("bn-blend", &[], |op| matches!(op, Op::BatchNormGradBlend { .. })), 19);
    assert_eq!(more("full-renorm", &[], |op| matches!(op, Op::BatchNormRenorm { .. })), 20);
    assert_eq!(more("full-renorm", &[], |op| matches!(op, Op::BatchNormGradRenorm { .. })), 20);
    // One sum for gamma and beta, one for the running moments.
    assert_eq!(more("full-ghost", &[], |op| matches!(op, Op::DomainSum)), 40);
    assert_eq!(more("full-ghost", &[], |op| matches!(op, Op::BatchNormStats { domains: 2 })), 20);
    // One ghost batch that fills the batch is the batch.
    let whole = training("full-ghost", &["kind:bn -> domain=ghost(4)"]);
    assert_eq!(whole.to_string(), training("full", &[]).to_string());
}

#[test]
fn ghost_batches_cannot_be_cut_from_any_batch() {
    let network = resolved("resnet_tiny", "full-ghost", &[]).with_batch(5).expect("a batch");
    let error = compile::training(network.clone(), &options()).expect_err("five is odd").to_string();
    assert!(error.starts_with("the pass `fold` failed at bn1"), "{error}");
    // Inference has no such batches.
    compile::inference(network, true).expect("inference");
}

#[test]
fn frozen_tensors_are_not_in_the_optimiser() {
    for recipe in thawline::policy::RECIPES {
        let graph = training(recipe.name, &[]);
        for (_, node) in graph.nodes() {
            for &operand in node.op.mutates() {
                let target = graph.node(node.inputs[operand]);
                let Op::Param(param) = target.op else { continue };
                let layer = &graph.layers()[graph.param(param).layer.index()];
                let moves = layer.setting.batch_norm.is_some_and(|m| m.update != thawline::graph::StatsUpdate::Off);
                let allowed = graph.param(param).update.is_some() || (layer.kind == LayerKind::Bn && moves);
                assert!(allowed, "{}: {} changes {}", recipe.name, node.op.name(), layer.name);
            }
        }
    }
}

#[test]
fn accumulation_commits_once_a_window() {
    let two = Options { accumulate: 2, ..options() };
    let graph = compile::training(resolved("resnet18", "full", &[]), &two).expect("a step");
    let sums = count(&graph, |op| matches!(op, Op::Accumulate));
    // 20 weights, 20 affine pairs, the head's weight and bias; 20 moments.
    assert_eq!(sums, 62);
    let ghosts = compile::training(resolved("resnet18", "full-ghost", &[]), &two).expect("a step");
    assert_eq!(count(&ghosts, |op| matches!(op, Op::Accumulate)), 62);
    // What the update reads outlives a micro-batch: parameters and state only.
    for (graph, (_, node)) in [&graph, &ghosts].into_iter().flat_map(|g| g.nodes().map(move |node| (g, node))) {
        for &input in node.inputs.iter().filter(|_| node.phase == Phase::Update) {
            let op = graph.node(input).op;
            assert!(op.is_source() || op == Op::Accumulate, "{} reads {}", node.op.name(), op.name());
        }
    }
}

#[test]
fn every_recipe_on_every_model_verifies() {
    // One of each family.
    let models = [
        "resnet18",
        "resnet50",
        "resnet_tiny",
        "resnext50_32x4d",
        "efficientnet_v2_s",
        "mobilenet_v2",
        "mobilenet_v3_large",
    ];
    for (model, recipe) in models.into_iter().flat_map(|model| RECIPES.iter().map(move |recipe| (model, recipe))) {
        let network = resolved(model, recipe.name, &[]);
        compile::training(network.clone(), &options()).unwrap_or_else(|e| panic!("{}: {e}", recipe.name));
        compile::inference(network, true).unwrap_or_else(|e| panic!("{}: {e}", recipe.name));
    }
}

#[test]
fn the_dump_is_stable_and_names_layers() {
    let dump = training("head", &[]).to_string();
    assert_eq!(dump, training("head", &[]).to_string());
    let line = dump.lines().find(|l| l.contains("sgd_step")).expect("an update");
    assert!(line.contains("update") && line.ends_with("# fc"), "{line}");
}

#[test]
fn branches_fuse_in_whatever_order_they_were_built() {
    for shortcut_first in [false, true] {
        let mut b = Builder::new();
        let x = b.input(2, 8, 8, 4).expect("an input");
        let branch = |b: &mut Builder, name: &str| {
            let y = b.conv2d(name, x, 4, Window::square(3, 1, 1), false).expect("a convolution");
            b.batch_norm(&format!("{name}.bn"), y, 1e-5).expect("a batch norm")
        };
        let (first, second) = (branch(&mut b, "first"), branch(&mut b, "second"));
        let (main, shortcut) = if shortcut_first { (second, first) } else { (first, second) };
        let y = b.add("add", main, shortcut).expect("an addition");
        let y = b.relu("relu", y).expect("an activation");
        let y = b.global_avg_pool("pool", y).expect("a pool");
        let logits = b.linear("fc", y, 3).expect("a head");
        let network = b.finish(logits).expect("a network");
        let network = resolve(&Policy::recipe("full").expect("a recipe"), network).expect("a policy").graph;
        let step = compile::training(network, &options()).expect("a step");
        let fused = |op: &Op| matches!(op, Op::BatchNormApply(a) if a.residual && a.act == Act::Relu);
        assert_eq!((count(&step, fused), count(&step, |op| matches!(op, Op::Activation { .. }))), (1, 0));
    }
}

#[test]
fn sizes_that_cannot_be_are_errors() {
    let mut b = Builder::new();
    let x = b.input(1, 64, 64, 3).expect("an input");
    for channels in [0, usize::MAX, 1 << 24] {
        let error = b.conv2d(&format!("c{channels}"), x, channels, Window::square(1, 1, 0), false);
        let message = error.expect_err("too many channels").to_string();
        assert!(message.starts_with(&format!("c{channels}")), "{message}");
    }
}

#[test]
fn inference_needs_no_policy() {
    let network = models::build("resnet18", 2, (32, 32), 10).expect("a model");
    let resolved = resolve(&Policy::recipe("full").expect("a recipe"), network.clone()).expect("a policy").graph;
    let graph = compile::inference(network, false).expect("inference");
    assert!(!graph.nodes().any(|(_, node)| node.op.name() == "batch_norm_apply"), "every batch norm is folded");
    let other = compile::inference(resolved, false).expect("inference");
    assert!(graph.nodes().map(|(_, node)| &node.op).eq(other.nodes().map(|(_, node)| &node.op)));
}

/// An inverted residual block with squeeze-and-excitation, as EfficientNet has it.
fn inverted_residual() -> Graph {
    let mut b = Builder::new();
    let x = b.input(4, 8, 8, 8).expect("an input");
    let y = b.conv2d("expand", x, 16, Window::square(1, 1, 0), false).expect("a convolution");
    let y = b.batch_norm("bn0", y, 1e-3).expect("a batch norm");
    let y = b.activation("act0", y, Act::Silu).expect("an activation");
    let y = b.grouped_conv2d("depthwise", y, 16, Window::square(3, 1, 1), 16, false).expect("a convolution");
    let y = b.batch_norm("bn1", y, 1e-3).expect("a batch norm");
    let y = b.activation("act1", y, Act::Silu).expect("an activation");
    let s = b.global_avg_pool("squeeze", y).expect("a pool");
    let s = b.conv2d("fc1", s, 4, Window::square(1, 1, 0), true).expect("a convolution");
    let s = b.activation("fc1.act", s, Act::Silu).expect("an activation");
    let s = b.conv2d("fc2", s, 16, Window::square(1, 1, 0), true).expect("a convolution");
    let s = b.activation("gate", s, Act::Sigmoid).expect("an activation");
    let y = b.scale("scale", y, s).expect("a gate");
    let y = b.conv2d("project", y, 8, Window::square(1, 1, 0), false).expect("a convolution");
    let y = b.batch_norm("bn2", y, 1e-3).expect("a batch norm");
    let y = b.stochastic_depth("drop", y, 0.2).expect("stochastic depth");
    let y = b.add("add", y, x).expect("an addition");
    let y = b.global_avg_pool("pool", y).expect("a pool");
    let y = b.dropout("dropout", y, 0.2).expect("dropout");
    let logits = b.linear("fc", y, 3).expect("a head");
    b.finish(logits).expect("a network")
}

fn mobile_training(policy: &str, rules: &[&str]) -> Graph {
    let policy = Policy::recipe(policy).and_then(|policy| policy.with_rules(rules)).expect("a recipe");
    let network = resolve(&policy, inverted_residual()).expect("a policy").graph;
    compile::training(network, &options()).expect("a step")
}

#[test]
fn squeeze_and_excitation_takes_few_passes() {
    let step = mobile_training("full", &[]);
    // Behind a batch norm the activation costs no pass and keeps nothing.
    let fused = |op: &Op| matches!(op, Op::BatchNormApply(apply) if apply.act == Act::Silu && !apply.mask);
    assert_eq!(count(&step, fused), 2);
    // Those behind the two small convolutions stay apart, for what they see is kept.
    assert_eq!(count(&step, |op| matches!(op, Op::Activation { .. })), 2);
    // Forward the gate; backward one pass for what was gated and averaged, and one for the gate.
    assert_eq!(count(&step, |op| matches!(op, Op::Scale { mean: false })), 1);
    assert_eq!(count(&step, |op| matches!(op, Op::Scale { mean: true })), 1);
    assert_eq!(count(&step, |op| matches!(op, Op::ScaleGateGrad)), 1);
    // The other mean is the head's.
    assert_eq!(count(&step, |op| matches!(op, Op::AvgPoolGrad { .. })), 1);
    assert_eq!(count(&step, |op| matches!(op, Op::Add { .. })), 0, "no gradient and no residual is added by itself");
}

#[test]
fn inference_of_an_inverted_residual_is_convolutions_and_a_gate() {
    let graph = compile::inference(inverted_residual(), false).expect("inference");
    let forward = |n: &Node| n.phase == Phase::Forward && !matches!(n.op, Op::Param(_));
    let names: Vec<_> = graph.nodes().filter(|(_, n)| forward(n)).map(|(_, n)| n.op.name()).collect();
    let expected =
        ["input", "conv2d", "conv2d", "avg_pool", "conv2d", "conv2d", "scale", "conv2d", "avg_pool", "conv2d"];
    assert_eq!(names, expected);
}

#[test]
fn dropout_acts_where_the_policy_lets_it() {
    let drops = |graph: &Graph, phase| {
        let of_phase = graph.nodes().filter(|(_, n)| n.phase == phase);
        of_phase.filter(|(_, n)| matches!(n.op, Op::Dropout { .. })).count()
    };
    let full = mobile_training("full", &[]);
    assert_eq!((drops(&full, Phase::Forward), drops(&full, Phase::Backward)), (2, 2));
    // The residual is added in the same pass.
    assert_eq!(count(&full, |op| matches!(op, Op::Dropout { whole: true, residual: true, .. })), 1);
    // Nothing trains below the head's dropout, so it has no gradient; the frozen block runs as inference.
    let head = mobile_training("head", &[]);
    assert_eq!((drops(&head, Phase::Forward), drops(&head, Phase::Backward)), (1, 0));
    let off = mobile_training("full", &["kind:dropout -> dropout=off", "kind:stochastic_depth -> dropout=off"]);
    assert_eq!(drops(&off, Phase::Forward), 0);
    // An image takes what it takes alone up to the dropout: the rest can be kept.
    let split = compile::split(&head, &compile::changing(&head)).expect("a cut").expect("a frozen prefix");
    assert_eq!(count(&split.prefix, |op| matches!(op, Op::Dropout { .. })), 0);
    assert_eq!(count(&split.rest, |op| matches!(op, Op::Conv2d(_))), 1);
}

#[test]
fn a_dense_block_keeps_one_copy_of_its_values() {
    let graph = resolved("densenet121", "full", &[]);
    let written = |graph: &Graph| count(graph, |op| *op == Op::Concat);
    assert_eq!(written(&graph), 6 + 12 + 24 + 16);
    let step = compile::training(graph, &options()).expect("a step");
    // Each begins with the one before it, and so has two operands.
    let concats = || step.nodes().filter(|(_, node)| node.op == Op::Concat);
    assert!(concats().all(|(_, node)| node.inputs.len() == 2));
    let backward = step.nodes().filter(|(_, node)| node.phase == Phase::Backward);
    let mut kept: Vec<_> = backward.flat_map(|(_, node)| node.inputs.iter().copied()).collect();
    kept.retain(|&id| step.node(id).op == Op::Concat);
    kept.sort_unstable();
    kept.dedup();
    let channels: Vec<usize> = kept.iter().map(|&id| step.node(id).shape.c()).collect();
    assert_eq!(channels, [256, 512, 1024, 1024]);
}
