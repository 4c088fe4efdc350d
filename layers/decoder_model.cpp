#include "layers/decoder_model.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/math.hpp"
#include "core/random.hpp"
#include "core/transfer.hpp"
#include "layers/decoder_layer.hpp"
#include "layers/rms_norm.hpp"
#include "layers/rope.hpp"
#include "layers/token_shards.hpp"
#include "layers/vector_gradient.hpp"
#include "layers/vocab_parallel_embedding.hpp"

namespace reprise {

template <class T>
struct DecoderModel<T>::Impl {
  DecoderConfig config;
  VocabPartition vocab;
  ParameterSet<T>* parameters;
  bool sequence_parallel;
  RotaryEmbedding rotary;
  std::unique_ptr<Communicator> kv_group;  // the ranks that hold the same key/value heads; null where none are shared
  std::optional<VocabParallelEmbedding<T>> embedding;
  std::vector<DecoderLayer<T>> layers;
  std::int64_t norm = -1;
  std::int64_t head = -1;  // -1: tied to the embedding

  [[nodiscard]] VectorView<const T> norm_weight() const { return parameters->value(norm).flat(); }
  [[nodiscard]] std::int64_t head_parameter() const { return head >= 0 ? head : embedding->parameter(); }
};

/// Views into the arena, beside what the host needs again in backward.
template <class T>
struct DecoderModel<T>::Activations {
  std::vector<std::int32_t> host_tokens;
  std::vector<std::int64_t> host_offsets;
  VectorView<const std::int32_t> tokens;
  DocumentPositions documents;
  std::vector<typename DecoderLayer<T>::Activations> layers;
  Recompute recompute = Recompute::kNone;
  MatrixView<T> last_residual;  // [local tokens, hidden], the final norm's input
  VectorView<float> last_rstd;
};

template <class T>
void DecoderModel<T>::ActivationsDeleter::operator()(Activations* activations) const {
  delete activations;
}

template <class T>
struct DecoderModel<T>::Cache {
  std::vector<Buffer<T>> keys, values;  // one per layer, [documents, max_length, kv heads * head_dim]
  std::vector<std::int64_t> lengths;    // tokens of each document so far
  std::int64_t max_length = 0;
};

template <class T>
void DecoderModel<T>::CacheDeleter::operator()(Cache* cache) const {
  delete cache;
}

namespace {

template <class T>
std::int64_t add_final_norm(ParameterSet<T>& parameters, std::int64_t size, int tp_rank, bool sum_over_tp) {
  ParameterSpec spec;
  spec.name = "model.norm.weight";
  spec.layer = "norm";
  spec.global_rows = spec.row_end = size;
  spec.global_cols = spec.col_end = 1;
  spec.is_vector = true;
  spec.decay = false;
  spec.counted = tp_rank == 0;
  spec.sum_over_tp = sum_over_tp;
  return parameters.add(spec);
}

template <class T>
std::int64_t add_head(ParameterSet<T>& parameters, const VocabPartition& vocab, std::int64_t hidden_size, int tp_rank) {
  ParameterSpec spec;
  spec.name = "lm_head.weight";
  spec.layer = "head";
  spec.global_rows = vocab.bounds.back();
  spec.global_cols = spec.col_end = hidden_size;
  spec.row_begin = vocab.rows(tp_rank).begin;
  spec.row_end = vocab.rows(tp_rank).end;
  return parameters.add(spec);
}

/// Throws where ids or offsets cannot be right, on every rank alike and before any communication.
void check_batch(const TokenBatch& batch, std::int64_t vocab_size) {
  const std::int64_t tokens = batch.tokens.size;
  for (std::int64_t t = 0; t < tokens; ++t) {
    require(0 <= batch.tokens[t] && batch.tokens[t] < vocab_size, ErrorKind::kData,
            "token id {} at position {} of the micro-batch lies outside the vocabulary [0, {})", batch.tokens[t], t,
            vocab_size);
  }
  const VectorView<const std::int64_t> offsets = batch.document_offsets;
  const bool is_empty = tokens == 0 && offsets.size == 0;
  REPRISE_CHECK(is_empty || (offsets.size > 0 && offsets[0] == 0 && offsets[offsets.size - 1] == tokens),
                "{} document offsets do not tile {} tokens", offsets.size, tokens);
  for (std::int64_t d = 0; d + 1 < offsets.size; ++d) {
    REPRISE_CHECK(offsets[d] <= offsets[d + 1], "document offsets {} > {}", offsets[d], offsets[d + 1]);
  }
}

template <class T>
std::vector<T> initial_values(const DecoderConfig& config, const ParameterSpec& spec, std::uint64_t seed) {
  if (spec.is_vector) {
    const bool is_norm = spec.name.ends_with("norm.weight");
    return std::vector<T>(static_cast<std::size_t>(spec.size()), T(is_norm ? 1.0f : 0.0f));
  }
  const bool is_residual_output = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
  const double residual_scale = 1.0 / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  const double deviation = 0.02 * (is_residual_output ? residual_scale : 1.0);
  const bool has_vocabulary = spec.layer == "embedding" || spec.layer == "head";
  const std::uint64_t key = hash_bytes(spec.name.data(), spec.name.size(), seed);
  std::vector<T> values;
  values.reserve(static_cast<std::size_t>(spec.size()));
  for (std::int64_t row = spec.row_begin; row < spec.row_end; ++row) {
    const bool is_padding = has_vocabulary && row >= config.vocab_size;
    for (std::int64_t col = spec.col_begin; col < spec.col_end; ++col) {
      const double normal =
          is_padding ? 0.0 : random_normal(key, static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(col));
      values.push_back(T(static_cast<float>(deviation * normal)));
    }
  }
  return values;
}

/// A micro-batch on the device.
struct PlacedTokens {
  VectorView<const std::int32_t> tokens;
  DocumentPositions documents;
};

/// Where documents go on in a cache: document d has first[d] tokens in rows that begin at d * max_length.
struct CachePlace {
  VectorView<const std::int64_t> first;
  std::int64_t max_length = 0;
};

/// Copies the micro-batch to the device: one copy of all its numbers. Positions count from 0 in every document, or from
/// cache.first. The rotary table has a row for every position up to the last, or one for every token where those are
/// fewer, as when documents grow token by token.
PlacedTokens place(const Context& context, const RotaryEmbedding& rotary, const TokenBatch& batch,
                   const CachePlace& cache = {}) {
  const std::int64_t tokens = batch.tokens.size;
  const VectorView<const std::int64_t> offsets = batch.document_offsets;
  std::vector<std::int32_t> numbers(batch.tokens.begin(), batch.tokens.end());
  std::int32_t end = 0;
  for (std::int64_t d = 0; d + 1 < offsets.size; ++d) {
    const std::int64_t begin = cache.first.empty() ? 0 : cache.first[d];
    for (std::int64_t t = offsets[d]; t < offsets[d + 1]; ++t) {
      numbers.push_back(narrow<std::int32_t>(begin + t - offsets[d]));
      end = std::max(end, numbers.back() + 1);
    }
  }
  const std::int64_t count = std::min<std::int64_t>(end, tokens);
  for (std::int32_t i = 0; i < count; ++i) numbers.push_back(i);
  for (std::int64_t d = 0; d + 1 < offsets.size && !cache.first.empty(); ++d) {
    for (std::int64_t t = offsets[d]; t < offsets[d + 1]; ++t) {
      numbers.push_back(narrow<std::int32_t>(d * cache.max_length + cache.first[d] + t - offsets[d]));
    }
  }
  const VectorView<std::int32_t> placed = context.arena.copy<std::int32_t>(numbers, "micro-batch");
  const VectorView<const std::int32_t> positions = placed.slice(tokens, tokens),
                                       counting = placed.slice(2 * tokens, count);
  const bool has_all_positions = end <= tokens;
  PlacedTokens result{placed.slice(0, tokens), {}};
  result.documents.offsets = offsets;
  result.documents.rotary_rows = has_all_positions ? positions : counting;
  result.documents.rotary = rotary.table(context.stream, context.arena, has_all_positions ? counting : positions);
  if (!cache.first.empty()) result.documents.cache_rows = placed.slice(2 * tokens + count, tokens);
  return result;
}

}  // namespace

template <class T>
DecoderModel<T>::DecoderModel(const DecoderConfig& config, const VocabPartition& vocab, const ProcessGroups& groups,
                              ParameterSet<T>& parameters, bool sequence_parallel, const Lora<T>& lora)
    : impl_(std::make_unique<Impl>(Impl{config,
                                        vocab,
                                        &parameters,
                                        sequence_parallel && groups.tp_size() > 1,
                                        RotaryEmbedding(config),
                                        nullptr,
                                        {},
                                        {},
                                        -1,
                                        -1})) {
  config.validate();
  const int size = groups.tp_size(), rank = groups.tp_rank();
  const HeadPartition partition = HeadPartition::make(config, size, rank);
  REPRISE_CHECK(vocab.tp_size() == size && vocab.vocab_size == config.vocab_size,
                "vocabulary of {} over {} ranks for a model of {} over {}", vocab.vocab_size, vocab.tp_size(),
                config.vocab_size, size);
  if (partition.kv_replicas > 1) impl_->kv_group = groups.tp->split(rank / partition.kv_replicas, rank, "kv");
  impl_->embedding.emplace(parameters, vocab, config.hidden_size, rank);
  Lora<T> placed = lora;
  placed.counts_replicas = rank == 0;
  placed.sums_replicas = size > 1;
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    impl_->layers.emplace_back(config, i, size, rank, impl_->sequence_parallel, parameters, placed);
  }
  impl_->norm = add_final_norm(parameters, config.hidden_size, rank, impl_->sequence_parallel);
  if (!config.tie_word_embeddings) impl_->head = add_head(parameters, vocab, config.hidden_size, rank);
}

template <class T>
DecoderModel<T>::~DecoderModel() = default;

template <class T>
MatrixView<T> DecoderModel<T>::forward(const Context& context, const TokenBatch& batch, Recompute recompute,
                                       ActivationsPtr& activations,
                                       const std::function<void(std::int64_t, std::int64_t)>& before_use) const {
  using LayerActivations = typename DecoderLayer<T>::Activations;
  const Impl& impl = *impl_;
  Arena& arena = context.arena;
  check_batch(batch, impl.config.vocab_size);
  REPRISE_CHECK((context.sequence_parallel && context.groups.tp_size() > 1) == impl.sequence_parallel,
                "model and context differ in sequence_parallel");
  activations.reset(new Activations);
  Activations& a = *activations;
  a.host_tokens.assign(batch.tokens.begin(), batch.tokens.end());
  a.host_offsets.assign(batch.document_offsets.begin(), batch.document_offsets.end());
  const PlacedTokens placed = place(context, impl.rotary, {a.host_tokens, a.host_offsets});
  a.tokens = placed.tokens;
  a.documents = placed.documents;
  a.layers.resize(impl.layers.size());
  a.recompute = recompute;
  const bool keeps_layers = recompute == Recompute::kNone || recompute == Recompute::kSelective;

  const auto announce = [&](std::int64_t first, std::int64_t last, bool trains) {
    if (before_use && trains) before_use(first, last);
  };
  const bool trains = impl.parameters->has_gradients();
  announce(impl.embedding->parameter(), impl.embedding->parameter() + 1, trains);
  MatrixView<T> residual = impl.embedding->forward(context, a.tokens);
  const std::int64_t rows = residual.rows, cols = residual.cols;
  const MatrixView<T> mlp_output = arena.matrix<T>(rows, cols, "MLP output");
  MatrixView<T> branch, input, middle;
  for (std::int64_t i = 0; i < impl.config.num_layers; ++i) {
    const auto& layer = impl.layers[static_cast<std::size_t>(i)];
    LayerActivations& kept = a.layers[static_cast<std::size_t>(i)];
    kept.selective = recompute == Recompute::kSelective;
    if (i == 1 || (i > 1 && recompute != Recompute::kNoBackward)) input = arena.matrix<T>(rows, cols, "layer input");
    if (i == 0 || keeps_layers) middle = arena.matrix<T>(rows, cols, "residual");
    kept.input = input;
    kept.middle = middle;
    announce(layer.first_parameter(), layer.end_parameter(), true);
    if (keeps_layers) {
      layer.forward(context, a.documents, residual, branch, kept, mlp_output);
    } else {
      const Arena::Scope scope(arena);
      LayerActivations scratch = kept;
      layer.forward(context, a.documents, residual, branch, scratch, mlp_output);
      kept.input = scratch.input;
    }
    residual = middle;
    branch = mlp_output;
  }
  a.last_residual = arena.matrix<T>(rows, cols, "last residual");
  a.last_rstd = arena.vector<float>(rows, "norm");
  const MatrixView<T> hidden = arena.matrix<T>(rows, cols, "hidden states");
  announce(impl.norm, impl.norm + 1, trains);
  add_rms_norm<T>(context.stream, residual, branch, a.last_residual, impl.norm_weight(), impl.config.norm_eps, hidden,
                  a.last_rstd);
  return hidden;
}

template <class T>
void DecoderModel<T>::backward(const Context& context, const Activations& a, MatrixView<T> d_hidden,
                               const std::function<void(std::int64_t, std::int64_t)>& on_ready) const {
  const Impl& impl = *impl_;
  const Stream& stream = context.stream;
  Arena& arena = context.arena;
  const Arena::Scope scope(arena);
  const std::int64_t rows = a.last_residual.rows, cols = a.last_residual.cols;
  REPRISE_CHECK(a.recompute != Recompute::kNoBackward, "backward of a forward pass that kept nothing");
  REPRISE_CHECK(d_hidden.rows == rows && d_hidden.cols == cols, "d_hidden is [{}, {}] where hidden was [{}, {}]",
                d_hidden.rows, d_hidden.cols, rows, cols);
  const auto ready = [&](std::int64_t first, std::int64_t last) {
    if (on_ready) on_ready(first, last);
  };
  const bool is_frozen = !impl.parameters->has_gradients();
  if (impl.head >= 0 && !is_frozen) ready(impl.head, impl.head + 1);  // the loss has added to it already
  const MatrixView<T> d_residual = arena.matrix<T>(rows, cols, "residual gradient");
  fill(stream, d_residual.flat(), 0.0f);
  accumulate_rms_norm_backward<T>(stream, arena, a.last_residual, impl.norm_weight(), a.last_rstd, d_hidden, d_residual,
                                  vector_gradient(*impl.parameters, impl.norm, arena));
  if (!is_frozen) ready(impl.norm, impl.norm + 1);
  for (std::int64_t i = impl.config.num_layers - 1; i >= 0; --i) {
    const auto& layer = impl.layers[static_cast<std::size_t>(i)];
    const Arena::Scope layer_scope(arena);
    auto layer_activations = a.layers[static_cast<std::size_t>(i)];
    if (a.recompute == Recompute::kLayer) {
      layer_activations.middle = arena.matrix<T>(rows, cols, "residual");
      layer.recompute(context, a.documents, layer_activations);
    }
    layer.backward(context, a.documents, layer_activations, impl.kv_group.get(), d_residual);
    ready(layer.first_parameter(), layer.end_parameter());
  }
  if (is_frozen) return;
  impl.embedding->backward(context, a.tokens, a.host_tokens, d_residual);
  ready(impl.embedding->parameter(), impl.embedding->parameter() + 1);
}

template <class T>
MatrixView<const T> DecoderModel<T>::head_weight() const {
  return impl_->parameters->value(impl_->head_parameter());
}
template <class T>
MatrixView<float> DecoderModel<T>::head_gradient() const {
  if (!impl_->parameters->has_gradients()) return {};
  return impl_->parameters->gradient(impl_->head_parameter());
}
template <class T>
const VocabPartition& DecoderModel<T>::vocab() const {
  return impl_->vocab;
}
template <class T>
const DecoderConfig& DecoderModel<T>::config() const {
  return impl_->config;
}

template <class T>
void DecoderModel<T>::initialize(std::uint64_t seed) {
  ParameterSet<T>& parameters = *impl_->parameters;
  for (std::int64_t index = 0; index < parameters.count(); ++index) {
    const std::vector<T> values = initial_values<T>(impl_->config, parameters.spec(index), seed);
    copy_to_device<T>(parameters.stream(), values, parameters.value(index).flat());
  }
}

template <class T>
auto DecoderModel<T>::make_cache(std::int64_t documents, std::int64_t max_length) const
    -> std::unique_ptr<Cache, CacheDeleter> {
  std::unique_ptr<Cache, CacheDeleter> cache(new Cache);
  cache->max_length = max_length;
  cache->lengths.assign(static_cast<std::size_t>(documents), 0);
  for (const auto& layer : impl_->layers) {
    const std::int64_t size = documents * max_length * layer.kv_size();
    cache->keys.emplace_back(impl_->parameters->stream(), size, "cached keys");
    cache->values.emplace_back(impl_->parameters->stream(), size, "cached values");
  }
  return cache;
}

template <class T>
void DecoderModel<T>::restart(Cache& cache, std::int64_t document, std::int64_t length) const {
  std::int64_t& held = cache.lengths.at(static_cast<std::size_t>(document));
  REPRISE_CHECK(0 <= length && length <= held, "{} of {} cached tokens to be kept", length, held);
  held = length;
}

template <class T>
MatrixView<T> DecoderModel<T>::decode(const Context& context, Cache& cache, const TokenBatch& batch) const {
  const Impl& impl = *impl_;
  Arena& arena = context.arena;
  const auto documents = static_cast<std::int64_t>(cache.lengths.size());
  check_batch(batch, impl.config.vocab_size);
  REPRISE_CHECK(!context.sequence_parallel || context.groups.tp_size() == 1, "no sequence parallelism in decode");
  REPRISE_CHECK(batch.document_offsets.size == documents + 1, "{} offsets for a cache of {} documents",
                batch.document_offsets.size, documents);
  const VectorView<const std::int64_t> offsets = batch.document_offsets;
  const auto fresh = [&](std::int64_t d) { return offsets[d + 1] - offsets[d]; };
  for (std::int64_t d = 0; d < documents; ++d) {
    const std::int64_t length = cache.lengths[static_cast<std::size_t>(d)] + fresh(d);
    require(length <= cache.max_length, ErrorKind::kUsage, "document {} has {} tokens where at most {} were asked for",
            d, length, cache.max_length);
  }
  const PlacedTokens placed = place(context, impl.rotary, batch, {cache.lengths, cache.max_length});
  for (std::int64_t d = 0; d < documents; ++d) cache.lengths[static_cast<std::size_t>(d)] += fresh(d);
  MatrixView<T> residual = impl.embedding->forward(context, placed.tokens);
  const std::int64_t rows = residual.rows, cols = residual.cols;
  const MatrixView<T> hidden = arena.matrix<T>(rows, cols, "hidden states");
  const Arena::Scope scope(arena);
  const MatrixView<T> mlp_output = arena.matrix<T>(rows, cols, "MLP output");
  const MatrixView<T> input = arena.matrix<T>(rows, cols, "layer input"), middle = arena.matrix<T>(rows, cols);
  MatrixView<T> branch;
  for (std::size_t i = 0; i < impl.layers.size(); ++i) {
    const auto& layer = impl.layers[i];
    const Arena::Scope layer_scope(arena);
    typename DecoderLayer<T>::Activations scratch{};
    scratch.input = input;
    scratch.middle = middle;
    const std::int64_t cached = documents * cache.max_length;
    const LayerCache<T> layer_cache{{cache.keys[i].view(), cached, layer.kv_size()},
                                    {cache.values[i].view(), cached, layer.kv_size()},
                                    cache.lengths,
                                    cache.max_length};
    layer.forward(context, placed.documents, residual, branch, scratch, mlp_output, &layer_cache);
    residual = middle;
    branch = mlp_output;
  }
  add_rms_norm<T>(context.stream, residual, branch, input, impl.norm_weight(), impl.config.norm_eps, hidden,
                  arena.vector<float>(rows));
  return hidden;
}

template class DecoderModel<float>;
template class DecoderModel<BFloat16>;

}  // namespace reprise
