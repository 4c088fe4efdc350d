#include "layers/vocab_parallel_embedding.hpp"

#include <algorithm>

#include "layers/token_shards.hpp"

namespace reprise {

template <class T>
VocabParallelEmbedding<T>::VocabParallelEmbedding(ParameterSet<T>& parameters, const VocabPartition& vocab,
                                                  std::int64_t hidden_size, int tp_rank)
    : parameters_(&parameters), ids_(vocab.rows(tp_rank)) {
  ParameterSpec spec;
  spec.name = "model.embed_tokens.weight";
  spec.layer = "embedding";
  spec.global_rows = vocab.bounds.back();
  spec.global_cols = spec.col_end = hidden_size;
  spec.row_begin = ids_.begin;
  spec.row_end = ids_.end;
  weight_ = parameters.add(spec);
}

template <class T>
MatrixView<T> VocabParallelEmbedding<T>::forward(const Context& context, VectorView<const std::int32_t> tokens) const {
  const MatrixView<const T> weight = parameters_->value(weight_);
  const std::int64_t rows = local_tokens(context, tokens.size).size();
  const MatrixView<T> output = context.arena.matrix<T>(rows, weight.cols, "embedded tokens");
  const Arena::Scope scope(context.arena);
  const MatrixView<T> partial = partial_tokens(context, output, tokens.size);
  context.stream.cpu().parallel_for(tokens.size, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const VectorView<T> row = partial.row(t);
      if (ids_.begin <= tokens[t] && tokens[t] < ids_.end) {
        const VectorView<const T> from = weight.row(tokens[t] - ids_.begin);
        std::copy(from.begin(), from.end(), row.begin());
      } else {
        std::fill(row.begin(), row.end(), T(0.0f));
      }
    }
  });
  reduce_tokens(context, partial, output);
  return output;
}

template <class T>
void VocabParallelEmbedding<T>::backward(const Context& context, VectorView<const std::int32_t> tokens,
                                         MatrixView<T> d_output) const {
  const Arena::Scope scope(context.arena);
  const MatrixView<T> gradient = gather_tokens(context, d_output, tokens.size);
  // (id, token) pairs of our rows in one sortable number each; a run of one id is summed by one thread in token order.
  const VectorView<std::uint64_t> keys = context.arena.vector<std::uint64_t>(tokens.size, "embedding order");
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < tokens.size; ++t) {
    if (tokens[t] < ids_.begin || tokens[t] >= ids_.end) continue;
    keys[count++] = (static_cast<std::uint64_t>(tokens[t]) << 32) | static_cast<std::uint64_t>(t);
  }
  std::sort(keys.begin(), keys.begin() + count);
  const VectorView<std::int64_t> runs = context.arena.vector<std::int64_t>(count + 1, "embedding runs");
  std::int64_t run_count = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i == 0 || (keys[i] >> 32) != (keys[i - 1] >> 32)) runs[run_count++] = i;
  }
  runs[run_count] = count;

  const MatrixView<float> d_weight = parameters_->gradient(weight_);
  context.stream.cpu().parallel_for(run_count, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t run = begin; run < end; ++run) {
      float* row = d_weight.row(static_cast<std::int64_t>(keys[runs[run]] >> 32) - ids_.begin).data;
      for (std::int64_t i = runs[run]; i < runs[run + 1]; ++i) {
        const T* from = gradient.row(static_cast<std::int64_t>(keys[i] & 0xffffffffu)).data;
        for (std::int64_t c = 0; c < d_weight.cols; ++c) row[c] += static_cast<float>(from[c]);
      }
    }
  });
}

template class VocabParallelEmbedding<float>;
template class VocabParallelEmbedding<BFloat16>;

}  // namespace reprise
