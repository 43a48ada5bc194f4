//! Every kernel's shader against its contract, without a GPU: what the Rust side declares is what naga finds in the
//! WGSL, it stays inside the limits of the portable tier, and it translates to every language that a driver may want.

use naga::back::{glsl, hlsl, msl, pipeline_constants, spv};
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Module, Scalar, ShaderStage, StorageAccess, StructMember, TypeInner};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use thawline::kernels::{Access, KERNELS, Kernel};

/// Identifiers that naga 30 leaves as they are and that a compiler behind it rejects: of all words in Microsoft's two
/// compilers those that cannot be a variable's name, as `docs/shaders.md` tells. naga itself renames what else is reserved
/// in HLSL, MSL or GLSL, and refuses what is reserved in WGSL.
const RESERVED: &[(&str, &str)] = &[
    ("dx", "a namespace of DXC"),
    ("std", "a namespace of DXC"),
    ("pixelshader", "a keyword of FXC in strict mode"),
    ("vertexshader", "a keyword of FXC in strict mode"),
];

/// What every adapter offers a compute shader.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_INVOCATIONS: u32 = 256;
const MAX_WORKGROUP_MEMORY: u32 = 16 << 10;

fn parse(kernel: &Kernel) -> Module {
    naga::front::wgsl::parse_str(kernel.naga_source())
        .unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(kernel.naga_source())))
}

fn validate(kernel: &Kernel, module: &Module) -> ModuleInfo {
    let capabilities = if kernel.subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(module)
        .unwrap_or_else(|e| panic!("{}: {}", kernel.name, e.emit_to_string(kernel.naga_source())))
}

/// Files of a folder below the crate, by name without the extension.
fn files(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = folder.read_dir().expect("the folder exists").map(|entry| entry.expect("readable").path());
    entries
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .map(|path| {
            let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).expect("source is text"))
        })
        .collect()
}

/// The members of the uniform at binding 0.
fn uniform<'a>(kernel: &Kernel, module: &'a Module) -> &'a [StructMember] {
    let mut uniforms = module.global_variables.iter().filter(|(_, var)| var.space == AddressSpace::Uniform);
    let (Some((_, params)), None) = (uniforms.next(), uniforms.next()) else {
        panic!("{}: not one uniform", kernel.name);
    };
    let place = params.binding.map(|b| (b.group, b.binding));
    assert_eq!(place, Some((0, 0)), "{}: the uniform's place", kernel.name);
    match &module.types[params.ty].inner {
        TypeInner::Struct { members, .. } => members,
        _ => panic!("{}: the uniform is no struct", kernel.name),
    }
}

#[test]
fn uniforms_have_the_names_and_offsets_that_rust_writes() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let members = uniform(kernel, &module).iter();
        let found: Vec<_> = members.map(|m| (m.name.as_deref().unwrap_or_default(), m.offset as usize)).collect();
        assert_eq!(found, kernel.params, "{}: the uniform", kernel.name);
    }
}

#[test]
fn uniforms_have_the_types_that_rust_writes() {
    // A kernel records no types, because all have four bytes: the sources do.
    let rust = files("src/kernels", "rs");
    for kernel in KERNELS {
        let module = parse(kernel);
        let members = uniform(kernel, &module).iter();
        let found: Vec<_> = members
            .map(|m| {
                let ty = match module.types[m.ty].inner {
                    TypeInner::Scalar(Scalar::U32) => "u32",
                    TypeInner::Scalar(Scalar::I32) => "i32",
                    TypeInner::Scalar(Scalar::F32) => "f32",
                    ref other => panic!("{}: {:?} is a {other:?}", kernel.name, m.name),
                };
                format!("{}: {ty}", m.name.as_deref().unwrap_or_default())
            })
            .collect();
        let source = &rust[declaring_file(&rust, kernel)];
        let bodies = source.split("pub struct ").skip(1).filter_map(|rest| rest.split_once('{')?.1.split_once('}'));
        let mut structs = bodies.map(|(body, _)| {
            let lines = body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
            lines.map(|line| line.trim_end_matches(',').to_owned()).collect::<Vec<_>>()
        });
        assert!(structs.any(|fields| fields == found), "{}: no struct has {found:?}", kernel.name);
    }
}

/// The Rust file that declares a kernel.
fn declaring_file<'a>(rust: &'a BTreeMap<String, String>, kernel: &Kernel) -> &'a str {
    let line = format!("\"{}\"", kernel.name);
    let mut found = rust.iter().filter(|(_, source)| source.contains(&line)).map(|(name, _)| name.as_str());
    match (found.next(), found.next()) {
        (Some(file), None) => file,
        _ => panic!("{} is not declared in one file of src/kernels", kernel.name),
    }
}

#[test]
fn storage_buffers_agree() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let mut found = BTreeMap::new();
        for (_, var) in module.global_variables.iter() {
            let access = match var.space {
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Some(Access::Write),
                AddressSpace::Storage { .. } => Some(Access::Read),
                AddressSpace::Handle => Some(Access::Texture),
                _ => None,
            };
            if let Some(access) = access {
                let binding = var.binding.expect("a resource has a binding");
                assert_eq!(binding.group, 0, "{}: group of {:?}", kernel.name, var.name);
                let name = var.name.clone().unwrap_or_default();
                let twice = found.insert(binding.binding, (name, access));
                assert_eq!(twice, None, "{}: binding {}", kernel.name, binding.binding);
            }
        }
        let declared = kernel.bindings.iter().zip(1..).map(|(b, i)| (i, (b.name.to_owned(), b.access))).collect();
        assert_eq!(found, declared, "{}: storage buffers", kernel.name);
        assert!(found.len() <= MAX_STORAGE_BUFFERS, "{}: {} storage buffers", kernel.name, found.len());
    }
}

#[test]
fn every_binding_is_used() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let info = validate(kernel, &module);
        let index = module.entry_points.iter().position(|e| e.name == kernel.entry).expect("the entry point exists");
        let entry = info.get_entry_point(index);
        for (handle, var) in module.global_variables.iter() {
            assert!(!entry[handle].is_empty(), "{}: {:?} is not used", kernel.name, var.name);
        }
    }
}

#[test]
fn workgroups_fit_the_portable_tier() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let info = validate(kernel, &module);
        let constants = kernel.overrides.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let entry = Some((ShaderStage::Compute, kernel.entry));
        let (module, _) = pipeline_constants::process_overrides(&module, &info, entry, &constants)
            .unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        let found = module.entry_points.iter().find(|e| e.name == kernel.entry);
        let entry = found.unwrap_or_else(|| panic!("{}: no entry point {}", kernel.name, kernel.entry));
        assert_eq!(entry.workgroup_size, kernel.workgroup, "{}: workgroup", kernel.name);
        let invocations: u32 = kernel.workgroup.iter().product();
        assert!(invocations <= MAX_INVOCATIONS, "{}: {invocations} invocations", kernel.name);

        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        let shared = module.global_variables.iter().filter(|(_, var)| var.space == AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|(_, var)| layouter[var.ty].size).sum();
        assert!(bytes <= MAX_WORKGROUP_MEMORY, "{}: {bytes} bytes of workgroup memory", kernel.name);
    }
}

#[test]
fn overrides_agree() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let found: BTreeMap<_, _> =
            module.overrides.iter().map(|(_, o)| (o.name.as_deref().unwrap_or_default(), o.init)).collect();
        for (name, _) in kernel.overrides {
            assert!(found.contains_key(name), "{}: the shader has no override {name}", kernel.name);
        }
        for (name, default) in &found {
            let given = kernel.overrides.iter().any(|(given, _)| given == name);
            assert!(given || default.is_some(), "{}: override {name} has no value", kernel.name);
        }
    }
}

#[test]
fn shaders_translate() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let info = validate(kernel, &module);
        let constants = kernel.overrides.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let entry = (ShaderStage::Compute, kernel.entry);
        let (module, info) = pipeline_constants::process_overrides(&module, &info, Some(entry), &constants)
            .unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        let entry_point = Some((ShaderStage::Compute, kernel.entry.to_owned()));

        let options = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.entry.into() };
        spv::write_vec(&module, &info, &spv::Options::default(), Some(&options))
            .unwrap_or_else(|e| panic!("{} to SPIR-V: {e}", kernel.name));

        let options = msl::PipelineOptions { entry_point: entry_point.clone(), ..Default::default() };
        let language = msl::Options { lang_version: (2, 0), ..Default::default() };
        msl::write_string(&module, &info, &language, &options)
            .unwrap_or_else(|e| panic!("{} to MSL: {e}", kernel.name));

        let options = hlsl::PipelineOptions { entry_point };
        let language = hlsl::Options::default();
        let mut text = String::new();
        hlsl::Writer::new(&mut text, &language, &options)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{} to HLSL: {e}", kernel.name));

        let options = glsl::PipelineOptions {
            shader_stage: ShaderStage::Compute,
            entry_point: kernel.entry.into(),
            multiview: None,
        };
        let language = glsl::Options { version: glsl::Version::new_gles(310), ..Default::default() };
        let mut text = String::new();
        glsl::Writer::new(&mut text, &module, &info, &language, &options, Default::default())
            .and_then(|mut writer| writer.write())
            .unwrap_or_else(|e| panic!("{} to GLSL: {e}", kernel.name));
    }
}

/// Every identifier of a module that its text declares.
fn identifiers(module: &Module) -> BTreeSet<&str> {
    let mut found: Vec<Option<&String>> = Vec::new();
    for (_, ty) in module.types.iter() {
        found.push(ty.name.as_ref());
        if let TypeInner::Struct { members, .. } = &ty.inner {
            found.extend(members.iter().map(|member| member.name.as_ref()));
        }
    }
    found.extend(module.global_variables.iter().map(|(_, var)| var.name.as_ref()));
    found.extend(module.constants.iter().map(|(_, constant)| constant.name.as_ref()));
    found.extend(module.overrides.iter().map(|(_, constant)| constant.name.as_ref()));
    let functions = module.functions.iter().map(|(_, function)| function);
    for function in functions.chain(module.entry_points.iter().map(|entry| &entry.function)) {
        found.push(function.name.as_ref());
        found.extend(function.arguments.iter().map(|argument| argument.name.as_ref()));
        found.extend(function.local_variables.iter().map(|(_, var)| var.name.as_ref()));
        found.extend(function.named_expressions.values().map(Some));
    }
    found.extend(module.entry_points.iter().map(|entry| Some(&entry.name)));
    found.into_iter().flatten().map(String::as_str).collect()
}

#[test]
fn no_identifier_is_reserved_where_naga_does_not_know() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let found = identifiers(&module);
        assert!(found.contains("p") && found.contains(kernel.entry), "{}: {found:?}", kernel.name);
        for (word, whose) in RESERVED {
            assert!(!found.contains(word), "{}: `{word}` is {whose}", kernel.name);
        }
    }
}

#[test]
fn subgroups_are_enabled_for_browsers_only() {
    for kernel in KERNELS {
        assert_eq!(kernel.source.starts_with("enable subgroups;\n"), kernel.subgroups, "{}", kernel.name);
        assert!(!kernel.naga_source().contains("enable "), "{}", kernel.name);
    }
}

#[test]
fn names_are_unique() {
    let mut seen = HashSet::new();
    for kernel in KERNELS {
        assert!(seen.insert(kernel.name), "two kernels are called {}", kernel.name);
    }
}

#[test]
fn files_and_kernels_belong_together() {
    let rust = files("src/kernels", "rs");
    let shaders = files("shaders", "wgsl");
    let library = files("shaders/lib", "wgsl");

    // Each kernel's source is a shader followed by library files, each of them once and whole.
    let mut used = BTreeSet::new();
    for kernel in KERNELS {
        let mut parts: Vec<_> = shaders.iter().filter(|(_, text)| kernel.source.starts_with(text.as_str())).collect();
        let (name, text) = parts.pop().unwrap_or_else(|| panic!("{} starts with no shader", kernel.name));
        assert!(parts.is_empty(), "{} starts with several shaders", kernel.name);
        used.insert(name);
        let mut rest = &kernel.source[text.len()..];
        while !rest.is_empty() {
            let found = library.iter().find(|(_, text)| rest.starts_with(text.as_str()));
            let (name, text) = found.unwrap_or_else(|| panic!("{} ends with something else", kernel.name));
            used.insert(name);
            rest = &rest[text.len()..];
        }
    }
    for name in shaders.keys().chain(library.keys()) {
        assert!(used.contains(name), "no kernel uses {name}.wgsl");
    }

    let with_kernels: BTreeSet<_> = KERNELS.iter().map(|kernel| declaring_file(&rust, kernel)).collect();
    let mut declared = 0;
    for (name, source) in &rust {
        let statics = source.matches(": Kernel =").count();
        assert_eq!(statics > 0, with_kernels.contains(name.as_str()), "{name}.rs declares kernels that are not listed");
        declared += statics;
    }
    assert_eq!(declared, KERNELS.len(), "every declared kernel is listed in KERNELS");
}
