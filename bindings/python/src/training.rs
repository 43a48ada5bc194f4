//! What a training step is made of, from Python's keywords.

use crate::error::Error;
use thawline::compile::{Optimizer, Options};
use thawline::graph::{AdamW, Sgd};

/// An optimiser by its keywords; `None` is the optimiser's default.
pub struct OptimizerKeywords<'a> {
    pub optimizer: &'a str,
    pub momentum: Option<f32>,
    pub nesterov: bool,
    pub weight_decay: Option<f32>,
    pub betas: Option<(f64, f64)>,
    pub eps: Option<f32>,
}

impl OptimizerKeywords<'_> {
    pub fn optimizer(&self) -> Result<Optimizer, Error> {
        let weight_decay = |default| {
            let value = self.weight_decay.unwrap_or(default);
            check(value >= 0.0 && value.is_finite(), "weight_decay", f64::from(value), "a number of at least 0")?;
            Ok::<_, Error>(value)
        };
        match self.optimizer {
            "sgd" => {
                let foreign = [("betas", self.betas.is_some()), ("eps", self.eps.is_some())];
                refuse(foreign, "adamw")?;
                let momentum = self.momentum.unwrap_or(0.9);
                let share = (0.0..1.0).contains(&momentum);
                check(share, "momentum", f64::from(momentum), "a number from 0 up to, but not including, 1")?;
                if self.nesterov && momentum == 0.0 {
                    return Err(Error::argument("nesterov needs a momentum above 0"));
                }
                let (nesterov, weight_decay) = (self.nesterov, weight_decay(0.0)?);
                Ok(Optimizer::Sgd(Sgd { momentum, nesterov, weight_decay, decoupled: false }))
            }
            "adamw" => {
                refuse([("momentum", self.momentum.is_some()), ("nesterov", self.nesterov)], "sgd")?;
                let (beta1, beta2) = self.betas.unwrap_or((0.9, 0.999));
                for beta in [beta1, beta2] {
                    let expected = "numbers from 0 up to, but not including, 1";
                    check((0.0..1.0).contains(&beta), "betas", beta, expected)?;
                }
                let eps = self.eps.unwrap_or(1e-8);
                check(eps > 0.0 && eps.is_finite(), "eps", f64::from(eps), "a number above 0")?;
                Ok(Optimizer::AdamW(AdamW { beta1, beta2, eps, weight_decay: weight_decay(0.01)? }))
            }
            other => Err(Error::argument(format!("optimizer: expected \"sgd\" or \"adamw\", not {other:?}"))),
        }
    }
}

/// Refuses keywords that were given to the wrong optimiser.
fn refuse<const N: usize>(given: [(&str, bool); N], of: &str) -> Result<(), Error> {
    match given.iter().find(|(_, given)| *given) {
        Some((keyword, _)) => Err(Error::argument(format!("{keyword} is a keyword of optimizer=\"{of}\""))),
        None => Ok(()),
    }
}

/// Refuses a keyword's value.
pub fn check(fits: bool, keyword: &str, value: f64, expected: &str) -> Result<(), Error> {
    if fits { Ok(()) } else { Err(Error::argument(format!("{keyword} is {value}: expected {expected}"))) }
}

/// The options of a step whose loss is plain cross-entropy.
pub fn options(optimizer: Optimizer, accumulate: usize) -> Result<Options, Error> {
    check(accumulate > 0, "accumulate", accumulate as f64, "at least 1")?;
    Ok(Options { accumulate, ..Options::new(optimizer) })
}
