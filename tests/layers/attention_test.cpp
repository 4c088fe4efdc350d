#include "layers/attention.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/thread_pool.hpp"
#include "tests/layers/simd_levels.hpp"

namespace reprise {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class T>
std::vector<T> random_values(std::int64_t size, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values;
  for (std::int64_t i = 0; i < size; ++i) values.push_back(T(normal(generator)));
  return values;
}

/// q, k and v side by side in one row, as the layer holds them, and what attention makes of them.
template <class T>
struct Case {
  AttentionShape shape;
  std::vector<std::int64_t> offsets;
  std::int64_t tokens, q_size, kv_size, row;
  std::vector<T> qkv, output, d_output, d_qkv;
  std::vector<float> log_sum_exp;

  Case(AttentionShape heads, std::vector<std::int64_t> documents, std::uint64_t seed = 1)
      : shape(heads),
        offsets(std::move(documents)),
        tokens(offsets.back()),
        q_size(heads.num_heads * heads.head_dim),
        kv_size(heads.num_kv_heads * heads.head_dim),
        row(q_size + 2 * kv_size),
        qkv(random_values<T>(tokens * row, seed)),
        output(static_cast<std::size_t>(tokens * q_size)),
        d_output(random_values<T>(tokens * q_size, seed + 1)),
        d_qkv(static_cast<std::size_t>(tokens * row)),
        log_sum_exp(static_cast<std::size_t>(tokens * heads.num_heads)) {}

  void run(int threads = 1) {
    ThreadPool pool(threads);
    const CpuStream stream{&pool};
    Arena arena{Stream(stream)};
    const T* x = qkv.data();
    const HeadRows<const T> q{x, row}, k{x + q_size, row}, v{x + q_size + kv_size, row};
    attention<T>(stream, arena, shape, offsets, q, k, v, {output.data(), q_size},
                 {log_sum_exp.data(), tokens, shape.num_heads});
    T* d = d_qkv.data();
    attention_backward<T>(stream, arena, shape, offsets, q, k, v, {output.data(), q_size},
                          {log_sum_exp.data(), tokens, shape.num_heads}, {d_output.data(), q_size}, {d, row},
                          {d + q_size, row}, {d + q_size + kv_size, row});
  }

  [[nodiscard]] double at(std::int64_t token, std::int64_t col) const {
    return static_cast<double>(static_cast<float>(qkv[static_cast<std::size_t>(token * row + col)]));
  }
};

struct Expected {
  std::vector<double> output, d_qkv;
};

/// The definition, in float64.
template <class T>
Expected naive(const Case<T>& c) {
  Expected e{std::vector<double>(c.output.size(), 0.0), std::vector<double>(c.d_qkv.size(), 0.0)};
  const std::int64_t dim = c.shape.head_dim, group = c.shape.num_heads / c.shape.num_kv_heads;
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  for (std::size_t d = 0; d + 1 < c.offsets.size(); ++d) {
    for (std::int64_t h = 0; h < c.shape.num_heads; ++h) {
      const std::int64_t q = h * dim, k = c.q_size + h / group * dim, v = k + c.kv_size;
      for (std::int64_t t = c.offsets[d]; t < c.offsets[d + 1]; ++t) {
        std::vector<double> p, dp;
        double total = 0.0, mean = 0.0;
        for (std::int64_t j = c.offsets[d]; j <= t; ++j) {
          double score = 0.0, d_p = 0.0;
          for (std::int64_t i = 0; i < dim; ++i) {
            score += c.at(t, q + i) * c.at(j, k + i);
            d_p += static_cast<double>(static_cast<float>(c.d_output[static_cast<std::size_t>(t * c.q_size + q + i)])) *
                   c.at(j, v + i);
          }
          p.push_back(std::exp(score * scale));
          dp.push_back(d_p);
          total += p.back();
        }
        for (std::size_t j = 0; j < p.size(); ++j) mean += p[j] / total * dp[j];
        for (std::size_t n = 0; n < p.size(); ++n) {
          const std::int64_t j = c.offsets[d] + static_cast<std::int64_t>(n);
          const double weight = p[n] / total, d_score = weight * (dp[n] - mean) * scale;
          for (std::int64_t i = 0; i < dim; ++i) {
            const auto out = static_cast<std::size_t>(t * c.q_size + q + i);
            e.output[out] += weight * c.at(j, v + i);
            e.d_qkv[static_cast<std::size_t>(t * c.row + q + i)] += d_score * c.at(j, k + i);
            e.d_qkv[static_cast<std::size_t>(j * c.row + k + i)] += d_score * c.at(t, q + i);
            e.d_qkv[static_cast<std::size_t>(j * c.row + v + i)] +=
                weight * static_cast<double>(static_cast<float>(c.d_output[out]));
          }
        }
      }
    }
  }
  return e;
}

template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& want, double tolerance) {
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(static_cast<float>(got[i])), want[i], tolerance * (1.0 + std::abs(want[i]))) << i;
  }
}

/// Every instruction set against the definition, which is worked out once.
template <class T>
void expect_definition(Case<T> c, double tolerance, double d_tolerance) {
  const Expected want = naive(c);
  for_each_simd_level([&] {
    SCOPED_TRACE(simd_level_name());
    c.run();
    expect_near(c.output, want.output, tolerance);
    expect_near(c.d_qkv, want.d_qkv, d_tolerance);
  });
}

TEST(Attention, EqualsItsDefinition) {
  const std::vector<AttentionShape> shapes = {{1, 1, 2},  {2, 1, 6},  {4, 2, 8},  {3, 3, 48},
                                              {2, 2, 64}, {2, 1, 80}, {1, 1, 128}};
  for (const AttentionShape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim);
    // One token, 16, none, 33 and 129: across panels and row groups.
    expect_definition(Case<float>(shape, {0, 1, 17, 17, 50, 179}), 2e-6, 1e-5);
  }
}

TEST(Attention, LongDocumentsTakeTheOnlineSoftmax) {
  Case<float> c({1, 1, 4}, {0, 1060});  // three blocks of keys
  for (float& x : c.qkv) x *= 3.0f;     // peaked: the running maximum moves between blocks
  expect_definition(c, 1e-5, 1e-4);
}

TEST(Attention, LargeScoresDoNotOverflow) {
  Case<float> c({1, 1, 16}, {0, 40});
  for (float& x : c.qkv) x *= 40.0f;  // scores of thousands: each softmax is nearly one key
  c.run();
  for (const float x : c.output) EXPECT_TRUE(std::isfinite(x));
  for (const float x : c.d_qkv) EXPECT_TRUE(std::isfinite(x));
  for (std::int64_t i = 0; i < 16; ++i) {  // the first token sees itself alone
    EXPECT_EQ(static_cast<double>(c.output[static_cast<std::size_t>(i)]), c.at(0, 32 + i));
  }
}

TEST(Attention, BFloat16StaysWithinRounding) {
  expect_definition(Case<BFloat16>({4, 2, 48}, {0, 30, 130}), 0.01, 0.02);
}

TEST(Attention, ThreadsChangeNoBit) {
  Case<float> one({4, 2, 8}, {0, 70, 75, 200}), three = one;
  one.run(1);
  three.run(3);
  EXPECT_EQ(one.output, three.output);
  EXPECT_EQ(one.d_qkv, three.d_qkv);
}

TEST(Attention, NaNStaysInItsDocumentAndBehindItsToken) {
  Case<float> c({1, 1, 8}, {0, 30, 80}), clean = c;
  clean.run();
  c.qkv[static_cast<std::size_t>(50 * c.row + c.q_size)] = kNan;  // a key in the second document
  c.run();
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    for (std::int64_t i = 0; i < 8; ++i) {
      const auto at = static_cast<std::size_t>(t * 8 + i);
      if (t < 50) {
        EXPECT_EQ(c.output[at], clean.output[at]) << t;
      } else {
        EXPECT_TRUE(std::isnan(c.output[at])) << t;
      }
    }
  }
}

TEST(Attention, NoTokensAndNoDocuments) {
  for (const std::vector<std::int64_t>& offsets : {std::vector<std::int64_t>{0}, std::vector<std::int64_t>{0, 0, 0}}) {
    Case<float> c({2, 1, 8}, offsets);
    c.run();
    EXPECT_TRUE(c.output.empty());
  }
}

TEST(CachedAttention, ContinuesADocument) {
  const AttentionShape shape{4, 2, 12};
  Case<float> whole(shape, {0, 90, 133});
  whole.run();
  // Keys and values of both documents in caches of 100 rows; the last 7 and 0 tokens of them are queries.
  constexpr std::int64_t kMaxLength = 100;
  std::vector<float> keys(static_cast<std::size_t>(2 * kMaxLength * whole.kv_size)), values = keys;
  for (std::int64_t d = 0; d < 2; ++d) {
    for (std::int64_t t = whole.offsets[static_cast<std::size_t>(d)];
         t < whole.offsets[static_cast<std::size_t>(d + 1)]; ++t) {
      const std::int64_t row = d * kMaxLength + t - whole.offsets[static_cast<std::size_t>(d)];
      for (std::int64_t i = 0; i < whole.kv_size; ++i) {
        keys[static_cast<std::size_t>(row * whole.kv_size + i)] = static_cast<float>(whole.at(t, whole.q_size + i));
        values[static_cast<std::size_t>(row * whole.kv_size + i)] =
            static_cast<float>(whole.at(t, whole.q_size + whole.kv_size + i));
      }
    }
  }
  const std::vector<std::int64_t> offsets = {0, 7, 7}, lengths = {90, 43};
  std::vector<float> output(static_cast<std::size_t>(7 * whole.q_size));
  const CpuStream stream;
  Arena arena{Stream(stream)};
  const float* q = whole.qkv.data() + 83 * whole.row;
  cached_attention<float>(stream, arena, shape, offsets, lengths, kMaxLength, {q, whole.row},
                          {keys.data(), whole.kv_size}, {values.data(), whole.kv_size}, {output.data(), whole.q_size});
  for (std::size_t i = 0; i < output.size(); ++i) {
    EXPECT_NEAR(output[i], whole.output[static_cast<std::size_t>(83 * whole.q_size) + i], 1e-5f);
  }
}

}  // namespace
}  // namespace reprise
