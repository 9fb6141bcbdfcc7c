// What Python calls, through ctypes. Numbers and orders here are those of binding.py.

#include <algorithm>
#include <cstring>

#include "process_group.h"

#define RANKMQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace rankmq;

// Tells a fault: its kind, and through the pointers the rest; the text is cut off where its room ends.
int told(const Fault &fault, int *rank, char *text, uint64_t room) {
  *rank = fault.rank;
  if (room > 0) {
    const uint64_t length = std::min<uint64_t>(fault.message.size(), room - 1);
    std::memcpy(text, fault.message.data(), length);
    text[length] = 0;
  }
  return static_cast<int>(fault.kind);
}

}  // namespace

RANKMQ_EXPORT uint64_t rankmq_segment_bytes(int size, uint64_t slot_bytes) { return segment_bytes(size, slot_bytes); }

RANKMQ_EXPORT int rankmq_open(int file, int rank, int size, uint64_t slot_bytes, int timeout_ms, int *fault_rank,
                              char *text, uint64_t room) {
  GroupSettings settings;
  settings.rank = rank;
  settings.size = size;
  settings.slot_bytes = slot_bytes;
  settings.timeout_ms = timeout_ms;
  return told(ProcessGroup::instance().open(file, settings), fault_rank, text, room);
}

// 1 when every rank has joined, 0 when not all have within the time, else -1 and `rankmq_fault` says why.
RANKMQ_EXPORT int rankmq_wait_for_all(int wait_ms) {
  std::shared_ptr<Group> group = ProcessGroup::instance().group();
  if (!group) return -1;
  Fault fault;
  if (group->wait_for_all(wait_ms, &fault)) return 1;
  return fault.kind == FaultKind::kNone ? 0 : -1;
}

RANKMQ_EXPORT void rankmq_give_up_waiting(int waited_ms) {
  if (std::shared_ptr<Group> group = ProcessGroup::instance().group()) group->give_up_waiting(waited_ms);
}

RANKMQ_EXPORT void rankmq_begin_step(uint64_t step) {
  if (std::shared_ptr<Group> group = ProcessGroup::instance().group()) group->begin_step(step);
}

// A collective; `count` elements are given. The kind of fault, 0 if there was none.
RANKMQ_EXPORT int rankmq_run(int kind, int dtype, int reduction, int root, uint64_t count, const void *in, void *out) {
  Call call;
  call.kind = static_cast<Kind>(kind);
  call.dtype = static_cast<DType>(dtype);
  call.reduction = static_cast<Reduction>(reduction);
  call.root = static_cast<uint8_t>(root);
  call.count = count;
  return static_cast<int>(ProcessGroup::instance().run(call, in, out).kind);
}

RANKMQ_EXPORT int rankmq_fault(int *rank, char *text, uint64_t room) {
  return told(ProcessGroup::instance().fault(), rank, text, room);
}

RANKMQ_EXPORT void rankmq_abort() {
  if (std::shared_ptr<Group> group = ProcessGroup::instance().group()) group->abort();
}

RANKMQ_EXPORT void rankmq_close() { ProcessGroup::instance().close(); }
