#include "layers/rms_norm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/layers/decoder_ranks.hpp"

namespace reprise {
namespace {

constexpr float kEps = 1e-5f;

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
NormResult run(const Stream& stream, const Table& x, const Table& w, const Table& d_y) {
  const std::int64_t rows = x.rows, cols = x.cols;
  Arena arena(stream);
  const auto in = to_device(stream, values_of<T>(x)), weight = to_device(stream, values_of<T>(w)),
             gradient = to_device(stream, values_of<T>(d_y));
  auto y = to_device(stream, std::vector<T>(x.data.size())),
       d_x = to_device(stream, std::vector<T>(x.data.size(), T(1.0f)));
  auto rstd = to_device(stream, std::vector<float>(static_cast<std::size_t>(rows))),
       d_weight = to_device(stream, std::vector<float>(w.data.size(), 1.0f));
  rms_norm<T>(stream, {in.view(), rows, cols}, weight.view(), kEps, {y.view(), rows, cols}, rstd.view());
  accumulate_rms_norm_backward<T>(stream, arena, {in.view(), rows, cols}, weight.view(), rstd.view(),
                                  {gradient.view(), rows, cols}, {d_x.view(), rows, cols}, d_weight.view());
  NormResult r{table_of(to_host(stream, y.view()), rows, cols), table_of(to_host(stream, d_x.view()), rows, cols),
               table_of(to_host(stream, d_weight.view()), cols, 1)};
  for (double& value : r.d_x.data) value -= 1.0;
  for (double& value : r.d_weight.data) value -= 1.0;
  return r;
}

void expect_definition(const Stream& stream, std::int64_t rows, std::int64_t cols) {
  SCOPED_TRACE(testing::Message() << rows << " x " << cols);
  const Table x = random_table(rows, cols, 2.0, 1), w = random_table(cols, 1, 1.0, 2);
  const Table d_y = random_table(rows, cols, 1.0, 3);
  const NormResult want = naive(x, w, d_y), got = run<float>(stream, x, w, d_y);
  EXPECT_LT(relative_difference(got.y, want.y), 1e-5);
  if (rows == 0) return;
  EXPECT_LT(relative_difference(got.d_x, want.d_x), 2e-5);
  EXPECT_LT(relative_difference(got.d_weight, want.d_weight), 2e-5);
}

TEST(RmsNorm, EqualsItsDefinition) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t cols : {2, 3, 16, 37, 192}) {
      for (const std::int64_t rows : {0, 1, 130}) expect_definition(stream, rows, cols);
    }
  });
}

/// Rows that a whole block of a GPU works on, of whole packs and not.
TEST(RmsNorm, WideRows) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t cols : {1024, 1032, 4101, 8200}) expect_definition(stream, 18, cols);
  });
}

TEST(RmsNorm, BFloat16StaysWithinRounding) {
  const Table x = random_table(70, 40, 1.0, 1), w = random_table(40, 1, 1.0, 2), d_y = random_table(70, 40, 1.0, 3);
  const auto rounded = [](const Table& t) { return table_of(values_of<BFloat16>(t), t.rows, t.cols); };
  const NormResult want = naive(rounded(x), rounded(w), rounded(d_y)), got = run<BFloat16>(test_stream(), x, w, d_y);
  EXPECT_LT(relative_difference(got.y, want.y), 0.03);
  EXPECT_LT(relative_difference(got.d_x, want.d_x), 0.05);
  EXPECT_LT(relative_difference(got.d_weight, want.d_weight), 1e-4);  // float32 sums of what was given
}

TEST(RmsNorm, ThreadsAndRepetitionChangeNoBit) {
  const Table x = random_table(333, 24, 1.0, 1), w = random_table(24, 1, 1.0, 2), d_y = random_table(333, 24, 1.0, 3);
  ThreadPool pool(4);
  const NormResult once = run<float>(test_stream(), x, w, d_y), again = run<float>(rank_stream(pool), x, w, d_y);
  EXPECT_EQ(once.d_x.data, again.d_x.data);
  EXPECT_EQ(once.d_weight.data, again.d_weight.data);
}

template <class T>
void expect_fused_addition(const Stream& stream, std::int64_t cols) {
  const std::int64_t rows = 67;
  const std::vector<T> x = values_of<T>(random_table(rows, cols, 1.0, 1)),
                       branch = values_of<T>(random_table(rows, cols, 1.0, 2));
  const auto on_device = to_device(stream, x), added = to_device(stream, branch),
             weight = to_device(stream, values_of<T>(random_table(cols, 1, 1.0, 3)));
  auto sum = to_device(stream, std::vector<T>(x.size())), y = to_device(stream, std::vector<T>(x.size())),
       y_apart = to_device(stream, std::vector<T>(x.size()));
  auto rstd = to_device(stream, std::vector<float>(static_cast<std::size_t>(rows))),
       rstd_apart = to_device(stream, std::vector<float>(static_cast<std::size_t>(rows)));
  add_rms_norm<T>(stream, {on_device.view(), rows, cols}, {added.view(), rows, cols}, {sum.view(), rows, cols},
                  weight.view(), kEps, {y.view(), rows, cols}, rstd.view());
  const std::vector<T> sums = to_host(stream, sum.view());
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(sums[i], T(static_cast<float>(x[i]) + static_cast<float>(branch[i])));
  }
  rms_norm<T>(stream, {sum.view(), rows, cols}, weight.view(), kEps, {y_apart.view(), rows, cols}, rstd_apart.view());
  EXPECT_EQ(to_host(stream, y.view()), to_host(stream, y_apart.view()));
  EXPECT_EQ(to_host(stream, rstd.view()), to_host(stream, rstd_apart.view()));
}

TEST(RmsNorm, FusedAdditionHasTheSameBits) {
  on_every_stream([](const Stream& stream) {
    for (const std::int64_t cols : {21, 64}) {
      expect_fused_addition<float>(stream, cols);
      expect_fused_addition<BFloat16>(stream, cols);
    }
  });
}

TEST(RmsNorm, NaNAndInfinityStayInTheirRow) {
  Table x = random_table(3, 20, 1.0, 1);
  x(0, 5) = std::nan("");
  x(2, 7) = INFINITY;
  const NormResult got = run<float>(test_stream(), x, random_table(20, 1, 1.0, 2), random_table(3, 20, 1.0, 3));
  EXPECT_TRUE(std::isnan(got.y(0, 0)));
  EXPECT_TRUE(std::isfinite(got.y(1, 0)));
  EXPECT_TRUE(std::isnan(got.y(2, 7)));
}

/// Heads [first, first + heads) of rows that are `behind` elements longer.
void expect_norm_of_each_head(const Stream& stream, std::int64_t dim, std::int64_t behind) {
  SCOPED_TRACE(dim);
  const std::int64_t tokens = 69, heads = 3, first = 1, cols = (first + heads) * dim + behind;
  const Table x = random_table(tokens, cols, 1.0, 1), w = random_table(dim, 1, 1.0, 2),
              d_y = random_table(tokens, cols, 1.0, 3);
  const auto in = to_device(stream, values_of<float>(x)), weight = to_device(stream, values_of<float>(w));
  auto y = to_device(stream, std::vector<float>(x.data.size(), 7.0f)), d = to_device(stream, values_of<float>(d_y));
  auto rstd = to_device(stream, std::vector<float>(static_cast<std::size_t>(tokens * (first + heads)))),
       d_weight = to_device(stream, std::vector<float>(w.data.size()));
  Arena arena(stream);
  head_rms_norm<float>(stream, {in.view(), tokens, cols}, first, heads, weight.view(), kEps, {y.view(), tokens, cols},
                       {rstd.view(), tokens, first + heads});
  head_rms_norm_backward<float>(stream, arena, {in.view(), tokens, cols}, first, heads, weight.view(),
                                {rstd.view(), tokens, first + heads}, {d.view(), tokens, cols}, d_weight.view());
  const Table got_y = table_of(to_host(stream, y.view()), tokens, cols),
              got_d = table_of(to_host(stream, d.view()), tokens, cols),
              got_d_weight = table_of(to_host(stream, d_weight.view()), dim, 1);
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
      const bool is_normed = c >= first * dim && head < heads;
      EXPECT_NEAR(got_y(t, c), is_normed ? want.y(t * heads + head, c % dim) : 7.0, 1e-5);
      EXPECT_NEAR(got_d(t, c), is_normed ? want.d_x(t * heads + head, c % dim) : d_y(t, c), 1e-4);
    }
  }
  for (std::int64_t c = 0; c < dim; ++c) EXPECT_NEAR(got_d_weight(c, 0), want.d_weight(c, 0), 1e-4);
}

TEST(HeadRmsNorm, EqualsTheNormOfEachHead) {
  on_every_stream([](const Stream& stream) {
    expect_norm_of_each_head(stream, 6, 5);
    expect_norm_of_each_head(stream, 16, 8);
    expect_norm_of_each_head(stream, 136, 0);
  });
}

}  // namespace
}  // namespace reprise
