#include "layers/decoder_layer.hpp"

#include <optional>
#include <vector>

#include "core/math.hpp"
#include "core/trace.hpp"
#include "layers/copy_columns.hpp"
#include "layers/rms_norm.hpp"
#include "layers/rope.hpp"
#include "layers/swiglu.hpp"
#include "layers/token_shards.hpp"
#include "layers/vector_gradient.hpp"

namespace reprise {

namespace {

std::string prefix_of(std::int64_t layer) {
  return fmt::format("model.layers.{}.", layer);
}
std::string group_of(std::int64_t layer) {
  return fmt::format("layers.{}", layer);
}

std::vector<ColumnPart> qkv_parts(const DecoderConfig& config, std::int64_t layer, const HeadPartition& partition) {
  const std::int64_t dim = config.head_dim;
  const Range q{partition.heads.begin * dim, partition.heads.end * dim};
  const Range kv{partition.kv_heads.begin * dim, partition.kv_heads.end * dim};
  const std::string prefix = prefix_of(layer) + "self_attn.";
  return {{prefix + "q_proj", config.num_heads * dim, q, true},
          {prefix + "k_proj", config.num_kv_heads * dim, kv, partition.counts_kv_heads},
          {prefix + "v_proj", config.num_kv_heads * dim, kv, partition.counts_kv_heads}};
}

std::vector<ColumnPart> gate_up_parts(const DecoderConfig& config, std::int64_t layer, Range ffn) {
  const std::string prefix = prefix_of(layer) + "mlp.";
  return {{prefix + "gate_proj", config.ffn_hidden_size, ffn, true},
          {prefix + "up_proj", config.ffn_hidden_size, ffn, true}};
}

template <class T>
std::int64_t add_norm(ParameterSet<T>& parameters, std::int64_t layer, const std::string& name, std::int64_t size,
                      int tp_rank, bool sum_over_tp) {
  ParameterSpec spec;
  spec.name = prefix_of(layer) + name + ".weight";
  spec.layer = group_of(layer);
  spec.global_rows = spec.row_end = size;
  spec.global_cols = spec.col_end = 1;
  spec.is_vector = true;
  spec.decay = false;
  spec.counted = tp_rank == 0;
  spec.sum_over_tp = sum_over_tp;
  return parameters.add(spec);
}

template <class T>
const ParameterSet<T>& trained_set(const ParameterSet<T>& parameters, const Lora<T>& lora) {
  return lora.parameters == nullptr ? parameters : *lora.parameters;
}

/// Gives back at its end what was taken while it lived, where that is not kept.
class Passing {
 public:
  Passing(Arena& arena, bool passes) {
    if (passes) scope_.emplace(arena);
  }

 private:
  std::optional<Arena::Scope> scope_;
};

}  // namespace

HeadPartition HeadPartition::make(const DecoderConfig& config, int tp_size, int tp_rank) {
  const std::int64_t heads = config.num_heads, kv_heads = config.num_kv_heads;
  const auto fits = [&](std::int64_t tp) {
    return heads % tp == 0 && config.ffn_hidden_size % tp == 0 && (kv_heads % tp == 0 || tp % kv_heads == 0);
  };
  if (!fits(tp_size)) {
    std::string legal;
    for (std::int64_t tp = 1; tp <= heads; ++tp) {
      if (fits(tp)) legal += (legal.empty() ? "" : ", ") + std::to_string(tp);
    }
    fail(ErrorKind::kUsage,
         "parallel.tensor = {}: num_attention_heads = {}, num_key_value_heads = {} and intermediate_size = {} do not "
         "divide over it; legal: {}",
         tp_size, heads, kv_heads, config.ffn_hidden_size, legal);
  }
  HeadPartition partition;
  partition.heads = even_shard(heads, tp_size, tp_rank);
  if (tp_size <= kv_heads) {
    partition.kv_heads = even_shard(kv_heads, tp_size, tp_rank);
  } else {
    partition.kv_replicas = static_cast<int>(tp_size / kv_heads);
    const std::int64_t kv_head = tp_rank / partition.kv_replicas;
    partition.kv_heads = {kv_head, kv_head + 1};
    partition.counts_kv_heads = tp_rank % partition.kv_replicas == 0;
  }
  return partition;
}

template <class T>
DecoderLayer<T>::DecoderLayer(const DecoderConfig& config, std::int64_t index, int tp_size, int tp_rank,
                              bool sequence_parallel, ParameterSet<T>& parameters, const Lora<T>& lora)
    : parameters_(&parameters),
      shape_{HeadPartition::make(config, tp_size, tp_rank).heads.size(),
             HeadPartition::make(config, tp_size, tp_rank).kv_heads.size(), config.head_dim},
      hidden_size_(config.hidden_size),
      ffn_size_(config.ffn_hidden_size / tp_size),
      norm_eps_(config.norm_eps),
      first_parameter_(trained_set(parameters, lora).count()),
      input_norm_(add_norm(parameters, index, "input_layernorm", hidden_size_, tp_rank, sequence_parallel)),
      qkv_(parameters, group_of(index), hidden_size_,
           qkv_parts(config, index, HeadPartition::make(config, tp_size, tp_rank)), config.qkv_bias, lora),
      attention_out_(parameters, group_of(index), prefix_of(index) + "self_attn.o_proj", hidden_size_,
                     config.num_heads * config.head_dim,
                     even_shard(config.num_heads * config.head_dim, tp_size, tp_rank), config.attention_out_bias,
                     tp_rank == 0, sequence_parallel, lora),
      // Every rank norms its own heads alone, so these gradients are partial sums even without sequence parallelism.
      q_norm_(config.qk_norm ? add_norm(parameters, index, "self_attn.q_norm", config.head_dim, tp_rank, tp_size > 1)
                             : -1),
      k_norm_(config.qk_norm ? add_norm(parameters, index, "self_attn.k_norm", config.head_dim, tp_rank, tp_size > 1)
                             : -1),
      middle_norm_(add_norm(parameters, index, "post_attention_layernorm", hidden_size_, tp_rank, sequence_parallel)),
      gate_up_(parameters, group_of(index), hidden_size_,
               gate_up_parts(config, index, even_shard(config.ffn_hidden_size, tp_size, tp_rank)), config.mlp_bias,
               lora),
      down_(parameters, group_of(index), prefix_of(index) + "mlp.down_proj", hidden_size_, config.ffn_hidden_size,
            even_shard(config.ffn_hidden_size, tp_size, tp_rank), config.mlp_bias, tp_rank == 0, sequence_parallel,
            lora),
      end_parameter_(trained_set(parameters, lora).count()) {}

template <class T>
void DecoderLayer<T>::Activations::forget_marked() {
  input_rstd = middle_rstd = {};
  normed_input = rotated_qk = normed_middle = product = {};
  qk_rstd = {};
}

template <class T>
void DecoderLayer<T>::forward(const Context& context, const DocumentPositions& documents, MatrixView<T> residual,
                              MatrixView<T> branch, Activations& a, MatrixView<T> mlp_output,
                              const LayerCache<T>* cache) const {
  const TraceRange range("layer");
  const Stream& stream = context.stream;
  const std::int64_t tokens = documents.tokens();
  if (branch.data == nullptr) a.input = residual;
  a.qkv = context.arena.matrix<T>(tokens, qkv_.out_features(), "q, k and v");
  {
    const Passing passing(context.arena, a.selective);
    make_normed_input(context, tokens, residual, branch, a);
    qkv_.forward(stream, context.arena, a.normed_input, a.qkv);
  }
  attention_block(context, documents, a, cache);
  {
    const Passing passing(context.arena, a.selective);
    make_product(context, a);
    const Arena::Scope scope(context.arena);
    const MatrixView<T> partial = partial_tokens(context, mlp_output, tokens);
    down_.forward(stream, context.arena, a.product, partial);
    reduce_tokens(context, partial, mlp_output);
    down_.add_bias(stream, mlp_output);
  }
  if (a.selective) a.forget_marked();
}

template <class T>
void DecoderLayer<T>::recompute(const Context& context, const DocumentPositions& documents, Activations& a) const {
  const TraceRange range("layer again");
  const std::int64_t tokens = documents.tokens();
  a.qkv = context.arena.matrix<T>(tokens, qkv_.out_features(), "q, k and v");
  make_normed_input(context, tokens, a.input, {}, a);
  qkv_.forward(context.stream, context.arena, a.normed_input, a.qkv);
  attention_block(context, documents, a, nullptr);
  make_product(context, a);
}

/// From q, k and v to gate and up.
template <class T>
void DecoderLayer<T>::attention_block(const Context& context, const DocumentPositions& documents, Activations& a,
                                      const LayerCache<T>* cache) const {
  const Stream& stream = context.stream;
  Arena& arena = context.arena;
  const std::int64_t tokens = documents.tokens(), rows = a.input.rows;
  a.attended = arena.matrix<T>(tokens, shape_.num_heads * shape_.head_dim, "attention");
  if (cache == nullptr) a.log_sum_exp = arena.matrix<float>(tokens, shape_.num_heads, "attention normalisers");
  {
    const Passing passing(arena, a.selective);
    rotate(context, documents, a);
    attend(context, documents, a, cache);
  }
  a.gate_up = arena.matrix<T>(tokens, 2 * ffn_size_, "gate and up");
  const Passing passing(arena, a.selective);
  a.middle_rstd = arena.vector<float>(rows, "norm");
  a.normed_middle = arena.matrix<T>(tokens, hidden_size_, "normed residual");
  {
    const Arena::Scope scope(arena);
    const MatrixView<T> output = arena.matrix<T>(rows, hidden_size_, "attention output");
    const MatrixView<T> partial = partial_tokens(context, output, tokens);
    attention_out_.forward(stream, context.arena, a.attended, partial);
    reduce_tokens(context, partial, output);
    attention_out_.add_bias(stream, output);
    norm(context, a.input, output, a.middle, middle_norm_, a.normed_middle, a.middle_rstd);
  }
  gate_up_.forward(stream, arena, a.normed_middle, a.gate_up);
}

template <class T>
void DecoderLayer<T>::make_normed_input(const Context& context, std::int64_t tokens, MatrixView<T> residual,
                                        MatrixView<T> branch, Activations& a) const {
  a.input_rstd = context.arena.vector<float>(residual.rows, "norm");
  a.normed_input = context.arena.matrix<T>(tokens, hidden_size_, "normed input");
  norm(context, residual, branch, a.input, input_norm_, a.normed_input, a.input_rstd);
}

template <class T>
void DecoderLayer<T>::make_normed_middle(const Context& context, std::int64_t tokens, Activations& a) const {
  a.middle_rstd = context.arena.vector<float>(a.middle.rows, "norm");
  a.normed_middle = context.arena.matrix<T>(tokens, hidden_size_, "normed residual");
  norm(context, a.middle, {}, {}, middle_norm_, a.normed_middle, a.middle_rstd);
}

template <class T>
void DecoderLayer<T>::make_product(const Context& context, Activations& a) const {
  a.product = context.arena.matrix<T>(a.gate_up.rows, ffn_size_, "swiglu");
  swiglu<T>(context.stream, a.gate_up, a.product);
}

/// sum = residual + branch where there is a branch, and normed [tokens, hidden] = the norm of that, of all ranks'
/// tokens.
template <class T>
void DecoderLayer<T>::norm(const Context& context, MatrixView<T> residual, MatrixView<T> branch, MatrixView<T> sum,
                           std::int64_t weight, MatrixView<T> normed, VectorView<float> rstd) const {
  const Range own = local_tokens(context, normed.rows);
  const MatrixView<T> local = normed.row_range(own.begin, own.size());
  if (branch.data == nullptr) {
    rms_norm<T>(context.stream, residual, vector_value(weight), norm_eps_, local, rstd);
  } else {
    add_rms_norm<T>(context.stream, residual, branch, sum, vector_value(weight), norm_eps_, local, rstd);
  }
  gather_tokens_in_place(context, normed);
}

template <class T>
void DecoderLayer<T>::rotate(const Context& context, const DocumentPositions& documents, Activations& a) const {
  const Stream& stream = context.stream;
  const std::int64_t tokens = documents.tokens(), heads = shape_.num_heads, kv_heads = shape_.num_kv_heads;
  if (q_norm_ < 0) {
    rotate_heads<T>(stream, documents.rotary, documents.rotary_rows, heads + kv_heads, false, a.qkv);
    return;
  }
  a.rotated_qk = context.arena.matrix<T>(tokens, (heads + kv_heads) * shape_.head_dim, "rotated q and k");
  a.qk_rstd = context.arena.matrix<float>(tokens, heads + kv_heads, "q and k norms");
  head_rms_norm<T>(stream, a.qkv, 0, heads, vector_value(q_norm_), norm_eps_, a.rotated_qk, a.qk_rstd);
  head_rms_norm<T>(stream, a.qkv, heads, kv_heads, vector_value(k_norm_), norm_eps_, a.rotated_qk, a.qk_rstd);
  rotate_heads<T>(stream, documents.rotary, documents.rotary_rows, heads + kv_heads, false, a.rotated_qk);
}

template <class T>
void DecoderLayer<T>::attend(const Context& context, const DocumentPositions& documents, Activations& a,
                             const LayerCache<T>* cache) const {
  const Stream& stream = context.stream;
  const std::int64_t q_size = shape_.num_heads * shape_.head_dim;
  const MatrixView<T> qk = q_norm_ < 0 ? a.qkv : a.rotated_qk;
  const HeadRows<const T> q{qk.data, qk.cols}, k{qk.data + q_size, qk.cols};
  const HeadRows<const T> v{a.qkv.data + q_size + kv_size(), a.qkv.cols};
  const HeadRows<T> output{a.attended.data, q_size};
  if (cache == nullptr) {
    attention<T>(stream, context.arena, shape_, documents.offsets, q, k, v, output, a.log_sum_exp);
    return;
  }
  copy_columns_to_rows<T>(stream, qk, q_size, documents.cache_rows, cache->keys);
  copy_columns_to_rows<T>(stream, a.qkv, q_size + kv_size(), documents.cache_rows, cache->values);
  const HeadRows<const T> keys{cache->keys.data, kv_size()}, values{cache->values.data, kv_size()};
  cached_attention<T>(stream, context.arena, shape_, documents.offsets, cache->lengths, cache->max_length, q, keys,
                      values, output);
}

template <class T>
void DecoderLayer<T>::backward(const Context& context, const DocumentPositions& documents, const Activations& a,
                               Communicator* kv_group, MatrixView<T> d_residual) const {
  const TraceRange range("layer backward");
  Activations whole = a;  // with what is made again
  backward_mlp(context, whole, d_residual);
  backward_attention(context, documents, whole, kv_group, d_residual);
}

template <class T>
void DecoderLayer<T>::backward_mlp(const Context& context, Activations& a, MatrixView<T> d_residual) const {
  const Stream& stream = context.stream;
  Arena& arena = context.arena;
  const Arena::Scope scope(arena);
  const std::int64_t tokens = a.gate_up.rows;
  const MatrixView<T> d_output = gather_tokens(context, d_residual, tokens);
  const MatrixView<T> d_product = arena.matrix<T>(tokens, ffn_size_);
  down_.backward_bias(stream, arena, d_residual);
  {
    const Arena::Scope product_scope(arena);
    if (a.selective) make_product(context, a);
    down_.backward(stream, arena, d_output, a.product, d_product);
  }
  const MatrixView<T> d_gate_up = arena.matrix<T>(tokens, 2 * ffn_size_);
  swiglu_backward<T>(stream, a.gate_up, d_product, d_gate_up);
  const MatrixView<T> d_normed = arena.matrix<T>(tokens, hidden_size_);
  if (a.selective) make_normed_middle(context, tokens, a);
  gate_up_.backward_input(stream, arena, d_gate_up, a.normed_middle, d_normed);
  gate_up_.backward_weight(stream, arena, d_gate_up, a.normed_middle);
  backward_norm(context, a.middle, middle_norm_, a.middle_rstd, d_normed, d_residual);
}

template <class T>
void DecoderLayer<T>::backward_attention(const Context& context, const DocumentPositions& documents, Activations& a,
                                         Communicator* kv_group, MatrixView<T> d_residual) const {
  const Stream& stream = context.stream;
  Arena& arena = context.arena;
  const Arena::Scope scope(arena);
  const std::int64_t tokens = documents.tokens(), dim = shape_.head_dim;
  const std::int64_t heads = shape_.num_heads, kv_heads = shape_.num_kv_heads, q_size = heads * dim;
  const MatrixView<T> d_output = gather_tokens(context, d_residual, tokens);
  const MatrixView<T> d_attended = arena.matrix<T>(tokens, q_size);
  attention_out_.backward_bias(stream, arena, d_residual);
  attention_out_.backward(stream, arena, d_output, a.attended, d_attended);

  const MatrixView<T> d_qkv = arena.matrix<T>(tokens, qkv_.out_features());
  if (a.selective && q_norm_ >= 0) rotate(context, documents, a);
  const MatrixView<T> qk = q_norm_ < 0 ? a.qkv : a.rotated_qk;
  attention_backward<T>(stream, arena, shape_, documents.offsets, {qk.data, qk.cols}, {qk.data + q_size, qk.cols},
                        {a.qkv.data + q_size + kv_size(), a.qkv.cols}, {a.attended.data, q_size}, a.log_sum_exp,
                        {d_attended.data, q_size}, {d_qkv.data, d_qkv.cols}, {d_qkv.data + q_size, d_qkv.cols},
                        {d_qkv.data + q_size + kv_size(), d_qkv.cols});
  rotate_heads<T>(stream, documents.rotary, documents.rotary_rows, heads + kv_heads, true, d_qkv);
  if (q_norm_ >= 0) {
    head_rms_norm_backward<T>(stream, arena, a.qkv, 0, heads, vector_value(q_norm_), a.qk_rstd, d_qkv,
                              vector_gradient(*parameters_, q_norm_, arena));
    head_rms_norm_backward<T>(stream, arena, a.qkv, heads, kv_heads, vector_value(k_norm_), a.qk_rstd, d_qkv,
                              vector_gradient(*parameters_, k_norm_, arena));
  }
  const MatrixView<T> d_normed = arena.matrix<T>(tokens, hidden_size_);
  if (a.selective) make_normed_input(context, tokens, a.input, {}, a);
  qkv_.backward_input(stream, arena, d_qkv, a.normed_input, d_normed);
  if (kv_group != nullptr) sum_kv_gradients(context, *kv_group, d_qkv);
  qkv_.backward_weight(stream, arena, d_qkv, a.normed_input);
  backward_norm(context, a.input, input_norm_, a.input_rstd, d_normed, d_residual);
}

template <class T>
void DecoderLayer<T>::backward_norm(const Context& context, MatrixView<const T> input, std::int64_t weight,
                                    VectorView<const float> rstd, MatrixView<T> d_normed,
                                    MatrixView<T> d_residual) const {
  const Range rows = local_tokens(context, d_normed.rows);
  const MatrixView<T> local = d_normed.row_range(rows.begin, rows.size());
  reduce_tokens(context, d_normed, local);
  accumulate_rms_norm_backward<T>(context.stream, context.arena, input, vector_value(weight), rstd, local, d_residual,
                                  vector_gradient(*parameters_, weight, context.arena));
}

template <class T>
void DecoderLayer<T>::sum_kv_gradients(const Context& context, Communicator& kv_group, MatrixView<T> d_qkv) const {
  const Stream& stream = context.stream;
  const Arena::Scope scope(context.arena);
  const std::int64_t first = shape_.num_heads * shape_.head_dim;
  const MatrixView<T> d_kv = context.arena.matrix<T>(d_qkv.rows, 2 * kv_size(), "shared k and v");
  copy_columns<T>(stream, d_qkv, first, d_kv, 0, d_kv.cols);
  kv_group.all_reduce(context.stream, d_kv.flat());
  copy_columns<T>(stream, d_kv, 0, d_qkv, first, d_kv.cols);
}

template class DecoderLayer<float>;
template class DecoderLayer<BFloat16>;

}  // namespace reprise
