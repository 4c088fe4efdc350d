// The restricted heads beside our own full cross-entropy and the machine's ceilings, measured in one run.
//
// A head's floor is, phase by phase, the longer of its multiply-adds at the rate of registers alone and of a twin that
// only reads (forward) or reads and writes (dW) the same rows in the same order.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "bench/candidate_sets.hpp"
#include "bench/ceilings_simd.hpp"
#include "core/elementwise.hpp"
#include "core/gemm.hpp"
#include "core/math.hpp"
#include "core/random.hpp"
#include "core/thread_pool.hpp"
#include "loss/candidate_gradient.hpp"
#include "loss/loss.hpp"
#include "parallel/self_communicator.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kVocab = 128256, kDepth = 4096, kCandidates = 100;
constexpr std::int64_t kTokens = 1024, kFullTokens = 256;
constexpr int kRepetitions = 7;
constexpr double kTokenBar = 50.0, kTileBar = 30.0;  // times 6 V D at sgemm's rate, for token and tile-8 heads

double seconds_of(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

/// Weights and hidden states of one storage type, and one rank around them.
template <class T>
struct Head {
  Stream stream;
  std::unique_ptr<Communicator> world = make_self_communicator();
  ProcessGroups groups = ProcessGroups::make(*world, 1);
  Arena arena{stream};
  Buffer<T> weight, hidden, d_hidden;
  Buffer<float> d_weight;

  explicit Head(const Stream& cpu)
      : stream(cpu),
        weight(stream, kVocab * kDepth, "weight"),
        hidden(stream, kTokens * kDepth, "hidden"),
        d_hidden(stream, kTokens * kDepth, "d_hidden"),
        d_weight(stream, kVocab * kDepth, "d_weight") {
    fill_random(weight.view(), 1, 0.02f);
    fill_random(hidden.view(), 2, 1.0f);
    fill(stream, d_weight.view(), 0.0f);
  }
  [[nodiscard]] Context context() { return {stream, groups, arena}; }
  [[nodiscard]] MatrixView<const T> weight_view() { return {weight.view().data, kVocab, kDepth}; }
  [[nodiscard]] MatrixView<const T> hidden_view(std::int64_t tokens) { return {hidden.view().data, tokens, kDepth}; }
  [[nodiscard]] MatrixView<T> d_hidden_view(std::int64_t tokens) { return {d_hidden.view().data, tokens, kDepth}; }
  [[nodiscard]] MatrixView<float> d_weight_view() { return {d_weight.view().data, kVocab, kDepth}; }

 private:
  void fill_random(VectorView<T> values, std::uint64_t seed, float spread) {
    stream.cpu().parallel_for(values.size, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
      std::uint64_t state = random_bits(seed, static_cast<std::uint64_t>(begin)) | 1u;
      for (std::int64_t i = begin; i < end; ++i) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        values[i] = T(spread * static_cast<float>(static_cast<std::int64_t>(state >> 40) - (1 << 23)) * 0x1p-22f);
      }
    });
  }
};

struct Seconds {
  std::vector<double> forward, backward;
  void add(const Seconds& one) {
    forward.insert(forward.end(), one.forward.begin(), one.forward.end());
    backward.insert(backward.end(), one.backward.begin(), one.backward.end());
  }
  [[nodiscard]] double total() const { return median(forward) + median(backward); }
};

template <class T>
Seconds run_loss(Head<T>& head, HeadLoss<T>& loss, const HeadBatch& batch) {
  const Context context = head.context();
  Seconds seconds;
  seconds.forward.push_back(seconds_of([&] {
    const auto output = loss.forward(context, head.hidden_view(batch.tokens()), head.weight_view(), batch.view());
    benchmark::DoNotOptimize(output.weighted_sum);
  }));
  seconds.backward.push_back(seconds_of(
      [&] { loss.backward(context, head.weight_view(), head.d_hidden_view(batch.tokens()), head.d_weight_view()); }));
  head.arena.reset();
  return seconds;
}

// ---- ceilings
// --------------------------------------------------------------------------------------------------------

/// Multiply-adds per second of registers alone, all threads.
double multiply_add_rate(const CpuStream& stream) {
  constexpr std::int64_t kRounds = std::int64_t{4} << 20;
  const std::int64_t threads = stream.num_threads();
  const double seconds = seconds_of([&] {
    stream.parallel_for(threads, 1, [&](std::int64_t, std::int64_t) {
      benchmark::DoNotOptimize(REPRISE_SIMD_CALL(multiply_add_loop, kRounds));
    });
  });
  const std::int64_t width = (REPRISE_SIMD_CALL(vector_width));
  return static_cast<double>(threads * kRounds * kMultiplyAddsPerRound * width) / seconds;
}

/// Multiply-adds per second of our gemm in the shape of full cross-entropy's logits.
double gemm_rate(Head<float>& head) {
  const Arena::Scope scope(head.arena);
  constexpr std::int64_t kRows = 2048;
  const auto logits = head.arena.matrix<float>(kTokens, kRows);
  const double seconds = seconds_of([&] {
    gemm<float, float>(head.stream, Transpose::kNo, Transpose::kYes, 1.0f, head.hidden_view(kTokens),
                       head.weight_view().row_range(0, kRows), 0.0f, logits);
  });
  return static_cast<double>(kTokens * kRows * kDepth) / seconds;
}

/// Twin of the forward visit: every listed row, read once per tile.
template <class T>
double read_seconds(Head<T>& head, const CandidateTiles& tiles) {
  return seconds_of([&] {
    head.stream.cpu().parallel_for(tiles.size(), 1, [&](std::int64_t tile, std::int64_t) {
      for (std::int64_t i = tiles.id_begin[tile]; i < tiles.id_begin[tile + 1]; ++i) {
        const auto row = head.weight_view().row(tiles.ids[i]);
        benchmark::DoNotOptimize(
            REPRISE_SIMD_CALL(read_row, row.data, row.size * static_cast<std::int64_t>(sizeof(T))));
      }
    });
  });
}

/// Twin of dW: every listed row of every segment, read and written once, panel by panel.
template <class T>
double update_seconds(Head<T>& head, const CandidateTiles& tiles) {
  const Context context = head.context();
  const Arena::Scope scope(head.arena);
  HostArrays host_arrays;
  const LocalCandidates candidates = find_local_candidates(context, tiles, {0, kVocab}, host_arrays);
  const std::int64_t tokens = segment_tokens(choose_gradient_order(candidates));
  double seconds = 0.0;
  for (std::int64_t first = 0; first < tiles.size();) {
    const std::int64_t last = segment_end(candidates, first, tokens);
    const ListedRows listed = list_rows(context, candidates, first, last);
    constexpr std::int64_t kRowGrain = 64;
    const std::int64_t chunks = ceil_div(listed.rows.size, kRowGrain);
    seconds += seconds_of([&] {
      head.stream.cpu().parallel_for(kDepth / kPanelColumns * chunks, 1, [&](std::int64_t task, std::int64_t) {
        const std::int64_t column = task / chunks * kPanelColumns, begin = task % chunks * kRowGrain;
        for (std::int64_t i = begin; i < std::min(begin + kRowGrain, listed.rows.size); ++i) {
          REPRISE_SIMD_CALL(update_row, &head.d_weight_view()(listed.rows[i], column), kPanelColumns);
        }
      });
    });
    first = last;
  }
  return seconds;
}

// ---- the runs
// --------------------------------------------------------------------------------------------------------

struct Bench {
  ThreadPool pool{2};
  Stream stream{CpuStream{&pool}};
  std::unique_ptr<Head<float>> float_head;
  std::unique_ptr<Head<BFloat16>> bfloat16_head;
  std::map<std::string, SampleRecords> sets;
  std::map<std::string, double> full_seconds;  // a token, by storage type
  double gemm_multiply_adds = 0.0;
  bool within_bar = true;

  template <class T>
  Head<T>& head() {
    if constexpr (std::is_same_v<T, float>) {
      bfloat16_head.reset();
      if (!float_head) float_head = std::make_unique<Head<float>>(stream);
      return *float_head;
    } else {
      float_head.reset();
      if (!bfloat16_head) bfloat16_head = std::make_unique<Head<BFloat16>>(stream);
      return *bfloat16_head;
    }
  }
  const SampleRecords& records(const SetGenerator& generator) {
    auto& made = sets[std::string(generator.name)];
    if (made.size() == 0) made = make_candidate_sets(stream.cpu(), generator, kTokens, kVocab, kCandidates);
    return made;
  }
};

Bench& bench() {
  static Bench one;
  return one;
}

template <class T>
constexpr const char* kStorageName = std::is_same_v<T, float> ? "float32" : "bfloat16";

template <class T>
void full_head(benchmark::State& state) {
  Head<T>& head = bench().head<T>();
  SampleRecords records;
  for (std::int64_t t = 0; t < kFullTokens; ++t) {
    records.position.push_back(static_cast<std::uint32_t>(t));
    records.gold.push_back(static_cast<std::uint32_t>(t));
    records.ids.push_back(static_cast<std::uint32_t>(t));
    records.id_begin.push_back(t + 1);
  }
  const HeadBatch batch(records, 1);
  const auto loss = make_head_loss<T>(Normalization::kFull, VocabPartition::even(kVocab, kVocab, 1));
  Seconds seconds;
  std::vector<double> gemm_rates;
  for (auto _ : state) {
    const Seconds one = run_loss(head, *loss, batch);
    seconds.add(one);
    if constexpr (std::is_same_v<T, float>) gemm_rates.push_back(gemm_rate(head));
    state.SetIterationTime(one.total());
  }
  const double per_token = seconds.total() / static_cast<double>(kFullTokens);
  bench().full_seconds[kStorageName<T>] = per_token;
  if (!gemm_rates.empty()) bench().gemm_multiply_adds = median(gemm_rates);
  state.counters["us/token"] = per_token * 1e6;
  state.counters["sgemm_GFLOP/s"] = 2e-9 * bench().gemm_multiply_adds;
  state.counters["of_sgemm"] = 3.0 * kVocab * kDepth / bench().gemm_multiply_adds / per_token;
  state.SetLabel(std::string(kStorageName<T>) + ", " + gemm_kernel_name() + ", " + simd_level_name());
}

template <class T>
void restricted_head(benchmark::State& state, const SetGenerator& generator, std::int64_t tile_tokens) {
  const HeadBatch batch(bench().records(generator), tile_tokens);
  Head<T>& head = bench().head<T>();
  const auto loss = make_head_loss<T>(tile_tokens == 1 ? Normalization::kToken : Normalization::kTile,
                                      VocabPartition::even(kVocab, kVocab, 1));
  const CandidateTiles tiles = batch.tiles.view();
  Seconds seconds;
  std::vector<double> reads, updates, rates;
  static_cast<void>(run_loss(head, *loss, batch));
  static_cast<void>(read_seconds(head, tiles) + update_seconds(head, tiles));
  for (auto _ : state) {
    const Seconds one = run_loss(head, *loss, batch);
    seconds.add(one);
    reads.push_back(read_seconds(head, tiles));
    updates.push_back(update_seconds(head, tiles));
    rates.push_back(multiply_add_rate(bench().stream.cpu()));
    state.SetIterationTime(one.total());
  }
  double pairs = 0.0;  // (token, candidate)
  for (std::int64_t i = 0; i < tiles.size(); ++i) {
    pairs += static_cast<double>((tiles.token_begin[i + 1] - tiles.token_begin[i]) *
                                 (tiles.id_begin[i + 1] - tiles.id_begin[i]));
  }
  const double phase = pairs * kDepth / median(rates);  // one multiply-add for each pair and column
  const double floor = std::max(2.0 * phase, median(reads)) + std::max(phase, median(updates));
  const auto tokens = static_cast<double>(batch.tokens());
  const double dense = 3.0 * kVocab * kDepth / bench().gemm_multiply_adds;  // a token's 6 V D FLOP at sgemm's rate
  state.counters["U"] = static_cast<double>(tiles.ids.size) / static_cast<double>(tiles.size());
  state.counters["fwd_us"] = median(seconds.forward) / tokens * 1e6;
  state.counters["bwd_us"] = median(seconds.backward) / tokens * 1e6;
  state.counters["us/token"] = seconds.total() / tokens * 1e6;
  state.counters["fma_us"] = 3.0 * phase / tokens * 1e6;
  state.counters["read_us"] = median(reads) / tokens * 1e6;
  state.counters["update_us"] = median(updates) / tokens * 1e6;
  state.counters["of_floor"] = floor / seconds.total();
  state.counters["of_peak"] = 3.0 * phase / seconds.total();
  state.counters["x_6VD"] = dense * tokens / seconds.total();
  state.counters["x_full"] = bench().full_seconds[kStorageName<T>] * tokens / seconds.total();
  const double bar = tile_tokens == 1 ? kTokenBar : (tile_tokens == 8 ? kTileBar : 0.0);
  if (bench().gemm_multiply_adds > 0.0 && dense * tokens / seconds.total() < bar) bench().within_bar = false;
}

template <class T>
void register_heads() {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)
        ->UseManualTime()
        ->Iterations(kRepetitions)
        ->Unit(benchmark::kMillisecond);
  };
  add(std::string("full/") + kStorageName<T>, full_head<T>);
  for (const SetGenerator& generator : kSetGenerators) {
    for (const std::int64_t tile_tokens : {1, 8, 64}) {
      const std::string head = tile_tokens == 1 ? "token" : "tile-" + std::to_string(tile_tokens);
      add(head + "/" + std::string(generator.name) + "/" + kStorageName<T>,
          [&generator, tile_tokens](benchmark::State& state) { restricted_head<T>(state, generator, tile_tokens); });
    }
  }
}

}  // namespace

}  // namespace reprise

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  reprise::register_heads<float>();
  reprise::register_heads<reprise::BFloat16>();
  benchmark::RunSpecifiedBenchmarks();
  const bool within_bar = reprise::bench().within_bar;
  if (!within_bar) std::fputs("a restricted head is below its bar against 6 V D FLOP at sgemm's rate\n", stderr);
  return within_bar ? 0 : 1;
}
