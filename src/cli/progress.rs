//! How far a command is: a bar with the time left on standard error, if that is a terminal, and events under `--json`.

use super::{events, output};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// All bars of the process, which are drawn nowhere with --quiet, and where standard error is no terminal. What is printed
/// is printed above them.
pub fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
        let quiet = output::is_quiet();
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        MultiProgress::with_draw_target(target)
    });
    &BARS
}

/// A style of a template that is known to be sound.
pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The progress of one command. Its clones show the same bar, which goes when the last of them does.
#[derive(Clone)]
pub struct Progress(Arc<Bar>);

struct Bar {
    bar: ProgressBar,
    last: Mutex<Last>,
}

/// What was told last.
#[derive(Default)]
struct Last {
    stage: String,
    /// Whether it is known how much there is to do.
    counted: bool,
    event: Option<Instant>,
}

impl Progress {
    /// Begins with what is done first, of which nobody knows how long it takes.
    pub fn new(stage: &str) -> Self {
        let bar = bars().add(ProgressBar::no_length().with_style(style("{spinner} {wide_msg} {elapsed}")));
        bar.enable_steady_tick(Duration::from_millis(100));
        let progress = Self(Arc::new(Bar { bar, last: Mutex::default() }));
        progress.at(stage, 0, 0);
        progress
    }

    /// Shows that `done` of `of` are done, which are counted over all stages or over this one. None of none is a stage whose
    /// size is not known. Nobody need look: what is shown is no result.
    pub fn at(&self, stage: &str, done: u64, of: u64) {
        let Bar { bar, last } = &*self.0;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = last.stage != stage;
        if is_new {
            bar.set_message(stage.to_owned());
            stage.clone_into(&mut last.stage);
        }
        if of > 0 {
            bar.set_length(of);
            if !last.counted {
                bar.set_style(style("{msg} {wide_bar} {pos}/{len} · {eta} left"));
                bar.reset_elapsed();
                bar.reset_eta();
            }
            bar.set_position(done);
        }
        last.counted |= of > 0;
        let is_due = last.event.is_none_or(|event| event.elapsed() >= Duration::from_secs(1));
        if is_new || is_due || of > 0 && done == of {
            last.event = Some(Instant::now());
            let known = |count: u64| (of > 0).then_some(count);
            let _ = events::emit("progress", json!({"stage": stage, "done": known(done), "of": known(of)}));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
