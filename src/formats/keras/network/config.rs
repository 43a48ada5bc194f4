//! A layer's configuration, and how it is called.

use super::KerasError;
use serde_json::Value;

/// The layer that is being read.
pub(super) struct Layer<'a> {
    pub(super) path: &'a str,
    pub(super) class: &'a str,
    /// Where Python finds the class; Keras 2's `.h5` does not say it.
    pub(super) module: &'a str,
    pub(super) config: &'a Value,
    /// How it is called: what is in its `inbound_nodes`.
    pub(super) call: &'a Value,
}

impl<'a> Layer<'a> {
    pub(super) fn error(&self, reason: impl Into<String>) -> KerasError {
        KerasError::Layer { layer: self.path.into(), class: self.class.into(), reason: reason.into() }
    }

    /// One number for both directions, or one for each.
    pub(super) fn pair(&self, key: &str) -> Result<[usize; 2], KerasError> {
        let number = |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok());
        let value = &self.config[key];
        let pair = match value.as_array().map(Vec::as_slice) {
            Some([h, w]) => number(h).zip(number(w)),
            Some([one]) => number(one).map(|one| (one, one)),
            Some(_) => None,
            None => number(value).map(|both| (both, both)),
        };
        pair.map(|(h, w)| [h, w]).ok_or_else(|| self.error(format!("`{key}` is {value}, not two whole numbers")))
    }

    pub(super) fn count(&self, key: &str) -> Result<usize, KerasError> {
        let value = &self.config[key];
        let count = value.as_u64().and_then(|value| usize::try_from(value).ok());
        count.ok_or_else(|| self.error(format!("`{key}` is {value}, not a whole number")))
    }

    pub(super) fn float(&self, key: &str, default: f64) -> Result<f64, KerasError> {
        match &self.config[key] {
            Value::Null => Ok(default),
            value => value.as_f64().ok_or_else(|| self.error(format!("`{key}` is {value}, not a number"))),
        }
    }

    /// Whether an option that defaults to `default` is on.
    pub(super) fn is_on(&self, key: &str, default: bool) -> bool {
        self.config[key].as_bool().unwrap_or(default)
    }

    /// Refuses an option that is set to what is not supported.
    pub(super) fn only(&self, key: &str, supported: &[Value]) -> Result<(), KerasError> {
        match &self.config[key] {
            Value::Null => Ok(()),
            value if supported.contains(value) => Ok(()),
            value => Err(self.error(format!("{key}={value} is not supported, only {}", supported[0]))),
        }
    }

    /// A number for each of the three channels of an image.
    pub(super) fn channels(&self, value: &Value) -> Result<[f64; 3], KerasError> {
        let mut numbers = Vec::new();
        flatten(value, &mut numbers);
        match numbers[..] {
            [one] => Ok([one; 3]),
            [red, green, blue] => Ok([red, green, blue]),
            _ => Err(self.error(format!("{} numbers are not one for each channel of an image", numbers.len()))),
        }
    }

    /// The word for an activation, which newer files have as an object.
    pub(super) fn activation(&self) -> &str {
        let value = &self.config["activation"];
        value.as_str().or_else(|| value["config"].as_str()).or_else(|| value["class_name"].as_str()).unwrap_or("linear")
    }

    /// The layer that is the activation, if it is one: `activation=LeakyReLU(0.1)`.
    pub(super) fn activation_layer(&self) -> Option<Self> {
        let value = &self.config["activation"];
        let config = value.get("config").filter(|config| config.is_object())?;
        Some(Self { class: value["class_name"].as_str()?, config, ..*self })
    }

    /// The axis of a concatenation, which TensorFlow's own has in its call.
    pub(super) fn axis(&self) -> &Value {
        self.config.get("axis").unwrap_or(&self.call[0][3]["axis"])
    }
}

/// All numbers in lists within lists.
pub(super) fn flatten(value: &Value, out: &mut Vec<f64>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| flatten(value, out)),
        value => out.extend(value.as_f64()),
    }
}

/// A layer's own name.
pub(super) fn name_of(layer: &Value) -> &str {
    layer["config"]["name"].as_str().or_else(|| layer["name"].as_str()).unwrap_or_default()
}

/// The name of a class, of which Keras 2 says that it is not its own where it is one of keras.applications.
pub(super) fn own_class(class: &str) -> &str {
    match class.strip_prefix("Custom>") {
        Some(own @ ("CustomScaleLayer" | "LayerScale" | "StochasticDepth")) => own,
        _ => class,
    }
}

/// What arithmetic a layer does, whether it is a layer or an operation that Keras made one.
pub(super) fn operation<'a>(layer: &Layer<'a>) -> &'a str {
    match (layer.class, layer.config["function"].as_str()) {
        ("TFOpLambda", Some("math.truediv")) => "TrueDivide",
        ("TFOpLambda", Some("math.subtract")) => "Subtract",
        ("TFOpLambda", Some("math.multiply")) => "Multiply",
        ("TFOpLambda", Some("math.add" | "__operators__.add" | "nn.bias_add")) => "Add",
        ("TFOpLambda", Some("concat")) => "Concatenate",
        ("SlicingOpLambda", Some("__operators__.getitem")) => "GetItem",
        ("Divide", _) => "TrueDivide",
        (class, _) => class,
    }
}

/// An argument of a layer by the name of the layer that gives it, or a number or several in lists.
pub(super) enum Argument<'a> {
    Layer(&'a str),
    Constant(&'a Value),
}

/// The arguments of a layer's call: `[["name", 0, 0, {}], …]` in Keras 2, `{"args": […], "kwargs": {…}}` in Keras 3.
pub(super) fn arguments(node: &Value) -> Vec<Argument<'_>> {
    fn keras_2<'a>(value: &'a Value, out: &mut Vec<Argument<'a>>) {
        if let Some((name, options)) = reference(value) {
            out.push(Argument::Layer(name));
            // The second operand of arithmetic.
            match options.and_then(|options| options.get("y").or_else(|| options.get("bias"))) {
                None | Some(Value::Null) => {}
                Some(value) => out.push(match reference(value) {
                    Some((name, _)) => Argument::Layer(name),
                    None => Argument::Constant(value),
                }),
            }
        } else if let Some(values) = value.as_array() {
            values.iter().for_each(|value| keras_2(value, out));
        }
    }
    fn keras_3<'a>(value: &'a Value, out: &mut Vec<Argument<'a>>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| keras_3(value, out)),
            Value::Number(_) => out.push(Argument::Constant(value)),
            value if value["class_name"] == "__tensor__" => out.push(Argument::Constant(&value["config"]["value"])),
            value => {
                out.extend(reference(&value["config"]["keras_history"]).map(|(name, _)| Argument::Layer(name)));
            }
        }
    }
    let mut out = Vec::new();
    let Some(args) = node.get("args") else {
        keras_2(node, &mut out);
        return out;
    };
    keras_3(args, &mut out);
    // Numbers among the options are none of the operands.
    for option in node["kwargs"].as_object().into_iter().flat_map(|options| options.values()) {
        out.extend(reference(&option["config"]["keras_history"]).map(|(name, _)| Argument::Layer(name)));
    }
    out
}

/// The layer in `["name", node, tensor]`, and what may stand behind it.
fn reference(value: &Value) -> Option<(&str, Option<&Value>)> {
    match value.as_array()?.as_slice() {
        [Value::String(name), Value::Number(_), Value::Number(_)] => Some((name, None)),
        [Value::String(name), Value::Number(_), Value::Number(_), options] => Some((name, Some(options))),
        _ => None,
    }
}

/// The layers in a list of references, or in one.
pub(super) fn references(value: &Value) -> Vec<&str> {
    match reference(value) {
        Some((name, _)) => vec![name],
        None => value.as_array().into_iter().flatten().filter_map(|value| Some(reference(value)?.0)).collect(),
    }
}
