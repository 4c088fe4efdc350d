#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "loss/candidate_index.hpp"
#include "loss/gradient_plan.hpp"
#include "loss/selected_rows.hpp"

namespace reprise {

/// d_weight[v] += sum over tiles that list v and their tokens t of delta_tv h_t, for listed rows only. No atomics, and
/// every sum in a fixed order: the same bits in every run.
///
/// CPU: tiles are taken in segments; a segment's hidden states are packed in panels of kPanelColumns columns, and each
/// listed row of d_weight is read and written once per segment and panel. Large tiles are small dense products into the
/// segment's row sums, tiles of few tokens are sorted by row and summed in registers (GradientOrder). One thread owns a
/// (row, panel) and every sum runs in the order of the tokens.
///
/// GPU: the candidates are transposed by the host (plan_gradient) while forward's kernels run. Rows that many tokens
/// list are a dense product of deltas (rounded to T) and hidden states; the others are summed in float32 from hidden
/// states in shared memory (row_gradient.hpp), each row of d_weight read and written once per supertile.
class CandidateGradient {
 public:
  /// For forward, behind the launch of the kernels and before the host waits. `candidates` and `host_arrays` must live
  /// until `add`. limits: else choose_gradient_limits.
  template <class T>
  void plan(const Context& context, const LocalCandidates& candidates, HostArrays& host_arrays,
            std::optional<GradientLimits> limits = {});

  /// deltas: as LocalCandidates lays logits out; hidden: [T, D].
  template <class T>
  void add(const Context& context, const LocalCandidates& candidates, VectorView<const float> deltas,
           const HeadHidden<T>& hidden, MatrixView<float> d_weight) const;

 private:
  std::vector<GradientPart> parts_;  // of a GPU
};

/// For T on this device; nothing to choose on a CPU.
template <class T>
[[nodiscard]] GradientLimits choose_gradient_limits(const CpuStream& stream);
template <class T>
[[nodiscard]] GradientLimits choose_gradient_limits(const CudaStream& stream);

/// `add` on either device; the CPU needs no parts, a GPU no candidates.
template <class T>
void add_candidate_gradient(const CpuStream& stream, const Context& context, const LocalCandidates& candidates,
                            const std::vector<GradientPart>& parts, VectorView<const float> deltas,
                            const HeadHidden<T>& hidden, MatrixView<float> d_weight);
template <class T>
void add_candidate_gradient(const CudaStream& stream, const Context& context, const LocalCandidates& candidates,
                            const std::vector<GradientPart>& parts, VectorView<const float> deltas,
                            const HeadHidden<T>& hidden, MatrixView<float> d_weight);

enum class GradientOrder : std::uint8_t { kByRow, kByTile };
[[nodiscard]] GradientOrder choose_gradient_order(const LocalCandidates& candidates);
/// Tokens of a segment in either order: the panel of hidden states, or the row sums, should stay in the caches.
[[nodiscard]] constexpr std::int64_t segment_tokens(GradientOrder order) {
  return order == GradientOrder::kByRow ? 1024 : 512;
}

}  // namespace reprise
