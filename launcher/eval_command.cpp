#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "launcher/commands.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/evaluator.hpp"
#include "launcher/model_session.hpp"
#include "launcher/npy_writer.hpp"
#include "launcher/progress.hpp"

namespace reprise {

namespace {

void print_result(const EvalOptions& options, const EvalResult& result, const DataStatistics& statistics) {
  if (options.json) {
    nlohmann::ordered_json json;
    json["data"] = options.data;
    json["loss"] = result.loss;
    json["perplexity"] = std::exp(result.loss);
    json["tokens"] = result.tokens;
    json["samples"] = result.samples;
    json["truncated"] = statistics.truncated;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}: loss {:.6f} nats per token (perplexity {:.4f}) over {} tokens of {} samples\n", options.data,
             result.loss, std::exp(result.loss), format_count(result.tokens), format_count(result.samples));
  if (statistics.truncated > 0) fmt::print("{} samples were truncated\n", format_count(statistics.truncated));
}

template <class T>
void run_eval(Session& session, const EvalOptions& options) {
  const auto model = load_model<T>(session, options.model, true, options.vocab_size);
  const std::int64_t limit = model->config.max_position_embeddings;
  EvaluationOptions evaluation;
  evaluation.sequence_length = options.sequence_length == 0 ? limit : options.sequence_length;
  evaluation.micro_batch = options.micro_batch;
  require(1 <= evaluation.sequence_length && evaluation.sequence_length <= limit, ErrorKind::kUsage,
          "--sequence-length {}: must lie between 1 and the model's {} positions", options.sequence_length, limit);
  require(options.micro_batch >= 1, ErrorKind::kUsage, "--micro-batch {}: must be at least 1", options.micro_batch);

  const IndexedDataset dataset(options.data, model->config.vocab_size);
  const DataStatistics statistics = count_data(dataset, evaluation.sequence_length);
  std::optional<NpyWriter> writer;
  if (session.is_first() && !options.per_token.empty()) writer.emplace(options.per_token, statistics.targets);
  if (!options.per_token.empty()) {
    evaluation.on_log_probs = [&](std::span<const float> log_probs) {
      if (writer) writer->append(log_probs);
    };
  }
  Progress progress("eval", dataset.size(), !session.is_first());
  evaluation.progress = &progress;
  const EvalResult result = evaluate(session, *model->model, dataset, evaluation);
  progress.finish();
  if (writer) writer->finish();
  if (session.is_first()) print_result(options, result, statistics);
}

}  // namespace

void eval_command(Session& session, const EvalOptions& options) {
  require(options.dtype == "float32" || options.dtype == "bfloat16", ErrorKind::kUsage,
          "--dtype {}: must be float32 or bfloat16", options.dtype);
  if (options.dtype == "bfloat16") {
    run_eval<BFloat16>(session, options);
  } else {
    run_eval<float>(session, options);
  }
}

}  // namespace reprise
