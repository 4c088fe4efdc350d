#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "core/view.hpp"
#include "layers/decoder_config.hpp"
#include "layers/lora.hpp"
#include "parallel/context.hpp"
#include "parallel/shard.hpp"

namespace reprise {

/// One micro-batch of packed documents; the same on every rank of a tensor-parallel group. No padding tokens. In host
/// memory; only read while `forward` or `decode` runs.
struct TokenBatch {
  VectorView<const std::int32_t> tokens;            ///< [tokens] ids in [0, vocab_size)
  VectorView<const std::int64_t> document_offsets;  ///< [documents + 1]; attention and positions restart at each
};

/// What backward makes again instead of forward keeping it. The gradients have the same bits either way.
enum class Recompute : std::uint8_t {
  kNone,
  kSelective,   ///< what follows element by element from the outputs of products and of attention: norms, SwiGLU, and
                ///< with q/k norms the rotated q and k; a third less memory for hardly any work
  kLayer,       ///< all of a layer but its input: a third more work
  kNoBackward,  ///< nothing is kept, and there is no backward
};

/// The decoder without its head: embedding, num_layers x (attention, SwiGLU), final RMSNorm. The loss owns the
/// projection onto the vocabulary, because it projects only what it needs.
///
/// T is the storage type of parameters and activations (float or BFloat16); sums are float32, gradients of parameters
/// are float32 and accumulate (+=), activation gradients are overwritten (=).
/// Communication per layer (tp_size > 1): forward two all-reduces of [tokens, hidden], backward two; with
/// sequence_parallel each all-reduce becomes an all-gather and a reduce-scatter over tokens
/// (Megatron: mappings.py). Recomputation adds in backward: kLayer one all-reduce, or two all-gathers and a
/// reduce-scatter; kSelective nothing, or two all-gathers. KV heads are replicated when tp_size exceeds them.
template <class T>
class DecoderModel {
 public:
  /// Declares all parameters in `parameters` (not owned; must outlive the model; `allocate` it afterwards).
  /// Throws Error(kUsage) when heads or ffn size do not divide over tp.
  /// Parameters allocated as values only are frozen: backward computes no gradients of theirs. With `lora.parameters`
  /// (not owned either) adapters of the projections that `lora` names are declared there and train instead.
  DecoderModel(const DecoderConfig& config, const VocabPartition& vocab, const ProcessGroups& groups,
               ParameterSet<T>& parameters, bool sequence_parallel, const Lora<T>& lora = {});
  ~DecoderModel();
  DecoderModel(const DecoderModel&) = delete;
  DecoderModel& operator=(const DecoderModel&) = delete;

  /// What backward needs; its arrays live in the context's arena.
  struct Activations;
  struct ActivationsDeleter {
    void operator()(Activations* activations) const;
  };
  using ActivationsPtr = std::unique_ptr<Activations, ActivationsDeleter>;

  /// On a GPU the host does not wait, in forward and in backward. `before_use(first, last)` is called before the stream
  /// is asked for what reads the parameters [first, last): the ranges of `on_ready` below but for the head's, rising.
  /// hidden: the final norm's output, [tokens, hidden_size], or with sequence_parallel this rank's rows
  /// even_shard(tokens, tp_size, tp_rank) of it.
  [[nodiscard]] MatrixView<T> forward(const Context& context, const TokenBatch& batch, Recompute recompute,
                                      ActivationsPtr& activations,
                                      const std::function<void(std::int64_t, std::int64_t)>& before_use = {}) const;

  /// d_hidden has hidden's shape and is consumed. `on_ready(first, last)` is called when the gradients of the parameter
  /// indices [first, last) are final for this micro-batch (a tied matrix is reported with the embedding, last); with
  /// adapters these are indices of theirs, and only layers report.
  void backward(const Context& context, const Activations& activations, MatrixView<T> d_hidden,
                const std::function<void(std::int64_t, std::int64_t)>& on_ready = {}) const;

  /// This rank's rows of the output projection W [rows, hidden_size] (the embedding's when tied) and its gradient; that
  /// is empty where the parameters are frozen.
  [[nodiscard]] MatrixView<const T> head_weight() const;
  [[nodiscard]] MatrixView<float> head_gradient() const;
  [[nodiscard]] const VocabPartition& vocab() const;
  [[nodiscard]] const DecoderConfig& config() const;

  /// Normal(0, 0.02) weights (residual outputs scaled by 1/sqrt(2 num_layers)), norms 1, biases 0; a value depends on
  /// (seed, name, global row, global column) only, so every sharding initialises the same model.
  void initialize(std::uint64_t seed);

  /// Keys and values of documents that are being generated, one entry per document.
  struct Cache;
  struct CacheDeleter {
    void operator()(Cache* cache) const;
  };
  [[nodiscard]] std::unique_ptr<Cache, CacheDeleter> make_cache(std::int64_t documents, std::int64_t max_length) const;
  /// Forgets what a document's entry holds behind its first `length` tokens, so that others take their place.
  void restart(Cache& cache, std::int64_t document, std::int64_t length = 0) const;
  /// Appends batch.document_offsets[d+1] - [d] tokens (possibly 0) to each cached document and returns the final hidden
  /// rows of the new tokens [tokens, hidden_size]. No sequence parallelism here.
  [[nodiscard]] MatrixView<T> decode(const Context& context, Cache& cache, const TokenBatch& batch) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise
