#include "core/gemm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/random.hpp"
#include "tests/support/device.hpp"

namespace reprise {
namespace {

struct Problem {
  std::int64_t m, n, k;
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  float alpha = 1.0f, beta = 0.0f;
};

template <class T>
std::vector<T> random_values(std::int64_t size, std::uint64_t seed) {
  std::vector<T> values;
  for (std::int64_t i = 0; i < size; ++i) {
    values.push_back(static_cast<T>(static_cast<float>(random_uniform(seed, static_cast<std::uint64_t>(i)) - 0.5)));
  }
  return values;
}

template <class T>
MatrixView<const T> stored(const std::vector<T>& values, Transpose transpose, std::int64_t rows, std::int64_t cols) {
  return transpose == Transpose::kYes ? MatrixView<const T>(values, cols, rows)
                                      : MatrixView<const T>(values, rows, cols);
}

template <class T>
double element(MatrixView<const T> x, Transpose transpose, std::int64_t row, std::int64_t col) {
  return static_cast<double>(static_cast<float>(transpose == Transpose::kYes ? x(col, row) : x(row, col)));
}

/// Runs gemm and compares every element with a float64 loop; the bound follows from K roundings of float32 sums and
/// one of the result.
template <class In, class Out>
void check(const Problem& p, const Stream& stream = test_stream()) {
  SCOPED_TRACE(::testing::Message() << p.m << " x " << p.n << " x " << p.k << ", transposes "
                                    << static_cast<int>(p.transpose_a) << static_cast<int>(p.transpose_b) << ", alpha "
                                    << p.alpha << ", beta " << p.beta);
  const auto a = random_values<In>(p.m * p.k, 1), b = random_values<In>(p.k * p.n, 2);
  auto c = random_values<Out>(p.m * p.n, 3);
  const auto before = c;
  const auto a_view = stored(a, p.transpose_a, p.m, p.k), b_view = stored(b, p.transpose_b, p.k, p.n);
  if (p.beta == 0.0f && !c.empty()) c[0] = static_cast<Out>(std::numeric_limits<float>::quiet_NaN());
  {
    const auto device_a = to_device(stream, a), device_b = to_device(stream, b);
    auto device_c = to_device(stream, c);
    gemm<In, Out>(stream, p.transpose_a, p.transpose_b, p.alpha, {device_a.view().data, a_view.rows, a_view.cols},
                  {device_b.view().data, b_view.rows, b_view.cols}, p.beta, {device_c.view(), p.m, p.n});
    c = to_host(stream, device_c.view());
  }
  const double rounding_of_result = std::is_same_v<Out, float> ? 0x1p-23 : 0x1p-8;
  for (std::int64_t i = 0; i < p.m; ++i) {
    for (std::int64_t j = 0; j < p.n; ++j) {
      double sum = 0.0, magnitude = 0.0;
      for (std::int64_t k = 0; k < p.k; ++k) {
        const double product = element(a_view, p.transpose_a, i, k) * element(b_view, p.transpose_b, k, j);
        sum += product;
        magnitude += std::abs(product);
      }
      const auto index = static_cast<std::size_t>(i * p.n + j);
      const double old = p.beta == 0.0f ? 0.0 : p.beta * static_cast<double>(static_cast<float>(before[index]));
      const double expected = p.alpha * sum + old;
      const double bound = 0x1p-22 * std::sqrt(static_cast<double>(p.k) + 1.0) * (magnitude + std::abs(old)) +
                           rounding_of_result * std::abs(expected) + 1e-30;
      ASSERT_NEAR(static_cast<double>(static_cast<float>(c[index])), expected, bound) << i << ", " << j;
    }
  }
}

template <class T>
class GemmTest : public ::testing::Test {};
using Types = ::testing::Types<std::pair<float, float>, std::pair<BFloat16, BFloat16>, std::pair<BFloat16, float>>;
TYPED_TEST_SUITE(GemmTest, Types);

TYPED_TEST(GemmTest, EqualsTheOracleForEveryTransposeAlphaAndBeta) {
  using In = typename TypeParam::first_type;
  using Out = typename TypeParam::second_type;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      for (const auto& [alpha, beta] : {std::pair{1.0f, 0.0f}, {1.0f, 1.0f}, {-0.5f, 2.0f}, {0.0f, 0.5f}}) {
        check<In, Out>({5, 7, 11, ta, tb, alpha, beta});
        check<In, Out>({1, 33, 17, ta, tb, alpha, beta});
        check<In, Out>({33, 1, 64, ta, tb, alpha, beta});
      }
    }
  }
}

TYPED_TEST(GemmTest, EmptyShapesAreOrdinary) {
  using In = typename TypeParam::first_type;
  using Out = typename TypeParam::second_type;
  for (const float beta : {0.0f, 0.5f}) {
    check<In, Out>({0, 7, 11, Transpose::kNo, Transpose::kNo, 1.0f, beta});
    check<In, Out>({5, 0, 11, Transpose::kNo, Transpose::kYes, 1.0f, beta});
    check<In, Out>({5, 7, 0, Transpose::kYes, Transpose::kNo, 1.0f, beta});
    check<In, Out>({0, 0, 0, Transpose::kNo, Transpose::kNo, 1.0f, beta});
  }
}

TYPED_TEST(GemmTest, BlocksMeetWithoutAGap) {
  using In = typename TypeParam::first_type;
  using Out = typename TypeParam::second_type;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      check<In, Out>({1, 1030, 530, ta, tb, 0.5f, 0.0f});
      check<In, Out>({3, 1030, 5, ta, tb, 1.0f, 1.0f});
      check<In, Out>({1030, 3, 5, ta, tb, 1.0f, 0.0f});
      check<In, Out>({3, 5, 1030, ta, tb, 1.0f, 0.5f});
    }
  }
  check<In, Out>({150, 170, 701, Transpose::kNo, Transpose::kYes});
}

TEST(Gemm, RanksAsThreadsMayCallAtTheSameTime) {
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([] {
      for (int call = 0; call < 5; ++call) {
        check<float, float>({70, 90, 50, Transpose::kNo, Transpose::kYes});
        check<BFloat16, float>({70, 90, 50, Transpose::kYes, Transpose::kNo});
      }
    });
  }
  for (auto& rank : ranks) rank.join();
}

TEST(Gemm, PartsOfAMatrixAreOrdinary) {
  constexpr std::int64_t kM = 6, kN = 9, kK = 10;  // rows 1.. of each matrix: addresses that are multiples of few bytes
  const auto a = random_values<BFloat16>((kM + 1) * kK, 1), b = random_values<BFloat16>((kN + 1) * kK, 2);
  const auto device_a = to_device(a), device_b = to_device(b);
  Buffer<float> c(test_stream(), kM * kN + 1, "c"), expected(test_stream(), kM * kN, "c");
  const auto whole_a = to_device(std::vector<BFloat16>(a.begin() + kK, a.end()));
  const auto whole_b = to_device(std::vector<BFloat16>(b.begin() + kK, b.end()));
  gemm<BFloat16, float>(test_stream(), Transpose::kNo, Transpose::kYes, 1.0f, {device_a.view().data + kK, kM, kK},
                        {device_b.view().data + kK, kN, kK}, 0.0f, {c.view().data + 1, kM, kN});
  gemm<BFloat16, float>(test_stream(), Transpose::kNo, Transpose::kYes, 1.0f, {whole_a.view(), kM, kK},
                        {whole_b.view(), kN, kK}, 0.0f, {expected.view(), kM, kN});
  const auto got = to_host(c), wanted = to_host(expected);
  for (std::size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(got[i + 1], wanted[i], 1e-5f);
}

TEST(Gemm, NonFiniteOperandsReachTheirRowAndNoOther) {
  std::vector<float> values(4 * 8, 1.0f);
  values[8 + 3] = std::numeric_limits<float>::quiet_NaN();
  const auto a = to_device(values), b = to_device(std::vector<float>(8 * 6, 1.0f));
  Buffer<float> c(test_stream(), 4 * 6, "c");
  gemm<float, float>(test_stream(), Transpose::kNo, Transpose::kNo, 1.0f, {a.view(), 4, 8}, {b.view(), 8, 6}, 0.0f,
                     {c.view(), 4, 6});
  const auto got = to_host(c);
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (i / 6 == 1) {
      EXPECT_TRUE(std::isnan(got[i]));
    } else {
      EXPECT_EQ(got[i], 8.0f);
    }
  }
}

TEST(Gemm, ShapesThatDoNotMatchAreErrors) {
  Buffer<float> a(test_stream(), 6, "a"), b(test_stream(), 6, "b"), c(test_stream(), 4, "c");
  const auto multiply = [&](Transpose ta, Transpose tb, std::int64_t rows, std::int64_t cols) {
    gemm<float, float>(test_stream(), ta, tb, 1.0f, {a.view(), 2, 3}, {b.view(), 3, 2}, 0.0f, {c.view(), rows, cols});
  };
  EXPECT_NO_THROW(multiply(Transpose::kNo, Transpose::kNo, 2, 2));
  EXPECT_THROW(multiply(Transpose::kYes, Transpose::kNo, 2, 2), Error);
  EXPECT_THROW(multiply(Transpose::kNo, Transpose::kYes, 2, 2), Error);
  EXPECT_THROW(multiply(Transpose::kNo, Transpose::kNo, 1, 4), Error);
}

}  // namespace
}  // namespace reprise
