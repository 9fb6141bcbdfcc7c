// Where the ranks of a group wait for each other, and learn that they need not wait any longer.
#pragma once

#include <cstdint>
#include <vector>

#include "fault.h"
#include "process.h"
#include "segment.h"

namespace rankmq {

// Why a group is broken, as the rank that saw it first has written it down.
struct Cause {
  FaultKind kind = FaultKind::kNone;
  int rank = -1;  // at fault
  int by = -1;    // who saw it
};

// A rank that waits gives its core away at once, to whoever can run, and again and again for a while: where there are
// more ranks than cores, to sleep and to be woken takes longer than the others need. Then it sleeps in a futex. Every
// `kLookMs` it wakes up and looks whether those it waits for still live.
class Barrier {
 public:
  enum class Outcome { kPassed, kBroken, kNotYet };

  Barrier(Header *header, int rank, int size);

  // Takes the rank's place. Zero, or the process that has it.
  uint32_t claim();

  // Says that this rank has come; the last to come lets all go on. Returns the turn to wait for.
  uint32_t arrive();

  // Waits for a turn, `wait_ms` at most.
  //
  // everyone: look after those too who have come already. A group that is still being opened may wait long for a rank
  // that starts, and need not if another has died meanwhile.
  Outcome wait(uint32_t turn, int wait_ms, bool everyone);

  // Breaks the group, unless it is broken, and wakes those who wait.
  void break_off(FaultKind kind, int rank);

  Cause cause() const;

  // The ranks that have not come to a turn.
  std::vector<int> late(uint32_t turn) const;

  uint32_t process_of(int rank) const;

 private:
  bool passed(uint32_t turn) const;
  bool broken() const;
  bool is_late(int rank, uint32_t turn) const;
  void look(uint32_t turn, bool everyone);

  Header *const header_;
  const int rank_;
  const int size_;
  const ProcessIdentity self_;
  uint32_t turn_ = 0;  // the last one that this rank came to
};

}  // namespace rankmq
