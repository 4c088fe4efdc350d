#pragma once

#include "loss/candidate_index.hpp"
#include "loss/selected_rows.hpp"
#include "loss/softmax.hpp"

namespace reprise {

/// The listed rows of W visited by the tokens of their tiles.
template <class T>
struct HeadVisit {
  HeadHidden<T> hidden;        ///< [T, D]
  MatrixView<const T> weight;  ///< this rank's rows of W
  const LocalCandidates& candidates;
  LogitRule rule;
  VectorView<float> logits;                ///< out: z, as `candidates` lays them out
  MatrixView<float> accumulator;           ///< out: [T, D] sum over the candidates of exp(z - max) dz/dx W
  VectorView<TokenStatistics> statistics;  ///< out: [T] max, sum of exp(z - max), gold_logit = 0
};

/// CPU: a tile's tokens, up to 64 at once, pass over its rows together; a unit of work is one thread's.
/// GPU: head_kernels.hpp. Work lists come from `host_arrays`; large sets of few tokens are cut into pieces that depend
/// on the sets alone, so that all multiprocessors work, and merged in order. bfloat16 tiles: exp(z - max) dz/dx is
/// rounded to bfloat16, logits and sums are float32.
template <class T>
void visit_candidates(const CpuStream& stream, const Context& context, HostArrays& host_arrays,
                      const HeadVisit<T>& visit);
template <class T>
void visit_candidates(const CudaStream& stream, const Context& context, HostArrays& host_arrays,
                      const HeadVisit<T>& visit);
template <class T>
void visit_candidates(const Context& context, HostArrays& host_arrays, const HeadVisit<T>& visit) {
  context.stream.visit([&](const auto& device) { visit_candidates<T>(device, context, host_arrays, visit); });
}

}  // namespace reprise
