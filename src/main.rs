//! The `thawline` command.

mod cli;

use cli::output;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_drivers();
    quiet_caught_panics();
    // What wgpu and the drivers log comes back as errors where it matters; RUST_LOG says otherwise, for each of them. What
    // the validation that the environment asks for finds is in no error.
    let is_on = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    let filter = match ["WGPU_VALIDATION", "WGPU_DEBUG", "WGPU_GPU_BASED_VALIDATION"].into_iter().any(is_on) {
        true => "warn",
        false => "warn,wgpu_core=off,wgpu_hal=off,naga=off",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter))
        .format(|out, record| {
            match record.level() {
                log::Level::Warn => output::warning(record.args()),
                level => {
                    let text = output::message(&record.args().to_string());
                    writeln!(out, "{}: {text}", level.as_str().to_lowercase())?;
                }
            }
            Ok(())
        })
        .init();
    match cli::Cli::from_command_line().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = message(&error);
            // Standard output may be what cannot be written.
            let _ = cli::events::error(&message);
            output::error(message);
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

/// A device that is lost while it is waited for makes wgpu panic, which the library turns into an error.
fn quiet_caught_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !thawline::gpu::catches_panics() {
            tell(panic);
        }
    }));
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
