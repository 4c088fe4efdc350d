#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "launcher/commands.hpp"
#include "launcher/generator.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/model_session.hpp"
#include "launcher/progress.hpp"

namespace reprise {

namespace {

/// The tokens before the first one that is trained on; all but the last where nothing is.
std::vector<std::int32_t> prompt_of(const Sample& sample) {
  const auto trained = std::find(sample.mask.begin() + 1, sample.mask.end(), 1);
  const auto count = trained == sample.mask.end() ? sample.size() - 1 : trained - sample.mask.begin();
  return {sample.tokens.begin(), sample.tokens.begin() + count};
}

std::vector<Prompt> read_prompts(const GenerateOptions& options, std::int64_t vocab_size) {
  std::vector<Prompt> prompts;
  if (!options.data.empty()) {
    const IndexedDataset dataset(options.data, vocab_size);
    for (std::int64_t d = 0; d < dataset.size(); ++d) {
      const Sample sample = dataset.read(d);
      require(sample.size() >= 2, ErrorKind::kData, "{}: document {} has {} tokens; a prompt and a next token need 2",
              options.data, d, sample.size());
      prompts.push_back({sample.id, prompt_of(sample)});
    }
    return prompts;
  }
  Prompt prompt;
  for (const std::int64_t id : options.prompt) {
    require(0 <= id && id < vocab_size, ErrorKind::kUsage, "--prompt: id {} is not in [0, {})", id, vocab_size);
    prompt.tokens.push_back(static_cast<std::int32_t>(id));
  }
  return {prompt};
}

/// One text per prompt of a round, [dp_size * batch], on every rank: dp rank r made the r-th batch of it.
std::vector<std::vector<std::int32_t>> gather_texts(Communicator& dp, const Stream& stream,
                                                    const std::vector<std::vector<std::int32_t>>& own) {
  std::vector<std::int64_t> sizes{static_cast<std::int64_t>(own.size()), 0};
  std::vector<std::int32_t> tokens;
  for (const auto& text : own) {
    tokens.push_back(static_cast<std::int32_t>(text.size()));
    tokens.insert(tokens.end(), text.begin(), text.end());
  }
  const auto size = static_cast<std::int64_t>(tokens.size());
  std::vector<std::int64_t> counts(static_cast<std::size_t>(dp.size()));
  dp.all_gather<std::int64_t>(stream, {&size, 1}, counts);
  std::vector<std::int32_t> all(
      static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
  dp.all_gather<std::int32_t>(stream, tokens, all, counts);
  std::vector<std::vector<std::int32_t>> texts;
  for (auto next = all.begin(); next != all.end();) {
    const std::int32_t length = *next++;
    texts.emplace_back(next, next + length);
    next += length;
  }
  return texts;
}

std::string to_line(std::uint64_t sample, const std::vector<std::int32_t>& tokens) {
  nlohmann::ordered_json line;
  line["sample"] = sample;
  line["tokens"] = tokens;
  return line.dump() + "\n";
}

template <class T>
void run_generate(Session& session, const GenerateOptions& options) {
  const auto model = load_model<T>(session, options.model, true, options.vocab_size);
  const std::vector<Prompt> prompts = read_prompts(options, model->config.vocab_size);
  GeneratorOptions generator;
  generator.max_tokens = options.max_tokens;
  generator.temperature = options.temperature;
  generator.seed = static_cast<std::uint64_t>(options.seed);
  generator.eos_ids = read_tokenizer_info(options.model).eos_ids;

  Communicator& dp = *session.groups().dp;
  const auto total = static_cast<std::int64_t>(prompts.size());
  Progress progress("generate", total, !session.is_first());
  std::optional<OutputFile> output;
  if (session.is_first() && !options.output.empty()) output.emplace(options.output);
  std::int64_t written = 0;
  for (std::int64_t round = 0; round < total; round += dp.size() * options.batch) {
    const std::int64_t begin = std::min(total, round + dp.rank() * options.batch);
    const std::int64_t end = std::min(total, begin + options.batch);
    const auto own = generate(session, *model->model, {prompts.begin() + begin, prompts.begin() + end}, generator);
    const auto texts = gather_texts(dp, session.host(), own);
    std::string lines;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      lines += to_line(prompts[static_cast<std::size_t>(round) + i].id, texts[i]);
    }
    if (output) {
      output->write(written, lines.data(), static_cast<std::int64_t>(lines.size()));
      written += static_cast<std::int64_t>(lines.size());
    } else if (session.is_first()) {
      fmt::print("{}", lines);
    }
    progress.update(round + static_cast<std::int64_t>(texts.size()));
  }
  progress.finish();
  if (output) output->finish();
}

}  // namespace

void generate_command(Session& session, const GenerateOptions& options) {
  require(options.data.empty() != options.prompt.empty(), ErrorKind::kUsage,
          "one of --data and --prompt says what to continue");
  require(options.max_tokens >= 1, ErrorKind::kUsage, "--max-tokens {}: must be at least 1", options.max_tokens);
  require(options.batch >= 1, ErrorKind::kUsage, "--batch {}: must be at least 1", options.batch);
  require(options.temperature >= 0.0, ErrorKind::kUsage, "--temperature {}: must not be negative", options.temperature);
  require(options.dtype == "float32" || options.dtype == "bfloat16", ErrorKind::kUsage,
          "--dtype {}: must be float32 or bfloat16", options.dtype);
  if (options.dtype == "bfloat16") {
    run_generate<BFloat16>(session, options);
  } else {
    run_generate<float>(session, options);
  }
}

}  // namespace reprise
