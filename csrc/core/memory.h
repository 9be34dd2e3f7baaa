// Reuse of large blocks of the CPU's memory, which the system would otherwise take back and hand out page by page.
#pragma once

namespace deepclust {

// From each call with true until that with false, torch's freed blocks are kept for tensors of about their size. Calls
// count: the last false gives everything back.
void reuse_memory(bool on);

}  // namespace deepclust
