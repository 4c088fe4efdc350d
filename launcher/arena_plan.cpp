#include "launcher/arena_plan.hpp"

#include <string_view>

#include "loss/candidate_gradient.hpp"
#include "loss/head_unit.hpp"
#include "loss/logit_blocks.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kFloat = sizeof(float), kInt = sizeof(std::int32_t), kLong = sizeof(std::int64_t);

/// Whether the layout leaves a gap between some matrix with this name and the next one.
bool has_gap_behind(const RunShape& run, std::string_view name) {
  for (std::size_t i = 0; i + 1 < run.base.size(); ++i) {
    if (!run.base[i].name.ends_with(name)) continue;
    if (run.base_layout.slots[i].begin + run.base[i].size() != run.base_layout.slots[i + 1].begin) return true;
  }
  return false;
}

/// Takes from `arena_` what one micro-batch takes, function by function: DecoderModel, DecoderLayer, the losses.
class MicroBatchPlan {
 public:
  MicroBatchPlan(const RunShape& run, const RankDevice& device, const MicroBatchShape& batch, Recompute recompute)
      : run_(run),
        device_(device),
        batch_(batch),
        recompute_(recompute),
        sharded_(run.sequence_parallel),
        rows_(sharded_ ? ceil_div(batch.tokens, run.tensor) : batch.tokens),
        residual_(rows_ * run.model.hidden_size * run.element_bytes),
        whole_(batch.tokens * run.model.hidden_size * run.element_bytes),
        q_(batch.tokens * run.heads * run.model.head_dim * run.element_bytes),
        kv_(batch.tokens * run.kv_heads * run.model.head_dim * run.element_bytes),
        ffn_(batch.tokens * run.ffn * run.element_bytes),
        joins_qkv_(has_gap_behind(run, "q_proj.weight") || has_gap_behind(run, "k_proj.weight")),
        joins_gate_up_(has_gap_behind(run, "gate_proj.weight")) {}

  void forward();
  void loss(PlannedLoss kind, bool backward);
  void backward(std::int64_t reduction);
  [[nodiscard]] std::int64_t high_water() const { return arena_.high_water(); }

 private:
  using Scope = ArenaPlan::Scope;

  void forward_layer(bool selective);
  void recompute_layer();
  void attention_block(bool selective);
  void backward_layer(bool selective);
  void normed() {
    take(rows_ * kFloat);
    take(whole_);
  }
  void rotated() {
    if (!run_.model.qk_norm) return;
    take(q_ + kv_);
    take(batch_.tokens * (run_.heads + run_.kv_heads) * kFloat);
  }
  void partial() {
    if (sharded_) take(whole_);
  }
  void gathered() { partial(); }
  void attention_scratch(bool backward);
  void norm_partials(std::int64_t rows, std::int64_t cols);
  /// Of a product with several matrices that do not touch, and of its adapters.
  void joined(bool joins, std::int64_t outputs, std::int64_t element_bytes) {
    if (joins) take(outputs * run_.model.hidden_size * element_bytes);
  }
  void adapters(std::int64_t matrices, std::int64_t outputs) {
    const Scope scope(arena_);
    take(batch_.tokens * matrices * run_.lora_rank * run_.element_bytes);
    if (matrices > 1) take(outputs * matrices * run_.lora_rank * kFloat);
  }
  [[nodiscard]] std::int64_t qkv_outputs() const { return (run_.heads + 2 * run_.kv_heads) * run_.model.head_dim; }

  void selected_rows();
  void scatter_gradient();
  void statistics();
  void full(bool backward);
  void full_blocks(const LogitBlocks& blocks, bool is_backward);
  void restricted();
  void candidate_gradient();
  void candidate_gradient_cuda();
  void negatives_forward();
  void negatives_backward();
  [[nodiscard]] std::int64_t operand_bytes() const { return device_.gpu ? run_.element_bytes : kFloat; }
  [[nodiscard]] std::int64_t own_targets() const {
    return sharded_ ? ceil_div(batch_.targets, run_.tensor) : batch_.targets;
  }

  void take(std::int64_t bytes) { arena_.take(bytes); }

  const RunShape& run_;
  const RankDevice& device_;
  const MicroBatchShape& batch_;
  Recompute recompute_;
  bool sharded_;
  std::int64_t rows_;
  std::int64_t residual_, whole_;  ///< bytes of [local tokens, hidden] and [tokens, hidden]
  std::int64_t q_, kv_, ffn_;      ///< bytes of [tokens, ...] of this rank
  bool joins_qkv_, joins_gate_up_;
  ArenaPlan arena_;
};

// ---- model ---------------------------------------------------------------------------------------------------------

void MicroBatchPlan::forward() {
  take((2 * batch_.tokens + batch_.longest) * kInt);    // ids, positions, rows of the rotary table
  take(batch_.longest * run_.model.head_dim * kFloat);  // the table
  take(residual_);                                      // embedded tokens
  {
    const Scope scope(arena_);
    partial();
  }
  take(residual_);  // the MLP's output
  const bool keeps_layers = recompute_ == Recompute::kNone || recompute_ == Recompute::kSelective;
  for (std::int64_t i = 0; i < run_.model.num_layers; ++i) {
    if (i == 1 || (i > 1 && recompute_ != Recompute::kNoBackward)) take(residual_);  // input
    if (i == 0 || keeps_layers) take(residual_);                                     // middle
    const Scope scope(arena_, !keeps_layers);
    forward_layer(recompute_ == Recompute::kSelective);
  }
  take(residual_);  // the last residual, its norm and the hidden states
  take(rows_ * kFloat);
  take(residual_);
}

void MicroBatchPlan::forward_layer(bool selective) {
  take(q_ + 2 * kv_);
  {
    const Scope scope(arena_, selective);
    normed();
    const Scope weights(arena_);
    joined(joins_qkv_, qkv_outputs(), run_.element_bytes);
  }
  attention_block(selective);
  const Scope scope(arena_, selective);
  take(ffn_);
  const Scope partial_scope(arena_);
  partial();
}

void MicroBatchPlan::recompute_layer() {
  take(q_ + 2 * kv_);
  normed();
  {
    const Scope weights(arena_);
    joined(joins_qkv_, qkv_outputs(), run_.element_bytes);
  }
  attention_block(false);
  take(ffn_);
}

void MicroBatchPlan::attention_block(bool selective) {
  take(q_);
  take(batch_.tokens * run_.heads * kFloat);
  {
    const Scope scope(arena_, selective);
    rotated();
    attention_scratch(false);
  }
  take(2 * ffn_);
  const Scope scope(arena_, selective);
  normed();
  {
    const Scope output(arena_);
    take(residual_);
    partial();
  }
  const Scope weights(arena_);
  joined(joins_gate_up_, 2 * run_.ffn, run_.element_bytes);
}

/// On a CPU every thread has a head's blocks; on a GPU there are lists of tiles, and backward's row sums.
void MicroBatchPlan::attention_scratch(bool backward) {
  constexpr std::int64_t kRowUnit = 16, kPanel = 64, kForwardBlock = 32 * (512 + 32), kBackwardBlock = 2 * 64 * 64;
  const Scope scope(arena_);
  const std::int64_t dim = run_.model.head_dim, padded = round_up(dim, kRowUnit), longest = batch_.longest;
  if (device_.gpu) {
    constexpr std::int64_t kTile = 64, kTileBytes = 32;
    if (backward) take(batch_.tokens * run_.heads * kFloat);
    take((backward ? 2 : 1) * ceil_div(batch_.tokens * run_.heads, kTile) * kTileBytes);
    return;
  }
  const std::int64_t floats =
      backward ? 5 * longest * padded + round_up(longest, kRowUnit) + kPanel * (2 * dim + padded) + kBackwardBlock
               : round_up(longest, kPanel) * (dim + padded) + 64 * padded + kForwardBlock;
  const std::int64_t documents = ceil_div(batch_.tokens, std::max<std::int64_t>(1, longest));
  const std::int64_t units = documents * (backward ? run_.kv_heads : run_.heads);
  take(std::min<std::int64_t>(device_.threads, units) * round_up(floats, kRowUnit) * kFloat);
}

/// Column sums of a norm's weight gradient, one row a block of a GPU.
void MicroBatchPlan::norm_partials(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kRowsOfABlock = 16;
  const Scope scope(arena_);
  if (device_.gpu) take(ceil_div(rows, kRowsOfABlock) * cols * kFloat);
}

void MicroBatchPlan::backward(std::int64_t reduction) {
  const Scope scope(arena_);
  take(residual_);  // the residual's gradient
  {
    const Scope reduced(arena_);
    take(reduction);
  }
  norm_partials(rows_, run_.model.hidden_size);
  if (run_.model.num_layers > 0) {
    const Scope layer(arena_);
    if (recompute_ == Recompute::kLayer) {
      take(residual_);  // middle
      recompute_layer();
    }
    backward_layer(recompute_ == Recompute::kSelective);
  }
  if (run_.adapts()) return;
  take(2 * batch_.tokens * kInt);  // the embedding's order
  gathered();
}

void MicroBatchPlan::backward_layer(bool selective) {
  {
    const Scope mlp(arena_);
    gathered();
    take(ffn_);  // d_product
    {
      const Scope product(arena_);
      if (selective) take(ffn_);
    }
    take(2 * ffn_);
    take(whole_);
    if (selective) normed();
    {
      const Scope weights(arena_);
      joined(joins_gate_up_, 2 * run_.ffn, run_.adapts() ? run_.element_bytes : kFloat);  // gradient, or weights
    }
    adapters(2, 2 * run_.ffn);
    norm_partials(rows_, run_.model.hidden_size);
  }
  const Scope attention(arena_);
  gathered();
  take(q_);            // d_attended
  take(q_ + 2 * kv_);  // d_qkv
  if (selective) rotated();
  attention_scratch(true);
  if (run_.model.qk_norm) norm_partials(batch_.tokens * run_.heads, run_.model.head_dim);
  take(whole_);
  if (selective) normed();
  {
    const Scope shared(arena_);
    if (run_.kv_replicas > 1) take(2 * kv_);
  }
  {
    const Scope weights(arena_);
    joined(joins_qkv_, qkv_outputs(), run_.adapts() ? run_.element_bytes : kFloat);
  }
  adapters(3, qkv_outputs());
  norm_partials(rows_, run_.model.hidden_size);
}

// ---- loss ----------------------------------------------------------------------------------------------------------

void MicroBatchPlan::loss(PlannedLoss kind, bool backward) {
  if (backward) take(residual_);  // gradient of the hidden states
  if (kind == PlannedLoss::kFull) full(backward);
  if (kind == PlannedLoss::kRestricted) restricted();
}

/// The selected hidden states, where products want float32 (bfloat16 on a CPU) with a copy in it, and what goes with
/// every target: gold and weight.
void MicroBatchPlan::selected_rows() {
  const std::int64_t targets = batch_.targets, elements = targets * run_.model.hidden_size;
  take(own_targets() * kInt);
  take(elements * run_.element_bytes);
  take(targets * kInt);
  if (!device_.gpu && run_.element_bytes != kFloat) take(elements * kFloat);
  take(targets * kInt);
  take(targets * kFloat);
}

void MicroBatchPlan::scatter_gradient() {
  if (!sharded_) return;
  const Scope scope(arena_);
  const std::int64_t own = own_targets() * run_.model.hidden_size;
  take(own * run_.element_bytes);
  take(run_.tensor * own * run_.element_bytes);
  take(own * kFloat);
}

void MicroBatchPlan::statistics() {
  take(batch_.targets * kFloat);
  take(batch_.targets * kFloat);
  const Scope scope(arena_);
  take(run_.tensor * batch_.targets * 3 * kFloat);
  take(batch_.targets * kInt);
}

void MicroBatchPlan::full(bool backward) {
  const std::int64_t targets = batch_.targets, hidden = run_.model.hidden_size;
  const LogitBlocks blocks = plan_logit_blocks(targets, run_.vocab_rows, default_logit_budget(device_.gpu));
  selected_rows();
  take(targets * kFloat);  // losses
  if (blocks.kept) take(targets * run_.vocab_rows * kFloat);
  take(targets * 3 * kFloat);
  full_blocks(blocks, false);
  statistics();
  if (!backward) return;
  const Scope scope(arena_);
  take(targets * hidden * kFloat);
  full_blocks(blocks, true);
  take(targets * hidden * run_.element_bytes);
  scatter_gradient();
}

void MicroBatchPlan::full_blocks(const LogitBlocks& blocks, bool is_backward) {
  const Scope scope(arena_);
  const std::int64_t block = std::min(batch_.targets, blocks.tokens) * blocks.ids;
  if (operand_bytes() != run_.element_bytes) take(blocks.ids * run_.model.hidden_size * kFloat);
  if (!blocks.kept) take(block * kFloat);
  if (is_backward && operand_bytes() != kFloat) take(block * operand_bytes());
}

void MicroBatchPlan::restricted() {
  const std::int64_t targets = batch_.targets, hidden = run_.model.hidden_size;
  selected_rows();
  take(batch_.logits * kFloat);
  take(targets * hidden * kFloat);  // unnormalised gradient
  take(targets * kFloat);
  take(targets * 3 * kFloat);
  {
    const Scope scope(arena_);
    if (device_.gpu) {
      // Parts of long sets, and the wide kernels' factors.
      constexpr std::int64_t kParts = 528 * 8;
      take(std::min(targets * 2, kParts) * (hidden + 3) * kFloat);
      take(batch_.logits * run_.element_bytes);
    } else {
      constexpr std::int64_t kUnitTokens = 64, kWidth = 16, kUnitBytes = 24;
      take(batch_.targets * kUnitBytes);
      take(device_.threads * 2 * kUnitTokens * round_up(hidden, kWidth) * kFloat);
    }
  }
  negatives_forward();
  statistics();
  {
    const Scope scope(arena_);
    if (run_.element_bytes != kFloat) take(targets * hidden * run_.element_bytes);
    scatter_gradient();
  }
  if (run_.adapts()) return;  // a frozen head has no gradient
  {
    const Scope scope(arena_);
    if (device_.gpu) {
      candidate_gradient_cuda();
    } else {
      candidate_gradient();
    }
  }
  negatives_backward();
}

/// One segment: its rows, their places, a packed panel of hidden states, and entries by row or sums of rows.
void MicroBatchPlan::candidate_gradient() {
  constexpr std::int64_t kEntry = 8;  // bytes
  const std::int64_t targets = std::max<std::int64_t>(1, batch_.targets);
  const bool by_tile = batch_.logits >= 3 * batch_.candidates;
  const std::int64_t tokens =
      std::min(targets, segment_tokens(by_tile ? GradientOrder::kByTile : GradientOrder::kByRow));
  const auto share = [&](std::int64_t whole) { return whole * tokens / targets; };
  const std::int64_t ids = share(batch_.candidates), listed = std::min(ids, run_.vocab_rows);
  const std::int64_t rows = batch_.segment_rows > 0 ? std::min(batch_.segment_rows, listed) : listed;
  take(ids * kInt);
  take(listed * kLong);
  {
    const Scope scope(arena_);
    take(run_.vocab_rows * kInt);
  }
  take(round_up(run_.model.hidden_size, kPanelColumns) * tokens * kFloat);
  if (!by_tile) {
    take(rows * kLong);
    take(share(batch_.logits) * kEntry);
    return;
  }
  const std::int64_t parts = ceil_div(std::int64_t{device_.threads}, ceil_div(run_.model.hidden_size, kPanelColumns));
  take(device_.threads * ceil_div(rows, parts) * kPanelColumns * kFloat);
}

/// Rows that are listed often, as a product: dense deltas of a segment and the rows' sums.
void MicroBatchPlan::candidate_gradient_cuda() {
  constexpr std::int64_t kSegment = 8192, kDenseRows = 2048;
  const std::int64_t rows = std::min({kDenseRows, run_.vocab_rows, batch_.candidates});
  take(std::min(batch_.targets, kSegment) * rows * run_.element_bytes);
  take(rows * run_.model.hidden_size * kFloat);
}

void MicroBatchPlan::negatives_forward() {
  constexpr std::int64_t kChunk = 1024;
  const std::int64_t negatives = ceil_div(run_.config.replay.negatives, run_.tensor);
  if (negatives == 0) return;
  take(negatives * kInt);
  take(batch_.targets * kInt);
  take(batch_.targets * negatives * kFloat);
  const Scope scope(arena_);
  take(negatives * run_.model.hidden_size * operand_bytes());
  take(std::min(kChunk, batch_.targets) * negatives * operand_bytes());
}

void MicroBatchPlan::negatives_backward() {
  const std::int64_t negatives = ceil_div(run_.config.replay.negatives, run_.tensor);
  const Scope scope(arena_);
  if (operand_bytes() != kFloat) take(batch_.targets * negatives * operand_bytes());
  take(negatives * run_.model.hidden_size * kFloat);
}

}  // namespace

std::int64_t plan_training(const RunShape& run, const RankDevice& device, const MicroBatchShape& batch,
                           PlannedLoss loss, std::int64_t reduction) {
  MicroBatchPlan plan(run, device, batch, recompute_of(run.config));
  plan.forward();
  plan.loss(loss, true);
  plan.backward(reduction);
  return plan.high_water();
}

std::int64_t plan_evaluation(const RunShape& run, const RankDevice& device, const MicroBatchShape& batch) {
  MicroBatchPlan plan(run, device, batch, Recompute::kNoBackward);
  plan.forward();
  plan.loss(PlannedLoss::kFull, false);
  return plan.high_water();
}

}  // namespace reprise
