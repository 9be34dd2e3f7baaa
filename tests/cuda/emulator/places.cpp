// Where a checked access stands, for messages.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "checker.h"
#include "shadow.h"

namespace deepclust::emulator {
namespace {

// Asks addr2line, which belongs to every compiler's binutils, for the file:line of an address. Of functions inlined
// into one another it takes the innermost that is not the emulator's own.
void describe_address(const char* return_address, char* text, size_t size) {
  Dl_info module;
  if (dladdr(return_address, &module) == 0) {
    snprintf(text, size, "%p", static_cast<const void*>(return_address));
    return;
  }
  const auto offset = static_cast<size_t>(return_address - 1 - static_cast<const char*>(module.dli_fbase));  // the call
  const char* file = module.dli_fname;
  if (access(file, R_OK) != 0) file = "/proc/self/exe";  // a program started by a relative path, since left
  snprintf(text, size, "%s+%#zx", base_name(file), offset);
  char command[1024];
  snprintf(command, sizeof(command), "addr2line -i -e '%s' %#zx 2>/dev/null", file, offset);
  FILE* frames = popen(command, "r");
  if (frames == nullptr) return;
  char frame[1024];
  while (fgets(frame, sizeof(frame), frames) != nullptr) {
    frame[strcspn(frame, " \n")] = '\0';  // after the line may stand "(discriminator 2)"
    if (frame[0] == '?') break;           // no debug information
    snprintf(text, size, "%s", base_name(frame));
    if (std::strstr(frame, "/emulator/") == nullptr) break;
  }
  pclose(frames);
}

}  // namespace

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

void Where::describe(char* text, size_t size) const {
  const auto* pointer = reinterpret_cast<const char*>(bits_ >> 16);
  if (bits_ == 0) {
    snprintf(text, size, "the host");
  } else if ((bits_ & 0xFFFF) == kAddress) {
    describe_address(pointer, text, size);
  } else {
    snprintf(text, size, "%s:%d", base_name(pointer), static_cast<int>(bits_ & 0xFFFF));
  }
}

}  // namespace deepclust::emulator
