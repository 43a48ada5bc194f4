//! Devices: which are opened, what lesser ones run and refuse, and what is left of one that was lost.

use assert_cmd::Command;
use thawline::compile::{Optimizer, Options};
use thawline::gpu::wgpu;
use thawline::gpu::{
    Backend, Device, DeviceLimits, DeviceOptions, Fits, GpuError, Limits, Parameters, Rows, backends, list, same_gpu,
};
use thawline::graph::{Act, Graph, Sgd};
use thawline::kernels::add;
use thawline::kernels::conv2d::Variant;
use thawline::models;
use thawline::plan::{Input, Storage};
use thawline::policy::{Policy, resolve};
use thawline::rng::Rng;
use thawline::tensor::{HostTensor, Shape};
use thawline::train::{Evaluator, Images, Probe, Session, TrainError};
use thawline::weights::{self, StateDict};

const CLASSES: usize = 10;

fn open(limits: Limits) -> Result<Device, GpuError> {
    Device::open(&DeviceOptions { limits, ..DeviceOptions::default() })
}

fn options() -> Options {
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-3, decoupled: false };
    Options::new(Optimizer::Sgd(sgd))
}

fn network(policy: &str, rules: &[&str], batch: usize, size: usize) -> Graph {
    let graph = models::build("resnet_tiny", batch, (size, size), CLASSES).expect("the network");
    let policy = Policy::recipe(policy).and_then(|policy| policy.with_rules(rules)).expect("the policy");
    resolve(&policy, graph).expect("the policy suits").graph
}

fn session(device: &Device, network: &Graph) -> Result<Session, TrainError> {
    Session::new(device, network.clone(), &weights::initialise(network, 1), Input::Values, options())
}

/// Random images and labels for a network.
fn batch(network: &Graph) -> (Vec<f32>, Vec<u32>) {
    let mut rng = Rng::new(3);
    let shape = network.input_shape().expect("images");
    let mut images = vec![0.0; shape.stored_len()];
    for pixel in images.chunks_exact_mut(4) {
        pixel[..3].fill_with(|| rng.range(-2.0, 2.0) as f32);
    }
    (images, (0..shape.n()).map(|_| rng.below(CLASSES) as u32).collect())
}

/// The parameters after two steps.
fn trained(device: &Device, network: &Graph) -> Vec<HostTensor> {
    let mut session = session(device, network).expect("a session");
    let (images, labels) = batch(network);
    for _ in 0..2 {
        session.step(Images::Values(&images), &labels, 0.05).expect("a step");
    }
    session.parameters().expect("the parameters")
}

/// Nothing limited but what `limit` does.
fn at_most(limit: impl Fn(&mut DeviceLimits)) -> Limits {
    let mut limits = DeviceLimits::NONE;
    limit(&mut limits);
    Limits::AtMost(limits)
}

#[test]
fn lesser_devices_run_the_same_step_or_are_refused_by_the_limits_name() {
    let full = open(Limits::Adapter).expect("a device");
    let network = network("full", &[], 4, 16);

    // Enough for all but tiles in workgroup memory.
    let few_invocations = at_most(|l| l.max_compute_invocations_per_workgroup = 128);
    let small_enough = [
        at_most(|l| l.max_storage_buffers_per_shader_stage = 8),
        at_most(|l| l.max_uniform_buffer_binding_size = 64 << 10),
        // Smaller than the parameters of all calls together, of which a call sees its own.
        at_most(|l| l.max_uniform_buffer_binding_size = 16 << 10),
        at_most(|l| l.max_storage_buffer_binding_size = 128 << 20),
        at_most(|l| l.max_buffer_size = 128 << 20),
        at_most(|l| l.min_uniform_buffer_offset_alignment = 64),
        at_most(|l| l.min_uniform_buffer_offset_alignment = 256),
        at_most(|l| l.max_compute_workgroup_storage_size = 16 << 10),
        few_invocations,
        at_most(|l| l.max_texture_dimension_2d = 2048),
        at_most(|l| l.subgroup_sizes = [4, 4]),
        at_most(|l| l.subgroup_sizes = [4, 128]),
        at_most(|l| l.subgroup_sizes = [8, 16]),
        at_most(|l| l.subgroup_sizes = [32, 32]),
        at_most(|l| l.subgroup_sizes = [64, 64]),
        at_most(|l| l.subgroup_sizes = [128, 128]),
    ];
    for variant in [Variant::Direct, Variant::Workgroup] {
        let full = full.with_variant(variant).expect("the device has it");
        let expected = trained(&full, &network);
        for limits in small_enough {
            let device = open(limits).unwrap_or_else(|error| panic!("{limits:?}: {error}"));
            assert!(!device.supports(Variant::Subgroup.representative()), "{limits:?}");
            assert!(device.with_variant(Variant::Subgroup).is_none(), "{limits:?}");
            let Some(device) = device.with_variant(variant) else {
                assert!(variant == Variant::Workgroup && limits == few_invocations, "{variant:?}, {limits:?}");
                continue;
            };
            assert!(trained(&device, &network) == expected, "{variant:?}, {limits:?}");
        }
    }
    // The plan is really larger than the smallest of these bindings.
    let plan = session(&full, &network).expect("a session");
    assert!(plan.plan().uniforms.len() > 16 << 10, "{}", plan.plan().uniforms.len());

    let too_small = [
        ("max_storage_buffers_per_shader_stage", at_most(|l| l.max_storage_buffers_per_shader_stage = 4)),
        ("max_uniform_buffer_binding_size", at_most(|l| l.max_uniform_buffer_binding_size = 16)),
        ("min_uniform_buffer_offset_alignment", at_most(|l| l.min_uniform_buffer_offset_alignment = 512)),
        ("max_compute_workgroup_storage_size", at_most(|l| l.max_compute_workgroup_storage_size = 8 << 10)),
        ("max_compute_invocations_per_workgroup", at_most(|l| l.max_compute_invocations_per_workgroup = 32)),
        ("max_compute_workgroup_size_x", at_most(|l| l.max_compute_workgroup_size_x = 32)),
        ("max_compute_workgroups_per_dimension", at_most(|l| l.max_compute_workgroups_per_dimension = 1024)),
    ];
    for (name, limits) in too_small {
        let error = open(limits).err().unwrap_or_else(|| panic!("{name} is not looked at"));
        assert!(matches!(error, GpuError::Limit { limit, .. } if limit == name), "{error:?}");
        assert!(error.to_string().contains(name) && error.to_string().contains("they need at "), "{error}");
    }
}

#[test]
fn subgroups_of_eight_are_used_where_there_are_some() {
    let device = open(Limits::Adapter).expect("a device");
    let simulated = open(at_most(|l| l.subgroup_sizes = [8, 8])).expect("a device");
    let has_subgroups = device.info().features.contains(&"subgroup");
    assert_eq!(simulated.supports(Variant::Subgroup.representative()), has_subgroups);
    // Rows of its textures are of a fixed length.
    let narrow = at_most(|l| (l.subgroup_sizes, l.max_texture_dimension_2d) = ([8, 8], 2048));
    assert!(!open(narrow).expect("a device").supports(Variant::Subgroup.representative()));
}

#[test]
fn the_batch_that_is_said_to_fit_fits_and_one_more_does_not() {
    const LIMIT: u64 = 1 << 20;
    let device = open(at_most(|l| l.max_storage_buffer_binding_size = LIMIT)).expect("a device");
    let device = device.with_variant(Variant::Direct).expect("the device has it");
    let fits = |error: TrainError| match error {
        TrainError::Gpu(GpuError::TooLarge { fits, name, limit, .. }) => {
            assert_eq!((name, limit), ("max_storage_buffer_binding_size", LIMIT));
            fits
        }
        other => panic!("{other:?}"),
    };

    for (policy, rules, step) in [
        ("full", &[][..], 1),
        ("head", &[], 1),
        ("bn-only", &[], 1),
        // Only whole ghost batches make a batch.
        ("full-ghost", &["kind:bn -> domain=ghost(3)"], 3),
    ] {
        let at = |batch| session(&device, &network(policy, rules, batch, 32));
        let Fits::Batch(n) = fits(at(300).err().expect("it is refused")) else { panic!("{policy}: nothing fits") };
        assert!(n.is_multiple_of(step) && n > 0, "{policy}: {n}");
        let mut fitting = at(n).unwrap_or_else(|error| panic!("{policy}: {error}"));
        let (images, labels) = batch(fitting.network());
        assert!(fitting.step(Images::Values(&images), &labels, 0.01).expect("a step").loss.is_finite());
        assert_eq!(fits(at(n + step).err().expect("one more is refused")), Fits::Batch(n), "{policy}");
    }

    let start = weights::initialise(&network("full", &[], 1, 32), 1);
    let evaluator = |batch| Evaluator::new(&device, &network("full", &[], batch, 32), &start, Input::Values);
    let Fits::Batch(n) = fits(evaluator(300).err().expect("it is refused")) else { panic!("nothing fits") };
    evaluator(n).expect("an evaluator");
    fits(evaluator(n + 1).err().expect("one more is refused"));

    let graph = network("full", &[], 1, 32);
    let params = Parameters::upload(&device, &graph, &start).expect("parameters");
    let mut probe = Probe::new(&device, &graph, &params, Input::Values, |_| thawline::graph::Stats::Batch).unwrap();
    let mut pass = |batch: usize| {
        let (images, labels) = self::batch(&graph.with_batch(batch).unwrap());
        probe.pass(Images::Values(&images), &labels).map(drop)
    };
    let Fits::Batch(n) = fits(pass(300).expect_err("it is refused")) else { panic!("nothing fits") };
    pass(n).expect("a pass");
    fits(pass(n + 1).expect_err("one more is refused"));

    // At this size not even one image does, and a parameter does not depend on the batch.
    let error = session(&device, &network("full", &[], 8, 256)).err().expect("it is refused");
    assert!(error.to_string().ends_with("no batch fits"), "{error}");
    assert_eq!(fits(error), Fits::Nothing);
    let tiny = open(at_most(|l| l.max_storage_buffer_binding_size = 64 << 10)).expect("a device");
    let tiny = tiny.with_variant(Variant::Direct).expect("the device has it");
    let error = session(&tiny, &network("full", &[], 8, 16)).err().expect("it is refused");
    assert!(error.to_string().contains("ConvWeight of layer3"), "{error}");
    assert!(error.to_string().ends_with("no batch fits"), "{error}");
}

#[test]
fn whatever_is_asked_of_a_lost_device_fails_and_says_so() {
    fn lost<T>(result: Result<T, impl Into<TrainError>>, what: &str) {
        let error = result.map(drop).map_err(Into::into).expect_err(what);
        assert!(matches!(error, TrainError::Gpu(GpuError::Lost { .. })), "{what}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("was lost while") && text.ends_with("it was destroyed"), "{what}: {text}");
    }
    let device = open(Limits::Adapter).expect("a device");
    let network = network("full", &[], 4, 16);
    let (images, labels) = batch(&network);
    let images = Images::Values(&images);
    let start = weights::initialise(&network, 1);
    let params = Parameters::upload(&device, &network, &start).expect("parameters");
    let mut trained = session(&device, &network).expect("a session");
    let mut evaluator = Evaluator::new(&device, &network, &start, Input::Values).expect("an evaluator");
    let rows = Rows::new(&device, 4, 16).expect("rows");
    trained.step(images, &labels, 0.1).expect("a step");
    // On its way when the device goes.
    trained.submit(images, &labels, 0.1).expect("a step");

    device.destroy();
    device.destroy();
    lost(trained.completed(true), "a read-back under way");
    lost(trained.step(images, &labels, 0.1), "a step");
    lost(trained.parameters(), "reading parameters");
    lost(trained.optimizer_state(), "reading state");
    lost(trained.executor().wait(), "waiting");
    lost(trained.executor().profile(&[thawline::graph::Phase::Forward]), "measuring a plan");
    let slot = trained.plan().slot(Storage::Labels).expect("labels");
    lost(rows.load(trained.executor(), slot, 0, &[0]), "copying rows");
    lost(evaluator.logits(images), "inference");
    lost(evaluator.refresh(), "folding anew");
    lost(session(&device, &network), "a session");
    lost(Evaluator::of_parameters(&device, &network, &params, Input::Values), "an evaluator");
    lost(Rows::new(&device, 4, 16), "rows");
    let shape = Shape::nhwc(1, 1, 1, 4);
    let dispatch = add::forward(shape, Act::Identity, false);
    lost(device.run(&dispatch, &mut [vec![0.0; 4], vec![0.0; 4], vec![0.0; 4], vec![0.0; 4]]), "a kernel");
    lost(device.time(&dispatch, &[4; 4], 1), "measuring a kernel");
    lost(device.roofline(), "measuring the device");
    // Dropped in any order.
    drop((trained, device, evaluator));

    let unmeasured = open(Limits::Adapter).expect("a device");
    unmeasured.destroy();
    if unmeasured.supports(Variant::Subgroup.representative()) || Variant::ALL.len() > 1 {
        lost(unmeasured.variant(), "measuring the variants");
    }
}

#[test]
fn threads_may_share_a_device() {
    let device = open(Limits::Adapter).expect("a device");
    let dispatch = add::forward(Shape::nhwc(1, 1, 1, 4), Act::Identity, false);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (device, dispatch) = (&device, &dispatch);
            scope.spawn(move || {
                for turn in 0..100 {
                    let value = (100 * thread + turn) as f32;
                    let mut buffers = [vec![value; 4], vec![1.0; 4], vec![0.0; 4], vec![0.0; 4]];
                    device.run(dispatch, &mut buffers).unwrap_or_else(|error| panic!("{thread}, {turn}: {error}"));
                    assert_eq!(buffers[2], [value + 1.0; 4], "{thread}, {turn}");
                }
            });
        }
    });
}

#[test]
fn the_async_functions_give_what_the_blocking_ones_give() {
    let device = pollster::block_on(Device::open_async(&DeviceOptions::default())).expect("a device");
    let device = device.with_variant(Variant::Direct).expect("the device has it");
    let network = network("full", &[], 4, 16);
    let (images, labels) = batch(&network);
    let images = Images::Values(&images);
    let (mut one, mut other) = (session(&device, &network).unwrap(), session(&device, &network).unwrap());
    for _ in 0..3 {
        let totals = pollster::block_on(other.step_async(images, &labels, 0.05)).expect("a step");
        assert_eq!(one.step(images, &labels, 0.05).expect("a step"), totals);
    }
    let parameters = pollster::block_on(other.parameters_async()).expect("the parameters");
    assert_eq!(one.parameters().expect("the parameters"), parameters);
    let state = pollster::block_on(other.optimizer_state_async()).expect("the state");
    assert_eq!(one.optimizer_state().expect("the state"), state);
    let mut evaluator = Evaluator::new(&device, &network, &parameters, Input::Values).expect("an evaluator");
    let logits = evaluator.logits(images).expect("logits");
    assert_eq!(pollster::block_on(evaluator.logits_async(images)).expect("logits"), logits);
    let totals = evaluator.evaluate(images, &labels).expect("totals");
    assert_eq!(pollster::block_on(evaluator.evaluate_async(images, &labels)).expect("totals"), totals);
    fn is_sync<T: Send + Sync>(_: &T) {}
    is_sync(&one);
}

#[test]
fn weights_are_read_without_a_file() {
    let asset = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/resnet_tiny_shapes.safetensors");
    let bytes = std::fs::read(asset).expect("the weights");
    let from_file = StateDict { origin: None, ..StateDict::load(asset).expect("the weights") };
    assert_eq!(StateDict::from_bytes("weights", &bytes).expect("the weights"), from_file);
    let error = StateDict::from_bytes("my weights", &bytes[..bytes.len() - 1]).unwrap_err().to_string();
    assert!(error.contains("my weights"), "{error}");
    let error = StateDict::from_bytes("my weights", b"PK\x03\x04").unwrap_err().to_string();
    assert!(error.contains("my weights") && error.contains("safetensors"), "{error}");
}

#[test]
fn a_device_of_the_callers_is_taken_if_it_suffices() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
    let request = |required_limits| {
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        pollster::block_on(adapter.request_device(&descriptor)).expect("a device")
    };
    let (device, queue) = request(wgpu::Limits::default());
    let device = Device::from_wgpu(device, queue, &adapter.get_info()).expect("the default limits suffice");
    let device = device.with_variant(Variant::Direct).expect("the device has it");
    let network = network("head", &[], 4, 16);
    let own = open(Limits::Adapter).expect("a device").with_variant(Variant::Direct).expect("the device has it");
    assert_eq!(trained(&device, &network).len(), trained(&own, &network).len());

    let (device, queue) = request(wgpu::Limits { max_storage_buffers_per_shader_stage: 4, ..wgpu::Limits::default() });
    let error = Device::from_wgpu(device, queue, &adapter.get_info()).err().expect("too few bindings");
    assert!(error.to_string().contains("max_storage_buffers_per_shader_stage is 4"), "{error}");
}

#[test]
fn devices_are_listed_by_backend_and_gl_comes_last() {
    let devices = list(None).expect("a list");
    assert_eq!(same_gpu(&devices).len(), devices.len());
    let first_gl = devices.iter().position(|device| device.backend == "Gl").unwrap_or(devices.len());
    assert!(devices[first_gl..].iter().all(|device| device.backend == "Gl"), "{devices:?}");
    for backend in Backend::ALL {
        match list(Some(backend)) {
            Ok(devices) => {
                assert!(backends().contains(&backend));
                assert!(devices.iter().all(|device| device.backend.to_lowercase() == backend.name()), "{devices:?}");
            }
            Err(error) => {
                assert!(!backends().contains(&backend));
                assert!(error.to_string().contains(&format!("this build has no {}", backend.name())), "{error}");
            }
        }
    }
}

/// The command's standard error, and whether it succeeded.
fn thawline(args: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::cargo_bin("thawline").expect("the binary");
    let output = command.args(args).envs(environment.iter().copied()).output().expect("it runs");
    (output.status.success(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn the_command_line_chooses_devices_as_it_says() {
    let fails = |args: &[&str], environment: &[(&str, &str)], text: &str| {
        let (succeeded, stderr) = thawline(args, environment);
        assert!(!succeeded && stderr.contains(text), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    };
    let bench = ["bench", "--model", "resnet_tiny", "--policy", "head"];
    let with = |more: &[&'static str]| [&bench[..], more].concat();
    fails(&with(&["--device", "256"]), &[], "no device matches `256`; there are: 0: ");
    fails(&bench, &[("WGPU_BACKEND", "cuda")], "WGPU_BACKEND names no backend with `cuda`: expected one of vulkan, ");
    fails(&["devices"], &[("WGPU_BACKEND", "vulkan,cuda")], "`cuda`");
    let absent = if cfg!(target_os = "macos") { "dx12" } else { "metal" };
    let message = format!("this build has no {absent}: it was made with ");
    fails(&["devices"], &[("WGPU_BACKEND", absent)], &message);
    fails(&["devices", "--backend", absent], &[], &message);
    let (succeeded, stderr) = thawline(&["devices", "--backend", "cuda"], &[]);
    assert!(!succeeded && stderr.contains("the backends are vulkan, metal, dx12, webgpu, gl"), "{stderr}");
    // The option wins.
    let present = backends()[0].name();
    let (succeeded, stderr) = thawline(&["devices", "--backend", present], &[("WGPU_BACKEND", "cuda")]);
    assert!(succeeded, "{stderr}");
}
