
// A matrix product through workgroup memory. Of `rows` × `columns` invocations each computes 8 rows and `width` quads of columns,
// `columns` quads apart, so that neighbours read and write neighbouring quads. A slab of what is summed over is 16 values deep.
// `Tile` in src/kernels/conv2d.rs lists the values.
override rows: u32 = 16u;
override columns: u32 = 16u;
override width: u32 = 2u;

override invocations: u32 = rows * columns;
override tile_rows: u32 = rows * 8u;
override tile_quads: u32 = columns * width;
// Quads of a slab of the left and of the right operand, and how many of them an invocation loads.
override left_size: u32 = rows * 32u;
override right_size: u32 = columns * width * 16u;
override left_loads: u32 = 32u / columns;
override right_loads: u32 = 16u * width / rows;

// The most loads of an invocation, and the most quads that it computes: the lengths of arrays that stay in registers, since
// loops over them are as long as the constants above say.
const MOST_LOADS: u32 = 4u;
const MOST_SUMS: u32 = 16u;
