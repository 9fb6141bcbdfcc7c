// The library's own test, to be run under sanitizers and valgrind (see run).
//
//   collectives_test threads    ranks that are threads over one mapping, so that a thread sanitizer sees all of them
//   collectives_test processes  ranks that are processes, through what Python calls; they are killed, too

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "group.h"
#include "process_group.h"

using namespace rankmq;

extern "C" {
int rankmq_open(int, int, int, uint64_t, int, int *, char *, uint64_t);
int rankmq_wait_for_all(int);
int rankmq_run(int, int, int, int, uint64_t, const void *, void *);
int rankmq_fault(int *, char *, uint64_t);
void rankmq_close();
int AllReduce_sum(int, void **, int *, int64_t **, const char **, void *, void *);
int AllGather(int, void **, int *, int64_t **, const char **, void *, void *);
std::vector<int64_t> AllGatherInferShape(int *, int64_t **, void *);
}

namespace {

int rounds = 200;
constexpr uint64_t kSlot = 8192;

std::atomic<int> failures{0};

void expect(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));
void expect(bool good, const char *format, ...) {
  if (good) return;
  failures++;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "FAILED: %s\n", text);
}

Call call_of(Kind kind, DType dtype, uint64_t count, Reduction reduction = Reduction::kNone, int root = 0) {
  Call call;
  call.kind = kind;
  call.dtype = dtype;
  call.count = count;
  call.reduction = reduction;
  call.root = static_cast<uint8_t>(root);
  return call;
}

// Memory for a group, as it is in /dev/shm.
class Memory {
 public:
  explicit Memory(int size) : bytes_(segment_bytes(size, kSlot)) {
    at_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at_ == MAP_FAILED) std::abort();
  }
  ~Memory() { ::munmap(at_, bytes_); }
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  void *at() const { return at_; }

 private:
  uint64_t bytes_;
  void *at_;
};

template <typename Task>
void as_threads(int size, int timeout_ms, Task task) {
  Memory memory(size);
  std::vector<std::unique_ptr<Group>> groups;
  for (int rank = 0; rank < size; ++rank) {
    GroupSettings settings;
    settings.rank = rank;
    settings.size = size;
    settings.slot_bytes = kSlot;
    settings.timeout_ms = timeout_ms;
    groups.push_back(std::make_unique<Group>(memory.at(), settings));
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      Group &group = *groups[static_cast<size_t>(rank)];
      Fault fault = group.join();
      expect(fault.kind == FaultKind::kNone, "join: %s", fault.message.c_str());
      while (!group.wait_for_all(100, &fault) && fault.kind == FaultKind::kNone) {
      }
      expect(fault.kind == FaultKind::kNone, "wait_for_all: %s", fault.message.c_str());
      task(group, rank);
    });
  }
  for (std::thread &thread : threads) thread.join();
}

// Every collective, with numbers of elements around the sizes at which they take another way.
void all_collectives(Group &group, int rank) {
  const int size = group.size();
  const uint64_t sizes[] = {0, 1, 7, 1024, 1025, 2048, 2049, 5000, 8192};
  for (int round = 0; round < rounds; ++round) {
    const uint64_t count = sizes[static_cast<size_t>(round) % std::size(sizes)];
    std::vector<float> in(count), out(count), all(count * static_cast<uint64_t>(size));
    for (uint64_t i = 0; i < count; ++i) in[i] = static_cast<float>(rank * 1000 + static_cast<int>(i % 97) + round);
    auto of = [&](int peer, uint64_t i) { return static_cast<float>(peer * 1000 + static_cast<int>(i % 97) + round); };

    Fault fault = group.run(call_of(Kind::kAllReduce, DType::kFloat32, count, Reduction::kSum), in.data(), out.data());
    expect(fault.kind == FaultKind::kNone, "all_reduce: %s", fault.message.c_str());
    for (uint64_t i = 0; i < count; ++i) {
      float sum = 0;
      for (int peer = 0; peer < size; ++peer) sum += of(peer, i);
      if (out[i] != sum) return expect(false, "all_reduce of %" PRIu64 ": %f, not %f", count, out[i], sum);
    }
    fault = group.run(call_of(Kind::kAllGather, DType::kFloat32, count), in.data(), all.data());
    expect(fault.kind == FaultKind::kNone, "all_gather: %s", fault.message.c_str());
    for (uint64_t i = 0; i < all.size(); ++i) {
      const float expected = of(static_cast<int>(i / count), i % count);
      if (all[i] != expected) return expect(false, "all_gather of %" PRIu64, count);
    }
    const int root = round % size;
    fault = group.run(call_of(Kind::kBroadcast, DType::kFloat32, count, Reduction::kNone, root), in.data(), out.data());
    expect(fault.kind == FaultKind::kNone, "broadcast: %s", fault.message.c_str());
    for (uint64_t i = 0; i < count; ++i) {
      if (out[i] != of(root, i)) return expect(false, "broadcast of %" PRIu64, count);
    }
    std::vector<int32_t> given(count * static_cast<uint64_t>(size)), share(count);
    for (uint64_t i = 0; i < given.size(); ++i) given[i] = static_cast<int32_t>(i) * (rank + 1);
    fault = group.run(call_of(Kind::kReduceScatter, DType::kInt32, given.size(), Reduction::kMax), given.data(),
                      share.data());
    expect(fault.kind == FaultKind::kNone, "reduce_scatter: %s", fault.message.c_str());
    for (uint64_t i = 0; i < count; ++i) {
      const int32_t expected = static_cast<int32_t>(static_cast<uint64_t>(rank) * count + i) * size;
      if (share[i] != expected) return expect(false, "reduce_scatter of %" PRIu64, count);
    }
  }
}

// Every type and reduction, of numbers that a sanitizer may have something against: the largest, NaN, infinity.
void all_types(Group &group, int rank) {
  for (int dtype = 1; dtype <= static_cast<int>(DType::kComplex128); ++dtype) {
    const DType type = static_cast<DType>(dtype);
    const uint64_t count = 1500;
    std::vector<unsigned char> in(count * width_of(type)), out(in.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned char>(i * 37 + static_cast<size_t>(rank) * 11);
    for (int reduction = 1; reduction <= static_cast<int>(Reduction::kMin); ++reduction) {
      if (reducer_for(type, static_cast<Reduction>(reduction)) == nullptr) continue;
      Fault fault =
          group.run(call_of(Kind::kAllReduce, type, count, static_cast<Reduction>(reduction)), in.data(), out.data());
      expect(fault.kind == FaultKind::kNone, "all_reduce of %s: %s", name_of(type), fault.message.c_str());
    }
    fill_void(type, out.data(), count);
    if (type == DType::kFloat32) {
      float first;
      std::memcpy(&first, out.data(), sizeof first);
      expect(std::isnan(first), "the result that there is not is no NaN");
    }
  }
}

void several_threads_at_once(Group &group, int rank) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&group, rank] {
      for (int round = 0; round < rounds; ++round) {
        std::vector<float> in(1500, static_cast<float>(rank + 1)), out(1500);
        const Call call = call_of(Kind::kAllReduce, DType::kFloat32, in.size(), Reduction::kSum);
        Fault fault = group.run(call, in.data(), out.data());
        expect(fault.kind == FaultKind::kNone, "at once: %s", fault.message.c_str());
        const float sum = static_cast<float>(group.size() * (group.size() + 1)) / 2;
        for (float value : out) {
          if (value != sum) return expect(false, "at once: %f, not %f", value, sum);
        }
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
}

void ranks_that_disagree(Group &group, int rank) {
  std::vector<float> in(64), out(64);
  const uint64_t count = rank == 1 ? 63 : 64;
  Fault fault = group.run(call_of(Kind::kAllReduce, DType::kFloat32, count, Reduction::kSum), in.data(), out.data());
  expect(fault.kind == FaultKind::kMismatch && fault.rank == 1, "mismatch: %s", fault.message.c_str());
  fault = group.run(call_of(Kind::kBarrier, DType::kNone, 0), nullptr, nullptr);
  expect(fault.kind == FaultKind::kMismatch, "kept: %s", fault.message.c_str());
}

void one_that_does_not_come(Group &group, int rank) {
  if (rank == 2) return;
  Fault fault = group.run(call_of(Kind::kBarrier, DType::kNone, 0), nullptr, nullptr);
  expect(fault.kind == FaultKind::kTimeout && fault.rank == 2, "timeout: %s", fault.message.c_str());
}

void one_that_gives_up(Group &group, int rank) {
  std::thread other([&group, rank] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (rank == 0) group.abort();
    group.fault();
  });
  Fault fault;
  for (int round = 0; fault.kind == FaultKind::kNone; ++round) {
    std::vector<float> in(5000, 1.0f), out(5000);
    fault = group.run(call_of(Kind::kAllReduce, DType::kFloat32, 5000, Reduction::kSum), in.data(), out.data());
  }
  expect(fault.kind == FaultKind::kAborted && fault.rank == 0, "abort: %s", fault.message.c_str());
  other.join();
}

void leave_after_the_last(Group &group, int) {
  std::vector<float> in(5000, 1.0f), out(5000);
  Fault fault = group.run(call_of(Kind::kAllReduce, DType::kFloat32, 5000, Reduction::kSum), in.data(), out.data());
  group.leave();
  expect(fault.kind == FaultKind::kNone, "leave: %s", fault.message.c_str());
}

int threads() {
  for (int size : {1, 2, 5}) as_threads(size, 60000, all_collectives);
  as_threads(3, 60000, all_types);
  as_threads(3, 60000, several_threads_at_once);
  as_threads(3, 60000, ranks_that_disagree);
  as_threads(3, 300, one_that_does_not_come);
  as_threads(3, 60000, one_that_gives_up);
  for (int round = 0; round < 20; ++round) as_threads(4, 60000, leave_after_the_last);
  return failures.load();
}

// ---------------------------------------------------------------------------------------------------- processes

constexpr int kFloat32 = static_cast<int>(DType::kFloat32);

int segment(int size) {
  int file = ::memfd_create("test", MFD_CLOEXEC);
  if (file < 0 || ::ftruncate(file, static_cast<off_t>(segment_bytes(size, kSlot))) != 0) std::abort();
  return file;
}

void open_group(int file, int rank, int size) {
  int where = 0;
  char text[256];
  expect(rankmq_open(file, rank, size, kSlot, 60000, &where, text, sizeof text) == 0, "open: %s", text);
  int ready = 0;
  while ((ready = rankmq_wait_for_all(100)) == 0) {
  }
  expect(ready == 1, "not all have come");
}

void graph_call(int size) {
  float in[6] = {1, 2, 3, 4, 5, 6}, out[6 * 8];
  int64_t shape[] = {2, 3}, wide[] = {2 * size, 3};
  int64_t *same[] = {shape, shape}, *wider[] = {shape, wide};
  int dimensions[] = {2, 2};
  const char *types[] = {"float32", "float32"};
  void *data[] = {in, out};
  expect(AllReduce_sum(2, data, dimensions, same, types, nullptr, nullptr) == 0, "an operator gave an error");
  expect(out[5] == 6.0f * static_cast<float>(size), "AllReduce_sum");
  std::vector<int64_t> inferred = AllGatherInferShape(dimensions, same, nullptr);
  expect(inferred == std::vector<int64_t>(wide, wide + 2), "AllGatherInferShape");
  expect(AllGather(2, data, dimensions, wider, types, nullptr, nullptr) == 0, "an operator gave an error");
  expect(out[6 * size - 1] == 6.0f, "AllGather");
}

// What the survivors of `victim` do: notice, and go on in the next group. -1: nobody dies.
int process_of_a_rank(int rank, int size, int victim, int first, int second) {
  open_group(first, rank, size);
  graph_call(size);
  std::vector<float> in(3000, 1.0f), out(3000);
  for (int round = 0; victim >= 0; ++round) {
    if (rank == victim && round == 3) ::raise(SIGKILL);
    if (rankmq_run(1, kFloat32, 1, 0, in.size(), in.data(), out.data()) != 0) break;
  }
  int where = -1;
  char text[256] = "";
  const int kind = rankmq_fault(&where, text, sizeof text);
  expect(victim < 0 ? kind == 0 : kind == 1 && where == victim, "the death of %d: %d %s", victim, kind, text);
  if (victim >= 0) open_group(second, rank < victim ? rank : rank - 1, size - 1);
  expect(rankmq_run(1, kFloat32, 1, 0, in.size(), in.data(), out.data()) == 0, "the next group does not work");
  rankmq_close();
  int64_t shape[] = {1};
  int64_t *shapes[] = {shape, shape};
  int dimensions[] = {1, 1};
  const char *types[] = {"float32", "float32"};
  void *data[] = {in.data(), out.data()};
  expect(AllReduce_sum(2, data, dimensions, shapes, types, nullptr, nullptr) == 0, "an operator gave an error");
  expect(std::isnan(out[0]) && rankmq_fault(&where, text, sizeof text) == 7, "without a group");
  return failures.load();
}

// A group that is closed while a thread of the same process waits in it: its memory must outlive that. The last rank
// comes only when it is told that this has happened, or the barrier would be passed.
int process_that_closes(int rank, int size, int file, const int *told) {
  open_group(file, rank, size);
  char word = 0;
  if (rank == 0) {
    std::thread waits([] {
      const int kind = rankmq_run(5, 0, 0, 0, 0, nullptr, nullptr);
      expect(kind == 4 || kind == 7, "whoever waited was not freed: %d", kind);  // 7: it had not yet begun
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    rankmq_close();
    waits.join();
    expect(::write(told[1], &word, 1) == 1, "write");
  } else {
    if (rank == size - 1) expect(::read(told[0], &word, 1) == 1, "read");
    int where = -1;
    char text[256] = "";
    expect(rankmq_run(5, 0, 0, 0, 0, nullptr, nullptr) == 4, "the others were not freed");
    expect(rankmq_fault(&where, text, sizeof text) == 4 && where == 0, "who has left: %d %s", where, text);
  }
  return failures.load();
}

// Who is alive: not a zombie, not one whose number is another's by now; who cannot be seen from here counts as alive.
void watching_processes() {
  const ProcessIdentity self = this_process();
  expect(self.pid == static_cast<uint32_t>(::getpid()) && self.started != 0 && self.pid_namespace != 0, "who am I");
  expect(!has_ended(self, self), "this process has ended");
  ProcessIdentity earlier = self;
  earlier.started -= 1;
  expect(has_ended(earlier, self), "another process of the same number was taken for the one that had it before");
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ProcessIdentity ended = self;
  ended.pid = static_cast<uint32_t>(child);
  siginfo_t info;
  ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT);
  expect(has_ended(ended, self), "a zombie lives");
  ::waitpid(child, nullptr, 0);
  expect(has_ended(ended, self), "a process that is gone lives");
  ended.pid_namespace += 1;
  expect(!has_ended(ended, self), "a process of another namespace was looked for in this one");
}

void end_well(const std::vector<pid_t> &children, int victim) {
  for (size_t rank = 0; rank < children.size(); ++rank) {
    int status = 0;
    ::waitpid(children[rank], &status, 0);
    const bool killed = static_cast<int>(rank) == victim;
    const bool good = killed ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0;
    expect(good, "rank %d ended with %d", static_cast<int>(rank), status);
  }
}

int processes() {
  const int size = 4;
  watching_processes();
  const int closed = segment(size);
  int told[2];
  expect(::pipe(told) == 0, "pipe");
  std::vector<pid_t> those;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) std::exit(process_that_closes(rank, size, closed, told) == 0 ? 0 : 1);
    those.push_back(child);
  }
  end_well(those, -1);
  for (int file : {closed, told[0], told[1]}) ::close(file);
  for (int victim : {-1, 0, 2}) {
    const int first = segment(size), second = segment(size - 1);
    std::vector<pid_t> children;
    for (int rank = 0; rank < size; ++rank) {
      const pid_t child = ::fork();
      if (child == 0) std::exit(process_of_a_rank(rank, size, victim, first, second) == 0 ? 0 : 1);
      children.push_back(child);
    }
    end_well(children, victim);
    ::close(first);
    ::close(second);
  }
  return failures.load();
}

}  // namespace

int main(int count, char **words) {
  if (const char *given = std::getenv("ROUNDS")) rounds = std::atoi(given);
  const std::string which = count > 1 ? words[1] : "";
  if (which == "threads") return threads() == 0 ? 0 : 1;
  if (which == "processes") return processes() == 0 ? 0 : 1;
  std::fprintf(stderr, "usage: collectives_test threads|processes\n");
  return 2;
}
