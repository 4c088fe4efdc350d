#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "layers/decoder_config.hpp"

namespace reprise {

/// Row-major float64 matrix of the oracle.
struct Table {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> data;

  Table() = default;
  Table(std::int64_t row_count, std::int64_t col_count)
      : rows(row_count), cols(col_count), data(static_cast<std::size_t>(row_count * col_count), 0.0) {}
  double& operator()(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * cols + c)]; }
  double operator()(std::int64_t r, std::int64_t c) const { return data[static_cast<std::size_t>(r * cols + c)]; }
};

using Tables = std::map<std::string, Table>;  // by Hugging Face name; vectors are [n, 1]

/// The decoder written down as naively as it can be, in float64, for whole matrices on one rank. It shares no code with
/// layers/.
class DecoderOracle {
 public:
  /// `weights` may hold adapters, "<layer>.lora_A.weight" and "<layer>.lora_B.weight"; what they add is scaled.
  DecoderOracle(const DecoderConfig& config, Tables weights, double lora_scale = 0.0)
      : config_(config), weights_(std::move(weights)), lora_scale_(lora_scale) {}

  Table forward(const std::vector<std::int32_t>& tokens, const std::vector<std::int64_t>& offsets) {
    tokens_ = tokens;
    position_.clear();
    begin_.clear();
    for (std::size_t d = 0; d + 1 < offsets.size(); ++d) {
      for (std::int64_t t = offsets[d]; t < offsets[d + 1]; ++t) {
        position_.push_back(t - offsets[d]);
        begin_.push_back(offsets[d]);
      }
    }
    const auto count = static_cast<std::int64_t>(tokens.size());
    Table x(count, config_.hidden_size);
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t c = 0; c < x.cols; ++c)
        x(t, c) = weights_.at(kEmbedding)(tokens[static_cast<std::size_t>(t)], c);
    }
    saved_.assign(static_cast<std::size_t>(config_.num_layers), {});
    for (std::int64_t i = 0; i < config_.num_layers; ++i) x = layer_forward(i, x);
    last_ = x;
    return norm(x, weights_.at("model.norm.weight"), x.cols);
  }

  /// Gradients of sum(hidden * d_hidden) for the last forward.
  Tables backward(const Table& d_hidden) {
    gradients_.clear();
    for (const auto& [name, value] : weights_) gradients_[name] = Table(value.rows, value.cols);
    Table d =
        norm_backward(last_, weights_.at("model.norm.weight"), gradients_["model.norm.weight"], d_hidden, last_.cols);
    for (std::int64_t i = config_.num_layers - 1; i >= 0; --i) d = layer_backward(i, d);
    for (std::int64_t t = 0; t < d.rows; ++t) {
      for (std::int64_t c = 0; c < d.cols; ++c)
        gradients_[kEmbedding](tokens_[static_cast<std::size_t>(t)], c) += d(t, c);
    }
    return gradients_;
  }

  /// Angle of one frequency at one position, rounded to float32 as the definition says.
  [[nodiscard]] double angle(std::int64_t position, std::int64_t pair) const {
    double f = std::pow(config_.rope_theta, -2.0 * static_cast<double>(pair) / static_cast<double>(config_.head_dim));
    const auto& s = config_.rope_scaling;
    if (s.factor != 1.0) {
      const double turns = static_cast<double>(s.original_max_position_embeddings) * f / (2.0 * 3.14159265358979323846);
      if (turns < s.low_freq_factor) {
        f /= s.factor;
      } else if (turns <= s.high_freq_factor) {
        const double w = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
        f = f * w + f / s.factor * (1.0 - w);
      }
    }
    return static_cast<double>(static_cast<float>(position) * static_cast<float>(f));
  }

 private:
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";

  struct Saved {
    Table input, normed, q_raw, k_raw, q, k, v, attended, middle, normed_middle, gate, up, product;
    std::vector<Table> probabilities;  // one [tokens, tokens] per head
  };

  static std::string name_of(std::int64_t layer, const std::string& what) {
    return "model.layers." + std::to_string(layer) + "." + what;
  }

  // y = x W^T (+ b)
  Table linear(const std::string& name, const Table& x) const {
    const Table& w = weights_.at(name + ".weight");
    Table y(x.rows, w.rows);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t o = 0; o < w.rows; ++o) {
        double sum = weights_.count(name + ".bias") ? weights_.at(name + ".bias")(o, 0) : 0.0;
        for (std::int64_t i = 0; i < w.cols; ++i) sum += x(t, i) * w(o, i);
        y(t, o) = sum;
      }
    }
    if (weights_.count(name + ".lora_A.weight")) {
      const Table& a = weights_.at(name + ".lora_A.weight");
      const Table& b = weights_.at(name + ".lora_B.weight");
      for (std::int64_t t = 0; t < x.rows; ++t) {
        for (std::int64_t r = 0; r < a.rows; ++r) {
          double u = 0.0;
          for (std::int64_t i = 0; i < x.cols; ++i) u += x(t, i) * a(r, i);
          for (std::int64_t o = 0; o < y.cols; ++o) y(t, o) += lora_scale_ * u * b(o, r);
        }
      }
    }
    return y;
  }
  Table linear_backward(const std::string& name, const Table& x, const Table& dy) {
    const Table& w = weights_.at(name + ".weight");
    Table dx(x.rows, x.cols);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t o = 0; o < w.rows; ++o) {
        if (weights_.count(name + ".bias")) gradients_[name + ".bias"](o, 0) += dy(t, o);
        for (std::int64_t i = 0; i < w.cols; ++i) {
          dx(t, i) += dy(t, o) * w(o, i);
          gradients_[name + ".weight"](o, i) += dy(t, o) * x(t, i);
        }
      }
    }
    if (weights_.count(name + ".lora_A.weight")) lora_backward(name, x, dy, dx);
    return dx;
  }
  void lora_backward(const std::string& name, const Table& x, const Table& dy, Table& dx) {
    const Table& a = weights_.at(name + ".lora_A.weight");
    const Table& b = weights_.at(name + ".lora_B.weight");
    Table& da = gradients_[name + ".lora_A.weight"];
    Table& db = gradients_[name + ".lora_B.weight"];
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t r = 0; r < a.rows; ++r) {
        double u = 0.0, du = 0.0;
        for (std::int64_t i = 0; i < x.cols; ++i) u += x(t, i) * a(r, i);
        for (std::int64_t o = 0; o < dy.cols; ++o) {
          du += lora_scale_ * dy(t, o) * b(o, r);
          db(o, r) += lora_scale_ * dy(t, o) * u;
        }
        for (std::int64_t i = 0; i < x.cols; ++i) {
          dx(t, i) += du * a(r, i);
          da(r, i) += du * x(t, i);
        }
      }
    }
  }

  // Norm over groups of `width` columns.
  Table norm(const Table& x, const Table& w, std::int64_t width) const {
    Table y(x.rows, x.cols);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t g = 0; g < x.cols; g += width) {
        double squares = 0.0;
        for (std::int64_t c = 0; c < width; ++c) squares += x(t, g + c) * x(t, g + c);
        const double r = 1.0 / std::sqrt(squares / static_cast<double>(width) + static_cast<double>(config_.norm_eps));
        for (std::int64_t c = 0; c < width; ++c) y(t, g + c) = x(t, g + c) * r * w(c, 0);
      }
    }
    return y;
  }
  Table norm_backward(const Table& x, const Table& w, Table& dw, const Table& dy, std::int64_t width) const {
    Table dx(x.rows, x.cols);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t g = 0; g < x.cols; g += width) {
        double squares = 0.0, dot = 0.0;
        for (std::int64_t c = 0; c < width; ++c) {
          squares += x(t, g + c) * x(t, g + c);
          dot += x(t, g + c) * dy(t, g + c) * w(c, 0);
        }
        const auto n = static_cast<double>(width);
        const double r = 1.0 / std::sqrt(squares / n + static_cast<double>(config_.norm_eps));
        for (std::int64_t c = 0; c < width; ++c) {
          dx(t, g + c) = r * w(c, 0) * dy(t, g + c) - r * r * r / n * dot * x(t, g + c);
          dw(c, 0) += dy(t, g + c) * x(t, g + c) * r;
        }
      }
    }
    return dx;
  }

  Table rotate(const Table& x, double sign) const {
    Table y(x.rows, x.cols);
    const std::int64_t dim = config_.head_dim, half = dim / 2;
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t head = 0; head < x.cols; head += dim) {
        for (std::int64_t i = 0; i < half; ++i) {
          const double a = angle(position_[static_cast<std::size_t>(t)], i), c = std::cos(a), s = sign * std::sin(a);
          y(t, head + i) = x(t, head + i) * c - x(t, head + i + half) * s;
          y(t, head + i + half) = x(t, head + i + half) * c + x(t, head + i) * s;
        }
      }
    }
    return y;
  }

  Table layer_forward(std::int64_t layer, const Table& x) {
    Saved& s = saved_[static_cast<std::size_t>(layer)];
    const std::int64_t dim = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
    s.input = x;
    s.normed = norm(x, weights_.at(name_of(layer, "input_layernorm.weight")), x.cols);
    s.q_raw = linear(name_of(layer, "self_attn.q_proj"), s.normed);
    s.k_raw = linear(name_of(layer, "self_attn.k_proj"), s.normed);
    s.v = linear(name_of(layer, "self_attn.v_proj"), s.normed);
    s.q = s.q_raw;
    s.k = s.k_raw;
    if (config_.qk_norm) {
      s.q = norm(s.q, weights_.at(name_of(layer, "self_attn.q_norm.weight")), dim);
      s.k = norm(s.k, weights_.at(name_of(layer, "self_attn.k_norm.weight")), dim);
    }
    s.q = rotate(s.q, 1.0);
    s.k = rotate(s.k, 1.0);
    s.attended = Table(x.rows, config_.num_heads * dim);
    for (std::int64_t h = 0; h < config_.num_heads; ++h) {
      Table p(x.rows, x.rows);
      for (std::int64_t t = 0; t < x.rows; ++t) {
        double total = 0.0;
        for (std::int64_t j = begin_[static_cast<std::size_t>(t)]; j <= t; ++j) {
          double score = 0.0;
          for (std::int64_t c = 0; c < dim; ++c) score += s.q(t, h * dim + c) * s.k(j, h / group * dim + c);
          p(t, j) = std::exp(score / std::sqrt(static_cast<double>(dim)));
          total += p(t, j);
        }
        for (std::int64_t j = begin_[static_cast<std::size_t>(t)]; j <= t; ++j) {
          p(t, j) /= total;
          for (std::int64_t c = 0; c < dim; ++c) s.attended(t, h * dim + c) += p(t, j) * s.v(j, h / group * dim + c);
        }
      }
      s.probabilities.push_back(p);
    }
    s.middle = sum(x, linear(name_of(layer, "self_attn.o_proj"), s.attended));
    s.normed_middle = norm(s.middle, weights_.at(name_of(layer, "post_attention_layernorm.weight")), x.cols);
    s.gate = linear(name_of(layer, "mlp.gate_proj"), s.normed_middle);
    s.up = linear(name_of(layer, "mlp.up_proj"), s.normed_middle);
    s.product = s.gate;
    for (std::size_t i = 0; i < s.gate.data.size(); ++i) {
      s.product.data[i] = s.gate.data[i] / (1.0 + std::exp(-s.gate.data[i])) * s.up.data[i];
    }
    return sum(s.middle, linear(name_of(layer, "mlp.down_proj"), s.product));
  }

  Table layer_backward(std::int64_t layer, const Table& d_out) {
    const Saved& s = saved_[static_cast<std::size_t>(layer)];
    const std::int64_t dim = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
    const Table d_product = linear_backward(name_of(layer, "mlp.down_proj"), s.product, d_out);
    Table d_gate = s.gate, d_up = s.up;
    for (std::size_t i = 0; i < s.gate.data.size(); ++i) {
      const double g = s.gate.data[i], sigma = 1.0 / (1.0 + std::exp(-g));
      d_gate.data[i] = d_product.data[i] * s.up.data[i] * (sigma + g * sigma * (1.0 - sigma));
      d_up.data[i] = d_product.data[i] * g * sigma;
    }
    const Table d_normed_middle = sum(linear_backward(name_of(layer, "mlp.gate_proj"), s.normed_middle, d_gate),
                                      linear_backward(name_of(layer, "mlp.up_proj"), s.normed_middle, d_up));
    const Table d_middle = sum(d_out, weighted_norm_backward(layer, "post_attention_layernorm.weight", s.middle,
                                                             d_normed_middle, s.middle.cols));
    const Table d_attended = linear_backward(name_of(layer, "self_attn.o_proj"), s.attended, d_middle);
    Table dq(s.q.rows, s.q.cols), dk(s.k.rows, s.k.cols), dv(s.v.rows, s.v.cols);
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
    for (std::int64_t h = 0; h < config_.num_heads; ++h) {
      const Table& p = s.probabilities[static_cast<std::size_t>(h)];
      for (std::int64_t t = 0; t < s.q.rows; ++t) {
        std::vector<double> dp(static_cast<std::size_t>(s.q.rows), 0.0);
        double mean = 0.0;
        for (std::int64_t j = begin_[static_cast<std::size_t>(t)]; j <= t; ++j) {
          for (std::int64_t c = 0; c < dim; ++c) {
            dp[static_cast<std::size_t>(j)] += d_attended(t, h * dim + c) * s.v(j, h / group * dim + c);
            dv(j, h / group * dim + c) += p(t, j) * d_attended(t, h * dim + c);
          }
          mean += p(t, j) * dp[static_cast<std::size_t>(j)];
        }
        for (std::int64_t j = begin_[static_cast<std::size_t>(t)]; j <= t; ++j) {
          const double ds = p(t, j) * (dp[static_cast<std::size_t>(j)] - mean) * scale;
          for (std::int64_t c = 0; c < dim; ++c) {
            dq(t, h * dim + c) += ds * s.k(j, h / group * dim + c);
            dk(j, h / group * dim + c) += ds * s.q(t, h * dim + c);
          }
        }
      }
    }
    dq = rotate(dq, -1.0);
    dk = rotate(dk, -1.0);
    if (config_.qk_norm) {
      dq = weighted_norm_backward(layer, "self_attn.q_norm.weight", s.q_raw, dq, dim);
      dk = weighted_norm_backward(layer, "self_attn.k_norm.weight", s.k_raw, dk, dim);
    }
    const Table d_normed = sum(sum(linear_backward(name_of(layer, "self_attn.q_proj"), s.normed, dq),
                                   linear_backward(name_of(layer, "self_attn.k_proj"), s.normed, dk)),
                               linear_backward(name_of(layer, "self_attn.v_proj"), s.normed, dv));
    return sum(d_middle, weighted_norm_backward(layer, "input_layernorm.weight", s.input, d_normed, s.input.cols));
  }

  Table weighted_norm_backward(std::int64_t layer, const std::string& weight, const Table& x, const Table& dy,
                               std::int64_t width) {
    const std::string name = name_of(layer, weight);
    return norm_backward(x, weights_.at(name), gradients_[name], dy, width);
  }

  static Table sum(Table a, const Table& b) {
    for (std::size_t i = 0; i < a.data.size(); ++i) a.data[i] += b.data[i];
    return a;
  }

  DecoderConfig config_;
  Tables weights_, gradients_;
  double lora_scale_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int64_t> position_, begin_;  // of every token: place in its document, and where that begins
  std::vector<Saved> saved_;
  Table last_;
};

}  // namespace reprise
