//! A look at a file's bytes before they are decoded, so that what decoding takes is bounded by the size of the file.
//!
//! A message takes two bytes in a file and some hundred in memory, and a hostile file is all messages. An honest one is
//! nearly all tensors.

/// Messages and texts in a file. A layer takes about twenty.
const MAX_PARTS: usize = 200_000;

/// Bytes that are not values of tensors.
const MAX_STRUCTURE: usize = 16 << 20;

/// Bytes of messages that import has no use for: functions, subgraphs, training.
const MAX_UNUSED: usize = 1 << 20;

/// What matters of a message: its fields by number.
struct Message {
    /// Messages that are looked into.
    inner: &'static [(u64, &'static Message)],
    /// Values of tensors, which take no more in memory than four times what they take here.
    values: &'static [u64],
    /// Messages that are not looked into.
    unused: &'static [u64],
}

static LEAF: Message = Message { inner: &[], values: &[], unused: &[] };
static TENSOR: Message =
    Message { inner: &[(3, &LEAF), (13, &LEAF), (16, &LEAF)], values: &[4, 5, 9, 10], unused: &[] };
static SHAPE: Message = Message { inner: &[(1, &LEAF)], ..LEAF };
static TENSOR_TYPE: Message = Message { inner: &[(2, &SHAPE)], ..LEAF };
static TYPE: Message = Message { inner: &[(1, &TENSOR_TYPE)], values: &[], unused: &[4, 5, 7, 8, 9] };
static VALUE: Message = Message { inner: &[(2, &TYPE), (4, &LEAF)], ..LEAF };
static ATTRIBUTE: Message =
    Message { inner: &[(5, &TENSOR), (10, &TENSOR)], values: &[], unused: &[6, 11, 14, 15, 22, 23] };
static NODE: Message = Message { inner: &[(5, &ATTRIBUTE), (9, &LEAF)], values: &[], unused: &[10] };
static GRAPH: Message = Message {
    inner: &[(1, &NODE), (5, &TENSOR), (11, &VALUE), (12, &VALUE), (13, &VALUE), (16, &LEAF)],
    values: &[],
    unused: &[14, 15],
};
static MODEL: Message = Message { inner: &[(7, &GRAPH), (8, &LEAF), (14, &LEAF)], values: &[], unused: &[20, 25, 26] };

/// What has been seen so far.
#[derive(Default)]
struct Seen {
    parts: usize,
    structure: usize,
    unused: usize,
}

/// Refuses bytes whose decoding would take many times their size.
///
/// # Errors
/// A sentence on what is too much, or that the bytes are no protobuf message.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    Seen::default().message(bytes, &MODEL)
}

impl Seen {
    fn message(&mut self, mut bytes: &[u8], of: &Message) -> Result<(), String> {
        while !bytes.is_empty() {
            let start = bytes.len();
            let key = varint(&mut bytes)?;
            let (field, wire) = (key >> 3, key & 7);
            let content = match wire {
                0 => {
                    varint(&mut bytes)?;
                    None
                }
                1 => split(&mut bytes, 8).map(|_| None)?,
                5 => split(&mut bytes, 4).map(|_| None)?,
                2 => {
                    let length = varint(&mut bytes)?;
                    Some(split(&mut bytes, length)?)
                }
                _ => return Err("its fields cannot be read; export or download it again".into()),
            };
            let Some(content) = content else {
                self.structure += start - bytes.len();
                self.limit()?;
                continue;
            };
            self.parts += 1;
            if let Some((_, inner)) = of.inner.iter().find(|(number, _)| *number == field) {
                self.message(content, inner)?;
            } else if of.unused.contains(&field) {
                self.unused += content.len();
            } else if !of.values.contains(&field) {
                self.structure += content.len();
            }
            self.limit()?;
        }
        Ok(())
    }

    fn limit(&self) -> Result<(), String> {
        for (found, most, what) in [
            (self.parts, MAX_PARTS, "parts"),
            (self.structure, MAX_STRUCTURE, "bytes beside its tensors"),
            (self.unused, MAX_UNUSED, "bytes of functions, subgraphs or the like"),
        ] {
            if found > most {
                return Err(format!("it has more than {most} {what}, which no network needs"));
            }
        }
        Ok(())
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = *split(bytes, 1)? else { break };
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("its fields cannot be read; export or download it again".into())
}

fn split<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let cut = || format!("it ends in the middle: {length} bytes are announced, and {} follow", bytes.len());
    let length = usize::try_from(length).ok().filter(|&length| length <= bytes.len()).ok_or_else(cut)?;
    let (content, rest) = bytes.split_at(length);
    *bytes = rest;
    Ok(content)
}
