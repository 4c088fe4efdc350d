#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <compare>
#include <cstdint>
#include <map>

#include "core/buffer.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/handle.hpp"
#include "core/cuda/queue_state.hpp"
#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/gemm.hpp"
#include "core/trace.hpp"

namespace reprise {
namespace {

constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;  // what the library asks for on Hopper

using Handle = UniqueHandle<cublasLtHandle_t, cublasLtDestroy>;
using Operation = UniqueHandle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = UniqueHandle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = UniqueHandle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

#define REPRISE_CUBLAS(call, product)                                                       \
  do {                                                                                      \
    const cublasStatus_t reprise_status = (call);                                           \
    REPRISE_CHECK(reprise_status == CUBLAS_STATUS_SUCCESS, "gemm {}: {}", (product).text(), \
                  cublasLtGetStatusString(reprise_status));                                 \
  } while (false)

/// What a plan depends on.
struct Product {
  Transpose transpose_a = Transpose::kNo, transpose_b = Transpose::kNo;
  DType in = DType::kFloat32, out = DType::kFloat32;
  bool reads_c = false;
  std::int64_t m = 0, n = 0, k = 0;
  std::uint32_t alignment_a = 0, alignment_b = 0, alignment_c = 0;  // bytes

  auto operator<=>(const Product&) const = default;
  [[nodiscard]] std::string text() const {
    return fmt::format("[{}, {}] = [{}, {}]{} [{}, {}]{} in {} to {}", m, n, m, k,
                       transpose_a == Transpose::kYes ? "^T" : "", k, n, transpose_b == Transpose::kYes ? "^T" : "",
                       name_of(in), name_of(out));
  }
};

/// Our matrices are row-major, the library's column-major: it is asked for c^T = op(b)^T op(a)^T.
struct Plan {
  Operation operation;
  Layout first, second, result;  // b, a, c
  cublasLtMatmulAlgo_t algorithm{};
};

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::kBFloat16 ? CUDA_R_16BF : CUDA_R_32F;
}

std::uint32_t alignment_of(const void* pointer) {
  constexpr std::uintptr_t kMost = 256;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  return static_cast<std::uint32_t>(std::min(kMost, address & (~address + 1)));
}

void make_layout(Layout& layout, const Product& product, DType dtype, std::int64_t rows, std::int64_t cols) {
  REPRISE_CUBLAS(cublasLtMatrixLayoutCreate(layout.out(), data_type(dtype), static_cast<std::uint64_t>(cols),
                                            static_cast<std::uint64_t>(rows), cols),
                 product);
}

}  // namespace

struct GemmState {
  Handle handle;
  std::map<Product, Plan> plans;
  Buffer<std::uint8_t> workspace;
};

void DeleteGemmState::operator()(GemmState* state) const noexcept {
  delete state;
}

namespace {

GemmState& gemm_state(const CudaStream& stream) {
  auto& state = stream.state->gemm;
  if (!state) {
    state.reset(new GemmState);
    REPRISE_CUBLAS(cublasLtCreate(state->handle.out()), Product{});
    state->workspace = Buffer<std::uint8_t>(Stream(stream), kWorkspaceBytes, "the workspace of matrix products");
  }
  return *state;
}

/// The algorithm that the library thinks best. Partial sums over k, if it makes any, must be float32.
void choose_algorithm(const GemmState& state, const Product& product, Plan& plan) {
  Preference preference;
  REPRISE_CUBLAS(cublasLtMatmulPreferenceCreate(preference.out()), product);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    REPRISE_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value), product);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(kWorkspaceBytes));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, product.alignment_b);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, product.alignment_a);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, product.alignment_c);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, product.alignment_c);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  REPRISE_CUBLAS(
      cublasLtMatmulAlgoGetHeuristic(state.handle.get(), plan.operation.get(), plan.first.get(), plan.second.get(),
                                     plan.result.get(), plan.result.get(), preference.get(), 1, &found, &count),
      product);
  REPRISE_CHECK(count == 1, "gemm {}: cuBLASLt knows no algorithm", product.text());
  plan.algorithm = found.algo;
}

Plan make_plan(const GemmState& state, const Product& product) {
  Plan plan;
  REPRISE_CUBLAS(cublasLtMatmulDescCreate(plan.operation.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F), product);
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, Transpose transpose) {
    const cublasOperation_t value = transpose == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
    REPRISE_CUBLAS(cublasLtMatmulDescSetAttribute(plan.operation.get(), attribute, &value, sizeof value), product);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, product.transpose_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, product.transpose_a);
  const bool flip_a = product.transpose_a == Transpose::kYes, flip_b = product.transpose_b == Transpose::kYes;
  make_layout(plan.first, product, product.in, flip_b ? product.n : product.k, flip_b ? product.k : product.n);
  make_layout(plan.second, product, product.in, flip_a ? product.k : product.m, flip_a ? product.m : product.k);
  make_layout(plan.result, product, product.out, product.m, product.n);
  choose_algorithm(state, product, plan);
  return plan;
}

template <class In, class Out>
Product checked_product(Transpose transpose_a, Transpose transpose_b, float beta, MatrixView<const In> a,
                        MatrixView<const In> b, MatrixView<Out> c) {
  const bool flip_a = transpose_a == Transpose::kYes, flip_b = transpose_b == Transpose::kYes;
  Product product{transpose_a, transpose_b, dtype_of<In>, dtype_of<Out>, beta != 0.0f};
  product.m = flip_a ? a.cols : a.rows;
  product.n = flip_b ? b.rows : b.cols;
  product.k = flip_a ? a.rows : a.cols;
  product.alignment_a = alignment_of(a.data);
  product.alignment_b = alignment_of(b.data);
  product.alignment_c = alignment_of(c.data);
  REPRISE_CHECK((flip_b ? b.cols : b.rows) == product.k && c.rows == product.m && c.cols == product.n,
                "a is [{}, {}]{}, b [{}, {}]{}, c [{}, {}]", a.rows, a.cols, flip_a ? " transposed" : "", b.rows,
                b.cols, flip_b ? " transposed" : "", c.rows, c.cols);
  return product;
}

}  // namespace

template <class In, class Out>
void gemm(const CudaStream& stream, Transpose transpose_a, Transpose transpose_b, float alpha, MatrixView<const In> a,
          MatrixView<const In> b, float beta, MatrixView<Out> c) {
  const Product product = checked_product(transpose_a, transpose_b, beta, a, b, c);
  if (product.m == 0 || product.n == 0) return;
  if (product.k == 0 || alpha == 0.0f) {
    beta == 0.0f ? fill(stream, c.flat(), 0.0f) : scale(stream, beta, c.flat());
    return;
  }
  const TraceRange range("gemm");
  GemmState& state = gemm_state(stream);
  auto found = state.plans.find(product);
  if (found == state.plans.end()) found = state.plans.emplace(product, make_plan(state, product)).first;
  const Plan& plan = found->second;
  REPRISE_CUBLAS(
      cublasLtMatmul(state.handle.get(), plan.operation.get(), &alpha, b.data, plan.first.get(), a.data,
                     plan.second.get(), &beta, c.data, plan.result.get(), c.data, plan.result.get(), &plan.algorithm,
                     state.workspace.view().data, static_cast<std::size_t>(kWorkspaceBytes), stream.handle),
      product);
}

template void gemm(const CudaStream&, Transpose, Transpose, float, MatrixView<const float>, MatrixView<const float>,
                   float, MatrixView<float>);
template void gemm(const CudaStream&, Transpose, Transpose, float, MatrixView<const BFloat16>,
                   MatrixView<const BFloat16>, float, MatrixView<BFloat16>);
template void gemm(const CudaStream&, Transpose, Transpose, float, MatrixView<const BFloat16>,
                   MatrixView<const BFloat16>, float, MatrixView<float>);

}  // namespace reprise
