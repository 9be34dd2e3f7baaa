// Lets the emulated device know when an op runs, without any CUDA or emulator header.
#pragma once

namespace deepclust::emulator {

// Between these two, on the calling thread, new CPU tensors count as device memory that nobody wrote. They nest.
void begin_op();
void end_op();

}  // namespace deepclust::emulator
