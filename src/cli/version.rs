use super::output;
use anyhow::Result;
use serde_json::json;

/// Print the version, and what this build is made of.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON: {version, wgpu, backends, target}
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let (wgpu, backends) = (thawline::gpu::WGPU_VERSION, thawline::gpu::backends());
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    if args.json {
        return output::json(&json!({"version": version, "wgpu": wgpu, "backends": backends, "target": target}));
    }
    output::line(format_args!("thawline {version}"))?;
    output::line(format_args!("wgpu {wgpu}, backends: {}", backends.join(", ")))?;
    output::line(format_args!("{target}"))
}
