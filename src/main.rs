//! The `thawline` command.

mod cli;

use cli::output;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_drivers();
    // What wgpu and the drivers log comes back as errors where it matters.
    let filter = env_logger::Env::default().default_filter_or("warn,wgpu_core=off,wgpu_hal=off,naga=off");
    env_logger::Builder::from_env(filter)
        .format(|out, record| {
            let text = output::message(&record.args().to_string());
            match record.level() {
                log::Level::Warn => writeln!(out, "warning: {text}"),
                level => writeln!(out, "{}: {text}", level.as_str().to_lowercase()),
            }
        })
        .init();
    match cli::Cli::from_command_line().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("error: {}", message(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Without a desktop, a layer of Mesa's that asks the desktop for the preferred GPU complains on standard error.
#[expect(unsafe_code, reason = "the environment is shared with C")]
fn quiet_drivers() {
    let unset = |name| std::env::var_os(name).is_none();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("MESA_VK_DEVICE_SELECT") {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// The error and its causes, joined by colons; a cause that the error's own text quotes is not repeated.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
