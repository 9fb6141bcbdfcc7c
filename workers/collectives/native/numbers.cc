#include "numbers.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <type_traits>

namespace rankmq {
namespace {

template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Without branches, so that it is vectorised; with normal numbers only, so that it holds where a library has made the
// processor take subnormal numbers for zero.
inline float widen(Float16 value) {
  constexpr uint32_t kExponent = 0x7c00u << 13;
  uint32_t bits = (value.bits & 0x7fffu) << 13;
  uint32_t exponent = bits & kExponent;
  bits += (127u - 15u) << 23;
  uint32_t infinite = bits + ((128u - 16u) << 23);
  uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(bits + (1u << 23)) - bits_as<float>(113u << 23));
  bits = exponent == kExponent ? infinite : exponent == 0 ? subnormal : bits;
  return bits_as<float>(bits | (value.bits & 0x8000u) << 16);
}

inline float widen(BFloat16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }

// To the nearest, ties to even.
inline Float16 narrow_to_float16(float value) {
  constexpr uint32_t kInfinity = 255u << 23;
  constexpr uint32_t kTooLarge = (127u + 16u) << 23;
  constexpr uint32_t kSmallestNormal = 113u << 23;
  constexpr uint32_t kMagic = ((127u - 15u) + (23u - 10u) + 1u) << 23;  // adding it shifts the bits where they belong
  uint32_t bits = bits_as<uint32_t>(value);
  uint32_t sign = bits & 0x80000000u;
  bits ^= sign;
  uint32_t special = bits > kInfinity ? 0x7e00u : 0x7c00u;
  uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(bits) + bits_as<float>(kMagic)) - kMagic;
  uint32_t normal = (bits + ((15u - 127u) << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13;
  uint32_t out = bits >= kTooLarge ? special : bits < kSmallestNormal ? subnormal : normal;
  return Float16{static_cast<uint16_t>(out | sign >> 16)};
}

inline BFloat16 narrow_to_bfloat16(float value) {
  uint32_t bits = bits_as<uint32_t>(value);
  uint32_t quiet = (bits >> 16) | 0x40u;
  uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return BFloat16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

// What elements of a type are added up and compared in. Integers: unsigned, so that a sum that is too large wraps.
template <typename T>
struct Wide {
  using type = T;
};
template <>
struct Wide<Float16> {
  using type = float;
};
template <>
struct Wide<BFloat16> {
  using type = float;
};

template <typename T>
typename Wide<T>::type load(const std::byte *source, uint64_t index) {
  T value;
  std::memcpy(&value, source + index * sizeof(T), sizeof(T));
  if constexpr (std::is_arithmetic_v<T>) {
    return value;
  } else {
    return widen(value);
  }
}

template <typename T>
void store(std::byte *out, uint64_t index, typename Wide<T>::type value) {
  T narrow;
  if constexpr (std::is_same_v<T, Float16>) {
    narrow = narrow_to_float16(value);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    narrow = narrow_to_bfloat16(value);
  } else {
    narrow = value;
  }
  std::memcpy(out + index * sizeof(T), &narrow, sizeof(T));
}

template <Reduction reduction, typename T>
inline T combine(T a, T b) {
  if constexpr (reduction == Reduction::kSum) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
    } else {
      return a + b;
    }
  } else {
    T best = reduction == Reduction::kMax ? (a > b ? a : b) : (a < b ? a : b);  // b if one of them is a NaN
    if constexpr (std::is_floating_point_v<T>) best = a != a ? a : best;
    return best;
  }
}

// Puts `more` further sources into the sums, in their order: one pass over the sums for several of them.
template <typename T, Reduction reduction, int more>
inline void fold(typename Wide<T>::type *sums, const std::byte *const *sources, uint64_t at, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    typename Wide<T>::type sum = sums[i];
    for (int source = 0; source < more; ++source) sum = combine<reduction>(sum, load<T>(sources[source], at + i));
    sums[i] = sum;
  }
}

template <typename T, Reduction reduction>
void reduce(const std::byte *const *sources, int ranks, uint64_t begin, uint64_t end, std::byte *out) {
  constexpr uint64_t kBlock = 1024;  // stays in the first-level cache
  typename Wide<T>::type sums[kBlock];
  for (uint64_t at = begin; at < end; at += kBlock) {
    const uint64_t count = std::min(kBlock, end - at);
    for (uint64_t i = 0; i < count; ++i) sums[i] = load<T>(sources[0], at + i);
    int rank = 1;
    for (; rank + 4 <= ranks; rank += 4) fold<T, reduction, 4>(sums, sources + rank, at, count);
    for (; rank < ranks; ++rank) fold<T, reduction, 1>(sums, sources + rank, at, count);
    for (uint64_t i = 0; i < count; ++i) store<T>(out, at - begin + i, sums[i]);
  }
}

template <typename T>
Reducer reducer_of(Reduction reduction) {
  switch (reduction) {
    case Reduction::kSum:
      return reduce<T, Reduction::kSum>;
    case Reduction::kMax:
      return reduce<T, Reduction::kMax>;
    case Reduction::kMin:
      return reduce<T, Reduction::kMin>;
    default:
      return nullptr;
  }
}

struct Type {
  const char *name;
  size_t width;
  size_t part;     // of which it is made, where `nan` is one: complex numbers have two
  uint64_t nan;
};

constexpr Type kTypes[] = {
    {"nothing", 0, 0, 0},
    {"bool", 1, 0, 0},
    {"int8", 1, 0, 0},
    {"int16", 2, 0, 0},
    {"int32", 4, 0, 0},
    {"int64", 8, 0, 0},
    {"uint8", 1, 0, 0},
    {"uint16", 2, 0, 0},
    {"uint32", 4, 0, 0},
    {"uint64", 8, 0, 0},
    {"float16", 2, 2, 0x7e00},
    {"bfloat16", 2, 2, 0x7fc0},
    {"float32", 4, 4, 0x7fc00000},
    {"float64", 8, 8, 0x7ff8000000000000},
    {"complex64", 8, 4, 0x7fc00000},
    {"complex128", 16, 8, 0x7ff8000000000000},
};

}  // namespace

const char *name_of(DType dtype) { return kTypes[static_cast<size_t>(dtype)].name; }

const char *name_of(Reduction reduction) {
  constexpr const char *kNames[] = {"", "sum", "max", "min"};
  return kNames[static_cast<size_t>(reduction)];
}

DType dtype_of(const char *name) {
  for (size_t index = 1; index < std::size(kTypes); ++index) {
    if (std::strcmp(kTypes[index].name, name) == 0) return static_cast<DType>(index);
  }
  return DType::kNone;
}

size_t width_of(DType dtype) { return kTypes[static_cast<size_t>(dtype)].width; }

Reducer reducer_for(DType dtype, Reduction reduction) {
  switch (dtype) {
    case DType::kInt8:
      return reducer_of<int8_t>(reduction);
    case DType::kInt16:
      return reducer_of<int16_t>(reduction);
    case DType::kInt32:
      return reducer_of<int32_t>(reduction);
    case DType::kInt64:
      return reducer_of<int64_t>(reduction);
    case DType::kUInt8:
      return reducer_of<uint8_t>(reduction);
    case DType::kUInt16:
      return reducer_of<uint16_t>(reduction);
    case DType::kUInt32:
      return reducer_of<uint32_t>(reduction);
    case DType::kUInt64:
      return reducer_of<uint64_t>(reduction);
    case DType::kFloat16:
      return reducer_of<Float16>(reduction);
    case DType::kBFloat16:
      return reducer_of<BFloat16>(reduction);
    case DType::kFloat32:
      return reducer_of<float>(reduction);
    case DType::kFloat64:
      return reducer_of<double>(reduction);
    default:
      return nullptr;
  }
}

void fill_void(DType dtype, void *out, uint64_t count) {
  const Type &type = kTypes[static_cast<size_t>(dtype)];
  std::byte *bytes = static_cast<std::byte *>(out);
  if (type.part == 0) {
    if (count > 0) std::memset(bytes, 0, count * type.width);
    return;
  }
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a NaN is copied from its lower bytes");
  for (uint64_t at = 0; at < count * type.width; at += type.part) std::memcpy(bytes + at, &type.nan, type.part);
}

}  // namespace rankmq
