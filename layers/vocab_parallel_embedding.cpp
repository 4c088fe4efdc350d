#include "layers/vocab_parallel_embedding.hpp"

#include "core/trace.hpp"
#include "layers/embedding_rows.hpp"
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
  const TraceRange range("embedding");
  const MatrixView<const T> weight = parameters_->value(weight_);
  const std::int64_t rows = local_tokens(context, tokens.size).size();
  const MatrixView<T> output = context.arena.matrix<T>(rows, weight.cols, "embedded tokens");
  const Arena::Scope scope(context.arena);
  const MatrixView<T> partial = partial_tokens(context, output, tokens.size);
  lookup_rows<T>(context.stream, weight, ids_, tokens, partial);
  reduce_tokens(context, partial, output);
  return output;
}

template <class T>
void VocabParallelEmbedding<T>::backward(const Context& context, VectorView<const std::int32_t> tokens,
                                         VectorView<const std::int32_t> host_tokens, MatrixView<T> d_output) const {
  const TraceRange range("embedding backward");
  const Arena::Scope scope(context.arena);
  const EmbeddingRuns runs = EmbeddingRuns::make(host_tokens, ids_);
  const VectorView<std::int32_t> order = context.arena.copy<std::int32_t>(runs.tokens, "embedding order");
  const VectorView<std::int32_t> begins = context.arena.copy<std::int32_t>(runs.begins, "embedding order");
  const MatrixView<T> gradient = gather_tokens(context, d_output, tokens.size);
  accumulate_rows<T>(context.stream, gradient, tokens, order, begins, ids_.begin, parameters_->gradient(weight_));
}

template class VocabParallelEmbedding<float>;
template class VocabParallelEmbedding<BFloat16>;

}  // namespace reprise
