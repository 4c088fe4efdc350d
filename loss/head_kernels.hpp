#pragma once

#include <cstdint>

#include "core/cuda_stream.hpp"
#include "core/dtype.hpp"
#include "core/view.hpp"
#include "loss/softmax.hpp"

namespace reprise {

// The CUDA kernels behind visit_candidates (restricted_head_cuda.cpp cuts the work and chooses among them).
//
//   token_head.cu      one token, float or bfloat16: rows pass once, 16 bytes at a time
//   tile_head.cu       2 to 8 tokens, bfloat16, D <= 4096: rows pass once, through tensor cores
//   wide_tile_head.cu  up to 64 tokens, bfloat16: a product for the logits, then one for the gradient
//   plain_head.cu      up to 8 tokens, float; and every D or alignment that the others do not take
//
// All work out, for their tokens and candidates, the logits z, the maximum m and the sum of exp(z - m), and
// A = sum of exp(z - m) dz/dx W. Sums run in the order of the candidates.

/// Candidates of some tokens of one tile that one block visits.
struct HeadPiece {
  std::int64_t id_begin;       ///< into the ids
  std::int64_t logits;         ///< offset of the logit of the first id and the first token
  std::int32_t num_ids;        ///< may be 0: the results are those of no candidate
  std::int32_t logits_stride;  ///< from one id's logits to the next: the tokens of the tile
  std::int32_t token_begin;
  std::int32_t tokens;
  std::int32_t part;  ///< row of the partial results for the first token; -1: the tokens' only piece
};

/// The pieces of some tokens: their partial results follow each other, `tokens` rows a piece.
struct HeadMerge {
  std::int32_t token_begin, tokens;
  std::int32_t part_begin, pieces;
};

/// By token, or by row of partial results.
struct HeadResults {
  MatrixView<float> accumulator;  ///< [rows, D]
  TokenStatistics* statistics;    ///< [rows]; gold_logit is set to 0
};

template <class T>
struct HeadArguments {
  MatrixView<const T> hidden;  ///< [T, D]
  MatrixView<const T> weight;  ///< this rank's rows of W
  const std::int32_t* ids;     ///< global
  std::int64_t first_id;       ///< of weight's first row
  LogitRule rule;
  float* logits;
  HeadResults results, parts;
};

using HeadPieces = VectorView<const HeadPiece>;

/// Whether rows of D elements of T can be read 16 bytes at a time from both matrices.
template <class T>
[[nodiscard]] bool has_aligned_rows(const HeadArguments<T>& head) {
  const auto is_aligned = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; };
  return head.weight.cols * static_cast<std::int64_t>(sizeof(T)) % 16 == 0 && is_aligned(head.weight.data) &&
         is_aligned(head.hidden.data);
}

/// Pieces of one token. Aligned rows, D <= kMaxTokenHeadDepth.
template <class T>
void token_head(const CudaStream& stream, const HeadArguments<T>& head, HeadPieces pieces);
inline constexpr std::int64_t kMaxTokenHeadDepth = 8192;

/// Pieces of up to kTileTokens tokens and kMostTileHeadIds ids. Aligned rows, D <= kMaxTileHeadDepth.
void tile_head(const CudaStream& stream, const HeadArguments<BFloat16>& head, HeadPieces pieces);
inline constexpr std::int64_t kTileTokens = 8;
inline constexpr std::int64_t kMaxTileHeadDepth = 4096;
inline constexpr std::int64_t kMostTileHeadIds = 2048;

/// Units of up to `most_tokens` (8, 32 or 64) tokens, whole (part = first row of `factors`, [ids, most_tokens]), and
/// the same cut into pieces of at most kWideLogitIds ids. Aligned rows.
void wide_tile_head(const CudaStream& stream, const HeadArguments<BFloat16>& head, std::int64_t most_tokens,
                    HeadPieces units, HeadPieces pieces, VectorView<BFloat16> factors);
inline constexpr std::int64_t kWideTokens = 64;
inline constexpr std::int64_t kWideLogitIds = 128;

/// Pieces of up to kTileTokens tokens, any D.
template <class T>
void plain_head(const CudaStream& stream, const HeadArguments<T>& head, HeadPieces pieces);

/// The tokens' results from those of their pieces, in order.
void merge_head_parts(const CudaStream& stream, VectorView<const HeadMerge> merges, std::int64_t most_tokens,
                      const HeadResults& parts, const HeadResults& results);

}  // namespace reprise
