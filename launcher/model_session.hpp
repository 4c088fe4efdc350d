#pragma once

#include <filesystem>
#include <memory>

#include "core/parameter.hpp"
#include "launcher/session.hpp"
#include "launcher/tokenizer_info.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

/// A Hugging Face folder loaded onto the ranks of a session.
template <class T>
struct LoadedModel {
  DecoderConfig config;
  VocabPartition vocab;  ///< real V = rows of the embedding that the tokenizer may use: config.vocab_size
  ParameterSet<T> parameters;
  std::unique_ptr<DecoderModel<T>> model;
};

/// Reads config.json, declares, allocates (`values_only` for commands that do not train) and loads. Collective.
template <class T>
[[nodiscard]] std::unique_ptr<LoadedModel<T>> load_model(Session& session, const std::filesystem::path& folder,
                                                         bool values_only);

}  // namespace reprise
