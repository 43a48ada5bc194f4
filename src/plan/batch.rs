//! Calls for many tensors: the optimiser's step and the update of running moments are gathered, and the tensors that they read
//! are laid side by side.

use super::Storage;
use super::layout::Row;
use super::lower::{Lowering, Share, Value, Within};
use crate::graph::{AdamW, MOST_WORDS, NodeId, Op, Sgd, StatsUpdate, Variance};
use crate::kernels::segments::{Part, Table};
use crate::kernels::{Access, Dispatch, adamw, batch_norm_update, sgd};

/// Words of gradients that may wait for the optimiser: enough that calls are few, and little beside activations. 16 MiB.
const GRADIENT_WORDS: usize = 1 << 22;

/// A node that shares a call with others of its kind.
struct Member {
    node: NodeId,
    /// The values of its operands; the first is changed in place.
    operands: Vec<usize>,
}

/// Nodes that wait for the call that they share.
#[derive(Default)]
pub(super) struct Batch {
    members: Vec<Member>,
}

/// Who shares calls.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Optimizer,
    Moments,
}

/// Where a value lives, as far as it decides which values can lie side by side.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    /// In this one.
    In(usize),
    Scratch,
    Output,
    State,
    /// Nowhere but in a buffer of its own.
    Alone,
}

fn home(value: &Value) -> Home {
    match (value.within, value.storage) {
        (Some(place), _) => Home::In(place.value),
        (None, None) => Home::Scratch,
        (None, Some(Storage::Output)) => Home::Output,
        (None, Some(Storage::State(_))) => Home::State,
        _ => Home::Alone,
    }
}

impl Lowering<'_> {
    /// Has the node `id` share its call with those of its kind. `operands` are its values, the first of them changed in place.
    pub(super) fn gather(&mut self, kind: Kind, id: NodeId, operands: Vec<usize>) {
        if !self.joins(kind, &operands) {
            self.flush(kind);
        }
        self.batches[kind as usize].members.push(Member { node: id, operands });
    }

    /// Whether a node with these operands can share the call of those that wait.
    fn joins(&self, kind: Kind, operands: &[usize]) -> bool {
        let members = &self.batches[kind as usize].members;
        let Some(first) = members.first() else { return true };
        let value = |value: usize| &self.out.values[value];
        let alike = |(&a, &b): (&usize, &usize)| home(value(a)) == home(value(b)) && home(value(a)) != Home::Alone;
        let fits = |operand: usize| {
            let mut row = Row::default();
            for operands in members.iter().map(|member| &member.operands[..]).chain([operands]) {
                row.push(value(operands[operand]).words);
            }
            row.words <= if home(value(operands[operand])) == Home::Scratch { GRADIENT_WORDS } else { MOST_WORDS }
        };
        let waits = |value: &usize| members.iter().any(|member| member.operands[1..].contains(value));
        // wgpu refuses a call that writes one tensor of a buffer and reads another.
        let crosses = |operand: &usize| {
            self.calls_of[*operand].iter().map(|&call| &self.out.calls[call]).any(|call| {
                let bound = || call.dispatch.kernel.bindings.iter().zip(&call.bindings);
                let mut beside = bound().filter_map(|(_, value)| value.as_ref()).filter(|value| waits(value));
                let is_ours = |value: &usize| value == operand || waits(value);
                let mut written = bound().filter(|(binding, _)| binding.access == Access::Write);
                beside.next().is_some() && written.any(|(_, value)| value.as_ref().is_some_and(is_ours))
            })
        };
        operands.len() == first.operands.len()
            && operands.iter().zip(&first.operands).all(alike)
            && !operands[1..].iter().any(waits)
            && (1..operands.len()).all(fits)
            && !operands[1..].iter().any(crosses)
    }

    /// Makes the call of the nodes that wait.
    pub(super) fn flush(&mut self, kind: Kind) {
        let members = std::mem::take(&mut self.batches[kind as usize].members);
        let Some(last) = members.last().map(|member| member.node) else { return };
        let operands = members[0].operands.len();
        let mut buffers = Vec::with_capacity(operands);
        for operand in 0..operands {
            let values: Vec<usize> = members.iter().map(|member| member.operands[operand]).collect();
            buffers.push(self.side_by_side(&values));
        }
        let (dispatch, table) = self.dispatch(&members);
        let index = self.out.tables.len();
        let segments = Some(self.value(table.words().len(), Some(Storage::Table(index)), last));
        self.out.tables.push(table.words().to_vec());
        let buffer = |operand: usize| buffers.get(operand).copied();
        let bindings = match self.graph.node(last).op {
            Op::SgdStep(..) => vec![buffer(1), Some(self.step(last)), segments, buffer(0), buffer(2)],
            Op::AdamwStep(..) => vec![buffer(1), Some(self.step(last)), segments, buffer(0), buffer(2), buffer(3)],
            _ => vec![buffer(1), segments, buffer(0)],
        };
        let shares = members.iter().map(|member| {
            let words: usize = member.operands.iter().map(|&operand| self.out.values[operand].words).sum();
            Share { node: member.node, bytes: words as u64 * 4 }
        });
        let shares = shares.collect();
        self.shared_call(shares, dispatch, bindings);
    }

    /// The value that holds all of `values`, which becomes one if they lie apart.
    fn side_by_side(&mut self, values: &[usize]) -> usize {
        let first = &self.out.values[values[0]];
        if let Some(place) = first.within {
            return place.value;
        }
        let [_, _, ..] = values else { return values[0] };
        let storage = match first.storage {
            Some(Storage::State(_)) => Some(Storage::States),
            other => other,
        };
        let node = first.node;
        let all = self.value(0, storage, node);
        let mut row = Row::default();
        for &value in values {
            let at = row.push(self.out.values[value].words);
            self.out.values[value].within = Some(Within { value: all, at });
        }
        self.out.values[all].words = row.words;
        all
    }

    fn dispatch(&self, members: &[Member]) -> (Dispatch, Table) {
        match self.graph.node(members[0].node).op {
            Op::SgdStep(_, Sgd { momentum, nesterov, decoupled, .. }) => {
                sgd::step(&self.parts(members), sgd::Options { momentum, nesterov, decoupled })
            }
            Op::AdamwStep(_, AdamW { beta1, beta2, eps, .. }) => {
                adamw::step(&self.parts(members), adamw::Options { beta1, beta2, eps })
            }
            _ => batch_norm_update::update(&self.layers(members)),
        }
    }

    /// What an optimiser's step changes.
    fn parts(&self, members: &[Member]) -> Vec<Part> {
        let part = |member: &Member| {
            let node = self.graph.node(member.node);
            let (update, weight_decay) = match node.op {
                Op::SgdStep(update, sgd) => (update, sgd.weight_decay),
                Op::AdamwStep(update, adamw) => (update, adamw.weight_decay),
                _ => return None,
            };
            let [first, behind] = update.rows.map(|row| row * node.shape.stored_c());
            Some(Part {
                words: first..behind,
                at: [0, 1, 2, 3].map(|operand| self.begin(member, operand)),
                lr: update.lr,
                weight_decay: if update.decay { weight_decay } else { 0.0 },
            })
        };
        members.iter().filter_map(part).collect()
    }

    /// Whose running moments an update moves.
    fn layers(&self, members: &[Member]) -> Vec<batch_norm_update::Layer> {
        let layer = |member: &Member| {
            let node = self.graph.node(member.node);
            let Op::BatchNormUpdate { update, var, count, parts } = node.op else { return None };
            Some(batch_norm_update::Layer {
                channels: node.shape.c(),
                at: [0, 1].map(|operand| self.begin(member, operand)),
                keep: match update {
                    StatsUpdate::Ema { keep } => Some(keep),
                    StatsUpdate::Off | StatsUpdate::Cumulative => None,
                },
                unbiased: var == Variance::Unbiased,
                count,
                parts,
            })
        };
        members.iter().filter_map(layer).collect()
    }

    /// The word of its buffer at which an operand begins; 0 for one that the node does not have.
    fn begin(&self, member: &Member, operand: usize) -> usize {
        member.operands.get(operand).and_then(|&value| self.out.values[value].within).map_or(0, |place| place.at)
    }
}
