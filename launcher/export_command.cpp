#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/strict_json.hpp"
#include "launcher/checkpoint.hpp"
#include "launcher/commands.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/model_session.hpp"
#include "launcher/store_provenance.hpp"

namespace reprise {

namespace {

/// The checkpoint that is meant: the newest sound one, that of a step, or the best.
std::filesystem::path choose_checkpoint(Session& session, const ExportCommandOptions& options) {
  const std::filesystem::path root = options.run / "checkpoints";
  if (options.step < 0 && !options.best) {
    const auto found = find_checkpoint(session.world(), root);
    require(found.has_value(), ErrorKind::kCheckpoint, "{}: no sound checkpoint; train first", root.string());
    return found->folder;
  }
  std::string steps;
  for (const CheckpointInfo& info : list_checkpoints(root)) {
    if (options.best ? info.is_best : info.step == options.step) return info.folder;
    steps += fmt::format("{}{}", steps.empty() ? "" : ", ", info.step);
  }
  fail(ErrorKind::kCheckpoint, "{}: no checkpoint {}; there are those of step {}", root.string(),
       options.best ? std::string("is marked as the best (set train.eval_every and data.eval)")
                    : fmt::format("of step {}", options.step),
       steps.empty() ? "none" : steps);
}

/// The model folder of a run: as its run file names it, or where it was when the run began.
std::filesystem::path source_model(const std::filesystem::path& run, const RunConfig& config) {
  std::filesystem::path folder = config.model.path;
  const std::filesystem::path provenance = run / "provenance.json";
  if (!std::filesystem::exists(folder) && std::filesystem::exists(provenance)) {
    folder = read_json_object(provenance, ErrorKind::kCheckpoint).value("model_path", folder.string());
  }
  require(std::filesystem::exists(folder), ErrorKind::kUsage,
          "{}: the model folder that {} was trained from is gone; its configuration and tokenizer are needed",
          folder.string(), run.string());
  return folder;
}

/// What an export wants of a checkpoint: the master weights of all that trained, but for padding rows, which stay as
/// the source has them, whatever weight decay or another storage type made of them. `ids`: this rank's ids.
std::vector<OwnedPiece> masters_of(ParameterSet<float>& trained, Range ids) {
  std::vector<OwnedPiece> masters;
  for (std::int64_t p = 0; p < trained.count(); ++p) {
    const ParameterSpec& spec = trained.spec(p);
    if (spec.frozen) continue;
    const bool has_vocabulary = spec.layer == "embedding" || spec.layer == "head";
    const std::int64_t size = has_vocabulary ? ids.size() * spec.cols() : spec.size();
    if (size > 0) masters.push_back({p, {0, size}, trained.value(p).flat().slice(0, size), {}, {}});
  }
  return masters;
}

/// Adapters alone: the base's weights are not read.
std::int64_t export_adapter(Session& session, const ExportCommandOptions& options, const RunConfig& config,
                            const std::filesystem::path& source, const std::filesystem::path& checkpoint) {
  const ProcessGroups& groups = session.groups();
  const DecoderConfig decoder = read_decoder_config(source, config.model.vocab_size);
  const VocabPartition vocab = VocabPartition::even(decoder.vocab_rows(), decoder.vocab_size, groups.tp_size());
  ParameterSet<float> base, adapters;
  const DecoderModel<float> declaring(decoder, vocab, groups, base, false, {config.lora_options(), &adapters});
  adapters.allocate(session.stream(), kBucketElements, groups.dp_size(), true);
  const TrainerState state =
      load_checkpoint(session.stream(), groups, checkpoint, adapters.specs(), masters_of(adapters, {}));
  const std::string dtype = options.dtype == "source" ? "float32" : options.dtype;
  export_peft_adapter(groups, adapters, {config.lora_options(), source, dtype}, options.output);
  return state.step;
}

/// A checkpoint of adapters holds nothing of the base: it must be the one beside which they were trained.
void require_same_base(Session& session, const RunConfig& config, const std::filesystem::path& source,
                       const std::filesystem::path& checkpoint) {
  const std::filesystem::path cache = hash_cache_path();
  const std::string base = model_fingerprint(source, &session.world(), cache);
  const std::string found = adapted_fingerprint(base, config.lora.adapter, &session.world(), cache);
  require(found == read_trainer_state(checkpoint).model_fingerprint, ErrorKind::kCheckpoint,
          "{}: {} was trained beside other weights{}; restore them, or export the adapters without --merge",
          source.string(), checkpoint.string(), config.lora.adapter.empty() ? "" : " or another lora.adapter");
}

std::int64_t export_model(Session& session, const ExportCommandOptions& options, const RunConfig& config,
                          const std::filesystem::path& source, const std::filesystem::path& checkpoint) {
  if (config.lora.rank > 0) require_same_base(session, config, source, checkpoint);
  // What is frozen is in no checkpoint, so everything is loaded from the source first.
  const auto model = load_model<float>(session, source, true, config.model.vocab_size, {.lora = config.lora_options()});
  const Range ids = model->vocab.ids(session.groups().tp_rank());
  ParameterSet<float>& trained = model->trained();
  const TrainerState state =
      load_checkpoint(session.stream(), session.groups(), checkpoint, trained.specs(), masters_of(trained, ids));
  if (model->lora.rank > 0) merge_adapters(session.stream(), model->adapters, model->lora, model->parameters);
  ExportOptions export_options;
  if (options.dtype != "source") export_options.dtype = options.dtype;
  export_options.max_shard_bytes = parse_byte_size(options.max_shard_size);
  export_hugging_face(session.groups(), model->parameters, source, options.output, export_options);
  return state.step;
}

}  // namespace

void export_command(Session& session, const ExportCommandOptions& options) {
  require(options.step < 0 || !options.best, ErrorKind::kUsage, "--step and --best cannot both be given");
  const std::filesystem::path checkpoint = choose_checkpoint(session, options);
  const std::string run_toml = read_trainer_state(checkpoint).run_toml;
  const RunConfig config = parse_run_config(run_toml, "the checkpoint's run file", {});
  const std::filesystem::path source = source_model(options.run, config);

  const bool is_adapted = config.lora.rank > 0;
  require(is_adapted || !options.merge, ErrorKind::kUsage, "--merge: {} trained no adapters; leave it out",
          options.run.string());
  const bool alone = is_adapted && !options.merge;
  const std::int64_t step = alone ? export_adapter(session, options, config, source, checkpoint)
                                  : export_model(session, options, config, source, checkpoint);
  if (session.is_first()) {
    fmt::print("{}: the {} after step {}{}\n", options.output.string(), alone ? "adapters" : "model", step,
               options.dtype == "source" ? "" : fmt::format(" ({})", options.dtype));
  }
}

}  // namespace reprise
