use super::args::{self, ForceArgs};
use super::{arguments, output};
use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::Man;
use std::fs;
use std::path::PathBuf;
use thawline::weights::write_atomically;

/// Write the man pages: thawline.1, and one for each command
///
/// For packagers; `scripts/extras.sh` writes them together with the completions.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  thawline man ~/.local/share/man/man1")]
pub struct Args {
    /// The folder that they go to; it is made if it does not exist
    dir: PathBuf,
    #[command(flatten)]
    force: ForceArgs,
}

pub fn run(args: Args) -> Result<()> {
    let mut all = arguments().disable_help_subcommand(true);
    all.build();
    let pages = [&all].into_iter().chain(all.get_subcommands()).map(page).collect::<Result<Vec<_>>>()?;
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make the folder {}", args.dir.display()))?;
    for (name, _) in &pages {
        args::check_output(&args.dir.join(name), args.force)?;
    }
    for (name, page) in &pages {
        let path = args.dir.join(name);
        write_atomically(&path, |file| file.write_all(page))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::line(format_args!("{}: {}", args.dir.display(), output::quantity(pages.len(), "page")))
}

/// The name of a command's page, and the page.
fn page(command: &Command) -> Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page)?;
    Ok((man.get_filename(), page))
}
