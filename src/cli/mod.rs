//! The command line: one file a subcommand, each a thin shell over the library.

mod args;
mod bench;
mod check;
mod compare;
mod convert;
mod devices;
mod doctor;
mod eval;
mod finetune;
mod fold;
mod inputs;
mod inspect;
mod lr_find;
pub mod output;
mod plan;
mod predict;
mod preprocess;
mod recalibrate;
mod sample_data;
mod source;
mod step;
mod subject;
mod training;
mod version;

use clap::{Arg, Command as Arguments, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Fine-tune convolutional networks on any GPU, with every batch-norm choice explicit, priced and measured.
///
/// A policy says which layers train and how each batch norm behaves. It is compiled, not looked up: what is frozen
/// costs no more than inference. `plan` shows the price before a run, `bench` measures it.
#[derive(Parser)]
#[command(name = "thawline", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Devices(devices::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Finetune(finetune::Args),
    LrFind(lr_find::Args),
    Compare(compare::Args),
    Eval(eval::Args),
    Predict(predict::Args),
    Fold(fold::Args),
    Convert(convert::Args),
    Doctor(doctor::Args),
    Recalibrate(recalibrate::Args),
    SampleData(sample_data::Args),
    Step(step::Args),
    Bench(bench::Args),
    Version(version::Args),
}

/// How help calls the values that are numbers.
const NUMBERS: [&str; 6] = ["N", "X", "X|auto", "K", "STEPS", "MIB"];

/// The arguments, in which a number may be negative: then its option says what it takes, instead of an option being
/// missing that is called like the number.
fn arguments() -> Arguments {
    let is_number = |arg: &Arg| {
        let names = arg.get_value_names().unwrap_or_default();
        arg.get_action().takes_values()
            && names.iter().all(|name| NUMBERS.contains(&name.as_str()))
            && !names.is_empty()
    };
    let mut arguments = Cli::command();
    let names: Vec<String> = arguments.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        arguments = arguments.mut_subcommand(name, |command| {
            command.mut_args(|arg| if is_number(&arg) { arg.allow_hyphen_values(true) } else { arg })
        });
    }
    arguments
}

impl Cli {
    /// Reads the command line, or ends the process with what is wrong with it.
    pub fn from_command_line() -> Self {
        let read = arguments().try_get_matches().and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| {
            let shown = error.render().to_string();
            let lines: Vec<String> = shown.lines().map(output::message).collect();
            if !error.use_stderr() || lines.join("\n") == shown.trim_end_matches('\n') {
                // As it is, with colours.
                error.exit();
            }
            output::lines(&lines);
            std::process::exit(error.exit_code())
        })
    }

    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Devices(args) => devices::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Finetune(args) => finetune::run(args),
            Command::LrFind(args) => lr_find::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Predict(args) => predict::run(args),
            Command::Fold(args) => fold::run(args),
            Command::Convert(args) => convert::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Recalibrate(args) => recalibrate::run(args),
            Command::SampleData(args) => sample_data::run(args),
            Command::Step(args) => step::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Version(args) => version::run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_hold_together() {
        super::Cli::command().debug_assert();
        super::arguments().debug_assert();
    }

    #[test]
    fn numbers_may_be_negative_and_are_known_by_their_names() {
        let lr = |command| {
            super::arguments().try_get_matches_from(["thawline", command, "--data", "d", "--out", "o", "--lr=-1"])
        };
        lr("finetune").unwrap();
        let error = super::arguments().try_get_matches_from(["thawline", "plan", "--batch", "-1"]).unwrap_err();
        assert!(error.to_string().contains("'-1' for '--batch <N>'"), "{error}");
        let error = super::arguments().try_get_matches_from(["thawline", "step", "--lr", "-inf"]).unwrap_err();
        assert!(error.to_string().contains("'-inf' for '--lr <X>'"), "{error}");
    }

    #[test]
    fn everything_has_help() {
        for command in super::Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {} has no help", argument.get_id(), command.get_name());
            }
        }
    }

    /// The commands of a page's `sh` blocks, without comments, redirections and continued lines.
    fn shown(page: &str) -> Vec<Vec<String>> {
        let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
        let words = lines.map(|line| shlex::split(line.as_str()).expect("quotes are closed"));
        words
            .map(|words| words.into_iter().take_while(|word| ![">", "|", "&&"].contains(&word.as_str())).collect())
            .filter(|words: &Vec<String>| words.first().is_some_and(|program| program == "thawline"))
            .collect()
    }

    #[test]
    fn commands_in_readme_and_docs_have_arguments_that_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = root.join("docs").read_dir().expect("docs/ exists").map(|entry| entry.expect("readable").path());
        let pages = docs.filter(|path| path.extension().is_some_and(|e| e == "md")).chain([root.join("README.md")]);
        let mut commands = 0;
        for page in pages {
            for command in shown(&std::fs::read_to_string(&page).expect("pages are text")) {
                if let Err(error) = super::Cli::command().try_get_matches_from(&command) {
                    panic!("{}: {}: {error}", page.display(), command.join(" "));
                }
                commands += 1;
            }
        }
        assert!(commands > 20, "only {commands} commands were found");
    }
}
