#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "loss/loss.hpp"
#include "loss/selected_rows.hpp"

namespace reprise {

// Logits of the whole vocabulary, a block of tokens x vocabulary rows at a time: what full cross-entropy, the probe of
// probability outside the candidates and evaluation walk over. No [T, V] buffer exists.

/// How much of T x V_local may live at once, in logits.
struct LogitBudget {
  std::int64_t block_tokens = 1024;
  std::int64_t block_logits = std::int64_t{1} << 20;
  std::int64_t min_block_ids = 512;
  std::int64_t kept_logits = std::int64_t{16} << 20;  ///< up to which all blocks are kept: 64 MiB
};
/// Blocks that stay in the caches of a CPU; on a GPU, blocks whose products fill it (128 MiB of logits, 1 GiB kept).
[[nodiscard]] LogitBudget default_logit_budget(bool gpu);

/// How T x V_local logits are cut: all of a block's logits live at once, the blocks only when they fit a budget.
struct LogitBlocks {
  std::int64_t tokens = 0;  ///< tokens per block
  std::int64_t ids = 0;     ///< vocabulary rows per block
  bool kept = false;        ///< forward may keep every block for backward, which otherwise computes them again
};
[[nodiscard]] LogitBlocks plan_logit_blocks(std::int64_t tokens, std::int64_t ids, const LogitBudget& budget = {});

/// logits [tokens, ids of this block] = softcap(logit_scale h W^T) in float32. Operand: float, or BFloat16 on a GPU.
template <class Operand>
void block_logits(const Stream& stream, MatrixView<const Operand> hidden, MatrixView<const Operand> rows,
                  const LossOptions& options, MatrixView<float> logits);

/// Tokens [token_begin, ...) x ids [id_begin, ...), counted from the first of `weight`.
template <class Operand>
struct LogitBlock {
  std::int64_t token_begin, id_begin;
  MatrixView<const Operand> hidden;  ///< [tokens of the block, D]
  MatrixView<const Operand> rows;    ///< [ids of the block, D]
  MatrixView<float> logits;          ///< [tokens of the block, ids of the block], to be filled by block_logits
};

/// body.operator()<Operand>(): products take float32 operands on the CPU, the storage type T on a GPU.
template <class T, class Body>
void with_operand(const Stream& stream, const Body& body) {
  if (stream.is_cpu()) {
    body.template operator()<float>();
  } else {
    body.template operator()<T>();
  }
}

/// x as an operand of products: itself where it is of that type, else a float32 copy in arena memory.
template <class Operand, class T>
[[nodiscard]] MatrixView<const Operand> as_operand(const Context& context, MatrixView<const T> x) {
  if constexpr (std::is_same_v<Operand, T>) {
    return x;
  } else {
    return as_float(context, x);
  }
}

/// Calls body(LogitBlock) for hidden [T, D] x weight [V_local, D] (real ids alone), vocabulary outside (a block of W is
/// widened once), tokens inside, always in the same order. The blocks' logits stand one behind the other in `kept`
/// [T V_local]; without it they share one scratch of the arena.
template <class Operand, class T, class Body>
void for_each_logit_block(const Context& context, const LogitBlocks& blocks, MatrixView<const Operand> hidden,
                          MatrixView<const T> weight, VectorView<float> kept, const Body& body) {
  std::int64_t done = 0;
  for (std::int64_t first = 0; first < weight.rows; first += blocks.ids) {
    const std::int64_t ids = std::min(blocks.ids, weight.rows - first);
    const Arena::Scope scope(context.arena);
    const auto rows = as_operand<Operand>(context, weight.row_range(first, ids));
    VectorView<float> scratch;
    if (kept.empty()) {
      scratch = context.arena.vector<float>(std::min(hidden.rows, blocks.tokens) * ids, "block of logits");
    }
    for (std::int64_t begin = 0; begin < hidden.rows; begin += blocks.tokens) {
      const std::int64_t count = std::min(blocks.tokens, hidden.rows - begin);
      const VectorView<float> place = kept.empty() ? scratch : kept.slice(done, count * ids);
      body(LogitBlock<Operand>{begin, first, hidden.row_range(begin, count), rows, {place.data, count, ids}});
      done += count * ids;
    }
  }
}

}  // namespace reprise
