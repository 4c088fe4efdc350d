#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/parameter.hpp"
#include "launcher/safetensors.hpp"
#include "layers/decoder_config.hpp"
#include "parallel/process_groups.hpp"

namespace reprise {

// Hugging Face model folders: config.json, model.safetensors or shards named by model.safetensors.index.json, tokenizer
// files. Everything that is wrong with one throws Error(kUsage) naming file, key (or tensor) and value.

/// Reads config.json of llama, mistral, qwen2 or qwen3, in the spelling of transformers 4 (rope_theta, rope_scaling,
/// torch_dtype) or 5 (rope_parameters, dtype). Refuses by name what the decoder does not compute: an active sliding
/// window, other rope types, quantization, mixtures of experts, partial rotary factors, activations other than silu,
/// softcaps, multipliers, custom code, ...
/// The vocabulary is `vocab_size` ids or, for 0, the ids of the folder's tokenizer (largest_token_id + 1) or, without a
/// tokenizer.json, all rows of embedding and head (vocab_size of config.json). Rows beyond it are padding_rows.
[[nodiscard]] DecoderConfig read_decoder_config(const std::filesystem::path& folder, std::int64_t vocab_size = 0);
/// The text of a config.json, every row being in the vocabulary; `what` names it in messages.
[[nodiscard]] DecoderConfig parse_decoder_config(std::string_view text, const std::string& what);
/// Keys of a config.json that are neither read nor refused nor known to be without effect, sorted: transformers reads
/// none of them either, for these families.
[[nodiscard]] std::vector<std::string> unread_config_keys(std::string_view text, const std::string& what);

/// The weight files of a folder, opened, and which of them holds each tensor.
class WeightFiles {
 public:
  explicit WeightFiles(const std::filesystem::path& folder);

  [[nodiscard]] const std::vector<SafetensorsReader>& files() const { return files_; }
  [[nodiscard]] std::vector<std::string> names() const;  ///< sorted
  [[nodiscard]] bool contains(const std::string& name) const { return file_of_.contains(name); }
  [[nodiscard]] const SafetensorsReader& file(const std::string& name) const;
  [[nodiscard]] const SafetensorsEntry& entry(const std::string& name) const;
  /// The one dtype of all tensors ("F32", "BF16", "F16"), or that of most elements.
  [[nodiscard]] std::string dtype() const;

 private:
  std::vector<SafetensorsReader> files_;
  std::map<std::string, std::size_t> file_of_;
};

/// Names missing, unexpected and mis-shaped tensors, up to ten each; reads headers alone.
void check_weights(const WeightFiles& files, const std::filesystem::path& folder, bool tie_word_embeddings,
                   const std::vector<ParameterSpec>& specs);

/// Reads this rank's blocks of every parameter, converted to T, onto the parameters' device; no other bytes are kept.
/// Tensors are checked as by check_weights. A tied model may carry an lm_head.weight that equals the embedding. No
/// communication.
template <class T>
void load_hugging_face(const std::filesystem::path& folder, bool tie_word_embeddings, ParameterSet<T>& parameters);

/// Bytes of "5GB", "500M", "2GiB" or "123": K, M, G are powers of 1000 as in transformers, Ki, Mi, Gi of 1024, and a B
/// may follow. Throws Error(kUsage) naming the text.
[[nodiscard]] std::int64_t parse_byte_size(const std::string& text);

struct ExportOptions {
  /// "float32", "bfloat16", "float16", or "" = as in the source folder. Any other throws Error(kUsage).
  std::string dtype = {};
  /// A new file is begun before a tensor that would pass this size; one file when all fit.
  std::int64_t max_shard_bytes = 5'000'000'000;
  std::int64_t piece_bytes = std::int64_t{64} << 20;  ///< what is gathered at a time, at least one row
};

/// Writes `output` (which must not exist, or be empty) as a Hugging Face folder: weights from `parameters`, every other
/// file of `source` copied byte for byte but weights, indices and python files; in config.json only torch_dtype or
/// dtype changes, and only when the dtype does. Parameters that were loaded and not changed give tensors of the same
/// bytes when the dtype is the source's. Built in `<output>.part` and renamed.
///
/// Collective over tp of dp rank 0; other dp ranks return at once. Tensor by tensor, in pieces of rows, the
/// ranks send their blocks by host memory to tp rank 0 (one all-to-all a piece), which writes.
template <class T>
void export_hugging_face(const ProcessGroups& groups, ParameterSet<T>& parameters, const std::filesystem::path& source,
                         const std::filesystem::path& output, const ExportOptions& options = {});

/// SHA-256 (hex) over the names and tree hashes of config.json and the weight files; see cached_sha256_tree for `world`
/// and `cache`.
[[nodiscard]] std::string model_fingerprint(const std::filesystem::path& folder, Communicator* world = nullptr,
                                            const std::filesystem::path& cache = {});

}  // namespace reprise
