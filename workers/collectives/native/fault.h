// Why a group no longer works.
#pragma once

#include <string>

namespace rankmq {

// The order is part of the interface to Python.
enum class FaultKind : int {
  kNone,
  kDead,         // the process of a rank has ended
  kTimeout,      // a rank did not come in time
  kAborted,      // a rank was told to give up
  kLeft,         // a rank has closed the group
  kMismatch,     // the ranks call different collectives
  kUnsupported,  // a collective that there is not, or a shape that cannot be divided
  kNotOpen,      // no group is open in this process
  kRefused,      // the group cannot be joined: other size, rank taken, no memory
};

struct Fault {
  FaultKind kind = FaultKind::kNone;
  int rank = -1;  // the rank at fault; -1 if it is none in particular
  std::string message;
};

}  // namespace rankmq
