#include "bench/gpu/bench_device.hpp"
#include "bench/gpu/ceilings.hpp"
#include "core/gemm.hpp"
#include "core/random.hpp"

namespace reprise {

namespace {

double copy_rate(BenchDevice& device) {
  const std::int64_t size = device.size(std::int64_t{1} << 28, 1 << 10);
  Buffer<float> from(device.stream, size, "copied"), to(device.stream, size, "copy");
  return 2.0 * static_cast<double>(from.bytes()) /
         device.seconds([&] { copy_on_device<float>(device.stream, from.view(), to.view()); });
}

/// Bytes per second of random rows of 8 KiB out of a table of `footprint` bytes.
double gather_rate(BenchDevice& device, std::int64_t footprint) {
  const std::int64_t cols = device.size(4096, 64), rows = footprint / (cols * 2);
  const std::int64_t listed = device.size(std::int64_t{1} << 18, 64), per_block = device.size(100, 4);
  Buffer<BFloat16> table(device.stream, rows * cols, "table");
  device.fill_random<BFloat16>(table.view(), 1, 1.0f);
  std::vector<std::int32_t> index(static_cast<std::size_t>(listed));
  for (std::size_t i = 0; i < index.size(); ++i) {
    index[i] = static_cast<std::int32_t>(random_bits(3, i) % static_cast<std::uint64_t>(rows));
  }
  const auto index_there = to_device(device.stream, index, "rows");
  Buffer<float> sums(device.stream, listed, "sums");
  return static_cast<double>(listed * cols * 2) / device.seconds([&] {
    read_listed_rows(device.queue.stream(), {table.view().data, rows, cols}, index_there.view(), per_block,
                     sums.view());
  });
}

template <class Out>
double product_rate(BenchDevice& device, std::int64_t m, std::int64_t n, std::int64_t k) {
  Buffer<BFloat16> a(device.stream, m * k, "a"), b(device.stream, n * k, "b");
  Buffer<Out> c(device.stream, m * n, "c");
  device.fill_random<BFloat16>(a.view(), 1, 1.0f);
  device.fill_random<BFloat16>(b.view(), 2, 1.0f);
  return static_cast<double>(m * n) * static_cast<double>(k) / device.seconds([&] {
    gemm<BFloat16, Out>(device.stream, Transpose::kNo, Transpose::kYes, 1.0f,
                        MatrixView<const BFloat16>(a.view().data, m, k),
                        MatrixView<const BFloat16>(b.view().data, n, k), 0.0f, MatrixView<Out>(c.view().data, m, n));
  });
}

}  // namespace

Table bench_ceilings(BenchDevice& device) {
  Table rows = Table::array();
  device.copy_bytes = copy_rate(device);
  rows.push_back({{"what", "copy, 1 GiB, read + written"}, {"TB/s", device.copy_bytes * 1e-12}});
  for (const std::int64_t megabytes : {30, 60, 500}) {
    const std::int64_t footprint = device.size(megabytes * 1000 * 1000, megabytes * 1024);
    rows.push_back({{"what", "random rows of 8 KiB out of " + std::to_string(megabytes) + " MB"},
                    {"TB/s", gather_rate(device, footprint) * 1e-12}});
  }
  const std::int64_t side = device.size(8192, 64);
  device.bfloat16_multiply_adds = product_rate<BFloat16>(device, side, side, side);
  rows.push_back({{"what", "bfloat16 product 8192^3"}, {"TFLOP/s", 2e-12 * device.bfloat16_multiply_adds}});
  const double to_float =
      product_rate<float>(device, device.size(4096, 64), device.size(128256, 128), device.size(4096, 64));
  rows.push_back({{"what", "logits 4096 x 128256 x 4096 in float32"}, {"TFLOP/s", 2e-12 * to_float}});
  Buffer<float> one(device.stream, 32, "one");
  rows.push_back({{"what", "launch of a small kernel"},
                  {"us", 1e6 * device.seconds([&] { fill(device.stream, one.view(), 1.0f); })}});
  return rows;
}

}  // namespace reprise
