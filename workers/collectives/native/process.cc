#include "process.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace rankmq {
namespace {

struct Stat {
  enum { kRead, kGone, kUnknown } found = kUnknown;
  char state = '?';
  uint64_t started = 0;
};

Stat read_stat(uint32_t pid) {
  Stat stat;
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%u/stat", pid);
  int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    stat.found = errno == ENOENT || errno == ESRCH ? Stat::kGone : Stat::kUnknown;
    return stat;
  }
  char text[1024];
  ssize_t length = ::read(file, text, sizeof text - 1);
  int error = errno;
  ::close(file);
  if (length <= 0) {
    stat.found = length < 0 && error == ESRCH ? Stat::kGone : Stat::kUnknown;
    return stat;
  }
  text[length] = 0;
  const char *after = std::strrchr(text, ')');  // the name before it may hold anything, blanks and brackets too
  if (after == nullptr || after[1] == 0 || after[2] == 0) return stat;
  stat.state = after[2];
  constexpr int kFieldsToStart = 19;  // from field 3, the state, to field 22
  const char *at = after + 2;
  for (int field = 0; field < kFieldsToStart && at != nullptr; ++field) {
    at = std::strchr(at, ' ');
    if (at != nullptr) ++at;
  }
  if (at == nullptr) return stat;
  stat.started = std::strtoull(at, nullptr, 10);
  stat.found = Stat::kRead;
  return stat;
}

}  // namespace

ProcessIdentity this_process() {
  ProcessIdentity identity;
  identity.pid = static_cast<uint32_t>(::getpid());
  Stat stat = read_stat(identity.pid);
  if (stat.found == Stat::kRead) identity.started = stat.started;
  struct stat file {};
  if (::stat("/proc/self/ns/pid", &file) == 0) identity.pid_namespace = file.st_ino;
  return identity;
}

bool has_ended(const ProcessIdentity &process, const ProcessIdentity &watcher) {
  if (process.pid == 0 || process.pid_namespace != watcher.pid_namespace) return false;
  if (process.started == 0 || watcher.started == 0) {  // no /proc
    return ::kill(static_cast<pid_t>(process.pid), 0) != 0 && errno == ESRCH;
  }
  Stat stat = read_stat(process.pid);
  if (stat.found != Stat::kRead) return stat.found == Stat::kGone;
  return stat.state == 'Z' || stat.state == 'X' || stat.state == 'x' || stat.started != process.started;
}

}  // namespace rankmq
