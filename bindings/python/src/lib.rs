//! The native half of the Python package: classes over the library's values. What is one line of Python is in
//! `python/thawline`, with the exceptions and the bridges to PyTorch and Keras.
//!
//! Whatever computes, reads files or waits for a device runs [detached](error::detached) from the interpreter, and locks
//! are taken there only: a thread that waits for one while it holds the interpreter would stop the thread that has it.

mod array;
mod device;
mod error;
mod logging;
mod model;
mod plan;
mod policy;
mod session;
mod study;
mod training;

use pyo3::prelude::*;

#[pymodule]
fn _thawline(module: &Bound<'_, PyModule>) -> PyResult<()> {
    logging::install();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<device::Device>()?;
    module.add_class::<model::Model>()?;
    module.add_class::<plan::Plan>()?;
    module.add_class::<policy::Policy>()?;
    module.add_class::<session::Session>()?;
    module.add_class::<study::Comparison>()?;
    module.add_function(wrap_pyfunction!(study::finetune, module)?)?;
    module.add_function(wrap_pyfunction!(study::compare, module)?)?;
    module.add_function(wrap_pyfunction!(device::devices, module)?)?;
    module.add_function(wrap_pyfunction!(model::models, module)?)?;
    module.add_function(wrap_pyfunction!(policy::recipes, module)?)
}
