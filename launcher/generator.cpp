#include "launcher/generator.hpp"

#include <algorithm>

#include "core/elementwise.hpp"
#include "core/error.hpp"
#include "core/gemm.hpp"
#include "core/math.hpp"
#include "core/trace.hpp"
#include "core/transfer.hpp"

namespace reprise {

namespace {

/// One generation: prompts wait in order for a place in the cache.
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
        continuations_(prompts.size()),
        slots_(std::min(prompts.size(), static_cast<std::size_t>(options.batch))) {
    const std::int64_t limit = model.config().max_position_embeddings;
    std::int64_t longest = 0;
    for (const Prompt& prompt : prompts) {
      const auto length = std::ssize(prompt.tokens);
      require(1 <= length && length < limit, ErrorKind::kData,
              "prompt {}: {} tokens; must be at least 1 and leave one of the model's {} positions", prompt.id, length,
              limit);
      longest = std::max<std::int64_t>(longest, length);
    }
    cache_ = model.make_cache(std::ssize(slots_), std::min(limit, longest + options.max_tokens));
  }

  std::vector<Continuation> run() {
    for (fill_slots(); std::any_of(slots_.begin(), slots_.end(), is_busy); fill_slots()) step();
    return std::move(continuations_);
  }

 private:
  /// A place in the cache and who has it.
  struct Slot {
    std::int64_t prompt = -1;             ///< -1: free
    std::int64_t fed = 0;                 ///< tokens in the cache
    std::vector<std::int32_t> next = {};  ///< to be fed
  };
  static bool is_busy(const Slot& slot) { return slot.prompt >= 0; }

  void fill_slots() {
    for (std::size_t s = 0; s < slots_.size(); ++s) {
      if (is_busy(slots_[s]) || next_prompt_ == std::ssize(prompts_)) continue;
      slots_[s] = {next_prompt_, 0, prompts_[static_cast<std::size_t>(next_prompt_)].tokens};
      model_.restart(*cache_, static_cast<std::int64_t>(s));
      ++next_prompt_;
    }
  }

  /// Feeds what waits, prompts up to prefill_tokens, and draws for the documents that have nothing left to be fed.
  void step() {
    const TraceRange range("generate");
    const Arena::Scope scope(context_.arena);
    std::vector<std::int32_t> tokens, last_rows;
    std::vector<std::int64_t> offsets{0};
    std::vector<std::size_t> ready;
    std::int64_t room = options_.prefill_tokens;
    for (std::size_t s = 0; s < slots_.size(); ++s) {
      Slot& slot = slots_[s];
      const std::int64_t waiting = std::ssize(slot.next);
      const std::int64_t count = waiting == 1 ? 1 : std::min(waiting, room);  // a generated token always goes in
      if (waiting > 1) room -= count;
      tokens.insert(tokens.end(), slot.next.begin(), slot.next.begin() + count);
      slot.next.erase(slot.next.begin(), slot.next.begin() + count);
      slot.fed += count;
      offsets.push_back(std::ssize(tokens));
      if (!is_busy(slot) || !slot.next.empty()) continue;
      ready.push_back(s);
      last_rows.push_back(narrow<std::int32_t>(offsets.back() - 1));
    }
    const MatrixView<T> hidden = model_.decode(context_, *cache_, {tokens, offsets});
    if (ready.empty()) return;
    const auto rows = context_.arena.matrix<T>(std::ssize(ready), hidden.cols, "last rows");
    const auto last = context_.arena.vector<std::int32_t>(rows.rows, "last rows");
    copy_to_device<std::int32_t>(context_.stream, last_rows, last);
    gather_rows<T>(context_.stream, hidden, last, rows);
    const std::vector<NextToken> chosen = choose(rows, ready);
    for (std::size_t i = 0; i < ready.size(); ++i) advance(slots_[ready[i]], chosen[i]);
  }

  std::vector<NextToken> choose(MatrixView<const T> rows, const std::vector<std::size_t>& ready) {
    const Range ids = model_.vocab().ids(context_.groups.tp_rank());
    const auto logits = context_.arena.template matrix<float>(rows.rows, ids.size(), "logits");
    gemm<T, float>(context_.stream, Transpose::kNo, Transpose::kYes, 1.0f, rows,
                   model_.head_weight().row_range(0, ids.size()), 0.0f, logits);
    std::vector<DrawPlace> places;
    for (const std::size_t s : ready) {
      const Prompt& prompt = prompts_[static_cast<std::size_t>(slots_[s].prompt)];
      places.push_back({prompt.id, prompt.sample, static_cast<std::uint64_t>(slots_[s].fed)});
    }
    return choose_tokens(context_, host_, logits, model_.vocab(), options_.sampling, places, options_.log_probs);
  }

  /// Appends a token to a document, and feeds it next or frees the slot.
  void advance(Slot& slot, const NextToken& token) {
    Continuation& text = continuations_[static_cast<std::size_t>(slot.prompt)];
    if (options_.log_probs) text.log_probs.push_back(token.log_prob);
    const std::vector<std::int32_t>& stops = options_.stop_ids;
    if (std::find(stops.begin(), stops.end(), token.id) != stops.end()) {
      text.stop_id = token.id;
    } else {
      text.tokens.push_back(token.id);
      const bool is_full = std::ssize(text.tokens) >= options_.max_tokens;
      const bool has_room = slot.fed + 2 <= model_.config().max_position_embeddings;  // this one and another
      if (!is_full && has_room) {
        slot.next = {token.id};
        return;
      }
    }
    slot = {};
    if (options_.on_finished) options_.on_finished(++finished_);
  }

  Context context_;
  const Stream& host_;
  const DecoderModel<T>& model_;
  const std::vector<Prompt>& prompts_;
  const GeneratorOptions& options_;
  std::vector<Continuation> continuations_;
  std::vector<Slot> slots_;
  std::int64_t next_prompt_ = 0, finished_ = 0;
  std::unique_ptr<typename DecoderModel<T>::Cache, typename DecoderModel<T>::CacheDeleter> cache_;
};

}  // namespace

template <class T>
std::vector<Continuation> generate(Session& session, const DecoderModel<T>& model, const std::vector<Prompt>& prompts,
                                   const GeneratorOptions& options) {
  check_sampling_rule(options.sampling);
  REPRISE_CHECK(options.max_tokens >= 1 && options.batch >= 1 && options.prefill_tokens >= 1,
                "{} tokens, {} documents and {} prompt tokens at most", options.max_tokens, options.batch,
                options.prefill_tokens);
  if (prompts.empty()) return {};
  return Generation<T>(session, model, prompts, options).run();
}

template std::vector<Continuation> generate(Session&, const DecoderModel<float>&, const std::vector<Prompt>&,
                                            const GeneratorOptions&);
template std::vector<Continuation> generate(Session&, const DecoderModel<BFloat16>&, const std::vector<Prompt>&,
                                            const GeneratorOptions&);

}  // namespace reprise
