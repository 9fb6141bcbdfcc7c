// What MindSpore calls: custom operators of type "aot" on CPU, and the functions that infer their outputs.
//
// An operator that returned an error would spoil the graph that it is in for good. So it never does: the fault is kept,
// and asked for after every call of a graph; until then the outputs hold NaN or zeros.
//
// The reduction and the root are in the operator's name, such as AllReduce_max: MindSpore hands attributes over as
// objects of its own, whose layout changes with its version. The number of ranks is that of the group which is open,
// and so it must be open before a graph is compiled.

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "process_group.h"

#define RANKMQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace rankmq;

constexpr int kOneInOneOut = 2;

// Its product is the number of elements; 1 for a scalar, which has no dimensions.
uint64_t elements(int dimensions, const int64_t *shape) {
  uint64_t count = 1;
  for (int axis = 0; axis < dimensions; ++axis) count *= static_cast<uint64_t>(shape[axis]);
  return count;
}

int run(Call call, int parameters, void **data, int *dimensions, int64_t **shapes, const char **dtypes) {
  ProcessGroup &process = ProcessGroup::instance();
  if (parameters != kOneInOneOut) {
    process.refuse(call.text() + " takes one tensor and gives one");
    return 0;
  }
  call.dtype = dtype_of(dtypes[0]);
  call.count = elements(dimensions[0], shapes[0]);
  const uint64_t room = elements(dimensions[1], shapes[1]);
  const std::shared_ptr<Group> group = process.group();
  Fault fault;
  if (call.dtype == DType::kNone) {
    fault = process.refuse(call.text() + ": elements of type " + dtypes[0] + " cannot go through shared memory");
  } else if (group && room != group->out_count(call)) {
    fault = process.refuse(call.text() + " gives " + std::to_string(group->out_count(call)) +
                           " elements in this group, the graph expects " + std::to_string(room));
  } else {
    fault = process.run(call, data[0], data[1]);
  }
  if (fault.kind != FaultKind::kNone) fill_void(call.dtype, data[1], room);
  return 0;
}

Call call_of(Kind kind, Reduction reduction, int root) {
  Call call;
  call.kind = kind;
  call.reduction = reduction;
  call.root = static_cast<uint8_t>(root);
  return call;
}

// The output's shape. A size of -1, one that is not known yet, stays as it is. What is thrown here MindSpore passes on.
std::vector<int64_t> shape_of(Kind kind, const int *dimensions, int64_t *const *shapes) {
  std::vector<int64_t> shape(shapes[0], shapes[0] + dimensions[0]);
  if (kind != Kind::kAllGather && kind != Kind::kReduceScatter) return shape;
  const std::shared_ptr<Group> group = ProcessGroup::instance().group();
  if (!group) throw std::runtime_error("no group is open in this process");
  if (shape.empty()) throw std::runtime_error("a scalar cannot be gathered or scattered");
  if (shape[0] < 0) return shape;
  if (kind == Kind::kAllGather) {
    shape[0] *= group->size();
  } else {
    shape[0] /= group->size();
  }
  return shape;
}

}  // namespace

#define RANKMQ_OPERATOR(NAME, KIND, REDUCTION, ROOT)                                                                \
  RANKMQ_EXPORT int NAME(int parameters, void **data, int *dimensions, int64_t **shapes, const char **dtypes, void *, \
                         void *) {                                                                                  \
    return run(call_of(KIND, REDUCTION, ROOT), parameters, data, dimensions, shapes, dtypes);                       \
  }                                                                                                                 \
  RANKMQ_EXPORT std::vector<int64_t> NAME##InferShape(int *dimensions, int64_t **shapes, void *) {                  \
    return shape_of(KIND, dimensions, shapes);                                                                      \
  }                                                                                                                 \
  RANKMQ_EXPORT int NAME##InferType(std::vector<int> dtypes, void *) { return dtypes.at(0); }

RANKMQ_OPERATOR(AllReduce_sum, Kind::kAllReduce, Reduction::kSum, 0)
RANKMQ_OPERATOR(AllReduce_max, Kind::kAllReduce, Reduction::kMax, 0)
RANKMQ_OPERATOR(AllReduce_min, Kind::kAllReduce, Reduction::kMin, 0)
RANKMQ_OPERATOR(ReduceScatter_sum, Kind::kReduceScatter, Reduction::kSum, 0)
RANKMQ_OPERATOR(ReduceScatter_max, Kind::kReduceScatter, Reduction::kMax, 0)
RANKMQ_OPERATOR(ReduceScatter_min, Kind::kReduceScatter, Reduction::kMin, 0)
RANKMQ_OPERATOR(AllGather, Kind::kAllGather, Reduction::kNone, 0)

#define RANKMQ_BROADCAST(ROOT) RANKMQ_OPERATOR(Broadcast_##ROOT, Kind::kBroadcast, Reduction::kNone, ROOT)
#define RANKMQ_EIGHT(X, A, B, C, D, E, F, G, H) X(A) X(B) X(C) X(D) X(E) X(F) X(G) X(H)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 0, 1, 2, 3, 4, 5, 6, 7)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 8, 9, 10, 11, 12, 13, 14, 15)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 16, 17, 18, 19, 20, 21, 22, 23)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 24, 25, 26, 27, 28, 29, 30, 31)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 32, 33, 34, 35, 36, 37, 38, 39)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 40, 41, 42, 43, 44, 45, 46, 47)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 48, 49, 50, 51, 52, 53, 54, 55)
RANKMQ_EIGHT(RANKMQ_BROADCAST, 56, 57, 58, 59, 60, 61, 62, 63)
static_assert(kMaxRanks == 64, "there is a Broadcast for every rank that a group can have");
