#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/elementwise.hpp"
#include "core/thread_pool.hpp"
#include "core/transfer.hpp"
#include "parallel/context.hpp"
#include "parallel/self_communicator.hpp"

namespace reprise {

/// One rank on device 0, and what the tables share. `tiny` runs the same code on shapes that an emulated device
/// manages: a check of the program, whose times mean nothing.
struct BenchDevice {
  explicit BenchDevice(bool is_tiny) : tiny(is_tiny) {}

  bool tiny;
  CudaQueue queue{0};
  Stream stream{queue.stream()};
  ThreadPool pool{available_threads()};
  CpuStream host{&pool};
  std::unique_ptr<Communicator> world = make_self_communicator();
  ProcessGroups groups = ProcessGroups::make(*world, 1);
  Arena arena{stream};
  double bfloat16_multiply_adds = 0.0;  ///< per second, of a large product; filled by the ceilings
  double copy_bytes = 0.0;              ///< per second, read and written, of a large copy; likewise

  [[nodiscard]] Context context() { return {stream, groups, arena}; }
  [[nodiscard]] std::int64_t size(std::int64_t real, std::int64_t in_tiny) const { return tiny ? in_tiny : real; }

  /// Seconds of one call, by the host's clock around as many calls as fill `least` seconds, the device idle before and
  /// after. Median of 7 such rounds, after one that warms up.
  double seconds(const std::function<void()>& work, double least = 0.02) {
    const auto round = [&](int calls) {
      synchronize(stream);
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) work();
      synchronize(stream);
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / calls;
    };
    const double once = round(1);
    const int calls = tiny ? 1 : static_cast<int>(std::clamp(least / once, 1.0, 1000.0));
    std::vector<double> rounds;
    for (int i = 0; i < (tiny ? 1 : 7); ++i) rounds.push_back(round(calls));
    std::sort(rounds.begin(), rounds.end());
    return rounds[rounds.size() / 2];
  }

  /// Values in (-spread, spread) that depend on the seed alone, made on the host.
  template <class T>
  void fill_random(VectorView<T> values, std::uint64_t seed, float spread) {
    constexpr std::int64_t kPeriod = std::int64_t{1} << 22;  // a prime-free repeat is enough: no kernel looks for it
    std::vector<T> some(static_cast<std::size_t>(std::min(values.size, kPeriod)));
    std::uint64_t state = seed * 2654435761u + 1;
    for (T& value : some) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      value = T(spread * static_cast<float>(static_cast<std::int64_t>(state >> 40) - (1 << 23)) * 0x1p-23f);
    }
    for (std::int64_t begin = 0; begin < values.size; begin += kPeriod) {
      const std::int64_t count = std::min(kPeriod, values.size - begin);
      copy_to_device<T>(stream, VectorView<const T>(some.data(), count), values.slice(begin, count));
    }
    synchronize(stream);
  }

 private:
  static int available_threads();
};

using Table = nlohmann::ordered_json;  ///< an array of objects, one a row

/// Copy and gather bandwidths, bfloat16 products, the cost of a launch.
[[nodiscard]] Table bench_ceilings(BenchDevice& device);
/// Restricted heads beside our full cross-entropy, three bare products, and the twins of their reads and writes.
[[nodiscard]] Table bench_heads(BenchDevice& device);
/// A collection beside the product that makes its logits.
[[nodiscard]] Table bench_collection(BenchDevice& device);
/// Steps of MoClip and of AdamW with clipping beside copies.
[[nodiscard]] Table bench_optimizers(BenchDevice& device);
/// Whole training steps of a decoder of about a billion parameters, full cross-entropy and tiles of 8.
[[nodiscard]] Table bench_steps(BenchDevice& device);

}  // namespace reprise
