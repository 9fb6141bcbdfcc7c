// The element types of tensors, and how the ranks' elements are put together.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rankmq {

// The order is part of the interface to Python.
enum class DType : uint8_t {
  kNone,
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kUInt32,
  kUInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kComplex64,
  kComplex128,
};

enum class Reduction : uint8_t { kNone, kSum, kMax, kMin };

const char *name_of(DType dtype);
const char *name_of(Reduction reduction);

// kNone for a name that is not known.
DType dtype_of(const char *name);

// Bytes of an element; 0 for kNone.
size_t width_of(DType dtype);

// Puts `ranks` arrays together, element by element and in the order of the ranks, whoever computes it: the result is
// the same bit for bit on every rank. Elements [begin, end) of each source go to `out`, which may be where one of them
// came from. Sums of 16-bit floats are added up in float32 and rounded once; sums of integers wrap around; a NaN wins
// over any maximum or minimum.
using Reducer = void (*)(const std::byte *const *sources, int ranks, uint64_t begin, uint64_t end, std::byte *out);

// Null for a type that cannot be added or compared.
Reducer reducer_for(DType dtype, Reduction reduction);

// What a result holds when there is none: NaN where the type has one, else zeros.
void fill_void(DType dtype, void *out, uint64_t count);

}  // namespace rankmq
