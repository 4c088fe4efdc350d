#include "layers/attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/layers/attention_case.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

/// Every stream against the definition, which is worked out once.
template <class T>
void expect_definition(Case<T> c, double tolerance, double d_tolerance) {
  const Expected want = naive(c);
  on_every_stream([&](const Stream& stream) {
    c.run(stream);
    expect_near(c.output, want.output, tolerance);
    expect_near(c.log_sum_exp, want.log_sum_exp, 2.0 * tolerance);
    expect_near(c.d_qkv, want.d_qkv, d_tolerance);
  });
}

/// The output alone, of rows that stand further apart than their heads need.
template <class T>
std::vector<T> plain_output(const Case<T>& c) {
  const Stream& stream = test_stream();
  Arena arena(stream);
  const Buffer<T> in = to_device(c.qkv);
  Buffer<T> out = to_device(Case<T>::not_numbers(c.tokens * c.q_size));
  Buffer<float> log_sum_exp(stream, c.tokens * c.shape.num_heads, "normalisers");
  const T* const x = in.view().data;
  attention<T>(stream, arena, c.shape, c.offsets, {x, c.row}, {x + c.q_size, c.row}, {x + c.q_size + c.kv_size, c.row},
               {out.view().data, c.q_size}, {log_sum_exp.view(), c.tokens, c.shape.num_heads});
  return to_host(out);
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
  c.run(test_stream());
  for (const float x : c.output) EXPECT_TRUE(std::isfinite(x));
  for (const float x : c.d_qkv) EXPECT_TRUE(std::isfinite(x));
  for (std::int64_t i = 0; i < 16; ++i) {  // the first token sees itself alone
    EXPECT_EQ(static_cast<double>(c.output[static_cast<std::size_t>(i)]), c.at(0, 32 + i));
  }
}

TEST(Attention, BFloat16StaysWithinRounding) {
  // Every width of the tensor-core kernels, what is filled up to one, and what they do not take.
  const std::vector<AttentionShape> shapes = {{2, 2, 32}, {4, 1, 64}, {2, 1, 96}, {2, 2, 128}, {3, 1, 80},
                                              {5, 1, 8},  {4, 2, 48}, {2, 1, 6},  {1, 1, 136}};
  for (const AttentionShape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << "head_dim " << shape.head_dim);
    expect_definition(Case<BFloat16>(shape, {0, 1, 31, 31, 131}), 0.01, 0.02);
  }
}

TEST(Attention, BFloat16LongDocuments) {
  Case<BFloat16> c({2, 1, 16}, {0, 3, 263});
  for (BFloat16& x : c.qkv) x = BFloat16(2.0f * static_cast<float>(x));  // peaked
  expect_definition(c, 0.02, 0.06);
}

TEST(Attention, BFloat16RowsThatAreNotAligned) {
  // Rows of 3 * 8 + 4 elements: the packs of the tensor-core kernels would straddle them.
  Case<BFloat16> c({1, 1, 8}, {0, 40});
  const Case<BFloat16> plain = c;
  const std::int64_t wide = c.row + 4;
  c.qkv.assign(static_cast<std::size_t>(c.tokens * wide), BFloat16(kNan));
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    for (std::int64_t i = 0; i < c.row; ++i) {
      c.qkv[static_cast<std::size_t>(t * wide + i)] = plain.qkv[static_cast<std::size_t>(t * c.row + i)];
    }
  }
  c.row = wide;
  expect_near(plain_output(c), naive(plain).output, 0.01);
}

TEST(Attention, GradientsEqualFiniteDifferences) {
  Case<float> c({2, 1, 8}, {0, 4, 15}), moved = c;
  const Stream& stream = test_stream();
  c.run(stream);
  const auto objective = [&] {
    moved.run(stream);
    double sum = 0.0;
    for (std::size_t i = 0; i < moved.output.size(); ++i) {
      sum += static_cast<double>(moved.output[i]) * static_cast<double>(moved.d_output[i]);
    }
    return sum;
  };
  for (std::size_t i = 5; i < c.qkv.size(); i += 29) {
    constexpr float kStep = 0.01f;
    moved.qkv[i] = c.qkv[i] + kStep;
    const double above = objective();
    moved.qkv[i] = c.qkv[i] - kStep;
    const double below = objective();
    moved.qkv[i] = c.qkv[i];
    EXPECT_NEAR(static_cast<double>(c.d_qkv[i]), (above - below) / (2.0 * kStep), 2e-3) << i;
  }
}

TEST(Attention, RunsHaveTheSameBits) {
  Case<BFloat16> c({4, 2, 32}, {0, 70, 75, 150});
  c.run(test_stream());
  const Case<BFloat16> first = c;
  c.run(test_stream());
  EXPECT_EQ(c.output, first.output);
  EXPECT_EQ(c.d_qkv, first.d_qkv);
  EXPECT_EQ(c.log_sum_exp, first.log_sum_exp);
}

TEST(Attention, NaNStaysInItsDocumentAndBehindItsToken) {
  Case<float> c({1, 1, 8}, {0, 30, 80}), clean = c;
  clean.run(test_stream());
  c.qkv[static_cast<std::size_t>(50 * c.row + c.q_size)] = kNan;  // a key in the second document
  c.run(test_stream());
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
    c.run(test_stream());
    EXPECT_TRUE(c.output.empty());
  }
}

/// Keys and values of both documents in caches of 100 rows; the last 7 and 0 tokens of them are queries.
template <class T>
void expect_continuation(const AttentionShape& shape, float tolerance) {
  Case<T> whole(shape, {0, 90, 133});
  const Stream& stream = test_stream();
  whole.run(stream);
  constexpr std::int64_t kMaxLength = 100;
  std::vector<T> keys(static_cast<std::size_t>(2 * kMaxLength * whole.kv_size)), values = keys;
  for (std::int64_t d = 0; d < 2; ++d) {
    const std::int64_t begin = whole.offsets[static_cast<std::size_t>(d)];
    for (std::int64_t t = begin; t < whole.offsets[static_cast<std::size_t>(d + 1)]; ++t) {
      const T* const from = whole.qkv.data() + t * whole.row + whole.q_size;
      const std::int64_t to = (d * kMaxLength + t - begin) * whole.kv_size;
      std::copy_n(from, whole.kv_size, keys.data() + to);
      std::copy_n(from + whole.kv_size, whole.kv_size, values.data() + to);
    }
  }
  const std::vector<std::int64_t> offsets = {0, 7, 7}, lengths = {90, 43};
  const Buffer<T> qkv = to_device(whole.qkv), k = to_device(keys), v = to_device(values);
  Buffer<T> output = to_device(Case<T>::not_numbers(7 * whole.q_size));
  Arena arena(stream);
  cached_attention<T>(stream, arena, shape, offsets, lengths, kMaxLength, {qkv.view().data + 83 * whole.row, whole.row},
                      {k.view().data, whole.kv_size}, {v.view().data, whole.kv_size},
                      {output.view().data, whole.q_size});
  const std::vector<T> got = to_host(output);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(static_cast<float>(got[i]),
                static_cast<float>(whole.output[static_cast<std::size_t>(83 * whole.q_size) + i]), tolerance);
  }
}

TEST(CachedAttention, ContinuesADocument) {
  expect_continuation<float>({4, 2, 12}, 1e-5f);
  expect_continuation<BFloat16>({4, 2, 16}, 0.02f);
}

}  // namespace
}  // namespace reprise
