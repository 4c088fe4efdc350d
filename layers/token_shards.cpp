#include "layers/token_shards.hpp"

#include <vector>

namespace reprise {

namespace {

bool is_sharded(const Context& context) {
  return context.sequence_parallel && context.groups.tp_size() > 1;
}

/// Elements of every rank's rows.
std::vector<std::int64_t> row_counts(const Context& context, std::int64_t tokens, std::int64_t cols) {
  const int ranks = context.groups.tp_size();
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks; ++r) counts.push_back(even_shard(tokens, ranks, r).size() * cols);
  return counts;
}

}  // namespace

Range local_tokens(const Context& context, std::int64_t tokens) {
  if (!is_sharded(context)) return {0, tokens};
  return even_shard(tokens, context.groups.tp_size(), context.groups.tp_rank());
}

template <class T>
MatrixView<T> gather_tokens(const Context& context, MatrixView<T> local, std::int64_t tokens) {
  if (!is_sharded(context)) return local;
  const MatrixView<T> full = context.arena.matrix<T>(tokens, local.cols, "gathered tokens");
  context.groups.tp->template all_gather<T>(context.stream, local.flat(), full.flat(),
                                            row_counts(context, tokens, local.cols));
  return full;
}

template <class T>
void gather_tokens_in_place(const Context& context, MatrixView<T> all) {
  if (!is_sharded(context)) return;
  const Range own = local_tokens(context, all.rows);
  context.groups.tp->template all_gather<T>(context.stream, all.row_range(own.begin, own.size()).flat(), all.flat(),
                                            row_counts(context, all.rows, all.cols));
}

template <class T>
MatrixView<T> partial_tokens(const Context& context, MatrixView<T> output, std::int64_t tokens) {
  return is_sharded(context) ? context.arena.matrix<T>(tokens, output.cols, "partial sums") : output;
}

template <class T>
void reduce_tokens(const Context& context, MatrixView<T> partial, MatrixView<T> output) {
  if (context.groups.tp_size() == 1) return;
  if (!is_sharded(context)) {
    context.groups.tp->all_reduce(context.stream, partial.flat());
    return;
  }
  context.groups.tp->template reduce_scatter<T>(context.stream, partial.flat(), output.flat(),
                                                row_counts(context, partial.rows, partial.cols));
}

#define REPRISE_INSTANTIATE(T)                                                           \
  template MatrixView<T> gather_tokens<T>(const Context&, MatrixView<T>, std::int64_t);  \
  template void gather_tokens_in_place<T>(const Context&, MatrixView<T>);                \
  template MatrixView<T> partial_tokens<T>(const Context&, MatrixView<T>, std::int64_t); \
  template void reduce_tokens<T>(const Context&, MatrixView<T>, MatrixView<T>);
REPRISE_INSTANTIATE(float)
REPRISE_INSTANTIATE(BFloat16)
#undef REPRISE_INSTANTIATE

}  // namespace reprise
