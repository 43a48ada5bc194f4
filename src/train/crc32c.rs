//! CRC-32C (Castagnoli), the checksum that checkpoints and TensorBoard's event files use.

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut entry = index as u32;
        let mut bit = 0;
        while bit < 8 {
            entry = (entry >> 1) ^ if entry & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[index] = entry;
        index += 1;
    }
    table
};

/// A checksum under way.
pub struct Crc32c(u32);

impl Crc32c {
    pub fn new() -> Self {
        Self(!0)
    }

    pub fn update(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 >> 8) ^ TABLE[usize::from(self.0 as u8 ^ byte)];
        }
        self
    }

    pub fn finish(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // The check value of the CRC catalogue, and RFC 3720's for 32 zero bytes.
        assert_eq!(Crc32c::new().update(b"1234").update(b"56789").finish(), 0xe306_9283);
        assert_eq!(Crc32c::new().update(&[0; 32]).finish(), 0x8a91_36aa);
    }
}
