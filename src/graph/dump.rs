//! The text form of a graph: one line a node, stable, for tests and for reading.

use super::{Graph, Op};
use std::fmt;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, node) in self.nodes() {
            write!(f, "%{:<4} {:<8} {}", id.0, node.phase.name(), node.op.name())?;
            let operands: Vec<String> = node.inputs.iter().map(|i| format!("%{}", i.0)).collect();
            write!(f, "({}) {}", operands.join(", "), node.shape)?;
            match &node.op {
                Op::Param(p) => write!(f, " {:?}", self.params[p.index()].role)?,
                Op::Feature(index) => write!(f, " {index}")?,
                Op::State(s) => write!(f, " {:?}", self.states[s.index()].kind)?,
                Op::Conv2d(c) => {
                    write!(f, " stride {:?} padding {:?}", c.window.stride, c.window.padding)?;
                    write!(f, "{}{} {:?}", flag(c.bias, " +bias"), flag(c.residual, " +residual"), c.act)?;
                }
                Op::BatchNormStats { domains } if *domains > 1 => write!(f, " domains {domains}")?,
                Op::BatchNormBlend { alpha } => write!(f, " {alpha}")?,
                Op::BatchNormRenorm { r_max, d_max, .. } => write!(f, " {r_max} {d_max}")?,
                Op::BatchNormApply(a) => write!(f, "{} {:?}", flag(a.residual, " +residual"), a.act)?,
                Op::Activation { act, .. } | Op::Add { act, .. } => write!(f, " {act:?}")?,
                Op::Conv2dInputGrad { accumulate: true, .. } => write!(f, " +=")?,
                Op::SgdStep(u, _) | Op::AdamwStep(u, _) => write!(f, " lr×{} rows {:?}", u.lr, u.rows)?,
                Op::BatchNormUpdate { update, var, .. } => write!(f, " {update:?} {var:?}")?,
                _ => {}
            }
            match node.layer {
                Some(layer) => writeln!(f, "  # {}", self.layers[layer.index()].name)?,
                None => writeln!(f)?,
            }
        }
        for (output, id) in &self.outputs {
            writeln!(f, "output {output} = %{}", id.0)?;
        }
        Ok(())
    }
}

fn flag(set: bool, text: &'static str) -> &'static str {
    if set { text } else { "" }
}
