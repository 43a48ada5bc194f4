//! Every kernel on the device against its scalar reference; `src/check/` has the cases and says what is compared.

use std::sync::OnceLock;
use thawline::check::{Checker, FAMILIES, Family};
use thawline::gpu::{DeviceOptions, Limits};
use thawline::kernels::{LINEAR, accumulate};

fn check(family: &str) {
    static CHECKER: OnceLock<Checker> = OnceLock::new();
    let checker = CHECKER.get_or_init(|| {
        let options = DeviceOptions { limits: Limits::Default, ..Default::default() };
        Checker::open(&options).expect("these tests need a Vulkan, Metal or DX12 driver")
    });
    let results = checker.run_family(Family::of_name(family).expect("a family"));
    assert!(!results.is_empty());
    let mut wrong = String::new();
    for result in &results {
        println!("{result:?}");
        assert!(result.cases > 0 && result.passed + result.skipped <= result.cases);
        match (&result.failure, &result.unsupported) {
            (Some(failure), _) => wrong += &format!("\n{}: {failure}", result.kernel),
            // A variant that this device cannot run is never chosen on it.
            (None, Some(_)) => assert_eq!(result.skipped, result.cases),
            (None, None) => assert_eq!(result.passed, result.cases),
        }
    }
    assert!(wrong.is_empty(), "on {}:{wrong}", checker.info().name);
}

/// A test for each family, and none left out.
macro_rules! families {
    ($($test:ident: $family:literal,)*) => {
        $(#[test]
        fn $test() {
            check($family);
        })*

        #[test]
        fn every_family_has_a_test() {
            assert_eq!(FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>(), [$($family),*]);
        }
    };
}

families! {
    elementwise: "elementwise",
    batch_norm: "batch norm",
    folded_batch_norm: "folded batch norm",
    sums: "sums",
    pooling: "pooling",
    channels: "channels",
    padding: "padding",
    layer_norm: "layer norm",
    group_norm: "group norm",
    loss: "loss",
    optimisers: "optimisers",
    input: "input",
    convolution: "convolution",
    depthwise_convolution: "depthwise convolution",
    large_depthwise_convolution: "large depthwise convolution",
    grouped_convolution: "grouped convolution",
    not_a_number: "not a number",
}

#[test]
fn long_dispatches_fold_into_rows_that_every_adapter_takes() {
    for groups in [1, 65_535, 65_536, 200_001usize] {
        let [x, y, z] = accumulate::forward(groups * LINEAR as usize * 4).workgroups;
        assert!(x <= 65_535 && y <= 65_535 && z == 1, "{groups} → {x} × {y}");
        assert!((x * y) as usize >= groups && ((x * (y - 1)) as usize) < groups, "{groups} → {x} × {y}");
    }
}
