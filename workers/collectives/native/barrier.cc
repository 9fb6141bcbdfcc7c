#include "barrier.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace rankmq {
namespace {

constexpr int kYields = 40;
constexpr int64_t kYieldNs = 100000;
constexpr int64_t kLookMs = 20;
constexpr uint32_t kBroken = 1;   // bit 0 of Header::turn
constexpr uint32_t kOneTurn = 2;  // the other bits count; that they overflow after two thousand million is no harm

int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

int64_t now_ms() { return now_ns() / 1000000; }

void futex_wait(std::atomic<uint32_t> *word, uint32_t expected, int64_t wait_ms) {
  timespec time{};
  time.tv_sec = wait_ms / 1000;
  time.tv_nsec = wait_ms % 1000 * 1000000;
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAIT, expected, &time, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t> *word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

Barrier::Barrier(Header *header, int rank, int size)
    : header_(header), rank_(rank), size_(size), self_(this_process()) {}

uint32_t Barrier::claim() {
  Member &mine = header_->members[rank_];
  uint32_t nobody = 0;
  if (!mine.pid.compare_exchange_strong(nobody, self_.pid)) return nobody;
  mine.pid_namespace.store(self_.pid_namespace);
  mine.started.store(self_.started);
  return 0;
}

uint32_t Barrier::arrive() {
  turn_ += kOneTurn;
  if (header_->arrived.fetch_add(1) + 1 == static_cast<uint32_t>(size_)) {
    header_->arrived.store(0);  // nobody comes to the next barrier before this one is passed
    header_->turn.fetch_add(kOneTurn);
    futex_wake_all(&header_->turn);
  }
  header_->members[rank_].turn.store(turn_);  // last: one that is killed in between must count as late
  return turn_;
}

bool Barrier::passed(uint32_t turn) const {
  return static_cast<int32_t>((header_->turn.load() & ~kBroken) - turn) >= 0;
}

bool Barrier::broken() const { return (header_->turn.load() & kBroken) != 0; }

bool Barrier::is_late(int rank, uint32_t turn) const {
  return static_cast<int32_t>(header_->members[rank].turn.load() - turn) < 0;
}

Barrier::Outcome Barrier::wait(uint32_t turn, int wait_ms, bool everyone) {
  // Where cores are free a yield takes next to nothing, and where they are not it lets others run: what is enough turns
  // there would be no time here, and what is enough time here would be few turns there.
  const int64_t until = now_ns() + kYieldNs;
  for (int yields = 0; yields < kYields || now_ns() < until; ++yields) {
    if (passed(turn)) return Outcome::kPassed;
    if (broken()) return Outcome::kBroken;
    sched_yield();
  }
  const int64_t began = now_ms();
  int64_t looked = began;
  for (;;) {
    const uint32_t seen = header_->turn.load();
    if (passed(turn)) return Outcome::kPassed;  // first: what all have come to is done, whatever broke afterwards
    if (broken()) return Outcome::kBroken;
    const int64_t now = now_ms();
    if (now - looked >= kLookMs) {
      looked = now;
      look(turn, everyone);
      continue;
    }
    if (now - began >= wait_ms) return Outcome::kNotYet;
    futex_wait(&header_->turn, seen, std::min(kLookMs - (now - looked), wait_ms - (now - began)));
  }
}

void Barrier::look(uint32_t turn, bool everyone) {
  for (int rank = 0; rank < size_; ++rank) {
    if (rank == rank_ || !(everyone || is_late(rank, turn))) continue;
    const Member &member = header_->members[rank];
    ProcessIdentity process;
    process.pid = member.pid.load();
    process.started = member.started.load();
    process.pid_namespace = member.pid_namespace.load();
    if (process.started == 0 && self_.started != 0) continue;  // it is just taking its place
    if (has_ended(process, self_) && !passed(turn)) {
      break_off(FaultKind::kDead, rank);
      return;
    }
  }
}

void Barrier::break_off(FaultKind kind, int rank) {
  uint64_t whole = 0;
  uint64_t cause = static_cast<uint64_t>(kind) | static_cast<uint64_t>(rank) << 16 | static_cast<uint64_t>(rank_) << 32;
  header_->broken.compare_exchange_strong(whole, cause);
  header_->turn.fetch_or(kBroken);
  futex_wake_all(&header_->turn);
}

Cause Barrier::cause() const {
  const uint64_t word = header_->broken.load();
  Cause cause;
  if (word == 0) return cause;
  cause.kind = static_cast<FaultKind>(word & 0xffff);
  cause.rank = static_cast<int>(word >> 16 & 0xffff);
  cause.by = static_cast<int>(word >> 32 & 0xffff);
  return cause;
}

std::vector<int> Barrier::late(uint32_t turn) const {
  std::vector<int> ranks;
  for (int rank = 0; rank < size_; ++rank) {
    if (is_late(rank, turn)) ranks.push_back(rank);
  }
  return ranks;
}

uint32_t Barrier::process_of(int rank) const { return header_->members[rank].pid.load(); }

}  // namespace rankmq
