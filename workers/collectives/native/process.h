// A process as others of its host can watch it: its number, and when it was started, since numbers are used again.
#pragma once

#include <cstdint>

namespace rankmq {

struct ProcessIdentity {
  uint32_t pid = 0;
  uint64_t started = 0;        // field 22 of /proc/<pid>/stat, in clock ticks since boot; 0 where there is no /proc
  uint64_t pid_namespace = 0;  // inode of /proc/self/ns/pid: elsewhere the number means another process
};

ProcessIdentity this_process();

// Whether a process has ended, be it reaped or not. False for one that cannot be seen from this process's namespace.
bool has_ended(const ProcessIdentity &process, const ProcessIdentity &watcher);

}  // namespace rankmq
