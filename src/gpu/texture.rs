//! Buffers seen through textures.
//!
//! A CPU driver loads from a storage buffer value by value and lane by lane, but a texel of a texture at once: several
//! times faster. Kernels that say so get a copy of a buffer in a texture, [`WIDTH`] texels a row, four values a texel.

use super::Device;
use wgpu::TextureFormat::Rgba32Float;

/// Texels a row, as the shaders' `textureLoad`s assume; half of what every adapter allows.
pub(super) const WIDTH: u32 = 4096;

/// The most words that fit.
pub(super) fn max_words(device: &Device) -> u64 {
    u64::from(WIDTH) * u64::from(device.info().limits.max_texture_dimension_2d) * 4
}

pub(super) struct Texture {
    texture: wgpu::Texture,
    pub view: wgpu::TextureView,
}

/// A texture for `words` words.
pub(super) fn create(device: &wgpu::Device, words: usize) -> Texture {
    let height = (words.div_ceil(4) as u32).div_ceil(WIDTH).max(1);
    let texture = device.create_texture(&wgpu::TextureDescriptor {
        label: Some("operand"),
        size: wgpu::Extent3d { width: WIDTH, height, depth_or_array_layers: 1 },
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: Rgba32Float,
        usage: wgpu::TextureUsages::TEXTURE_BINDING | wgpu::TextureUsages::COPY_DST,
        view_formats: &[],
    });
    let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
    Texture { texture, view }
}

/// Copies the `words` words that begin at a byte of a buffer.
pub(super) fn fill(
    encoder: &mut wgpu::CommandEncoder,
    texture: &Texture,
    (buffer, begin): (&wgpu::Buffer, u64),
    words: usize,
) {
    let texels = (words / 4) as u32;
    let (rows, rest) = (texels / WIDTH, texels % WIDTH);
    let mut copy = |row: u32, width: u32, height: u32| {
        let offset = begin + u64::from(row) * u64::from(WIDTH) * 16;
        let layout = wgpu::TexelCopyBufferLayout { offset, bytes_per_row: Some(WIDTH * 16), rows_per_image: None };
        let origin = wgpu::Origin3d { x: 0, y: row, z: 0 };
        encoder.copy_buffer_to_texture(
            wgpu::TexelCopyBufferInfo { buffer, layout },
            wgpu::TexelCopyTextureInfo { origin, ..texture.texture.as_image_copy() },
            wgpu::Extent3d { width, height, depth_or_array_layers: 1 },
        );
    };
    if rows > 0 {
        copy(0, WIDTH, rows);
    }
    if rest > 0 {
        copy(rows, rest, 1);
    }
}

/// Bytes of device memory.
pub(super) fn bytes(texture: &Texture) -> u64 {
    u64::from(WIDTH) * u64::from(texture.texture.height()) * 16
}
