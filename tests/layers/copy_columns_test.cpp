#include "layers/copy_columns.hpp"

#include <gtest/gtest.h>

#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

/// Columns of [rows, 3 width + behind], so that rows consist of whole packs or not.
void expect_columns(const Stream& stream, std::int64_t width, std::int64_t behind) {
  SCOPED_TRACE(width);
  const std::int64_t rows = 37, cols = 3 * width + behind;
  const Table source = random_table(rows, cols, 1.0, 1);
  const auto from = to_device(stream, values_of<float>(source));
  auto to = to_device(stream, std::vector<float>(static_cast<std::size_t>(rows * 2 * width), 7.0f));
  copy_columns<float>(stream, {from.view(), rows, cols}, width, {to.view(), rows, 2 * width}, 0, width);
  const Table copied = table_of(to_host(stream, to.view()), rows, 2 * width);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < 2 * width; ++c) EXPECT_EQ(copied(r, c), c < width ? source(r, width + c) : 7.0);
  }

  std::vector<std::int32_t> places;  // every second row, from the last to the first
  for (std::int64_t r = 0; r < rows; ++r) places.push_back(static_cast<std::int32_t>(2 * (rows - 1 - r)));
  const auto on_device = to_device(stream, places);
  auto cache = to_device(stream, std::vector<float>(static_cast<std::size_t>(2 * rows * width), 7.0f));
  copy_columns_to_rows<float>(stream, {from.view(), rows, cols}, 2 * width, on_device.view(),
                              {cache.view(), 2 * rows, width});
  const Table kept = table_of(to_host(stream, cache.view()), 2 * rows, width);
  for (std::int64_t r = 0; r < 2 * rows; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      EXPECT_EQ(kept(r, c), r % 2 == 0 ? source(rows - 1 - r / 2, 2 * width + c) : 7.0);
    }
  }
}

TEST(CopyColumns, TakesAndLeavesWhatItSays) {
  on_every_stream([](const Stream& stream) {
    expect_columns(stream, 5, 1);
    expect_columns(stream, 16, 8);
    expect_columns(stream, 1032, 0);
  });
}

TEST(CopyColumns, NoRowsAndNoColumns) {
  copy_columns<BFloat16>(test_stream(), {nullptr, 0, 8}, 0, {nullptr, 0, 8}, 0, 8);
  Buffer<float> rows(test_stream(), 12, "rows");
  copy_columns<float>(test_stream(), {rows.view(), 3, 4}, 0, {nullptr, 3, 0}, 0, 0);
}

}  // namespace
}  // namespace reprise
