#include "core/view.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace reprise {
namespace {

static_assert(std::is_trivially_copyable_v<VectorView<float>> && std::is_trivially_copyable_v<MatrixView<float>>);
static_assert(std::is_convertible_v<VectorView<float>, VectorView<const float>>);
static_assert(!std::is_convertible_v<VectorView<const float>, VectorView<float>>);
static_assert(!std::is_convertible_v<const std::vector<float>&, VectorView<float>>);
static_assert(!std::is_convertible_v<MatrixView<const float>, MatrixView<float>>);

TEST(View, RowsSlicesAndFlatShareTheMemory) {
  std::vector<int> values(12);
  std::iota(values.begin(), values.end(), 0);
  const MatrixView<int> matrix(values, 3, 4);
  EXPECT_EQ(matrix(2, 1), 9);
  EXPECT_EQ(matrix.row(1)[3], 7);
  EXPECT_EQ(matrix.row_range(1, 2)(1, 0), 8);
  EXPECT_EQ(matrix.row_range(1, 2).size(), 8);
  EXPECT_EQ(matrix.flat().slice(5, 3)[0], 5);
  matrix(0, 0) = 42;
  EXPECT_EQ(values[0], 42);
  EXPECT_EQ(std::accumulate(matrix.row(0).begin(), matrix.row(0).end(), 0), 42 + 1 + 2 + 3);
}

TEST(View, EmptyViewsAreOrdinary) {
  std::vector<float> nothing;
  const VectorView<const float> view(nothing);
  EXPECT_TRUE(view.empty());
  EXPECT_EQ(view.begin(), view.end());
  EXPECT_EQ(MatrixView<float>().size(), 0);
  EXPECT_EQ((MatrixView<float>(nullptr, 0, 7).flat().size), 0);
}

}  // namespace
}  // namespace reprise
