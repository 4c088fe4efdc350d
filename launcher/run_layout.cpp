#include "launcher/run_layout.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <string>

#include "core/error.hpp"

namespace reprise {

std::vector<std::int64_t> legal_tensor_sizes(const DecoderConfig& model, std::int64_t global_batch,
                                             std::int64_t world_size) {
  std::vector<std::int64_t> legal;
  for (std::int64_t n = 1; n <= std::min(world_size, model.num_heads); ++n) {
    const bool fits = world_size % n == 0 && model.num_heads % n == 0 && model.ffn_hidden_size % n == 0 &&
                      (model.num_kv_heads % n == 0 || n % model.num_kv_heads == 0) &&
                      global_batch % (world_size / n) == 0;
    if (fits) legal.push_back(n);
  }
  return legal;
}

void check_layout(const DecoderConfig& model, const RunConfig& config, std::int64_t world_size) {
  const std::int64_t tensor = config.parallel.tensor;
  std::vector<std::string> problems;
  const auto must_divide = [&](std::int64_t divisor, std::int64_t value, const std::string& divisor_name,
                               const std::string& value_name) {
    if (value % divisor == 0) return;
    problems.push_back(fmt::format("{} = {} does not divide {} = {}", divisor_name, divisor, value_name, value));
  };
  must_divide(tensor, world_size, "parallel.tensor", "the number of ranks");
  must_divide(tensor, model.num_heads, "parallel.tensor", "num_attention_heads");
  must_divide(tensor, model.ffn_hidden_size, "parallel.tensor", "intermediate_size");
  if (model.num_kv_heads % tensor != 0 && tensor % model.num_kv_heads != 0) {
    problems.push_back(
        fmt::format("parallel.tensor = {} neither divides num_key_value_heads = {} nor is a multiple of it", tensor,
                    model.num_kv_heads));
  }
  if (world_size % tensor == 0) {
    must_divide(world_size / tensor, config.train.global_batch,
                fmt::format("data = {} ranks / tensor {}", world_size, tensor), "train.global_batch");
  }
  if (problems.empty()) return;
  const std::vector<std::int64_t> legal = legal_tensor_sizes(model, config.train.global_batch, world_size);
  fail(ErrorKind::kUsage, "{} ranks do not fit this run\n{}\n{}", world_size, fmt::join(problems, "\n"),
       legal.empty() ? "no value of parallel.tensor fits: change the number of ranks or train.global_batch"
                     : fmt::format("parallel.tensor that fit: {}", fmt::join(legal, ", ")));
}

}  // namespace reprise
