// What a rank says it is about to do, for the others to compare with what they do.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "numbers.h"
#include "segment.h"

namespace rankmq {

// The order is part of the interface to Python.
enum class Kind : uint8_t { kNone, kAllReduce, kAllGather, kBroadcast, kReduceScatter, kBarrier };

inline const char *name_of(Kind kind) {
  constexpr const char *kNames[] = {"nothing", "AllReduce", "AllGather", "Broadcast", "ReduceScatter", "barrier"};
  return kNames[static_cast<size_t>(kind)];
}

struct Call {
  Kind kind = Kind::kNone;
  DType dtype = DType::kNone;
  Reduction reduction = Reduction::kNone;
  uint8_t root = 0;
  uint32_t number = 0;  // counted from 1 in each step
  uint64_t count = 0;   // elements that this rank gives
  uint64_t step = 0;

  bool operator==(const Call &other) const {
    return kind == other.kind && dtype == other.dtype && reduction == other.reduction && root == other.root &&
           number == other.number && count == other.count && step == other.step;
  }

  // Relaxed: the barrier that follows is what makes it seen. Atomic all the same, since a rank that gives up waiting
  // looks at what the late one did last.
  void write(std::atomic<uint64_t> *words) const {
    words[0].store(static_cast<uint64_t>(kind) | static_cast<uint64_t>(dtype) << 8 |
                       static_cast<uint64_t>(reduction) << 16 | static_cast<uint64_t>(root) << 24 |
                       static_cast<uint64_t>(number) << 32,
                   std::memory_order_relaxed);
    words[1].store(count, std::memory_order_relaxed);
    words[2].store(step, std::memory_order_relaxed);
  }

  static Call read(const std::atomic<uint64_t> *words) {
    uint64_t first = words[0].load(std::memory_order_relaxed);
    Call call;
    call.kind = static_cast<Kind>(first & 0xff);
    call.dtype = static_cast<DType>(first >> 8 & 0xff);
    call.reduction = static_cast<Reduction>(first >> 16 & 0xff);
    call.root = static_cast<uint8_t>(first >> 24 & 0xff);
    call.number = static_cast<uint32_t>(first >> 32);
    call.count = words[1].load(std::memory_order_relaxed);
    call.step = words[2].load(std::memory_order_relaxed);
    return call;
  }

  // Such as "AllReduce(max) of 64 float32 (call 3 of step 17)".
  std::string text() const {
    if (kind == Kind::kNone) return "nothing yet";
    std::string out = name_of(kind);
    if (reduction != Reduction::kNone) out += std::string("(") + name_of(reduction) + ")";
    if (kind == Kind::kBroadcast) out += " from rank " + std::to_string(root);
    if (kind != Kind::kBarrier) out += " of " + std::to_string(count) + " " + name_of(dtype);
    return out + " (call " + std::to_string(number) + " of step " + std::to_string(step) + ")";
  }
};

}  // namespace rankmq
