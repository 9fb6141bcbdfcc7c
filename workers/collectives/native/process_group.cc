#include "process_group.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/mman.h>
#include <sys/stat.h>

namespace rankmq {
namespace {

// A mapping, and the group in it.
struct MappedGroup {
  MappedGroup(void *at, uint64_t length, const GroupSettings &settings)
      : memory(at), bytes(length), group(at, settings) {}
  ~MappedGroup() { ::munmap(memory, bytes); }
  MappedGroup(const MappedGroup &) = delete;
  MappedGroup &operator=(const MappedGroup &) = delete;

  void *memory;
  uint64_t bytes;
  Group group;
};

Fault refused(const std::string &message) { return {FaultKind::kRefused, -1, message}; }

}  // namespace

ProcessGroup &ProcessGroup::instance() {
  static ProcessGroup *const only = new ProcessGroup;
  return *only;
}

Fault ProcessGroup::open(int file, const GroupSettings &settings) {
  close();
  const uint64_t least = static_cast<uint64_t>(settings.size) * kLine;
  if (settings.size < 1 || settings.size > kMaxRanks || settings.rank < 0 || settings.rank >= settings.size) {
    return refused("rank " + std::to_string(settings.rank) + " of " + std::to_string(settings.size) +
                   ": a group has 1 to " + std::to_string(kMaxRanks) + " ranks, counted from 0");
  }
  if (settings.slot_bytes < least || settings.slot_bytes % kLine != 0 || settings.slot_bytes > UINT32_MAX) {
    return refused("a slot is a multiple of " + std::to_string(kLine) + " bytes, at least " + std::to_string(least) +
                   " and under 4 GiB, not " + std::to_string(settings.slot_bytes));
  }
  const uint64_t bytes = segment_bytes(settings.size, settings.slot_bytes);
  struct stat status {};
  if (::fstat(file, &status) != 0 || static_cast<uint64_t>(status.st_size) < bytes) {
    return refused("the segment has less than " + std::to_string(bytes) + " bytes");
  }
  void *memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return refused(std::string("the segment cannot be mapped: ") + std::strerror(errno));
  auto mapped = std::make_shared<MappedGroup>(memory, bytes, settings);
  if (Fault fault = mapped->group.join(); fault.kind != FaultKind::kNone) return fault;
  std::lock_guard<std::mutex> lock(mutex_);
  group_ = std::shared_ptr<Group>(mapped, &mapped->group);
  without_group_ = {};
  return {};
}

void ProcessGroup::close() {
  std::shared_ptr<Group> left;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    left = std::exchange(group_, nullptr);
    without_group_ = {};
  }
  if (left) left->leave();
}

std::shared_ptr<Group> ProcessGroup::group() {
  std::lock_guard<std::mutex> lock(mutex_);
  return group_;
}

Fault ProcessGroup::run(const Call &call, const void *in, void *out) {
  std::shared_ptr<Group> open_one = group();
  return open_one ? open_one->run(call, in, out) : keep_not_open(call.text());
}

Fault ProcessGroup::refuse(const std::string &message) {
  std::shared_ptr<Group> open_one = group();
  return open_one ? open_one->refuse(message) : keep_not_open(message);
}

Fault ProcessGroup::fault() {
  if (std::shared_ptr<Group> open_one = group()) return open_one->fault();
  std::lock_guard<std::mutex> lock(mutex_);
  return without_group_;
}

Fault ProcessGroup::keep_not_open(const std::string &message) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (without_group_.kind == FaultKind::kNone) {
    without_group_ = {FaultKind::kNotOpen, -1, "no group is open in this process: " + message};
  }
  return without_group_;
}

}  // namespace rankmq
