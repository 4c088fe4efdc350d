#include "launcher/run_config_fields.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

namespace reprise {

namespace {

LegalValues at_least(double low) {
  return {.low = low};
}
LegalValues above(double low) {
  return {.low = low, .above_low = true};
}
LegalValues between(double low, double high) {
  return {.low = low, .high = high};
}
LegalValues one_of(std::vector<std::string_view> choices) {
  return {.choices = std::move(choices)};
}
LegalValues not_empty() {
  return {.not_empty = true};
}

#define REPRISE_FIELD(section, key) #section, #key, [](RunConfig & config) -> FieldValue { return &config.section.key; }

std::vector<Field> make_fields() {
  constexpr double kLargestId = 2147483647.0;
  return {
      {REPRISE_FIELD(model, path), "Hugging Face folder: config.json, safetensors, tokenizer files", not_empty()},
      {REPRISE_FIELD(model, dtype), "storage of parameters and activations, bfloat16 on a GPU; sums are float32",
       one_of({"float32", "bfloat16"})},
      {REPRISE_FIELD(model, vocab_size),
       "ids that may occur, rows beyond are padding; 0 = the tokenizer's, without one all rows",
       between(0, kLargestId)},

      {REPRISE_FIELD(data, train), "prefix of .bin .idx (.mask.bin .weight.bin), or a list", not_empty()},
      {REPRISE_FIELD(data, weights), "of the prefixes; [] = in proportion to their samples", above(0)},
      {REPRISE_FIELD(data, general), "prefixes that train beside, under full cross-entropy on all targets",
       not_empty()},
      {REPRISE_FIELD(data, general_ratio), "part of the samples that data.general gives", between(1e-6, 1.0 - 1e-6)},
      {REPRISE_FIELD(data, eval), "prefixes that are evaluated every train.eval_every steps", not_empty()},
      {REPRISE_FIELD(data, sequence_length), "predicting tokens a sample; longer samples are truncated and counted",
       between(1, kLargestId)},
      {REPRISE_FIELD(data, pack), "several samples a row, boundaries kept"},
      {REPRISE_FIELD(data, shuffle), "by a permutation of (seed, epoch)"},
      {REPRISE_FIELD(data, seed), "of the shuffle and of the recorded positions", at_least(0)},

      {REPRISE_FIELD(replay, store), "folder of the replay store; \"\" = none, only with normalization \"full\""},
      {REPRISE_FIELD(replay, tau),
       "probability that a token's set covers; 1 = always k_max ids",
       {.low = 0, .high = 1, .above_low = true}},
      {REPRISE_FIELD(replay, k_max), "ids a set at most", between(1, 65535)},
      {REPRISE_FIELD(replay, k_min), "ids a set at least", between(1, 65535)},
      {REPRISE_FIELD(replay, positions), "which targets are recorded", one_of({"all", "random", "last", "bucket"})},
      {REPRISE_FIELD(replay, budget), "recorded targets a sample at most; 0 = no limit", at_least(0)},
      {REPRISE_FIELD(replay, normalization), "softmax over a token's set, a tile's union, or the whole vocabulary",
       one_of({"token", "tile", "full"})},
      {REPRISE_FIELD(replay, tile_tokens), "records a tile; beyond a sample's length = one tile a sample",
       between(1, kLargestId)},
      {REPRISE_FIELD(replay, negatives), "sampled vocabulary rows added to every tile", between(0, kLargestId)},
      {REPRISE_FIELD(replay, log_probs), "record the base model's log-probabilities too"},
      {REPRISE_FIELD(replay, missing), "samples that the store lacks", one_of({"error", "skip"})},

      {REPRISE_FIELD(optimizer, name), "", one_of({"moclip", "adamw"})},
      {REPRISE_FIELD(optimizer, lr), "highest learning rate", at_least(0)},
      {REPRISE_FIELD(optimizer, betas),
       "decay of the two moments",
       {.low = 0, .high = 1, .below_high = true, .length = 2}},
      {REPRISE_FIELD(optimizer, eps), "adamw only", above(0)},
      {REPRISE_FIELD(optimizer, weight_decay), "not on norms and biases", at_least(0)},
      {REPRISE_FIELD(optimizer, clip_norm), "of the whole gradient; 0 = off", at_least(0)},
      {REPRISE_FIELD(optimizer, max_angle),
       "degrees between gradient and momentum, moclip only; 180 = off",
       {.low = 0, .high = 90, .above_low = true, .or_value = 180}},
      {REPRISE_FIELD(optimizer, angle_scope), "what one angle is measured over, moclip only",
       one_of({"tensor", "layer", "global"})},
      {REPRISE_FIELD(optimizer, obtuse), "a gradient at more than 90 degrees, moclip only",
       one_of({"keep", "drop", "project", "reflect", "rotate"})},
      {REPRISE_FIELD(optimizer, zero_stage), "sharded over the data-parallel ranks: 1 = state, 2 = gradients too",
       between(0, 2)},
      {REPRISE_FIELD(optimizer, max_skips), "non-finite steps in a row that end the run", at_least(1)},

      {REPRISE_FIELD(lora, rank), "of adapters that train beside a frozen model; 0 = the model itself trains",
       between(0, 65536)},
      {REPRISE_FIELD(lora, alpha), "adapters are scaled by alpha / rank", above(0)},
      {REPRISE_FIELD(lora, rslora), "by alpha / sqrt(rank) instead"},
      {REPRISE_FIELD(lora, targets), "",
       one_of({"all-linear", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})},
      {REPRISE_FIELD(lora, adapter), "PEFT folder to collect through and to train on, with its own rank and targets"},

      {REPRISE_FIELD(schedule, warmup_steps), "linear from 0 to lr", at_least(0)},
      {REPRISE_FIELD(schedule, decay), "from lr to min_lr_ratio lr at the last step",
       one_of({"cosine", "linear", "constant"})},
      {REPRISE_FIELD(schedule, min_lr_ratio), "", between(0, 1)},

      {REPRISE_FIELD(train, steps), "", between(1, kLargestId)},
      {REPRISE_FIELD(train, epochs), "instead of steps, fractions allowed; 0 = off", at_least(0)},
      {REPRISE_FIELD(train, global_batch), "samples a step over all ranks", between(1, kLargestId)},
      {REPRISE_FIELD(train, micro_batch), "rows that one rank computes at a time", between(1, kLargestId)},
      {REPRISE_FIELD(train, recompute), "in backward again: norms and SwiGLU, or whole layers",
       one_of({"none", "selective", "layer"})},
      {REPRISE_FIELD(train, eval_every), "steps; also before the first and after the last; 0 = never", at_least(0)},
      {REPRISE_FIELD(train, checkpoint_every), "steps; 0 = only at the end", at_least(0)},
      {REPRISE_FIELD(train, keep), "newest checkpoints that are kept, beside the best", at_least(1)},
      {REPRISE_FIELD(train, log_every), "steps a printed line", at_least(1)},
      {REPRISE_FIELD(train, probe_every), "steps a measurement of the probability outside the candidates; 0 = never",
       at_least(0)},
      {REPRISE_FIELD(train, seed), "of the sampled negatives and of new adapters", at_least(0)},

      {REPRISE_FIELD(parallel, tensor), "ranks that share one copy of the model; data = world / tensor",
       between(1, 65536)},
      {REPRISE_FIELD(parallel, sequence_parallel), "activations between the sharded layers sharded over tokens"},
      {REPRISE_FIELD(parallel, overlap),
       "gradients and parameters travel beside backward and forward (GPUs with NCCL)"},
      {REPRISE_FIELD(parallel, device), "where ranks compute; auto = a GPU where one is seen",
       one_of({"auto", "cpu", "cuda"})},
      {REPRISE_FIELD(parallel, transport), "auto = what fits launcher and device",
       one_of({"auto", "self", "thread", "mpi", "nccl", "staged"})},

      {REPRISE_FIELD(run, folder), "metrics, checkpoints, provenance", not_empty()},
  };
}

#undef REPRISE_FIELD

/// Shortest text that reads back to the same value, without "e-05" and, with `is_float`, never like an integer.
std::string format_number(double value, bool is_float) {
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (std::isnan(value)) return "nan";
  std::string text = fmt::format("{}", value);
  const std::size_t exponent = text.find('e');
  if (exponent != std::string::npos) {
    std::size_t digits = exponent + 1;
    if (text[digits] == '+') text.erase(digits, 1);
    if (text[digits] == '-') ++digits;
    while (text[digits] == '0' && digits + 1 < text.size()) text.erase(digits, 1);
  } else if (is_float && text.find('.') == std::string::npos) {
    text += ".0";
  }
  return text;
}

bool in_range(const LegalValues& legal, double value) {
  if (legal.or_value == value) return true;
  const bool low = legal.above_low ? value > legal.low : value >= legal.low;
  const bool high = legal.below_high ? value < legal.high : value <= legal.high;
  return low && high && std::isfinite(value);
}

bool in_choices(const LegalValues& legal, const std::string& text) {
  if (legal.not_empty && text.empty()) return false;
  return legal.choices.empty() || std::find(legal.choices.begin(), legal.choices.end(), text) != legal.choices.end();
}

template <class T>
bool element_is_legal(const LegalValues& legal, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return true;
  } else if constexpr (std::is_same_v<T, std::string>) {
    return in_choices(legal, value);
  } else {
    return in_range(legal, static_cast<double>(value));
  }
}

template <class T>
std::string element_to_toml(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return toml_quoted(value);
  } else if constexpr (std::is_same_v<T, double>) {
    return format_number(value, true);
  } else {
    return fmt::format("{}", value);
  }
}

template <class T>
inline constexpr bool is_list = false;
template <class T>
inline constexpr bool is_list<std::vector<T>> = true;

}  // namespace

std::span<const Field> run_config_fields() {
  static const std::vector<Field> fields = make_fields();
  return fields;
}

std::string toml_quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (code < 0x20 || code == 0x7f) {
      quoted += fmt::format("\\u{:04X}", code);
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string to_toml_value(const FieldValue& value) {
  return std::visit(
      [](auto* pointer) {
        using T = std::remove_pointer_t<decltype(pointer)>;
        if constexpr (is_list<T>) {
          std::vector<std::string> elements;
          for (const auto& element : *pointer) elements.push_back(element_to_toml(element));
          return fmt::format("[{}]", fmt::join(elements, ", "));
        } else {
          return element_to_toml(*pointer);
        }
      },
      value);
}

bool is_legal(const Field& field, const FieldValue& value) {
  return std::visit(
      [&](auto* pointer) {
        using T = std::remove_pointer_t<decltype(pointer)>;
        if constexpr (is_list<T>) {
          if (field.legal.length != 0 && pointer->size() != field.legal.length) return false;
          return std::all_of(pointer->begin(), pointer->end(),
                             [&](const auto& element) { return element_is_legal(field.legal, element); });
        } else {
          return element_is_legal(field.legal, *pointer);
        }
      },
      value);
}

std::string describe(const LegalValues& legal) {
  if (!legal.choices.empty()) {
    std::vector<std::string> quoted;
    for (const std::string_view choice : legal.choices) quoted.push_back(toml_quoted(choice));
    return fmt::format("one of {}", fmt::join(quoted, ", "));
  }
  if (legal.not_empty) return "not empty";
  const std::string low = format_number(legal.low, false), high = format_number(legal.high, false);
  std::string text;
  if (std::isinf(legal.high)) {
    text = fmt::format("{} {}", legal.above_low ? "above" : "at least", low);
  } else {
    text = fmt::format("in {}{}, {}{}", legal.above_low ? '(' : '[', low, high, legal.below_high ? ')' : ']');
  }
  if (legal.or_value) text += fmt::format(", or {}", format_number(*legal.or_value, false));
  return legal.length == 0 ? text : fmt::format("{} numbers, each {}", legal.length, text);
}

}  // namespace reprise
