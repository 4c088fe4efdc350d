// MoClip's step beside our AdamW with clipping and beside the copy bandwidth of the same memory, at dp = 1.
// Each iteration runs all three behind each other, so that they meet the same machine; medians are compared.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/elementwise.hpp"
#include "core/math.hpp"
#include "core/random.hpp"
#include "core/thread_pool.hpp"
#include "optimizer/optimizer.hpp"
#include "parallel/context.hpp"
#include "parallel/self_communicator.hpp"

namespace reprise {

namespace {

constexpr double kAllowedRatio = 1.2;  // MoClip / AdamW with clipping
bool within_bar = true;

// Bytes that a step moves per parameter with float32 storage: the sums read G (and m), the update reads and writes
// G, m, v and the weight.
constexpr double kAdamWBytes = 4 + 16 + 16;
constexpr double kMoClipBytes = 8 + 16 + 16;

double seconds_of(const auto& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double best(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

/// Matrices and norms of a decoder with about `size` parameters.
ParameterSet<float> make_parameters(const Stream& stream, std::int64_t size) {
  constexpr std::int64_t kHidden = 1024;
  const std::int64_t layers = std::max<std::int64_t>(1, size / (8 * kHidden * kHidden));
  ParameterSet<float> parameters;
  const auto add = [&](const std::string& name, const std::string& layer, std::int64_t rows, std::int64_t cols) {
    parameters.add({.name = name,
                    .layer = layer,
                    .global_rows = rows,
                    .global_cols = cols,
                    .row_end = rows,
                    .col_end = cols,
                    .is_vector = cols == 1,
                    .decay = cols != 1});
  };
  for (std::int64_t l = 0; l < layers; ++l) {
    const std::string layer = "layers." + std::to_string(l);
    add(layer + ".norm", layer, kHidden, 1);
    for (const char* name : {".q", ".k", ".v", ".o"}) add(layer + name, layer, kHidden, kHidden);
    add(layer + ".mlp", layer, 4 * kHidden, kHidden);
  }
  parameters.allocate(stream, std::int64_t{1} << 24, 1);
  return parameters;
}

void fill_gradients(const CpuStream& stream, VectorView<float> gradients, std::uint64_t seed) {
  stream.parallel_for(gradients.size, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    auto state = random_bits(seed, static_cast<std::uint64_t>(begin)) | 1u;
    for (std::int64_t i = begin; i < end; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      gradients[i] = static_cast<float>(static_cast<std::int64_t>(state >> 40) - (1 << 23)) * 0x1p-26f;
    }
  });
}

/// One optimizer with its model; a step is timed from final gradients to cleared ones.
class Trial {
 public:
  Trial(const Stream& stream, const ProcessGroups& groups, const std::string& name, std::int64_t size)
      : stream_(stream),
        arena_(stream),
        context_{stream_, groups, arena_},
        parameters_(make_parameters(stream, size)),
        optimizer_(make_optimizer(context_, {.name = name}, parameters_)) {}

  double step_seconds(std::uint64_t seed) {
    fill_gradients(stream_.cpu(), parameters_.gradients(), seed);
    return seconds_of([&] {
      optimizer_->reduce_gradients(context_, true);
      benchmark::DoNotOptimize(optimizer_->step(context_, 1e-4, {.weight = 100.0}));
    });
  }
  [[nodiscard]] std::int64_t size() const { return parameters_.layout().size; }

 private:
  Stream stream_;
  Arena arena_;
  Context context_;
  ParameterSet<float> parameters_;
  std::unique_ptr<Optimizer<float>> optimizer_;
};

double copy_seconds(const CpuStream& stream, VectorView<const float> from, VectorView<float> to) {
  return seconds_of([&] {
    stream.parallel_for(
        from.size, ceil_div(from.size, stream.num_threads()), [&](std::int64_t begin, std::int64_t end) {
          std::memcpy(to.data + begin, from.data + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
        });
  });
}

void step(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(1)));
  const Stream stream{CpuStream{&pool}};
  const auto world = make_self_communicator();
  const ProcessGroups groups = ProcessGroups::make(*world, 1);
  Trial moclip(stream, groups, "moclip", state.range(0)), adamw(stream, groups, "adamw", state.range(0));
  Buffer<float> from(stream, moclip.size(), "copied"), to(stream, moclip.size(), "copy");
  fill_gradients(stream.cpu(), from.view(), 1);

  std::vector<double> moclip_seconds, adamw_seconds, copy;
  std::uint64_t seed = 2;
  for (int warm_up = 0; warm_up < 2; ++warm_up) {
    (void)moclip.step_seconds(++seed);
    (void)adamw.step_seconds(seed);
    (void)copy_seconds(stream.cpu(), from.view(), to.view());
  }
  for (auto _ : state) {
    moclip_seconds.push_back(moclip.step_seconds(++seed));
    adamw_seconds.push_back(adamw.step_seconds(seed));
    copy.push_back(copy_seconds(stream.cpu(), from.view(), to.view()));
    state.SetIterationTime(moclip_seconds.back());
  }
  const auto size = static_cast<double>(moclip.size());
  const double copy_rate = 2.0 * sizeof(float) * size / median(copy);
  const double ratio = median(moclip_seconds) / median(adamw_seconds);
  state.counters["moclip_ms"] = median(moclip_seconds) * 1e3;
  state.counters["adamw_ms"] = median(adamw_seconds) * 1e3;
  state.counters["copy_GB/s"] = copy_rate * 1e-9;
  state.counters["moclip/adamw"] = ratio;
  state.counters["best/best"] = best(moclip_seconds) / best(adamw_seconds);  // what a busy machine distorts least
  state.counters["moclip_of_copy"] = kMoClipBytes * size / median(moclip_seconds) / copy_rate;
  state.counters["adamw_of_copy"] = kAdamWBytes * size / median(adamw_seconds) / copy_rate;
  state.SetLabel(simd_level_name());
  within_bar = within_bar && ratio <= kAllowedRatio;
}

BENCHMARK(step)
    ->ArgNames({"parameters", "threads"})
    ->Args({64 << 20, 1})
    ->Args({64 << 20, 2})
    ->UseManualTime()
    ->Iterations(11)
    ->Unit(benchmark::kMillisecond);

}  // namespace

}  // namespace reprise

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  if (!reprise::within_bar) std::fputs("MoClip's step took more than 1.2 times AdamW's\n", stderr);
  return reprise::within_bar ? 0 : 1;
}
