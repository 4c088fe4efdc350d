#include "launcher/model_session.hpp"

#include "launcher/hugging_face.hpp"

namespace reprise {

template <class T>
std::unique_ptr<LoadedModel<T>> load_model(Session& session, const std::filesystem::path& folder, bool values_only,
                                           std::int64_t vocab_size) {
  auto loaded = std::make_unique<LoadedModel<T>>();
  const ProcessGroups& groups = session.groups();
  loaded->config = read_decoder_config(folder, vocab_size);
  loaded->vocab = VocabPartition::even(loaded->config.vocab_rows(), loaded->config.vocab_size, groups.tp_size());
  loaded->model = std::make_unique<DecoderModel<T>>(loaded->config, loaded->vocab, groups, loaded->parameters,
                                                    session.context().sequence_parallel);
  loaded->parameters.allocate(session.stream(), kBucketElements, groups.dp_size(), values_only);
  load_hugging_face(folder, loaded->config.tie_word_embeddings, loaded->parameters);
  groups.world->barrier();  // a rank that cannot read its part fails before others begin
  return loaded;
}

template std::unique_ptr<LoadedModel<float>> load_model(Session&, const std::filesystem::path&, bool, std::int64_t);
template std::unique_ptr<LoadedModel<BFloat16>> load_model(Session&, const std::filesystem::path&, bool, std::int64_t);

}  // namespace reprise
