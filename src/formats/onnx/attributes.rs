//! What nodes say beside their operands.

use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, NodeProto};
use crate::graph::Window;
use crate::models::Padding;

/// Stride and padding of a window over an image of so many rows and columns.
pub(super) fn window(node: &NodeProto, kernel: [usize; 2], image: [usize; 2]) -> Result<([usize; 2], Padding), String> {
    let pair = |name: &str| match ints(node, name)?.as_deref() {
        None => Ok(None),
        Some(&[h, w]) => Ok(Some([size(h)?, size(w)?])),
        Some(other) => Err(format!("its `{name}` is {other:?}; height and width are wanted")),
    };
    if pair("kernel_shape")?.is_some_and(|given| given != kernel) {
        return Err(format!("its `kernel_shape` is not the {kernel:?} of its weights"));
    }
    let dilations = pair("dilations")?.unwrap_or([1, 1]);
    if (0..2).any(|side| kernel[side] > 1 && dilations[side] != 1) {
        return Err("dilation is not supported".into());
    }
    let pads = match ints(node, "pads")?.as_deref() {
        None => [0; 4],
        Some(&[top, left, bottom, right]) => [size(top)?, size(left)?, size(bottom)?, size(right)?],
        Some(other) => return Err(format!("its `pads` are {other:?}; top, left, bottom and right are wanted")),
    };
    let stride = pair("strides")?.unwrap_or([1, 1]);
    let padding = match text(node, "auto_pad")?.as_deref() {
        None | Some("NOTSET") => Padding::Pixels(pads),
        Some("VALID") => Padding::Pixels([0; 4]),
        Some("SAME_UPPER") => Padding::Same,
        Some("SAME_LOWER") if !stride.contains(&0) => {
            // The odd pixel is at the top and on the left.
            let [top, left, bottom, right] = Window::same(kernel, stride, image).padding;
            Padding::Pixels([bottom, right, top, left])
        }
        Some(other) => return Err(format!("`auto_pad` {other} is not supported; SAME_UPPER and SAME_LOWER are")),
    };
    Ok((stride, padding))
}

/// What a pooling does.
pub(super) struct Pool {
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) padding: Padding,
    pub(super) ceil: bool,
}

/// A pooling, which may have `more` attributes, of an image of so many rows and columns.
pub(super) fn pool(node: &NodeProto, more: &[&str], image: [usize; 2]) -> Result<Pool, String> {
    let known = ["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides"];
    attributes(node, &[&known, more].concat())?;
    let kernel = match ints(node, "kernel_shape")?.as_deref() {
        Some(&[h, w]) => [size(h)?, size(w)?],
        _ => return Err("its `kernel_shape` is not height and width".into()),
    };
    let (stride, padding) = window(node, kernel, image)?;
    Ok(Pool { kernel, stride, padding, ceil: int(node, "ceil_mode", 0)? != 0 && padding != Padding::Same })
}

/// Refuses attributes that are not among `known`, or that a function is to give.
pub(super) fn attributes(node: &NodeProto, known: &[&str]) -> Result<(), String> {
    for attribute in &node.attribute {
        if !known.contains(&attribute.name()) {
            return Err(format!("its attribute `{}` is not supported", attribute.name()));
        }
        if !attribute.ref_attr_name().is_empty() {
            return Err(format!("its attribute `{}` is a function's, which is not supported", attribute.name()));
        }
    }
    Ok(())
}

fn attribute<'a>(node: &'a NodeProto, name: &str, kind: AttributeType) -> Result<Option<&'a AttributeProto>, String> {
    let found = node.attribute.iter().find(|attribute| attribute.name() == name);
    match found {
        // Old files leave the kind out.
        Some(attribute) if ![kind as i32, 0].contains(&attribute.r#type.unwrap_or(0)) => {
            Err(format!("its `{name}` is not of the kind {}", kind.as_str_name()))
        }
        found => Ok(found),
    }
}

pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> Result<i64, String> {
    Ok(attribute(node, name, AttributeType::Int)?.map_or(default, AttributeProto::i))
}

pub(super) fn float(node: &NodeProto, name: &str, default: f32) -> Result<f32, String> {
    Ok(attribute(node, name, AttributeType::Float)?.map_or(default, AttributeProto::f))
}

pub(super) fn ints(node: &NodeProto, name: &str) -> Result<Option<Vec<i64>>, String> {
    Ok(attribute(node, name, AttributeType::Ints)?.map(|attribute| attribute.ints.clone()))
}

pub(super) fn floats(node: &NodeProto, name: &str) -> Result<Option<Vec<f32>>, String> {
    Ok(attribute(node, name, AttributeType::Floats)?.map(|attribute| attribute.floats.clone()))
}

pub(super) fn text(node: &NodeProto, name: &str) -> Result<Option<String>, String> {
    let attribute = attribute(node, name, AttributeType::String)?;
    Ok(attribute.map(|attribute| String::from_utf8_lossy(attribute.s()).into_owned()))
}

/// A number of pixels, groups or the like.
pub(super) fn size(value: i64) -> Result<usize, String> {
    // Far above every network, and sums of some do not overflow.
    const MOST: i64 = 1 << 24;
    match (0..=MOST).contains(&value) {
        true => Ok(value as usize),
        false => Err(format!("{value} is no size; sizes are from 0 to {MOST}")),
    }
}

pub(super) fn near(a: f32, b: f32) -> bool {
    (a - b).abs() < 1e-5
}
