// What the ranks of a group share: one piece of memory, all zeros before the first of them touches it.
//
//   Header | slots of even rounds: rank 0, 1, ... | slots of odd rounds: rank 0, 1, ...
//
// There is nothing for a creator to set up, so that the ranks may come in any order and at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "process.h"

namespace rankmq {

constexpr int kMaxRanks = 64;
constexpr uint64_t kLayoutVersion = 1;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kLine = 64;
constexpr int kCallWords = 3;

struct alignas(kLine) Member {
  std::atomic<uint32_t> pid;   // 0 until the rank has come
  std::atomic<uint32_t> turn;  // the last barrier it came to
  std::atomic<uint64_t> started;
  std::atomic<uint64_t> pid_namespace;
  std::atomic<uint64_t> calls[2][kCallWords];  // what it does in this round, and in the one before: see call.h
};

struct Header {
  alignas(kLine) std::atomic<uint64_t> layout;   // version, number of ranks and size of a slot, from whoever came first
  alignas(kLine) std::atomic<uint32_t> arrived;  // at the barrier that is under way
  alignas(kLine) std::atomic<uint32_t> turn;     // waited on. Bit 0: the group is broken; the others: barriers passed
  alignas(kLine) std::atomic<uint64_t> broken;   // why, from whoever saw it first: see `Cause`
  Member members[kMaxRanks];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is 32 bits");

inline uint64_t rounded_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

inline uint64_t header_bytes() { return rounded_up(sizeof(Header), kPage); }

inline uint64_t segment_bytes(int size, uint64_t slot_bytes) {
  return header_bytes() + 2 * static_cast<uint64_t>(size) * slot_bytes;
}

}  // namespace rankmq
