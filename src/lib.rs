//! A GPU compute backend for fine-tuning convolutional networks, in which freezing is compiled.
//!
//! In other tools, freezing is a flag that the runtime looks at. Here a policy says of each layer what trains, and of
//! each batch norm what it normalises by, whether its statistics move, and whether gamma and beta train; the compiler
//! turns network and policy into a plan that does that and nothing else. What is frozen runs as in inference: the batch
//! norm folded into its convolution, nothing kept, nothing differentiated. So a policy has a price, known before it
//! runs:
//!
//! ```
//! use thawline::compile::{Optimizer, Options};
//! use thawline::graph::Sgd;
//! use thawline::plan::Input;
//! use thawline::policy::{self, Policy};
//! use thawline::{models, report};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = models::build("resnet18", 8, (64, 64), 10)?;
//! let resolved = policy::resolve(&Policy::recipe("head")?, network)?;
//!
//! let optimizer = Optimizer::Sgd(Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4, decoupled: false });
//! let options = Options { optimizer, label_smoothing: 0.0, class_weights: false, accumulate: 1, export_gradients: false, seed: 0 };
//! let (price, plan) = report::price(&resolved, &options, Input::Values)?;
//!
//! // The frozen network keeps nothing for a backward pass, and runs no kernel of one.
//! let convolutions = || price.layers.iter().filter(|layer| layer.kind == "conv");
//! assert!(convolutions().all(|layer| layer.phases.kept_bytes == 0));
//! assert!(convolutions().all(|layer| layer.phases.kernels.iter().all(|kernel| !kernel.contains("grad"))));
//! assert!(plan.bytes() < price.full.ok_or("a batch of 8 can train in full")?.planned_bytes);
//! # Ok(())
//! # }
//! ```
//!
//! Each step on the way is a function from value to value, and all but the last need no device:
//!
//! | from | by | to |
//! |---|---|---|
//! | a name, or [`graph::Builder`] | [`models::build`] | a [`graph::Graph`] |
//! | that and a [`policy::Policy`] | [`policy::resolve`] | a [`policy::Resolved`] graph, and warnings |
//! | that | [`compile::training`], [`compile::inference`], [`compile::observation`] | the graph of one step |
//! | that | [`plan::Plan::new`] | kernel calls on slots of memory, and their cost |
//! | that | [`gpu::Executor`], or [`reference::Executor`] | results |
//!
//! [`train::Session`] does all of it for training batch by batch, [`train::Evaluator`] for inference, and
//! [`train::Run`] for whole runs with epochs and checkpoints. A [`train::Probe`] shows what batch norms see;
//! [`train::recalibrate`] estimates their statistics anew; [`train::examine`] and [`report::diagnose`] say what is
//! wrong with them. [`formats`] reads and writes files, [`data`] feeds images, [`report`] writes down what happened,
//! [`lab::Lab`] compares policies, [`lab::Grid`] measures what they take, [`export`] folds batch norms for good,
//! [`formats::onnx`] reads and writes other programs' networks, [`identify`] says which network a weights file is for, [`convert`] turns
//! weights over to another framework's variant of a network, [`model::Model`] is a file with its network as one, [`study`] sets up runs and comparisons from
//! a few options,
//! [`check::Checker`] tells which kernels are right on a device.
//! [`gpu::Device::from_wgpu`] takes a device that the caller already has.
//!
//! The feature `cli`, on by default, is for the binary, and `hub`, on by default, for fetching weights by name; a library
//! user sets `default-features = false`, and adds `hub` where it is wanted.

mod act;
// It waits for the device, on all cores.
#[cfg(not(target_arch = "wasm32"))]
pub mod check;
pub mod compile;
pub mod convert;
pub mod data;
pub mod export;
pub mod files;
pub mod formats;
pub mod gpu;
pub mod graph;
#[cfg(feature = "hub")]
pub mod hub;
pub mod identify;
pub mod kernels;
pub mod lab;
pub mod model;
pub mod models;
mod nearest;
pub mod plan;
pub mod policy;
pub mod preprocessing;
pub mod reference;
pub mod report;
pub mod rng;
pub mod study;
pub mod tensor;
pub mod text;
pub mod train;
pub mod weights;
mod window;
