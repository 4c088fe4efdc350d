#include <algorithm>
#include <array>
#include <type_traits>

#include "core/math.hpp"
#include "loss/head_kernels.hpp"
#include "loss/restricted_head.hpp"

namespace reprise {

namespace {

// What fills a GPU of today (132 to 148 multiprocessors) several times over. Constants, so that the order of sums does
// not depend on the GPU.
constexpr std::int64_t kBlocksWanted = 528;
constexpr std::int64_t kLeastPieceIds = 64, kMostPieceIds = 2048;

enum Kernel : std::uint8_t { kTokenHead, kTileHead, kPlainHead, kWideHead8, kWideHead32, kWideHead64, kKernels };

constexpr bool is_wide(Kernel kernel) {
  return kernel >= kWideHead8;
}
constexpr std::int64_t wide_tokens(Kernel kernel) {
  return kernel == kWideHead8 ? 8 : kernel == kWideHead32 ? 32 : 64;
}

/// Tokens of one tile that pass over its rows together.
struct Unit {
  const LocalTile& tile;
  std::int64_t token_begin, tokens;
  Kernel kernel;
};

/// Cuts tiles into units, units into pieces, and keeps one list of pieces for each kernel.
template <class T>
class HeadPlan {
 public:
  HeadPlan(const Context& context, HostArrays& host_arrays, const HeadVisit<T>& visit,
           const HeadArguments<T>& arguments)
      : depth_(visit.weight.cols), is_aligned_(has_aligned_rows(arguments)) {
    std::int64_t ids = 0;
    for_each_unit(visit.candidates, [&](const Unit& unit) { ids += unit.tile.num_ids(); });
    piece_ids_ = std::clamp(round_up(ceil_div(ids, kBlocksWanted), 16), kLeastPieceIds, kMostPieceIds);
    for_each_unit(visit.candidates, [&](const Unit& unit) { count(unit); });
    for (auto& list : lists_) list.allocate(context, host_arrays);
    merges_ = host_arrays.vector<HeadMerge>(context.stream, num_merges_, "merges of the head");
    num_parts_ = num_merges_ = 0;
    for_each_unit(visit.candidates, [&](const Unit& unit) { add(unit); });
    for (auto& list : lists_) list.copy(context, host_arrays);
    device_merges_ = host_arrays.on_device<HeadMerge>(context.stream, merges_);
    host_arrays.make_ready(context.stream);
  }

  [[nodiscard]] HeadPieces pieces(Kernel kernel) const { return lists_[kernel].on_device; }
  [[nodiscard]] HeadPieces wide_units(Kernel kernel) const { return lists_[kKernels + kernel].on_device; }
  [[nodiscard]] std::int64_t wide_rows(Kernel kernel) const { return wide_rows_[kernel]; }
  [[nodiscard]] VectorView<const HeadMerge> merges() const { return device_merges_; }
  [[nodiscard]] std::int64_t num_parts() const { return num_parts_; }

 private:
  struct List {
    std::int64_t size = 0;
    VectorView<HeadPiece> host;
    HeadPieces on_device;

    void allocate(const Context& context, HostArrays& host_arrays) {
      host = host_arrays.vector<HeadPiece>(context.stream, size, "pieces of the head");
      size = 0;
    }
    void copy(const Context& context, HostArrays& host_arrays) {
      on_device = host_arrays.on_device<HeadPiece>(context.stream, host);
    }
  };

  [[nodiscard]] Kernel choose_kernel(std::int64_t tokens) const {
    if (!is_aligned_) return kPlainHead;
    if (tokens == 1 && depth_ <= kMaxTokenHeadDepth) return kTokenHead;
    if (std::is_same_v<T, float>) return kPlainHead;
    if (tokens > 32) return kWideHead64;
    if (tokens > 2 * kTileTokens) return kWideHead32;
    return depth_ <= kMaxTileHeadDepth ? kTileHead : kWideHead8;
  }
  template <class Body>
  void for_each_unit(const LocalCandidates& candidates, const Body& body) const {
    for (const LocalTile& tile : candidates.tiles) {
      for (std::int64_t t = tile.token_begin; t < tile.token_end;) {
        const Kernel kernel = choose_kernel(std::min(tile.token_end - t, kWideTokens));
        const std::int64_t most = kernel == kTokenHead ? 1 : is_wide(kernel) ? wide_tokens(kernel) : kTileTokens;
        const std::int64_t tokens = std::min(most, tile.token_end - t);
        body(Unit{tile, t, tokens, kernel});
        t += tokens;
      }
    }
  }
  [[nodiscard]] std::int64_t num_pieces(const Unit& unit) const {
    if (is_wide(unit.kernel)) return ceil_div(unit.tile.num_ids(), kWideLogitIds);
    return std::max<std::int64_t>(ceil_div(unit.tile.num_ids(), piece_ids_), 1);  // no ids: a piece to say so
  }
  void count(const Unit& unit) {
    const std::int64_t pieces = num_pieces(unit);
    lists_[unit.kernel].size += pieces;
    if (is_wide(unit.kernel)) {
      ++lists_[kKernels + unit.kernel].size;
    } else if (pieces > 1) {
      ++num_merges_;
    }
  }
  void add(const Unit& unit) {
    const std::int64_t pieces = num_pieces(unit);
    const auto tokens = narrow<std::int32_t>(unit.tokens);
    if (is_wide(unit.kernel)) {
      add_piece(lists_[kKernels + unit.kernel], unit, 0, unit.tile.num_ids(), wide_rows_[unit.kernel]);
      wide_rows_[unit.kernel] += unit.tile.num_ids();
      for (std::int64_t i = 0; i < pieces; ++i)
        add_piece(lists_[unit.kernel], unit, i * kWideLogitIds, kWideLogitIds, 0);
      return;
    }
    if (pieces == 1) return add_piece(lists_[unit.kernel], unit, 0, piece_ids_, -1);
    merges_[num_merges_++] = {narrow<std::int32_t>(unit.token_begin), tokens, narrow<std::int32_t>(num_parts_),
                              narrow<std::int32_t>(pieces)};
    for (std::int64_t i = 0; i < pieces; ++i, num_parts_ += tokens) {
      add_piece(lists_[unit.kernel], unit, i * piece_ids_, piece_ids_, num_parts_);
    }
  }
  static void add_piece(List& list, const Unit& unit, std::int64_t first, std::int64_t most, std::int64_t part) {
    const LocalTile& tile = unit.tile;
    list.host[list.size++] = {.id_begin = tile.id_begin + first,
                              .logits = tile.logits + first * tile.tokens() + (unit.token_begin - tile.token_begin),
                              .num_ids = narrow<std::int32_t>(std::min(most, tile.num_ids() - first)),
                              .logits_stride = narrow<std::int32_t>(tile.tokens()),
                              .token_begin = narrow<std::int32_t>(unit.token_begin),
                              .tokens = narrow<std::int32_t>(unit.tokens),
                              .part = narrow<std::int32_t>(part)};
  }

  std::int64_t depth_;
  bool is_aligned_;
  std::int64_t piece_ids_ = 0;
  std::array<List, 2 * kKernels> lists_;  // pieces by kernel, then the wide kernels' whole units
  std::array<std::int64_t, kKernels> wide_rows_{};
  VectorView<HeadMerge> merges_;
  VectorView<const HeadMerge> device_merges_;
  std::int64_t num_merges_ = 0, num_parts_ = 0;
};

template <class T>
HeadArguments<T> make_arguments(const HeadVisit<T>& visit) {
  return {.hidden = visit.hidden.stored,
          .weight = visit.weight,
          .ids = visit.candidates.device_ids.data,
          .first_id = visit.candidates.own.begin,
          .rule = visit.rule,
          .logits = visit.logits.data,
          .results = {visit.accumulator, visit.statistics.data},
          .parts = {}};
}

}  // namespace

template <class T>
void visit_candidates(const CudaStream& stream, const Context& context, HostArrays& host_arrays,
                      const HeadVisit<T>& visit) {
  const Arena::Scope scope(context.arena);
  HeadArguments<T> head = make_arguments(visit);
  const HeadPlan<T> plan(context, host_arrays, visit, head);
  head.parts.accumulator =
      context.arena.matrix<float>(plan.num_parts(), visit.weight.cols, "parts of unnormalised gradients");
  head.parts.statistics = context.arena.vector<TokenStatistics>(plan.num_parts(), "parts of softmax statistics").data;
  token_head<T>(stream, head, plan.pieces(kTokenHead));
  plain_head<T>(stream, head, plan.pieces(kPlainHead));
  if constexpr (std::is_same_v<T, BFloat16>) {
    tile_head(stream, head, plan.pieces(kTileHead));
    for (const Kernel kernel : {kWideHead8, kWideHead32, kWideHead64}) {
      const Arena::Scope factors_scope(context.arena);
      const auto factors =
          context.arena.vector<BFloat16>(plan.wide_rows(kernel) * wide_tokens(kernel), "factors of tiles");
      wide_tile_head(stream, head, wide_tokens(kernel), plan.wide_units(kernel), plan.pieces(kernel), factors);
    }
  }
  merge_head_parts(stream, plan.merges(), kTileTokens, head.parts, head.results);
}

template void visit_candidates(const CudaStream&, const Context&, HostArrays&, const HeadVisit<float>&);
template void visit_candidates(const CudaStream&, const Context&, HostArrays&, const HeadVisit<BFloat16>&);

}  // namespace reprise
