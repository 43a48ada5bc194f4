
// The parameters of the same names, for the compiler. Loops over them are written as loops of a constant number of turns,
// as many as the array has elements that they go over: then every driver unrolls them, drops the turns that are not
// taken, and keeps the arrays in registers.
override kernel_h: u32 = 3u;
override kernel_w: u32 = 3u;
override stride_h: u32 = 1u;
override stride_w: u32 = 1u;
// Of a strip, at most four.
override columns: u32 = 4u;
