#pragma once

#include <cstdint>

#include "loss/loss.hpp"
#include "loss/token_statistics.hpp"

namespace reprise {

/// n sampled vocabulary rows that all tokens of a micro-batch share: a dense GEMM beside the candidates.
///
/// In a tile with candidates U the kept negatives are those outside U, n' of them over all ranks, each logit raised by
/// log((V - |U|) / n'): an estimate of what the whole vocabulary outside U adds to the partition function.
/// Softmax and gradient treat them as further candidates. Memory: [T, n] logits.
class SampledNegatives {
 public:
  SampledNegatives() = default;

  /// Logits of this rank's negatives; adds them to `local` (max and sum) and to the unnormalised gradient of the hidden
  /// states, `accumulator` [T, D]. hidden: [T, D] float32, own: this rank's real ids.
  template <class T>
  void forward(const Context& context, const LossBatch& batch, MatrixView<const float> hidden,
               MatrixView<const T> weight, Range own, std::int64_t vocab_size, const LossOptions& options,
               VectorView<TokenStatistics> local, MatrixView<float> accumulator);

  /// d_weight += delta^T H on the negatives' rows. Consumes the logits.
  void backward(const Context& context, MatrixView<const float> hidden, const CombinedStatistics& statistics,
                VectorView<const float> weights, MatrixView<float> d_weight);

  [[nodiscard]] bool empty() const { return logits_.cols == 0; }

 private:
  struct Tile {
    std::int64_t token_begin = 0, token_end = 0;
    std::int64_t member_begin = 0, member_end = 0;  // into members_
    float raise = 0.0f;
  };
  void find_members(const Context& context, const LossBatch& batch, Range own, std::int64_t vocab_size);
  void add_token(const Tile& tile, std::int64_t token, VectorView<float> factors, TokenStatistics& local,
                 VectorView<float> accumulator) const;
  void set_members(const Tile& tile, VectorView<float> row, float value) const;
  [[nodiscard]] std::int64_t num_kept(const Tile& tile) const {
    return logits_.cols - (tile.member_end - tile.member_begin);
  }

  LossOptions options_;
  Range own_;
  VectorView<const std::int32_t> ids_;      // [n on this rank] global ids
  VectorView<const Tile> tiles_;            // [tiles]
  VectorView<const std::int32_t> tile_of_;  // [T]
  VectorView<const std::int32_t> members_;  // columns of ids_ that are candidates of their tile
  MatrixView<float> logits_;                // [T, n on this rank], not raised
};

}  // namespace reprise
