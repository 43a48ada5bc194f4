//! Which Dense layers take a flattened image, and how many channels it has.
//!
//! Keras flattens an image pixel by pixel; the tensors here have PyTorch's order, channel by channel. Between the two, only the
//! number of channels has to be known.

use std::collections::HashMap;

use serde_json::Value;

use super::names::{MAX_DEPTH, MAX_PATHS, charge};

/// What a layer gives.
#[derive(Clone, Copy)]
struct Output {
    channels: usize,
    /// Whether it is an image in one row.
    flat: bool,
}

impl Output {
    const IMAGES: Self = Self { channels: 3, flat: false };
}

/// For each Dense layer that takes a flattened image, by its path, the image's channels.
///
/// # Errors
/// The names are too long.
pub(super) fn channels(config: &Value) -> Result<HashMap<String, usize>, String> {
    let mut walk = Walk { found: HashMap::new(), left: MAX_PATHS };
    walk.model(config, "", &[Output::IMAGES], 0)?;
    Ok(walk.found)
}

struct Walk {
    found: HashMap<String, usize>,
    /// Bytes that paths may still take.
    left: usize,
}

impl Walk {
    /// What a model gives; `prefix` is its path, empty or with a slash behind it.
    fn model(&mut self, model: &Value, prefix: &str, inputs: &[Output], depth: usize) -> Result<Output, String> {
        let config = &model["config"];
        let mut last = inputs.first().copied().unwrap_or(Output::IMAGES);
        if depth == MAX_DEPTH {
            return Ok(last);
        }
        let in_row = config.get("input_layers").is_none();
        let mut outputs: HashMap<&str, Output> =
            references(&config["input_layers"]).into_iter().zip(inputs.iter().copied()).collect();
        // Keras 2.1 and older had a list where a Sequential's configuration is an object now.
        let layers = config.get("layers").unwrap_or(config).as_array();
        for layer in layers.into_iter().flatten().filter(|layer| layer["class_name"] != "InputLayer") {
            let name = layer["config"]["name"].as_str().or_else(|| layer["name"].as_str()).unwrap_or_default();
            let of_call = references(&layer["inbound_nodes"]).into_iter().filter_map(|name| outputs.get(name).copied());
            let inputs = if in_row { vec![last] } else { of_call.collect() };
            last = self.layer(layer, name, prefix, &inputs, depth)?;
            outputs.insert(name, last);
        }
        let named = references(&config["output_layers"]).first().and_then(|name| outputs.get(name).copied());
        Ok(named.unwrap_or(last))
    }

    fn layer(
        &mut self,
        layer: &Value,
        name: &str,
        prefix: &str,
        inputs: &[Output],
        depth: usize,
    ) -> Result<Output, String> {
        let config = &layer["config"];
        let x = inputs.first().copied().unwrap_or(Output::IMAGES);
        let count = |key: &str| config[key].as_u64().and_then(|count| usize::try_from(count).ok());
        if config.get("layers").is_some() {
            let path = format!("{prefix}{name}/");
            charge(&mut self.left, &path)?;
            return self.model(layer, &path, inputs, depth + 1);
        }
        let class = layer["class_name"].as_str().unwrap_or_default();
        Ok(match class {
            "Dense" => {
                if x.flat {
                    let path = format!("{prefix}{name}");
                    charge(&mut self.left, &path)?;
                    self.found.insert(path, x.channels);
                }
                Output { channels: count("units").unwrap_or(0), flat: false }
            }
            "Conv2D" | "SeparableConv2D" => Output { channels: count("filters").unwrap_or(0), flat: false },
            "Flatten" => Output { flat: true, ..x },
            // To one row, or between [C] and [1, 1, C].
            "Reshape" => Output { flat: config["target_shape"].as_array().is_some_and(|sizes| sizes.len() == 1), ..x },
            "Concatenate" | "TFOpLambda" if inputs.len() > 1 && is_concatenation(class, config) => {
                let channels = inputs.iter().fold(0, |sum: usize, x| sum.saturating_add(x.channels));
                Output { channels, flat: inputs.iter().any(|x| x.flat) }
            }
            _ => x,
        })
    }
}

fn is_concatenation(class: &str, config: &Value) -> bool {
    class == "Concatenate" || config["function"] == "concat"
}

/// The layers that a call or a list refers to, as `["name", node, tensor, …]`.
fn references(value: &Value) -> Vec<&str> {
    fn collect<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Array(values) => match &values[..] {
                [Value::String(name), Value::Number(_), Value::Number(_), rest @ ..] => {
                    out.push(name);
                    rest.iter().for_each(|value| collect(value, out));
                }
                values => values.iter().for_each(|value| collect(value, out)),
            },
            Value::Object(entries) => entries.values().for_each(|value| collect(value, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    collect(value, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_channels_of_what_is_flattened_are_found() {
        let layer = |class: &str, name: &str, more: Value, inputs: &[&str]| {
            let mut config = json!({"name": name});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let call: Vec<Value> = inputs.iter().map(|name| json!([name, 0, 0, {}])).collect();
            json!({"class_name": class, "name": name, "config": config, "inbound_nodes": [call]})
        };
        let base = json!({"class_name": "Sequential", "name": "base", "inbound_nodes": [[["image", 0, 0, {}]]], "config": {
            "name": "base",
            "layers": [layer("Conv2D", "conv", json!({"filters": 6}), &[]), layer("ReLU", "relu", json!({}), &[])],
        }});
        let config = json!({"class_name": "Functional", "config": {
            "input_layers": [["image", 0, 0]],
            "output_layers": [["logits", 0, 0]],
            "layers": [
                layer("InputLayer", "image", json!({}), &[]),
                base,
                layer("Conv2D", "other", json!({"filters": 5}), &["image"]),
                layer("Concatenate", "both", json!({"axis": -1}), &["base", "other"]),
                layer("Flatten", "flat", json!({}), &["both"]),
                layer("Dropout", "dropout", json!({}), &["flat"]),
                layer("Dense", "hidden", json!({"units": 7}), &["dropout"]),
                layer("Reshape", "row", json!({"target_shape": [-1]}), &["other"]),
                layer("Dense", "second", json!({"units": 7}), &["row"]),
                layer("Add", "add", json!({}), &["hidden", "second"]),
                layer("Dense", "logits", json!({"units": 3}), &["add"]),
            ],
        }});
        let found = channels(&config).unwrap();
        assert_eq!(found, HashMap::from([("hidden".to_owned(), 11), ("second".to_owned(), 5)]));
        assert!(channels(&json!({})).unwrap().is_empty());
    }
}
