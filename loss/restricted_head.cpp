#include "loss/restricted_head.hpp"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "core/elementwise_kernels.hpp"
#include "core/math.hpp"
#include "loss/restricted_head_simd.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kUnitTokens = 64;  // tokens of a tile that visit its rows together
constexpr std::int64_t kMaxWidth = 16;    // floats of the widest vector

/// Tokens of one tile that visit the tile's rows together.
struct TokenUnit {
  std::int64_t tile, token_begin, tokens;
};

VectorView<const TokenUnit> cut_units(const Context& context, const LocalCandidates& candidates) {
  std::int64_t count = 0;
  for (const auto& tile : candidates.tiles) count += ceil_div(tile.tokens(), kUnitTokens);
  const auto units = context.arena.vector<TokenUnit>(count, "units of work");
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < candidates.tiles.size; ++i) {
    const auto& tile = candidates.tiles[i];
    for (std::int64_t t = tile.token_begin; t < tile.token_end; t += kUnitTokens) {
      units[next++] = {i, t, std::min(kUnitTokens, tile.token_end - t)};
    }
  }
  return units;
}

template <class T>
void visit_unit(const HeadVisit<T>& visit, const TokenUnit& unit, float* scratch) {
  const LocalTile& tile = visit.candidates.tiles[unit.tile];
  float max[kUnitTokens], sum_exp[kUnitTokens];
  using Storage = std::remove_cvref_t<decltype(*simd_pointer(visit.weight.data))>;
  const HeadUnit<Storage> work{.hidden = visit.hidden.single.row(unit.token_begin).data,
                               .tokens = unit.tokens,
                               .depth = visit.weight.cols,
                               .weight = simd_pointer(visit.weight.data),
                               .ids = visit.candidates.ids.data + tile.id_begin,
                               .num_ids = tile.num_ids(),
                               .first_id = visit.candidates.own.begin,
                               .scale = visit.rule.scale,
                               .softcap = visit.rule.softcap,
                               .logits = visit.logits.data + tile.logits + (unit.token_begin - tile.token_begin),
                               .logits_stride = tile.tokens(),
                               .accumulator = visit.accumulator.row(unit.token_begin).data,
                               .scratch = scratch,
                               .max = max,
                               .sum_exp = sum_exp};
  REPRISE_SIMD_CALL(head_forward, work);
  for (std::int64_t t = 0; t < unit.tokens; ++t) visit.statistics[unit.token_begin + t] = {max[t], sum_exp[t], 0.0f};
}

}  // namespace

template <class T>
void visit_candidates(const CpuStream& stream, const Context& context, HostArrays& /*host_arrays*/,
                      const HeadVisit<T>& visit) {
  const Arena::Scope scope(context.arena);
  const VectorView<const TokenUnit> units = cut_units(context, visit.candidates);
  // A worker takes the next unit that is left; which worker it is changes nothing but the scratch.
  const std::int64_t workers = stream.num_threads();
  const auto scratch =
      context.arena.matrix<float>(workers, 2 * kUnitTokens * round_up(visit.weight.cols, kMaxWidth), "units");
  std::atomic<std::int64_t> next = 0;
  stream.parallel_for(workers, 1, [&](std::int64_t worker, std::int64_t) {
    for (std::int64_t i = next++; i < units.size; i = next++) visit_unit(visit, units[i], scratch.row(worker).data);
  });
}

template void visit_candidates(const CpuStream&, const Context&, HostArrays&, const HeadVisit<float>&);
template void visit_candidates(const CpuStream&, const Context&, HostArrays&, const HeadVisit<BFloat16>&);

}  // namespace reprise
