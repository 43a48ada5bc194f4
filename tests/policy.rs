//! Rules, selectors and recipes, from their text to the setting of each layer.

use proptest::prelude::*;
use thawline::graph::{
    Affine, BatchNormMode, Builder, Domain, Graph, Layer, LayerKind, Stats, StatsUpdate, Variance, Window,
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
            assert!(resolved.check_training().is_ok(), "{model} {recipe}");
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
fn everything_starts_frozen() {
    let resolved = resolve(&[]).unwrap();
    assert_eq!(setting(&resolved, "bn1"), "stats=running, update=off, affine=none, var=unbiased");
    assert_eq!(setting(&resolved, "conv1"), "weights=frozen");
    assert_eq!(setting(&resolved, "relu"), "");
    assert!(!resolved.trains() && !resolved.moves());
    assert_eq!(
        resolved.check_training().unwrap_err().to_string(),
        "policy `test` freezes the whole network: nothing trains and no statistics move; try `head`, or a rule such as \
         `last:linear -> weights=train`"
    );
}

#[test]
fn moving_statistics_alone_are_training() {
    let resolved = resolve(&["kind:bn -> stats=batch, update=cumulative"]).unwrap();
    assert!(!resolved.trains() && resolved.moves());
    assert!(resolved.check_training().is_ok());
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
    let write = "write kind:…, last:…, name:…, index:…, from:…";
    let axes = "the axes are weights, lr, stats, update, affine, var, domain";
    let cases = [
        ("kind:bn", "there is no `->`; write SELECTOR -> axis=value, axis=value".to_owned()),
        ("-> lr=1", format!("a selector is missing; {write}")),
        ("kind:bn & -> lr=1", format!("a selector is missing; {write}")),
        ("bn -> lr=1", format!("`bn` is not a selector; {write}")),
        ("kynd:bn -> lr=1", format!("unknown selector `kynd:` in `kynd:bn` (did you mean `kind`?); {write}")),
        ("kind: -> lr=1", "`kind:` is incomplete: after `kind:` comes a kind of layer, such as kind:bn".into()),
        (
            "kind:linaer -> lr=1",
            "unknown kind `linaer` (did you mean `linear`?); the kinds are conv, bn, linear, relu, add, \
             max_pool, avg_pool"
                .into(),
        ),
        ("name:[a -> lr=1", "bad pattern `[a`: unclosed character class; missing ']'".into()),
        (
            "index:x -> lr=1",
            "`x` in `index:x` is not a range of layer numbers, such as index:10..20, index:10.. or index:3".into(),
        ),
        (
            "index:.. -> lr=1",
            "`..` in `index:..` is not a range of layer numbers, such as index:10..20, index:10.. or index:3".into(),
        ),
        ("index:5..2 -> lr=1", "`index:5..2` is an empty range".into()),
        ("index:3..3 -> lr=1", "`index:3..3` is an empty range".into()),
        ("kind:bn ->", format!("an axis is missing; write axis=value, where {axes}")),
        ("kind:bn -> lr=1,", format!("an axis is missing; write axis=value, where {axes}")),
        ("kind:bn -> frozen", format!("`frozen` has no `=`; write axis=value, where {axes}")),
        ("kind:bn -> stat=batch", format!("unknown axis `stat` in `stat=batch` (did you mean `stats`?); {axes}")),
        ("kind:bn -> weights=yes", "`weights=yes`: weights is train or frozen, not `yes`".into()),
        ("kind:bn -> affine=all", "`affine=all`: affine is none, gamma, beta or both, not `all`".into()),
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
    for value in ["ema", "ema(1)", "ema(-0.1)", "ema(x)", "ema(0.9", "ema()", "ema(NaN)", "ema(0.9, 0.1)", "EMA(0.9)"] {
        let error = format!("kind:bn -> update={value}").parse::<Rule>().unwrap_err().to_string();
        let accepted = "update is off, ema(<keep>) with 0 ≤ keep < 1, or cumulative";
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
    assert!(resolve("!kind:bn -> weights=train").unwrap().trains());
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
        "layer4.1.bn2: the statistics of a batch are taken over as few as 15 values a channel (images × height × \
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
         layer4.0.conv1 do not"
    );
    assert_eq!(resolve(&["from:layer4 -> weights=train"]).unwrap().warnings, []);
    assert_eq!(resolve(&["name:*.conv2 -> weights=train"]).unwrap().warnings.len(), 8);
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
        ["last:linear -> weights=train", "kind:bn -> stats=batch, update=ema(0.95)", "last:linear -> lr=10"]
    );
    assert_eq!(load("base = 'full'").unwrap().rules.len(), 2);
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
    From(prop::sample::Index),
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
            Self::From(start) => format!("from:{}", start.get(layers).name),
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
            Self::From(start) => i >= start.index(layers.len()),
        }
    }
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
        any::<prop::sample::Index>().prop_map(Term::From),
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
    )
        .prop_filter_map("a rule sets something", |(weights, lr, stats, update, affine, var, domain)| {
            let set = [
                weights.map(|v| format!("weights={v}")),
                lr.map(|v| format!("lr={v}")),
                stats.map(|v| format!("stats={v}")),
                update.map(|v| format!("update={v}")),
                affine.map(|v| format!("affine={v}")),
                var.map(|v| format!("var={v}")),
                domain.map(|v| format!("domain={v}")),
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
