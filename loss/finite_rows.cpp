#include "loss/finite_rows.hpp"

#include <bit>

#include "core/dtype.hpp"
#include "core/error.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kRowGrain = 16;

bool is_finite(VectorView<const float> row) {
  std::uint32_t bad = 0;
  for (const float x : row)
    bad |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(x) & 0x7f800000u) == 0x7f800000u);
  return bad == 0;
}

bool is_finite(VectorView<const BFloat16> row) {
  std::uint32_t bad = 0;
  for (const BFloat16 x : row) bad |= static_cast<std::uint32_t>((x.bits & 0x7f80u) == 0x7f80u);
  return bad == 0;
}

}  // namespace

template <class T>
void find_bad_rows(const CpuStream& stream, MatrixView<const T> x, VectorView<std::int32_t> is_bad) {
  REPRISE_CHECK(is_bad.size == x.rows, "{} flags for {} rows", is_bad.size, x.rows);
  stream.parallel_for(x.rows, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) is_bad[i] = is_finite(x.row(i)) ? 0 : 1;
  });
}

template void find_bad_rows(const CpuStream&, MatrixView<const float>, VectorView<std::int32_t>);
template void find_bad_rows(const CpuStream&, MatrixView<const BFloat16>, VectorView<std::int32_t>);

}  // namespace reprise
