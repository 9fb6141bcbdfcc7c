// Operators of MindSpore on the thread that calls them.
//
// MindSpore divides an operator's work between the calling thread and threads of its own, and waits for them by yielding.
// Where ranks have no more than a core each that costs more than it brings: all yield at once, and those who have work to
// do wait their turn among them. MindSpore has no setting for it. So this library, loaded before MindSpore's, has the
// function that divides the work under the same name, and the loader finds it first. calling_thread.map keeps all else
// of it to itself.

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <functional>

#define RANKMQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Work = std::function<int(void *, int, float, float)>;
using Launch = int (*)(void *, const Work &, void *, int);

constexpr char kName[] = "_ZN9mindspore10ThreadPool14ParallelLaunchERKSt8functionIFiPviffEES2_i";

std::atomic<bool> g_calling_thread{false};
std::atomic<uint64_t> g_calls{0};

// MindSpore's own; null where it is not to be found, and then said: calling_thread.py has seen that it is there.
Launch original() {
  static const Launch found = [] {
    void *const core = dlopen("libmindspore_core.so", RTLD_NOLOAD | RTLD_LAZY);
    void *const own = core == nullptr ? nullptr : dlsym(core, kName);
    if (own == nullptr) fputs("rankmq: MindSpore's own way to divide operators is lost: each takes one core\n", stderr);
    return reinterpret_cast<Launch>(own);
  }();
  return found;
}

}  // namespace

namespace mindspore {

class __attribute__((visibility("default"))) ThreadPool {
 public:
  int ParallelLaunch(const Work &work, void *content, int count);
};

int ThreadPool::ParallelLaunch(const Work &work, void *content, int count) {
  if (!g_calling_thread.load(std::memory_order_relaxed) && original() != nullptr) {
    return original()(this, work, content, count);
  }
  g_calls.fetch_add(1, std::memory_order_relaxed);
  for (int index = 0; index < count; ++index) {
    const int failed = work(content, index, 0.0f, 1.0f);  // as MindSpore itself does where there is nothing to divide
    if (failed != 0) return failed;
  }
  return 0;
}

}  // namespace mindspore

RANKMQ_EXPORT void rankmq_use_calling_thread(int use) { g_calling_thread.store(use != 0); }

RANKMQ_EXPORT uint64_t rankmq_calling_thread_calls() { return g_calls.load(); }
