use super::output;
use anyhow::Result;
use serde_json::json;
use thawline::gpu::{self, Backend};

/// Print the version, and what this build is made of.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON: {version, wgpu, naga, backends, features, target}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let backends: Vec<&str> = gpu::backends().into_iter().map(Backend::name).collect();
    let features: Vec<&str> = [("cli", cfg!(feature = "cli")), ("hub", cfg!(feature = "hub"))]
        .into_iter()
        .filter_map(|(name, is_on)| is_on.then_some(name))
        .collect();
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let (wgpu, naga) = (gpu::WGPU_VERSION, gpu::NAGA_VERSION);
    if args.json {
        return output::json(&json!({
            "version": version,
            "wgpu": wgpu,
            "naga": naga,
            "backends": backends,
            "features": features,
            "target": target,
        }));
    }
    output::line(format_args!("thawline {version}"))?;
    output::line(format_args!("wgpu {wgpu}, naga {naga}, backends: {}", backends.join(", ")))?;
    output::line(format_args!("features: {}", features.join(", ")))?;
    output::line(format_args!("{target}"))
}
