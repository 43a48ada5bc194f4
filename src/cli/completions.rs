use super::{arguments, output};
use anyhow::Result;
use clap_complete::Shell;

/// Print a script with which a shell completes commands and options
///
/// Where it goes is for the shell to say; the examples have the usual places.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  thawline completions bash \\
    > ~/.local/share/bash-completion/completions/thawline
  thawline completions zsh > ~/.zfunc/_thawline
  thawline completions fish > ~/.config/fish/completions/thawline.fish")]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut arguments(), "thawline", &mut script);
    output::script(&String::from_utf8(script)?)
}
