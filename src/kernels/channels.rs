//! Channels moved between tensors: concatenation, slices, the channel shuffle, and their gradients.

use super::{Args, Dispatch, Kernel, LINEAR, linear_groups, params, read, shader, write};
use crate::tensor::Shape;

params! {
    pub struct Params {
        pixels: u32,
        /// Of a pixel of x and of z.
        x_quads: u32,
        z_quads: u32,
        /// The first channels.
        x_begin: u32,
        z_begin: u32,
        channels: u32,
        /// Cut the channels into as many runs, and take one of each in turn.
        groups: u32,
        /// The quads of each pixel of z that are written.
        first: u32,
        quads: u32,
        /// What happens to the other channels of those quads, and to those that are there: `Fill`, `Keep` or `Add`.
        mode: u32,
    }
}

/// What becomes of z.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Its other channels become 0.
    Fill,
    /// Those before `z_begin` stay; those behind become 0.
    Keep,
    /// The channels are added to it.
    Add,
}

/// Copies channels of x to z, or adds them.
pub static COPY: Kernel = Kernel {
    name: "copy_channels",
    source: shader!("copy_channels", "index"),
    entry: "copy_channels",
    workgroup: [LINEAR, 1, 1],
    params: Params::FIELDS,
    bindings: &[read("x"), write("z")],
    overrides: &[],
    subgroups: false,
    reference,
};

/// Writes a tensor of shape `x` to the channels from `begin` on of one of shape `z`. A concatenation places one operand after
/// the other, since those that follow overwrite the padding that this leaves.
pub fn place(x: Shape, z: Shape, begin: usize) -> Dispatch {
    let (first, end) = (begin / 4, (begin + x.c()).div_ceil(4));
    copy(x, z, Range { x: 0, z: begin, channels: x.c() }, 1, first..end, Mode::Keep)
}

/// The channels from `begin` on of a tensor of shape `x`, as one of shape `z`, or added to it.
pub fn slice(x: Shape, z: Shape, begin: usize, accumulate: bool) -> Dispatch {
    let mode = if accumulate { Mode::Add } else { Mode::Fill };
    copy(x, z, Range { x: begin, z: 0, channels: z.c() }, 1, 0..z.quads(), mode)
}

/// A tensor of shape `x` as the channels from `begin` on of one of shape `z` that is zero elsewhere.
pub fn embed(x: Shape, z: Shape, begin: usize) -> Dispatch {
    copy(x, z, Range { x: 0, z: begin, channels: x.c() }, 1, 0..z.quads(), Mode::Fill)
}

/// A tensor of shape `x` added to the channels from `begin` on of one of shape `z`.
pub fn add(x: Shape, z: Shape, begin: usize) -> Dispatch {
    let (first, end) = (begin / 4, (begin + x.c()).div_ceil(4));
    copy(x, z, Range { x: 0, z: begin, channels: x.c() }, 1, first..end, Mode::Add)
}

/// Channel `j·groups + i` of the result is channel `i·(C/groups) + j` of x.
pub fn shuffle(x: Shape, groups: usize) -> Dispatch {
    copy(x, x, Range { x: 0, z: 0, channels: x.c() }, groups, 0..x.quads(), Mode::Fill)
}

/// Which channels go where.
struct Range {
    x: usize,
    z: usize,
    channels: usize,
}

fn copy(x: Shape, z: Shape, range: Range, groups: usize, quads: std::ops::Range<usize>, mode: Mode) -> Dispatch {
    let params = Params {
        pixels: x.pixels() as u32,
        x_quads: x.quads() as u32,
        z_quads: z.quads() as u32,
        x_begin: range.x as u32,
        z_begin: range.z as u32,
        channels: range.channels as u32,
        groups: groups as u32,
        first: quads.start as u32,
        quads: quads.len() as u32,
        mode: mode as u32,
    };
    let aligned = groups == 1 && range.x % 4 == range.z % 4;
    Dispatch::new(&COPY, params, linear_groups(x.pixels() * quads.len())).with(aligned, "aligned")
}

fn reference(args: Args<'_>) {
    let (p, [x, z]) = args.unpack::<Params, 2>();
    let (x_stride, z_stride) = (p.x_quads as usize * 4, p.z_quads as usize * 4);
    for pixel in 0..p.pixels as usize {
        for c in p.first * 4..(p.first + p.quads) * 4 {
            let z = &mut z[pixel * z_stride + c as usize];
            let inside = c.checked_sub(p.z_begin).filter(|&place| place < p.channels);
            let value = inside.map(|place| {
                let from = place % p.groups * (p.channels / p.groups) + place / p.groups;
                x[pixel * x_stride + (p.x_begin + from) as usize]
            });
            match value {
                Some(value) if p.mode == Mode::Add as u32 => *z += value,
                Some(value) => *z = value,
                None if p.mode == Mode::Add as u32 || p.mode == Mode::Keep as u32 && c < p.z_begin => {}
                None => *z = 0.0,
            }
        }
    }
}
