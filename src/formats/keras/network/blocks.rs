//! The blocks of the networks of `keras.applications`, by the names of their layers.

/// The residual block that a layer belongs to, by the names that `keras.applications` gives: `block1a_dwconv` is in
/// `block1a`, `conv2_block1_1_conv` in `conv2_block1`, `block_1_expand` in `block_1`, `expanded_conv_project` in
/// `expanded_conv`, and so is `expanded_conv/project/BatchNorm`, as Keras 2 has it.
pub(super) fn block_of(path: &str) -> Option<String> {
    let is_block = |part: &str| {
        let is_number = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
        let rest = part.strip_prefix("expanded_conv");
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('_').is_some_and(is_number))
    };
    let mut ends = path.match_indices('/').map(|(slash, _)| slash);
    if let Some(end) = ends.find(|&end| is_block(path[..end].rsplit('/').next().unwrap_or_default())) {
        return Some(path[..end].to_owned());
    }
    let (model, name) = path.rsplit_once('/').map_or(("", path), |(model, name)| (&path[..=model.len()], name));
    if let Some(rest) = name.strip_prefix("expanded_conv_") {
        let number = rest.split_once('_').map_or("", |(number, _)| number);
        let block = match number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            true => "expanded_conv".to_owned(),
            false => format!("expanded_conv_{number}"),
        };
        return Some(format!("{model}{block}"));
    }
    let start = name.find("block")? + "block".len();
    let rest = &name[start..];
    let digits = rest.strip_prefix('_').unwrap_or(rest);
    let end = digits.find('_')?;
    let numbered = digits.starts_with(|c: char| c.is_ascii_digit());
    numbered.then(|| format!("{model}{}", &name[..start + (rest.len() - digits.len()) + end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_the_names_of_keras_applications() {
        for (name, block) in [
            ("block1a_dwconv", Some("block1a")),
            ("conv2_block1_1_conv", Some("conv2_block1")),
            ("block_1_expand", Some("block_1")),
            ("expanded_conv_project", Some("expanded_conv")),
            ("expanded_conv_3_depthwise", Some("expanded_conv_3")),
            ("expanded_conv/project", Some("expanded_conv")),
            ("base/expanded_conv_3/expand/BatchNorm", Some("base/expanded_conv_3")),
            ("expanded_convolutions/1", None),
            ("base/block2b_se_reduce.silu", Some("base/block2b")),
            ("stem_conv", None),
            ("blocks", None),
        ] {
            assert_eq!(block_of(name).as_deref(), block, "{name}");
        }
    }
}
