#include "launcher/generator.hpp"

#include <algorithm>
#include <cmath>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/gemm.hpp"
#include "core/math.hpp"
#include "core/random.hpp"
#include "core/transfer.hpp"
#include "launcher/arg_max.hpp"

namespace reprise {

namespace {

/// A token that a rank would take.
struct Choice {
  float value = -std::numeric_limits<float>::infinity();
  std::int64_t id = -1;

  void offer(float other_value, std::int64_t other_id) {
    if (other_value > value || id < 0) {
      value = other_value;
      id = other_id;
    }
  }
};

/// -log(-log(u)) with u in (0, 1) from (seed, prompt, position, token).
float gumbel_noise(std::uint64_t seed, std::uint64_t prompt, std::int64_t position, std::int64_t token) {
  const std::uint64_t key = random_bits(seed, prompt, static_cast<std::uint64_t>(position));
  const double uniform = random_uniform(key, static_cast<std::uint64_t>(token));
  return static_cast<float>(-std::log(-std::log(uniform + 0x1.0p-54)));
}

/// One generation: the documents that go on, in the order of their cache entries.
template <class T>
class Generation {
 public:
  Generation(Session& session, const DecoderModel<T>& model, const std::vector<Prompt>& prompts,
             const GeneratorOptions& options)
      : context_(session.context()),
        host_(session.host()),
        model_(model),
        prompts_(prompts),
        options_(options),
        texts_(prompts.size()),
        fed_(prompts.size()) {
    const std::int64_t limit = model.config().max_position_embeddings;
    std::int64_t longest = 0;
    for (std::size_t d = 0; d < prompts.size(); ++d) {
      const auto length = static_cast<std::int64_t>(prompts[d].tokens.size());
      require(1 <= length && length < limit, ErrorKind::kData,
              "prompt {}: {} tokens; must be at least 1 and leave one of the model's {} positions", prompts[d].id,
              length, limit);
      longest = std::max(longest, length);
    }
    const std::int64_t capacity = std::min(limit, longest + options.max_tokens);
    cache_ = model.make_cache(static_cast<std::int64_t>(prompts.size()), capacity);
  }

  std::vector<std::vector<std::int32_t>> run() {
    std::vector<std::vector<std::int32_t>> next;  // [documents] tokens to be fed; empty = ended
    for (const Prompt& prompt : prompts_)
      next.push_back(options_.max_tokens > 0 ? prompt.tokens : std::vector<std::int32_t>{});
    while (std::any_of(next.begin(), next.end(), [](const auto& tokens) { return !tokens.empty(); })) step(next);
    return std::move(texts_);
  }

 private:
  void step(std::vector<std::vector<std::int32_t>>& next) {
    const Arena::Scope scope(context_.arena);
    std::vector<std::int32_t> tokens, last_rows;
    std::vector<std::int64_t> offsets{0};
    std::vector<std::size_t> documents;
    for (std::size_t d = 0; d < next.size(); ++d) {
      tokens.insert(tokens.end(), next[d].begin(), next[d].end());
      offsets.push_back(static_cast<std::int64_t>(tokens.size()));
      fed_[d] += static_cast<std::int64_t>(next[d].size());
      if (next[d].empty()) continue;
      documents.push_back(d);
      last_rows.push_back(narrow<std::int32_t>(offsets.back() - 1));
    }
    const MatrixView<T> hidden = model_.decode(context_, *cache_, {tokens, offsets});
    const auto rows = context_.arena.matrix<T>(static_cast<std::int64_t>(documents.size()), hidden.cols, "last rows");
    const auto last = context_.arena.vector<std::int32_t>(rows.rows, "last rows");
    copy_to_device<std::int32_t>(context_.stream, last_rows, last);
    gather_rows<T>(context_.stream, hidden, last, rows);
    const std::vector<std::int32_t> chosen = choose(rows, documents);
    for (std::size_t i = 0; i < documents.size(); ++i) advance(documents[i], chosen[i], next[documents[i]]);
  }

  /// Appends a token to a document and says what is fed next.
  void advance(std::size_t document, std::int32_t token, std::vector<std::int32_t>& next) {
    next.clear();
    if (std::find(options_.eos_ids.begin(), options_.eos_ids.end(), token) != options_.eos_ids.end()) return;
    texts_[document].push_back(token);
    const bool full = static_cast<std::int64_t>(texts_[document].size()) >= options_.max_tokens;
    const bool has_room = fed_[document] + 2 <= model_.config().max_position_embeddings;  // this one and another
    if (!full && has_room) next = {token};
  }

  /// The next token of every row, agreed over tp.
  std::vector<std::int32_t> choose(MatrixView<const T> rows, const std::vector<std::size_t>& documents) {
    Communicator& tp = *context_.groups.tp;
    const Range ids = model_.vocab().ids(tp.rank());
    const auto logits = context_.arena.template matrix<float>(rows.rows, ids.size(), "logits");
    gemm<T, float>(context_.stream, Transpose::kNo, Transpose::kYes, 1.0f, rows,
                   model_.head_weight().row_range(0, ids.size()), 0.0f, logits);
    const std::vector<Choice> choices =
        options_.temperature > 0.0 ? draw(logits, ids.begin, documents) : take(logits, ids.begin);
    std::vector<double> own;
    for (const Choice& choice : choices)
      own.insert(own.end(), {static_cast<double>(choice.value), static_cast<double>(choice.id)});
    std::vector<double> all(own.size() * static_cast<std::size_t>(tp.size()));
    tp.all_gather<double>(host_, own, all);
    std::vector<std::int32_t> chosen;
    for (std::size_t row = 0; row < documents.size(); ++row) {
      Choice best;
      for (std::size_t begin = 2 * row; begin < all.size(); begin += own.size()) {
        const auto id = static_cast<std::int64_t>(all[begin + 1]);
        if (id >= 0) best.offer(static_cast<float>(all[begin]), id);  // a rank without vocabulary has no choice
      }
      require(std::isfinite(best.value), ErrorKind::kNonFinite, "prompt {}: the model's logits are not finite",
              prompts_[documents[row]].id);
      chosen.push_back(narrow<std::int32_t>(best.id));
    }
    return chosen;
  }

  /// This rank's largest logit of every row.
  std::vector<Choice> take(MatrixView<const float> logits, std::int64_t first_id) {
    const auto best = context_.arena.vector<ArgMax>(logits.rows, "largest logits");
    arg_max_rows(context_.stream, logits, best);
    std::vector<Choice> choices;
    const auto on_this_host = on_host(context_.stream, best);
    for (const ArgMax& row : on_this_host.view()) choices.push_back({row.value, row.col < 0 ? -1 : first_id + row.col});
    return choices;
  }

  /// The same with noise, made on the host.
  std::vector<Choice> draw(MatrixView<const float> logits, std::int64_t first_id,
                           const std::vector<std::size_t>& documents) {
    std::vector<Choice> choices(documents.size());
    const auto values = on_host(context_.stream, logits.flat());
    const MatrixView<const float> rows(values.view(), logits.rows, logits.cols);
    host_.cpu().parallel_for(rows.rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const auto index = static_cast<std::size_t>(row);
        choices[index] = noisy_best_of(rows.row(row), first_id, documents[index]);
      }
    });
    return choices;
  }

  [[nodiscard]] Choice noisy_best_of(VectorView<const float> logits, std::int64_t first_id,
                                     std::size_t document) const {
    Choice best;
    for (std::int64_t i = 0; i < logits.size; ++i) {
      const float value = static_cast<float>(logits[i] / options_.temperature) +
                          gumbel_noise(options_.seed, prompts_[document].id, fed_[document], first_id + i);
      best.offer(std::isnan(value) ? std::numeric_limits<float>::infinity() : value, first_id + i);
    }
    return best;
  }

  Context context_;
  const Stream& host_;
  const DecoderModel<T>& model_;
  const std::vector<Prompt>& prompts_;
  const GeneratorOptions& options_;
  std::vector<std::vector<std::int32_t>> texts_;
  std::vector<std::int64_t> fed_;  ///< tokens of each document in the cache
  std::unique_ptr<typename DecoderModel<T>::Cache, typename DecoderModel<T>::CacheDeleter> cache_;
};

}  // namespace

template <class T>
std::vector<std::vector<std::int32_t>> generate(Session& session, const DecoderModel<T>& model,
                                                const std::vector<Prompt>& prompts, const GeneratorOptions& options) {
  if (prompts.empty()) return {};
  return Generation<T>(session, model, prompts, options).run();
}

template std::vector<std::vector<std::int32_t>> generate(Session&, const DecoderModel<float>&,
                                                         const std::vector<Prompt>&, const GeneratorOptions&);
template std::vector<std::vector<std::int32_t>> generate(Session&, const DecoderModel<BFloat16>&,
                                                         const std::vector<Prompt>&, const GeneratorOptions&);

}  // namespace reprise
