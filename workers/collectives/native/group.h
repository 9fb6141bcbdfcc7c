// A group of ranks, as one of them sees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "barrier.h"
#include "call.h"
#include "fault.h"
#include "numbers.h"
#include "segment.h"

namespace rankmq {

struct GroupSettings {
  int rank = 0;
  int size = 1;             // up to kMaxRanks
  uint64_t slot_bytes = 0;  // what a rank can give in one round: a multiple of kLine, one line at least for every rank
  int timeout_ms = 0;       // how long a rank waits for the others in a collective
};

// The ranks must make the same calls in the same order. Whatever goes wrong breaks the group for all of them and is
// kept: later calls return the same fault at once, having written nothing. Calls of several threads come one after the
// other.
class Group {
 public:
  // memory: `segment_bytes(size, slot_bytes)` of them, which stay there as long as the group.
  Group(void *memory, const GroupSettings &settings);
  Group(const Group &) = delete;
  Group &operator=(const Group &) = delete;

  // Takes the rank's place in the group. A fault leaves the others as they were.
  Fault join();

  // Waits `wait_ms` at most for every rank to join. Calls that say that not all are there can be repeated.
  bool wait_for_all(int wait_ms, Fault *fault);

  // Ends that wait for all the others too, and says who is missing.
  Fault give_up_waiting(int waited_ms);

  // The collectives. `call` says which, `out` has room for `out_count(call)` elements.
  Fault run(Call call, const void *in, void *out);
  uint64_t out_count(const Call &call) const;

  // For a collective that cannot be done: the others must not wait for it.
  Fault refuse(const std::string &message);

  // The collectives that follow belong to this step, and are counted anew.
  void begin_step(uint64_t step);

  // Break the group, from any thread: whoever waits in it returns at once.
  void abort() { barrier_.break_off(FaultKind::kAborted, settings_.rank); }
  void leave() { barrier_.break_off(FaultKind::kLeft, settings_.rank); }

  // The first fault that this rank has met; from any thread.
  Fault fault();

  int size() const { return settings_.size; }

 private:
  // What the collectives consist of: rounds of as much as fits into a slot. They throw a Fault.
  void all_reduce(const Call &call, const std::byte *in, std::byte *out);
  void all_gather(const Call &call, const std::byte *in, std::byte *out);
  void broadcast(const Call &call, const std::byte *in, std::byte *out);
  void reduce_scatter(const Call &call, const std::byte *in, std::byte *out);

  // Begins a round: those who read the memory of two rounds ago have left it.
  void next_round() { ++round_; }
  std::byte *slot(int rank) const;
  void meet(const Call &call);
  void synchronize(const Call &call);
  void compare();

  std::string why_not(const Call &call) const;
  Fault described(const Cause &cause, const Call &call) const;
  Fault keep(Fault fault);

  Header *const header_;
  std::byte *const slots_;
  const GroupSettings settings_;
  Barrier barrier_;

  std::mutex calling_;  // held as long as a collective takes
  uint64_t round_ = 0;
  uint32_t opening_ = 0;  // the turn at which all have joined
  uint64_t step_ = 0;
  uint32_t number_ = 0;

  std::mutex keeping_;
  Fault kept_;
};

}  // namespace rankmq
