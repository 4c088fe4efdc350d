#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "core/parameter.hpp"
#include "launcher/peft_adapter.hpp"
#include "launcher/session.hpp"
#include "launcher/tokenizer_info.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

/// Elements of a bucket: a collective of this many float32 is long enough for full bandwidth and short enough to hide
/// behind backward.
inline constexpr std::int64_t kBucketElements = std::int64_t{8} << 20;

/// A Hugging Face folder loaded onto the ranks of a session.
template <class T>
struct LoadedModel {
  DecoderConfig config;
  VocabPartition vocab;  ///< config.vocab_size ids in config.vocab_rows() rows
  ParameterSet<T> parameters;
  LoraOptions lora;
  ParameterSet<T> adapters;  ///< of lora.rank > 0; `parameters` are frozen then
  std::unique_ptr<DecoderModel<T>> model;

  /// What trains, and all that a checkpoint holds.
  [[nodiscard]] ParameterSet<T>& trained() { return lora.rank > 0 ? adapters : parameters; }
};

/// Reads config.json (see read_decoder_config for `vocab_size`), declares, allocates (`values_only` for commands that
/// do not train) and loads, with `adapter` beside the then frozen base. Collective.
template <class T>
[[nodiscard]] std::unique_ptr<LoadedModel<T>> load_model(Session& session, const std::filesystem::path& folder,
                                                         bool values_only, std::int64_t vocab_size = 0,
                                                         const AdapterOptions& adapter = {});

}  // namespace reprise
