//! Devices, and those that are open.

use crate::error::{Error, detached, lock};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use thawline::gpu::{self, Backend, DeviceInfo, DeviceOptions};

/// Devices that were asked for by name, or as the default, and stay open: opening and compiling kernels takes long.
static OPENED: Mutex<BTreeMap<Option<String>, gpu::Device>> = Mutex::new(BTreeMap::new());

/// A GPU, or a driver that computes on the CPU.
///
/// Args:
///     select: A number of `devices()` or a part of a device's name; without it, the fastest kind of device.
///     backend: "vulkan", "metal", "dx12" or "gl": looks at the devices of one interface only.
///     timeout: Seconds for which the device may finish nothing, while it is waited for, before that is an error.
#[pyclass(frozen, module = "thawline")]
pub struct Device {
    pub inner: gpu::Device,
}

#[pymethods]
impl Device {
    #[new]
    #[pyo3(signature = (select=None, *, backend=None, timeout=None))]
    fn new(py: Python<'_>, select: Option<Select>, backend: Option<&str>, timeout: Option<f64>) -> PyResult<Self> {
        let timeout = timeout.map(Duration::try_from_secs_f64).transpose();
        let timeout = timeout.map_err(|_| Error::argument("timeout: expected a number of seconds, at least 0"))?;
        let options = DeviceOptions {
            select: select.map(Select::text),
            backend: backend.map(parse_backend).transpose()?,
            timeout,
            ..DeviceOptions::default()
        };
        Ok(Self { inner: detached(py, || Ok(gpu::Device::open(&options)?))? })
    }

    /// The device's name, as its driver gives it.
    #[getter]
    fn name(&self) -> &str {
        &self.inner.info().name
    }

    /// Vulkan, Metal, DX12 or GL.
    #[getter]
    fn backend(&self) -> &str {
        &self.inner.info().backend
    }

    /// The same facts as an entry of `devices()`, without the index.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        to_dict(py, self.inner.info())
    }

    fn __repr__(&self) -> String {
        let info = self.inner.info();
        format!("<thawline.Device {}, {}>", info.name, info.backend)
    }
}

/// A device by number or by a part of its name.
#[derive(FromPyObject)]
pub enum Select {
    Index(usize),
    Name(String),
}

impl Select {
    fn text(self) -> String {
        match self {
            Self::Index(index) => index.to_string(),
            Self::Name(name) => name,
        }
    }
}

/// What calls take as `device`.
#[derive(FromPyObject)]
pub enum DeviceArgument {
    Device(Py<Device>),
    Select(Select),
}

impl DeviceArgument {
    /// The device that is meant; nothing is the default. Opens it if no call has yet.
    pub fn open(py: Python<'_>, argument: Option<Self>) -> PyResult<gpu::Device> {
        let select = match argument {
            Some(Self::Device(device)) => return Ok(device.get().inner.clone()),
            Some(Self::Select(select)) => Some(select.text()),
            None => None,
        };
        detached(py, || {
            let mut opened = lock(&OPENED)?;
            if let Some(device) = opened.get(&select) {
                return Ok(device.clone());
            }
            let device = gpu::Device::open(&DeviceOptions { select: select.clone(), ..DeviceOptions::default() })?;
            opened.insert(select, device.clone());
            Ok(device)
        })
    }
}

/// Closes the opened devices once nothing uses them. What was locked is left alone: it is being opened.
pub fn forget() {
    if let Ok(mut opened) = OPENED.try_lock() {
        opened.clear();
    }
}

/// Every device that can be opened, a dict each; the first is the default.
///
/// `index`, `name`, `driver`, `backend`, `kind` ("discrete GPU", "integrated GPU", "CPU", …), `largest_buffer` in bytes,
/// and `features`, by WebGPU's names.
#[pyfunction]
#[pyo3(signature = (backend=None))]
pub fn devices<'py>(py: Python<'py>, backend: Option<&str>) -> PyResult<Bound<'py, PyList>> {
    let backend = backend.map(parse_backend).transpose()?;
    let found = PyList::empty(py);
    for (index, info) in detached(py, || Ok(gpu::list(backend)?))?.iter().enumerate() {
        let device = to_dict(py, info)?;
        device.set_item("index", index)?;
        found.append(device)?;
    }
    Ok(found)
}

fn parse_backend(name: &str) -> Result<Backend, Error> {
    let wrong = || Error::argument(format!("backend: expected one of {}, not `{name}`", Backend::names()));
    Backend::of_name(name).ok_or_else(wrong)
}

fn to_dict<'py>(py: Python<'py>, info: &DeviceInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &info.name)?;
    dict.set_item("driver", &info.driver)?;
    dict.set_item("backend", &info.backend)?;
    dict.set_item("kind", info.kind)?;
    dict.set_item("largest_buffer", info.largest_buffer())?;
    dict.set_item("features", &info.features)?;
    Ok(dict)
}
