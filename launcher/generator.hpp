#pragma once

#include <cstdint>
#include <vector>

#include "launcher/session.hpp"
#include "layers/decoder_model.hpp"

namespace reprise {

struct GeneratorOptions {
  std::int64_t max_tokens = 128;  ///< new tokens a document at most; also ends at max_position_embeddings
  double temperature = 0.0;       ///< 0 = greedy
  std::uint64_t seed = 1;
  std::vector<std::int32_t> eos_ids;  ///< a document ends at any of them
};

/// A prompt and the number that its random draws depend on.
struct Prompt {
  std::uint64_t id = 0;
  std::vector<std::int32_t> tokens;  ///< at least one
};

/// Continues all prompts together with a cache of keys and values; documents that have ended take no more part.
/// Greedy takes the largest logit, the smallest id among equals; sampling takes the largest of
/// logit / temperature + Gumbel noise by hash(seed, id, position, token), so a text depends on neither batch nor layout
/// but by rounding. One all-gather of (value, id) per token and document over tp. Without the end token.
/// Collective over tp. Throws Error(kData) for a prompt that leaves the model no position, Error(kNonFinite) for
/// logits that are not finite.
template <class T>
[[nodiscard]] std::vector<std::vector<std::int32_t>> generate(Session& session, const DecoderModel<T>& model,
                                                              const std::vector<Prompt>& prompts,
                                                              const GeneratorOptions& options);

}  // namespace reprise
