
// The inputs that the window of output `o` covers along one axis, from the first to behind the last, padding apart.
fn covered(o: i32, kernel: i32, stride: i32, padding: i32, inputs: i32) -> vec2<i32> {
    let first = o * stride - padding;
    return vec2<i32>(max(first, 0), min(first + kernel, inputs));
}

// The outputs whose windows cover input `i` along one axis, from the first to behind the last.
fn covering(i: i32, kernel: i32, stride: i32, padding: i32, outputs: i32) -> vec2<i32> {
    let last = i + padding;
    return vec2<i32>((max(last - kernel + 1, 0) + stride - 1) / stride, min(last / stride + 1, outputs));
}

// How many of the pixels of the window of output `o` count along one axis: of the border `before` pixels before the image, and all
// before `end`.
fn counted(o: i32, kernel: i32, stride: i32, padding: i32, before: i32, end: i32) -> i32 {
    let first = o * stride - padding;
    return min(first + kernel, end) - max(first, -before);
}
