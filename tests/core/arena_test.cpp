#include "core/arena.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

Arena make_arena() {
  return Arena(test_stream());
}

TEST(Arena, PiecesAreAlignedAndDoNotOverlap) {
  Arena arena = make_arena();
  std::vector<VectorView<float>> pieces;
  for (int i = 0; i < 100; ++i) {
    pieces.push_back(arena.vector<float>(i * 51));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pieces.back().data) % 64, 0U);
    fill(test_stream(), pieces.back(), static_cast<float>(i));
  }
  for (int i = 0; i < 100; ++i) {
    for (const float value : to_host(test_stream(), pieces[static_cast<std::size_t>(i)])) {
      ASSERT_EQ(value, static_cast<float>(i));
    }
  }
  const auto matrix = arena.matrix<float>(5, 7, "logits");
  EXPECT_EQ(matrix.rows, 5);
  EXPECT_EQ(matrix.cols, 7);
}

TEST(Arena, ScopesGiveBackInReverse) {
  Arena arena = make_arena();
  const auto kept = arena.vector<float>(100);
  float* inside = nullptr;
  {
    const Arena::Scope scope(arena);
    inside = arena.vector<float>(100).data;
    {
      const Arena::Scope inner(arena);
      EXPECT_NE(arena.vector<float>(1'000'000).data, inside);  // a new block
    }
    const auto again = arena.vector<float>(100);
    EXPECT_EQ(again.data, inside + 112);  // rounded up to 64 bytes
  }
  EXPECT_EQ(arena.vector<float>(100).data, inside);
  EXPECT_NE(kept.data, inside);
}

void run_step(Arena& arena) {
  arena.reset();
  for (int layer = 0; layer < 8; ++layer) {
    auto activations = arena.vector<float>(100'000);
    zero(test_stream(), activations);
    const Arena::Scope scope(arena);
    auto scratch = arena.vector<float>(300'000 + 10'000 * layer);
    zero(test_stream(), scratch.slice(0, 1));
  }
}

TEST(Arena, BecomesOneBlockAndItsHighWaterIsStable) {
  Arena arena = make_arena();
  run_step(arena);
  run_step(arena);
  const std::int64_t high_water = arena.high_water_bytes();
  EXPECT_GE(high_water, (7 * 100'000 + 100'000 + 370'000) * 4);
  arena.reset();
  const float* const first = arena.vector<float>(1).data;
  const auto* const block_end = first + high_water / 4;
  for (int step = 0; step < 5; ++step) run_step(arena);
  EXPECT_EQ(arena.high_water_bytes(), high_water);
  arena.reset();
  EXPECT_EQ(arena.vector<float>(1).data, first);
  const auto rest = arena.vector<float>(high_water / 4 - 16);  // the block holds the whole step
  EXPECT_EQ(rest.end(), block_end);
}

TEST(Arena, OutOfMemoryNamesTheTensor) {
  Arena arena = make_arena();
  try {
    static_cast<void>(arena.matrix<float>(std::int64_t{1} << 24, std::int64_t{1} << 24, "attention scores"));
    FAIL() << "nothing was thrown";
  } catch (const OutOfMemory& error) {
    EXPECT_NE(std::string(error.what()).find("attention scores"), std::string::npos);
  }
  EXPECT_NE(arena.vector<float>(10).data, nullptr);
}

}  // namespace
}  // namespace reprise
