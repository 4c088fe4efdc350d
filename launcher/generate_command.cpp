#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "launcher/commands.hpp"
#include "launcher/generator.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/json_lines.hpp"
#include "launcher/model_session.hpp"
#include "launcher/progress.hpp"

namespace reprise {

namespace {

/// Batches of a data-parallel rank between two exchanges of what was made: the longer, the less the last documents of
/// each leave the batch empty.
constexpr std::int64_t kBatchesPerRound = 16;

/// The tokens before the first one that is trained on; all but the last where nothing is.
std::vector<std::int32_t> prompt_of(const Sample& sample) {
  const auto trained = std::find(sample.mask.begin() + 1, sample.mask.end(), 1);
  const auto count = trained == sample.mask.end() ? sample.size() - 1 : trained - sample.mask.begin();
  return {sample.tokens.begin(), sample.tokens.begin() + count};
}

std::vector<Prompt> prompts_of_data(const std::string& prefix, std::int64_t vocab_size) {
  std::vector<Prompt> prompts;
  const IndexedDataset dataset(prefix, vocab_size);
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const Sample sample = dataset.read(d);
    require(sample.size() >= 2, ErrorKind::kData, "{}: document {} has {} tokens; a prompt and a next token need 2",
            prefix, d, sample.size());
    prompts.push_back({sample.id, prompt_of(sample)});
  }
  return prompts;
}

/// Lines {"tokens": [ids]}, optionally with the number "sample"; else prompts count from 0.
std::vector<Prompt> prompts_of_file(const std::filesystem::path& path, std::int64_t vocab_size) {
  std::vector<Prompt> prompts;
  read_json_lines(path, [&](const nlohmann::json& line, const std::string& where) {
    require_known_keys(line, {"sample", "tokens"}, where);
    require(line.contains("tokens"), ErrorKind::kData, "{}: no \"tokens\"", where);
    Prompt prompt{prompts.size(), ids_of(line["tokens"], "tokens", vocab_size, where)};
    if (line.contains("sample")) {
      require(line["sample"].is_number_unsigned(), ErrorKind::kData, "{}: sample = {}: must be a whole number", where,
              line["sample"].dump().substr(0, 40));
      prompt.id = line["sample"].get<std::uint64_t>();
    }
    prompts.push_back(prompt);
  });
  require(!prompts.empty(), ErrorKind::kData, "{}: no prompt in the file", path.string());
  return prompts;
}

std::vector<std::int32_t> ids_of_flag(const std::vector<std::int64_t>& values, const std::string& flag,
                                      std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  for (const std::int64_t id : values) {
    require(0 <= id && id < vocab_size, ErrorKind::kUsage, "{}: id {} is not in [0, {})", flag, id, vocab_size);
    ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

/// What is to be continued, sample by sample of a prompt.
std::vector<Prompt> read_prompts(const GenerateOptions& options, std::int64_t vocab_size) {
  std::vector<Prompt> prompts;
  if (!options.data.empty()) {
    prompts = prompts_of_data(options.data, vocab_size);
  } else if (!options.prompts.empty()) {
    prompts = prompts_of_file(options.prompts, vocab_size);
  } else {
    prompts = {{0, ids_of_flag(options.prompt, "--prompt", vocab_size)}};
  }
  std::vector<Prompt> samples;
  for (const Prompt& prompt : prompts) {
    for (std::int64_t s = 0; s < options.num_samples; ++s) {
      samples.push_back({prompt.id, prompt.tokens, static_cast<std::uint64_t>(s)});
    }
  }
  return samples;
}

GeneratorOptions generator_options(const GenerateOptions& options, std::int64_t vocab_size) {
  GeneratorOptions generator;
  generator.max_tokens = options.max_tokens;
  generator.batch = options.batch;
  generator.log_probs = options.log_probs;
  generator.sampling = {options.temperature, options.top_k, options.top_p, static_cast<std::uint64_t>(options.seed)};
  if (!options.ignore_eos) generator.stop_ids = read_tokenizer_info(options.model).eos_ids;
  const std::vector<std::int32_t> more = ids_of_flag(options.stop_ids, "--stop-ids", vocab_size);
  generator.stop_ids.insert(generator.stop_ids.end(), more.begin(), more.end());
  return generator;
}

/// The continuations of a round, on every rank: those of dp rank 0 first.
std::vector<Continuation> gather(Communicator& dp, const Stream& stream, const std::vector<Continuation>& own) {
  std::vector<std::int32_t> words;
  for (const Continuation& text : own) {
    words.insert(words.end(), {static_cast<std::int32_t>(text.tokens.size()), text.stop_id,
                               static_cast<std::int32_t>(text.log_probs.size())});
    words.insert(words.end(), text.tokens.begin(), text.tokens.end());
    for (const float value : text.log_probs) words.push_back(std::bit_cast<std::int32_t>(value));
  }
  const auto size = std::ssize(words);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(dp.size()));
  const std::int64_t own_size = size;
  dp.all_gather<std::int64_t>(stream, {&own_size, 1}, counts);
  std::vector<std::int32_t> all(
      static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
  dp.all_gather<std::int32_t>(stream, words, all, counts);
  std::vector<Continuation> texts;
  for (auto word = all.begin(); word != all.end();) {
    Continuation text;
    const std::int32_t tokens = *word++;
    text.stop_id = *word++;
    const std::int32_t log_probs = *word++;
    text.tokens.assign(word, word + tokens);
    word += tokens;
    for (std::int32_t i = 0; i < log_probs; ++i) text.log_probs.push_back(std::bit_cast<float>(*word++));
    texts.push_back(text);
  }
  return texts;
}

std::string to_line(const Prompt& prompt, const Continuation& text, const GenerateOptions& options) {
  nlohmann::ordered_json line;
  line["sample"] = prompt.id;
  if (options.num_samples > 1) line["index"] = prompt.sample;
  line["tokens"] = text.tokens;
  const bool stopped = text.stop_id >= 0;
  line["finish"] = stopped ? "stop" : "length";
  if (stopped) line["stop_id"] = text.stop_id;
  if (options.log_probs) {
    const auto count = static_cast<std::ptrdiff_t>(text.tokens.size());
    line["log_probs"] = std::vector<float>(text.log_probs.begin(), text.log_probs.begin() + count);
    if (stopped) line["stop_log_prob"] = text.log_probs.back();
  }
  return line.dump() + "\n";
}

/// Lines to a file that appears when it is whole, or to standard output.
class LineWriter {
 public:
  explicit LineWriter(const std::filesystem::path& path) {
    if (!path.empty()) file_.emplace(path);
  }
  void write(const std::string& lines) {
    if (!file_) {
      fmt::print("{}", lines);
      std::fflush(stdout);  // whole lines, before anything else is said
      return;
    }
    file_->write(written_, lines.data(), std::ssize(lines));
    written_ += std::ssize(lines);
  }
  void finish() {
    if (file_) file_->finish();
  }

 private:
  std::optional<OutputFile> file_;
  std::int64_t written_ = 0;
};

template <class T>
void run_generate(Session& session, const GenerateOptions& options) {
  const auto model = load_model<T>(session, options.model, true, options.vocab_size, adapter_in(options.adapter));
  const std::vector<Prompt> prompts = read_prompts(options, model->config.vocab_size);
  GeneratorOptions generator = generator_options(options, model->config.vocab_size);

  Communicator& dp = *session.groups().dp;
  const std::int64_t total = std::ssize(prompts), share = options.batch * kBatchesPerRound;
  Progress progress("generate", total, !session.is_first());
  std::optional<LineWriter> writer;
  if (session.is_first()) writer.emplace(options.output);
  std::int64_t made = 0;
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t round = 0; round < total; round += dp.size() * share) {
    const std::int64_t end = std::min(total, round + dp.size() * share);
    // The last round may be short: an even part for every rank.
    const Range own = even_shard(end - round, dp.size(), dp.rank());
    generator.on_finished = [&](std::int64_t done) { progress.update(std::min(end, round + done * dp.size())); };
    const auto texts =
        gather(dp, session.host(),
               generate(session, *model->model,
                        {prompts.begin() + round + own.begin, prompts.begin() + round + own.end}, generator));
    std::string lines;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      made += std::ssize(texts[i].tokens);
      lines += to_line(prompts[static_cast<std::size_t>(round) + i], texts[i], options);
    }
    if (writer) writer->write(lines);
    progress.update(end);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  progress.finish();
  if (!writer) return;
  writer->finish();
  fmt::print(stderr, "{} continuations of {} tokens in {} ({:.0f} tokens/s)\n", format_count(total), format_count(made),
             format_seconds(seconds), static_cast<double>(made) / seconds);
}

}  // namespace

void generate_command(Session& session, const GenerateOptions& options) {
  const int sources =
      (options.data.empty() ? 0 : 1) + (options.prompts.empty() ? 0 : 1) + (options.prompt.empty() ? 0 : 1);
  require(sources == 1, ErrorKind::kUsage, "one of --data, --prompts and --prompt says what to continue");
  require(options.max_tokens >= 1, ErrorKind::kUsage, "--max-tokens {}: must be at least 1", options.max_tokens);
  require(options.batch >= 1, ErrorKind::kUsage, "--batch {}: must be at least 1", options.batch);
  require(options.num_samples >= 1, ErrorKind::kUsage, "--num-samples {}: must be at least 1", options.num_samples);
  require(options.dtype == "float32" || options.dtype == "bfloat16", ErrorKind::kUsage,
          "--dtype {}: must be float32 or bfloat16", options.dtype);
  check_sampling_rule({options.temperature, options.top_k, options.top_p, 0});
  require(options.temperature > 0.0 || (options.top_k == 0 && options.top_p == 1.0 && options.num_samples == 1),
          ErrorKind::kUsage,
          "--top-k, --top-p and --num-samples draw, and --temperature 0 does not; give --temperature 1 or another");
  if (options.dtype == "bfloat16") {
    run_generate<BFloat16>(session, options);
  } else {
    run_generate<float>(session, options);
  }
}

}  // namespace reprise
