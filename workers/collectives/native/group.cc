#include "group.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace rankmq {
namespace {

// Up to this size every rank adds up everything by itself, which saves the second barrier.
constexpr uint64_t kSmallBytes = 4096;

uint64_t layout_of(const GroupSettings &settings) {
  return kLayoutVersion << 56 | static_cast<uint64_t>(settings.size) << 48 | settings.slot_bytes;
}

void put(std::byte *to, const std::byte *from, uint64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);  // an empty tensor may have no address
}

std::string seconds(int ms) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g s", ms / 1000.0);
  return text;
}

std::string listed(const std::vector<int> &ranks) {
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t index = 0; index < ranks.size(); ++index) {
    out += (index > 0 ? ", " : "") + std::to_string(ranks[index]);
  }
  return out;
}

}  // namespace

Group::Group(void *memory, const GroupSettings &settings)
    : header_(static_cast<Header *>(memory)),
      slots_(static_cast<std::byte *>(memory) + header_bytes()),
      settings_(settings),
      barrier_(header_, settings.rank, settings.size) {}

// ------------------------------------------------------------------------------------------------------ opening

Fault Group::join() {
  uint64_t layout = 0;
  if (!header_->layout.compare_exchange_strong(layout, layout_of(settings_)) && layout != layout_of(settings_)) {
    return keep({FaultKind::kRefused, -1,
                 "the group has " + std::to_string(layout >> 48 & 0xff) + " ranks with slots of " +
                     std::to_string(layout & 0xffffffffffff) + " bytes, not " + std::to_string(settings_.size) +
                     " with " + std::to_string(settings_.slot_bytes)});
  }
  if (uint32_t holder = barrier_.claim(); holder != 0) {
    return keep({FaultKind::kRefused, settings_.rank,
                 "rank " + std::to_string(settings_.rank) + " is taken by process " + std::to_string(holder)});
  }
  opening_ = barrier_.arrive();
  return {};
}

bool Group::wait_for_all(int wait_ms, Fault *fault) {
  switch (barrier_.wait(opening_, wait_ms, true)) {
    case Barrier::Outcome::kPassed:
      return true;
    case Barrier::Outcome::kBroken:
      *fault = keep(described(barrier_.cause(), Call{}));
      return false;
    default:
      return false;
  }
}

Fault Group::give_up_waiting(int waited_ms) {
  const std::vector<int> missing = barrier_.late(opening_);
  barrier_.break_off(FaultKind::kTimeout, missing.empty() ? settings_.rank : missing[0]);
  return keep({FaultKind::kTimeout, missing.empty() ? -1 : missing[0],
               listed(missing) + " did not open the group within " + seconds(waited_ms)});
}

// -------------------------------------------------------------------------------------------------- collectives

Fault Group::run(Call call, const void *in, void *out) {
  std::lock_guard<std::mutex> lock(calling_);
  if (Fault met = fault(); met.kind != FaultKind::kNone) return met;
  call.step = step_;
  call.number = ++number_;
  if (std::string reason = why_not(call); !reason.empty()) return refuse(reason);
  const std::byte *from = static_cast<const std::byte *>(in);
  std::byte *to = static_cast<std::byte *>(out);
  try {
    switch (call.kind) {
      case Kind::kAllReduce:
        all_reduce(call, from, to);
        break;
      case Kind::kAllGather:
        all_gather(call, from, to);
        break;
      case Kind::kBroadcast:
        broadcast(call, from, to);
        break;
      case Kind::kReduceScatter:
        reduce_scatter(call, from, to);
        break;
      default:
        next_round();
        meet(call);
    }
  } catch (const Fault &met) {
    return keep(met);
  } catch (const std::exception &error) {  // no memory for a message
    return refuse(error.what());
  }
  return {};
}

uint64_t Group::out_count(const Call &call) const {
  const uint64_t size = static_cast<uint64_t>(settings_.size);
  return call.kind == Kind::kAllGather ? call.count * size
                                       : call.kind == Kind::kReduceScatter ? call.count / size : call.count;
}

std::string Group::why_not(const Call &call) const {
  if (call.kind == Kind::kBarrier) return "";
  const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
  if (width_of(call.dtype) == 0 || (reduces && reducer_for(call.dtype, call.reduction) == nullptr)) {
    return call.text() + " cannot be done through shared memory";
  }
  if (call.kind == Kind::kBroadcast && call.root >= settings_.size) {
    return call.text() + " in a group of " + std::to_string(settings_.size) + ": there is no such rank";
  }
  if (call.kind == Kind::kReduceScatter && call.count % static_cast<uint64_t>(settings_.size) != 0) {
    return call.text() + " cannot be divided between " + std::to_string(settings_.size) + " ranks";
  }
  return "";
}

void Group::all_reduce(const Call &call, const std::byte *in, std::byte *out) {
  const uint64_t width = width_of(call.dtype);
  const uint64_t size = static_cast<uint64_t>(settings_.size);
  const uint64_t rank = static_cast<uint64_t>(settings_.rank);
  const Reducer reduce = reducer_for(call.dtype, call.reduction);
  const std::byte *sources[kMaxRanks];
  uint64_t done = 0;
  do {
    const uint64_t count = std::min(call.count - done, settings_.slot_bytes / width);
    next_round();
    for (int peer = 0; peer < settings_.size; ++peer) sources[peer] = slot(peer);
    put(slot(settings_.rank), in + done * width, count * width);
    meet(call);
    std::byte *result = out + done * width;
    if (count * width <= kSmallBytes) {
      reduce(sources, settings_.size, 0, count, result);
    } else {  // each adds up its part, in its own slot, and takes the others' parts from theirs
      const uint64_t part = rounded_up((count + size - 1) / size, kLine);
      const uint64_t begin = std::min(rank * part, count);
      const uint64_t end = std::min(begin + part, count);
      reduce(sources, settings_.size, begin, end, slot(settings_.rank) + begin * width);
      synchronize(call);
      for (uint64_t at = 0, peer = 0; at < count; at += part, ++peer) {
        put(result + at * width, sources[peer] + at * width, std::min(part, count - at) * width);
      }
    }
    done += count;
  } while (done < call.count);
}

void Group::all_gather(const Call &call, const std::byte *in, std::byte *out) {
  const uint64_t bytes = call.count * width_of(call.dtype);
  uint64_t done = 0;
  do {
    const uint64_t count = std::min(bytes - done, settings_.slot_bytes);
    next_round();
    put(slot(settings_.rank), in + done, count);
    meet(call);
    for (int peer = 0; peer < settings_.size; ++peer) {
      put(out + static_cast<uint64_t>(peer) * bytes + done, slot(peer), count);
    }
    done += count;
  } while (done < bytes);
}

void Group::broadcast(const Call &call, const std::byte *in, std::byte *out) {
  const uint64_t bytes = call.count * width_of(call.dtype);
  const bool mine = call.root == settings_.rank;
  uint64_t done = 0;
  do {  // the root has the slots of all to itself
    const uint64_t count = std::min(bytes - done, settings_.slot_bytes * static_cast<uint64_t>(settings_.size));
    next_round();
    if (mine) put(slot(0), in + done, count);
    meet(call);
    put(out + done, mine ? in + done : slot(0), count);
    done += count;
  } while (done < bytes);
}

void Group::reduce_scatter(const Call &call, const std::byte *in, std::byte *out) {
  const uint64_t width = width_of(call.dtype);
  const uint64_t size = static_cast<uint64_t>(settings_.size);
  const uint64_t share = call.count / size;
  const uint64_t room = settings_.slot_bytes / size / width;  // of a rank's slot for each of the others
  const Reducer reduce = reducer_for(call.dtype, call.reduction);
  const std::byte *sources[kMaxRanks];
  uint64_t done = 0;
  do {
    const uint64_t count = std::min(share - done, room);
    next_round();
    for (uint64_t peer = 0; peer < size; ++peer) {
      sources[peer] = slot(static_cast<int>(peer));
      put(slot(settings_.rank) + peer * count * width, in + (peer * share + done) * width, count * width);
    }
    meet(call);
    const uint64_t begin = static_cast<uint64_t>(settings_.rank) * count;
    reduce(sources, settings_.size, begin, begin + count, out + done * width);
    done += count;
  } while (done < share);
}

// ------------------------------------------------------------------------------------------------------- rounds

std::byte *Group::slot(int rank) const {
  const uint64_t half = (round_ & 1) * static_cast<uint64_t>(settings_.size);
  return slots_ + (half + static_cast<uint64_t>(rank)) * settings_.slot_bytes;
}

void Group::meet(const Call &call) {
  call.write(header_->members[settings_.rank].calls[round_ & 1]);
  synchronize(call);
  compare();
}

void Group::synchronize(const Call &call) {
  if (const Cause cause = barrier_.cause(); cause.kind != FaultKind::kNone) throw described(cause, call);
  const uint32_t turn = barrier_.arrive();
  switch (barrier_.wait(turn, settings_.timeout_ms, false)) {
    case Barrier::Outcome::kPassed:
      return;
    case Barrier::Outcome::kNotYet:
      if (const std::vector<int> late = barrier_.late(turn); !late.empty()) {
        barrier_.break_off(FaultKind::kTimeout, late[0]);
        throw described({FaultKind::kTimeout, late[0], settings_.rank}, call);
      }
      return;  // who is not late has passed, so all have: at the last moment
    default:
      throw described(barrier_.cause(), call);
  }
}

void Group::compare() {
  const Call first = Call::read(header_->members[0].calls[round_ & 1]);
  for (int rank = 0; rank < settings_.size; ++rank) {
    const Call other = Call::read(header_->members[rank].calls[round_ & 1]);
    if (other == first) continue;
    barrier_.break_off(FaultKind::kMismatch, rank);
    throw Fault{FaultKind::kMismatch, rank,
                "the ranks disagree: rank 0 is at " + first.text() + ", rank " + std::to_string(rank) + " at " +
                    other.text()};
  }
}

// ------------------------------------------------------------------------------------------------------- faults

Fault Group::described(const Cause &cause, const Call &call) const {
  const std::string who = "rank " + std::to_string(cause.rank) + " (process " +
                          std::to_string(cause.rank < 0 ? 0 : barrier_.process_of(cause.rank)) + ")";
  const bool opening = call.kind == Kind::kNone;
  const std::string where = opening ? " while the group was opened" : " during " + call.text();
  switch (cause.kind) {
    case FaultKind::kDead:
      return {cause.kind, cause.rank, who + " has ended" + where};
    case FaultKind::kTimeout: {
      if (opening) {
        return {cause.kind, cause.rank, "rank " + std::to_string(cause.rank) + " did not open the group in time"};
      }
      const Member &member = header_->members[cause.rank];
      const bool within = Call::read(member.calls[round_ & 1]) == call;
      return {cause.kind, cause.rank,
              who + (within ? " did not finish " : " did not come to ") + call.text() + " within " +
                  seconds(settings_.timeout_ms) +
                  (within ? "" : "; the last that it came to: " + Call::read(member.calls[(round_ + 1) & 1]).text())};
    }
    case FaultKind::kAborted:
      return {cause.kind, cause.rank, who + " was told to give up" + where};
    case FaultKind::kLeft:
      return {cause.kind, cause.rank, who + " has closed the group" + where};
    case FaultKind::kMismatch:
      return {cause.kind, cause.rank, "the ranks disagree: rank " + std::to_string(cause.by) + " has seen it" + where};
    default:
      return {cause.kind, cause.rank, who + " cannot do its collective: its own message says why"};
  }
}

Fault Group::refuse(const std::string &message) {
  barrier_.break_off(FaultKind::kUnsupported, settings_.rank);
  return keep({FaultKind::kUnsupported, settings_.rank, message});
}

Fault Group::keep(Fault fault) {
  std::lock_guard<std::mutex> lock(keeping_);
  if (kept_.kind == FaultKind::kNone) kept_ = std::move(fault);
  return kept_;
}

Fault Group::fault() {
  std::lock_guard<std::mutex> lock(keeping_);
  return kept_;
}

void Group::begin_step(uint64_t step) {
  std::lock_guard<std::mutex> lock(calling_);
  step_ = step;
  number_ = 0;
}

}  // namespace rankmq
