
// A NaN stays one, so that it reaches the loss and stops the run; `max` would be free to drop it.
fn relu(y: vec4<f32>) -> vec4<f32> {
    return select(y, vec4<f32>(), y <= vec4<f32>());
}
