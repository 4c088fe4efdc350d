// What only the CPU's products have: threads and the name of a BLAS kernel.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/gemm.hpp"
#include "core/random.hpp"

namespace reprise {
namespace {

template <class T>
std::vector<T> random_values(std::int64_t size, std::uint64_t seed) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < size; ++i) {
    values.push_back(static_cast<T>(static_cast<float>(random_uniform(seed, static_cast<std::uint64_t>(i)) - 0.5)));
  }
  return values;
}

template <class In, class Out>
void check_thread_counts() {
  constexpr std::int64_t kM = 260, kN = 390, kK = 600;
  const auto a = random_values<In>(kM * kK, 1), b = random_values<In>(kN * kK, 2);
  const auto multiply = [&](const CpuStream& stream) {
    std::vector<Out> c(kM * kN);
    gemm(stream, Transpose::kNo, Transpose::kYes, 1.0f, MatrixView<const In>(a, kM, kK),
         MatrixView<const In>(b, kN, kK), 0.0f, MatrixView<Out>(c, kM, kN));
    return c;
  };
  const auto alone = multiply({});
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    EXPECT_TRUE(multiply({&pool}) == alone);
  }
}

TEST(GemmOnACpu, ThreadsDoNotChangeABit) {
  check_thread_counts<float, float>();
  check_thread_counts<BFloat16, BFloat16>();
  check_thread_counts<BFloat16, float>();
}

TEST(GemmOnACpu, TheKernelHasAName) {
  EXPECT_FALSE(std::string(gemm_kernel_name()).empty());
  EXPECT_THROW(set_gemm_threads(0), Error);
}

}  // namespace
}  // namespace reprise
