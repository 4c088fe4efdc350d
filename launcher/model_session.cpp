#include "launcher/model_session.hpp"

#include "launcher/hugging_face.hpp"

namespace reprise {

template <class T>
std::unique_ptr<LoadedModel<T>> load_model(Session& session, const std::filesystem::path& folder, bool values_only,
                                           std::int64_t vocab_size, const AdapterOptions& adapter) {
  auto loaded = std::make_unique<LoadedModel<T>>();
  const ProcessGroups& groups = session.groups();
  loaded->config = read_decoder_config(folder, vocab_size);
  loaded->vocab = VocabPartition::even(loaded->config.vocab_rows(), loaded->config.vocab_size, groups.tp_size());
  loaded->lora = adapter.lora;
  const bool is_adapted = adapter.lora.rank > 0;
  loaded->model = std::make_unique<DecoderModel<T>>(loaded->config, loaded->vocab, groups, loaded->parameters,
                                                    session.context().sequence_parallel,
                                                    is_adapted ? Lora<T>{adapter.lora, &loaded->adapters} : Lora<T>{});
  loaded->parameters.allocate(session.stream(), kBucketElements, groups.dp_size(), values_only || is_adapted);
  load_hugging_face(folder, loaded->config.tie_word_embeddings, loaded->parameters);
  if (is_adapted) {
    loaded->adapters.allocate(session.stream(), kBucketElements, groups.dp_size(), values_only);
    if (adapter.folder.empty()) {
      initialize_adapters(loaded->adapters, adapter.seed);
    } else {
      load_peft_adapter(adapter.folder, loaded->adapters);
    }
  }
  groups.world->barrier();  // a rank that cannot read its part fails before others begin
  return loaded;
}

template std::unique_ptr<LoadedModel<float>> load_model(Session&, const std::filesystem::path&, bool, std::int64_t,
                                                        const AdapterOptions&);
template std::unique_ptr<LoadedModel<BFloat16>> load_model(Session&, const std::filesystem::path&, bool, std::int64_t,
                                                           const AdapterOptions&);

}  // namespace reprise
