#include <cblas.h>
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <vector>

#include "tests/support/cuda_emulation/block.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/cuda_emulation/queue.hpp"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type = CUDA_R_32F;
  std::uint64_t rows = 0, cols = 0;
  std::int64_t leading = 0;
};
struct cublasLtMatmulPreferenceOpaque_t {
  std::uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace {

using namespace cuda_emulation;
using Layout = cublasLtMatrixLayoutOpaque_t;

std::size_t element_bytes(cudaDataType_t type) {
  return type == CUDA_R_16BF ? 2 : 4;
}

float widen(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t round_to_bfloat16(float value) {
  const auto raw = std::bit_cast<std::uint32_t>(value);
  if ((raw & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(raw >> 16 | 0x40U);
  return static_cast<std::uint16_t>((raw + 0x7fffU + (raw >> 16 & 1U)) >> 16);
}

/// The matrix without gaps between its columns, in float32.
std::vector<float> read(const void* data, const Layout& layout) {
  std::vector<float> values(layout.rows * layout.cols);
  for (std::uint64_t col = 0; col < layout.cols; ++col) {
    const std::size_t from = col * static_cast<std::size_t>(layout.leading);
    for (std::uint64_t row = 0; row < layout.rows; ++row) {
      float& value = values[col * layout.rows + row];
      value = layout.type == CUDA_R_16BF ? widen(static_cast<const std::uint16_t*>(data)[from + row])
                                         : static_cast<const float*>(data)[from + row];
    }
  }
  return values;
}

void write(const std::vector<float>& values, void* data, const Layout& layout) {
  for (std::uint64_t col = 0; col < layout.cols; ++col) {
    const std::size_t to = col * static_cast<std::size_t>(layout.leading);
    for (std::uint64_t row = 0; row < layout.rows; ++row) {
      const float value = values[col * layout.rows + row];
      if (layout.type == CUDA_R_16BF) {
        static_cast<std::uint16_t*>(data)[to + row] = round_to_bfloat16(value);
      } else {
        static_cast<float*>(data)[to + row] = value;
      }
    }
  }
}

std::size_t bytes_of(const Layout& layout) {
  if (layout.rows == 0 || layout.cols == 0) return 0;
  return ((layout.cols - 1) * static_cast<std::size_t>(layout.leading) + layout.rows) * element_bytes(layout.type);
}

struct Matmul {
  cublasLtMatmulDescOpaque_t operation;
  float alpha, beta;
  Layout a, b, c, d;
  const void *a_data, *b_data, *c_data;
  void *d_data, *workspace;
  std::size_t workspace_bytes;

  void run() const {
    if (workspace_bytes > 0) std::memset(workspace, kPoison, std::min<std::size_t>(workspace_bytes, 4096));
    const std::vector<float> x = read(a_data, a), y = read(b_data, b);
    std::vector<float> sums(d.rows * d.cols);
    if (beta != 0.0f) sums = read(c_data, c);
    const bool flips_a = operation.a == CUBLAS_OP_T, flips_b = operation.b == CUBLAS_OP_T;
    const std::uint64_t depth = flips_a ? a.rows : a.cols;
    static std::once_flag once;  // tiny products; ranks are threads already
    std::call_once(once, [] { openblas_set_num_threads(1); });
    cblas_sgemm(CblasColMajor, flips_a ? CblasTrans : CblasNoTrans, flips_b ? CblasTrans : CblasNoTrans,
                static_cast<blasint>(d.rows), static_cast<blasint>(d.cols), static_cast<blasint>(depth), alpha,
                x.data(), static_cast<blasint>(a.rows), y.data(), static_cast<blasint>(b.rows), beta, sums.data(),
                static_cast<blasint>(d.rows));
    write(sums, d_data, d);
  }
};

bool fits(const cublasLtMatmulDescOpaque_t& operation, const Layout& a, const Layout& b, const Layout& c,
          const Layout& d) {
  const bool flips_a = operation.a == CUBLAS_OP_T, flips_b = operation.b == CUBLAS_OP_T;
  const auto is_sound = [](const Layout& x) {
    return x.rows > 0 && x.cols > 0 && x.leading >= static_cast<std::int64_t>(x.rows);
  };
  return is_sound(a) && is_sound(b) && is_sound(d) && (flips_a ? a.cols : a.rows) == d.rows &&
         (flips_b ? b.rows : b.cols) == d.cols && (flips_a ? a.rows : a.cols) == (flips_b ? b.cols : b.rows) &&
         c.rows == d.rows && c.cols == d.cols && c.type == d.type && a.type == b.type &&
         (a.type == CUDA_R_16BF || d.type == CUDA_R_32F);
}

}  // namespace

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
  }
  return "unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t, cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *description = new cublasLtMatmulDescOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              std::size_t bytes) {
  if (bytes != sizeof(cublasOperation_t)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(attribute == CUBLASLT_MATMUL_DESC_TRANSA ? &description->a : &description->b, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, std::uint64_t rows,
                                          std::uint64_t cols, std::int64_t leading) {
  *layout = new cublasLtMatrixLayoutOpaque_t{type, rows, cols, leading};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    return bytes == 8 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  }
  if (bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
  if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES) {
    std::memcpy(&preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t* results, int* count) {
  *count = 0;
  if (most < 1 || !fits(*description, *a, *b, *c, *d)) return CUBLAS_STATUS_INVALID_VALUE;
  results[0] = {};
  for (std::size_t i = 0; i < 4; ++i) results[0].algo.data[i] = preference->alignment[i];
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  if (!fits(*description, *a_layout, *b_layout, *c_layout, *d_layout)) return CUBLAS_STATUS_INVALID_VALUE;
  const void* const operands[4] = {a, b, c, d};
  for (std::size_t i = 0; i < 4; ++i) {  // an algorithm for aligned operands does not read others
    if (reinterpret_cast<std::uintptr_t>(operands[i]) % algorithm->data[i] != 0) return CUBLAS_STATUS_INVALID_VALUE;
  }
  check_device_range(a, bytes_of(*a_layout), "a matrix product");
  check_device_range(b, bytes_of(*b_layout), "a matrix product");
  check_device_range(d, bytes_of(*d_layout), "a matrix product");
  check_device_range(workspace, workspace_bytes, "a matrix product's workspace");
  Matmul product{*description,
                 *static_cast<const float*>(alpha),
                 *static_cast<const float*>(beta),
                 *a_layout,
                 *b_layout,
                 *c_layout,
                 *d_layout,
                 real_address(a),
                 real_address(b),
                 real_address(c),
                 real_address(d),
                 real_address(workspace),
                 workspace_bytes};
  enqueue(stream, [product] { product.run(); });
  return CUBLAS_STATUS_SUCCESS;
}
