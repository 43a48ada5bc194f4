//! The command line: one file a subcommand, each a thin shell over the library.

mod args;
mod bench;
mod check;
mod compare;
mod completions;
mod convert;
mod devices;
mod doctor;
mod eval;
pub mod events;
mod finetune;
mod fold;
mod inputs;
mod inspect;
mod lr_find;
mod man;
mod models;
pub mod output;
mod plan;
mod predict;
mod preprocess;
mod progress;
mod recalibrate;
mod sample_data;
mod source;
mod step;
mod subject;
mod training;
mod version;

use anstream::ColorChoice;
use clap::{Arg, Command as Arguments, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Fine-tune convolutional networks on any GPU, with every batch-norm choice explicit, priced and measured.
///
/// A policy says which layers train and how each batch norm behaves. It is compiled, not looked up: what is frozen
/// costs no more than inference. `plan` shows the price before a run, `bench` measures it.
#[derive(Parser)]
#[command(name = "thawline", version, arg_required_else_help = true, max_term_width = 80)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// When to print in colour: auto is in a terminal, where NO_COLOR is not set
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    #[arg(help_heading = "Terminal", hide_possible_values = true)]
    color: Color,
    /// Print results, warnings and errors only
    #[arg(short, long, global = true, help_heading = "Terminal")]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    /// What the command line says, before it is read: its errors have colours, too.
    fn from_command_line() -> Self {
        let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let mut values = words.iter().enumerate().filter_map(|(index, word)| match word.strip_prefix("--color")? {
            "" => words.get(index + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        });
        // Only the last has a say; one that is none is an error soon.
        let last = values.next_back().and_then(|value| Self::from_str(value, false).ok());
        last.unwrap_or(Self::Auto)
    }

    fn choose(self) {
        let choice = match self {
            Self::Auto => ColorChoice::Auto,
            Self::Always => ColorChoice::Always,
            Self::Never => ColorChoice::Never,
        };
        choice.write_global();
    }
}

#[derive(Subcommand)]
enum Command {
    Devices(devices::Args),
    Models(models::Args),
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
    Completions(completions::Args),
    Man(man::Args),
}

/// How help calls the values that are numbers.
const NUMBERS: [&str; 6] = ["N", "X", "X|auto", "K", "STEPS", "MIB"];

/// The groups of options in the help of commands that have many, by the names of their fields; behind the name of a command
/// where others have a field of that name, too.
const GROUPS: [(&str, &[&str]); 9] = [
    ("Network and weights", &["model", "weights", "source", "offline", "weights_set", "head", "classes", "convert:to"]),
    (
        "Images",
        &[
            "data",
            "split",
            "max_images",
            "val_fraction",
            "train_images",
            "skip_broken",
            "exif",
            "max_pixels",
            "augment",
        ],
    ),
    ("Preprocessing", &["size", "resize", "crop", "interpolation", "mean", "std"]),
    ("Policy", &["policy", "policies", "rules", "thaw", "recalibrate:layers"]),
    (
        "Training",
        &["epochs", "patience", "class_weights", "sampler", "batch", "accumulate", "seed", "seeds", "cache", "then"],
    ),
    ("Optimiser", &["optimizer", "momentum", "nesterov", "weight_decay", "decoupled_decay", "label_smoothing"]),
    (
        "Learning rate",
        &["lr", "lr-find:from", "lr-find:to", "steps", "schedule", "warmup", "final_lr", "step_epochs", "gamma"],
    ),
    ("Output", &["out", "resume", "force", "json", "page", "report", "per_class", "grads", "doctor:layers"]),
    ("Device", &["device", "backend", "device_timeout", "variant"]),
];

/// A command with more options than these shows them in groups.
const UNGROUPED: usize = 10;

/// The first sentence of an option's help, and its default: what -h shows of it.
fn short(help: &str) -> String {
    let is_whole =
        |text: &str| [('(', ')'), ('[', ']')].iter().all(|&(a, b)| text.matches(a).count() == text.matches(b).count());
    let ends = [". ", "; "].into_iter().flat_map(|end| help.match_indices(end)).map(|(end, _)| end);
    let Some(end) = ends.filter(|&end| is_whole(&help[..end])).min() else { return help.to_owned() };
    let default = help[end..].rfind("[default: ").map_or(String::new(), |at| format!(" {}", &help[end..][at..]));
    format!("{}{default}", &help[..end])
}

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
        arguments = arguments.mut_subcommand(&name, |command| {
            let is_grouped = command.get_arguments().count() > UNGROUPED;
            command.mut_args(|arg| {
                let id = arg.get_id().as_str();
                let of_command = format!("{name}:{id}");
                let group =
                    GROUPS.iter().find(|(_, options)| options.contains(&id) || options.contains(&of_command.as_str()));
                let is_option = arg.get_long().is_some();
                let arg = match group.filter(|_| is_grouped && is_option) {
                    Some((heading, _)) => arg.help_heading(*heading),
                    None => arg,
                };
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let shown = short(&help);
                let arg = match arg.get_long_help().is_none() && shown != help {
                    true => arg.help(shown).long_help(help),
                    false => arg,
                };
                if is_number(&arg) { arg.allow_hyphen_values(true) } else { arg }
            })
        });
    }
    arguments
}

impl Cli {
    /// Reads the command line, or ends the process with what is wrong with it.
    pub fn from_command_line() -> Self {
        Color::from_command_line().choose();
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
        if self.quiet {
            output::be_quiet();
        }
        self.color.choose();
        match self.command {
            Command::Devices(args) => devices::run(args),
            Command::Models(args) => models::run(args),
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
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => man::run(args),
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
    fn help_fits_80_columns_and_breaks_no_example() {
        let mut all = super::arguments();
        all.build();
        for command in all.get_subcommands() {
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in examples.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            let mut shown = command.clone().term_width(80).max_term_width(80);
            for help in [shown.render_help(), shown.render_long_help()] {
                let wide = help.to_string().lines().find(|line| line.chars().count() > 80).map(str::to_owned);
                assert_eq!(wide, None, "{}", command.get_name());
            }
        }
    }

    #[test]
    fn long_help_is_in_groups() {
        for name in ["finetune", "compare"] {
            let arguments = super::arguments();
            let command = arguments.find_subcommand(name).unwrap();
            for arg in command.get_arguments() {
                assert!(arg.get_help_heading().is_some(), "{name}: put {} into one of GROUPS", arg.get_id());
            }
            assert!(command.get_after_help().is_some(), "{name} has no examples");
        }
        assert_eq!(
            super::short("Images per batch; norms see them. More [default: 32]"),
            "Images per batch [default: 32]"
        );
        assert_eq!(super::short("A name (one; two) or a file"), "A name (one; two) or a file");
        assert_eq!(super::short("Classes [default: the file's. Or 10]"), "Classes [default: the file's. Or 10]");
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
