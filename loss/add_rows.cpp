#include "loss/add_rows.hpp"

#include "core/elementwise.hpp"

namespace reprise {

void add_rows(const CpuStream& stream, MatrixView<const float> from, VectorView<const std::int32_t> index,
              MatrixView<float> to) {
  for (std::int64_t i = 0; i < index.size; ++i) add<float, float>(stream, from.row(i), to.row(index[i]));
}

}  // namespace reprise
