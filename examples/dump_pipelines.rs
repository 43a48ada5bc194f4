//! Writes every pipeline that the plans of four networks ask for, in the languages that drivers take, for the scripts
//! that hand them to compilers: `cargo run --example dump_pipelines -- FOLDER`.
//!
//! A pipeline is a kernel with a set of values of its `override` constants: its own, and those of any call of any plan,
//! inference or training under any recipe, with any variant of the convolutions; and depthwise convolutions with windows of 7×7.
//! `FOLDER/pipelines.json` lists them, and
//! `pipelines.tsv` the name, the entry point, the entry point in HLSL, and whether plans for GPUs ask for it (`gpus`, `others`). Of
//! each there are
//!
//! | file | for |
//! |---|---|
//! | `NAME.wgsl` | browsers: the whole module, its constants in `pipelines.json` |
//! | `NAME.spv` | Vulkan: SPIR-V 1.6 |
//! | `NAME.5_1.hlsl`, `.6_0.hlsl`, `.6_6.hlsl` | DirectX 12, by shader model; 5.1 has no subgroups |
//! | `NAME.310es.comp`, `NAME.450.comp` | OpenGL, embedded and desktop |
//! | `NAME.metal` | Metal |
//!
//! naga translates as wgpu has it do for unchecked modules, as which the library compiles its kernels.

use naga::back::{glsl, hlsl, msl, pipeline_constants, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ResourceBinding, ShaderStage};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use thawline::compile::{self, Optimizer, Options};
use thawline::graph::{AdamW, Graph, Sgd};
use thawline::kernels::conv2d::{Epilogue, Variant};
use thawline::kernels::{Dispatch, KERNELS, Kernel, Window, depthwise};
use thawline::models;
use thawline::plan::{Input, Plan};
use thawline::policy::{Policy, RECIPES, resolve_stages};
use thawline::tensor::Shape;

/// The networks, with the size of their images.
const NETWORKS: [(&str, usize); 4] =
    [("resnet50", 224), ("efficientnet_b0", 224), ("mobilenet_v3_large", 224), ("resnet_tiny", 16)];

/// Images of a step: a multiple of every recipe's ghost batch.
const BATCH: usize = 8;

/// The pipelines by name, with the networks that ask for each.
type Pipelines = BTreeMap<String, Pipeline>;

struct Pipeline {
    kernel: &'static Kernel,
    /// All of the kernel's constants.
    constants: Vec<(&'static str, f64)>,
    networks: BTreeSet<&'static str>,
    /// Whether a plan for a GPU asks for it.
    on_gpus: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("name a folder to write to")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let mut pipelines = Pipelines::new();
    for kernel in KERNELS {
        add(&mut pipelines, kernel, &[]);
    }
    for (network, size) in NETWORKS {
        for (variant, plan) in plans(network, size)? {
            for call in &plan.calls {
                let pipeline = add(&mut pipelines, call.kernel, &call.constants);
                pipeline.networks.insert(network);
                pipeline.on_gpus |= variant == Variant::Workgroup;
            }
        }
    }
    for (variant, dispatch) in large_windows() {
        add(&mut pipelines, dispatch.kernel, &dispatch.constants).on_gpus |= variant == Variant::Workgroup;
    }
    let (mut list, mut entries) = (Vec::new(), String::new());
    for (name, pipeline) in &pipelines {
        let hlsl_entry = write(folder, name, pipeline).map_err(|e| format!("{name}: {e}"))?;
        let runs_on = if pipeline.on_gpus { "gpus" } else { "others" };
        entries += &format!("{name}\t{}\t{hlsl_entry}\t{runs_on}\n", pipeline.kernel.entry);
        list.push(serde_json::json!({
            "name": name,
            "kernel": pipeline.kernel.name,
            "entry": pipeline.kernel.entry,
            "subgroups": pipeline.kernel.subgroups,
            "constants": pipeline.constants.iter().copied().collect::<BTreeMap<_, _>>(),
            "networks": pipeline.networks,
        }));
    }
    std::fs::write(folder.join("pipelines.json"), serde_json::to_string_pretty(&list)? + "\n")?;
    std::fs::write(folder.join("pipelines.tsv"), entries)?;
    println!("{} pipelines of {} kernels in {}", pipelines.len(), KERNELS.len(), folder.display());
    Ok(())
}

/// Depthwise convolutions with the largest windows, which none of these networks has.
fn large_windows() -> Vec<(Variant, Dispatch)> {
    let mut all = Vec::new();
    for (stride, out) in [(1, 14), (2, 7)] {
        let g = Window { kernel: [7, 7], stride: [stride; 2], padding: [3; 4] };
        let (x, out) = (Shape::nhwc(BATCH, 14, 14, 96), Shape::nhwc(BATCH, out, out, 96));
        for variant in [Variant::Direct, Variant::Workgroup] {
            all.push((variant, depthwise::forward(variant, x, out, g, Epilogue::default())));
            all.push((variant, depthwise::input_grad(variant, x, out, g, false)));
            all.push((variant, depthwise::weight_grad(variant, x, out, g)));
        }
    }
    all
}

/// Adds the pipeline of a kernel with some constants of its own, if it is new.
fn add<'a>(
    pipelines: &'a mut Pipelines,
    kernel: &'static Kernel,
    constants: &[(&'static str, f64)],
) -> &'a mut Pipeline {
    let own = kernel.overrides.iter().filter(|(name, _)| constants.iter().all(|(other, _)| other != name));
    let all: Vec<_> = own.chain(constants).copied().collect();
    let mut name = kernel.name.to_owned();
    for (constant, value) in constants {
        name += &format!("-{constant}_{value}");
    }
    pipelines.entry(name).or_insert(Pipeline { kernel, constants: all, networks: BTreeSet::new(), on_gpus: false })
}

/// Inference, and a training step under every recipe and its stages, with every variant of the convolutions.
fn plans(network: &str, size: usize) -> Result<Vec<(Variant, Plan)>, Box<dyn Error>> {
    let spec = models::spec(network)?;
    let images = &spec.preprocessing.value;
    let input = Input::Bytes { mean: images.mean, std: images.std, bgr: images.bgr };
    let graph = spec.build(BATCH, (size, size), 1000)?;
    let mut graphs: Vec<Graph> = vec![compile::inference(graph.clone(), true)?];
    let sgd = Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decoupled: false };
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 };
    for recipe in RECIPES {
        for (_, stage) in resolve_stages(&Policy::recipe(recipe.name)?, &graph)? {
            for (optimizer, accumulate) in [(Optimizer::Sgd(sgd), 1), (Optimizer::AdamW(adamw), 2)] {
                let options = Options {
                    optimizer,
                    label_smoothing: 0.1,
                    class_weights: false,
                    accumulate,
                    export_gradients: false,
                    seed: 0,
                };
                graphs.push(compile::training(stage.graph.clone(), &options)?);
            }
        }
    }
    let plan = |(graph, variant)| (variant, Plan::new(graph, input, variant));
    Ok(graphs.into_iter().flat_map(|graph| Variant::ALL.map(|variant| (graph.clone(), variant))).map(plan).collect())
}

/// Writes a pipeline in every language. Returns the name of its entry point in HLSL.
fn write(folder: &Path, name: &str, pipeline: &Pipeline) -> Result<String, Box<dyn Error>> {
    let kernel = pipeline.kernel;
    let file = |extension: &str| folder.join(format!("{name}.{extension}"));
    std::fs::write(file("wgsl"), kernel.source)?;

    let module = naga::front::wgsl::parse_str(kernel.naga_source()).map_err(|e| e.emit_to_string(kernel.source))?;
    let capabilities = if kernel.subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)?;
    let constants = pipeline.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let entry = (ShaderStage::Compute, kernel.entry);
    let (module, info) = pipeline_constants::process_overrides(&module, &info, Some(entry), &constants)?;

    std::fs::write(file("spv"), bytemuck::cast_slice(&to_spirv(kernel, &module, &info)?))?;
    let mut hlsl_entry = String::new();
    for (extension, model) in [
        ("5_1.hlsl", hlsl::ShaderModel::V5_1),
        ("6_0.hlsl", hlsl::ShaderModel::V6_0),
        ("6_6.hlsl", hlsl::ShaderModel::V6_6),
    ] {
        if model >= hlsl::ShaderModel::V6_0 || !kernel.subgroups {
            let (text, entry) = to_hlsl(kernel, &module, &info, model)?;
            std::fs::write(file(extension), text)?;
            hlsl_entry = entry;
        }
    }
    for (extension, version) in
        [("310es.comp", glsl::Version::new_gles(310)), ("450.comp", glsl::Version::Desktop(450))]
    {
        std::fs::write(file(extension), to_glsl(kernel, &module, &info, version)?)?;
    }
    std::fs::write(file("metal"), to_msl(kernel, &module, &info)?)?;
    Ok(hlsl_entry)
}

const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

/// The resources of a module, in the order of their bindings, with their address spaces.
fn resources(module: &Module) -> BTreeMap<ResourceBinding, AddressSpace> {
    module.global_variables.iter().filter_map(|(_, var)| Some((var.binding?, var.space))).collect()
}

fn to_spirv(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> Result<Vec<u32>, Box<dyn Error>> {
    let same = |&at: &ResourceBinding| {
        (at, spv::BindingInfo { descriptor_set: at.group, binding: at.binding, binding_array_size: None })
    };
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::empty(),
        fake_missing_bindings: false,
        binding_map: resources(module).keys().map(same).collect(),
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.entry.into() };
    Ok(spv::write_vec(module, info, &options, Some(&entry))?)
}

/// The text, and the name of the entry point in it.
fn to_hlsl(
    kernel: &Kernel,
    module: &Module,
    info: &ModuleInfo,
    shader_model: hlsl::ShaderModel,
) -> Result<(String, String), Box<dyn Error>> {
    let options = hlsl::Options {
        shader_model,
        // Where the number of workgroups stands.
        special_constants_binding: Some(hlsl::BindTarget { space: 1, register: 0, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let entry = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, kernel.entry.into())) };
    let mut text = String::new();
    let mut entries = hlsl::Writer::new(&mut text, &options, &entry).write(module, info, None)?.entry_point_names;
    let entry = entries.pop().ok_or("no entry point")??;
    Ok((text, entry))
}

fn to_glsl(
    kernel: &Kernel,
    module: &Module,
    info: &ModuleInfo,
    version: glsl::Version,
) -> Result<String, Box<dyn Error>> {
    // Each kind of resource is numbered by itself.
    let mut slots = [0; 3];
    let binding_map = resources(module).into_iter().map(|(at, space)| {
        let slot = match space {
            AddressSpace::Uniform => &mut slots[0],
            AddressSpace::Storage { .. } => &mut slots[1],
            _ => &mut slots[2],
        };
        *slot += 1;
        (at, *slot - 1)
    });
    let options = glsl::Options {
        version,
        writer_flags: glsl::WriterFlags::ADJUST_COORDINATE_SPACE,
        binding_map: binding_map.collect(),
        zero_initialize_workgroup_memory: false,
    };
    let entry =
        glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.entry.into(), multiview: None };
    let mut text = String::new();
    glsl::Writer::new(&mut text, module, info, &options, &entry, UNCHECKED)?.write()?;
    Ok(text)
}

fn to_msl(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> Result<String, Box<dyn Error>> {
    let options = msl::Options {
        lang_version: (2, 4),
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let entry =
        msl::PipelineOptions { entry_point: Some((ShaderStage::Compute, kernel.entry.into())), ..Default::default() };
    let (text, translated) = msl::write_string(module, info, &options, &entry)?;
    for name in translated.entry_point_names {
        name?;
    }
    Ok(text)
}
