//! The library's errors as the exceptions of `thawline.errors`, whose messages are the library's.

use crate::device;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};
use thawline::compile::CompileError;
use thawline::data::DataError;
use thawline::formats::FormatError;
use thawline::gpu::GpuError;
use thawline::identify::IdentifyError;
use thawline::lab::LabError;
use thawline::model::OpenError;
use thawline::policy::PolicyError;
use thawline::report::ReportError;
use thawline::study::StudyError;
use thawline::train::TrainError;
use thawline::weights::WeightsError;

/// The exceptions, which are defined in Python.
mod exceptions {
    pyo3::import_exception!(thawline.errors, DeviceError);
    pyo3::import_exception!(thawline.errors, ImageError);
    pyo3::import_exception!(thawline.errors, ModelError);
    pyo3::import_exception!(thawline.errors, OutOfMemoryError);
    pyo3::import_exception!(thawline.errors, PolicyError);
    pyo3::import_exception!(thawline.errors, ThawlineError);
    pyo3::import_exception!(thawline.errors, WeightsError);
}

/// What is at fault.
#[derive(Clone, Copy)]
enum Kind {
    Argument,
    Device,
    Image,
    Memory,
    Model,
    Policy,
    Weights,
    Other,
}

/// An error on its way to Python.
pub struct Error {
    kind: Kind,
    message: String,
}

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An argument that no call takes: Python's `ValueError`.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Kind::Argument, message)
    }

    /// Images or labels.
    pub fn image(message: impl Into<String>) -> Self {
        Self::new(Kind::Image, message)
    }

    /// Tensors of a state dict.
    pub fn weights(message: impl Into<String>) -> Self {
        Self::new(Kind::Weights, message)
    }

    fn of(kind: Kind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let reason = error.to_string();
            // Some say their source themselves.
            if !message.contains(&reason) {
                message = format!("{message}: {reason}");
            }
            source = error.source();
        }
        Self { kind, message }
    }
}

impl From<Error> for PyErr {
    fn from(Error { kind, message }: Error) -> Self {
        match kind {
            Kind::Argument => PyValueError::new_err(message),
            Kind::Device => exceptions::DeviceError::new_err(message),
            Kind::Image => exceptions::ImageError::new_err(message),
            Kind::Memory => exceptions::OutOfMemoryError::new_err(message),
            Kind::Model => exceptions::ModelError::new_err(message),
            Kind::Policy => exceptions::PolicyError::new_err(message),
            Kind::Weights => exceptions::WeightsError::new_err(message),
            Kind::Other => exceptions::ThawlineError::new_err(message),
        }
    }
}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Self {
        Self::of(Kind::Policy, &error)
    }
}

impl From<CompileError> for Error {
    fn from(error: CompileError) -> Self {
        Self::of(Kind::Model, &error)
    }
}

impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        let kind = match &error {
            GpuError::OutOfMemory { .. } => Kind::Memory,
            error if error.is_limit_of_plan() => Kind::Memory,
            GpuError::Lost { .. } => {
                // What is opened next is opened anew, so that a notebook can go on.
                device::forget();
                Kind::Device
            }
            _ => Kind::Device,
        };
        Self::of(kind, &error)
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::Identify(IdentifyError::Model(_))
            | OpenError::Model(_)
            | OpenError::Graph(_)
            | OpenError::Network(_)
            | OpenError::Export(_)
            | OpenError::Format(FormatError::Graph(_) | FormatError::Keras { .. })
            | OpenError::Nothing => Kind::Model,
            OpenError::Identify(_) | OpenError::Weights(_) | OpenError::Format(_) | OpenError::Preprocessing { .. } => {
                Kind::Weights
            }
            OpenError::OtherFolders { .. } | OpenError::UnknownClass { .. } => Kind::Image,
        };
        Self::of(kind, &error)
    }
}

impl From<TrainError> for Error {
    fn from(error: TrainError) -> Self {
        let kind = match error {
            TrainError::Gpu(error) => return error.into(),
            TrainError::Compile(_) | TrainError::Graph(_) => Kind::Model,
            TrainError::Weights(_) | TrainError::NotFinite { .. } | TrainError::ForeignState => Kind::Weights,
            TrainError::Data(_)
            | TrainError::Images { .. }
            | TrainError::Form { .. }
            | TrainError::Labels { .. }
            | TrainError::Label { .. } => Kind::Image,
            TrainError::ClassWeightCount { .. } => Kind::Argument,
            _ => Kind::Other,
        };
        Self::of(kind, &error)
    }
}

impl From<WeightsError> for Error {
    fn from(error: WeightsError) -> Self {
        Self::of(Kind::Weights, &error)
    }
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        OpenError::from(error).into()
    }
}

impl From<DataError> for Error {
    fn from(error: DataError) -> Self {
        Self::of(Kind::Image, &error)
    }
}

impl From<LabError> for Error {
    fn from(error: LabError) -> Self {
        match error {
            LabError::Train(error) => error.into(),
            LabError::Policy { .. } | LabError::SameName { .. } => Self::of(Kind::Policy, &error),
            LabError::NoValidation | LabError::NothingToSearchOn => Self::of(Kind::Image, &error),
            _ => Self::of(Kind::Other, &error),
        }
    }
}

impl From<ReportError> for Error {
    fn from(error: ReportError) -> Self {
        Self::of(Kind::Other, &error)
    }
}

impl From<StudyError> for Error {
    fn from(error: StudyError) -> Self {
        match error {
            StudyError::Train(error) => error.into(),
            StudyError::Lab(error) => error.into(),
            StudyError::Open(error) => error.into(),
            StudyError::Policy(error) => error.into(),
            StudyError::Option(_) | StudyError::NoHead { .. } | StudyError::Seeds { .. } => {
                Self::of(Kind::Argument, &error)
            }
            StudyError::Classes { .. } => Self::of(Kind::Image, &error),
            StudyError::Identify(_)
            | StudyError::GraphFile(_)
            | StudyError::Folded { .. }
            | StudyError::OtherOrder { .. }
            | StudyError::OtherNames { .. } => Self::of(Kind::Weights, &error),
            StudyError::Path { .. } | StudyError::NoRate | StudyError::OwnFormat { .. } => {
                Self::of(Kind::Other, &error)
            }
        }
    }
}

/// Runs `work` without the interpreter, which other threads have meanwhile. A panic, which is a bug, is an error.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Error> + Send) -> PyResult<T> {
    // What a panic leaves half done is behind a lock, which is poisoned then.
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(result) => Ok(result?),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            let said = said.unwrap_or("no message");
            Err(Error::new(Kind::Other, format!("a bug in Thawline, please report it: {said}")).into())
        }
    }
}

/// To be called [detached] only.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, Error> {
    mutex
        .lock()
        .map_err(|_| Error::new(Kind::Other, "an earlier call ended in a bug and left this half done: make a new one"))
}
