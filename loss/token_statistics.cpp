#include "loss/token_statistics.hpp"

#include <algorithm>

namespace reprise {

namespace {

int owner_of(const VocabPartition& vocab, std::int64_t id) {
  const auto above = std::upper_bound(vocab.bounds.begin(), vocab.bounds.end(), id);
  return static_cast<int>(above - vocab.bounds.begin()) - 1;
}

}  // namespace

CombinedStatistics combine_statistics(const Context& context, const VocabPartition& vocab, const LossBatch& batch,
                                      VectorView<const TokenStatistics> local, VectorView<float> token_loss) {
  static_assert(sizeof(TokenStatistics) == 3 * sizeof(float));
  const std::int64_t tokens = local.size;
  const int ranks = context.groups.tp_size();
  CombinedStatistics combined{context.arena.vector<float>(tokens, "softmax maxima"),
                              context.arena.vector<float>(tokens, "softmax sums")};
  const Arena::Scope scope(context.arena);
  std::vector<std::int32_t> owner(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    owner[static_cast<std::size_t>(t)] = batch.gold[t] == kIgnoredGold ? -1 : owner_of(vocab, batch.gold[t]);
  }
  const auto gathered = context.arena.matrix<TokenStatistics>(ranks, tokens, "softmax statistics of all ranks");
  context.groups.tp->all_gather<float>(context.stream, {reinterpret_cast<const float*>(local.data), 3 * tokens},
                                       {reinterpret_cast<float*>(gathered.data), 3 * tokens * ranks});
  combine_ranks(context.stream, gathered, context.arena.copy<std::int32_t>(owner), combined.max, combined.inverse_sum,
                token_loss);
  return combined;
}

}  // namespace reprise
