//! The named policies.

/// A policy that has a name.
pub struct Recipe {
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Applied in order to a network in which everything is frozen.
    pub rules: &'static [&'static str],
    /// Rules that are added after a share of a run's optimiser steps.
    pub stages: &'static [(f64, &'static [&'static str])],
}

/// What PyTorch's `model.train()` switches on with the batch norms' batch statistics: recipes that stand for it do, too. The
/// others leave stochastic depth alone, so that what is frozen runs as inference. A network may have neither, and for the
/// recipes that are not about batch norms none of those either (`kind:bn?`).
const DROPOUT: &str = "kind:dropout? -> dropout=on";
const STOCHASTIC_DEPTH: &str = "kind:stochastic_depth? -> dropout=on";

/// Running moments follow at the pace that the network is made for: a keep of 0.9 in most of torchvision's. Batch
/// renormalisation's bounds are those of its paper (Ioffe 2017).
pub static RECIPES: &[Recipe] = &[
    Recipe {
        name: "full",
        summary: "everything trains; batch norms normalise by the batch and follow it (PyTorch's model.train())",
        rules: &[
            "!kind:bn -> weights=train",
            "kind:bn? -> stats=batch, update=ema, affine=both",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[],
    },
    Recipe {
        name: "full-frozen-bn",
        summary: "every weight trains; batch norms stay exactly as they are (FrozenBatchNorm2d)",
        rules: &["!kind:bn -> weights=train", DROPOUT, STOCHASTIC_DEPTH],
        stages: &[],
    },
    Recipe {
        name: "keras-guide",
        summary: "every weight, gamma and beta train; running statistics stay and are what normalises",
        rules: &["!kind:bn -> weights=train", "kind:bn? -> stats=running, update=off, affine=both", DROPOUT],
        stages: &[],
    },
    Recipe {
        name: "head",
        summary: "the head, which gives the classes, trains; everything below it is frozen",
        rules: &["head -> weights=train", DROPOUT],
        stages: &[],
    },
    Recipe {
        name: "bn-only",
        summary: "the head trains, and batch norms in full: batch statistics, running statistics, gamma and beta",
        rules: &["head -> weights=train", "kind:bn -> stats=batch, update=ema, affine=both", DROPOUT, STOCHASTIC_DEPTH],
        stages: &[],
    },
    Recipe {
        name: "bn-affine",
        summary: "the head trains, and gamma and beta under fixed running statistics",
        rules: &[
            "head -> weights=train",
            "kind:bn -> stats=running, update=off, affine=both",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[],
    },
    Recipe {
        name: "head-adapt",
        summary: "the head trains, and running statistics still move (PyTorch's requires_grad=False trap, on purpose)",
        rules: &["head -> weights=train", "kind:bn -> stats=batch, update=ema", DROPOUT, STOCHASTIC_DEPTH],
        stages: &[],
    },
    // Wu & Johnson 2021, "Rethinking Batch in BatchNorm": train as inference will be.
    Recipe {
        name: "full-then-frozen-bn",
        summary: "as full, and for the last fifth of the steps batch norms normalise by their running statistics",
        rules: &[
            "!kind:bn -> weights=train",
            "kind:bn -> stats=batch, update=ema, affine=both",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[(0.8, &["kind:bn -> stats=running, update=off"])],
    },
    // Kumar et al. 2022, LP-FT.
    Recipe {
        name: "head-then-full",
        summary: "the head alone for three tenths of the steps, then everything (LP-FT)",
        rules: &["head -> weights=train", DROPOUT],
        stages: &[(
            0.3,
            &["!kind:bn -> weights=train", "kind:bn? -> stats=batch, update=ema, affine=both", STOCHASTIC_DEPTH],
        )],
    },
    Recipe {
        name: "full-renorm",
        summary: "everything trains; batch norms normalise by running statistics held near the batch's (renormalised)",
        rules: &[
            "!kind:bn -> weights=train",
            "kind:bn -> stats=renorm(3,5), update=ema, affine=both",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[],
    },
    Recipe {
        name: "full-ghost",
        summary: "everything trains; batch norms normalise each 8 images of the batch by their own statistics",
        rules: &[
            "!kind:bn -> weights=train",
            "kind:bn -> stats=batch, update=ema, affine=both, domain=ghost(8)",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[],
    },
    Recipe {
        name: "full-accumulated",
        summary: "as full, but batch norms normalise by all micro-batches of a step together, in the memory that takes",
        rules: &[
            "!kind:bn -> weights=train",
            "kind:bn -> stats=batch, update=ema, affine=both, domain=accumulated",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[],
    },
    Recipe {
        name: "bn-blend",
        summary: "the head trains, and batch norms, which normalise halfway between running and batch statistics",
        rules: &[
            "head -> weights=train",
            "kind:bn -> stats=blend(0.5), update=ema, affine=both",
            DROPOUT,
            STOCHASTIC_DEPTH,
        ],
        stages: &[],
    },
];
