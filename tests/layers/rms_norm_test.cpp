#include "layers/rms_norm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/thread_pool.hpp"
#include "tests/layers/decoder_ranks.hpp"
#include "tests/layers/simd_levels.hpp"

namespace reprise {
namespace {

constexpr float kEps = 1e-5f;

template <class T>
std::vector<T> values_of(const Table& table) {
  std::vector<T> values;
  for (const double x : table.data) values.push_back(T(static_cast<float>(x)));
  return values;
}

template <class T>
Table table_of(const std::vector<T>& values, std::int64_t rows, std::int64_t cols) {
  Table table(rows, cols);
  for (std::size_t i = 0; i < values.size(); ++i) table.data[i] = static_cast<double>(static_cast<float>(values[i]));
  return table;
}

struct NormResult {
  Table y, d_x, d_weight;
};

NormResult naive(const Table& x, const Table& w, const Table& d_y) {
  NormResult r{Table(x.rows, x.cols), Table(x.rows, x.cols), Table(x.cols, 1)};
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double squares = 0.0, dot = 0.0;
    for (std::int64_t c = 0; c < x.cols; ++c) {
      squares += x(t, c) * x(t, c);
      dot += x(t, c) * w(c, 0) * d_y(t, c);
    }
    const double size = static_cast<double>(x.cols),
                 factor = 1.0 / std::sqrt(squares / size + static_cast<double>(kEps));
    for (std::int64_t c = 0; c < x.cols; ++c) {
      r.y(t, c) = x(t, c) * factor * w(c, 0);
      r.d_x(t, c) = factor * (w(c, 0) * d_y(t, c) - x(t, c) * factor * factor * dot / size);
      r.d_weight(c, 0) += d_y(t, c) * x(t, c) * factor;
    }
  }
  return r;
}

/// y, d_x added to ones, d_weight added to ones.
template <class T>
NormResult run(const Table& x, const Table& w, const Table& d_y, int threads = 1) {
  ThreadPool pool(threads);
  const CpuStream stream{&pool};
  Arena arena{Stream(stream)};
  std::vector<T> in = values_of<T>(x), weight = values_of<T>(w), gradient = values_of<T>(d_y), y(in.size());
  std::vector<T> d_x(in.size(), T(1.0f));
  std::vector<float> rstd(static_cast<std::size_t>(x.rows)), d_weight(weight.size(), 1.0f);
  rms_norm<T>(stream, {in.data(), x.rows, x.cols}, weight, kEps, {y.data(), x.rows, x.cols}, rstd);
  accumulate_rms_norm_backward<T>(stream, arena, {in.data(), x.rows, x.cols}, weight, rstd,
                                  {gradient.data(), x.rows, x.cols}, {d_x.data(), x.rows, x.cols}, d_weight);
  NormResult r{table_of(y, x.rows, x.cols), table_of(d_x, x.rows, x.cols), table_of(d_weight, x.cols, 1)};
  for (double& value : r.d_x.data) value -= 1.0;
  for (double& value : r.d_weight.data) value -= 1.0;
  return r;
}

TEST(RmsNorm, EqualsItsDefinition) {
  for_each_simd_level([] {
    for (const std::int64_t cols : {2, 3, 16, 37, 192}) {
      for (const std::int64_t rows : {0, 1, 130}) {
        SCOPED_TRACE(testing::Message() << simd_level_name() << " " << rows << " x " << cols);
        const Table x = random_table(rows, cols, 2.0, 1), w = random_table(cols, 1, 1.0, 2);
        const Table d_y = random_table(rows, cols, 1.0, 3);
        const NormResult want = naive(x, w, d_y), got = run<float>(x, w, d_y);
        EXPECT_LT(relative_difference(got.y, want.y), 1e-5);
        if (rows == 0) continue;
        EXPECT_LT(relative_difference(got.d_x, want.d_x), 2e-5);
        EXPECT_LT(relative_difference(got.d_weight, want.d_weight), 2e-5);
      }
    }
  });
}

TEST(RmsNorm, BFloat16StaysWithinRounding) {
  const Table x = random_table(70, 40, 1.0, 1), w = random_table(40, 1, 1.0, 2), d_y = random_table(70, 40, 1.0, 3);
  const auto rounded = [](const Table& t) { return table_of(values_of<BFloat16>(t), t.rows, t.cols); };
  const NormResult want = naive(rounded(x), rounded(w), rounded(d_y)), got = run<BFloat16>(x, w, d_y);
  EXPECT_LT(relative_difference(got.y, want.y), 0.03);
  EXPECT_LT(relative_difference(got.d_x, want.d_x), 0.05);
  EXPECT_LT(relative_difference(got.d_weight, want.d_weight), 1e-4);  // float32 sums of what was given
}

TEST(RmsNorm, ThreadsChangeNoBit) {
  const Table x = random_table(333, 24, 1.0, 1), w = random_table(24, 1, 1.0, 2), d_y = random_table(333, 24, 1.0, 3);
  const NormResult one = run<float>(x, w, d_y, 1), four = run<float>(x, w, d_y, 4);
  EXPECT_EQ(one.d_x.data, four.d_x.data);
  EXPECT_EQ(one.d_weight.data, four.d_weight.data);
}

template <class T>
void expect_fused_addition() {
  const std::int64_t rows = 67, cols = 21;
  std::vector<T> x = values_of<T>(random_table(rows, cols, 1.0, 1)),
                 branch = values_of<T>(random_table(rows, cols, 1.0, 2));
  std::vector<T> weight = values_of<T>(random_table(cols, 1, 1.0, 3)), sum(x.size()), y(x.size()), again(x.size());
  std::vector<float> rstd(static_cast<std::size_t>(rows)), rstd_again = rstd;
  const CpuStream stream;
  add_rms_norm<T>(stream, {x.data(), rows, cols}, {branch.data(), rows, cols}, {sum.data(), rows, cols}, weight, kEps,
                  {y.data(), rows, cols}, rstd);
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(sum[i], T(static_cast<float>(x[i]) + static_cast<float>(branch[i])));
  }
  rms_norm<T>(stream, {sum.data(), rows, cols}, weight, kEps, {again.data(), rows, cols}, rstd_again);
  EXPECT_EQ(y, again);
  EXPECT_EQ(rstd, rstd_again);
}

TEST(RmsNorm, FusedAdditionHasTheSameBits) {
  for_each_simd_level([] {
    expect_fused_addition<float>();
    expect_fused_addition<BFloat16>();
  });
}

TEST(RmsNorm, NaNAndInfinityStayInTheirRow) {
  Table x = random_table(3, 20, 1.0, 1);
  x(0, 5) = std::nan("");
  x(2, 7) = INFINITY;
  const NormResult got = run<float>(x, random_table(20, 1, 1.0, 2), random_table(3, 20, 1.0, 3));
  EXPECT_TRUE(std::isnan(got.y(0, 0)));
  EXPECT_TRUE(std::isfinite(got.y(1, 0)));
  EXPECT_TRUE(std::isnan(got.y(2, 7)));
}

TEST(HeadRmsNorm, EqualsTheNormOfEachHead) {
  const std::int64_t tokens = 69, heads = 3, first = 1, dim = 6, cols = (first + heads) * dim + 5;
  const Table x = random_table(tokens, cols, 1.0, 1), w = random_table(dim, 1, 1.0, 2),
              d_y = random_table(tokens, cols, 1.0, 3);
  std::vector<float> in = values_of<float>(x), weight = values_of<float>(w), y(in.size(), 7.0f),
                     d = values_of<float>(d_y);
  std::vector<float> rstd(static_cast<std::size_t>(tokens * (first + heads))),
      d_weight(static_cast<std::size_t>(dim), 0.0f);
  const CpuStream stream;
  Arena arena{Stream(stream)};
  head_rms_norm<float>(stream, {in.data(), tokens, cols}, first, heads, weight, kEps, {y.data(), tokens, cols},
                       {rstd.data(), tokens, first + heads});
  head_rms_norm_backward<float>(stream, arena, {in.data(), tokens, cols}, first, heads, weight,
                                {rstd.data(), tokens, first + heads}, {d.data(), tokens, cols}, d_weight);
  Table one(tokens * heads, dim), one_d(tokens * heads, dim);
  for (std::int64_t i = 0; i < one.rows; ++i) {
    for (std::int64_t c = 0; c < dim; ++c) {
      one(i, c) = x(i / heads, (first + i % heads) * dim + c);
      one_d(i, c) = d_y(i / heads, (first + i % heads) * dim + c);
    }
  }
  const NormResult want = naive(one, w, one_d);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const std::int64_t head = c / dim - first;
      const auto at = static_cast<std::size_t>(t * cols + c);
      const bool is_normed = head >= 0 && head < heads;
      const double expected = is_normed ? want.y(t * heads + head, c % dim) : 7.0;
      const double expected_d = is_normed ? want.d_x(t * heads + head, c % dim) : d_y(t, c);
      EXPECT_NEAR(static_cast<double>(y[at]), expected, 1e-5);
      EXPECT_NEAR(static_cast<double>(d[at]), expected_d, 1e-4);
    }
  }
  for (std::int64_t c = 0; c < dim; ++c) {
    EXPECT_NEAR(static_cast<double>(d_weight[static_cast<std::size_t>(c)]), want.d_weight(c, 0), 1e-4);
  }
}

}  // namespace
}  // namespace reprise
