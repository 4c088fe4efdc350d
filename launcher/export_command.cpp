#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/strict_json.hpp"
#include "launcher/checkpoint.hpp"
#include "launcher/commands.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/model_session.hpp"

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

}  // namespace

void export_command(Session& session, const ExportCommandOptions& options) {
  require(options.step < 0 || !options.best, ErrorKind::kUsage, "--step and --best cannot both be given");
  const std::filesystem::path checkpoint = choose_checkpoint(session, options);
  const std::string run_toml = read_trainer_state(checkpoint).run_toml;
  const RunConfig config = parse_run_config(run_toml, "the checkpoint's run file", {});
  const std::filesystem::path source = source_model(options.run, config);

  // Frozen parameters are in no checkpoint, so everything is loaded from the source first; padding rows stay as they
  // are there, whatever weight decay or another storage type made of them.
  const auto model = load_model<float>(session, source, true, config.model.vocab_size);
  const Range ids = model->vocab.ids(session.groups().tp_rank());
  std::vector<OwnedPiece> masters;
  for (std::int64_t p = 0; p < model->parameters.count(); ++p) {
    const ParameterSpec& spec = model->parameters.spec(p);
    if (spec.frozen) continue;
    const bool has_vocabulary = spec.layer == "embedding" || spec.layer == "head";
    const std::int64_t size = has_vocabulary ? ids.size() * spec.cols() : spec.size();
    if (size > 0) masters.push_back({p, {0, size}, model->parameters.value(p).flat().slice(0, size), {}, {}});
  }
  const TrainerState state =
      load_checkpoint(session.stream(), session.groups(), checkpoint, model->parameters.specs(), masters);
  ExportOptions export_options;
  export_options.dtype = options.dtype;
  export_options.max_shard_bytes = parse_byte_size(options.max_shard_size);
  export_hugging_face(session.groups(), model->parameters, source, options.output, export_options);
  if (session.is_first()) {
    fmt::print("{}: the model after step {} ({})\n", options.output.string(), state.step, options.dtype);
  }
}

}  // namespace reprise
