#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "core/transfer.hpp"
#include "layers/attention.hpp"

namespace reprise {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

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

  void run(const Stream& stream) {
    Arena arena(stream);
    const Buffer<T> in = to_device(stream, qkv), d_out = to_device(stream, d_output);
    Buffer<T> out = to_device(stream, not_numbers(tokens * q_size)),
              d_in = to_device(stream, not_numbers(tokens * row));
    Buffer<float> normalisers(stream, tokens * shape.num_heads, "normalisers");
    const T* const x = in.view().data;
    T* const d = d_in.view().data;
    const HeadRows<const T> q{x, row}, k{x + q_size, row}, v{x + q_size + kv_size, row};
    const HeadRows<T> o{out.view().data, q_size};
    const MatrixView<float> log_sum_exps{normalisers.view(), tokens, shape.num_heads};
    attention<T>(stream, arena, shape, offsets, q, k, v, o, log_sum_exps);
    attention_backward<T>(stream, arena, shape, offsets, q, k, v, {o.data, q_size}, log_sum_exps,
                          {d_out.view().data, q_size}, {d, row}, {d + q_size, row}, {d + q_size + kv_size, row});
    output = to_host(stream, out.view());
    d_qkv = to_host(stream, d_in.view());
    log_sum_exp = to_host(stream, normalisers.view());
  }

  /// What must be overwritten.
  static std::vector<T> not_numbers(std::int64_t size) {
    return std::vector<T>(static_cast<std::size_t>(size), T(kNan));
  }

  [[nodiscard]] double at(std::int64_t token, std::int64_t col) const {
    return static_cast<double>(static_cast<float>(qkv[static_cast<std::size_t>(token * row + col)]));
  }
};

struct Expected {
  std::vector<double> output, log_sum_exp, d_qkv;
};

/// The definition, in float64.
template <class T>
Expected naive(const Case<T>& c) {
  Expected e{std::vector<double>(c.output.size(), 0.0), std::vector<double>(c.log_sum_exp.size(), 0.0),
             std::vector<double>(c.d_qkv.size(), 0.0)};
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
        e.log_sum_exp[static_cast<std::size_t>(t * c.shape.num_heads + h)] = std::log2(total);
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

}  // namespace reprise
