use crate::train::{EpochMetrics, Totals};
use std::fmt::Write;

pub(super) const HEADER: &str =
    "epoch,step,lr,train_loss,train_top1,train_top5,val_loss,val_top1,val_top5,skipped,val_balanced\n";

/// A table of all epochs, one a line; epoch 0 is the state before training. Losses are means in nats, `top1` and `top5`
/// shares from 0 to 1, `skipped` counts broken images, and `val_balanced` is the balanced accuracy on the validation images.
/// What was not measured stays empty.
pub fn csv(history: &[EpochMetrics]) -> String {
    let columns = |totals: Option<Totals>| match totals {
        Some(totals) => format!("{},{},{}", totals.mean_loss(), totals.accuracy(), totals.top5_accuracy()),
        None => ",,".to_owned(),
    };
    let mut table = HEADER.to_owned();
    for EpochMetrics { epoch, step, lr, train, val, skipped, val_balanced } in history {
        let (train, val) = (columns(*train), columns(*val));
        let balanced = val_balanced.map_or(String::new(), |balanced| balanced.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{epoch},{step},{lr},{train},{val},{skipped},{balanced}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_an_epoch() {
        let totals = |loss, top1| Some(Totals { loss, top1, top5: 4, samples: 4 });
        let unknown =
            EpochMetrics { epoch: 0, step: 0, lr: 0.0, train: None, val: None, skipped: 0, val_balanced: None };
        let before = EpochMetrics { val: totals(6.0, 1), ..unknown };
        let after = EpochMetrics {
            epoch: 1,
            step: 5,
            lr: 1e-3,
            train: totals(1.0, 3),
            val: totals(f64::NAN, 2),
            skipped: 2,
            val_balanced: Some(0.625),
        };
        let expected = format!("{HEADER}0,0,0,,,,1.5,0.25,1,0,\n1,5,0.001,0.25,0.75,1,NaN,0.5,1,2,0.625\n");
        assert_eq!(csv(&[before, after]), expected);
    }
}
