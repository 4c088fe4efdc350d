#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "launcher/choices.hpp"
#include "launcher/commands.hpp"
#include "launcher/data_loader.hpp"
#include "launcher/evaluator.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/model_session.hpp"
#include "launcher/npy_writer.hpp"
#include "launcher/progress.hpp"
#include "launcher/text_table.hpp"

namespace reprise {

namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

Json number_or_null(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

/// A file of JSON lines that appears when it is whole; nothing where no path is given.
class LinesFile {
 public:
  explicit LinesFile(const std::filesystem::path& path) {
    if (!path.empty()) file_.emplace(path);
  }
  void append(const Json& line) {
    if (!file_) return;
    const std::string text = line.dump() + "\n";
    file_->write(written_, text.data(), std::ssize(text));
    written_ += std::ssize(text);
  }
  void finish() {
    if (file_) file_->finish();
  }

 private:
  std::optional<OutputFile> file_;
  std::int64_t written_ = 0;
};

Json to_json(const std::string& prefix, const EvalResult& result, const DataStatistics& statistics) {
  Json json;
  json["data"] = prefix;
  json["loss"] = result.loss;
  json["perplexity"] = number_or_null(std::exp(result.loss));
  json["top1"] = result.top1;
  json["tokens"] = result.tokens;
  json["samples"] = result.samples;
  json["truncated"] = statistics.truncated;
  if (!result.outside) return json;
  Json& outside = json["outside"];
  outside["tokens"] = result.outside->tokens;
  outside["mean"] = result.outside->mean;
  for (std::size_t q = 0; q < OutsideMass::kQuantiles.size(); ++q) {
    outside[fmt::format("q{:g}", 100.0 * OutsideMass::kQuantiles[q])] = result.outside->quantiles[q];
  }
  outside["gold_outside_rate"] = result.outside->gold_outside_rate;
  return json;
}

void print_result(const std::string& prefix, const EvalResult& result, const DataStatistics& statistics) {
  fmt::print("{}: loss {:.6f} nats per token (perplexity {:.4f}), top-1 {:.2f} %, over {} tokens of {} samples\n",
             prefix, result.loss, std::exp(result.loss), 100.0 * result.top1, format_count(result.tokens),
             format_count(result.samples));
  if (statistics.truncated > 0) fmt::print("  {} samples were truncated\n", format_count(statistics.truncated));
  if (!result.outside) return;
  const OutsideMass& outside = *result.outside;
  fmt::print(
      "  outside the recorded sets: mean {:.3g}, median {:.3g}, 90 % below {:.3g}, 99 % below {:.3g} of the "
      "probability\n  of {} recorded targets; gold was outside {:.2f} % of the sets when they were collected\n",
      outside.mean, outside.quantiles[0], outside.quantiles[1], outside.quantiles[2], format_count(outside.tokens),
      100.0 * outside.gold_outside_rate);
}

Json to_json(const std::string& prefix, const SampleScore& sample) {
  Json line;
  line["data"] = prefix;
  line["sample"] = sample.document;
  line["tokens"] = sample.tokens;
  line["loss"] = number_or_null(sample.loss());
  line["top1"] = sample.top_share();
  if (sample.recorded > 0) line["outside"] = sample.outside / static_cast<double>(sample.recorded);
  return line;
}

/// Throws for a store that cannot belong to the model's data.
std::unique_ptr<ReplayStoreReader> open_store(const EvalOptions& options, std::int64_t vocab_size) {
  if (options.store.empty()) return nullptr;
  auto store = std::make_unique<ReplayStoreReader>(options.store);
  const auto& provenance = store->manifest().provenance;
  const auto recorded = provenance.find("vocab_size");
  require(recorded == provenance.end() || recorded->second == std::to_string(vocab_size), ErrorKind::kStoreMismatch,
          "{}: collected over a vocabulary of {}, the model has {}", options.store.string(), recorded->second,
          vocab_size);
  return store;
}

template <class T>
void run_data(Session& session, const EvalOptions& options, LoadedModel<T>& model, EvaluationOptions evaluation) {
  const auto store = open_store(options, model.config.vocab_size);
  evaluation.store = store.get();
  std::vector<std::unique_ptr<IndexedDataset>> datasets;
  std::vector<DataStatistics> statistics;
  std::int64_t targets = 0;
  for (std::size_t i = 0; i < options.data.size(); ++i) {
    datasets.push_back(std::make_unique<IndexedDataset>(options.data[i], model.config.vocab_size, i));
    statistics.push_back(count_data(*datasets.back(), evaluation.sequence_length));
    targets += statistics.back().targets;
  }
  std::optional<NpyWriter> per_token;
  std::optional<LinesFile> per_sample;
  if (session.is_first() && !options.per_token.empty()) per_token.emplace(options.per_token, targets);
  if (session.is_first() && !options.per_sample.empty()) per_sample.emplace(options.per_sample);
  if (!options.per_token.empty()) {
    evaluation.on_log_probs = [&](std::span<const float> log_probs) {
      if (per_token) per_token->append(log_probs);
    };
  }
  const auto start = Clock::now();
  std::int64_t read = 0;
  for (std::size_t i = 0; i < datasets.size(); ++i) {
    Progress progress("eval", datasets[i]->size(), !session.is_first());
    evaluation.progress = &progress;
    evaluation.on_sample = [&](const SampleScore& sample) {
      if (per_sample) per_sample->append(to_json(options.data[i], sample));
    };
    const EvalResult result = evaluate(session, *model.model, *datasets[i], evaluation);
    progress.finish();
    read += statistics[i].tokens;
    if (!session.is_first()) continue;
    if (options.json) {
      fmt::print("{}\n", to_json(options.data[i], result, statistics[i]).dump());
    } else {
      print_result(options.data[i], result, statistics[i]);
    }
    std::fflush(stdout);
  }
  if (per_token) per_token->finish();
  if (per_sample) per_sample->finish();
  if (!session.is_first()) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  fmt::print(stderr, "{} tokens read in {} ({:.0f} tokens/s)\n", format_count(read), format_seconds(seconds),
             static_cast<double>(read) / seconds);
}

/// What lm-evaluation-harness calls a way to compare choices, where the file has the lengths for it.
struct ChoiceMetric {
  const char* name;
  ChoiceLength length;
  const char* meaning;
};

std::vector<ChoiceMetric> metrics_of(const std::vector<ChoiceItem>& items) {
  std::vector<ChoiceMetric> metrics = {{"acc", ChoiceLength::kNone, "sum of log-likelihoods"},
                                       {"acc_token", ChoiceLength::kTokens, "per token"}};
  if (!items.front().chars.empty()) metrics.push_back({"acc_norm", ChoiceLength::kChars, "per character"});
  if (!items.front().bytes.empty()) metrics.push_back({"acc_bytes", ChoiceLength::kBytes, "per byte"});
  return metrics;
}

void print_accuracies(const EvalOptions& options, const std::vector<ChoiceItem>& items, const ScoredChoices& scored) {
  Json json;
  TextTable table("lrrl");
  json["choices"] = options.choices.string();
  json["items"] = items.size();
  for (const ChoiceMetric& metric : metrics_of(items)) {
    const Accuracy found = accuracy(items, scored, metric.length);
    json[metric.name] = found.value;
    json[std::string(metric.name) + "_stderr"] = number_or_null(found.standard_error);
    table.add({metric.name, fmt::format("{:.4f}", found.value),
               std::isfinite(found.standard_error) ? fmt::format("+- {:.4f}", found.standard_error) : "",
               metric.meaning});
  }
  json["truncated"] = scored.truncated;
  if (options.json) {
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}: {} items\n{}", options.choices.string(), format_count(std::ssize(items)), table.text());
  if (scored.truncated > 0) {
    fmt::print("{} sequences were longer than the model reads and lost their beginning\n",
               format_count(scored.truncated));
  }
}

template <class T>
void run_choices(Session& session, const EvalOptions& options, LoadedModel<T>& model,
                 const EvaluationOptions& evaluation) {
  const auto items = read_choices(options.choices, model.config.vocab_size, evaluation.sequence_length);
  Progress progress("eval", std::ssize(items), !session.is_first());
  const ScoredChoices scored =
      score_choices(session, *model.model, items, {evaluation.sequence_length, evaluation.micro_batch, &progress});
  progress.finish();
  if (!session.is_first()) return;
  LinesFile per_sample(options.per_sample);
  for (std::size_t i = 0; i < items.size(); ++i) {
    Json line;
    line["item"] = i;
    line["answer"] = items[i].answers;
    line["predicted"] = predict(items[i], scored.items[i], ChoiceLength::kNone);
    for (const ChoiceScore& score : scored.items[i]) {
      line["log_likelihood"].push_back(number_or_null(score.log_likelihood));
      line["greedy"].push_back(score.is_greedy);
    }
    per_sample.append(line);
  }
  per_sample.finish();
  print_accuracies(options, items, scored);
}

template <class T>
void run_eval(Session& session, const EvalOptions& options) {
  const auto model = load_model<T>(session, options.model, true, options.vocab_size, adapter_in(options.adapter));
  const std::int64_t limit = model->config.max_position_embeddings;
  EvaluationOptions evaluation;
  evaluation.sequence_length = options.sequence_length == 0 ? limit : options.sequence_length;
  evaluation.micro_batch = options.micro_batch;
  require(1 <= evaluation.sequence_length && evaluation.sequence_length <= limit, ErrorKind::kUsage,
          "--sequence-length {}: must lie between 1 and the model's {} positions", options.sequence_length, limit);
  if (options.choices.empty()) {
    run_data(session, options, *model, evaluation);
  } else {
    run_choices(session, options, *model, evaluation);
  }
}

}  // namespace

void eval_command(Session& session, const EvalOptions& options) {
  require(options.dtype == "float32" || options.dtype == "bfloat16", ErrorKind::kUsage,
          "--dtype {}: must be float32 or bfloat16", options.dtype);
  require(options.micro_batch >= 1, ErrorKind::kUsage, "--micro-batch {}: must be at least 1", options.micro_batch);
  require(options.data.empty() != options.choices.empty(), ErrorKind::kUsage,
          "one of --data and --choices says what to evaluate on");
  require(options.choices.empty() || (options.store.empty() && options.per_token.empty()), ErrorKind::kUsage,
          "--store and --per-token belong to --data, not to --choices");
  if (options.dtype == "bfloat16") {
    run_eval<BFloat16>(session, options);
  } else {
    run_eval<float>(session, options);
  }
}

}  // namespace reprise
