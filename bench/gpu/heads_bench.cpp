#include "bench/candidate_sets.hpp"
#include "bench/gpu/bench_device.hpp"
#include "bench/gpu/ceilings.hpp"
#include "core/gemm.hpp"
#include "loss/loss.hpp"
#include "loss/top_k.hpp"

namespace reprise {

namespace {

struct HeadShape {
  std::int64_t vocab, depth, tokens, candidates;
};

template <class T>
struct HeadData {
  HeadShape shape;
  Buffer<T> weight, hidden, d_hidden;
  Buffer<float> d_weight;

  HeadData(BenchDevice& device, const HeadShape& s)
      : shape(s),
        weight(device.stream, s.vocab * s.depth, "weight"),
        hidden(device.stream, s.tokens * s.depth, "hidden"),
        d_hidden(device.stream, s.tokens * s.depth, "d_hidden"),
        d_weight(device.stream, s.vocab * s.depth, "d_weight") {
    device.fill_random<T>(weight.view(), 1, 0.02f);
    device.fill_random<T>(hidden.view(), 2, 1.0f);
  }
  [[nodiscard]] MatrixView<const T> weight_view() { return {weight.view().data, shape.vocab, shape.depth}; }
  [[nodiscard]] MatrixView<const T> hidden_view() { return {hidden.view().data, shape.tokens, shape.depth}; }
  [[nodiscard]] MatrixView<T> d_hidden_view() { return {d_hidden.view().data, shape.tokens, shape.depth}; }
  [[nodiscard]] MatrixView<float> d_weight_view() { return {d_weight.view().data, shape.vocab, shape.depth}; }
};

struct HeadSeconds {
  double forward, both;
};

template <class T>
HeadSeconds time_head(BenchDevice& device, HeadData<T>& data, Normalization normalization, const HeadBatch& batch) {
  const auto loss = make_head_loss<T>(normalization, VocabPartition::even(data.shape.vocab, data.shape.vocab, 1));
  const auto forward = [&] {
    return loss->forward(device.context(), data.hidden_view(), data.weight_view(), batch.view());
  };
  const double forward_seconds = device.seconds([&] {
    forward();
    device.arena.reset();
  });
  const double both = device.seconds([&] {
    forward();
    loss->backward(device.context(), data.weight_view(), data.d_hidden_view(), data.d_weight_view());
    device.arena.reset();
  });
  return {forward_seconds, both};
}

/// The three products of a full head on tensor cores alone: logits, dH, dW.
double product_seconds(BenchDevice& device, HeadData<BFloat16>& data) {
  const auto [vocab, depth, tokens, candidates] = data.shape;
  Buffer<BFloat16> logits(device.stream, tokens * vocab, "logits");
  const MatrixView<BFloat16> z(logits.view().data, tokens, vocab);
  const MatrixView<const BFloat16> p = z;
  return device.seconds([&] {
    gemm<BFloat16, BFloat16>(device.stream, Transpose::kNo, Transpose::kYes, 1.0f, data.hidden_view(),
                             data.weight_view(), 0.0f, z);
    gemm<BFloat16, BFloat16>(device.stream, Transpose::kNo, Transpose::kNo, 1.0f, p, data.weight_view(), 0.0f,
                             data.d_hidden_view());
    gemm<BFloat16, float>(device.stream, Transpose::kYes, Transpose::kNo, 1.0f, p, data.hidden_view(), 0.0f,
                          data.d_weight_view());
  });
}

/// Reads of the forward visit and updates of dW, alone: rows as the tiles list them, then each listed row once.
template <class T>
double twin_seconds(BenchDevice& device, HeadData<T>& data, const HeadBatch& batch) {
  const CandidateTiles tiles = batch.tiles.view();
  const std::vector<std::int32_t> listed(tiles.ids.begin(), tiles.ids.end());
  std::vector<std::int32_t> unique = listed;
  std::sort(unique.begin(), unique.end());
  unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
  const auto listed_there = to_device(device.stream, listed, "rows"),
             unique_there = to_device(device.stream, unique, "rows");
  const std::int64_t per_block = std::max<std::int64_t>(1, tiles.ids.size / std::max<std::int64_t>(1, tiles.size()));
  Buffer<float> sums(device.stream, tiles.ids.size / per_block + 1, "sums");
  const CudaStream stream = device.queue.stream();
  return device.seconds([&] {
    read_listed_rows(stream,
                     {reinterpret_cast<const BFloat16*>(data.weight.view().data), data.shape.vocab, data.shape.depth},
                     listed_there.view(), per_block, sums.view());
    update_listed_rows(stream, data.d_weight_view(), unique_there.view());
  });
}

HeadShape head_shape(const BenchDevice& device) {
  return {device.size(128256, 512), device.size(4096, 64), device.size(4096, 24), device.size(100, 8)};
}

}  // namespace

Table bench_heads(BenchDevice& device) {
  const HeadShape shape = head_shape(device);
  HeadData<BFloat16> data(device, shape);
  Table rows = Table::array();
  const double products = product_seconds(device, data);
  rows.push_back({{"head", "three products"}, {"ms", 1e3 * products}});
  const auto per_pair = 3.0 * static_cast<double>(shape.depth);
  double full = 0.0;
  for (const SetGenerator& generator : kSetGenerators) {
    const SampleRecords records =
        make_candidate_sets(device.host, generator, shape.tokens, shape.vocab, shape.candidates);
    if (full == 0.0) {
      const HeadSeconds seconds = time_head(device, data, Normalization::kFull, HeadBatch(records, 1));
      full = seconds.both;
      rows.push_back({{"head", "full"},
                      {"ms", 1e3 * full},
                      {"forward_ms", 1e3 * seconds.forward},
                      {"of_products", products / full}});
    }
    for (const std::int64_t tile_tokens : {1, 8, 64}) {
      const HeadBatch batch(records, tile_tokens);
      const CandidateTiles tiles = batch.tiles.view();
      const HeadSeconds seconds =
          time_head(device, data, tile_tokens == 1 ? Normalization::kToken : Normalization::kTile, batch);
      double pairs = 0.0;
      for (std::int64_t i = 0; i < tiles.size(); ++i) {
        pairs += static_cast<double>((tiles.token_begin[i + 1] - tiles.token_begin[i]) *
                                     (tiles.id_begin[i + 1] - tiles.id_begin[i]));
      }
      const double multiply_adds =
          device.bfloat16_multiply_adds > 0.0 ? pairs * per_pair / device.bfloat16_multiply_adds : 0.0;
      const double floor = std::max(multiply_adds, twin_seconds(device, data, batch));
      rows.push_back({{"head", tile_tokens == 1 ? "token" : "tile-" + std::to_string(tile_tokens)},
                      {"sets", generator.name},
                      {"candidates", static_cast<double>(tiles.ids.size) / static_cast<double>(tiles.size())},
                      {"ms", 1e3 * seconds.both},
                      {"forward_ms", 1e3 * seconds.forward},
                      {"x_full", full / seconds.both},
                      {"x_products", products / seconds.both},
                      {"of_floor", floor / seconds.both}});
    }
  }
  return rows;
}

Table bench_collection(BenchDevice& device) {
  Table rows = Table::array();
  for (const std::int64_t k : {100, 200, 1024}) {
    HeadShape shape = head_shape(device);
    shape.tokens = device.size(2048, 16);
    HeadData<BFloat16> data(device, shape);
    std::vector<std::int32_t> row(static_cast<std::size_t>(shape.tokens)), gold(row.size(), 1), owner(1, 0);
    std::vector<std::uint32_t> position(row.size());
    for (std::size_t t = 0; t < row.size(); ++t) {
      row[t] = static_cast<std::int32_t>(t);
      position[t] = static_cast<std::uint32_t>(t);
    }
    const std::vector<std::int64_t> sample_begin = {0, shape.tokens};
    const std::vector<std::uint64_t> sample_id = {0}, sample_hash = {0};
    const CollectBatch batch{row, gold, position, sample_begin, sample_id, sample_hash, owner};
    const TopKOptions options{.tau = 1.0, .k_max = device.size(k, 8)};
    const double collection = device.seconds([&] {
      (void)collect_top_k<BFloat16>(device.context(), data.hidden_view(), data.weight_view(),
                                    VocabPartition::even(shape.vocab, shape.vocab, 1), batch, options, {}, device.host);
      device.arena.reset();
    });
    Buffer<float> logits(device.stream, shape.tokens * shape.vocab, "logits");
    const double product = device.seconds([&] {
      gemm<BFloat16, float>(device.stream, Transpose::kNo, Transpose::kYes, 1.0f, data.hidden_view(),
                            data.weight_view(), 0.0f, MatrixView<float>(logits.view().data, shape.tokens, shape.vocab));
    });
    rows.push_back({{"tokens", shape.tokens},
                    {"vocab", shape.vocab},
                    {"k_max", options.k_max},
                    {"ms", 1e3 * collection},
                    {"product_ms", 1e3 * product},
                    {"x_product", collection / product}});
  }
  return rows;
}

}  // namespace reprise
