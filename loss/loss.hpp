#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "core/view.hpp"
#include "loss/candidate_tiles.hpp"
#include "loss/softmax.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

enum class Normalization : std::uint8_t { kToken, kTile, kFull };

/// The target tokens of one micro-batch, in host memory; the same on every rank of a tensor-parallel group.
struct LossBatch {
  VectorView<const std::int32_t> row;        ///< [T] rows of the micro-batch's hidden states, strictly ascending
  VectorView<const std::int32_t> gold;       ///< [T] in [0, V), or -100: ignored (weight 0, loss 0)
  VectorView<const float> weight;            ///< [T] w_t >= 0; not normalised here
  CandidateTiles tiles;                      ///< over the T tokens in order; unused by kFull
  VectorView<const std::int32_t> negatives;  ///< sorted unique ids shared by all tiles, or empty
  /// Rows of the micro-batch over all tp ranks. Only looked at under sequence parallelism; -1 = unknown there, which
  /// costs one small all-gather more.
  std::int64_t total_rows = -1;
  /// false: no gradient of W will be asked for (evaluation, a frozen head), and none is prepared.
  bool needs_weight_gradient = true;
};

struct LossOptions {
  float logit_scale = 1.0f;
  float softcap = 0.0f;  ///< > 0: z = softcap tanh(z / softcap)
};

/// Vocabulary-parallel cross-entropy on final hidden states, with the projection onto the vocabulary inside.
///
/// z_tk = <h_t, W_k>, l_t = logsumexp_{k in C_t} z_tk - z_{t,gold}, where C_t are the tile's candidates, or the whole
/// vocabulary (kFull). Logits, softmax and sums in float32.
/// Gradients are of sum_t w_t l_t: the 1 / sum w enters with the optimizer's scalars.
/// The T x V logits are never formed (kFull streams vocabulary blocks).
template <class T>
class HeadLoss {
 public:
  virtual ~HeadLoss() = default;

  /// What forward leaves, in the context's arena, the same bits on every tp rank.
  struct Output {
    VectorView<float> token_loss;             ///< [T] l_t in nats (= - log-probability of gold within the candidates)
    double weighted_sum = 0.0;                ///< sum_t w_t l_t; 0 after launch_forward: it is in `summary`
    double weight_sum = 0.0;                  ///< sum_t w_t
    std::int64_t tokens = 0;                  ///< tokens with w_t > 0
    VectorView<const LossSummary> summary{};  ///< [1] on the device
  };

  /// hidden: [tokens, D], or this rank's even_shard of the rows under context.sequence_parallel. weight: this rank's
  /// rows [vocab.rows(tp_rank)] of W. Throws Error(kData) on every rank for ids >= V, an unsorted or empty set, a
  /// missing gold, Error(kNonFinite) for non-finite hidden states. One all-gather of 3 float32 per token (plus, under
  /// sequence parallelism, one all-gather of the selected rows). Keeps what backward needs until the arena is rewound.
  /// On a GPU hidden, weight and token_loss lie there, and the host waits once, at the end, for the sums and for
  /// whether hidden states were finite; backward does not wait.
  Output forward(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight,
                 const LossBatch& batch);
  /// The same without that wait: what it would bring stays on the device, in output.summary, and hidden states that are
  /// not finite make the sum there NaN. On a CPU they throw as above.
  virtual Output launch_forward(const Context& context, MatrixView<const T> hidden, MatrixView<const T> weight,
                                const LossBatch& batch) = 0;

  /// d_hidden: hidden's shape, overwritten (rows without a target are zero). d_weight += on touched rows only.
  /// One all-reduce of the selected rows of dH in T (under sequence parallelism one all-to-all, summed in float32 by
  /// the owner). d_weight may be empty (frozen head).
  virtual void backward(const Context& context, MatrixView<const T> weight, MatrixView<T> d_hidden,
                        MatrixView<float> d_weight) = 0;
};

/// Throws Error(kUsage) for options that a loss does not support, by name.
template <class T>
[[nodiscard]] std::unique_ptr<HeadLoss<T>> make_head_loss(Normalization normalization, const VocabPartition& vocab,
                                                          const LossOptions& options = {});

/// The probe: with full logits, the mean probability outside the candidates over the first `max_tokens` tokens of
/// `batch`, as (sum of mass, tokens). Collective like forward.
template <class T>
[[nodiscard]] std::pair<double, double> out_of_set_mass(const Context& context, MatrixView<const T> hidden,
                                                        MatrixView<const T> weight, const LossBatch& batch,
                                                        const VocabPartition& vocab, const LossOptions& options,
                                                        std::int64_t max_tokens);

}  // namespace reprise
