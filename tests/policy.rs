//! Rules, selectors and recipes, from their text to the setting of each layer.

use proptest::prelude::*;
use thawline::graph::{
    Act, Affine, BatchNormMode, Builder, Domain, Graph, Layer, LayerId, LayerKind, NodeId, Stats, StatsUpdate,
    Variance, Window,
};
use thawline::models;
use thawline::policy::{self, Policy, PolicyError, RECIPES, Resolved, Rule, Warning, describe};

fn network(model: &str) -> Graph {
    models::build(model, 8, (64, 64), 10).unwrap()
}

fn rules(rules: &[&str]) -> Policy {
    Policy::new("test").with_rules(rules).unwrap()
}

fn resolve(set: &[&str]) -> Result<Resolved, PolicyError> {
    policy::resolve(&rules(set), network("resnet18"))
}

/// The layer's setting in words.
fn setting(resolved: &Resolved, layer: &str) -> String {
    describe(resolved.graph.layers().iter().find(|l| l.name == layer).unwrap())
}

fn count(resolved: &Resolved, holds: impl Fn(&Layer) -> bool) -> usize {
    resolved.graph.layers().iter().filter(|l| holds(l)).count()
}

// ---- Recipes ----

#[test]
fn recipes_set_every_layer() {
    let ema = StatsUpdate::Ema { keep: 0.9 };
    let renorm = Stats::Renorm { r_max: 3.0, d_max: 5.0 };
    let expected = [
        ("full", true, Stats::Batch, ema, Affine::Both),
        ("full-frozen-bn", true, Stats::Running, StatsUpdate::Off, Affine::None),
        ("keras-guide", true, Stats::Running, StatsUpdate::Off, Affine::Both),
        ("head", false, Stats::Running, StatsUpdate::Off, Affine::None),
        ("bn-only", false, Stats::Batch, ema, Affine::Both),
        ("bn-affine", false, Stats::Running, StatsUpdate::Off, Affine::Both),
        ("head-adapt", false, Stats::Batch, ema, Affine::None),
        // At the beginning.
        ("full-then-frozen-bn", true, Stats::Batch, ema, Affine::Both),
        ("head-then-full", false, Stats::Running, StatsUpdate::Off, Affine::None),
        ("full-renorm", true, renorm, ema, Affine::Both),
        ("full-ghost", true, Stats::Batch, ema, Affine::Both),
        ("full-accumulated", true, Stats::Batch, ema, Affine::Both),
        ("bn-blend", false, Stats::Blend { alpha: 0.5 }, ema, Affine::Both),
    ];
    assert_eq!(RECIPES.iter().map(|r| r.name).collect::<Vec<_>>(), expected.map(|(name, ..)| name));
    for (model, convs, batch_norms) in [("resnet18", 20, 20), ("resnet_tiny", 15, 15)] {
        for (recipe, convs_train, stats, update, affine) in expected {
            let resolved = policy::resolve(&Policy::load(recipe).unwrap(), network(model)).unwrap();
            let domain = match recipe {
                "full-ghost" => Domain::Ghost { samples: 8 },
                "full-accumulated" => Domain::Accumulated,
                _ => Domain::Batch,
            };
            let mode = BatchNormMode { stats, update, affine, var: Variance::Unbiased, domain };
            let trains = |kind| count(&resolved, |l| l.kind == kind && l.setting.weights);
            assert_eq!(trains(LayerKind::Linear), 1, "{model} {recipe}");
            assert_eq!(trains(LayerKind::Conv), if convs_train { convs } else { 0 }, "{model} {recipe}");
            assert_eq!(count(&resolved, |l| l.setting.batch_norm == Some(mode)), batch_norms, "{model} {recipe}");
            assert_eq!(count(&resolved, |l| l.setting.batch_norm.is_some()), batch_norms, "{model} {recipe}");
            assert_eq!(count(&resolved, |l| l.setting.lr != 1.0), 0, "{model} {recipe}");
            assert!(resolved.trains(), "{model} {recipe}");
            assert_eq!(resolved.moves(), update != StatsUpdate::Off, "{model} {recipe}");
            assert!(resolved.check_training(1).is_ok(), "{model} {recipe}");
            assert_eq!(resolved.warnings, [], "{model} {recipe}");
        }
    }
}

#[test]
fn stages_add_their_rules() {
    let stages = |policy: &Policy| policy::resolve_stages(policy, &network("resnet_tiny")).unwrap();
    let plain = stages(&Policy::recipe("full").unwrap());
    assert_eq!(plain.len(), 1);

    let late = stages(&Policy::recipe("full-then-frozen-bn").unwrap());
    assert_eq!(late.iter().map(|(from, _)| *from).collect::<Vec<_>>(), [0.0, 0.8]);
    assert_eq!(late[0].1.graph, plain[0].1.graph);
    assert_eq!(setting(&late[1].1, "bn1"), "stats=running, update=off, affine=both, var=unbiased");
    assert_eq!(setting(&late[1].1, "conv1"), "weights=train");
    let thawed = stages(&Policy::recipe("head-then-full").unwrap());
    assert_eq!(thawed[1].1.graph, plain[0].1.graph);

    // Rules of the base come first, its stages stay, and each stage builds on those before it.
    let text = r#"
        base = "full-then-frozen-bn"
        rules = ["name:conv1 -> weights=frozen"]
        [[stages]]
        from = 0.9
        rules = ["kind:conv -> weights=frozen", "kind:bn -> affine=none"]
    "#;
    let file = stages(&Policy::from_toml("file", text).unwrap());
    let conv1 = file.iter().map(|(_, stage)| setting(stage, "conv1")).collect::<Vec<_>>();
    assert_eq!(conv1, ["weights=frozen"; 3]);
    assert_eq!(setting(&file[1].1, "layer1.0.conv1"), "weights=train");
    assert_eq!(setting(&file[2].1, "layer1.0.conv1"), "weights=frozen");
    assert_eq!(setting(&file[2].1, "bn1"), "stats=running, update=off, affine=none, var=unbiased");
}

#[test]
fn the_last_rules_have_the_last_word_in_every_stage() {
    let policy = Policy::recipe("head-then-full").unwrap();
    let policy = policy.with_last_rules(&["kind:bn -> stats=running, update=off"]).unwrap();
    let stages = policy::resolve_stages(&policy, &network("resnet_tiny")).unwrap();
    let norms = stages.iter().map(|(_, stage)| setting(stage, "bn1")).collect::<Vec<_>>();
    let still = |affine: &str| format!("stats=running, update=off, affine={affine}, var=unbiased");
    assert_eq!(norms, [still("none"), still("both")]);
    assert_eq!(setting(&stages[1].1, "conv1"), "weights=train");
}

#[test]
fn stages_that_make_no_sense_are_refused() {
    let error = |text: &str| Policy::from_toml("file", text).unwrap_err().to_string();
    let stage = |from: &str| format!("[[stages]]\nfrom = {from}\nrules = [\"kind:bn -> affine=both\"]\n");
    for from in ["0.0", "1.0", "-0.5", "nan", "7.0"] {
        assert!(error(&stage(from)).contains("between 0 and 1"), "{from}");
    }
    assert!(error(&(stage("0.5") + &stage("0.5"))).contains("after one at 0.5"));
    assert!(error("[[stages]]\nfrom = 0.5\nrules = []").contains("no rules"));
    assert!(error("[[stages]]\nfrom = 0.5").contains("rules"));
    assert!(error("[[stages]]\nfrom = 0.5\nuntil = 1\nrules = []").contains("until"));
    let wrong = Policy::from_toml("file", &stage("0.5").replace("both", "both, stats=batch")).unwrap();
    let message = policy::resolve_stages(&wrong, &network("resnet_tiny")).unwrap_err().to_string();
    assert!(message.contains("from 0.5 of the steps on") && message.contains("update=off"), "{message}");
}

#[test]
fn only_the_last_linear_layer_is_the_head() {
    let mut b = Builder::new();
    let x = b.input(4, 8, 8, 3).unwrap();
    let x = b.conv2d("conv", x, 8, Window::square(3, 1, 1), true).unwrap();
    let x = b.global_avg_pool("pool", x).unwrap();
    let x = b.linear("hidden", x, 8).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.linear("logits", x, 3).unwrap();
    let resolved = policy::resolve(&Policy::recipe("head").unwrap(), b.finish(x).unwrap()).unwrap();
    assert_eq!(count(&resolved, |l| l.setting.weights), 1);
    assert_eq!(setting(&resolved, "logits"), "weights=train");
}

// ---- Rules ----

#[test]
fn batch_norms_follow_at_the_pace_of_their_network() {
    let full = |model: &str| {
        let network = models::build(model, 8, (64, 64), 10).unwrap();
        let layers = policy::resolve(&Policy::recipe("full").unwrap(), network).unwrap().graph.layers().to_vec();
        policy::describe(layers.iter().find(|layer| layer.kind == LayerKind::Bn).unwrap())
    };
    let mode = |keep: &str, var: &str| format!("stats=batch, update=ema({keep}), affine=both, var={var}");
    assert_eq!(full("resnet18"), mode("0.9", "unbiased"));
    assert_eq!(full("efficientnet_b7"), mode("0.99", "unbiased"));
    assert_eq!(full("keras_resnet50"), mode("0.99", "biased"));
    assert_eq!(full("keras_mobilenet_v2"), mode("0.999", "biased"));
}

#[test]
fn everything_starts_frozen() {
    let resolved = resolve(&[]).unwrap();
    assert_eq!(setting(&resolved, "bn1"), "stats=running, update=off, affine=none, var=unbiased");
    assert_eq!(setting(&resolved, "conv1"), "weights=frozen");
    assert_eq!(setting(&resolved, "relu"), "");
    assert!(!resolved.trains() && !resolved.moves());
    assert_eq!(
        resolved.check_training(1).unwrap_err().to_string(),
        "policy `test` freezes the whole network: nothing trains and no statistics move; try `head`, or a rule such as \
         `head -> weights=train`"
    );
}

#[test]
fn moving_statistics_alone_are_training() {
    let resolved = resolve(&["kind:bn -> stats=batch, update=cumulative"]).unwrap();
    assert!(!resolved.trains() && resolved.moves());
    assert!(resolved.check_training(1).is_ok());
    assert!(resolve(&["name:bn1 -> affine=beta"]).unwrap().trains());
}

#[test]
fn the_last_rule_wins_axis_by_axis() {
    let resolved = resolve(&[
        "kind:bn -> stats=batch, update=ema(0.9), affine=both, lr=3",
        "from:layer3 -> weights=train, affine=gamma",
        "name:layer4.1.bn2 -> stats=running, update=off, var=biased",
        "from:layer4.1.bn2 & kind:bn -> lr=0.5",
    ])
    .unwrap();
    assert_eq!(setting(&resolved, "bn1"), "stats=batch, update=ema(0.9), affine=both, var=unbiased, lr=3");
    assert_eq!(setting(&resolved, "layer3.0.bn1"), "stats=batch, update=ema(0.9), affine=gamma, var=unbiased, lr=3");
    assert_eq!(setting(&resolved, "layer4.1.bn2"), "stats=running, update=off, affine=gamma, var=biased, lr=0.5");
    assert_eq!(setting(&resolved, "layer2.1.conv2"), "weights=frozen");
    assert_eq!(setting(&resolved, "layer3.0.downsample.0"), "weights=train");
    assert_eq!(setting(&resolved, "fc"), "weights=train");
}

#[test]
fn resolving_forgets_an_earlier_policy() {
    let full = policy::resolve(&Policy::recipe("full").unwrap(), network("resnet18")).unwrap();
    let again = policy::resolve(&Policy::recipe("head").unwrap(), full.graph).unwrap();
    let fresh = policy::resolve(&Policy::recipe("head").unwrap(), network("resnet18")).unwrap();
    assert_eq!(again.graph, fresh.graph);
}

#[test]
fn malformed_rules_are_explained() {
    let write = "write head, kind:…, last:…, name:…, index:…, block:…, from:…";
    let range = "a range of layer numbers, such as index:10..20, index:-20.. or index:3, or within a model that is a layer, \
                 index:efficientnetb0/100..";
    let axes = "the axes are weights, lr, stats, update, affine, var, domain, dropout";
    let cases = [
        ("kind:bn", "there is no `->`; write SELECTOR -> axis=value, axis=value".to_owned()),
        ("-> lr=1", format!("a selector is missing; {write}")),
        ("kind:bn & -> lr=1", format!("a selector is missing; {write}")),
        ("bn -> lr=1", format!("`bn` is not a selector; {write}")),
        ("kynd:bn -> lr=1", format!("unknown selector `kynd:` in `kynd:bn` (did you mean `kind`?); {write}")),
        (
            "kind: -> lr=1",
            "`kind:` is incomplete: after `kind:` comes a kind of layer, such as kind:bn, or kind:dropout? where there \
             may be none"
                .into(),
        ),
        (
            "kind:linaer -> lr=1",
            "unknown kind `linaer` (did you mean `linear`?); the kinds are conv, bn, linear, relu, relu6, silu, \
             hard_swish, hard_sigmoid, sigmoid, elu, gelu, gelu_tanh, mish, tanh, softplus, leaky_relu, scale_by, add, scale, \
             dropout, stochastic_depth, max_pool, avg_pool, concat, slice, shuffle, multiply, pad, layer_norm, group_norm, \
             layer_scale, binary"
                .into(),
        ),
        ("name:[a -> lr=1", "bad pattern `[a`: unclosed character class; missing ']'".into()),
        (
            "index:x -> lr=1",
            format!("`x` in `index:x` is not {range}"),
        ),
        (
            "index:.. -> lr=1",
            format!("`..` in `index:..` is not {range}"),
        ),
        ("index:5..2 -> lr=1", "`index:5..2` is an empty range".into()),
        ("index:3..3 -> lr=1", "`index:3..3` is an empty range".into()),
        ("index:-1..-1 -> lr=1", "`index:-1..-1` is an empty range".into()),
        ("block:5..2 -> lr=1", "`block:5..2` is an empty range".into()),
        ("block:-1..-1 -> lr=1", "`block:-1..-1` is an empty range".into()),
        ("from:block:-1..0 -> lr=1", "`block:-1..0` is an empty range".into()),
        (
            "block: -> lr=1",
            "`block:` is incomplete: after `block:` comes a range of block numbers or a pattern, such as block:2..5, \
             block:-1 or block:layer3.*"
                .into(),
        ),
        ("kind:bn ->", format!("an axis is missing; write axis=value, where {axes}")),
        ("kind:bn -> lr=1,", format!("an axis is missing; write axis=value, where {axes}")),
        ("kind:bn -> frozen", format!("`frozen` has no `=`; write axis=value, where {axes}")),
        ("kind:bn -> stat=batch", format!("unknown axis `stat` in `stat=batch` (did you mean `stats`?); {axes}")),
        ("kind:bn -> weights=yes", "`weights=yes`: weights is train or frozen, not `yes`".into()),
        ("kind:bn -> affine=all", "`affine=all`: affine is none, gamma, beta or both, not `all`".into()),
        ("kind:dropout -> dropout=0.2", "`dropout=0.2`: dropout is on or off, not `0.2`".into()),
        ("kind:bn -> var=none", "`var=none`: var is biased or unbiased, not `none`".into()),
        ("kind:bn -> lr=-1", "`lr=-1`: lr is a multiplier, a number of at least 0, not `-1`".into()),
        ("kind:bn -> lr=inf", "`lr=inf`: lr is a multiplier, a number of at least 0, not `inf`".into()),
        ("kind:bn -> lr=NaN", "`lr=NaN`: lr is a multiplier, a number of at least 0, not `NaN`".into()),
        ("kind:bn -> lr=1, stats=batch, lr=1", "`lr=1` sets lr a second time".into()),
    ];
    for (text, reason) in cases {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert_eq!(error, format!("rule `{text}`: {reason}"));
    }
    for value in [
        "ema",
        "blend",
        "blend(0)",
        "blend(1)",
        "blend(NaN)",
        "blend(0.5",
        "blend(0.2,0.3)",
        "renorm",
        "renorm(3)",
        "renorm(0.9,5)",
        "renorm(3,-1)",
        "renorm(inf,5)",
        "renorm(3,NaN)",
        "renorm(3,5,7)",
    ] {
        let error = format!("kind:bn -> stats={value}").parse::<Rule>().unwrap_err().to_string();
        let accepted = "stats is running, batch, blend(<alpha>) with 0 < alpha < 1, or renorm(<rmax>,<dmax>) with rmax \
                        ≥ 1 and dmax ≥ 0";
        assert_eq!(error, format!("rule `kind:bn -> stats={value}`: `stats={value}`: {accepted}, not `{value}`"));
    }
    for value in ["ghost", "ghost(0)", "ghost(-2)", "ghost(1.5)", "ghost()", "ghost(99999999999999999999)", "all"] {
        let error = format!("kind:bn -> domain={value}").parse::<Rule>().unwrap_err().to_string();
        let accepted = "domain is batch, ghost(<k>) with k samples, at least 1, or accumulated";
        assert_eq!(error, format!("rule `kind:bn -> domain={value}`: `domain={value}`: {accepted}, not `{value}`"));
    }
    for value in ["ema(1)", "ema(-0.1)", "ema(x)", "ema(0.9", "ema()", "ema(NaN)", "ema(0.9, 0.1)", "EMA(0.9)"] {
        let error = format!("kind:bn -> update={value}").parse::<Rule>().unwrap_err().to_string();
        let accepted = "update is off, ema, ema(<keep>) with 0 ≤ keep < 1, or cumulative";
        assert_eq!(error, format!("rule `kind:bn -> update={value}`: `update={value}`: {accepted}, not `{value}`"));
    }
    let error = format!("name:{} -> lr=1", "[!a]".repeat(100)).parse::<Rule>().unwrap_err().to_string();
    assert!(error.ends_with("a pattern has at most 256 bytes; this one has 400"), "{error}");
}

#[test]
fn rules_that_miss_the_network_are_errors() {
    let last = network("resnet18").layers().len() - 1;
    let cases = [
        ("name:nothing* -> lr=1", "`name:nothing*` matches no layer: the network has no name like it".to_owned()),
        (
            "name:layer4.1.bn3 -> lr=1",
            "`name:layer4.1.bn3` matches no layer: the network has no name like it (did you mean `layer4.1.bn1`?)"
                .into(),
        ),
        ("!name:nothing -> lr=1", "`name:nothing` matches no layer: the network has no name like it".into()),
        (
            "index:900.. -> lr=1",
            format!("`index:900..` matches no layer: the network's layers are numbered 0 to {last}"),
        ),
        (
            "block:8 -> lr=1",
            "`block:8` matches no layer: the network has 8 blocks, numbered 0 to 7: layer1.0, layer1.1, layer2.0, \
             layer2.1, layer3.0, layer3.1, layer4.0, layer4.1"
                .into(),
        ),
        (
            "from:block:layer5.0 -> lr=1",
            "`from:block:layer5.0` matches no layer: the network has 8 blocks, numbered 0 to 7 (did you mean \
             `layer1.0`?): layer1.0, layer1.1, layer2.0, layer2.1, layer3.0, layer3.1, layer4.0, layer4.1"
                .into(),
        ),
        (
            "kind:dropout -> dropout=on",
            "`kind:dropout` matches no layer: the network has no layer of kind dropout".into(),
        ),
        (
            "kind:conv & name:conv1 -> dropout=on",
            "`dropout=on` is for dropout and stochastic_depth layers, but the rule selects conv1".into(),
        ),
        (
            "kind:bn & from:layr3.0.conv1 -> lr=1",
            "`from:layr3.0.conv1`: the network has no layer `layr3.0.conv1` (did you mean `layer3.0.conv1`?)".into(),
        ),
        ("from:layer -> lr=1", "`from:layer`: the network has no layer `layer`".into()),
        ("kind:bn & name:fc -> lr=1", "no layer of the network is `kind:bn & name:fc`".into()),
        ("!index:0.. -> lr=1", "no layer of the network is `!index:0..`".into()),
        ("kind:avg_pool & kind:bn -> lr=1", "no layer of the network is `kind:avg_pool & kind:bn`".into()),
        (
            "kind:conv & name:conv1 -> stats=batch",
            "`stats=batch` is for batch norms, but the rule selects conv1".into(),
        ),
        (
            "kind:bn -> weights=train",
            "`weights=train` is for conv and linear layers, but the rule selects bn1, layer1.0.bn1, layer1.0.bn2, \
             layer1.1.bn1 and 16 more"
                .into(),
        ),
        ("kind:relu & name:relu -> lr=2", "`lr=2` is for layers with parameters, but the rule selects relu".into()),
    ];
    for (rule, reason) in cases {
        assert_eq!(resolve(&[rule]).unwrap_err().to_string(), format!("rule `{rule}`: {reason}"));
    }

    let mut b = Builder::new();
    let x = b.input(4, 1, 1, 3).unwrap();
    let x = b.conv2d("conv", x, 8, Window::square(1, 1, 0), true).unwrap();
    let plain = b.finish(x).unwrap();
    let resolve = |rule: &str| policy::resolve(&rules(&[rule]), plain.clone());
    let reason = |rule| resolve(rule).unwrap_err().to_string();
    assert!(reason("kind:bn -> lr=1").ends_with("`kind:bn` matches no layer: the network has no layer of kind bn"));
    assert!(reason("last:linear -> lr=1").ends_with("the network has no layer of kind linear"));
    assert!(reason("block:0 -> lr=1").ends_with("the network has no blocks that are named"));
    assert!(resolve("!kind:bn -> weights=train").unwrap().trains());

    // Recipes that are about more than batch norms do without them, and a head need not be a linear layer.
    for recipe in ["full", "full-frozen-bn", "keras-guide", "head", "head-then-full"] {
        assert!(policy::resolve(&Policy::recipe(recipe).unwrap(), plain.clone()).unwrap().trains(), "{recipe}");
    }
    assert!(policy::resolve(&Policy::recipe("bn-only").unwrap(), plain.clone()).is_err());
}

#[test]
fn batch_statistics_that_nothing_follows_are_refused() {
    assert_eq!(
        resolve(&["kind:bn & from:layer4.1 -> stats=batch"]).unwrap_err().to_string(),
        "layer4.1.bn1, layer4.1.bn2: stats=batch with update=off would train against each batch's own statistics but \
         run on running statistics that never follow; set update=ema(0.9) to let them follow, or stats=running to \
         train on them"
    );
    assert!(resolve(&["kind:bn -> stats=batch", "kind:bn -> update=ema(0.9)"]).is_ok());
    let error = resolve(&["kind:bn & from:layer4.1 -> stats=renorm( 3, 5 )"]).unwrap_err().to_string();
    assert!(error.starts_with("layer4.1.bn1, layer4.1.bn2: stats=renorm(3,5) with update=off would train"), "{error}");
    assert!(resolve(&["kind:bn -> stats=renorm(3,5), update=cumulative"]).unwrap().warnings.is_empty());
}

#[test]
fn a_blend_with_an_anchor_that_stays_draws_a_warning() {
    let warnings = |rule: &str| resolve(&[rule]).unwrap().warnings.iter().map(Warning::to_string).collect::<Vec<_>>();
    assert_eq!(
        warnings("name:layer4.1.bn1 -> stats=blend(0.3)"),
        ["layer4.1.bn1: stats=blend with update=off trains on statistics that inference, which goes by the running \
          ones alone, does not see; update=ema(0.9) lets those follow"]
    );
    assert!(warnings("name:layer4.1.bn1 -> stats=blend(0.3), update=ema(0.9)").is_empty());
}

#[test]
fn ghost_batches_must_fill_the_batch_and_take_statistics() {
    let rule = "kind:bn & from:layer4 -> stats=batch, update=ema(0.9), domain=ghost(3)";
    assert_eq!(
        resolve(&[rule]).unwrap_err().to_string(),
        "layer4.0.bn1, layer4.0.bn2, layer4.0.downsample.1, layer4.1.bn1 and 1 more: domain=ghost(3) cuts a batch into \
         runs of 3 samples, but this one has 8; choose a batch that is a multiple of 3, or another k for \
         domain=ghost(k)"
    );
    // A ghost batch larger than the batch does not fill it either; one as large does.
    assert!(resolve(&["kind:bn -> update=cumulative, domain=ghost(16)"]).is_err());
    let whole = resolve(&["kind:bn -> update=cumulative, domain=ghost(8)"]).unwrap();
    assert_eq!(setting(&whole, "bn1"), "stats=running, update=cumulative, affine=none, var=unbiased, domain=ghost(8)");
    assert_eq!(whole.warnings, []);

    // 2×2 pixels of layer4: what is few or single is counted in the ghost batch.
    let few = resolve(&["kind:bn & from:layer4 -> stats=batch, update=ema(0.9), domain=ghost(2)"]).unwrap();
    assert!(matches!(&few.warnings[..], [Warning::FewValues { layers, values: 8 }] if layers.len() == 5));
    let network = models::build("resnet18", 8, (32, 32), 10).unwrap();
    let single = rules(&["name:layer4.1.bn2 -> update=cumulative, domain=ghost(1)"]);
    let error = policy::resolve(&single, network).unwrap_err();
    assert!(matches!(error, PolicyError::SingleValue { layers } if layers == "layer4.1.bn2"));

    // What micro-batches have together is known before training.
    let network = models::build("resnet18", 1, (32, 32), 10).unwrap();
    let together = policy::resolve(&Policy::recipe("full-accumulated").unwrap(), network).unwrap();
    let error = together.check_training(1).unwrap_err();
    assert!(matches!(&error, PolicyError::SingleValue { layers } if layers.contains("layer4.0.bn1")), "{error}");
    together.check_training(2).unwrap();

    let idle = resolve(&["name:bn1 -> domain=ghost(3)"]).unwrap();
    assert_eq!(
        idle.warnings.iter().map(Warning::to_string).collect::<Vec<_>>(),
        ["bn1: the domain changes nothing under stats=running with update=off, which takes no statistics of a batch"]
    );
}

#[test]
fn statistics_need_values() {
    let at = |batch, side, rule: &str| {
        policy::resolve(&rules(&[rule]), models::build("resnet18", batch, (side, side), 10).unwrap())
    };
    let message = "layer4.0.bn1, layer4.0.bn2, layer4.0.downsample.1, layer4.1.bn1 and 1 more: the statistics of a \
                   batch would be taken over a single value a channel, whose variance is nothing; raise the batch (k \
                   under domain=ghost(k)) or the image size, or set stats=running, update=off there";
    // Either axis needs the batch's moments.
    for rule in ["kind:bn -> stats=batch, update=cumulative", "kind:bn -> update=ema(0.9)"] {
        assert_eq!(at(1, 32, rule).unwrap_err().to_string(), message);
        let resolved = at(2, 32, rule).unwrap();
        let [Warning::FewValues { layers, values: 2 }] = &resolved.warnings[..] else {
            panic!("{:?}", resolved.warnings)
        };
        // 2×2 pixels of layer3 and one of layer4.
        assert_eq!(layers.len(), 10);
        assert_eq!(at(16, 32, rule).unwrap().warnings, []);
    }
    assert!(at(1, 32, "kind:bn -> affine=both").unwrap().warnings.is_empty());
    assert_eq!(
        at(15, 32, "name:layer4.1.bn2 -> update=cumulative").unwrap().warnings[0].to_string(),
        "layer4.1.bn2: the statistics of a batch are taken over as few as 15 values per channel (images × height × \
         width; 16 or more are advised); a larger batch (k under domain=ghost(k)) or image makes them less noisy"
    );
}

#[test]
fn half_frozen_blocks_draw_a_warning() {
    let resolved = resolve(&["from:layer4.0.conv2 -> weights=train"]).unwrap();
    let [warning] = &resolved.warnings[..] else { panic!("{:?}", resolved.warnings) };
    assert_eq!(
        warning.to_string(),
        "half of the residual block layer4.0 is frozen: layer4.0.conv2, layer4.0.downsample.0 train but \
         layer4.0.conv1 do not; `block:6` selects all of it, and `from:block:6` what follows, too"
    );
    assert_eq!(resolve(&["from:block:6 -> weights=train"]).unwrap().warnings, []);
    // A range has two ends.
    assert_eq!(resolve(&["index:5..30 -> weights=train"]).unwrap().warnings.len(), 2);
    assert_eq!(resolve(&["from:layer4 -> weights=train"]).unwrap().warnings, []);
    // One convolution of every block is meant; of two blocks, it may not be.
    assert_eq!(resolve(&["name:*.conv2 -> weights=train"]).unwrap().warnings, []);
    assert_eq!(resolve(&["name:layer4.*.conv2 -> weights=train"]).unwrap().warnings.len(), 2);
}

#[test]
fn a_keep_that_looks_like_a_momentum_draws_a_warning() {
    let warnings = |keep: &str| {
        let rule = format!("name:layer1.?.bn1 -> update=ema({keep})");
        resolve(&[rule.as_str()]).unwrap().warnings.iter().map(Warning::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("0.1"),
        ["layer1.0.bn1, layer1.1.bn1: ema(0.1) keeps only 0.1 of the running statistics at each step; if 0.1 is a \
          PyTorch momentum, write ema(0.9)"]
    );
    assert_eq!(
        warnings("0"),
        ["layer1.0.bn1, layer1.1.bn1: ema(0) keeps only 0 of the running statistics at each step"]
    );
    assert!(warnings("0.5").is_empty());
    // Only what is in force counts, and each value once.
    let set = ["kind:bn -> update=ema(0.1)", "kind:bn & !name:bn1 -> update=ema(0.2)", "name:bn1 -> update=off"];
    assert_eq!(resolve(&set).unwrap().warnings.len(), 1);
    assert_eq!(resolve(&set[..2]).unwrap().warnings.len(), 2);
}

// ---- Dropout, gates, and the names and numbers of a file ----

/// A small network as Keras's EfficientNet is: a stem, `blocks` inverted residual blocks with squeeze-and-excitation whose
/// images may skip them, and a head. Layers have Keras's names, and with one block their places in `model.layers`.
fn keras_network(blocks: usize) -> Graph {
    let mut b = Builder::new();
    let place = |b: &mut Builder, name: &str| {
        let number = KERAS_LAYERS.iter().position(|(keras, _)| *keras == name).filter(|_| blocks == 1);
        b.position(number.as_slice());
        name.to_owned()
    };
    let conv = |b: &mut Builder, name: String, x: NodeId, channels: usize| {
        b.conv2d(&name, x, channels, Window::square(1, 1, 0), false).unwrap()
    };
    let mut x = b.input(8, 8, 8, 3).unwrap();
    let name = place(&mut b, "stem_conv");
    x = b.conv2d(&name, x, 8, Window { kernel: [3, 3], stride: [2, 2], padding: [0, 0, 1, 1] }, false).unwrap();
    let name = place(&mut b, "stem_bn");
    x = b.batch_norm(&name, x, 1e-3).unwrap();
    let name = place(&mut b, "stem_activation");
    x = b.activation(&name, x, Act::Silu).unwrap();
    for block in 0..blocks {
        let block = format!("block1{}", char::from(b'a' + block as u8));
        b.block(Some(&block));
        let named = |layer: &str| format!("{block}_{layer}");
        let skip = x;
        let name = place(&mut b, &named("dwconv"));
        let window = Window::square(3, 1, 1);
        let mut y = b.grouped_conv2d(&name, x, 8, window, 8, false).unwrap();
        let name = place(&mut b, &named("bn"));
        y = b.batch_norm(&name, y, 1e-3).unwrap();
        let name = place(&mut b, &named("activation"));
        y = b.activation(&name, y, Act::Silu).unwrap();
        let name = place(&mut b, &named("se_squeeze"));
        let mut gate = b.global_avg_pool(&name, y).unwrap();
        let name = place(&mut b, &named("se_reduce"));
        gate = conv(&mut b, name.clone(), gate, 4);
        // Keras's layer has its activation inside: one place there, two layers here.
        gate = b.activation(&format!("{name}/activation"), gate, Act::Silu).unwrap();
        let name = place(&mut b, &named("se_expand"));
        gate = conv(&mut b, name.clone(), gate, 8);
        gate = b.activation(&format!("{name}/activation"), gate, Act::Sigmoid).unwrap();
        let name = place(&mut b, &named("se_excite"));
        y = b.scale(&name, y, gate).unwrap();
        let name = place(&mut b, &named("project_conv"));
        y = conv(&mut b, name, y, 8);
        let name = place(&mut b, &named("project_bn"));
        y = b.batch_norm(&name, y, 1e-3).unwrap();
        let name = place(&mut b, &named("drop"));
        y = b.stochastic_depth(&name, y, 0.1).unwrap();
        let name = place(&mut b, &named("add"));
        x = b.add(&name, y, skip).unwrap();
    }
    b.block(None);
    let name = place(&mut b, "avg_pool");
    x = b.global_avg_pool(&name, x).unwrap();
    let name = place(&mut b, "top_dropout");
    x = b.dropout(&name, x, 0.2).unwrap();
    let name = place(&mut b, "predictions");
    let logits = b.linear(&name, x, 3).unwrap();
    b.finish(logits).unwrap()
}

/// `model.layers` of a Keras model with one block: names, and the class of each.
const KERAS_LAYERS: [(&str, &str); 22] = [
    ("input_1", "InputLayer"),
    ("rescaling", "Rescaling"),
    ("normalization", "Normalization"),
    ("stem_conv_pad", "ZeroPadding2D"),
    ("stem_conv", "Conv2D"),
    ("stem_bn", "BatchNormalization"),
    ("stem_activation", "Activation"),
    ("block1a_dwconv", "DepthwiseConv2D"),
    ("block1a_bn", "BatchNormalization"),
    ("block1a_activation", "Activation"),
    ("block1a_se_squeeze", "GlobalAveragePooling2D"),
    ("block1a_se_reshape", "Reshape"),
    ("block1a_se_reduce", "Conv2D"),
    ("block1a_se_expand", "Conv2D"),
    ("block1a_se_excite", "Multiply"),
    ("block1a_project_conv", "Conv2D"),
    ("block1a_project_bn", "BatchNormalization"),
    ("block1a_drop", "Dropout"),
    ("block1a_add", "Add"),
    ("avg_pool", "GlobalAveragePooling2D"),
    ("top_dropout", "Dropout"),
    ("predictions", "Dense"),
];

/// The seed's answer, over a Keras file: `for layer in model.layers[:idx]: layer.trainable = False`, then `for layer in
/// model.layers: if isinstance(layer, BatchNormalization): layer.trainable = True`.
#[test]
fn index_counts_as_the_keras_file_does() {
    let network = keras_network(1);
    for idx in 0..KERAS_LAYERS.len() {
        let mut trainable = [true; KERAS_LAYERS.len()];
        trainable[..idx].fill(false);
        for (trainable, (_, class)) in trainable.iter_mut().zip(KERAS_LAYERS) {
            *trainable |= class == "BatchNormalization";
        }
        let has_weights = ["Conv2D", "DepthwiseConv2D", "Dense", "BatchNormalization"];
        let theirs: Vec<&str> = KERAS_LAYERS
            .iter()
            .zip(trainable)
            .filter(|((_, class), trainable)| *trainable && has_weights.contains(class))
            .map(|((name, _), _)| *name)
            .collect();

        let policy = rules(&[
            &format!("index:{idx}.. -> weights=train"),
            "kind:bn -> stats=batch, update=ema(0.99), affine=both",
        ]);
        let resolved = policy::resolve(&policy, network.clone()).unwrap();
        let trains = |l: &&Layer| l.setting.weights || l.setting.batch_norm.is_some_and(|m| m.affine == Affine::Both);
        let ours: Vec<&str> = resolved.graph.layers().iter().filter(trains).map(|l| l.name.as_str()).collect();
        assert_eq!(ours, theirs, "idx = {idx}");
    }
    let select = |selector: &str| {
        let rule: Rule = format!("{selector} -> lr=1").parse().unwrap();
        let selected = rule.select(&network).map_err(|error| error.to_string())?;
        Ok::<_, String>(selected.iter().map(|id| network.layers()[id.index()].name.clone()).collect::<Vec<_>>())
    };
    assert_eq!(select("index:12").unwrap(), ["block1a_se_reduce", "block1a_se_reduce/activation"]);
    assert_eq!(select("index:10..=11").unwrap(), ["block1a_se_squeeze"]);
    // Behind what shares its place.
    assert_eq!(select("from:block1a_se_expand/activation & index:..14").unwrap(), ["block1a_se_expand/activation"]);
    let error = "rule `index:1..4 -> lr=1`: `index:1..4` matches no layer: the network's layers are numbered 4 to 21, as \
                 in their file, but for those that compute nothing here";
    assert_eq!(select("index:1..4").unwrap_err(), error);
}

#[test]
fn an_alias_is_as_good_as_a_name() {
    let mut network = keras_network(1);
    let layer = |name: &str| LayerId::new(network.layers().iter().position(|l| l.name == name).unwrap());
    let (conv, bn) = (layer("block1a_project_conv"), layer("block1a_project_bn"));
    network.set_alias(conv, "features.1.0.block.2.0").unwrap();
    network.set_alias(bn, "features.1.0.block.2.1").unwrap();
    network.set_alias(bn, "features.1.0.block.2.1").unwrap();
    for taken in ["features.1.0.block.2.0", "stem_conv", ""] {
        let error = network.set_alias(bn, taken).unwrap_err().to_string();
        assert!(error.starts_with(&format!("block1a_project_bn: alias `{taken}`: ")), "{error}");
    }
    let select = |selector: &str| format!("{selector} -> lr=1").parse::<Rule>().unwrap().select(&network);
    for name in ["block1a_project_conv", "features.1.0.block.2.0"] {
        assert_eq!(select(&format!("name:{name}")).unwrap(), [conv]);
        assert_eq!(select(&format!("from:{name}")).unwrap(), select("from:block1a_project_conv").unwrap());
    }
    assert_eq!(select("name:features.*").unwrap(), [conv, bn]);
    assert_eq!(select("from:features.1.0").unwrap()[0], conv);
    // The names of what is inside a Keras layer follow a slash.
    assert_eq!(
        select("from:block1a_se_expand").unwrap().len(),
        1 + select("from:block1a_se_expand/activation").unwrap().len()
    );
    let error = select("name:features.1.0.block.2.2").unwrap_err().to_string();
    assert!(error.contains("did you mean `features.1.0.block.2."), "{error}");
}

#[test]
fn recipes_drop_as_what_they_stand_for_does() {
    for recipe in RECIPES {
        let stages = policy::resolve_stages(&Policy::recipe(recipe.name).unwrap(), &keras_network(2)).unwrap();
        let keras = ["head", "keras-guide"].contains(&recipe.name);
        for (from, stage) in stages {
            let depth = !keras && (recipe.name != "head-then-full" || from > 0.0);
            let words = |layer: &str| setting(&stage, layer);
            assert_eq!(words("top_dropout"), "dropout=on", "{} {from}", recipe.name);
            let expected = if depth { "dropout=on" } else { "dropout=off" };
            assert_eq!([words("block1a_drop"), words("block1b_drop")], [expected; 2], "{} {from}", recipe.name);
            assert_eq!(words("block1a_add"), "");
            assert!(!stage.warnings.iter().any(|w| matches!(w, Warning::HalfFrozenBlock { .. })), "{}", recipe.name);
        }
    }
    let off = policy::resolve(
        &Policy::recipe("full").unwrap().with_rules(&["!kind:conv -> dropout=off"]).unwrap(),
        keras_network(1),
    )
    .unwrap();
    assert_eq!(count(&off, |l| l.setting.dropout), 0);
    assert_eq!(setting(&off, "top_dropout"), "dropout=off");
    // That there may be none is said by a question mark, and no more than that.
    let absent = rules(&["kind:max_pool? & from:stem_bn -> dropout=on", "kind:dropout? -> lr=2"]);
    let error = policy::resolve(&absent, keras_network(1)).unwrap_err().to_string();
    assert!(error.contains("`lr=2` is for layers with parameters, but the rule selects top_dropout"), "{error}");
    let error = policy::select("kind:dropout?", LayerKind::Bn, &keras_network(1)).unwrap_err().to_string();
    assert!(error.ends_with("none of the layers that it selects is of kind bn"), "{error}");
}

#[test]
fn half_frozen_gates_draw_a_warning() {
    let warnings = |blocks: usize, set: &str| {
        let resolved = policy::resolve(&rules(&[set]), keras_network(blocks)).unwrap();
        resolved.warnings.iter().map(Warning::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings(4, "from:block1c_se_expand -> weights=train"),
        [
            "half of the residual block block1c is frozen: block1c_se_expand, block1c_project_conv train but \
             block1c_dwconv, block1c_se_reduce do not; `block:2` selects all of it, and `from:block:2` what follows, too",
            "half of the squeeze-and-excitation that ends at block1c_se_excite is frozen: block1c_se_expand train but \
             block1c_se_reduce do not; they are one gate, so let all of them train, or none",
        ]
    );
    assert!(warnings(4, "from:block:2 -> weights=train").is_empty());
    // The gate is whole where the cut is elsewhere in the block, and one that is meant throughout is no cut.
    assert_eq!(warnings(4, "from:block1c_project_conv -> weights=train").len(), 1);
    assert!(warnings(4, "name:*_se_reduce -> weights=train").is_empty());
    assert_eq!(warnings(4, "name:block1[ab]_se_reduce -> weights=train").len(), 4);
    assert!(warnings(4, "name:block1[abc]_se_reduce -> weights=train").is_empty());
    // Other pools and convolutions are no part of one.
    assert!(warnings(1, "last:linear -> weights=train").is_empty());
}

// ---- Files ----

#[test]
fn policy_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Policy::load(path.to_str().unwrap())
    };
    let policy =
        load("base = 'head'\nrules = ['kind:bn->stats=batch,update=ema( 0.95 )', 'last:linear -> lr=10']").unwrap();
    assert_eq!(policy.name, "mine");
    assert_eq!(
        policy.rules.iter().map(Rule::to_string).collect::<Vec<_>>(),
        [
            "head -> weights=train",
            "kind:dropout? -> dropout=on",
            "kind:bn -> stats=batch, update=ema(0.95)",
            "last:linear -> lr=10"
        ]
    );
    assert_eq!(load("base = 'bn-affine'").unwrap().rules.len(), 4);
    assert_eq!(load("rules = ['kind:bn -> affine=both']").unwrap().rules.len(), 1);

    let file = path.display();
    for (text, reason) in [
        ("", "there are no rules; write rules = [\"SELECTOR -> axis=value\"], base = \"RECIPE\", or both"),
        ("base = 'head'\nrule = []", "line 2: unknown field `rule`, expected one of `base`, `rules`, `stages`"),
        ("base = 'head'\n\nrules = 3", "line 3: invalid type: integer `3`, expected a sequence"),
        ("base = 'haed'", "unknown policy `haed` (did you mean `head`?); it is one of full, full-frozen-bn, "),
        ("rules = ['kind:bn -> lr']", "rule `kind:bn -> lr`: `lr` has no `=`; "),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{file}: {reason}")), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = load("rules = [\n'a'\n'b'").unwrap_err().to_string();
    assert!(error.starts_with(&format!("{file}: line 3: ")) && !error.contains('\n'), "{error}");

    let missing = folder.path().join("none.toml");
    let error = Policy::load(missing.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", missing.display())), "{error}");
    assert_eq!(
        Policy::from_toml("mine", "base = 1").unwrap_err().to_string(),
        "mine: line 1: invalid type: integer `1`, expected a string"
    );
}

#[test]
fn unknown_recipes_list_the_known() {
    assert_eq!(
        Policy::load("bn-onyl").unwrap_err().to_string(),
        "unknown policy `bn-onyl` (did you mean `bn-only`?); it is one of full, full-frozen-bn, keras-guide, head, \
         bn-only, bn-affine, head-adapt, full-then-frozen-bn, head-then-full, full-renorm, full-ghost, full-accumulated, \
         bn-blend, or a file whose name ends in .toml"
    );
}

// ---- Properties ----

/// A term's text, and what it should find, worked out in the plainest way.
#[derive(Clone, Debug)]
enum Term {
    Kind(&'static str),
    Last(&'static str),
    Name(String),
    Index(usize, usize, Form),
    /// Numbers from the start, or as many from the end.
    Block(usize, usize, Form, bool),
    BlockName(String),
    From(prop::sample::Index),
    FromBlock(usize),
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Half,
    Closed,
    Start,
    End,
    One,
}

impl Term {
    fn text(&self, layers: &[Layer]) -> String {
        match self {
            Self::Kind(kind) => format!("kind:{kind}"),
            Self::Last(kind) => format!("last:{kind}"),
            Self::Name(glob) => format!("name:{glob}"),
            Self::Index(a, b, Form::Half) => format!("index:{a}..{b}"),
            Self::Index(a, b, Form::Closed) => format!("index:{a}..={b}"),
            Self::Index(a, _, Form::Start) => format!("index:{a}.."),
            Self::Index(_, b, Form::End) => format!("index:..{b}"),
            Self::Index(a, _, Form::One) => format!("index:{a}"),
            Self::Block(a, b, form, back) => {
                let text = |n: usize| if *back { format!("-{}", n + 1) } else { n.to_string() };
                // Backwards the larger number comes first.
                let (a, b) = if *back { (text(*b), text(*a)) } else { (text(*a), text(*b)) };
                match form {
                    Form::Half => format!("block:{a}..{b}"),
                    Form::Closed => format!("block:{a}..={b}"),
                    Form::Start => format!("block:{a}.."),
                    Form::End => format!("block:..{b}"),
                    Form::One => format!("block:{a}"),
                }
            }
            Self::BlockName(glob) => format!("block:{glob}"),
            Self::From(start) => format!("from:{}", start.get(layers).name),
            Self::FromBlock(n) => format!("from:block:{n}"),
        }
    }

    fn holds(&self, i: usize, layers: &[Layer]) -> bool {
        let kind = layers[i].kind.name();
        match self {
            Self::Kind(wanted) => kind == *wanted,
            Self::Last(wanted) => kind == *wanted && layers[i + 1..].iter().all(|l| l.kind.name() != *wanted),
            Self::Name(glob) => glob_matches(glob.as_bytes(), layers[i].name.as_bytes()),
            Self::Index(a, b, Form::Half) => i >= *a && i < *b,
            Self::Index(a, b, Form::Closed) => i >= *a && i <= *b,
            Self::Index(a, _, Form::Start) => i >= *a,
            Self::Index(_, b, Form::End) => i < *b,
            Self::Index(a, _, Form::One) => i == *a,
            Self::Block(a, b, form, back) => {
                let count = BLOCKS.len();
                // A place that lies before the first is below 0.
                let place = |n: usize| if *back { count as isize - 1 - n as isize } else { n as isize };
                let (a, b) = if *back { (place(*b), place(*a)) } else { (place(*a), place(*b)) };
                let Some(n) = block_of(&layers[i]).map(|n| n as isize) else { return false };
                match form {
                    Form::Half => n >= a && n < b,
                    Form::Closed => n >= a && n <= b,
                    Form::Start => n >= a,
                    Form::End => n < b,
                    Form::One => n == a,
                }
            }
            Self::BlockName(glob) => {
                layers[i].block.as_ref().is_some_and(|name| glob_matches(glob.as_bytes(), name.as_bytes()))
            }
            Self::From(start) => i >= start.index(layers.len()),
            Self::FromBlock(n) => layers[..=i].iter().any(|layer| block_of(layer) == Some(*n)),
        }
    }
}

/// Those of `resnet_tiny`.
const BLOCKS: [&str; 6] = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"];

fn block_of(layer: &Layer) -> Option<usize> {
    BLOCKS.iter().position(|block| layer.block.as_deref() == Some(*block))
}

fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => glob_matches(&glob[1..], text) || (!text.is_empty() && glob_matches(glob, &text[1..])),
        (Some(b'?'), Some(_)) => glob_matches(&glob[1..], &text[1..]),
        (Some(a), Some(b)) => a == b && glob_matches(&glob[1..], &text[1..]),
        _ => false,
    }
}

fn term() -> impl Strategy<Value = Term> {
    let kinds = || prop::sample::select(LayerKind::ALL.map(LayerKind::name).to_vec());
    let globs = ["*", "*bn*", "layer?.0.*", "layer2.*", "*.conv?", "fc", "conv1", "*1", "*downsample.1", "relu*", "x*"];
    let forms = [Form::Half, Form::Closed, Form::Start, Form::End, Form::One];
    prop_oneof![
        kinds().prop_map(Term::Kind),
        kinds().prop_map(Term::Last),
        prop::sample::select(globs.to_vec()).prop_map(|glob| Term::Name(glob.into())),
        (0usize..80, 1usize..40, prop::sample::select(forms.to_vec())).prop_map(|(a, n, form)| Term::Index(
            a,
            a + n,
            form
        )),
        (0usize..8, 1usize..4, prop::sample::select(forms.to_vec()), any::<bool>())
            .prop_map(|(a, n, form, back)| Term::Block(a, a + n, form, back)),
        prop::sample::select(vec!["*", "layer2.*", "*.0", "layer?.1", "layer3.0", "x*"])
            .prop_map(|glob| Term::BlockName(glob.into())),
        any::<prop::sample::Index>().prop_map(Term::From),
        (0usize..8).prop_map(Term::FromBlock),
    ]
}

fn assignments() -> impl Strategy<Value = String> {
    let update = prop_oneof![
        Just("off".to_owned()),
        Just("cumulative".to_owned()),
        (0.0f32..1.0).prop_map(|keep| format!("ema({keep})")),
    ];
    let stats = prop_oneof![
        Just("running".to_owned()),
        Just("batch".to_owned()),
        (f32::MIN_POSITIVE..1.0).prop_map(|alpha| format!("blend({alpha})")),
        (1.0f32..1e9, 0.0f32..1e9).prop_map(|(r, d)| format!("renorm({r},{d})")),
    ];
    let domain = prop_oneof![Just("batch".to_owned()), (1usize..=usize::MAX).prop_map(|k| format!("ghost({k})"))];
    let one_of = |values: &'static [&'static str]| prop::option::of(prop::sample::select(values));
    (
        one_of(&["train", "frozen"]),
        prop::option::of(0.0f32..1e9),
        prop::option::of(stats),
        prop::option::of(update),
        one_of(&["none", "gamma", "beta", "both"]),
        one_of(&["biased", "unbiased"]),
        prop::option::of(domain),
        one_of(&["on", "off"]),
    )
        .prop_filter_map("a rule sets something", |(weights, lr, stats, update, affine, var, domain, dropout)| {
            let set = [
                weights.map(|v| format!("weights={v}")),
                lr.map(|v| format!("lr={v}")),
                stats.map(|v| format!("stats={v}")),
                update.map(|v| format!("update={v}")),
                affine.map(|v| format!("affine={v}")),
                var.map(|v| format!("var={v}")),
                domain.map(|v| format!("domain={v}")),
                dropout.map(|v| format!("dropout={v}")),
            ];
            let set: Vec<String> = set.into_iter().flatten().collect();
            (!set.is_empty()).then(|| set.join(", "))
        })
}

fn terms() -> impl Strategy<Value = Vec<(bool, Term)>> {
    prop::collection::vec((any::<bool>(), term()), 1..4)
}

fn selector(terms: &[(bool, Term)], layers: &[Layer]) -> String {
    let text = |(negated, term): &(bool, Term)| format!("{}{}", if *negated { "!" } else { "" }, term.text(layers));
    terms.iter().map(text).collect::<Vec<_>>().join(" & ")
}

proptest! {
    #[test]
    fn selectors_agree_with_brute_force(terms in terms()) {
        let graph = network("resnet_tiny");
        let layers = graph.layers();
        let rule: Rule = format!("{} -> lr=1", selector(&terms, layers)).parse().unwrap();
        let expected: Vec<usize> = (0..layers.len())
            .filter(|&i| terms.iter().all(|(negated, term)| term.holds(i, layers) != *negated))
            .collect();
        let dead = terms.iter().any(|(negated, term)| {
            let absent_kind = *negated && matches!(term, Term::Kind(_));
            !absent_kind && (0..layers.len()).all(|i| !term.holds(i, layers))
        });
        match rule.select(&graph) {
            Ok(selected) => {
                prop_assert!(!dead && !expected.is_empty());
                prop_assert_eq!(selected.iter().map(|id| id.index()).collect::<Vec<_>>(), expected);
            }
            Err(_) => prop_assert!(dead || expected.is_empty()),
        }
    }

    #[test]
    fn rules_round_trip(terms in terms(), assignments in assignments()) {
        let graph = network("resnet_tiny");
        let rule: Rule = format!("{} -> {assignments}", selector(&terms, graph.layers())).parse().unwrap();
        let again: Rule = rule.to_string().parse().unwrap();
        prop_assert_eq!(again.to_string(), rule.to_string());
        prop_assert_eq!(again.assignments(), rule.assignments());
        prop_assert_eq!(again.select(&graph).ok(), rule.select(&graph).ok());
        let end = format!("-> {assignments}");
        prop_assert!(rule.to_string().ends_with(&end));
    }

    #[test]
    fn spaces_do_not_matter(terms in terms(), assignments in assignments()) {
        let selector = selector(&terms, network("resnet_tiny").layers());
        let tight = format!("{selector}->{assignments}").replace(' ', "");
        let loose = selector.replace('&', "  & ").replace('!', "! ").replace(':', " : ");
        let loose = format!(" {loose}  -> {} ", assignments.replace('=', " = ").replace(',', " ,"));
        let (tight, loose): (Rule, Rule) = (tight.parse().unwrap(), loose.parse().unwrap());
        prop_assert_eq!(tight.to_string(), loose.to_string());
    }

    #[test]
    fn no_text_panics(text in "[a-z:=&!>.,()*?\\[\\]{} 0-9-]{0,40}", other in any::<String>()) {
        let shapes = [format!("{text} -> lr=1"), format!("kind:bn -> {text}"), format!("name:{text} -> lr=1")];
        for text in shapes.into_iter().chain([text, other]) {
            if let Ok(rule) = text.parse::<Rule>() {
                // An error is fine; a panic is not.
                let _ = policy::resolve(&Policy { rules: vec![rule], ..Policy::new("fuzz") }, network("resnet_tiny"));
            }
        }
    }
}
