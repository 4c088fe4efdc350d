#include <algorithm>
#include <type_traits>

#include "core/gemm.hpp"
#include "core/math.hpp"
#include "loss/add_rows.hpp"
#include "loss/candidate_gradient.hpp"
#include "loss/row_gradient.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kAlignedColumns = 8;  // of products, whose rows should start at 16 bytes

/// The part's rows as a dense product.
template <class T>
void add_dense(const CudaStream& stream, Arena& arena, const GradientPart& part, VectorView<const float> deltas,
               MatrixView<const T> hidden, MatrixView<float> d_weight) {
  const std::int64_t rows = part.list.rows.size, columns = round_up(rows, kAlignedColumns);
  const auto dense = arena.matrix<T>(part.tokens, columns, "dense deltas");
  fill_dense_deltas<T>(stream, part.list, deltas, dense);
  const auto d_rows = arena.matrix<float>(columns, hidden.cols, "gradient of often listed rows");
  gemm<T, float>(stream, Transpose::kYes, Transpose::kNo, 1.0f, dense, hidden, 0.0f, d_rows);
  add_rows(stream, d_rows.row_range(0, rows), part.list.rows, d_weight);
}

}  // namespace

/// A dense product reads H once for all its rows, where the other kernel reads H for every unit from shared memory: per
/// (row, token) 2 D FLOP at the tensor cores' rate against D sizeof(T) bytes of shared memory, some 30 times dearer in
/// bfloat16. float32 products have no tensor cores.
template <class T>
GradientLimits choose_gradient_limits(const CudaStream& stream) {
  return {.supertile_tokens = most_gradient_tokens(stream), .dense_divisor = std::is_same_v<T, float> ? 4 : 32};
}

template <class T>
void add_candidate_gradient(const CudaStream& stream, const Context& context, const LocalCandidates&,
                            const std::vector<GradientPart>& parts, VectorView<const float> deltas,
                            const HeadHidden<T>& hidden, MatrixView<float> d_weight) {
  for (const GradientPart& part : parts) {
    const Arena::Scope scope(context.arena);
    const auto own = hidden.stored.row_range(part.token_begin, part.tokens);
    if (part.is_dense) {
      add_dense<T>(stream, context.arena, part, deltas, own, d_weight);
    } else {
      const auto scratch = context.arena.vector<TokenDelta>(part.list.unit_tokens == 1 ? part.list.units.size : 0);
      add_row_gradients<T>(stream, own, part.list, deltas, scratch, d_weight);
    }
  }
}

#define REPRISE_INSTANTIATE(T)                                                                    \
  template GradientLimits choose_gradient_limits<T>(const CudaStream&);                           \
  template void add_candidate_gradient(const CudaStream&, const Context&, const LocalCandidates&, \
                                       const std::vector<GradientPart>&, VectorView<const float>, \
                                       const HeadHidden<T>&, MatrixView<float>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
