#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.hpp"
#include "core/parameter.hpp"
#include "layers/decoder_model.hpp"
#include "tests/layers/decoder_oracle.hpp"
#include "tests/support/device_ranks.hpp"
#include "tests/support/make_model_folder.hpp"

namespace reprise {

/// Every family with everything that it may have.
inline DecoderConfig family_config(const std::string& family) {
  DecoderConfig config = tiny_decoder_config();
  config.model_type = family;
  config.qkv_bias = family != "qwen3";
  config.attention_out_bias = config.mlp_bias = family == "llama";
  config.qk_norm = family == "qwen3";
  if (family == "llama") config.rope_scaling = {8.0, 1.0, 4.0, 32};
  return config;
}

/// Tokens of several documents.
struct Documents {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> offsets;

  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
  [[nodiscard]] TokenBatch batch() const { return {tokens, offsets}; }
};

inline Documents random_documents(const DecoderConfig& config, const std::vector<std::int64_t>& lengths,
                                  std::uint64_t seed = 3) {
  std::mt19937_64 generator(seed);
  Documents documents;
  documents.offsets.push_back(0);
  for (const std::int64_t length : lengths) {
    for (std::int64_t t = 0; t < length; ++t) {
      documents.tokens.push_back(
          static_cast<std::int32_t>(generator() % static_cast<std::uint64_t>(config.vocab_size)));
    }
    documents.offsets.push_back(documents.size());
  }
  return documents;
}

inline Table random_table(std::int64_t rows, std::int64_t cols, double deviation, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0.0, deviation);
  Table table(rows, cols);
  for (double& value : table.data) value = static_cast<double>(static_cast<float>(normal(generator)));
  return table;
}

/// A table's numbers as stored in T.
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
/// What a matrix on the device holds; waits.
template <class T>
Table table_of(const Stream& stream, MatrixView<T> matrix) {
  return table_of(to_host(stream, matrix.flat()), matrix.rows, matrix.cols);
}

/// Rows [first, first + rows) and columns from `first_col` of a table.
inline Table block_of(const Table& table, std::int64_t first, std::int64_t rows, std::int64_t first_col,
                      std::int64_t cols) {
  Table block(rows, cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) block(r, c) = table(first + r, first_col + c);
  }
  return block;
}

/// The stream of a rank: these threads on a CPU, else the calling thread's queue.
inline Stream rank_stream(ThreadPool& pool) {
  return test_stream().is_cpu() ? Stream(CpuStream{&pool}) : test_stream();
}

/// Weights that make every path matter: norms away from 1, biases away from 0.
inline Tables random_weights(const DecoderConfig& config, std::uint64_t seed = 1) {
  Tables weights;
  for (const ModelTensor& tensor : model_tensors(config)) {
    Table table = random_table(tensor.rows, tensor.cols, tensor.is_vector ? 0.3 : 0.25, ++seed);
    if (tensor.name.find("norm") != std::string::npos) {
      for (double& value : table.data) value += 1.0;
    }
    weights[tensor.name] = table;
  }
  return weights;
}

/// What one rank has: a model with its memory. `threads` of the stream on a CPU. With `lora` adapters train on a frozen
/// base; `weights` has theirs by name.
template <class T>
struct RankModel {
  RankModel(Communicator& world, const DecoderConfig& config, int tp, bool sequence_parallel, const Tables& weights,
            int threads = 1, std::int64_t bucket_elements = 1 << 20, const LoraOptions& lora = {})
      : pool(threads),
        stream(rank_stream(pool)),
        arena(stream),
        groups(ProcessGroups::make(world, tp)),
        is_adapted(lora.rank > 0),
        model(config, VocabPartition::even(config.vocab_size, config.vocab_size, tp), groups, parameters,
              sequence_parallel, is_adapted ? Lora<T>{lora, &adapters} : Lora<T>{}),
        context{stream, groups, arena, sequence_parallel} {
    parameters.allocate(stream, bucket_elements, groups.dp_size(), is_adapted);
    load(weights, parameters);
    if (!is_adapted) return;
    adapters.allocate(stream, bucket_elements, groups.dp_size());
    load(weights, adapters);
  }

  void load(const Tables& weights, ParameterSet<T>& set) {
    for (std::int64_t i = 0; i < set.count() && !weights.empty(); ++i) {
      const ParameterSpec& spec = set.spec(i);
      const Table& from = weights.at(spec.name);
      EXPECT_EQ(from.rows, spec.global_rows);
      EXPECT_EQ(from.cols, spec.global_cols);
      const std::vector<T> values =
          values_of<T>(block_of(from, spec.row_begin, spec.rows(), spec.col_begin, spec.cols()));
      copy_to_device<T>(stream, values, set.value(i).flat());
    }
  }

  [[nodiscard]] ParameterSet<T>& trained() { return is_adapted ? adapters : parameters; }

  /// This rank's rows of a [tokens, hidden] table, in the arena.
  MatrixView<T> local_rows(const Table& table) {
    const bool is_cut = context.sequence_parallel && groups.tp_size() > 1;
    const Range rows = is_cut ? even_shard(table.rows, groups.tp_size(), groups.tp_rank()) : Range{0, table.rows};
    const MatrixView<T> local = arena.matrix<T>(rows.size(), table.cols);
    const std::vector<T> values = values_of<T>(block_of(table, rows.begin, rows.size(), 0, table.cols));
    copy_to_device<T>(stream, values, local.flat());
    return local;
  }

  ThreadPool pool;
  Stream stream;
  Arena arena;
  ProcessGroups groups;
  bool is_adapted;
  ParameterSet<T> parameters, adapters;
  DecoderModel<T> model;
  Context context;
};

/// Hidden states and gradients, whole, as put together from all ranks.
struct ModelResult {
  Table hidden;
  Tables gradients;
};

struct RunOptions {
  int tp = 1;
  bool sequence_parallel = false;
  Recompute recompute = Recompute::kNone;
  int threads = 1;
  std::int64_t bucket_elements = 1 << 20;
  LoraOptions lora = {};
};

/// Adds what this rank has to the whole result, and checks that copies agree bit for bit. Gradients of sum_over_tp
/// parameters add up; of the others each block is written, by copies alike.
template <class T>
void collect_rank(RankModel<T>& rank, const Table& hidden, std::int64_t tokens, ModelResult& result, Tables& seen) {
  const bool is_cut = rank.context.sequence_parallel && rank.groups.tp_size() > 1;
  const Range rows = is_cut ? even_shard(tokens, rank.groups.tp_size(), rank.groups.tp_rank()) : Range{0, tokens};
  EXPECT_EQ(hidden.rows, rows.size());
  if (result.hidden.rows == 0) result.hidden = Table(tokens, hidden.cols);
  for (std::int64_t r = 0; r < rows.size(); ++r) {
    for (std::int64_t c = 0; c < hidden.cols; ++c) {
      result.hidden(rows.begin + r, c) = hidden(r, c);
    }
  }
  for (std::int64_t i = 0; i < rank.trained().count(); ++i) {
    const ParameterSpec& spec = rank.trained().spec(i);
    Table& whole = result.gradients[spec.name];
    Table& marks = seen[spec.name];
    if (whole.rows == 0) whole = marks = Table(spec.global_rows, spec.global_cols);
    const Table gradients = table_of(rank.stream, rank.trained().gradient(i));
    for (std::int64_t r = 0; r < spec.rows(); ++r) {
      for (std::int64_t c = 0; c < spec.cols(); ++c) {
        const double gradient = gradients(r, c);
        double& place = whole(spec.row_begin + r, spec.col_begin + c);
        double& mark = marks(spec.row_begin + r, spec.col_begin + c);
        if (spec.sum_over_tp) {
          place += gradient;
        } else if (mark != 0.0) {
          EXPECT_EQ(place, gradient) << spec.name << " copies differ at " << r << ", " << c;
        } else {
          place = gradient;
        }
        mark = 1.0;
      }
    }
  }
}

template <class T>
ModelResult run_model(const DecoderConfig& config, const Tables& weights, const Documents& documents,
                      const Table& d_hidden, const RunOptions& options = {}) {
  ModelResult result;
  Tables seen;
  std::mutex mutex;
  run_device_ranks(options.tp, [&](Communicator& world) {
    RankModel<T> rank(world, config, options.tp, options.sequence_parallel, weights, options.threads,
                      options.bucket_elements, options.lora);
    typename DecoderModel<T>::ActivationsPtr activations;
    const MatrixView<T> hidden = rank.model.forward(rank.context, documents.batch(), options.recompute, activations);
    const Table copy = table_of(rank.stream, hidden);
    rank.model.backward(rank.context, *activations, rank.local_rows(d_hidden));
    const std::lock_guard lock(mutex);
    collect_rank<T>(rank, copy, documents.size(), result, seen);
  });
  return result;
}

/// Largest difference in units of b's root mean square, or of 0.1 where b is smaller (it may be zero).
inline double relative_difference(const Table& a, const Table& b) {
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.cols, b.cols);
  double largest = 0.0, squares = 0.0;
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    largest = std::max(largest, std::isfinite(a.data[i]) ? std::abs(a.data[i] - b.data[i]) : INFINITY);
    squares += b.data[i] * b.data[i];
  }
  return largest / std::max(std::sqrt(squares / static_cast<double>(std::max<std::size_t>(1, a.data.size()))), 0.1);
}

/// Root mean square of the difference in units of b's own.
inline double relative_rms(const Table& a, const Table& b) {
  double difference = 0.0, squares = 0.0;
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    difference += (a.data[i] - b.data[i]) * (a.data[i] - b.data[i]);
    squares += b.data[i] * b.data[i];
  }
  return squares == 0.0 ? std::sqrt(difference) : std::sqrt(difference / squares);
}

inline void expect_close(const ModelResult& got, const ModelResult& want, double tolerance) {
  EXPECT_LT(relative_difference(got.hidden, want.hidden), tolerance) << "hidden";
  EXPECT_EQ(got.gradients.size(), want.gradients.size());
  for (const auto& [name, gradient] : want.gradients) {
    EXPECT_LT(relative_difference(got.gradients.at(name), gradient), tolerance) << name;
  }
}

inline ModelResult run_oracle(const DecoderConfig& config, const Tables& weights, const Documents& documents,
                              const Table& d_hidden) {
  DecoderOracle oracle(config, weights);
  ModelResult result;
  result.hidden = oracle.forward(documents.tokens, documents.offsets);
  result.gradients = oracle.backward(d_hidden);
  return result;
}

}  // namespace reprise
